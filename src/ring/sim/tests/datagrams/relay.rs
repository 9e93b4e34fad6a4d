//! The handle that tasks hold, on the simulated kernel: a small relay that gives each client a socket
//! towards the backend. Whatever goes wrong, each datagram is somewhere, and what arrives has arrived at
//! the right one.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use super::*;
use crate::ring::sim::random::Random;
use crate::ring::{Arrival, DatagramSocket, Ring, Usage};

const WORKERS: usize = 2;
const MOST_TURNS: usize = 100_000;

/// Datagrams, those that are joined counted each.
#[derive(Clone, Copy, Default, Debug)]
struct Counts {
    received: u64,
    sent: u64,
    dropped: u64,
}

/// A worker's task.
struct Relay {
    listener: DatagramSocket,
    backend: SocketAddr,
    /// Datagrams after which a session ends, and the next one of its client begins another.
    most_per_session: u64,
    sessions: BTreeMap<(SocketAddr, Option<std::net::IpAddr>), Session>,
    counts: Rc<RefCell<Counts>>,
}

struct Session {
    socket: DatagramSocket,
    client: SocketAddr,
    local: Option<Local>,
    datagrams: u64,
}

impl Relay {
    fn work(&mut self) {
        while let Some(arrival) = self.listener.take() {
            self.relay_on(&arrival);
        }
        for session in self.sessions.values_mut() {
            session.socket.belongs_to_this_task();
            while let Some(arrival) = session.socket.take() {
                let to = (Some(session.client), session.local);
                session.datagrams += forward(&self.listener, &arrival, to, &self.counts);
            }
            session.socket.take_error();
            session.socket.receive();
        }
        let most = self.most_per_session;
        self.sessions.retain(|_, session| session.datagrams < most);
        assert_eq!(self.listener.take_error(), None, "it is not connected");
        self.listener.receive();
    }

    fn relay_on(&mut self, arrival: &Arrival) {
        let client = arrival.header.sender.expect("the listener is told");
        let local = arrival.header.local;
        let key = (client, local.map(|local| local.ip));
        if !self.sessions.contains_key(&key) {
            let Ok(socket) = self.listener.ring().open_datagrams(self.backend, None) else {
                let mut counts = self.counts.borrow_mut();
                counts.received += pieces(arrival);
                counts.dropped += pieces(arrival);
                return;
            };
            let session = Session {
                socket,
                client,
                local,
                datagrams: 0,
            };
            self.sessions.insert(key, session);
        }
        let session = self.sessions.get_mut(&key).expect("it is there by now");
        session.datagrams += forward(&session.socket, arrival, (None, None), &self.counts);
    }
}

fn pieces(arrival: &Arrival) -> u64 {
    let size = arrival.header.segment.map_or(usize::MAX, usize::from);
    arrival.bytes().len().div_ceil(size).max(1) as u64
}

/// Sends on what has arrived, one by one where joined ones are refused. Returns how many were sent.
fn forward(
    socket: &DatagramSocket,
    arrival: &Arrival,
    (to, from): (Option<SocketAddr>, Option<Local>),
    counts: &RefCell<Counts>,
) -> u64 {
    let segment = arrival.header.segment;
    let whole = Datagram {
        bytes: arrival.bytes(),
        to,
        from,
        segment,
    };
    assert!(!arrival.header.truncated, "a buffer holds the largest");
    let all = pieces(arrival);
    let sent = match socket.send(&[whole]) {
        Ok(_) => all,
        Err(error) if error.raw_os_error() == Some(libc::EIO) => {
            let size = segment.map_or(1, usize::from);
            let chunks = arrival.bytes().chunks(size);
            let each: Vec<_> = chunks
                .map(|bytes| Datagram {
                    bytes,
                    segment: None,
                    ..whole
                })
                .collect();
            socket.send(&each).unwrap_or(0) as u64
        }
        Err(_) => 0,
    };
    let mut counts = counts.borrow_mut();
    counts.received += all;
    counts.sent += sent;
    counts.dropped += all - sent;
    sent
}

/// Clients and a backend that depend on the seed.
fn population(world: &World, seed: u64, to: &Address) {
    let mut random = Random::new(seed ^ 0x5eed);
    let interval = Duration::from_millis(30);
    let scripts = [
        DatagramScript::Echo,
        DatagramScript::Replies(3),
        DatagramScript::JoinedReplies(4),
        DatagramScript::Late(Duration::from_millis(200)),
        DatagramScript::Unsolicited { count: 5, interval },
        DatagramScript::Closed,
        DatagramScript::Silent,
    ];
    world.datagram_backend(&back(), random.pick(&scripts));
    for client in 0..random.below(12) {
        let sizes = [0, 1, 40, 1_200, 1_200, 1_200, 9_000, 65_507];
        let script = DatagramClientScript {
            sizes: (0..3).map(|_| random.pick(&sizes)).collect(),
            joined: random.pick(&[1, 1, 8]),
            moves_after: random.pick(&[None, None, Some(4)]),
            ..DatagramClientScript::new(
                1 + random.below(20) as u32,
                0,
                Duration::from_micros(random.below(20_000)),
            )
        };
        let start = Instant::default() + client as u32 * Duration::from_millis(3);
        world.datagram_client(start, to, script);
    }
}

/// In every fourth run sessions end while it goes on.
fn most_per_session(seed: u64) -> u64 {
    match seed % 4 {
        0 => 12,
        _ => u64::MAX,
    }
}

/// The world after a run, and what the relays counted.
fn run(seed: u64, faults: Faults) -> (World, Counts) {
    let world = World::new(seed, faults);
    let to = at(FAR, 443);
    let bound = [at([0, 0, 0, 0], 443), at([0; 16], 443), to.clone()];
    let bound = &bound[(seed % 3) as usize];
    population(&world, seed, &to);
    let counts = Rc::new(RefCell::new(Counts::default()));
    let mut rings = Vec::new();
    for fd in world.listen_datagrams(bound, WORKERS, seed % 2 == 1) {
        let ring = Ring::new(Box::new(world.driver()), 1 << 16);
        let mut relay = Relay {
            listener: ring.datagrams(fd),
            backend: back().as_ip().unwrap(),
            most_per_session: most_per_session(seed),
            sessions: BTreeMap::new(),
            counts: Rc::clone(&counts),
        };
        ring.spawn(async move {
            relay.listener.belongs_to_this_task();
            poll_fn(|_| {
                relay.work();
                Poll::<()>::Pending
            })
            .await;
        });
        rings.push(ring);
    }
    let mut turns = 0;
    let mut settle = |rings: &[Ring]| {
        loop {
            turns += 1;
            assert!(turns < MOST_TURNS, "seed {seed}: it spins");
            rings.iter().for_each(|ring| ring.turn().unwrap());
            if !world.progressed() && world.advance() == Advance::Quiet {
                break;
            }
        }
    };
    settle(&rings);
    assert_eq!(
        world.traffic().under_way,
        0,
        "seed {seed}: it is all received"
    );
    rings.iter().for_each(Ring::end_tasks);
    settle(&rings);
    for ring in rings {
        assert_eq!(ring.usage(), Usage::default(), "seed {seed}");
    }
    let counts = *counts.borrow();
    (world, counts)
}

fn check(seed: u64, world: &World, counts: Counts) {
    let traffic = world.traffic();
    let record = world.datagram_record(&back());
    let clients = world.datagram_clients();
    let text = format!("seed {seed}: {counts:?} {traffic:?} {clients:#?} {record:#?}");
    assert_eq!(world.violations(), [""; 0], "{text}");
    assert_eq!(world.misdelivered(false), [""; 0], "{text}");
    assert_eq!(world.buffers_held(), [0; WORKERS], "{text}");
    assert_eq!(
        (world.open_fds().len(), world.local_ports()),
        (0, 0),
        "{text}"
    );
    assert_eq!(world.pending_ops(), 0, "{text}");
    assert!(traffic.adds_up(), "{text}");
    // What comes after the end of a session goes to nobody.
    let thrown_away = traffic.received - counts.received;
    let ends = most_per_session(seed) < u64::MAX;
    assert!(thrown_away == 0 || ends, "{text}");
    assert_eq!(counts.sent + counts.dropped, counts.received, "{text}");
    let asked: u64 = clients.iter().map(|client| client.sent).sum();
    let replied: u64 = record.sessions.iter().map(|one| one.replied).sum();
    let of_peers = traffic.sent - counts.sent;
    assert!(of_peers >= asked + replied, "{text}");
    let heard = record.received;
    let heard_back = |one: &crate::ring::sim::DatagramClientRecord| {
        one.replies + one.unsolicited + one.duplicates + one.foreign + one.corrupt
    };
    let all: u64 = clients.iter().map(heard_back).sum();
    assert_eq!(traffic.heard, heard + all, "{text}");
}

#[test]
fn every_datagram_is_somewhere_whatever_goes_wrong() {
    let mut met = [0; 4];
    for seed in 0..200 {
        let (world, counts) = run(seed, Faults::from_seed(seed));
        check(seed, &world, counts);
        let traffic = world.traffic();
        let all = [
            traffic.overflowed,
            traffic.forgotten,
            traffic.lost,
            counts.dropped,
        ];
        for (met, count) in met.iter_mut().zip(all) {
            *met += u64::from(count > 0);
        }
    }
    assert!(met.iter().all(|seeds| *seeds > 0), "{met:?}");
}

#[test]
fn without_faults_no_datagram_is_lost() {
    for seed in 0..20 {
        let (world, counts) = run(seed, Faults::none());
        check(seed, &world, counts);
        let traffic = world.traffic();
        assert_eq!((traffic.lost, traffic.overflowed), (0, 0));
        assert_eq!(world.datagram_record(&back()).duplicates, 0);
    }
}

#[test]
fn the_same_seed_gives_the_same_datagrams() {
    for seed in 0..20 {
        let (first, _) = run(seed, Faults::from_seed(seed));
        let (second, _) = run(seed, Faults::from_seed(seed));
        assert_eq!(first.trace_hash(), second.trace_hash(), "seed {seed}");
        let (other, _) = run(seed, Faults::from_seed(seed + 1));
        assert!(seed == 0 || first.trace_hash() != other.trace_hash());
    }
}
