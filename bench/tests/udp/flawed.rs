//! A way between sources and a backend that does to datagrams what it is told, and counts it.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// One in so many datagrams that carry data, 0 = none; or how many it was done to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flaws {
    pub(super) lose: u64,
    pub(super) double: u64,
    pub(super) change: u64,
    /// Until the next one of the same source has gone ahead.
    pub(super) hold_back: u64,
    /// To the source before.
    pub(super) misdirect: u64,
}

impl Flaws {
    pub(super) const NONE: Self = Self {
        lose: 0,
        double: 0,
        change: 0,
        hold_back: 0,
        misdirect: 0,
    };
}

/// The way; it runs on a thread until it is ended.
pub(super) struct Way {
    /// Where it begins.
    pub(super) address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Flaws>,
}

impl Way {
    pub(super) fn to(backend: SocketAddr, flaws: Flaws) -> Self {
        let entrance = UdpSocket::bind(("127.0.0.1", 0)).expect("a port is free");
        entrance.set_nonblocking(true).expect("it is a socket");
        let address = entrance.local_addr().expect("it is bound");
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let mut courier = Courier {
            entrance,
            backend,
            flaws,
            done: Flaws::NONE,
            carried: 0,
            exits: Vec::new(),
            held: HashMap::new(),
        };
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                if !courier.carry() {
                    thread::park_timeout(Duration::from_micros(50));
                }
            }
            courier.done
        });
        Self {
            address,
            stop,
            thread,
        }
    }

    /// Ends it; returns how often it did what.
    pub(super) fn end(self) -> Flaws {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the way does not panic")
    }
}

struct Courier {
    entrance: UdpSocket,
    backend: SocketAddr,
    flaws: Flaws,
    done: Flaws,
    /// Datagrams with data that came.
    carried: u64,
    /// A socket to the backend for each source.
    exits: Vec<(SocketAddr, UdpSocket)>,
    held: HashMap<SocketAddr, Vec<u8>>,
}

/// Where the generator's datagrams say what they are, and the kinds that carry data.
const KIND: usize = 4;
const ECHO: u8 = 1;
const SEGMENT: u8 = 2;
/// Within the counted pattern.
const BODY: usize = 60;

impl Courier {
    /// Carries what is there; false when nothing was. Segments of bursts meet with flaws wherever they
    /// go, what is echoed on its way back.
    fn carry(&mut self) -> bool {
        let mut buffer = [0; 2_000];
        let mut any = false;
        if let Ok((bytes, source)) = self.entrance.recv_from(&mut buffer) {
            any = true;
            let exit = self.exit_of(source);
            let is_flawed = buffer[KIND] == SEGMENT;
            self.pass(&mut buffer[..bytes], source, is_flawed, |_, bytes, _| {
                exit.send(bytes).expect("the backend is there");
            });
        }
        for place in 0..self.exits.len() {
            let (source, exit) = &self.exits[place];
            let source = *source;
            let Ok(bytes) = exit.recv(&mut buffer) else {
                continue;
            };
            any = true;
            let is_flawed = [ECHO, SEGMENT].contains(&buffer[KIND]);
            self.pass(&mut buffer[..bytes], source, is_flawed, |own, bytes, to| {
                let sent = own.entrance.send_to(bytes, to);
                sent.expect("the source is there");
            });
        }
        any
    }

    fn exit_of(&mut self, source: SocketAddr) -> UdpSocket {
        let known = self.exits.iter().find(|(address, _)| *address == source);
        if let Some((_, exit)) = known {
            return exit.try_clone().expect("there are descriptors");
        }
        let exit = UdpSocket::bind(("127.0.0.1", 0)).expect("a port is free");
        exit.connect(self.backend).expect("it is an address");
        exit.set_nonblocking(true).expect("it is a socket");
        let other = exit.try_clone().expect("there are descriptors");
        self.exits.push((source, exit));
        other
    }

    fn pass(
        &mut self,
        bytes: &mut [u8],
        source: SocketAddr,
        is_flawed: bool,
        send: impl Fn(&Self, &[u8], SocketAddr),
    ) {
        if !is_flawed {
            return send(self, bytes, source);
        }
        self.carried += 1;
        let carried = self.carried;
        let is_turn = |each: u64| each > 0 && carried.is_multiple_of(each);
        let mut others = self.exits.iter().map(|(address, _)| *address);
        let other = others.rfind(|address| *address != source);
        let overtaken = self.held.remove(&source);
        // Where one waits, the next goes as it is: each flaw alone.
        if overtaken.is_some() {
            send(self, bytes, source);
        } else if is_turn(self.flaws.lose) {
            self.done.lose += 1;
        } else if is_turn(self.flaws.double) {
            self.done.double += 1;
            send(self, bytes, source);
            send(self, bytes, source);
        } else if is_turn(self.flaws.change) {
            self.done.change += 1;
            bytes[BODY] ^= 1;
            send(self, bytes, source);
        } else if is_turn(self.flaws.hold_back) {
            self.held.insert(source, bytes.to_vec());
        } else if let Some(other) = other.filter(|_| is_turn(self.flaws.misdirect)) {
            self.done.misdirect += 1;
            send(self, bytes, other);
        } else {
            send(self, bytes, source);
        }
        if let Some(held) = overtaken {
            self.done.hold_back += 1;
            send(self, &held, source);
        }
    }
}
