//! A run: connect, warm up, count between two edges, wait for what is still due, let go.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use ringress::ring::Ring;
use ringress::time::Instant;
use rustix::time::{ClockId, clock_gettime};

use super::kept::Lane;
use super::loss::Losses;
use super::outcome::{Latency, Outcome};
use super::pacer::Pacer;
use super::{Edge, Plan, Work, download, fresh, kept};
use crate::error::Error;
use crate::pattern::{self, Pattern};
use crate::schedule::Schedule;

/// How long all connections together may take to be there.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How long requests that were due are waited for after the end: longer than the longest stall that
/// anybody would call one, and than a visit takes to give up.
const ANSWER_PATIENCE: Duration = Duration::from_secs(6);
/// How long letting go may take; connecting, which nothing interrupts, has its own timeout.
const END_PATIENCE: Duration = Duration::from_secs(6);

/// What the tasks of a run share.
pub(super) struct Run {
    pub(super) ring: Ring,
    pub(super) plan: Plan,
    pub(super) request: Rc<[u8]>,
    pub(super) pattern: Pattern,
    /// Set once all connections are there: tasks that hold one may begin.
    pub(super) rhythm: Cell<Option<Rhythm>>,
    pub(super) ended: Cell<bool>,
    /// Connections that were there once.
    pub(super) connected: Cell<usize>,
    /// Tasks that have not ended.
    alive: Cell<usize>,
    begin: Cell<Instant>,
    end: Cell<Instant>,
    tally: RefCell<Tally>,
}

/// When a connection may send its next request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rhythm {
    /// When it has the last answer.
    Closed,
    /// When the schedule says so; not after the last due time.
    Open { schedule: Schedule, last: Instant },
}

#[derive(Default)]
struct Tally {
    completed: u64,
    losses: Losses,
    unanswered: u64,
    bytes: u64,
    latency: Latency,
    lateness: Latency,
    refused: Option<io::Error>,
}

/// An instant that never comes: the edges' place before they are reached.
const NEVER: Instant = Instant::from_nanos(u64::MAX);

impl Run {
    fn new(ring: &Ring, plan: &Plan) -> Rc<Self> {
        let size = match plan.work {
            Work::Saturate { size }
            | Work::Rate { size, .. }
            | Work::NewConnections { size }
            | Work::NewConnectionsAtRate { size, .. } => size.max(1),
            Work::Download { .. } => 1,
        };
        Rc::new(Self {
            ring: ring.clone(),
            plan: plan.clone(),
            request: pattern::bytes(size),
            pattern: Pattern::new(),
            rhythm: Cell::new(None),
            ended: Cell::new(false),
            connected: Cell::new(0),
            alive: Cell::new(0),
            begin: Cell::new(NEVER),
            end: Cell::new(NEVER),
            tally: RefCell::default(),
        })
    }

    fn is_counted(&self, at: Instant) -> bool {
        self.begin.get() <= at && at < self.end.get()
    }

    /// A request that was meant to go out at `meant` has its answer now.
    pub(super) fn answered(&self, meant: Instant) {
        self.answered_at(meant, self.ring.now());
    }

    /// A request that was meant to go out at `meant` had its answer at `answered`.
    pub(super) fn answered_at(&self, meant: Instant, answered: Instant) {
        let completed = self.is_counted(answered);
        let timed = match self.rhythm.get() {
            Some(Rhythm::Open { .. }) => self.is_counted(meant),
            _ => completed,
        };
        let mut tally = self.tally.borrow_mut();
        tally.completed += u64::from(completed);
        if timed {
            tally.latency.record(answered - meant);
        }
    }

    /// A request that was meant to go out at `meant` will not have an answer.
    pub(super) fn given_up(&self, meant: Instant) {
        if self.is_counted(meant) {
            let mut tally = self.tally.borrow_mut();
            tally.unanswered += 1;
            tally.latency.record(self.ring.now() - meant);
        }
    }

    /// The generator got round to a request that is due since `due`; its connection may be busy.
    pub(super) fn handed_over(&self, due: Instant) {
        if self.is_counted(due) {
            let late = self.ring.now() - due;
            self.tally.borrow_mut().lateness.record(late);
        }
    }

    /// Bytes of an answer came.
    pub(super) fn received(&self, bytes: u64) {
        if self.is_counted(self.ring.now()) {
            self.tally.borrow_mut().bytes += bytes;
        }
    }

    /// A connection failed, or an answer was wrong. An error in the warm-up counts as well.
    pub(super) fn lost(&self, error: &io::Error) {
        if !self.ended.get() {
            self.tally.borrow_mut().losses.count(error);
        }
    }

    /// A connection that was due at `due` is lost. Whoever waited in vain has waited.
    pub(super) fn visit_lost(&self, due: Instant, error: &io::Error) {
        self.lost(error);
        if error.kind() == io::ErrorKind::TimedOut && self.is_counted(due) {
            let waited = self.ring.now() - due;
            self.tally.borrow_mut().latency.record(waited);
        }
    }

    /// A connection could not be had.
    pub(super) fn refused(&self, error: io::Error) {
        self.lost(&error);
        self.tally.borrow_mut().refused.get_or_insert(error);
    }

    /// A task begins.
    pub(super) fn task_begins(&self) {
        self.alive.set(self.alive.get() + 1);
    }

    /// A task has ended.
    pub(super) fn task_ended(&self) {
        self.alive.set(self.alive.get() - 1);
    }

    /// A task has not ended.
    pub(super) fn is_alive(&self) -> bool {
        self.alive.get() > 0
    }

    /// What was counted.
    fn outcome(&self, (elapsed, own_cpu): (Duration, Duration)) -> Outcome {
        let tally = self.tally.take();
        Outcome {
            completed: tally.completed,
            errors: tally.losses.total(),
            losses: tally.losses,
            unanswered: tally.unanswered,
            bytes: tally.bytes,
            elapsed,
            own_cpu,
            latency: tally.latency,
            lateness: tally.lateness,
        }
    }
}

/// Carries out `plan`. `observe` is called when counting starts and when it ends.
///
/// # Errors
/// The target can't be connected to, or the ring can't be used any more.
pub fn run(ring: &Ring, plan: &Plan, observe: &mut dyn FnMut(Edge)) -> Result<Outcome, Error> {
    let mut outcomes = run_all(ring, std::slice::from_ref(plan), observe)?;
    Ok(outcomes.remove(0))
}

/// Carries out `plans` at the same time; the first says how long. Each has an outcome of its own, with
/// the CPU time of all.
///
/// # Errors
/// As [`run`].
pub fn run_all(
    ring: &Ring,
    plans: &[Plan],
    observe: &mut dyn FnMut(Edge),
) -> Result<Vec<Outcome>, Error> {
    let mut pacers: Vec<Pacer> = plans.iter().map(|plan| begin(ring, plan)).collect();
    let connected = pacers
        .iter()
        .try_for_each(|pacer| wait_connected(&pacer.run));
    let measured = connected.and_then(|()| measure(ring, &mut pacers, observe));
    for pacer in &pacers {
        pacer.run.ended.set(true);
    }
    ring.wake_all();
    let patience = ring.now() + END_PATIENCE;
    while pacers.iter().any(|pacer| pacer.run.is_alive()) && ring.now() < patience {
        turn(ring, patience)?;
    }
    let measured = measured?;
    Ok(pacers.iter().map(|it| it.run.outcome(measured)).collect())
}

fn begin(ring: &Ring, plan: &Plan) -> Pacer {
    let run = Run::new(ring, plan);
    let count = match plan.work {
        Work::NewConnectionsAtRate { .. } => 0,
        _ => plan.connections as u64,
    };
    let mut lanes = Vec::new();
    for number in 0..count {
        run.task_begins();
        match plan.work {
            Work::Saturate { .. } | Work::Rate { .. } => {
                let lane = Rc::new(Lane::new(number));
                lanes.push(Rc::clone(&lane));
                ring.spawn(kept::lane(Rc::clone(&run), lane));
            }
            Work::NewConnections { .. } => ring.spawn(fresh::visits(Rc::clone(&run), number)),
            Work::NewConnectionsAtRate { .. } => {}
            Work::Download { bytes } => {
                ring.spawn(download::downloads(Rc::clone(&run), number, bytes));
            }
        }
    }
    Pacer::new(run, lanes)
}

/// Waits until every connection is there; one that can't be had ends the run. Work that makes its
/// own connections has nothing to wait for.
fn wait_connected(run: &Run) -> Result<(), Error> {
    let patience = run.ring.now() + CONNECT_PATIENCE;
    let expected = match run.plan.work {
        Work::NewConnections { .. } | Work::NewConnectionsAtRate { .. } => 0,
        _ => run.plan.connections,
    };
    while run.connected.get() < expected {
        turn(&run.ring, patience)?;
        if let Some(error) = run.tally.borrow_mut().refused.take() {
            let doing = format!("connecting to {}", run.plan.target.address);
            return Err(Error::System { doing, error });
        }
        if run.ring.now() >= patience {
            let there = run.connected.get();
            let text = format!("only {there} of {expected} connections after 10 s");
            return Err(Error::Failed(text));
        }
    }
    Ok(())
}

/// From the first request to the last answer; returns the time between the edges and the CPU time
/// of this thread between them.
fn measure(
    ring: &Ring,
    pacers: &mut [Pacer],
    observe: &mut dyn FnMut(Edge),
) -> Result<(Duration, Duration), Error> {
    let plan = pacers[0].run.plan.clone();
    let start = ring.now();
    let begin = start + plan.warmup;
    let end = begin + plan.duration;
    for pacer in pacers.iter() {
        pacer.run.start(start, end);
    }
    ring.wake_all();
    drive(ring, pacers, begin)?;
    observe(Edge::Begin);
    let cpu = thread_cpu();
    for pacer in pacers.iter() {
        pacer.run.begin.set(pacer.run.edge(begin));
    }
    drive(ring, pacers, end)?;
    for pacer in pacers.iter() {
        pacer.run.end.set(pacer.run.edge(end));
    }
    let elapsed = pacers[0].run.end.get() - pacers[0].run.begin.get();
    let own_cpu = thread_cpu().saturating_sub(cpu);
    observe(Edge::End);
    await_answers(ring, pacers)?;
    Ok((elapsed, own_cpu))
}

impl Run {
    /// Requests may go out from now on; those that have a schedule from `start` to `end`.
    fn start(&self, start: Instant, end: Instant) {
        self.rhythm.set(Some(match self.plan.work {
            Work::Rate { per_second, .. } | Work::NewConnectionsAtRate { per_second, .. } => {
                Rhythm::Open {
                    schedule: Schedule::new(start, per_second),
                    last: end,
                }
            }
            _ => Rhythm::Closed,
        }));
    }

    /// Where an edge lies that was planned for `planned`: a closed loop counts what it sees from now
    /// on, an open one what was due from then on.
    fn edge(&self, planned: Instant) -> Instant {
        match self.rhythm.get() {
            Some(Rhythm::Open { .. }) => planned,
            _ => self.ring.now(),
        }
    }
}

/// Turns until `until`, and hands over what becomes due meanwhile.
fn drive(ring: &Ring, pacers: &mut [Pacer], until: Instant) -> Result<(), Error> {
    while ring.now() < until {
        let next = pacers.iter_mut().filter_map(Pacer::hand_over).min();
        turn(ring, next.map_or(until, |next| next.min(until)))?;
    }
    Ok(())
}

/// Waits for what was due before the end and has no answer yet.
fn await_answers(ring: &Ring, pacers: &mut [Pacer]) -> Result<(), Error> {
    for pacer in pacers.iter_mut() {
        pacer.hand_over();
    }
    let patience = ring.now() + ANSWER_PATIENCE;
    while pacers.iter().any(Pacer::is_due) && ring.now() < patience {
        turn(ring, patience)?;
    }
    pacers.iter().for_each(Pacer::give_up);
    Ok(())
}

fn turn(ring: &Ring, latest: Instant) -> Result<(), Error> {
    ring.turn_until(Some(latest))
        .map_err(Error::while_doing("turning the ring"))
}

/// CPU time of this thread so far.
pub(crate) fn thread_cpu() -> Duration {
    #[expect(
        clippy::disallowed_methods,
        reason = "CPU time is what is measured, and no driver knows it"
    )]
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}
