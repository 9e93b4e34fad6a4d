//! Whole workers with clients and backends that speak in datagrams.

use std::sync::Arc;
use std::time::Duration;

use ringress::address::Address;
use ringress::config;
use ringress::policy::health;
use ringress::proxy::{BindingId, ListenerSocket, ListenerState, Message, Shared, Worker};
use ringress::ring::listen::Transport;
use ringress::ring::sim::{
    Advance, DatagramClientScript, DatagramScript, EventHandle, Faults, World,
};
use ringress::ring::{Mailbox, Ring, Usage};
use ringress::telemetry::counters::Totals;
use ringress::telemetry::events::Events;
use ringress::telemetry::{Dropped, Reason};
use ringress::time::Instant;

use crate::seeds;

/// Turns after which a run is taken to spin.
const MOST_TURNS: usize = 400_000;

/// What a seed has decided.
struct Plan {
    seed: u64,
    workers: usize,
    faults: Faults,
    backends: Vec<DatagramScript>,
    clients: Vec<(Duration, DatagramClientScript)>,
    udp: String,
    by_source: bool,
    cap: Option<usize>,
    wildcard: bool,
    /// When a backend is killed, and when it comes back.
    killed: Option<(Duration, Duration)>,
    /// When one is found to be down.
    down: Option<Duration>,
    drain_at: Option<Duration>,
    ports: Option<u16>,
}

/// Numbers of a seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % most
    }

    fn one_in(&mut self, most: u64) -> bool {
        self.below(most) == 0
    }

    fn millis(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.below(most))
    }
}

fn backend(index: usize) -> Address {
    // Another port than that of the wildcard, which has all addresses.
    Address::Ip(([198, 51, 100, 1 + index as u8], 5353).into())
}

impl Plan {
    fn from_seed(seed: u64) -> Self {
        let mut dice = Dice(seed ^ 0xda7a);
        let by_source = dice.one_in(4);
        let per_packet = dice.one_in(4);
        let cap = dice.one_in(3).then(|| 1 + dice.below(12) as usize);
        let mut udp = format!("session_timeout = \"{}ms\"\n", 500 + dice.below(3_000));
        if by_source {
            udp.push_str("session_key = \"source-ip\"\n");
        }
        if per_packet {
            udp.push_str("mode = \"per-packet\"\n");
        }
        if let Some(cap) = cap {
            udp.push_str(&format!("max_sessions = {cap}\n"));
        }
        if dice.one_in(4) {
            udp.push_str(&format!("responses = {}\n", 1 + dice.below(3)));
        }
        let backends = (0..=dice.below(4)).map(|_| script(&mut dice)).collect();
        let wildcard = dice.one_in(3);
        let clients = (0..1 + dice.below(25)).map(|_| (dice.millis(3_000), client(&mut dice)));
        Self {
            seed,
            clients: clients.collect(),
            workers: 1 + dice.below(3) as usize,
            faults: match dice.one_in(5) {
                true => Faults::none(),
                false => Faults::from_seed(seed),
            },
            backends,
            udp,
            by_source,
            cap,
            wildcard,
            killed: dice.one_in(3).then(|| {
                (
                    dice.millis(3_000),
                    Duration::from_secs(3) + dice.millis(2_000),
                )
            }),
            down: dice.one_in(4).then(|| dice.millis(4_000)),
            drain_at: dice.one_in(4).then(|| dice.millis(6_000)),
            ports: dice.one_in(5).then(|| 1 + dice.below(10) as u16),
        }
    }

    fn front(&self) -> Address {
        let ip = match self.wildcard {
            true => [0, 0, 0, 0],
            false => [192, 0, 2, 1],
        };
        Address::Ip((ip, 53).into())
    }

    fn config(&self) -> config::Config {
        let addresses: Vec<_> = (0..self.backends.len())
            .map(|index| backend(index).to_string())
            .collect();
        let text = format!(
            "[listeners.dns]\nbind = \"{}\"\nprotocol = \"udp\"\nupstream = \"app\"\n\
             [listeners.dns.udp]\n{}\n[upstreams.app]\nbackends = {addresses:?}\n\
             [upstreams.app.outlier]\nconsecutive_failures = 3\neject_for = \"1s\"\n",
            self.front(),
            self.udp
        );
        let mut nobody = |_: &str, _: u16| Err(std::io::ErrorKind::NotFound.into());
        config::parse(&text, "sim.toml", &mut nobody).unwrap_or_else(|error| panic!("{error}"))
    }
}

fn script(dice: &mut Dice) -> DatagramScript {
    match dice.below(8) {
        0 => DatagramScript::Silent,
        1 => DatagramScript::Closed,
        2 => DatagramScript::Replies(1 + dice.below(4) as u32),
        3 => DatagramScript::JoinedReplies(2 + dice.below(30) as u32),
        4 => DatagramScript::Late(dice.millis(2_000)),
        _ => DatagramScript::Echo,
    }
}

fn client(dice: &mut Dice) -> DatagramClientScript {
    let interval = Duration::from_millis(1 + dice.below(300));
    let count = 1 + dice.below(30) as u32;
    let sizes = [0, 20, 200, 1_200, 1_200, 9_000, 65_507];
    let sizes = (0..1 + dice.below(4)).map(|_| sizes[dice.below(7) as usize]);
    DatagramClientScript {
        sizes: sizes.collect(),
        joined: if dice.one_in(3) {
            1 + dice.below(40) as u32
        } else {
            1
        },
        moves_after: dice.one_in(4).then(|| 1 + dice.below(10) as u32),
        ..DatagramClientScript::new(count, 0, interval)
    }
}

/// The workers and their world.
struct Run {
    world: World,
    workers: Vec<Worker>,
    mailboxes: Vec<(Arc<Mailbox<Message>>, EventHandle)>,
    shared: Arc<Shared>,
    turns: usize,
    most_sessions: usize,
    broken: Vec<String>,
}

impl Run {
    fn start(plan: &Plan) -> Self {
        let world = World::new(plan.seed, plan.faults.clone());
        for (index, script) in plan.backends.iter().enumerate() {
            world.datagram_backend(&backend(index), *script);
        }
        if let Some(ports) = plan.ports {
            world.set_local_ports(ports);
        }
        for (number, (start, script)) in plan.clients.iter().enumerate() {
            let to = match plan.wildcard {
                true => Address::Ip(([192, 0, 2, 1 + number as u8 % 3], 53).into()),
                false => plan.front(),
            };
            world.datagram_client(Instant::default() + *start, &to, script.clone());
        }
        let (sender, _) = Events::new();
        let shared = Shared::new(&plan.config(), plan.workers, 10_000, sender, plan.seed);
        let sockets = world.listen_datagrams(&plan.front(), plan.workers, plan.by_source);
        let mut run = Self {
            workers: Vec::new(),
            mailboxes: Vec::new(),
            shared,
            turns: 0,
            most_sessions: 0,
            broken: Vec::new(),
            world,
        };
        for (index, fd) in sockets.into_iter().enumerate() {
            let ring = Ring::new(Box::new(run.world.driver()), 1 << 20);
            let (event, handle) = run.world.event();
            let mailbox = Mailbox::with_signal(Box::new(|| ()));
            let worker = Worker::new(ring, run.shared.clone(), index, (mailbox.clone(), event));
            mailbox.post(Message::Listen(ListenerSocket {
                binding: BindingId(0),
                listener: run.listener(),
                fd,
                shared: false,
                transport: Transport::Datagrams,
                address: plan.front().as_ip(),
                number: index,
                waits: false,
                closed: Arc::new(()),
            }));
            handle.signal();
            run.workers.push(worker);
            run.mailboxes.push((mailbox, handle));
        }
        run
    }

    fn listener(&self) -> Arc<ListenerState> {
        self.shared.snapshot.load().listeners[0].clone()
    }

    fn post(&self, message: impl Fn() -> Message) {
        for (mailbox, handle) in &self.mailboxes {
            mailbox.post(message());
            handle.signal();
        }
    }

    /// Turns until `end`, or until nothing will ever happen again.
    fn until(&mut self, end: Option<Instant>) {
        while self.turns < MOST_TURNS {
            self.turns += 1;
            for worker in &self.workers {
                worker.turn().expect("a simulated ring does not fail");
            }
            self.most_sessions = self.most_sessions.max(self.listener().active.now());
            // Nothing is held over a turn.
            let held = |worker: &Worker| worker.ring().usage().buffers > 0;
            if self.workers.iter().any(held) {
                self.broken.push("a buffer was held over a turn".to_owned());
                return;
            }
            if !self.world.progressed() && self.world.advance() == Advance::Quiet {
                return;
            }
            if end.is_some_and(|end| self.world.now() >= end) {
                return;
            }
        }
        self.broken.push("it spins".to_owned());
    }

    fn judge(&self, index: usize, healthy: bool) {
        let once = health::Settings {
            rise: std::num::NonZeroU32::MIN,
            fall: std::num::NonZeroU32::MIN,
            start: health::Start::Up,
        };
        let snapshot = self.shared.snapshot.load();
        let health = &snapshot.upstreams[0].backends()[index].state.health;
        health.record(&once, healthy, self.world.now());
        snapshot.upstreams[0].changed(self.world.now());
    }

    fn live(&mut self, plan: &Plan) {
        let mut turns: Vec<(Duration, u8)> = Vec::new();
        turns.extend(plan.down.map(|at| (at, 0)));
        turns.extend(
            plan.killed
                .into_iter()
                .flat_map(|(at, back)| [(at, 1), (back, 2)]),
        );
        turns.extend(plan.drain_at.map(|at| (at, 3)));
        turns.sort_unstable();
        for (at, turn) in turns {
            self.until(Some(Instant::default() + at));
            match turn {
                0 => self.judge(0, false),
                1 => self.world.kill_datagram_backend(&backend(0)),
                2 => self
                    .world
                    .datagram_backend(&backend(0), DatagramScript::Echo),
                _ => self.post(|| Message::Drain(Duration::ZERO)),
            }
        }
        self.until(None);
        if plan.drain_at.is_none() {
            let idle = Usage {
                tasks: 2,
                slots: 2,
                ..Usage::default()
            };
            for worker in &self.workers {
                let usage = worker.ring().usage();
                if usage != idle {
                    self.broken.push(format!("not idle: {usage:?}"));
                }
            }
            self.post(|| Message::Drain(Duration::ZERO));
            self.until(None);
        }
    }

    fn end(&mut self) {
        for worker in &self.workers {
            if !worker.is_done() {
                self.broken
                    .push("a worker was told to drain and did not".to_owned());
            }
            worker.ring().end_tasks();
        }
        self.until(None);
        for worker in &self.workers {
            let usage = worker.ring().usage();
            if usage != Usage::default() {
                self.broken.push(format!("leaked: {usage:?}"));
            }
        }
        if !self.world.open_fds().is_empty() || self.world.local_ports() > 0 {
            self.broken.push("descriptors or ports are left".to_owned());
        }
    }

    /// What holds whatever has happened.
    fn check(&mut self, plan: &Plan) {
        let totals = self.listener().totals();
        let mut broken = self.world.violations();
        // A client that moves within a session is one by its address only.
        // A port that is used again at once, as there is no other, may still be spoken to.
        let ports = plan.ports.is_none();
        if ports {
            broken.extend(self.world.misdelivered(plan.by_source));
        }
        let mut must = |holds: bool, what: &str| {
            if !holds {
                broken.push(format!("{what}: {totals:?}"));
            }
        };
        let closed: u64 = totals.closed.iter().sum();
        must(
            closed == totals.accepted,
            "not every session has ended once",
        );
        must(self.shared.active.now() == 0, "sessions are still counted");
        must(
            self.listener().active.now() == 0,
            "sessions are still counted here",
        );
        let snapshot = self.shared.snapshot.load();
        let states = snapshot.upstreams[0].backends().iter().map(|it| &it.state);
        let left: usize = states.map(|it| it.load.active.now() + it.open.now()).sum();
        must(left == 0, "backends still count sessions");
        if let Some(cap) = plan.cap {
            must(self.most_sessions <= cap, "more sessions than may be");
        }
        let traffic = self.world.traffic();
        must(traffic.adds_up(), "datagrams of the world");
        must(totals.datagrams_received <= traffic.received, "received");
        must(
            totals.dropped(Dropped::Overflow) <= traffic.overflowed,
            "more overflows than there were",
        );
        let heard: u64 = (0..plan.backends.len())
            .map(|index| self.world.datagram_record(&backend(index)).received)
            .sum();
        // Each goes to a second backend at most.
        let tried = 2 * totals.datagrams_received + traffic.doubled;
        must(heard <= tried, "backends heard more than was said");
        for client in self.world.datagram_clients() {
            let foreign = if ports { client.foreign } else { 0 };
            let clean = client.corrupt + foreign + client.wrong_source == 0;
            if !clean {
                broken.push(format!("{client:?}"));
            }
        }
        self.broken.extend(broken);
    }
}

fn run(plan: &Plan) -> Run {
    let mut run = Run::start(plan);
    run.live(plan);
    run.end();
    run.check(plan);
    run
}

fn totals(run: &Run) -> Totals {
    run.listener().totals()
}

#[test]
fn every_seed_keeps_every_promise() {
    for seed in seeds() {
        let plan = Plan::from_seed(seed);
        let run = run(&plan);
        assert!(run.broken.is_empty(), "seed {seed}: {:#?}", run.broken);
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 0..10 {
        let traces = [0, 1].map(|_| run(&Plan::from_seed(seed)).world.trace_hash());
        assert_eq!(traces[0], traces[1], "seed {seed}");
    }
}

/// The seeds are only worth something if they get everywhere.
#[test]
fn the_seeds_meet_every_ending_and_most_reasons_to_drop() {
    let mut sum = Totals::default();
    for seed in 0..200 {
        sum.add(&totals(&run(&Plan::from_seed(seed))));
    }
    for reason in [Reason::Idle, Reason::Answered, Reason::BackendRefused] {
        assert!(sum.closed(reason) > 0, "{reason:?}");
    }
    for dropped in [
        Dropped::Overflow,
        Dropped::ListenerFull,
        Dropped::NoBackend,
        Dropped::NoResources,
        Dropped::NoRoom,
        Dropped::Draining,
        Dropped::Unwanted,
    ] {
        assert!(sum.dropped(dropped) > 0, "{dropped:?}");
    }
}

/// Without faults nothing is lost: each datagram has its answer.
#[test]
fn without_faults_every_datagram_is_answered() {
    for seed in 0..60 {
        let plan = Plan {
            faults: Faults::none(),
            backends: vec![DatagramScript::Echo; 3],
            udp: "session_timeout = \"2s\"\n".to_owned(),
            by_source: false,
            cap: None,
            killed: None,
            drain_at: None,
            ports: None,
            ..Plan::from_seed(seed)
        };
        let run = run(&plan);
        assert!(run.broken.is_empty(), "seed {seed}: {:#?}", run.broken);
        let totals = totals(&run);
        assert_eq!(
            totals.dropped.iter().sum::<u64>(),
            0,
            "seed {seed}: {totals:?}"
        );
        for client in run.world.datagram_clients() {
            assert_eq!(client.replies, client.sent, "seed {seed}: {client:?}");
        }
    }
}

/// A backend whose port is closed costs nobody an answer as long as there is another one.
#[test]
fn with_a_closed_port_every_first_datagram_finds_another_backend() {
    for seed in 0..40 {
        let mut plan = Plan {
            faults: Faults::none(),
            backends: vec![DatagramScript::Closed, DatagramScript::Echo],
            udp: "session_timeout = \"2s\"\n".to_owned(),
            by_source: false,
            cap: None,
            killed: None,
            down: None,
            drain_at: None,
            ports: None,
            ..Plan::from_seed(seed)
        };
        for (_, client) in &mut plan.clients {
            client.sizes = vec![200, 1_200];
            client.joined = 1;
            client.moves_after = None;
        }
        let run = run(&plan);
        assert!(run.broken.is_empty(), "seed {seed}: {:#?}", run.broken);
        for client in run.world.datagram_clients() {
            // Those that follow at once may meet it before its answer has come.
            assert!(client.replies > 0, "seed {seed}: {client:?}");
        }
        assert_eq!(
            totals(&run).closed(Reason::BackendRefused),
            0,
            "seed {seed}"
        );
    }
}
