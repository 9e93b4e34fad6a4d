//! The smallest proxy there can be, one buffer per direction, to try worlds as a whole.

use std::collections::{BTreeMap, VecDeque};

use super::*;

/// Relays every connection of a listener to the backend.
struct Relay {
    driver: SimDriver,
    buffers: Vec<Box<[u8]>>,
    backend: Box<SockAddr>,
    listener: Fd,
    sockets: BTreeMap<u32, Socket>,
    next: u32,
    starved: VecDeque<u32>,
    /// The listener (slot 0) or starved receives are to be armed again then.
    retry_at: Option<Instant>,
    multishot: bool,
}

struct Socket {
    fd: Fd,
    other: u32,
    /// What was received here and is not yet sent there.
    sending: VecDeque<(u16, u32)>,
    /// Of the first of them.
    sent: u32,
    receiving: bool,
    ended: bool,
    finished: bool,
    writing: bool,
}

impl Relay {
    fn new(world: &World, listener: Fd, multishot: bool) -> Self {
        let mut relay = Self {
            driver: world.driver(),
            buffers: vec![vec![0; BUFFER as usize].into(); 32],
            backend: Box::new(SockAddr::from(back().as_ip().unwrap())),
            listener,
            sockets: BTreeMap::new(),
            next: 1,
            starved: VecDeque::new(),
            retry_at: None,
            multishot,
        };
        (0..32).for_each(|buffer| relay.give_back(buffer));
        relay.accept();
        relay
    }

    fn push(&mut self, op: Op, lane: Lane, slot: u32) {
        // SAFETY: buffers and the address are the relay's and stay where they are; the driver,
        // the first field, is dropped before them.
        unsafe { self.driver.push(op, Token::new(lane, 0, slot)) };
    }

    fn give_back(&mut self, buffer: u16) {
        let memory = &mut self.buffers[usize::from(buffer)];
        let start = NonNull::new(memory.as_mut_ptr()).unwrap();
        // SAFETY: the relay touches this memory only between its completion and this call.
        unsafe { self.driver.provide(buffer, start, BUFFER) };
    }

    fn accept(&mut self) {
        let fd = self.listener;
        self.push(Op::AcceptMulti { fd }, Lane::Read, 0);
    }

    fn receive(&mut self, slot: u32) {
        let multishot = self.multishot;
        let Some(socket) = self.sockets.get_mut(&slot) else {
            return;
        };
        if socket.receiving || socket.ended {
            return;
        }
        socket.receiving = true;
        let op = Op::Recv {
            fd: socket.fd,
            budget: multishot.then_some(2 * BUFFER),
            multishot,
            poll_first: false,
        };
        self.push(op, Lane::Read, slot);
    }

    fn turn(&mut self) {
        let now = self.driver.now();
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            for slot in std::mem::take(&mut self.starved) {
                match slot {
                    0 => self.accept(),
                    slot => self.receive(slot),
                }
            }
        }
        let mut out = Vec::new();
        let wait = self.retry_at.map(|at| at.since(now));
        self.driver.turn(wait, 64, &mut out).unwrap();
        for completion in out {
            let slot = completion.token.slot();
            match completion.token.lane() {
                Some(Lane::Read) if slot == 0 => self.accepted(completion),
                Some(Lane::Read) => self.received(slot, completion),
                _ => self.written(slot, completion.result),
            }
        }
    }

    fn retry_soon(&mut self, slot: u32) {
        self.starved.push_back(slot);
        self.retry_at = Some(self.driver.now() + Duration::from_millis(1));
    }

    fn accepted(&mut self, completion: Completion) {
        let Ok(fd) = completion.to_result() else {
            return self.retry_soon(0);
        };
        if !completion.more {
            self.accept();
        }
        let options = SocketOptions::default();
        let Ok(out) = self.driver.open(&back(), None, &options) else {
            return self.driver.close(Fd(fd as i32));
        };
        let (near, far) = (self.next, self.next + 1);
        self.next += 2;
        for (slot, fd, other) in [(near, Fd(fd as i32), far), (far, out, near)] {
            let socket = Socket {
                fd,
                other,
                sending: VecDeque::new(),
                sent: 0,
                receiving: false,
                ended: false,
                finished: false,
                writing: slot == far,
            };
            self.sockets.insert(slot, socket);
        }
        let address = &raw const *self.backend;
        self.push(Op::Connect { fd: out, address }, Lane::Write, far);
    }

    fn received(&mut self, slot: u32, completion: Completion) {
        let socket = self.sockets.get_mut(&slot).unwrap();
        socket.receiving = completion.more;
        match (completion.result, completion.buffer) {
            (len, Some(buffer)) => socket.sending.push_back((buffer, len as u32)),
            (e, None) if e == -libc::ENOBUFS => self.retry_soon(slot),
            (e, None) if e == -libc::ECANCELED => self.receive(slot),
            _ => socket.ended = true,
        }
        self.go_on(slot);
    }

    fn written(&mut self, slot: u32, result: i32) {
        let socket = self.sockets.get_mut(&slot).unwrap();
        socket.writing = false;
        let other = socket.other;
        let source = self.sockets.get_mut(&other).unwrap();
        if let Some((buffer, len)) = source.sending.front().copied() {
            source.sent += result.max(0) as u32;
            // A failed send drops what it was to carry.
            if source.sent == len || result < 0 {
                source.sending.pop_front();
                source.sent = 0;
                self.give_back(buffer);
            }
        } else {
            self.receive(slot);
        }
        self.go_on(other);
    }

    /// Sends on what `slot` received, then its FIN, then receives more.
    fn go_on(&mut self, slot: u32) {
        let Some(socket) = self.sockets.get(&slot) else {
            return;
        };
        let there = &self.sockets[&socket.other];
        let (other, fd, sent) = (socket.other, there.fd, socket.sent);
        if there.writing {
            return;
        }
        if let Some((buffer, len)) = socket.sending.front().copied() {
            let op = Op::Send {
                fd,
                data: self.buffers[usize::from(buffer)][sent as usize..].as_ptr(),
                len: len - sent,
                wait: true,
            };
            self.sockets.get_mut(&other).unwrap().writing = true;
            self.push(op, Lane::Write, other);
        } else if !socket.ended {
            self.receive(slot);
        } else if !socket.finished {
            self.sockets.get_mut(&slot).unwrap().finished = true;
            self.driver.shutdown(fd, Shutdown::Write);
            self.close_if_over(slot, other);
        }
    }

    fn close_if_over(&mut self, one: u32, other: u32) {
        let over = |socket: &Socket| socket.finished && !socket.receiving && !socket.writing;
        if [one, other].iter().all(|slot| over(&self.sockets[slot])) {
            for slot in [one, other] {
                let socket = self.sockets.remove(&slot).unwrap();
                self.driver.close(socket.fd);
            }
        }
    }
}

fn run(seed: u64, faults: Faults, clients: u32, bytes: u64) -> World {
    run_against(BackendScript::Echo, seed, faults, clients, bytes)
}

fn run_against(
    backend: BackendScript,
    seed: u64,
    faults: Faults,
    clients: u32,
    bytes: u64,
) -> World {
    let world = World::new(seed, faults);
    let listener = world.listen(&front(), 1)[0];
    let greeting = match backend {
        BackendScript::Greeting { bytes } => bytes,
        _ => 0,
    };
    world.backend(&back(), backend);
    for _ in 0..clients {
        let script = ClientScript {
            greeting,
            ..ClientScript::exchange(bytes)
        };
        world.client(Instant::default(), &front(), script);
    }
    let mut relay = Relay::new(&world, listener, !seed.is_multiple_of(3));
    for turns in 0.. {
        assert!(turns < 1_000_000, "seed {seed} never ends");
        relay.turn();
        if !world.progressed() && world.advance() == Advance::Quiet {
            break;
        }
    }
    assert_eq!(world.violations(), [""; 0], "seed {seed}");
    assert_eq!(world.buffers_held(), [0], "seed {seed}");
    drop(relay);
    world
}

#[test]
fn a_relay_delivers_every_byte_once_and_leaks_nothing() {
    let world = run(1, Faults::none(), 100, 100 << 10);
    let (clients, sessions) = (world.clients(), world.backend_sessions(&back()));
    assert_eq!((clients.len(), sessions.len()), (100, 100));
    for peer in clients.iter().chain(&sessions) {
        assert_eq!((peer.sent, peer.received), (100 << 10, 100 << 10));
        assert!(peer.intact && peer.ending == Ending::Fin, "{peer:?}");
    }
    assert_eq!(world.open_fds().len(), 1, "the listener");
}

#[test]
fn whatever_goes_wrong_nothing_is_heard_that_was_not_said() {
    for seed in 0..60 {
        let world = run(seed, Faults::from_seed(seed), 10, 20 << 10);
        let sessions = world.backend_sessions(&back());
        let faults = Faults::from_seed(seed);
        if faults.peer_reset + faults.exhausted + faults.accept_fails == 0 {
            for peer in world.clients().iter().chain(&sessions) {
                let whole = peer.sent == 20 << 10 && peer.received == 20 << 10;
                assert!(whole && peer.ending == Ending::Fin, "seed {seed}: {peer:?}");
            }
        }
        for session in sessions {
            let Some(stream) = session.stream else {
                continue;
            };
            let client = &world.clients()[stream as usize];
            assert!(session.received <= client.sent);
            assert!(client.received <= session.sent);
        }
    }
}

#[test]
fn every_kind_of_backend_ends_every_client() {
    let interval = Duration::from_millis(3);
    let backends = [
        BackendScript::Download { bytes: 100_000 },
        BackendScript::Sink,
        BackendScript::Greeting { bytes: 500 },
        BackendScript::Refuse,
        BackendScript::Unreachable,
        BackendScript::ResetAfter { bytes: 6000 },
        BackendScript::ResetAfter { bytes: 0 },
        BackendScript::CloseAtOnce,
        BackendScript::SlowReader {
            bytes: 3000,
            interval,
        },
    ];
    for (seed, backend) in (0..45).zip(backends.into_iter().cycle()) {
        let faults = match seed {
            0..9 => Faults::none(),
            _ => Faults::from_seed(seed),
        };
        let what = format!("seed {seed}, {backend:?}");
        let world = run_against(backend, seed, faults, 5, 20 << 10);
        for client in world.clients() {
            assert_ne!(client.ending, Ending::Open, "{what}: {client:?}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let trace = |seed| run(seed, Faults::from_seed(5), 10, 20 << 10).trace_hash();
    assert_eq!(trace(5), trace(5));
    assert_ne!(trace(5), trace(6));
}

const BUFFER: u32 = 4096;
