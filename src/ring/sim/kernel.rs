//! The state of the simulated machine: clock, events to come, descriptors, workers, and the record
//! of what went wrong. How connections behave is in `tcp.rs`, what ops do in `ops.rs`.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::buffers::Buffers;
use super::datagrams::Net;
use super::distance::Ack;
use super::faults::Faults;
use super::hosts::Host;
use super::layer::MakeLayer;
use super::listen::Listener;
use super::peers::Peer;
use super::random::{Random, mix};
use super::tcp::Endpoint;
use crate::address::Address;
use crate::ring::{Capabilities, Completion, Fd, Op, Token};

/// All there is in a world.
pub(super) struct Kernel {
    pub(super) now: u64,
    pub(super) random: Random,
    pub(super) faults: Faults,
    pub(super) capabilities: Capabilities,
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) listeners: Vec<Listener>,
    /// The members of each address, as SO_REUSEPORT groups them.
    pub(super) groups: BTreeMap<Address, Vec<usize>>,
    pub(super) hosts: BTreeMap<Address, Host>,
    /// Of connections to backends.
    pub(super) layers: BTreeMap<Address, MakeLayer>,
    /// Connects that reached each address.
    pub(super) attempts: BTreeMap<Address, usize>,
    /// One way, in nanoseconds.
    pub(super) distances: BTreeMap<Address, u64>,
    pub(super) net: Net,
    pub(super) peers: Vec<Peer>,
    pub(super) runnable: VecDeque<usize>,
    pub(super) signals: Vec<Signal>,
    pub(super) pipes: Vec<VecDeque<u8>>,
    pub(super) workers: Vec<Worker>,
    pub(super) descriptors: BTreeMap<Fd, Descriptor>,
    next_fd: i32,
    next_port: u16,
    events: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    exhausted_until: u64,
    pub(super) violations: Vec<String>,
    pub(super) trace: u64,
    pub(super) progressed: bool,
}

/// What will happen at its time.
#[derive(Clone, Copy)]
pub(super) enum Event {
    Arrive {
        to: usize,
        packet: Packet,
    },
    Syn {
        from: usize,
        again: bool,
    },
    WakePeer(usize),
    ResetPeer(usize),
    /// What is due under this number.
    Datagrams(u64),
}

/// What an endpoint gets from the wire.
#[derive(Clone, Copy)]
pub(super) enum Packet {
    Established,
    /// The last one of a handshake, where acknowledgements take their time.
    Opened,
    Refused(i32),
    Data(usize),
    Ack(Ack),
    Fin,
    Reset,
}

/// An op that waits: its worker and its token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiter {
    pub(super) worker: usize,
    pub(super) token: Token,
}

/// An eventfd.
#[derive(Default)]
pub(super) struct Signal {
    pub(super) count: u64,
    pub(super) reader: Option<Waiter>,
}

/// What a descriptor stands for.
#[derive(Clone, Copy)]
pub(super) enum Object {
    Stream(usize),
    Listener(usize),
    Signal(usize),
    /// Either end of a pipe.
    Pipe(usize),
    Datagrams(usize),
}

pub(super) struct Descriptor {
    pub(super) object: Object,
    /// The only worker that may use it; set by the first use.
    pub(super) owner: Option<usize>,
    /// Any worker may use it (one listener for all).
    shared: bool,
    /// Ops whose last completion was not returned yet.
    pub(super) pending: u32,
}

/// One driver's side of the kernel.
#[derive(Default)]
pub(super) struct Worker {
    pub(super) queued: Vec<(Op, Token)>,
    /// Ops that the kernel has and that are not finished.
    pub(super) ops: BTreeMap<u64, Pending>,
    /// Ops whose last completion was not returned yet.
    pub(super) in_flight: BTreeMap<u64, InFlight>,
    pub(super) woken: Vec<u64>,
    /// By due time, then in order.
    pub(super) ready: BTreeMap<(u64, u64), Completion>,
    pub(super) buffers: Buffers,
    pub(super) datagram_buffers: Buffers,
    pub(super) deadline: Option<u64>,
}

/// An op in the kernel.
#[derive(Clone, Copy)]
pub(super) struct Pending {
    pub(super) op: Op,
    pub(super) object: Object,
    /// Bytes sent, or received by this multishot.
    pub(super) done: usize,
    /// Not tried yet.
    pub(super) fresh: bool,
    pub(super) woken: bool,
}

pub(super) struct InFlight {
    pub(super) fd: Fd,
    /// Completions of one op keep their order, however late they are.
    last_due: u64,
}

impl Kernel {
    pub(super) fn new(seed: u64, faults: Faults) -> Self {
        Self {
            now: 0,
            random: Random::new(seed),
            faults,
            capabilities: Capabilities {
                multishot_recv: true,
                recv_budget: true,
                multishot_accept: true,
            },
            endpoints: Vec::new(),
            listeners: Vec::new(),
            groups: BTreeMap::new(),
            hosts: BTreeMap::new(),
            layers: BTreeMap::new(),
            attempts: BTreeMap::new(),
            distances: BTreeMap::new(),
            net: Net::new(seed),
            peers: Vec::new(),
            runnable: VecDeque::new(),
            signals: Vec::new(),
            pipes: Vec::new(),
            workers: Vec::new(),
            descriptors: BTreeMap::new(),
            next_fd: 100,
            next_port: 32_768,
            events: BTreeMap::new(),
            sequence: 0,
            exhausted_until: 0,
            violations: Vec::new(),
            trace: seed,
            progressed: false,
        }
    }

    pub(super) fn schedule(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((at, self.sequence), event);
    }

    /// Goes to the next thing that happens; false when there is none. Stays where it is while a
    /// worker has something to fetch.
    pub(super) fn advance(&mut self) -> bool {
        let now = self.now;
        if self.workers.iter().any(|worker| worker.has_work(now)) {
            return true;
        }
        let event = self.events.first_key_value().map(|((at, _), _)| *at);
        let workers = self.workers.iter().filter_map(Worker::next_due).min();
        let Some(next) = event.into_iter().chain(workers).min() else {
            return false;
        };
        let mut time = next.saturating_sub(now);
        if self.random.chance(self.faults.clock_jump) {
            time += self.random.below(LONGEST_JUMP);
        }
        self.pass(time);
        true
    }

    /// Lets so much time go by, and happen what is due then.
    pub(super) fn pass(&mut self, time: u64) {
        self.now += time;
        for worker in &mut self.workers {
            worker.deadline = worker.deadline.filter(|at| *at > self.now);
        }
        self.run_events();
    }

    fn run_events(&mut self) {
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > self.now {
                return;
            }
            match entry.remove() {
                Event::Arrive { to, packet } => self.arrive(to, packet),
                Event::Syn { from, again } => self.syn(from, again),
                Event::WakePeer(peer) => self.runnable.push_back(peer),
                Event::ResetPeer(peer) => self.reset_peer(peer),
                Event::Datagrams(key) => self.datagrams_due(key),
            }
            while let Some(peer) = self.runnable.pop_front() {
                self.run_peer(peer);
            }
        }
    }

    /// Something changed for whoever waits there.
    pub(super) fn wake(&mut self, peer: Option<usize>, waiter: Option<Waiter>) {
        self.runnable.extend(peer);
        let Some(Waiter { worker, token }) = waiter else {
            return;
        };
        let worker = &mut self.workers[worker];
        if let Some(pending) = worker.ops.get_mut(&token.as_u64())
            && !std::mem::replace(&mut pending.woken, true)
        {
            worker.woken.push(token.as_u64());
        }
    }

    /// Posts a completion of `token`, late if chance will have it.
    pub(super) fn post(&mut self, worker: usize, completion: Completion) {
        let late = match self.random.chance(self.faults.late) {
            true => self.random.below(self.faults.late_by.as_nanos() as u64),
            false => 0,
        };
        let mut due = self.now + late;
        let worker = &mut self.workers[worker];
        if let Some(op) = worker.in_flight.get_mut(&completion.token.as_u64()) {
            due = due.max(op.last_due);
            op.last_due = due;
        }
        self.sequence += 1;
        worker.ready.insert((due, self.sequence), completion);
    }

    /// Posts the last completion of an op without a buffer.
    pub(super) fn end(&mut self, waiter: Waiter, result: i32) {
        let completion = Completion {
            token: waiter.token,
            result,
            more: false,
            buffer: None,
            nonempty: false,
        };
        self.post(waiter.worker, completion);
    }

    /// A number that was never used before, so that no use after close can be missed.
    pub(super) fn new_fd(&mut self, object: Object, owner: Option<usize>, shared: bool) -> Fd {
        let fd = Fd(self.next_fd);
        self.next_fd += 1;
        let descriptor = Descriptor {
            object,
            owner,
            shared,
            pending: 0,
        };
        self.descriptors.insert(fd, descriptor);
        fd
    }

    /// What `fd` stands for; records its use after close or by a second worker.
    pub(super) fn object(&mut self, worker: usize, fd: Fd, what: &str) -> Option<Object> {
        let Some(descriptor) = self.descriptors.get_mut(&fd) else {
            self.violate(format!("worker {worker}: {what} on closed {fd:?}"));
            return None;
        };
        let object = descriptor.object;
        let owner = *descriptor.owner.get_or_insert(worker);
        if owner != worker && !descriptor.shared {
            self.violate(format!(
                "worker {worker}: {what} on {fd:?} of worker {owner}"
            ));
        }
        Some(object)
    }

    /// The stream endpoint of `fd`; EBADF and ENOTSOCK otherwise.
    pub(super) fn stream(&mut self, worker: usize, fd: Fd, what: &str) -> io::Result<usize> {
        match self.object(worker, fd, what) {
            Some(Object::Stream(id)) => Ok(id),
            Some(_) => Err(os_error(libc::ENOTSOCK)),
            None => Err(os_error(libc::EBADF)),
        }
    }

    /// Whether there is no descriptor to be had now.
    pub(super) fn exhausted(&mut self) -> bool {
        if self.random.chance(self.faults.exhausted) {
            self.exhausted_until = self.now + self.random.below(LONGEST_EXHAUSTION);
        }
        self.now < self.exhausted_until
    }

    /// A free address of the same family as `to`.
    pub(super) fn local_address(&mut self, to: &Address, ip: Option<IpAddr>) -> Option<SocketAddr> {
        let to = to.as_ip()?;
        let ip = ip.unwrap_or(match to {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
        self.next_port = self.next_port.checked_add(1).unwrap_or(32_768);
        Some(SocketAddr::new(ip, self.next_port))
    }

    /// The latency of a new connection.
    pub(super) fn draw_latency(&mut self) -> u64 {
        let (least, most) = self.faults.latency;
        let spread = most.saturating_sub(least).as_nanos() as u64;
        // Nothing arrives in the instant in which it was sent.
        (least.as_nanos() as u64).max(1) + self.random.below(spread + 1)
    }

    /// Lets neighbours that may change places do so now and then.
    pub(super) fn disorder<T>(&mut self, items: &mut [T], may: impl Fn(&T, &T) -> bool) {
        for at in 1..items.len() {
            if may(&items[at - 1], &items[at]) && self.random.chance(self.faults.reorder) {
                items.swap(at - 1, at);
            }
        }
    }

    pub(super) fn violate(&mut self, what: String) {
        self.violations.push(format!("{} ns: {what}", self.now));
    }

    /// Adds to the trace; same seed, same trace.
    pub(super) fn note(&mut self, words: &[u64]) {
        for word in words {
            self.trace = mix(self.trace.rotate_left(5) ^ *word);
        }
    }
}

impl Worker {
    pub(super) fn push(&mut self, op: Op, token: Token, fd: Fd) -> bool {
        self.queued.push((op, token));
        let op = InFlight { fd, last_due: 0 };
        self.in_flight.insert(token.as_u64(), op).is_none()
    }

    fn has_work(&self, now: u64) -> bool {
        let due = self.ready.first_key_value();
        !self.queued.is_empty() || !self.woken.is_empty() || due.is_some_and(|d| d.0.0 <= now)
    }

    fn next_due(&self) -> Option<u64> {
        let late = self.ready.first_key_value().map(|((due, _), _)| *due);
        self.deadline.into_iter().chain(late).min()
    }
}

pub(super) fn os_error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

const LONGEST_JUMP: u64 = 2_000_000_000;
const LONGEST_EXHAUSTION: u64 = 50_000_000;
