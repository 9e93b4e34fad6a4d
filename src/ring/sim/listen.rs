//! Listening sockets: their queues, the choice among the members of an address, accepting, and
//! what a SYN meets.

use std::collections::VecDeque;
use std::net::IpAddr;

use super::kernel::{Event, Kernel, Object, Packet, Pending, Waiter};
use super::ops::Outcome;
use super::random::mix;
use super::script::BackendScript;
use super::tcp::Phase;
use crate::address::Address;
use crate::ring::{Completion, Fd, Op};

/// One listening socket.
pub(super) struct Listener {
    pub(super) address: Address,
    pub(super) queue: VecDeque<usize>,
    /// First come, first served; a multishot accept never leaves its place.
    pub(super) waiters: VecDeque<Waiter>,
}

impl Kernel {
    /// Adds a member to the group of `address`.
    pub(super) fn listen(&mut self, address: &Address, shared: bool) -> Fd {
        self.listeners.push(Listener {
            address: address.clone(),
            queue: VecDeque::new(),
            waiters: VecDeque::new(),
        });
        let member = self.listeners.len() - 1;
        self.groups.entry(address.clone()).or_default().push(member);
        self.new_fd(Object::Listener(member), None, shared)
    }

    /// Closing a listener resets what waits in its queue (tcp_migrate_req is off).
    pub(super) fn close_listener(&mut self, member: usize) {
        let listener = &mut self.listeners[member];
        let queue = std::mem::take(&mut listener.queue);
        let address = listener.address.clone();
        if let Some(members) = self.groups.get_mut(&address) {
            members.retain(|other| *other != member);
            if members.is_empty() {
                self.groups.remove(&address);
            }
        }
        for endpoint in queue {
            self.abort(endpoint, false);
        }
    }

    /// `from` starts to connect to `to`; its SYN arrives after the latency.
    pub(super) fn start_connecting(&mut self, from: usize, to: Address, ip: Option<IpAddr>) {
        let local = self.local_address(&to, ip);
        let distance = self.distances.get(&to).copied();
        let end = &mut self.endpoints[from];
        end.latency = distance.unwrap_or(end.latency);
        end.far = distance.is_some();
        end.local = local;
        end.remote = Some(to);
        end.phase = Phase::Connecting;
        let mut delay = end.latency;
        if self.random.chance(self.faults.slow_connect) {
            delay += self.random.below(LONGEST_CONNECT_DELAY);
        }
        let again = false;
        self.schedule(self.now + delay, Event::Syn { from, again });
    }

    /// A SYN has come, for the first time or again.
    pub(super) fn syn(&mut self, from: usize, again: bool) {
        let end = &self.endpoints[from];
        let waits = end.phase == Phase::Connecting;
        let Some(to) = end.remote.clone() else {
            return;
        };
        // A SYN is under way even when its sender has given up meanwhile.
        if !again {
            self.count_attempt(&to);
        }
        if !waits {
            return;
        }
        match self.admit(from, &to) {
            Ok(()) => {}
            Err(libc::EAGAIN) => {
                let again = true;
                self.schedule(self.now + SYN_RETRY, Event::Syn { from, again });
            }
            Err(libc::ETIMEDOUT) => {}
            Err(errno) => self.send_packet(from, Packet::Refused(errno)),
        }
    }

    /// Lets a connection in, at once. EAGAIN: the queue is full; ETIMEDOUT: nobody will answer.
    pub(super) fn admit(&mut self, from: usize, to: &Address) -> Result<(), i32> {
        if let Some(members) = self.groups.get(to) {
            let source = self.endpoints[from].local;
            let hash = source.map_or(0, |at| u64::from(at.port()) << 32 | ip_bits(at.ip()));
            let member = members[(mix(hash) % members.len() as u64) as usize];
            return self.take_in_queue(from, member);
        }
        let host = self.hosts.get(to).ok_or(libc::ECONNREFUSED)?;
        match host.script {
            BackendScript::Refuse => Err(libc::ECONNREFUSED),
            BackendScript::Unreachable => Err(libc::EHOSTUNREACH),
            BackendScript::BlackHole => Err(libc::ETIMEDOUT),
            BackendScript::NeverAccepts { backlog }
                if self.open_sessions(host) >= backlog as usize =>
            {
                Err(libc::EAGAIN)
            }
            _ => {
                self.start_session(from, to);
                Ok(())
            }
        }
    }

    fn take_in_queue(&mut self, from: usize, member: usize) -> Result<(), i32> {
        if self.listeners[member].queue.len() >= self.faults.backlog as usize {
            return Err(libc::EAGAIN);
        }
        let endpoint = self.answer_syn(from, None);
        self.endpoints[endpoint].queue = Some(member);
        if self.endpoints[endpoint].phase == Phase::Established {
            self.enqueue(endpoint, member);
        }
        Ok(())
    }

    /// An established connection waits to be accepted, if somebody still listens.
    pub(super) fn enqueue(&mut self, endpoint: usize, member: usize) {
        let address = &self.listeners[member].address;
        let members = self.groups.get(address);
        if !members.is_some_and(|members| members.contains(&member)) {
            return self.abort(endpoint, false);
        }
        self.listeners[member].queue.push_back(endpoint);
        self.wake_acceptor(member);
    }

    /// One waiter for one connection. A multishot at the head takes everything, as measured.
    fn wake_acceptor(&mut self, member: usize) {
        let waiters = &self.listeners[member].waiters;
        let free = waiters.iter().copied().find(|waiter| {
            let ops = &self.workers[waiter.worker].ops;
            let op = ops.get(&waiter.token.as_u64());
            op.is_some_and(|op| !op.woken || matches!(op.op, Op::AcceptMulti { .. }))
        });
        self.wake(None, free);
    }

    pub(super) fn try_accept(
        &mut self,
        waiter: Waiter,
        pending: &Pending,
        member: usize,
    ) -> Outcome {
        let multishot = matches!(pending.op, Op::AcceptMulti { .. });
        for _ in 0..ACCEPTS_PER_TRY {
            let fd = match self.accept_one(waiter.worker, member) {
                Ok(fd) => fd,
                Err(libc::EAGAIN) => return Outcome::Wait,
                Err(errno) => {
                    self.end(waiter, -errno);
                    return Outcome::Done;
                }
            };
            let more = multishot && !self.random.chance(self.faults.accept_ends);
            let completion = Completion {
                token: waiter.token,
                result: fd.0,
                more,
                buffer: None,
                nonempty: !self.listeners[member].queue.is_empty(),
            };
            self.post(waiter.worker, completion);
            if !more {
                return Outcome::Done;
            }
        }
        Outcome::Again
    }

    /// accept4(2), without waiting; or the errno.
    pub(super) fn accept_one(&mut self, worker: usize, member: usize) -> Result<Fd, i32> {
        // The descriptor is taken before the queue is looked at, so EMFILE comes first.
        if self.exhausted() {
            return Err(libc::EMFILE);
        }
        if self.listeners[member].queue.is_empty() {
            return Err(libc::EAGAIN);
        }
        if self.random.chance(self.faults.accept_fails) {
            let errno = self.random.pick(&ACCEPT_ERRORS);
            if errno == libc::ECONNABORTED
                && let Some(gone) = self.listeners[member].queue.pop_front()
            {
                self.abort(gone, false);
            }
            return Err(errno);
        }
        let endpoint = self.listeners[member].queue.pop_front();
        let endpoint = endpoint.ok_or(libc::EAGAIN)?;
        Ok(self.new_fd(Object::Stream(endpoint), Some(worker), false))
    }
}

fn ip_bits(ip: IpAddr) -> u64 {
    match ip {
        IpAddr::V4(ip) => u64::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits() as u64,
    }
}

const ACCEPT_ERRORS: [i32; 4] = [
    libc::ENFILE,
    libc::ENOBUFS,
    libc::ENOMEM,
    libc::ECONNABORTED,
];
/// As MULTISHOT_MAX_RETRY: then others get their turn.
const ACCEPTS_PER_TRY: u32 = 32;
/// TCP's first retransmission of a SYN that was dropped.
const SYN_RETRY: u64 = 1_000_000_000;
const LONGEST_CONNECT_DELAY: u64 = 300_000_000;
