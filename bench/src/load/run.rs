//! A run: connect, warm up, count between two edges, wait for what is still due, let go.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use ringress::ring::Ring;
use ringress::time::Instant;
use rustix::time::{ClockId, clock_gettime};

use super::kept::Lane;
use super::outcome::{Latency, Outcome};
use super::{Edge, Plan, Work, download, fresh, kept};
use crate::error::Error;
use crate::pattern::{self, Pattern};
use crate::schedule::Schedule;

/// How long all connections together may take to be there.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How long requests that were due are waited for after the end: longer than the longest stall that
/// anybody would call one.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
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
    errors: u64,
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
            Work::Saturate { size } | Work::Rate { size, .. } | Work::NewConnections { size } => {
                size.max(1)
            }
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
        let now = self.ring.now();
        let completed = self.is_counted(now);
        let timed = match self.rhythm.get() {
            Some(Rhythm::Open { .. }) => self.is_counted(meant),
            _ => completed,
        };
        let mut tally = self.tally.borrow_mut();
        tally.completed += u64::from(completed);
        if timed {
            tally.latency.record(now - meant);
        }
    }

    /// A request that was meant to go out at `meant` will not have an answer.
    fn given_up(&self, meant: Instant) {
        if self.is_counted(meant) {
            let mut tally = self.tally.borrow_mut();
            tally.unanswered += 1;
            tally.latency.record(self.ring.now() - meant);
        }
    }

    /// The generator got round to a request that is due since `due`; its connection may be busy.
    fn handed_over(&self, due: Instant) {
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
    pub(super) fn failed(&self) {
        if !self.ended.get() {
            self.tally.borrow_mut().errors += 1;
        }
    }

    /// A connection could not be had.
    pub(super) fn refused(&self, error: io::Error) {
        self.failed();
        self.tally.borrow_mut().refused.get_or_insert(error);
    }

    /// A task has ended.
    pub(super) fn task_ended(&self) {
        self.alive.set(self.alive.get() - 1);
    }

    fn turn(&self, latest: Instant) -> Result<(), Error> {
        self.ring
            .turn_until(Some(latest))
            .map_err(Error::while_doing("turning the ring"))
    }
}

/// Carries out `plan`. `observe` is called when counting starts and when it ends.
///
/// # Errors
/// The target can't be connected to, or the ring can't be used any more.
pub fn run(ring: &Ring, plan: &Plan, observe: &mut dyn FnMut(Edge)) -> Result<Outcome, Error> {
    let run = Run::new(ring, plan);
    run.alive.set(plan.connections);
    let lanes = begin_tasks(&run);
    let measured = wait_connected(&run).and_then(|()| measure(&run, &lanes, observe));
    run.ended.set(true);
    ring.wake_all();
    let patience = ring.now() + END_PATIENCE;
    while run.alive.get() > 0 && ring.now() < patience {
        run.turn(patience)?;
    }
    let (elapsed, own_cpu) = measured?;
    let tally = run.tally.take();
    Ok(Outcome {
        completed: tally.completed,
        errors: tally.errors,
        unanswered: tally.unanswered,
        bytes: tally.bytes,
        elapsed,
        own_cpu,
        latency: tally.latency,
        lateness: tally.lateness,
    })
}

fn begin_tasks(run: &Rc<Run>) -> Vec<Rc<Lane>> {
    let mut lanes = Vec::new();
    for number in 0..run.plan.connections as u64 {
        match run.plan.work {
            Work::Saturate { .. } | Work::Rate { .. } => {
                let lane = Rc::new(Lane::new(number));
                lanes.push(Rc::clone(&lane));
                run.ring.spawn(kept::lane(Rc::clone(run), lane));
            }
            Work::NewConnections { .. } => run.ring.spawn(fresh::visits(Rc::clone(run), number)),
            Work::Download { bytes } => {
                run.ring
                    .spawn(download::downloads(Rc::clone(run), number, bytes));
            }
        }
    }
    lanes
}

/// Waits until every connection is there; one that can't be had ends the run. Work that makes its
/// own connections has nothing to wait for.
fn wait_connected(run: &Run) -> Result<(), Error> {
    let patience = run.ring.now() + CONNECT_PATIENCE;
    let expected = match run.plan.work {
        Work::NewConnections { .. } => 0,
        _ => run.plan.connections,
    };
    while run.connected.get() < expected {
        run.turn(patience)?;
        if let Some(error) = run.tally.borrow_mut().refused.take() {
            let doing = format!("connecting to {}", run.plan.target);
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
    run: &Run,
    lanes: &[Rc<Lane>],
    observe: &mut dyn FnMut(Edge),
) -> Result<(Duration, Duration), Error> {
    let start = run.ring.now();
    let begin = start + run.plan.warmup;
    let end = begin + run.plan.duration;
    run.rhythm.set(Some(match run.plan.work {
        Work::Rate { per_second, .. } => Rhythm::Open {
            schedule: Schedule::new(start, per_second),
            last: end,
        },
        _ => Rhythm::Closed,
    }));
    run.ring.wake_all();
    let mut pacer = Pacer { next: 0 };
    pacer.drive(run, lanes, begin)?;
    observe(Edge::Begin);
    let cpu = thread_cpu();
    run.begin.set(run.edge(begin));
    pacer.drive(run, lanes, end)?;
    run.end.set(run.edge(end));
    let elapsed = run.end.get() - run.begin.get();
    let own_cpu = thread_cpu().saturating_sub(cpu);
    observe(Edge::End);
    pacer.hand_over(run, lanes);
    await_answers(run, lanes)?;
    Ok((elapsed, own_cpu))
}

impl Run {
    /// Where an edge lies that was planned for `planned`: a closed loop counts what it sees from now
    /// on, an open one what was due from then on.
    fn edge(&self, planned: Instant) -> Instant {
        match self.rhythm.get() {
            Some(Rhythm::Open { .. }) => planned,
            _ => self.ring.now(),
        }
    }
}

/// Waits for what was due before the end and has no answer yet.
fn await_answers(run: &Run, lanes: &[Rc<Lane>]) -> Result<(), Error> {
    if !matches!(run.rhythm.get(), Some(Rhythm::Open { .. })) {
        return Ok(());
    }
    let patience = run.ring.now() + ANSWER_PATIENCE;
    while lanes.iter().any(|lane| lane.is_due(run)) && run.ring.now() < patience {
        run.turn(patience)?;
    }
    for lane in lanes {
        lane.open_requests(run, |meant| run.given_up(meant));
    }
    Ok(())
}

/// Hands due requests to their connections.
struct Pacer {
    /// The first request that was not handed over yet.
    next: u64,
}

impl Pacer {
    /// Turns until `until`.
    fn drive(&mut self, run: &Run, lanes: &[Rc<Lane>], until: Instant) -> Result<(), Error> {
        while run.ring.now() < until {
            let next = self.hand_over(run, lanes).unwrap_or(until);
            run.turn(next.min(until))?;
        }
        Ok(())
    }

    /// Tells each connection that has become due; returns when the next one will be.
    fn hand_over(&mut self, run: &Run, lanes: &[Rc<Lane>]) -> Option<Instant> {
        let Some(Rhythm::Open { schedule, .. }) = run.rhythm.get() else {
            return None;
        };
        let now = run.ring.now();
        loop {
            let due = schedule.due(self.next);
            if due > now {
                return Some(due);
            }
            run.handed_over(due);
            lanes[(self.next % lanes.len() as u64) as usize].advance(run);
            self.next += 1;
        }
    }
}

/// CPU time of this thread so far.
fn thread_cpu() -> Duration {
    #[expect(
        clippy::disallowed_methods,
        reason = "CPU time is what is measured, and no driver knows it"
    )]
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}
