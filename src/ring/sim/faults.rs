//! What goes wrong in a run and how often, and how the network is: [`Faults`].

use std::time::Duration;

use super::random::Random;

/// The conditions of a run. Probabilities are in ten-thousandths, drawn at each opportunity.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Faults {
    /// A receive fills only a part of its buffer.
    pub short_receive: u16,
    /// A send ends before all of it was taken, although MSG_WAITALL was asked for.
    pub short_send: u16,
    /// A receive ends with ENOBUFS although there are buffers (they were provided just too late).
    pub no_buffers: u16,
    /// A multishot receive ends with ECANCELED that nobody asked for.
    pub receive_cancelled: u16,
    /// A multishot receive ends with data before its budget is used up.
    pub receive_ends: u16,
    /// A multishot accept ends with a connection.
    pub accept_ends: u16,
    /// An accept fails with ENFILE, ENOBUFS, ENOMEM or ECONNABORTED.
    pub accept_fails: u16,
    /// An accept or an open meets the limit of descriptors (EMFILE), as do all that follow for a while.
    pub exhausted: u16,
    /// A completion comes up to [`Faults::late_by`] late, and so after others.
    pub late: u16,
    /// Two neighbouring completions of different ops, or two ops that became ready, change places.
    pub reorder: u16,
    /// A connect takes up to 300 ms longer.
    pub slow_connect: u16,
    /// A client or a backend resets its connection within 200 ms.
    pub peer_reset: u16,
    /// A datagram, or several that are joined, gets lost on its way.
    pub datagram_lost: u16,
    /// It comes twice.
    pub datagram_doubled: u16,
    /// It takes up to 50 ms longer, and so comes after others.
    pub datagram_late: u16,
    /// Datagrams that were sent joined come each for itself.
    pub split: u16,
    /// The ICMP error does not come that a datagram to nobody has caused.
    pub unreachable_lost: u16,
    /// A datagram meets no room in its socket (EAGAIN).
    pub send_full: u16,
    /// A datagram meets no room further on (ENOBUFS).
    pub send_fails: u16,
    /// What a socket sends to one address can't be cut on the way (EIO); drawn once.
    pub no_offload: u16,
    /// There is no local port: EADDRNOTAVAIL, or what [`super::World::set_local_ports`] brings about.
    pub no_port: u16,
    /// The clock jumps ahead by up to 2 s while it advances.
    pub clock_jump: u16,
    /// How late a late completion is at most.
    pub late_by: Duration,
    /// Time from one end of a connection to the other: at least, at most; drawn per connection.
    pub latency: (Duration, Duration),
    /// Bytes a socket receives before it is read (the window).
    pub receive_buffer: u32,
    /// Bytes a socket takes before they have arrived.
    pub send_buffer: u32,
    /// Bytes that wait for a datagram socket to be received, with 768 more for each; the one by which
    /// this is passed still fits.
    pub datagram_queue: u32,
    /// Connections a listener holds before they are accepted.
    pub backlog: u32,
}

impl Faults {
    /// Nothing goes wrong; every packet takes 10 µs.
    pub const fn none() -> Self {
        Self {
            short_receive: 0,
            short_send: 0,
            no_buffers: 0,
            receive_cancelled: 0,
            receive_ends: 0,
            accept_ends: 0,
            accept_fails: 0,
            exhausted: 0,
            late: 0,
            reorder: 0,
            slow_connect: 0,
            peer_reset: 0,
            datagram_lost: 0,
            datagram_doubled: 0,
            datagram_late: 0,
            split: 0,
            unreachable_lost: 0,
            send_full: 0,
            send_fails: 0,
            no_offload: 0,
            no_port: 0,
            clock_jump: 0,
            late_by: Duration::from_micros(100),
            latency: (Duration::from_micros(10), Duration::from_micros(10)),
            receive_buffer: 64 << 10,
            send_buffer: 64 << 10,
            datagram_queue: 4 << 20,
            backlog: 128,
        }
    }

    /// A mix that depends on the seed: each fault off, rare, common or heavy, the network near or
    /// far, its buffers small or large.
    pub fn from_seed(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0xfa17);
        let mut often = |most: u16| often(&mut random, most);
        let none = Self::none();
        let mut faults = Self {
            short_receive: often(5_000),
            short_send: often(2_500),
            no_buffers: often(1_000),
            receive_cancelled: often(500),
            receive_ends: often(2_500),
            accept_ends: often(2_500),
            accept_fails: often(1_000),
            exhausted: often(150),
            late: often(3_000),
            reorder: often(5_000),
            slow_connect: often(2_500),
            // Ends connections, and so hides what the other faults would have found.
            peer_reset: often(700),
            clock_jump: often(50) / 10,
            ..none
        };
        let far = random.pick(&[20, 1_000, 30_000]);
        faults.latency = (Duration::from_micros(10), Duration::from_micros(far));
        faults.late_by = Duration::from_micros(random.pick(&[10, 500, 20_000]));
        faults.receive_buffer = random.pick(&[4 << 10, 16 << 10, 64 << 10, 256 << 10]);
        faults.send_buffer = random.pick(&[4 << 10, 16 << 10, 64 << 10, 256 << 10]);
        faults.backlog = random.pick(&[2, 16, 128]);
        faults.with_datagrams(&mut random)
    }

    fn with_datagrams(self, random: &mut Random) -> Self {
        let mut often = |most: u16| often(random, most);
        Self {
            datagram_lost: often(1_000),
            datagram_doubled: often(1_000),
            datagram_late: often(2_500),
            split: often(5_000),
            unreachable_lost: often(5_000),
            send_full: often(700),
            send_fails: often(700),
            no_offload: often(7_000),
            no_port: often(700),
            datagram_queue: random.pick(&[4 << 10, 64 << 10, 1 << 20, 4 << 20]),
            ..self
        }
    }
}

/// Off, rare, common or heavy.
fn often(random: &mut Random, most: u16) -> u16 {
    random.pick(&[0, 0, most / 50, most / 7, most])
}
