//! Simulated clients and backends: scripts run by the world's events, speaking and checking slices
//! of a counted pattern. At the end of its script a peer closes its socket.
//!
//! A client says its stream's number in its first eight bytes. From it a backend knows what it
//! must hear, and the client knows what the backend answers: the pattern of the reply stream.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::kernel::{Event, Kernel};
use super::layer::Layered;
use super::pattern::{PREFIX, Voice, reply};
use super::script::{BackendScript, ClientScript, Ending, PeerRecord, Step};
use super::tcp::{Fin, Phase};
use crate::address::Address;
use crate::time::Instant;

/// A client or a backend's session.
pub(super) struct Peer {
    pub(super) is_client: bool,
    pub(super) record: PeerRecord,
    pub(super) endpoint: usize,
    /// The process has this connection: it is not in the listening socket's queue.
    pub(super) accepted: bool,
    /// Where a client connects from; `None` after it has started.
    start: Option<IpAddr>,
    steps: Vec<Step>,
    at: usize,
    /// Bytes said in this step.
    progress: u64,
    /// Bytes waited for in earlier steps.
    expected: u64,
    sleeping_until: Option<u64>,
    reads: Reads,
    says: Voice,
    hears: Voice,
    /// What is between the script and the wire.
    pub(super) layered: Option<Layered>,
}

#[derive(Clone, Copy)]
enum Reads {
    Always,
    Never,
    Slowly {
        bytes: u32,
        interval: u64,
        next: u64,
    },
}

impl Peer {
    fn new(address: Address, endpoint: usize, steps: Vec<Step>) -> Self {
        let voice = Voice {
            greeting: 0,
            opening: Arc::from([]),
            prefix: None,
            stream: None,
        };
        Self {
            is_client: false,
            record: PeerRecord {
                address,
                stream: None,
                local: None,
                remote: None,
                sent: 0,
                received: 0,
                intact: true,
                saw_fin: false,
                unsaid: false,
                fault: None,
                ending: Ending::Open,
                ended_at: None,
                began_at: None,
                first_heard_at: None,
            },
            endpoint,
            accepted: true,
            start: None,
            steps,
            at: 0,
            progress: 0,
            expected: 0,
            sleeping_until: None,
            reads: Reads::Always,
            says: voice.clone(),
            hears: voice,
            layered: None,
        }
    }

    /// Checks bytes against what must come; a backend learns its stream from the first.
    fn hear(&mut self, bytes: &[u8]) {
        let at = self.record.received;
        let opening = self.hears.opening.len() as u64;
        if !self.is_client && at < opening + PREFIX as u64 {
            // What belongs to the opening tells nothing of the stream.
            let behind = bytes.get(opening.saturating_sub(at) as usize..);
            self.learn(at.saturating_sub(opening) as usize, behind.unwrap_or(&[]));
        }
        self.record.intact &= self.hears.says(at, bytes);
        self.record.received += bytes.len() as u64;
    }

    /// Takes the stream's number from `at` on.
    fn learn(&mut self, at: usize, bytes: &[u8]) {
        let mut prefix = self.hears.prefix.unwrap_or_default();
        let new = bytes.len().min(PREFIX - at);
        prefix[at..at + new].copy_from_slice(&bytes[..new]);
        self.hears.prefix = Some(prefix);
        if at + new == PREFIX {
            let stream = u64::from_le_bytes(prefix);
            self.hears.stream = Some(stream);
            self.says.stream = Some(reply(stream));
            self.record.stream = Some(stream);
        }
    }
}

impl Kernel {
    /// A client that connects at `start`; its index among the clients is its stream's number.
    pub(super) fn add_client(&mut self, start: u64, address: Address, script: ClientScript) -> u64 {
        let latency = self.draw_latency();
        let peer = self.peers.len();
        let endpoint = self.new_endpoint(latency, Some(peer));
        let stream = self.peers.iter().filter(|peer| peer.is_client).count() as u64;
        let mut client = Peer::new(address.clone(), endpoint, script.steps);
        client.is_client = true;
        client.record.stream = Some(stream);
        client.says.stream = Some(stream);
        client.says.prefix = Some(stream.to_le_bytes());
        client.hears.stream = Some(reply(stream));
        client.hears.greeting = script.greeting;
        client.start = Some(script.from.unwrap_or(match address.as_ip() {
            Some(SocketAddr::V6(_)) => Ipv6Addr::LOCALHOST.into(),
            _ => Ipv4Addr::from_bits(FIRST_CLIENT + stream as u32).into(),
        }));
        self.peers.push(client);
        self.schedule(start.max(self.now), Event::WakePeer(peer));
        stream
    }

    /// The client `stream`, which has not started, says `opening` before its stream's number.
    pub(super) fn open_with(&mut self, stream: u64, opening: Arc<[u8]>) {
        let mut clients = self.peers.iter_mut().filter(|peer| peer.is_client);
        let client = clients.nth(stream as usize).expect("it was added");
        client.says.opening = opening;
    }

    /// A backend accepts the SYN of `from`.
    pub(super) fn start_session(&mut self, from: usize, address: &Address) {
        let peer = self.peers.len();
        let endpoint = self.answer_syn(from, Some(peer));
        let layer = self.new_layer(address);
        let Some(host) = self.hosts.get_mut(address) else {
            return;
        };
        host.sessions.push(peer);
        let mut session = Peer::new(address.clone(), endpoint, host.script.steps());
        session.hears.opening = Arc::clone(&host.opening);
        session.layered = layer;
        session.accepted = !matches!(host.script, BackendScript::NeverAccepts { .. });
        session.says.greeting = session
            .steps
            .iter()
            .map_while(|step| match step {
                Step::Greet(bytes) => Some(*bytes),
                _ => None,
            })
            .sum();
        self.peers.push(session);
        if self.endpoints[endpoint].phase == Phase::Established {
            self.begin_session(peer);
        }
    }

    /// A backend's connection is established.
    pub(super) fn begin_session(&mut self, peer: usize) {
        self.peer_connected(peer);
        self.peer_began(peer);
        // Not at once: connect_unix() gets here while its worker runs.
        self.schedule(self.now, Event::WakePeer(peer));
    }

    fn peer_connected(&mut self, peer: usize) {
        let end = &self.endpoints[self.peers[peer].endpoint];
        let record = &mut self.peers[peer].record;
        record.local = end.local;
        record.remote = end.remote.as_ref().and_then(Address::as_ip);
        if self.random.chance(self.faults.peer_reset) {
            let at = self.now + self.random.below(LATEST_RESET);
            self.schedule(at, Event::ResetPeer(peer));
        }
    }

    /// Runs a peer as far as it gets now.
    pub(super) fn run_peer(&mut self, peer: usize) {
        if self.peers[peer].record.ending != Ending::Open {
            return;
        }
        if let Some(ip) = self.peers[peer].start.take() {
            let (endpoint, to) = (
                self.peers[peer].endpoint,
                self.peers[peer].record.address.clone(),
            );
            self.start_connecting(endpoint, to, Some(ip));
            return self.peer_connected(peer);
        }
        if self.endpoints[self.peers[peer].endpoint].phase == Phase::Connecting {
            return;
        }
        self.read(peer);
        self.flush(peer);
        if self.peers[peer].record.ending != Ending::Open {
            return;
        }
        if self.notice_reset(peer) || self.notice_fault(peer) {
            return;
        }
        while self.peers[peer].record.ending == Ending::Open && self.step(peer) {
            let peer = &mut self.peers[peer];
            peer.at += 1;
            peer.progress = 0;
        }
    }

    fn notice_reset(&mut self, peer: usize) -> bool {
        let end = &self.endpoints[self.peers[peer].endpoint];
        if end.phase != Phase::Dead {
            return false;
        }
        // What came before the reset can still be read; a slow reader takes it at once.
        if matches!(self.peers[peer].reads, Reads::Slowly { .. }) {
            self.peers[peer].reads = Reads::Always;
            self.read(peer);
        }
        let end = &self.endpoints[self.peers[peer].endpoint];
        let ending = match (end.error, end.other) {
            (Some(errno), None) => Ending::Refused(errno),
            _ => Ending::Reset,
        };
        self.end_peer(peer, ending);
        true
    }

    /// Does the present step; true when it is done.
    fn step(&mut self, peer: usize) -> bool {
        let Some(step) = self.peers[peer].steps.get(self.peers[peer].at).cloned() else {
            if self.finish_layer(peer) {
                self.close_peer(peer);
            }
            return false;
        };
        let record = &self.peers[peer].record;
        let (received, saw_fin) = (record.received, record.saw_fin);
        match step {
            Step::Greet(bytes) => self.say(peer, bytes, u32::MAX, Duration::ZERO),
            Step::Send {
                bytes,
                chunk,
                pause,
            } => self.say(peer, bytes, chunk.max(1), pause),
            Step::Echo => self.say(peer, received, u32::MAX, Duration::ZERO) && saw_fin,
            Step::Expect(bytes) => self.expect(peer, bytes),
            Step::ReadToEnd => saw_fin,
            Step::Pause(time) => self.sleep(peer, time),
            Step::Stall(None) => {
                self.peers[peer].reads = Reads::Never;
                true
            }
            Step::Stall(Some(time)) => self.stall(peer, time),
            Step::ReadSlowly { bytes, interval } => {
                let interval = interval.as_nanos() as u64;
                let next = self.now;
                self.peers[peer].reads = Reads::Slowly {
                    bytes,
                    interval,
                    next,
                };
                true
            }
            Step::Finish => {
                let finished = self.finish_layer(peer);
                if finished {
                    self.finish_wire(peer);
                }
                finished
            }
            Step::SayEnd => self.finish_layer(peer),
            Step::Truncate => {
                self.finish_wire(peer);
                true
            }
            Step::Reset => {
                self.reset_peer(peer);
                false
            }
            Step::Close => {
                self.close_peer(peer);
                false
            }
        }
    }

    /// Says what is left of the present step's `bytes`; true when all were taken.
    fn say(&mut self, peer: usize, bytes: u64, chunk: u32, pause: Duration) -> bool {
        let endpoint = self.peers[peer].endpoint;
        while self.peers[peer].progress < bytes {
            if self.peers[peer].sleeping_until.is_some() && !self.sleep(peer, pause) {
                break;
            }
            let one = &self.peers[peer];
            let rest = u64::from(chunk) - one.progress % u64::from(chunk);
            let most = rest.min(bytes - one.progress).min(1 << 20) as usize;
            let most = most.min(match &one.layered {
                Some(layered) => layered.room(),
                None => self.space(endpoint),
            });
            let piece = self.peers[peer]
                .says
                .piece(self.peers[peer].record.sent, most);
            let len = piece.len();
            if len == 0 {
                break;
            }
            let piece = piece.to_vec();
            match &mut self.peers[peer].layered {
                Some(layered) => layered.say(&piece),
                None => self.put(endpoint, &piece),
            }
            let one = &mut self.peers[peer];
            one.record.sent += len as u64;
            one.progress += len as u64;
            let between = one.progress < bytes && one.progress.is_multiple_of(u64::from(chunk));
            if between && !pause.is_zero() {
                self.sleep(peer, pause);
            }
        }
        self.transmit(endpoint);
        let all = self.flush(peer);
        let one = &self.peers[peer];
        // Who heard the end before the stream's number has nothing to say.
        (all && one.progress >= bytes) || (one.record.saw_fin && one.says.stream.is_none())
    }

    fn expect(&mut self, peer: usize, bytes: u64) -> bool {
        let one = &mut self.peers[peer];
        let done = one.record.received >= one.expected + bytes || one.record.saw_fin;
        if done {
            one.expected += bytes;
        }
        done
    }

    /// True when `time` has gone by since the first call.
    fn sleep(&mut self, peer: usize, time: Duration) -> bool {
        let until = self.now.saturating_add(time.as_nanos() as u64);
        match self.peers[peer].sleeping_until {
            None => {
                self.peers[peer].sleeping_until = Some(until);
                self.schedule(until, Event::WakePeer(peer));
                false
            }
            Some(until) if self.now < until => false,
            Some(_) => {
                self.peers[peer].sleeping_until = None;
                true
            }
        }
    }

    fn stall(&mut self, peer: usize, time: Duration) -> bool {
        self.peers[peer].reads = Reads::Never;
        let over = self.sleep(peer, time);
        if over {
            self.peers[peer].reads = Reads::Always;
            self.read(peer);
        }
        over
    }

    /// Reads what the peer wants to read now.
    fn read(&mut self, peer: usize) {
        let endpoint = self.peers[peer].endpoint;
        let end = &self.endpoints[endpoint];
        let mut most = end.incoming.readable;
        match &mut self.peers[peer].reads {
            Reads::Always => {}
            Reads::Never => return,
            Reads::Slowly { next, .. } if *next > self.now && most > 0 => return,
            Reads::Slowly {
                bytes,
                interval,
                next,
            } => {
                if most > 0 {
                    most = most.min(*bytes as usize);
                    *next = self.now + *interval;
                    let at = *next;
                    self.schedule(at, Event::WakePeer(peer));
                }
            }
        }
        self.take_in(peer, most);
        let incoming = &self.endpoints[endpoint].incoming;
        let fin = incoming.readable == 0 && incoming.fin == Fin::Arrived;
        let one = &mut self.peers[peer];
        one.record.saw_fin |= match &mut one.layered {
            Some(layered) => layered.has_ended(fin),
            None => fin,
        };
    }

    fn take_in(&mut self, peer: usize, len: usize) {
        if len == 0 {
            return;
        }
        let one = &mut self.peers[peer];
        one.record
            .first_heard_at
            .get_or_insert(Instant::from_nanos(self.now));
        let was_intact = one.record.intact;
        let (first, second) = self.endpoints[one.endpoint].incoming.bytes.as_slices();
        let first = &first[..first.len().min(len)];
        for wire in [first, &second[..len - first.len()]] {
            match one.layered.as_mut().map(|layered| layered.hear(wire)) {
                Some(plain) => one.hear(&plain),
                None => one.hear(wire),
            }
        }
        let endpoint = one.endpoint;
        if was_intact && !one.record.intact {
            let who = if one.is_client { "client" } else { "backend" };
            let what = format!(
                "{who} of stream {:?} heard other bytes than were said, before byte {}",
                one.record.stream, one.record.received
            );
            self.violate(what);
        }
        self.note(&[self.now, peer as u64, len as u64]);
        self.consume(endpoint, len);
    }

    /// The peer's own RST.
    pub(super) fn reset_peer(&mut self, peer: usize) {
        if self.peers[peer].record.ending == Ending::Open {
            self.end_peer(peer, Ending::Aborted);
            self.abort(self.peers[peer].endpoint, false);
        }
    }

    pub(super) fn close_peer(&mut self, peer: usize) {
        let saw_fin = self.peers[peer].record.saw_fin;
        let ending = if saw_fin { Ending::Fin } else { Ending::Closed };
        self.end_peer(peer, ending);
        self.close_endpoint(self.peers[peer].endpoint);
    }

    pub(super) fn end_peer(&mut self, peer: usize, ending: Ending) {
        let Peer {
            record, layered, ..
        } = &mut self.peers[peer];
        record.unsaid = layered.as_mut().is_some_and(Layered::has_more);
        record.ending = ending;
        record.ended_at = Some(Instant::from_nanos(self.now));
        self.peer_ended(peer);
        self.note(&[self.now, peer as u64, u64::MAX]);
    }
}

/// 10.0.0.1.
const FIRST_CLIENT: u32 = 0x0a00_0001;
const LATEST_RESET: u64 = 200_000_000;
