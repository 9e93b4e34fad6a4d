//! The backends: one that echoes, and one that takes bursts and sends some. Each takes and sends many
//! datagrams per call, so that any proxy has more to do.

use std::collections::HashMap;
use std::io::IoSlice;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::socket::{
    ControlMessage, MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg, sendmsg,
};
use ringress::ring;
use ringress::time::Instant;

use super::datagram::{HEAD_BYTES, Head, Kind, MOST_BYTES, Totals};
use super::seen::{Arrival, Seen};
use super::sockets::{self, Batch, Poller};
use crate::error::Error;
use crate::pattern::Pattern;

/// What a backend does with datagrams.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Service {
    /// Sends back what comes.
    Echo,
    /// Counts the datagrams of bursts and acknowledges each burst; sends bursts to who asks.
    Bursts,
    /// Echoes, but does nothing from the first instant to the second.
    Stall(Instant, Instant),
}

/// A backend with its socket. It serves when it is told to.
pub struct Backend {
    service: Service,
    pub(super) socket: UdpSocket,
    address: SocketAddr,
    batch: Batch,
    answers: Answers,
}

/// What is needed to answer.
struct Answers {
    headers: MultiHeaders<SockaddrStorage>,
    pattern: Pattern,
    /// By run and source. A run has an end, but nobody says when.
    senders: HashMap<(u32, u32), Sender>,
    burst: Vec<u8>,
}

/// A source whose bursts are counted.
#[derive(Default)]
struct Sender {
    totals: Totals,
    seen: Seen,
    /// The newest burst, and whether it was acknowledged.
    burst: u64,
    acknowledged: bool,
}

/// Datagrams, or bursts, per call.
const AT_ONCE: usize = 64;
/// So many senders are remembered; then all are forgotten at once.
const MOST_SENDERS: usize = 65_536;

impl Backend {
    /// A backend on `address`; with port 0 the kernel chooses one.
    ///
    /// # Errors
    /// As socket(2) and bind(2), or the kernel knows no UDP_GRO (before 5.0).
    pub fn new(address: SocketAddr, service: Service) -> Result<Self, Error> {
        let socket = sockets::open(address)?;
        let together = service == Service::Bursts;
        if together {
            sockets::take_segments_together(&socket)?;
        }
        let address = socket
            .local_addr()
            .map_err(Error::while_doing("asking for the port"))?;
        Ok(Self {
            service,
            socket,
            address,
            batch: Batch::new(AT_ONCE, together),
            answers: Answers {
                headers: MultiHeaders::preallocate(AT_ONCE, None),
                pattern: Pattern::new(),
                senders: HashMap::new(),
                burst: Vec::new(),
            },
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers what is there, a batch at most.
    pub(super) fn serve(&mut self) -> Result<(), Error> {
        if let Service::Stall(from, until) = self.service
            && (from..until).contains(&ring::now())
        {
            return Ok(());
        }
        self.batch
            .receive(&self.socket)
            .map_err(Error::while_doing("receiving at the backend"))?;
        match self.service {
            Service::Echo | Service::Stall(..) => self.answers.echo(&self.socket, &self.batch),
            Service::Bursts => self.answers.count(&self.socket, &self.batch),
        }
        Ok(())
    }
}

/// Serves for ever.
///
/// # Errors
/// Its socket can't be used any more.
pub fn serve(mut backend: Backend) -> Result<(), Error> {
    const LONG: Duration = Duration::from_secs(60);
    let mut poller = Poller::new()?;
    poller.add(&backend.socket, 0)?;
    let mut ready = Vec::new();
    loop {
        poller.wait(LONG, &mut ready)?;
        if !ready.is_empty() {
            backend.serve()?;
        }
    }
}

impl Answers {
    /// Sends back what was received. What the kernel does not take is lost, as it would be on any way.
    fn echo(&mut self, socket: &UdpSocket, batch: &Batch) {
        let (slices, addresses): (Vec<_>, Vec<_>) = batch
            .received()
            .map(|(received, bytes)| ([IoSlice::new(bytes)], received.from))
            .unzip();
        let mut sent = 0;
        while sent < slices.len() {
            let done = sendmmsg(
                socket.as_raw_fd(),
                &mut self.headers,
                &slices[sent..],
                &addresses[sent..],
                [],
                MsgFlags::MSG_DONTWAIT,
            );
            // The first of them is the one that was refused.
            sent += done.map_or(1, Iterator::count);
        }
    }

    /// Counts, acknowledges, sends what is asked for.
    fn count(&mut self, socket: &UdpSocket, batch: &Batch) {
        for (received, bytes) in batch.received() {
            let Some(from) = received.from else { continue };
            for segment in bytes.chunks(received.segment) {
                match Head::read(segment) {
                    Some(head) if head.kind == Kind::Ask => {
                        self.send_burst(socket, &head, segment.len(), &from);
                    }
                    Some(head) => {
                        if let Some(answer) = self.take(&head, segment) {
                            send(socket, &answer, &from);
                        }
                    }
                    // Whose it was is not known; it will be missing.
                    None => {}
                }
            }
        }
    }

    /// Books a datagram; returns what there is to say to its source.
    fn take(&mut self, head: &Head, bytes: &[u8]) -> Option<Vec<u8>> {
        if self.senders.len() >= MOST_SENDERS {
            self.senders.clear();
        }
        let sender = self.senders.entry((head.run, head.source)).or_default();
        let through = match head.kind {
            Kind::Segment if !head.is_intact(&self.pattern, bytes) => {
                sender.totals.corrupt += 1;
                None
            }
            Kind::Segment => sender.take(head),
            Kind::Query => Some(head.sequence),
            Kind::Echo | Kind::Ask | Kind::Acknowledgement => None,
        };
        let answer = Head {
            kind: Kind::Acknowledgement,
            sequence: through?,
            ..*head
        };
        Some(sender.totals.acknowledgement(&answer).to_vec())
    }

    /// A burst in one call, cut into datagrams by the kernel.
    fn send_burst(&mut self, socket: &UdpSocket, ask: &Head, size: usize, to: &SockaddrStorage) {
        let segments = u64::from(ask.segments);
        let whole = size * usize::from(ask.segments);
        if size < HEAD_BYTES || whole > MOST_BYTES {
            return;
        }
        self.burst.resize(whole, 0);
        for (number, bytes) in (0..segments).zip(self.burst.chunks_exact_mut(size)) {
            let head = Head {
                kind: Kind::Segment,
                sequence: ask.sequence * segments + number,
                ..*ask
            };
            head.write(&self.pattern, bytes);
        }
        let size = size as u16;
        let _ = sendmsg(
            socket.as_raw_fd(),
            &[IoSlice::new(&self.burst)],
            &[ControlMessage::UdpGsoSegments(&size)],
            MsgFlags::MSG_DONTWAIT,
            Some(to),
        );
    }
}

impl Sender {
    /// Books an intact segment; returns the number of a burst that nothing more is expected of.
    fn take(&mut self, head: &Head) -> Option<u64> {
        let burst = head.burst();
        match self.seen.note(head.sequence) {
            Arrival::Newest => self.totals.arrived += 1,
            Arrival::Overtaken => {
                self.totals.arrived += 1;
                self.totals.overtaken += 1;
            }
            Arrival::Again => self.totals.again += 1,
            Arrival::TooOld => {}
        }
        let is_last = (head.sequence + 1).is_multiple_of(u64::from(head.segments));
        // The last of the burst before this one was lost, or is still on its way.
        let before = (burst > self.burst && !self.acknowledged).then_some(self.burst);
        if burst > self.burst {
            self.burst = burst;
            self.acknowledged = false;
        }
        if is_last && burst == self.burst {
            self.acknowledged = true;
            return Some(burst);
        }
        before
    }
}

fn send(socket: &UdpSocket, bytes: &[u8], to: &SockaddrStorage) {
    let to = to.as_sockaddr_in().map_or_else(
        || to.as_sockaddr_in6().map(|to| SocketAddr::V6((*to).into())),
        |to| Some(SocketAddr::V4((*to).into())),
    );
    if let Some(to) = to {
        // What is lost here is missed and asked for again.
        let _ = socket.send_to(bytes, to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(sequence: u64) -> Head {
        Head {
            run: 1,
            kind: Kind::Segment,
            segments: 4,
            source: 0,
            sequence,
            stamp: 0,
        }
    }

    #[test]
    fn a_burst_is_acknowledged_with_its_last_datagram_or_the_next_burst() {
        let mut sender = Sender::default();
        let mut take = |sequence| sender.take(&segment(sequence));
        assert_eq!([take(0), take(1), take(2)], [None; 3]);
        assert_eq!(take(3), Some(0));
        assert_eq!([take(4), take(6)], [None; 2], "number 7 is lost");
        assert_eq!(take(8), Some(1));
        assert_eq!(take(5), None);
        assert_eq!([take(9), take(9)], [None; 2]);
        let totals = sender.totals;
        assert_eq!((totals.arrived, totals.overtaken, totals.again), (9, 1, 1));
    }
}
