//! Runs a plan on whole workers and says which promises were broken.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringress::policy::health;
use ringress::proxy::{BindingId, ListenerSocket, ListenerState, Message, Shared, Worker};
use ringress::ring::listen::Transport;
use ringress::ring::sim::{Advance, Ending, EventHandle, PeerRecord, Step, World};
use ringress::ring::{BUFFER_BYTES, Mailbox, Ring, Usage};
use ringress::telemetry::Reason;
use ringress::telemetry::events::{Events, Told as Queues};
use ringress::telemetry::latency::BucketCounts;
use ringress::telemetry::recorder::{MOMENTS, Moment, What};
use ringress::telemetry::sessions::SessionRecord;
use ringress::time::Instant;
use ringress::upstream::{Backend, Bell, Order};

use crate::layers::Told;
use crate::plan::{Plan, Turn};

/// Turns after which a run is taken to spin.
const MOST_TURNS: usize = 3_000_000;

/// When the idle timer looks after a session for the first time: half of the plans' `idle`.
pub(crate) const NUDGE: Duration = Duration::from_secs(30);

/// What became of a run.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) trace: u64,
    pub(crate) clients: Vec<PeerRecord>,
    pub(crate) backends: Vec<PeerRecord>,
    pub(crate) sessions: Vec<SessionRecord>,
    pub(crate) refused: u64,
    pub(crate) most_buffers: usize,
    pub(crate) most_sessions: usize,
    pub(crate) pipes: usize,
    /// By backend: the most connections at once, and all that were tried.
    pub(crate) most_connections: Vec<usize>,
    pub(crate) attempts: Vec<usize>,
    pub(crate) turns: usize,
    /// How often a worker has panicked.
    pub(crate) panics: usize,
    /// The longest time that a place was free beside somebody who waited.
    pub(crate) longest_neglect: Duration,
    /// Clients that read nothing any more, and so never see the end.
    pub(crate) deaf: Vec<bool>,
    /// What backends heard of clients, by stream.
    pub(crate) told: Vec<(u64, SocketAddr)>,
    pub(crate) plan: Plan,
    pub(crate) broken: Vec<String>,
}

/// The workers, their world, and the strings by which they are pulled.
struct Run {
    world: World,
    told: Told,
    workers: Vec<Worker>,
    /// Which of them have panicked and are being taken apart.
    falling: Vec<bool>,
    /// How often one has.
    panics: usize,
    buffers: u64,
    mailboxes: Vec<(Arc<Mailbox<Message>>, EventHandle)>,
    /// By worker: somebody has rung.
    rung: Vec<Arc<AtomicBool>>,
    shared: Arc<Shared>,
    queues: Queues,
    cap: usize,
    turn_takes: Duration,
    most_buffers: usize,
    most_sessions: usize,
    turns: usize,
    /// By backend that gets no sessions by order: those it had, and its connections, when last seen.
    ordered_out: Vec<Option<(usize, usize)>>,
    /// One of them got more.
    disobeyed: bool,
    /// Since when there has been a place that nobody took, while somebody waited.
    neglected: Option<Instant>,
    longest_neglect: Duration,
}

pub(crate) fn run(plan: &Plan) -> Outcome {
    let mut run = Run::start(plan);
    let mut broken = Vec::new();
    for (at, backend, turn) in &plan.turns {
        run.until(Some(Instant::default() + *at));
        run.turn(*backend, turn);
    }
    if let Some(at) = plan.drain_at {
        run.until(Some(Instant::default() + at));
        run.post(|| Message::Drain(Duration::ZERO));
        run.until(Some(run.world.now() + Duration::from_secs(1)));
        run.post(|| Message::Abort);
    }
    run.settle(plan, &mut broken);
    if run.turns >= MOST_TURNS {
        broken.push("it spins".to_owned());
    }
    if plan.drain_at.is_none() {
        if plan.policies.preconnect == 0 {
            broken.extend(run.idle_leaks());
        }
        run.post(|| Message::Drain(Duration::ZERO));
        run.until(None);
    }
    let deaf = plan
        .clients
        .iter()
        .map(|client| client.steps.contains(&Step::Stall(None)));
    let mut outcome = Outcome {
        deaf: deaf.collect(),
        plan: plan.clone(),
        ..run.finish(broken)
    };
    if plan.lively {
        // Those that wait for a place wait for others to end.
        let longest = match plan.policies.backend_cap {
            None => NUDGE,
            Some(_) => 20 * NUDGE,
        };
        outcome.check_lively(longest);
    }
    outcome
}

/// The world with its backends and clients.
fn world(plan: &Plan, told: &Told) -> World {
    let world = World::new(plan.seed, plan.faults.clone());
    world.set_capabilities(plan.capabilities);
    let layers = plan.security.backend_layers(told);
    for (index, script) in plan.backends.iter().enumerate() {
        let address = Plan::backend_address(index);
        world.backend(&address, script.clone());
        if let Some(make) = layers.clone() {
            world.set_layers(&address, move || make());
        }
        if let Some(distance) = plan.distance {
            world.set_distance(&address, distance);
        }
    }
    for (index, script) in plan.clients.iter().enumerate() {
        let soon = Duration::from_millis(index as u64 * 7 % 50);
        let at = Instant::default() + plan.starts.get(index).copied().unwrap_or(soon);
        let front = match index < plan.unix_clients {
            true => Plan::unix_front(),
            false => Plan::front(),
        };
        match plan.security.client_layer(index) {
            Some(layer) => world.client_with_layer(at, &front, script.clone(), layer),
            None => world.client(at, &front, script.clone()),
        };
    }
    world
}

impl Run {
    fn start(plan: &Plan) -> Self {
        let told = Told::default();
        let world = world(plan, &told);
        let (sender, queues) = Events::new();
        sender.sessions.tell(true);
        sender.sessions.tell_refusals(u32::MAX);
        let shared = Shared::new(
            &plan.config(),
            plan.workers,
            plan.max_connections,
            sender,
            plan.seed,
        );
        let ip = world.listen(&Plan::front(), plan.workers);
        let unix = world.listen(&Plan::unix_front(), plan.workers);
        let mut mailboxes = Vec::new();
        let mut workers = Vec::new();
        for index in 0..plan.workers {
            let ring = Ring::new(
                Box::new(world.driver()),
                plan.buffers * u64::from(BUFFER_BYTES),
            );
            let (fd, handle) = world.event();
            let mailbox = Mailbox::with_signal(Box::new(|| ()));
            mailboxes.push((mailbox.clone(), handle));
            workers.push(Worker::new(ring, shared.clone(), index, (mailbox, fd)));
        }
        for (index, (mailbox, handle)) in mailboxes.iter().enumerate() {
            for (binding, fd) in [ip[index], unix[index]].into_iter().enumerate() {
                mailbox.post(Message::Listen(ListenerSocket {
                    binding: BindingId(binding as u64),
                    listener: shared.snapshot.load().listeners[0].clone(),
                    fd,
                    shared: binding > 0,
                    transport: Transport::Stream,
                    address: None,
                    number: 0,
                    waits: false,
                    closed: Arc::new(()),
                }));
            }
            handle.signal();
        }
        let rung: Vec<Arc<AtomicBool>> = workers.iter().map(|_| Arc::default()).collect();
        shared.around.bells.hang(rung.iter().map(|rung| {
            let rung = rung.clone();
            Box::new(move || rung.store(true, Ordering::Relaxed)) as Bell
        }));
        Self {
            world,
            told,
            falling: vec![false; workers.len()],
            panics: 0,
            buffers: plan.buffers * u64::from(BUFFER_BYTES),
            workers,
            mailboxes,
            rung,
            shared,
            queues,
            turn_takes: plan.turn_takes,
            cap: plan.policies.backend_cap.map_or(usize::MAX, usize::from),
            most_buffers: 0,
            most_sessions: 0,
            turns: 0,
            ordered_out: vec![None; plan.backends.len()],
            disobeyed: false,
            neglected: None,
            longest_neglect: Duration::ZERO,
        }
    }

    fn turn(&self, backend: usize, turn: &Turn) {
        let address = Plan::backend_address(backend);
        match turn {
            Turn::Healthy(healthy) => self.judge(backend, *healthy),
            Turn::Ordered(order) => self.order(backend, *order),
            Turn::Killed => self.world.kill_backend(&address),
            Turn::Becomes(script) => self.world.backend(&address, script.clone()),
            #[cfg(debug_assertions)]
            Turn::Panicked(spot) => {
                let (mailbox, handle) = &self.mailboxes[backend];
                mailbox.post(Message::Panic(*spot));
                handle.signal();
            }
        }
    }

    /// What a prober would say.
    fn judge(&self, backend: usize, healthy: bool) {
        let once = health::Settings {
            rise: NonZeroU32::MIN,
            fall: NonZeroU32::MIN,
            start: health::Start::Up,
        };
        let snapshot = self.shared.snapshot.load();
        let upstream = &snapshot.upstreams[0];
        let health = &upstream.backends()[backend].state.health;
        health.record(&once, healthy, self.world.now());
        upstream.changed(self.world.now());
        self.shared.around.bells.ring_all();
    }

    fn listener(&self) -> Arc<ListenerState> {
        self.shared.snapshot.load().listeners[0].clone()
    }

    /// What the operator would say.
    fn order(&self, backend: usize, order: Order) {
        let snapshot = self.shared.snapshot.load();
        let ordered = snapshot.upstreams[0].order(&format!("b{backend}"), order, self.world.now());
        assert!(ordered.is_some(), "b{backend} is in the configuration");
    }

    fn post(&self, message: impl Fn() -> Message) {
        for (mailbox, handle) in &self.mailboxes {
            mailbox.post(message());
            handle.signal();
        }
    }

    /// One turn of a worker, or of what is left of it.
    fn turn_worker(&mut self, index: usize) {
        let worker = &self.workers[index];
        let turned = catch_unwind(AssertUnwindSafe(|| worker.turn()));
        match turned {
            Ok(turned) => turned.expect("a simulated ring does not fail"),
            Err(_) => {
                self.panics += 1;
                self.falling[index] = true;
                worker.fall();
            }
        }
        if self.falling[index] && worker.has_fallen() {
            self.falling[index] = false;
            let remains = self.workers.remove(index).into_remains();
            let ring = Ring::new(Box::new(self.world.driver()), self.buffers);
            let successor = Worker::after(remains, ring, self.shared.clone(), index);
            self.workers.insert(index, successor);
        }
    }

    /// Turns until nothing will ever happen again, or until `end`.
    fn until(&mut self, end: Option<Instant>) {
        while self.turns < MOST_TURNS {
            self.turns += 1;
            for index in 0..self.workers.len() {
                self.turn_worker(index);
                let usage = self.workers[index].ring().usage();
                self.most_buffers = self.most_buffers.max(usage.buffers);
            }
            for (rung, (_, handle)) in self.rung.iter().zip(&self.mailboxes) {
                if rung.swap(false, Ordering::Relaxed) {
                    handle.signal();
                }
            }
            self.most_sessions = self.most_sessions.max(self.shared.active.now());
            self.note_neglect();
            self.note_obedience();
            match self.world.progressed() {
                true => self.world.pass(self.turn_takes),
                false if self.world.advance() == Advance::Quiet => return,
                false => {}
            }
            if end.is_some_and(|end| self.world.now() >= end) {
                return;
            }
        }
    }

    /// What was counted of backends is what was told of sessions.
    fn check_backends(&self, sessions: &[SessionRecord], broken: &mut Vec<String>) {
        for backend in self.shared.snapshot.load().upstreams[0].backends() {
            let totals = backend.state.tallies.totals();
            let own = || {
                let name = Some(&*backend.name);
                sessions
                    .iter()
                    .filter(move |it| it.backend.as_deref() == name)
            };
            let told = (
                own().count() as u64,
                own().map(|it| it.bytes_received).sum::<u64>(),
                own().map(|it| it.bytes_sent).sum::<u64>(),
            );
            let closed = totals.closed.iter().sum::<u64>();
            let counted = (closed, totals.bytes_received, totals.bytes_sent);
            if counted != told || totals.duration.count() != told.0 {
                broken.push(format!(
                    "{}: counted {counted:?}, told {told:?}",
                    backend.name
                ));
            }
        }
    }

    /// Each end that was told was counted at its listener, with how long it lasted if it had a backend or was
    /// lost with its worker, and is in the flight recorder as long as that has not gone round.
    fn check_ends(&self, sessions: &[SessionRecord], broken: &mut Vec<String>) {
        let noted: Vec<_> = self
            .shared
            .recorders
            .iter()
            .map(|it| it.moments())
            .collect();
        for session in sessions {
            let moments = &noted[session.worker];
            let is_it = |moment: &Moment| {
                (moment.what, moment.session) == (What::Close, session.session)
                    && moment.reason == Some(session.reason)
            };
            if moments.len() < MOMENTS && !moments.iter().any(is_it) {
                broken.push(format!("not in the recorder: {session:?}"));
            }
        }
        for listener in &self.shared.snapshot.load().listeners {
            let own = || sessions.iter().filter(|it| it.listener == listener.name);
            let closed: u64 = Reason::ALL
                .map(|reason| listener.closed(reason))
                .iter()
                .sum();
            let let_in =
                |it: &&SessionRecord| it.backend.is_some() || it.reason == Reason::WorkerPanicked;
            let least = own().filter(let_in).count() as u64;
            let counters = listener.counters.iter();
            let durations = BucketCounts::sum(counters.map(|it| &it.duration.buckets));
            let counted = (closed, durations.count());
            if closed != own().count() as u64 || !(least..=closed).contains(&counted.1) {
                broken.push(format!(
                    "{}: counted {counted:?}, at least {least}",
                    listener.name
                ));
            }
        }
    }

    /// Turns until all sessions are over. With connections ahead the world never comes to rest.
    fn settle(&mut self, plan: &Plan, broken: &mut Vec<String>) {
        if plan.policies.preconnect == 0 {
            return self.until(None);
        }
        let latest = self.world.now() + Duration::from_hours(1);
        while !self.is_over(plan) && self.turns < MOST_TURNS {
            if self.world.now() > latest {
                broken.push("sessions never ended".to_owned());
                return;
            }
            self.until(Some(self.world.now() + Duration::from_millis(100)));
        }
    }

    fn is_over(&self, plan: &Plan) -> bool {
        let clients = self.world.clients();
        let mut ended = clients.iter().zip(&plan.clients).map(|(client, script)| {
            client.ending != Ending::Open || script.steps.contains(&Step::Stall(None))
        });
        self.shared.active.now() == 0 && ended.all(|ended| ended)
    }

    /// With all clients gone, only accept loops and mailboxes may be left.
    fn idle_leaks(&self) -> Vec<String> {
        let idle = Usage {
            tasks: 3,
            slots: 3,
            ..Usage::default()
        };
        let usages = self.workers.iter().map(|worker| worker.ring().usage());
        usages
            .filter(|usage| *usage != idle)
            .map(|usage| format!("not idle: {usage:?}"))
            .collect()
    }

    /// Every backend has a cap where this matters, and the same.
    fn note_neglect(&mut self) {
        let snapshot = self.shared.snapshot.load();
        let upstream = &snapshot.upstreams[0];
        let free = |backend: &Arc<Backend>| backend.state.open.now() < self.cap;
        let neglect = upstream.waiting() > 0 && upstream.backends().iter().any(free);
        let now = self.world.now();
        let since = *self.neglected.get_or_insert(now);
        match neglect {
            true => self.longest_neglect = self.longest_neglect.max(now - since),
            false => self.neglected = None,
        }
    }

    /// Where the operator wants no sessions, none begins and nothing is opened.
    fn note_obedience(&mut self) {
        let snapshot = self.shared.snapshot.load();
        let backends = snapshot.upstreams[0].backends();
        for (backend, before) in backends.iter().zip(&mut self.ordered_out) {
            let state = &backend.state;
            let ordered_out = state.order() != Order::Enabled;
            let now = ordered_out.then(|| (state.load.active.now(), state.open.now()));
            let more =
                |before: (usize, usize), now: (usize, usize)| now.0 > before.0 || now.1 > before.1;
            self.disobeyed |= before
                .zip(now)
                .is_some_and(|(before, now)| more(before, now));
            *before = now;
        }
    }

    /// With everything shut down, nothing may be left.
    fn leaks(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let open = self.world.open_fds();
        if !open.is_empty() {
            broken.push(format!("descriptors are still open: {open:?}"));
        }
        if self.shared.active.now() + self.listener().active.now() > 0 {
            broken.push("sessions are still counted".to_owned());
        }
        let snapshot = self.shared.snapshot.load();
        let mut states = snapshot.upstreams[0]
            .backends()
            .iter()
            .map(|backend| &backend.state);
        if states.any(|state| state.load.active.now() + state.open.now() > 0) {
            broken.push("backends still count sessions".to_owned());
        }
        if snapshot.upstreams[0].waiting() > 0 {
            broken.push("sessions are still counted as waiting".to_owned());
        }
        broken
    }

    fn finish(mut self, mut broken: Vec<String>) -> Outcome {
        if self.disobeyed {
            broken.push("a backend got sessions against orders".to_owned());
        }
        for worker in &self.workers {
            if !worker.is_done() {
                broken.push("a worker was told to drain and did not".to_owned());
            }
            worker.ring().end_tasks();
        }
        self.until(None);
        for worker in &self.workers {
            let usage = worker.ring().usage();
            if usage != Usage::default() {
                broken.push(format!("leaked: {usage:?}"));
            }
        }
        broken.extend(self.leaks());
        broken.extend(self.world.violations());
        let refused = self.listener().closed(Reason::ProcessFull)
            + self.listener().closed(Reason::ListenerFull);
        let closed = Reason::ALL.map(|reason| self.listener().closed(reason));
        let closed: u64 = closed.iter().sum();
        if closed != self.listener().accepted() {
            broken.push(format!(
                "{} accepted, {closed} closed with a reason",
                self.listener().accepted()
            ));
        }
        let sessions = self.queues.records.try_iter().map(|record| *record);
        let backends = self.shared.snapshot.load().upstreams[0].backends().len();
        let addresses: Vec<_> = (0..backends).map(Plan::backend_address).collect();
        let sessions: Vec<_> = sessions.collect();
        self.check_backends(&sessions, &mut broken);
        self.check_ends(&sessions, &mut broken);
        if sessions.len() as u64 != closed {
            broken.push(format!(
                "{closed} sessions ended, {} were told",
                sessions.len()
            ));
        }
        Outcome {
            trace: self.world.trace_hash(),
            clients: self.world.clients(),
            backends: addresses
                .iter()
                .flat_map(|address| self.world.backend_sessions(address))
                .collect(),
            sessions,
            refused,
            most_buffers: self.most_buffers,
            most_sessions: self.most_sessions,
            pipes: self.world.pipes(),
            most_connections: addresses
                .iter()
                .map(|address| self.world.most_connections(address))
                .collect(),
            attempts: addresses
                .iter()
                .map(|address| self.world.attempts(address))
                .collect(),
            turns: self.turns,
            panics: self.panics,
            longest_neglect: self.longest_neglect,
            deaf: Vec::new(),
            told: self.told.take(),
            plan: Plan::quiet(0, Vec::new()),
            broken,
        }
    }
}
