//! Connections as Linux has them: two endpoints, a pipe into each, packets that take their time.
//!
//! A pipe holds all bytes of one direction in one queue: first those that have arrived and wait to
//! be read, then those on the wire, then those that the sender's socket buffer still keeps.
//!
//! ```text
//! Fresh → Connecting → Established → Dead      (Dead: reset by either end, or never connected)
//! ```
//!
//! An accepting end starts as Established, or over a distance as Connecting (SYN_RECV).

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::distance::{Ack, Untold};
use super::kernel::{Event, Kernel, Packet, Waiter};
use crate::address::Address;
use crate::ring::Shutdown;

/// One direction of a connection, kept at the end that reads it.
#[derive(Default)]
pub(super) struct Pipe {
    pub(super) bytes: VecDeque<u8>,
    pub(super) readable: usize,
    pub(super) flying: usize,
    pub(super) fin: Fin,
    /// Bytes that have arrived over all.
    pub(super) arrived: u64,
    /// What of this the sender does not know yet; nothing without a distance.
    pub(super) untold: Untold,
}

/// How far the FIN of a direction has come.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Fin {
    #[default]
    No,
    Queued,
    Flying,
    Arrived,
}

impl Pipe {
    /// IORING_CQE_F_SOCK_NONEMPTY: more bytes, or a FIN to be read (as tcp_inq_hint()).
    pub(super) fn hints_more(&self) -> bool {
        self.readable > 0 || self.fin == Fin::Arrived
    }

    fn unsent(&self) -> usize {
        self.bytes.len() - self.readable - self.flying
    }

    /// Forgets all that has not arrived and was not sent (nor, with `flying`, is on the wire).
    fn purge(&mut self, flying: bool) {
        if flying {
            self.flying = 0;
        }
        // A FIN stands behind the bytes: it goes with them.
        if self.fin == Fin::Queued || (flying && self.fin == Fin::Flying) {
            self.fin = Fin::No;
        }
        self.bytes.truncate(self.readable + self.flying);
    }
}

/// Where an endpoint is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    Fresh,
    Connecting,
    Established,
    Dead,
}

/// One end of a connection.
pub(super) struct Endpoint {
    pub(super) incoming: Pipe,
    pub(super) other: Option<usize>,
    pub(super) phase: Phase,
    /// What the next call fails with, once (sk_err).
    pub(super) error: Option<i32>,
    pub(super) write_closed: bool,
    pub(super) read_closed: bool,
    /// close(2) was called; the connection goes on without an owner.
    pub(super) orphan: bool,
    pub(super) linger_zero: bool,
    pub(super) latency: u64,
    /// Acknowledgements take the latency, too: there is a distance.
    pub(super) far: bool,
    /// Packets to one endpoint never overtake each other.
    last_arrival: u64,
    pub(super) local: Option<SocketAddr>,
    pub(super) remote: Option<Address>,
    pub(super) reader: Option<Waiter>,
    pub(super) writer: Option<Waiter>,
    /// The peer that owns this end; `None` for the proxy's ends.
    pub(super) peer: Option<usize>,
    /// The listener in whose queue an accepting end waits, or will.
    pub(super) queue: Option<usize>,
}

/// What a receive finds.
pub(super) enum Readable {
    Nothing,
    Bytes(usize),
    End,
    Error(i32),
}

impl Kernel {
    /// An endpoint that is not connected.
    pub(super) fn new_endpoint(&mut self, latency: u64, peer: Option<usize>) -> usize {
        self.endpoints.push(Endpoint {
            incoming: Pipe::default(),
            other: None,
            phase: Phase::Fresh,
            error: None,
            write_closed: false,
            read_closed: false,
            orphan: false,
            linger_zero: false,
            latency,
            far: false,
            last_arrival: 0,
            local: None,
            remote: None,
            reader: None,
            writer: None,
            peer,
            queue: None,
        });
        self.endpoints.len() - 1
    }

    /// The accepting end for a SYN of `from`, which hears of it after the latency.
    pub(super) fn answer_syn(&mut self, from: usize, peer: Option<usize>) -> usize {
        let latency = self.endpoints[from].latency;
        let answer = self.new_endpoint(latency, peer);
        let end = &mut self.endpoints[from];
        end.other = Some(answer);
        let (local, remote, far) = (end.local, end.remote.clone(), end.far);
        let end = &mut self.endpoints[answer];
        end.other = Some(from);
        end.far = far;
        end.phase = match far {
            true => Phase::Connecting,
            false => Phase::Established,
        };
        end.local = remote.and_then(|address| address.as_ip());
        end.remote = local.map(Address::Ip);
        self.send_packet(from, Packet::Established);
        answer
    }

    /// Puts a packet on the wire to `to`.
    pub(super) fn send_packet(&mut self, to: usize, packet: Packet) {
        let end = &mut self.endpoints[to];
        let at = (self.now + end.latency).max(end.last_arrival);
        end.last_arrival = at;
        self.schedule(at, Event::Arrive { to, packet });
    }

    /// A packet has come.
    pub(super) fn arrive(&mut self, to: usize, packet: Packet) {
        let dead = self.endpoints[to].phase == Phase::Dead;
        match packet {
            Packet::Established => self.established(to),
            Packet::Opened => self.opened(to),
            _ if dead => {}
            Packet::Ack(ack) => self.ack_arrived(to, ack),
            Packet::Refused(errno) => self.fail(to, errno),
            Packet::Data(bytes) => self.data_arrived(to, bytes),
            Packet::Fin => {
                let fin = &mut self.endpoints[to].incoming.fin;
                if *fin == Fin::Flying {
                    *fin = Fin::Arrived;
                    self.tell(to, Ack::Fin);
                    self.wake_reader(to);
                    // A wait for room ends, too.
                    self.wake_writer(to);
                }
            }
            Packet::Reset => {
                // As tcp_reset(): after a FIN nobody was going to read any more.
                let finished = self.endpoints[to].incoming.fin == Fin::Arrived;
                self.fail(
                    to,
                    if finished {
                        libc::EPIPE
                    } else {
                        libc::ECONNRESET
                    },
                );
            }
        }
    }

    fn established(&mut self, to: usize) {
        let end = &mut self.endpoints[to];
        if end.phase == Phase::Connecting {
            end.phase = Phase::Established;
            let (peer, answers) = (end.peer, end.other.filter(|_| end.far));
            if let Some(peer) = peer {
                self.peer_began(peer);
            }
            if let Some(other) = answers {
                self.send_packet(other, Packet::Opened);
            }
            self.wake_writer(to);
            self.wake_reader(to);
        } else if end.phase == Phase::Dead
            && let Some(other) = end.other
        {
            // The connecting end gave up meanwhile: the handshake is answered with RST.
            self.send_packet(other, Packet::Reset);
        }
    }

    /// The connection is gone; what has arrived stays readable.
    fn fail(&mut self, id: usize, errno: i32) {
        let end = &mut self.endpoints[id];
        end.phase = Phase::Dead;
        end.error = Some(errno);
        end.incoming.purge(true);
        if let Some(other) = end.other.map(|other| &mut self.endpoints[other])
            && other.phase == Phase::Dead
        {
            other.incoming = Pipe::default();
        }
        self.wake_reader(id);
        self.wake_writer(id);
    }

    fn data_arrived(&mut self, to: usize, bytes: usize) {
        let end = &mut self.endpoints[to];
        let bytes = bytes.min(end.incoming.flying);
        if bytes == 0 {
            return;
        }
        // RFC 1122 4.2.2.13: data that nobody can read any more is answered with RST.
        if end.orphan || (end.read_closed && end.write_closed) {
            return self.abort(to, false);
        }
        end.incoming.flying -= bytes;
        end.incoming.readable += bytes;
        end.incoming.arrived += bytes as u64;
        self.wake_reader(to);
        self.tell(to, Ack::Arrived(bytes));
    }

    /// Sends RST and forgets what is unsent (and on the wire, with `flying`).
    pub(super) fn abort(&mut self, id: usize, flying: bool) {
        let end = &mut self.endpoints[id];
        end.phase = Phase::Dead;
        end.incoming = Pipe::default();
        if let Some(other) = end.other {
            self.endpoints[other].incoming.purge(flying);
            self.send_packet(other, Packet::Reset);
        }
        self.wake_reader(id);
        self.wake_writer(id);
    }

    /// What a receive would find. Takes the pending error.
    pub(super) fn look(&mut self, id: usize) -> Readable {
        let end = &mut self.endpoints[id];
        if end.incoming.readable > 0 {
            return Readable::Bytes(end.incoming.readable);
        }
        if end.incoming.fin == Fin::Arrived {
            return Readable::End;
        }
        match (end.error.take(), end.phase) {
            (Some(errno), _) => Readable::Error(errno),
            (None, Phase::Dead) => Readable::End,
            (None, Phase::Fresh | Phase::Connecting) => Readable::Error(libc::ENOTCONN),
            (None, Phase::Established) if end.read_closed => Readable::End,
            (None, Phase::Established) => Readable::Nothing,
        }
    }

    /// Whether a receive would find anything; takes nothing.
    pub(super) fn has_something(&self, id: usize) -> bool {
        let end = &self.endpoints[id];
        end.incoming.readable > 0
            || end.incoming.fin == Fin::Arrived
            || end.read_closed
            || end.phase != Phase::Established
    }

    /// The first `len` readable bytes were read: the window opens.
    pub(super) fn consume(&mut self, id: usize, len: usize) {
        let end = &mut self.endpoints[id];
        end.incoming.bytes.drain(..len);
        end.incoming.readable -= len;
        self.tell(id, Ack::Read(len));
    }

    /// Why nothing can be sent. Takes the pending error.
    pub(super) fn send_error(&mut self, id: usize) -> Option<i32> {
        let end = &mut self.endpoints[id];
        match end.phase {
            Phase::Established if end.write_closed => Some(libc::EPIPE),
            Phase::Established => None,
            Phase::Dead => Some(end.error.take().unwrap_or(libc::EPIPE)),
            Phase::Fresh | Phase::Connecting => Some(libc::ENOTCONN),
        }
    }

    /// Bytes that the socket's send buffer would take.
    pub(super) fn space(&self, id: usize) -> usize {
        let Some(other) = self.endpoints[id].other else {
            return 0;
        };
        let waiting = self.endpoints[other].incoming.unacknowledged();
        (self.faults.send_buffer as usize).saturating_sub(waiting)
    }

    /// Puts bytes into the send buffer, for which there is [`Kernel::space`].
    pub(super) fn put(&mut self, id: usize, bytes: &[u8]) {
        if let Some(other) = self.endpoints[id].other {
            self.endpoints[other].incoming.bytes.extend(bytes);
        }
    }

    /// Puts on the wire what the other end's window takes, then the FIN.
    pub(super) fn transmit(&mut self, id: usize) {
        let Some(other) = self.endpoints[id].other else {
            return;
        };
        let window = self.faults.receive_buffer as usize;
        let pipe = &mut self.endpoints[other].incoming;
        let room = window.saturating_sub(pipe.readable + pipe.flying + pipe.untold.read);
        let bytes = pipe.unsent().min(room);
        pipe.flying += bytes;
        let finish = pipe.fin == Fin::Queued && pipe.unsent() == 0;
        if finish {
            pipe.fin = Fin::Flying;
        }
        if bytes > 0 {
            self.send_packet(other, Packet::Data(bytes));
        }
        if finish {
            self.send_packet(other, Packet::Fin);
        }
    }

    pub(super) fn shutdown(&mut self, id: usize, how: Shutdown) {
        match self.endpoints[id].phase {
            Phase::Established => {}
            // As inet_shutdown(): a connect in progress is given up.
            Phase::Connecting => return self.fail(id, libc::ECONNRESET),
            Phase::Fresh | Phase::Dead => return,
        }
        if how != Shutdown::Write {
            self.endpoints[id].read_closed = true;
            self.wake_reader(id);
        }
        if how != Shutdown::Read {
            self.finish(id);
            self.wake_writer(id);
        }
    }

    /// FIN after what was sent.
    fn finish(&mut self, id: usize) {
        let end = &mut self.endpoints[id];
        if std::mem::replace(&mut end.write_closed, true) {
            return;
        }
        if let Some(other) = end.other {
            self.endpoints[other].incoming.fin = Fin::Queued;
        }
        self.transmit(id);
    }

    /// close(2), with the three endings of tcp_close().
    pub(super) fn close_endpoint(&mut self, id: usize) {
        let finished = self.both_finished(id);
        let end = &mut self.endpoints[id];
        end.orphan = true;
        if end.phase != Phase::Established {
            end.phase = Phase::Dead;
            end.incoming = Pipe::default();
        } else if end.incoming.readable > 0 || (end.linger_zero && !finished) {
            let forget = end.linger_zero;
            self.abort(id, forget);
        } else {
            if end.incoming.bytes.is_empty() {
                end.incoming.bytes = VecDeque::new();
            }
            self.finish(id);
        }
    }

    /// Both FINs are on their way and nothing is unsent: there is nothing left to reset.
    fn both_finished(&self, id: usize) -> bool {
        let end = &self.endpoints[id];
        let sent = end.other.map(|other| self.endpoints[other].incoming.fin);
        end.incoming.fin == Fin::Arrived && matches!(sent, Some(Fin::Flying | Fin::Arrived))
    }

    /// Bytes that have not arrived, the FIN counted as one, as SIOCOUTQ does.
    pub(super) fn unacknowledged(&self, id: usize) -> u32 {
        let end = &self.endpoints[id];
        let Some(other) = end.other.filter(|_| end.phase == Phase::Established) else {
            return 0;
        };
        let pipe = &self.endpoints[other].incoming;
        pipe.unacknowledged() as u32 + u32::from(pipe.fin_unacknowledged())
    }

    /// Bytes of which the sender knows that they have arrived at the other end.
    pub(super) fn acknowledged(&self, id: usize) -> u64 {
        let other = self.endpoints[id].other;
        let pipe = other.map(|other| &self.endpoints[other].incoming);
        pipe.map_or(0, |pipe| pipe.arrived - pipe.untold.arrived as u64)
    }

    pub(super) fn wake_reader(&mut self, id: usize) {
        let end = &self.endpoints[id];
        let (peer, waiter) = (end.peer, end.reader);
        self.wake(peer, waiter);
    }

    pub(super) fn wake_writer(&mut self, id: usize) {
        let end = &self.endpoints[id];
        let (peer, waiter) = (end.peer, end.writer);
        self.wake(peer, waiter);
    }
}
