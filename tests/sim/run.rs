//! Runs a plan on whole workers and says which promises were broken.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use ringress::policy::health;
use ringress::proxy::{BindingId, ListenerSocket, ListenerState, Message, Shared, Worker};
use ringress::ring::listen::Transport;
use ringress::ring::sim::{Advance, Ending, EventHandle, PeerRecord, Step, World};
use ringress::ring::{BUFFER_BYTES, Mailbox, Ring, Usage};
use ringress::telemetry::Reason;
use ringress::telemetry::events::{Event, Events, SessionRecord};
use ringress::time::Instant;
use ringress::upstream::{Backend, Bell, Order};

use crate::plan::{Plan, Turn};

/// Turns after which a run is taken to spin.
const MOST_TURNS: usize = 3_000_000;

/// When the idle timer looks after a session for the first time: half of the plans' `idle`.
const NUDGE: Duration = Duration::from_secs(30);

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
    /// The longest time that a place was free beside somebody who waited.
    pub(crate) longest_neglect: Duration,
    /// Clients that read nothing any more, and so never see the end.
    deaf: Vec<bool>,
    broken: Vec<String>,
}

/// The workers, their world, and the strings by which they are pulled.
struct Run {
    world: World,
    workers: Vec<Worker>,
    mailboxes: Vec<(Arc<Mailbox<Message>>, EventHandle)>,
    /// By worker: somebody has rung.
    rung: Vec<Arc<AtomicBool>>,
    shared: Arc<Shared>,
    events: Receiver<Event>,
    cap: usize,
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
fn world(plan: &Plan) -> World {
    let world = World::new(plan.seed, plan.faults.clone());
    world.set_capabilities(plan.capabilities);
    for (index, script) in plan.backends.iter().enumerate() {
        let address = Plan::backend_address(index);
        world.backend(&address, script.clone());
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
        world.client(at, &front, script.clone());
    }
    world
}

impl Run {
    fn start(plan: &Plan) -> Self {
        let world = world(plan);
        let (sender, events) = Events::new();
        sender.set_sessions(true);
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
            workers,
            mailboxes,
            rung,
            shared,
            events,
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

    /// Turns until nothing will ever happen again, or until `end`.
    fn until(&mut self, end: Option<Instant>) {
        while self.turns < MOST_TURNS {
            self.turns += 1;
            for worker in &self.workers {
                worker.turn().expect("a simulated ring does not fail");
                self.most_buffers = self.most_buffers.max(worker.ring().usage().buffers);
            }
            for (rung, (_, handle)) in self.rung.iter().zip(&self.mailboxes) {
                if rung.swap(false, Ordering::Relaxed) {
                    handle.signal();
                }
            }
            self.most_sessions = self.most_sessions.max(self.shared.active.now());
            self.note_neglect();
            self.note_obedience();
            if !self.world.progressed() && self.world.advance() == Advance::Quiet {
                return;
            }
            if end.is_some_and(|end| self.world.now() >= end) {
                return;
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
            buffers: 0,
            timers: 0,
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
        let closed: u64 = Reason::ALL
            .iter()
            .map(|reason| self.listener().closed(*reason))
            .sum();
        if closed != self.listener().accepted() {
            broken.push(format!(
                "{} accepted, {closed} closed with a reason",
                self.listener().accepted()
            ));
        }
        let sessions = self.events.try_iter().filter_map(|event| match event {
            Event::SessionClosed(session) => Some(*session),
            _ => None,
        });
        let backends = self.shared.snapshot.load().upstreams[0].backends().len();
        let addresses: Vec<_> = (0..backends).map(Plan::backend_address).collect();
        let sessions: Vec<_> = sessions.collect();
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
            longest_neglect: self.longest_neglect,
            deaf: Vec::new(),
            broken,
        }
    }
}

impl Outcome {
    pub(crate) fn sessions_of(&self, reason: Reason) -> usize {
        self.sessions
            .iter()
            .filter(|session| session.reason == reason)
            .count()
    }

    /// With scripts that come to their end, every session that got a backend does, in order, and
    /// without the idle timer having to nudge it on.
    fn check_lively(&mut self, longest: Duration) {
        // A connection ahead may have to be let go of first, and a descriptor to be waited for.
        if self.longest_neglect > Duration::from_millis(200) {
            let neglect = self.longest_neglect;
            self.broken
                .push(format!("a place was free beside a waiter for {neglect:?}"));
        }
        let in_order = [Reason::ClientClosed, Reason::BackendClosed];
        for session in &self.sessions {
            let nudged = session.duration >= longest;
            let turned_away = matches!(session.reason, Reason::QueueFull | Reason::QueueTimeout);
            let served = session.backend.is_some();
            if turned_away || served && (nudged || !in_order.contains(&session.reason)) {
                self.broken
                    .push(format!("nothing stalled, and yet: {session:?}"));
            }
        }
    }

    /// Everything that must hold of any run, said where it does not.
    pub(crate) fn broken_promises(&self) -> Vec<String> {
        let mut broken = self.broken.clone();
        let sessions = self.sessions_by_client(&mut broken);
        for (client, deaf) in self.clients.iter().zip(&self.deaf) {
            if client.ending == Ending::Open && !deaf {
                broken.push(format!("client {:?} never ended", client.stream));
            }
            if !client.intact {
                broken.push(format!("client {:?} heard wrong bytes", client.stream));
            }
            let session = client.local.and_then(|local| sessions.get(&local));
            if let Some(session) = session {
                self.check_session(client, session, &mut broken);
            }
        }
        for backend in self.backends.iter().filter(|backend| !backend.intact) {
            broken.push(format!(
                "the backend of {:?} heard wrong bytes",
                backend.stream
            ));
        }
        broken
    }

    fn sessions_by_client(&self, broken: &mut Vec<String>) -> BTreeMap<SocketAddr, &SessionRecord> {
        let mut sessions = BTreeMap::new();
        for session in &self.sessions {
            if let Some(client) = session.client
                && sessions.insert(client, session).is_some()
            {
                broken.push(format!("the session of {client} ended twice"));
            }
        }
        sessions
    }

    /// What a session's reason promises about its two ends.
    fn check_session(
        &self,
        client: &PeerRecord,
        session: &SessionRecord,
        broken: &mut Vec<String>,
    ) {
        let backend = self
            .backends
            .iter()
            .find(|backend| backend.stream == client.stream);
        let mut claim = |holds: bool, what: &str| {
            if !holds {
                broken.push(format!(
                    "{what}\n  {session:?}\n  {client:?}\n  {backend:?}"
                ));
            }
        };
        match session.reason {
            Reason::ClientClosed | Reason::BackendClosed => {
                // Who closed or reset its end by itself may have left bytes unread.
                let whole = |from: &PeerRecord, to: &PeerRecord| {
                    to.received == from.sent
                        || matches!(to.ending, Ending::Closed | Ending::Aborted)
                };
                let delivered =
                    backend.is_none_or(|backend| whole(client, backend) && whole(backend, client));
                claim(
                    delivered,
                    "closed in order, but not every byte was delivered",
                );
            }
            Reason::NoBackend
            | Reason::ConnectTimeout
            | Reason::ProcessFull
            | Reason::ListenerFull
            | Reason::Denied
            | Reason::RateLimit
            | Reason::ClientRateLimit
            | Reason::QueueFull
            | Reason::QueueTimeout => {
                claim(!client.saw_fin, "refused, but the client saw a clean end");
            }
            // A backend's FIN may have come before the cut; then it came after all its bytes.
            Reason::BackendReset | Reason::Drained => {
                let whole = backend.is_none_or(|backend| client.received == backend.sent);
                claim(
                    !client.saw_fin || whole,
                    "cut off, but the client saw a clean end",
                );
            }
            Reason::ClientReset => {
                let truncated = backend.is_some_and(|backend| {
                    backend.ending == Ending::Fin && backend.received < client.sent
                });
                claim(
                    !truncated,
                    "the client reset, but the backend saw a clean end",
                );
            }
            _ => {}
        }
        claim(
            client.received <= session.bytes_sent,
            "the client heard more than was sent",
        );
    }
}
