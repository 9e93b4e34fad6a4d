//! What connections to an address with a distance do that others don't: their acknowledgements
//! take the time of the way, too. So a connection is established at the accepting end only when
//! the connecting end's answer has come, and a sender hears one way late what has arrived and
//! what was read. Elsewhere all this is known at once, which costs no events.

use std::time::Duration;

use super::kernel::{Kernel, Packet};
use super::tcp::{Fin, Phase, Pipe};
use crate::address::Address;

/// What the reader of a direction tells its sender.
#[derive(Clone, Copy)]
pub(super) enum Ack {
    /// So many bytes have come.
    Arrived(usize),
    /// So many bytes were read: the window opens.
    Read(usize),
    Fin,
}

/// What is on its way back to the sender of a direction.
#[derive(Default)]
pub(super) struct Untold {
    /// Bytes that have arrived.
    pub(super) arrived: usize,
    /// Bytes that were read.
    pub(super) read: usize,
    fin: bool,
}

impl Kernel {
    /// Connections to `address` that start from now on take exactly `one_way`.
    pub(super) fn set_distance(&mut self, address: &Address, one_way: Duration) {
        // A unix socket is connected in the call itself: there is no way to go.
        if address.as_ip().is_some() {
            // Nothing arrives in the instant in which it was sent.
            let one_way = (one_way.as_nanos() as u64).max(1);
            self.distances.insert(address.clone(), one_way);
        }
    }

    /// The reader `by` lets the other end know something.
    pub(super) fn tell(&mut self, by: usize, ack: Ack) {
        let end = &mut self.endpoints[by];
        let Some(other) = end.other else {
            return;
        };
        if !end.far {
            return self.told(other, ack);
        }
        let untold = &mut end.incoming.untold;
        match ack {
            Ack::Arrived(bytes) => untold.arrived += bytes,
            Ack::Read(bytes) => untold.read += bytes,
            Ack::Fin => untold.fin = true,
        }
        self.send_packet(other, Packet::Ack(ack));
    }

    /// An acknowledgement has come back over a distance.
    pub(super) fn ack_arrived(&mut self, to: usize, ack: Ack) {
        let Some(other) = self.endpoints[to].other else {
            return;
        };
        // A reset forgets the pipe with its counts, while acknowledgements are on their way.
        let untold = &mut self.endpoints[other].incoming.untold;
        match ack {
            Ack::Arrived(bytes) => untold.arrived = untold.arrived.saturating_sub(bytes),
            Ack::Read(bytes) => untold.read = untold.read.saturating_sub(bytes),
            Ack::Fin => untold.fin = false,
        }
        self.told(to, ack);
    }

    /// The sender `id` knows of it: there is room in its buffer or in the other end's window.
    fn told(&mut self, id: usize, ack: Ack) {
        match ack {
            Ack::Arrived(_) => self.wake_writer(id),
            Ack::Read(_) => self.transmit(id),
            Ack::Fin => {}
        }
    }

    /// The last packet of a handshake over a distance has come to the accepting end.
    pub(super) fn opened(&mut self, id: usize) {
        let end = &mut self.endpoints[id];
        match (end.phase, end.other) {
            (Phase::Connecting, _) => {
                end.phase = Phase::Established;
                match (end.peer, end.queue) {
                    (Some(peer), _) => self.begin_session(peer),
                    (None, Some(member)) => self.enqueue(id, member),
                    (None, None) => {}
                }
            }
            // Who had answered the SYN is gone.
            (Phase::Dead, Some(other)) => self.send_packet(other, Packet::Reset),
            (Phase::Fresh | Phase::Established | Phase::Dead, _) => {}
        }
    }
}

impl Pipe {
    /// Bytes in the sender's buffer: not acknowledged, as far as the sender knows.
    pub(super) fn unacknowledged(&self) -> usize {
        self.bytes.len() - self.readable + self.untold.arrived
    }

    /// The FIN was said and is not acknowledged, as far as the sender knows.
    pub(super) fn fin_unacknowledged(&self) -> bool {
        matches!(self.fin, Fin::Queued | Fin::Flying) || self.untold.fin
    }
}
