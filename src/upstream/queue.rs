//! Sessions that wait because every ready backend is full: in order on each worker, bounded over
//! all of them.
//!
//! Not every waiter can use every place: one that retries has tried some backends, and one from before a
//! reload goes by other caps. Such a waiter is *choosy*: it keeps its place in the line, and who comes after
//! it may look, too.
//!
//! A bell is how a worker hears that there may be a place: whoever frees one while anybody waits
//! rings one worker that has waiters (and each that has choosy ones), and who got a place or gives up
//! passes the bell on, since there may be more. A waiter is counted before it looks for a place, and a place is free before the
//! freeing side looks for waiters; with a full fence in between on both sides one of them sees the other.

use std::cell::Cell;
use std::fmt;
use std::future::poll_fn;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use super::local::Local;
use super::state::UpstreamState;
use crate::config;
use crate::policy::admission::Occupancy;
use crate::ring::{Ring, Waker};
use crate::time::Instant;

/// Signals one worker.
pub type Bell = Box<dyn Fn() + Send + Sync>;

/// The bells of all workers; silent until they are hung.
#[derive(Default)]
pub struct Bells(OnceLock<Box<[Bell]>>);

impl Bells {
    /// Gives every worker its bell, in their order. Once.
    pub fn hang(&self, bells: impl IntoIterator<Item = Bell>) {
        let hung = self.0.set(bells.into_iter().collect());
        debug_assert!(hung.is_ok(), "the bells hang already");
    }

    fn ring(&self, worker: usize) {
        if let Some(bell) = self.0.get().and_then(|bells| bells.get(worker)) {
            bell();
        }
    }

    /// Every worker is to look again.
    pub fn ring_all(&self) {
        self.0.get().into_iter().flatten().for_each(|bell| bell());
    }
}

impl fmt::Debug for Bells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bells", self.0.get().map_or(0, |bells| bells.len()))
    }
}

/// How many wait on one worker.
#[derive(Debug, Default)]
struct Waiters {
    plain: AtomicUsize,
    choosy: AtomicUsize,
}

impl Waiters {
    fn of(&self, choosy: bool) -> &AtomicUsize {
        if choosy { &self.choosy } else { &self.plain }
    }
}

/// Who waits for an upstream's backends, over all workers.
#[derive(Debug)]
pub(super) struct Line {
    waiting: Occupancy,
    by_worker: Box<[Waiters]>,
    /// The worker that is asked first whether it has waiters.
    turn: AtomicUsize,
    bells: Arc<Bells>,
}

impl Line {
    pub(super) fn new(workers: usize, bells: Arc<Bells>) -> Self {
        Self {
            waiting: Occupancy::default(),
            by_worker: (0..workers).map(|_| Waiters::default()).collect(),
            turn: AtomicUsize::new(0),
            bells,
        }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.now()
    }

    /// Nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A place has just become free.
    pub(super) fn note_free(&self) {
        fence(Ordering::SeqCst);
        if self.is_empty() {
            return;
        }
        let workers = self.by_worker.len();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let has =
            |worker: usize, choosy| self.by_worker[worker].of(choosy).load(Ordering::Relaxed) > 0;
        let next = (0..workers)
            .map(|step| turn.wrapping_add(step) % workers)
            .find(|worker| has(*worker, false));
        for worker in 0..workers {
            if Some(worker) == next || has(worker, true) {
                self.bells.ring(worker);
            }
        }
    }

    /// Every worker shall look, those too that only hold places.
    pub(super) fn ring_all(&self) {
        self.bells.ring_all();
    }
}

/// Why a session stopped waiting without a place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// As many wait as may.
    QueueFull,
    /// It has waited for as long as it may.
    TimedOut,
}

/// What a look for a place found.
pub(super) enum Look<T> {
    Found(T),
    /// Not yet; to be looked again at this time at the latest.
    NotYet(Option<Instant>),
}

/// Who comes to wait.
#[derive(Clone, Copy)]
pub(super) struct Waiter<'a> {
    pub(super) local: &'a Local,
    pub(super) ring: &'a Ring,
    pub(super) state: &'a Arc<UpstreamState>,
    pub(super) queue: config::Queue,
    /// Tells generations apart.
    pub(super) generation: usize,
    /// It can't use every place.
    pub(super) choosy: bool,
}

/// Waits until `look` finds something, in the order in which sessions of this worker came.
pub(super) async fn wait<T>(
    waiter: Waiter<'_>,
    mut look: impl FnMut() -> Look<T>,
) -> Result<T, Refusal> {
    let Waiter { ring, queue, .. } = waiter;
    let place = Place::take(waiter)?;
    let deadline = ring.now() + queue.timeout;
    let timer = ring.timer();
    poll_fn(|_| {
        let again = match place.may_look() {
            false => None,
            true => match look() {
                Look::Found(found) => return Poll::Ready(Ok(found)),
                Look::NotYet(again) => again,
            },
        };
        if ring.now() >= deadline {
            return Poll::Ready(Err(Refusal::TimedOut));
        }
        timer.set(again.map_or(deadline, |again| again.min(deadline)));
        Poll::Pending
    })
    .await
}

/// A session's place in its worker's line, until it goes.
struct Place<'a> {
    waiter: Waiter<'a>,
    ticket: u64,
    /// It might look once: nobody who would be in its way can come before it again.
    may_look: Cell<bool>,
}

impl<'a> Place<'a> {
    fn take(waiter: Waiter<'a>) -> Result<Self, Refusal> {
        let line = &waiter.state.line;
        if !line.waiting.enter(waiter.queue.max) {
            return Err(Refusal::QueueFull);
        }
        let waiters = &line.by_worker[waiter.local.worker()];
        waiters.of(waiter.choosy).fetch_add(1, Ordering::Relaxed);
        let (ticket, older) = waiter.local.lines().join(&waiter);
        waiters.choosy.fetch_add(older, Ordering::Relaxed);
        waiters.plain.fetch_sub(older, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        Ok(Self {
            waiter,
            ticket,
            may_look: Cell::new(false),
        })
    }

    fn may_look(&self) -> bool {
        if !self.may_look.get() {
            let lines = self.waiter.local.lines();
            self.may_look
                .set(lines.may_look(self.waiter.state, self.ticket));
        }
        self.may_look.get()
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Waiter { local, state, .. } = self.waiter;
        let left = local.lines().leave(state, self.ticket);
        let waiters = &state.line.by_worker[local.worker()];
        waiters.of(left.was_choosy).fetch_sub(1, Ordering::Relaxed);
        state.line.waiting.leave();
        // There may be more places, or the bell was meant for this one.
        left.looking.iter().for_each(Waker::wake);
        if !left.somebody_takes_any {
            state.line.note_free();
        }
    }
}
