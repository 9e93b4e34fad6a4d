//! What a peer may have between its script and the wire: a protocol such as TLS. The script's bytes are
//! plain then, and so are those that a record counts and checks. It may also say what no script can.
//!
//! ```text
//!   script ──say──▶ Layer ──next──▶ wire ──hear──▶ Layer ──▶ checked
//! ```

use std::rc::Rc;
use std::time::Duration;

use super::kernel::{Event, Kernel};
use super::script::Ending;
use super::tcp::Phase;
use crate::address::Address;
use crate::ring::Shutdown;

/// The protocol of one connection. It is handed bytes and hands bytes out.
pub trait Layer {
    /// Takes what has come over the wire, and puts what it means behind `plain`.
    fn hear(&mut self, wire: &[u8], plain: &mut Vec<u8>);

    /// The other side's FIN has come, after all of its bytes.
    fn hear_fin(&mut self) {}

    /// The other side has said in the protocol's own way that nothing more comes. FIN alone is a truncation
    /// where this doesn't hold.
    fn has_ended(&self) -> bool;

    /// Bytes that the script may say now; 0 before the protocol is ready for them.
    fn room(&self) -> usize;

    /// Takes what the script says: no more than there is room for.
    fn say(&mut self, plain: &[u8]);

    /// The script says nothing more. Called once, when there is room.
    fn finish(&mut self);

    /// What the wire gets next, `room` bytes at most.
    fn next(&mut self, room: usize) -> Wire;

    /// Why it can't go on, if that is so.
    fn fault(&self) -> Option<String>;
}

/// What a layer does to the wire.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Wire {
    /// Nothing, before something was said or heard.
    Rest,
    /// It says these bytes; not empty.
    Bytes(Vec<u8>),
    /// Nothing for so long.
    Pause(Duration),
    /// FIN, and nothing after it.
    Finish,
    /// RST.
    Reset,
}

/// How connections to a backend get their layers.
pub(super) type MakeLayer = Rc<dyn Fn() -> Box<dyn Layer>>;

/// A peer's layer.
pub(super) struct Layered {
    layer: Box<dyn Layer>,
    /// The script has said all.
    finished: bool,
    /// FIN was sent: the wire gets nothing more.
    mute: bool,
    /// The other side's FIN was read.
    heard_fin: bool,
    pauses_until: Option<u64>,
}

impl Layered {
    pub(super) fn new(layer: Box<dyn Layer>) -> Self {
        Self {
            layer,
            finished: false,
            mute: false,
            heard_fin: false,
            pauses_until: None,
        }
    }

    /// Takes what has come; what it means, and whether it is the end.
    pub(super) fn hear(&mut self, wire: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        self.layer.hear(wire, &mut plain);
        plain
    }

    /// All has been read. Whether that is the end.
    pub(super) fn has_ended(&mut self, fin: bool) -> bool {
        if fin {
            self.heard_fin = true;
            self.layer.hear_fin();
        }
        self.layer.has_ended()
    }

    /// Something would still have gone over the wire. The layer is of no use afterwards.
    pub(super) fn has_more(&mut self) -> bool {
        !self.mute && matches!(self.layer.next(usize::MAX), Wire::Bytes(_) | Wire::Pause(_))
    }

    pub(super) fn room(&self) -> usize {
        self.layer.room()
    }

    pub(super) fn say(&mut self, plain: &[u8]) {
        self.layer.say(plain);
    }
}

impl Kernel {
    /// The client `stream`, which has not started, speaks by `layer`.
    pub(super) fn speak_by(&mut self, stream: u64, layer: Box<dyn Layer>) {
        let mut clients = self.peers.iter_mut().filter(|peer| peer.is_client);
        let client = clients.nth(stream as usize).expect("it was added");
        client.layered = Some(Layered::new(layer));
    }

    /// The layer of a new connection to `address`.
    pub(super) fn new_layer(&self, address: &Address) -> Option<Layered> {
        let make = self.layers.get(address)?;
        Some(Layered::new(make()))
    }

    /// Hands the wire what the peer's layer has for it. True when nothing is left.
    pub(super) fn flush(&mut self, peer: usize) -> bool {
        let endpoint = self.peers[peer].endpoint;
        let all = loop {
            let (now, room) = (self.now, self.space(endpoint));
            let Some(layered) = &mut self.peers[peer].layered else {
                break true;
            };
            if layered.mute || self.endpoints[endpoint].phase != Phase::Established {
                break true;
            }
            if room == 0 || layered.pauses_until.is_some_and(|until| now < until) {
                break false;
            }
            match layered.layer.next(room) {
                Wire::Rest => break true,
                Wire::Bytes(bytes) => self.put(endpoint, &bytes),
                Wire::Pause(time) => {
                    let until = now.saturating_add(time.as_nanos() as u64);
                    layered.pauses_until = Some(until);
                    self.schedule(until, Event::WakePeer(peer));
                }
                Wire::Finish => {
                    layered.mute = true;
                    self.shutdown(endpoint, Shutdown::Write);
                }
                Wire::Reset => {
                    self.reset_peer(peer);
                    return false;
                }
            }
        };
        self.transmit(endpoint);
        all
    }

    /// Ends the peer's direction in the way of its layer, if it has one. True when that is done.
    pub(super) fn finish_layer(&mut self, peer: usize) -> bool {
        if !self.flush(peer) {
            return false;
        }
        if let Some(layered) = &mut self.peers[peer].layered
            && !layered.finished
            && !layered.mute
        {
            if layered.layer.room() == 0 {
                return false;
            }
            layered.finished = true;
            layered.layer.finish();
        }
        self.flush(peer)
    }

    /// FIN, whatever the layer has to say.
    pub(super) fn finish_wire(&mut self, peer: usize) {
        if let Some(layered) = &mut self.peers[peer].layered {
            layered.mute = true;
        }
        self.shutdown(self.peers[peer].endpoint, Shutdown::Write);
    }

    /// Ends a peer whose layer can't go on, or that hears nothing more without having been told so.
    pub(super) fn notice_fault(&mut self, peer: usize) -> bool {
        let one = &self.peers[peer];
        let Some(layered) = &one.layered else {
            return false;
        };
        let ending = match layered.layer.fault() {
            Some(fault) => {
                self.peers[peer].record.fault = Some(fault);
                Ending::Faulty
            }
            None if layered.heard_fin && !one.record.saw_fin => Ending::Truncated,
            None => return false,
        };
        self.end_peer(peer, ending);
        self.close_endpoint(self.peers[peer].endpoint);
        true
    }
}
