//! A direction where TLS ends on one side or both: ciphertext is decrypted or made on its way, in memory that
//! lasts as long as a send. Whole records are taken only; an incomplete one waits where it was received, so
//! that a connection which is silent between two records holds nothing.
//!
//! ```text
//!   received ──whole records──▶ decrypt ──▶ plaintext ──▶ encrypt ──▶ staged ──▶ one send
//! ```
//!
//! What a session has to answer itself (an alert, a key update) goes out before anything that is encrypted
//! after it.

use super::relay::Side;
use crate::proto::records::RECORD_BYTES_MAX;
use crate::ring::{Flow, Relayed, Socket};
use crate::telemetry::Reason;
use crate::tls::{Fault, Session};
use crate::upstream::{absorb, records_to_take, take_records};

/// What TLS adds to a window at most.
const OVERHEAD: usize = 4 << 10;

/// The TLS of a session's sides.
pub(super) struct Tls {
    sides: [Layer; 2],
}

/// The TLS of one side.
#[derive(Default)]
struct Layer {
    /// `None`: it is plain.
    session: Option<Box<Session>>,
    /// To be sent to it before anything else.
    reply: Vec<u8>,
    /// It was told that nothing more comes.
    finished: bool,
    /// Why nothing more can be received from it.
    fault: Option<(Reason, Option<Fault>)>,
}

impl Tls {
    /// `None` where neither side has any.
    pub(super) fn new(
        client: Option<Box<Session>>,
        backend: Option<Box<Session>>,
    ) -> Option<Box<Self>> {
        if client.is_none() && backend.is_none() {
            return None;
        }
        let sides = [client, backend].map(|session| Layer {
            session,
            ..Layer::default()
        });
        Some(Box::new(Self { sides }))
    }

    /// The client's.
    pub(super) fn into_client(self) -> Option<Box<Session>> {
        let [client, _] = self.sides;
        client.session
    }

    /// Takes in what has arrived from a side before relaying begins; false when it has finished.
    pub(super) fn absorb(&mut self, side: Side, socket: &Socket) -> bool {
        let session = self.sides[side as usize].session.as_mut();
        session.is_none_or(|session| absorb(socket, session))
    }

    /// Plaintext has come with the handshake.
    fn has_early(&self, side: Side) -> bool {
        let session = self.sides[side as usize].session.as_ref();
        session.is_some_and(|session| !session.early().is_empty())
    }

    /// Plaintext has come with the handshake, or the end.
    pub(super) fn has_news(&self, side: Side) -> bool {
        self.has_early(side) || self.sides[side as usize].has_closed()
    }

    /// Why TLS can't go on with this side, if that is so.
    pub(super) fn fault(&self, side: Side) -> Option<Reason> {
        let fault = self.sides[side as usize].fault.as_ref();
        fault.map(|(reason, _)| *reason)
    }

    /// The same in words.
    pub(super) fn detail(&self) -> Option<String> {
        let faults = self.sides.iter().filter_map(|side| side.fault.as_ref());
        let mut details = faults.filter_map(|(_, fault)| fault.as_ref());
        details.next().map(Fault::to_string)
    }

    /// Moves what `source` has sent to `target`, and keeps receiving `window` bytes at most. With a window of
    /// 0 the direction rests.
    pub(super) fn relay(
        &mut self,
        from: Side,
        (source, target): (&Socket, &Socket),
        window: u32,
    ) -> Relayed {
        if let Some(errno) = target.send_error() {
            return Relayed::broken(0, errno);
        }
        let mut moved = 0;
        let failed = self.sides[from.other() as usize].fault.is_some();
        if window > 0 && !failed && !target.is_sending() {
            moved = self.fill(from, source, target);
        }
        self.answer(from, source);
        let in_flight = target.staged();
        self.receive(from, source, in_flight, window);
        let flow = self.flow(from, source, target);
        let (held, armed) = (source.held(), source.is_receiving());
        let to = &self.sides[from.other() as usize];
        let layer = &self.sides[from as usize];
        let ends = layer.has_finished(source) || layer.fault.is_some();
        let waits = held > 0 || !armed || ends || !to.reply.is_empty() || self.has_early(from);
        if target.is_sending() && waits {
            target.wake_when_sent();
        }
        Relayed {
            moved,
            blocked: held + in_flight > 0 && !armed,
            quiet: window == 0 && !armed,
            flow,
        }
    }

    /// The side `socket` was told why it is at fault, if it is, and has heard it.
    pub(super) fn has_told(&self, side: Side, socket: &Socket) -> bool {
        let layer = &self.sides[side as usize];
        let at_fault = matches!(layer.fault, Some((_, Some(_))));
        let sent = layer.reply.is_empty() && !socket.is_sending() && socket.unacknowledged() == 0;
        !at_fault || sent || socket.is_gone()
    }

    /// Both sides that speak TLS are told that nothing more comes.
    pub(super) fn part(&mut self, client: &Socket, backend: &Socket) {
        for (layer, socket) in self.sides.iter_mut().zip([client, backend]) {
            if !socket.is_sending() {
                let mut out = std::mem::take(&mut layer.reply);
                layer.finish(&mut out);
                if !out.is_empty() {
                    socket.send_staged(out);
                }
            }
        }
    }

    /// Makes one send of what there is; returns the bytes of plaintext in it.
    fn fill(&mut self, from: Side, source: &Socket, target: &Socket) -> u32 {
        let ring = source.ring();
        let [client, backend] = &mut self.sides;
        let (layer, to) = match from {
            Side::Client => (client, backend),
            Side::Backend => (backend, client),
        };
        let records = layer.to_take(source);
        let early = layer.session.as_mut().map(|session| session.take_early());
        let early = early.unwrap_or_default();
        let expected = records as usize + early.len() + to.reply.len();
        let mut out = ring.staging(expected + expected / OVERHEAD * 64 + 64);
        out.append(&mut to.reply);
        let mut moved = 0;
        let mut exhausted = None;
        let mut put = |plain: &[u8]| {
            moved += plain.len() as u32;
            match &mut to.session {
                None => out.extend_from_slice(plain),
                Some(session) => {
                    let encrypted = session.encrypt(plain, &mut out);
                    exhausted = exhausted.take().or(encrypted.err());
                }
            }
        };
        if !early.is_empty() {
            put(&early);
        }
        if layer.session.is_some() {
            layer.decrypt(source, records, from, &mut put);
        } else if records > 0 {
            source.peek(&mut put);
            source.consume(records);
        }
        if let Some(fault) = exhausted {
            to.fail(from.other(), fault);
        }
        if layer.has_finished(source) {
            to.finish(&mut out);
        }
        match out.is_empty() {
            true => ring.unstage(out),
            false => drop(target.send_staged(out)),
        }
        moved
    }

    /// What the session of `side` has to say itself.
    fn answer(&mut self, side: Side, socket: &Socket) {
        let reply = &mut self.sides[side as usize].reply;
        if reply.is_empty() {
            return;
        }
        match socket.is_sending() {
            true => socket.wake_when_sent(),
            false => drop(socket.send_staged(std::mem::take(reply))),
        }
    }

    /// Keeps a receive armed while at most half a window is held, and while a record is not whole.
    fn receive(&mut self, from: Side, source: &Socket, in_flight: u32, window: u32) {
        let layer = &self.sides[from as usize];
        if window == 0 || layer.fault.is_some() {
            return;
        }
        if layer.has_closed() {
            // Whatever comes after the end is nobody's.
            source.consume(source.held());
            return;
        }
        let held = source.held() + in_flight;
        let most = source.window(window);
        let lacks = layer.session.is_some() && in_flight == 0 && layer.to_take(source) == 0;
        if lacks {
            source.receive_rest(most.saturating_sub(held).max(RECORD_BYTES_MAX));
        } else if held <= most / 2 {
            source.receive(most - held);
        }
    }

    fn flow(&mut self, from: Side, source: &Socket, target: &Socket) -> Flow {
        let (layer, to) = (
            &self.sides[from as usize],
            &self.sides[from.other() as usize],
        );
        if to.fault.is_some() {
            return Flow::Broken(libc::EPROTO);
        }
        let out = target.is_sending() || !to.reply.is_empty();
        let left = layer.to_take(source) > 0 || self.has_early(from);
        if layer.fault.is_some() {
            return Flow::Failed {
                errno: libc::EPROTO,
                drained: !out && !self.has_early(from),
            };
        }
        if layer.has_finished(source) {
            let told = to.session.is_none() || to.finished;
            return match told && !out {
                true => Flow::Finished,
                false => Flow::Open,
            };
        }
        match source.flow(0) {
            Flow::Failed { errno, .. } => Flow::Failed {
                errno,
                drained: !left && !out,
            },
            _ if layer.is_truncated(source) && !left => {
                let reason = match from {
                    Side::Client => Reason::ClientTruncated,
                    Side::Backend => Reason::BackendTruncated,
                };
                self.sides[from as usize].fault = Some((reason, None));
                Flow::Failed {
                    errno: libc::EPROTO,
                    drained: !out,
                }
            }
            _ => Flow::Open,
        }
    }
}

impl Layer {
    /// Bytes of what was received that can be used now: whole records. Where buffers are scarce, the beginning
    /// of one is taken, too, and its rest with it: it is kept on the heap, where it takes as much room as it has.
    fn to_take(&self, source: &Socket) -> u32 {
        match &self.session {
            Some(session) => records_to_take(source, session),
            None => source.held(),
        }
    }

    /// Takes `bytes` of whole records; their plaintext goes to `put`.
    fn decrypt(&mut self, source: &Socket, bytes: u32, side: Side, put: &mut dyn FnMut(&[u8])) {
        let Some(session) = &mut self.session else {
            return;
        };
        if bytes == 0 || self.fault.is_some() {
            return;
        }
        let mut records = take_records(source, bytes);
        let received = session.receive(&mut records, &mut self.reply, put);
        source.ring().unstage(records);
        if let Err(fault) = received {
            self.fail(side, fault);
        }
    }

    fn fail(&mut self, side: Side, fault: Fault) {
        let reason = match side {
            Side::Client => Reason::ClientTls,
            Side::Backend => Reason::BackendTls,
        };
        self.fault.get_or_insert((reason, Some(fault)));
    }

    /// Says that nothing more comes, if that has not been said.
    fn finish(&mut self, out: &mut Vec<u8>) {
        if let Some(session) = &mut self.session
            && !self.finished
        {
            self.finished = true;
            // Where nothing more may be encrypted, FIN alone has to do.
            let _ = session.finish(out);
        }
    }

    /// It has said by TLS that nothing more comes.
    fn has_closed(&self) -> bool {
        let session = self.session.as_ref();
        session.is_some_and(|session| session.peer_has_finished())
    }

    /// It has ended without having said so by TLS. Where sending to it has failed it is the other direction that
    /// tells why.
    fn is_truncated(&self, source: &Socket) -> bool {
        let ended = source.has_ended() && source.send_error().is_none();
        ended && self.session.is_some() && !self.has_closed()
    }

    /// All that it had to say was taken, and it has said so.
    fn has_finished(&self, source: &Socket) -> bool {
        match &self.session {
            Some(session) => session.peer_has_finished() && session.early().is_empty(),
            None => source.flow(0) == Flow::Finished,
        }
    }
}
