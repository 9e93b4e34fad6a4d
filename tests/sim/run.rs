//! Runs a plan on whole workers and says which promises were broken.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use ringress::proxy::{ListenerSocket, Message, Shared, Worker};
use ringress::ring::sim::{Advance, Ending, EventHandle, PeerRecord, Step, World};
use ringress::ring::{BUFFER_BYTES, Mailbox, Ring, Usage};
use ringress::telemetry::Reason;
use ringress::telemetry::events::{Event, Events, SessionRecord};
use ringress::time::Instant;

use crate::plan::Plan;

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
    /// Clients that read nothing any more, and so never see the end.
    deaf: Vec<bool>,
    broken: Vec<String>,
}

/// The workers, their world, and the strings by which they are pulled.
struct Run {
    world: World,
    workers: Vec<Worker>,
    mailboxes: Vec<(Arc<Mailbox<Message>>, EventHandle)>,
    shared: Arc<Shared>,
    events: Receiver<Event>,
    most_buffers: usize,
    most_sessions: usize,
    turns: usize,
}

pub(crate) fn run(plan: &Plan) -> Outcome {
    let mut run = Run::start(plan);
    let mut broken = Vec::new();
    if let Some(at) = plan.drain_at {
        run.until(Some(Instant::default() + at));
        run.post(Message::Drain);
        run.until(Some(run.world.now() + Duration::from_secs(1)));
        run.post(Message::Abort);
    }
    run.until(None);
    if run.turns >= MOST_TURNS {
        broken.push("it spins".to_owned());
    }
    if plan.drain_at.is_none() {
        broken.extend(run.idle_leaks());
        run.post(Message::Drain);
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
        outcome.check_lively();
    }
    outcome
}

impl Run {
    fn start(plan: &Plan) -> Self {
        let world = World::new(plan.seed, plan.faults.clone());
        world.set_capabilities(plan.capabilities);
        for (index, script) in plan.backends.iter().enumerate() {
            world.backend(&Plan::backend_address(index), script.clone());
        }
        let (sender, events) = Events::new();
        sender.set_sessions(true);
        let shared = Shared::new(&plan.config(), plan.workers, plan.max_connections, sender);
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
            let listeners = [
                ListenerSocket {
                    listener: 0,
                    fd: ip[index],
                    shared: false,
                },
                ListenerSocket {
                    listener: 0,
                    fd: unix[index],
                    shared: true,
                },
            ];
            workers.push(Worker::new(
                ring,
                shared.clone(),
                index,
                &listeners,
                (mailbox, fd),
            ));
        }
        for (index, script) in plan.clients.iter().enumerate() {
            let at = Instant::default() + Duration::from_millis(index as u64 * 7 % 50);
            let unix = index < plan.unix_clients;
            let front = if unix {
                Plan::unix_front()
            } else {
                Plan::front()
            };
            world.client(at, &front, script.clone());
        }
        Self {
            world,
            workers,
            mailboxes,
            shared,
            events,
            most_buffers: 0,
            most_sessions: 0,
            turns: 0,
        }
    }

    fn post(&self, message: Message) {
        for (mailbox, handle) in &self.mailboxes {
            mailbox.post(message);
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
            self.most_sessions = self.most_sessions.max(self.shared.active.now());
            if !self.world.progressed() && self.world.advance() == Advance::Quiet {
                return;
            }
            if end.is_some_and(|end| self.world.now() >= end) {
                return;
            }
        }
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

    fn finish(mut self, mut broken: Vec<String>) -> Outcome {
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
        let open = self.world.open_fds();
        if !open.is_empty() {
            broken.push(format!("descriptors are still open: {open:?}"));
        }
        if self.shared.active.now() + self.shared.listeners[0].active.now() > 0 {
            broken.push("sessions are still counted".to_owned());
        }
        let snapshot = self.shared.snapshot.load();
        if snapshot.upstreams[0]
            .backends()
            .iter()
            .any(|backend| backend.load.active.now() > 0)
        {
            broken.push("backends still count sessions".to_owned());
        }
        broken.extend(self.world.violations());
        let refused = self.shared.closed(0, Reason::ProcessFull)
            + self.shared.closed(0, Reason::ListenerFull);
        let closed: u64 = Reason::ALL
            .iter()
            .map(|reason| self.shared.closed(0, *reason))
            .sum();
        if closed != self.shared.accepted(0) {
            broken.push(format!(
                "{} accepted, {closed} closed with a reason",
                self.shared.accepted(0)
            ));
        }
        let sessions = self.events.try_iter().filter_map(|event| match event {
            Event::SessionClosed(session) => Some(*session),
            Event::AcceptPaused { .. } | Event::ConnectFailed { .. } => None,
        });
        let addresses = (0..snapshot.upstreams[0].backends().len()).map(Plan::backend_address);
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
                .flat_map(|address| self.world.backend_sessions(&address))
                .collect(),
            sessions,
            refused,
            most_buffers: self.most_buffers,
            most_sessions: self.most_sessions,
            pipes: self.world.pipes(),
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
    fn check_lively(&mut self) {
        let in_order = [Reason::ClientClosed, Reason::BackendClosed];
        for session in &self.sessions {
            let nudged = session.duration >= NUDGE;
            if session.backend.is_some() && (nudged || !in_order.contains(&session.reason)) {
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
            | Reason::ListenerFull => {
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
