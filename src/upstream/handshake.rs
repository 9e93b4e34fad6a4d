//! A TLS handshake on a socket of the ring, from either side.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;

use super::gate::{Gate, Visitor};
use crate::proto::records::{RECORD_BYTES_MAX, Scan};
use crate::ring::{BUFFER_BYTES, Flow, Ring, Socket};
use crate::time::Instant;
use crate::tls::{Fault, Session};

/// Why a handshake did not succeed.
#[derive(Debug)]
pub enum Unsecured {
    /// The other side is at fault, or unhappy. It has been told why.
    Fault(Fault),
    /// The other side has left in the middle of it, or was reset.
    Gone(io::Error),
    /// It was not over in time.
    TimedOut,
    /// The backend has said something before it was spoken to.
    Early,
}

impl fmt::Display for Unsecured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fault(fault) => write!(f, "TLS: {fault}"),
            Self::Gone(error) => write!(f, "TLS: closed during the handshake ({error})"),
            Self::Early => f.write_str("TLS: it speaks before the handshake"),
            Self::TimedOut => f.write_str("TLS: the handshake takes too long"),
        }
    }
}

impl std::error::Error for Unsecured {}

/// Goes through the handshake of `session` on `socket`, by `deadline`. What of the other side's data came
/// with the end of the handshake is kept in the session.
///
/// # Errors
/// Why it failed.
pub async fn handshake(
    ring: &Ring,
    gate: &Gate,
    socket: &Socket,
    session: &mut Session,
    deadline: Instant,
) -> Result<(), Unsecured> {
    let timer = ring.timer();
    socket.belongs_to_this_task();
    let mut steps = Steps {
        socket,
        session,
        visitor: gate.visit(ring),
        reply: Vec::new(),
        fault: None,
        begun: false,
        leaving: false,
        deadline,
    };
    // Whoever is called speaks second.
    steps.begun = !steps.session.is_client();
    poll_fn(|_| {
        let poll = steps.go_on();
        timer.set(steps.deadline);
        match poll {
            Poll::Pending if ring.now() >= steps.deadline => Poll::Ready(Err(steps.give_up())),
            poll => poll,
        }
    })
    .await
}

/// Takes in what has arrived on a connection that nobody uses yet. False when the other side has finished,
/// or is at fault.
pub fn absorb(socket: &Socket, session: &mut Session) -> bool {
    if socket.is_sending() || records_to_take(socket, session) == 0 {
        return !session.peer_has_finished();
    }
    let mut reply = Vec::new();
    let received = receive(socket, session, &mut reply);
    if !reply.is_empty() {
        socket.send_staged(reply);
    }
    received.is_ok() && !session.peer_has_finished()
}

/// Bytes of the whole records at the beginning of what was received. An incomplete one stays where it is.
fn whole_records(socket: &Socket) -> u32 {
    let mut scan = Scan::default();
    socket.peek(|bytes| scan.feed(bytes));
    scan.whole
}

/// Bytes of what was received that `session` is to get now: whole records, since nothing else can be used. Where
/// buffers are scarce, all: the beginning of a record takes less room in the session than a buffer of its own.
/// And what belongs to something of which the session has the beginning.
pub fn records_to_take(socket: &Socket, session: &Session) -> u32 {
    let is_scarce = socket.window(2 * BUFFER_BYTES) <= BUFFER_BYTES;
    match session.keeps() || is_scarce {
        true => socket.held(),
        false => whole_records(socket),
    }
}

/// Takes the first `bytes` of what was received, to be given back with [`Ring::unstage`].
pub fn take_records(socket: &Socket, bytes: u32) -> Vec<u8> {
    let mut records = socket.ring().staging(bytes as usize);
    socket.peek(|slice| {
        let room = bytes as usize - records.len();
        records.extend_from_slice(&slice[..slice.len().min(room)]);
    });
    socket.consume(bytes);
    records
}

/// Takes what has arrived; plaintext is kept in the session.
fn receive(socket: &Socket, session: &mut Session, reply: &mut Vec<u8>) -> Result<(), Fault> {
    let ring = socket.ring();
    let mut records = take_records(socket, records_to_take(socket, session));
    let mut early = Vec::new();
    let keep = &mut |plain: &[u8]| early.extend_from_slice(plain);
    let received = session.receive(&mut records, reply, keep);
    ring.unstage(records);
    session.keep(&early);
    received
}

/// How long whoever has sent nonsense may take to read why it is not wanted.
const FAREWELL: Duration = Duration::from_secs(1);

/// A handshake on its way.
struct Steps<'a> {
    socket: &'a Socket,
    session: &'a mut Session,
    visitor: Visitor<'a>,
    /// To be sent.
    reply: Vec<u8>,
    /// It has failed, and the other side is still to hear of it.
    fault: Option<Fault>,
    begun: bool,
    /// FIN was sent.
    leaving: bool,
    deadline: Instant,
}

impl Steps<'_> {
    /// It is over.
    fn give_up(&mut self) -> Unsecured {
        self.fault
            .take()
            .map_or(Unsecured::TimedOut, Unsecured::Fault)
    }

    fn go_on(&mut self) -> Poll<Result<(), Unsecured>> {
        if let Some(errno) = self.socket.send_error() {
            let error = io::Error::from_raw_os_error(errno);
            let fault = self.fault.take().map(Unsecured::Fault);
            return Poll::Ready(Err(fault.unwrap_or(Unsecured::Gone(error))));
        }
        let to_take = records_to_take(self.socket, self.session) > 0 || !self.begun;
        match to_take && self.fault.is_none() {
            true if self.visitor.may_pass() => self.fault = self.step().err(),
            true => {}
            // With more buffers than before the beginning of a record is none to be taken.
            false => self.visitor.leave(),
        }
        if !self.reply.is_empty() && !self.socket.is_sending() {
            self.socket.send_staged(std::mem::take(&mut self.reply));
        }
        if self.fault.is_some() {
            return self.say_farewell();
        }
        if !self.reply.is_empty() {
            self.socket.wake_when_sent();
            return Poll::Pending;
        }
        if !self.session.is_handshaking() {
            return Poll::Ready(Ok(()));
        }
        if records_to_take(self.socket, self.session) > 0 {
            return Poll::Pending;
        }
        if self.socket.has_ended() {
            return Poll::Ready(Err(Unsecured::Gone(match self.socket.flow(0) {
                Flow::Failed { errno, .. } => io::Error::from_raw_os_error(errno),
                _ => io::ErrorKind::UnexpectedEof.into(),
            })));
        }
        self.socket.receive_rest(RECORD_BYTES_MAX);
        Poll::Pending
    }

    /// Takes what has arrived.
    fn step(&mut self) -> Result<(), Fault> {
        self.begun = true;
        let received = receive(self.socket, self.session, &mut self.reply);
        if received.is_err() {
            let farewell = self.socket.ring().now() + FAREWELL;
            self.deadline = self.deadline.min(farewell);
        }
        received
    }

    /// The alert is on its way. A client gets FIN after it, and what it has still sent is taken in: with
    /// something unread the alert would be overtaken by RST. A backend gets no such attention.
    fn say_farewell(&mut self) -> Poll<Result<(), Unsecured>> {
        if self.socket.is_sending() {
            self.socket.wake_when_sent();
            return Poll::Pending;
        }
        if !self.leaving {
            self.leaving = true;
            self.socket.finish();
        }
        let held = self.socket.held();
        self.socket.consume(held);
        if self.session.is_client() || self.socket.flow(0) != Flow::Open {
            return Poll::Ready(Err(self.give_up()));
        }
        self.socket.receive(BUFFER_BYTES);
        Poll::Pending
    }
}
