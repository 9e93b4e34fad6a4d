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
            clock_jump: 0,
            late_by: Duration::from_micros(100),
            latency: (Duration::from_micros(10), Duration::from_micros(10)),
            receive_buffer: 64 << 10,
            send_buffer: 64 << 10,
            backlog: 128,
        }
    }

    /// A mix that depends on the seed: each fault off, rare, common or heavy, the network near or
    /// far, its buffers small or large.
    pub fn from_seed(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0xfa17);
        let mut often = |most: u16| random.pick(&[0, 0, most / 50, most / 7, most]);
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
        faults
    }
}
