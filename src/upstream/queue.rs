//! Sessions that wait because every ready backend is full: in order on each worker, bounded over
//! all of them.
//!
//! A bell is how a worker hears that there may be a place: whoever frees one while anybody waits
//! rings one worker that has waiters, and who got a place or gives up passes the bell on, since there
//! may be more. A waiter is counted before it looks for a place, and a place is free before the
//! freeing side looks for waiters; with a full fence in between on both sides one of them sees the other.

use std::cell::Cell;
use std::collections::VecDeque;
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

/// Who waits for an upstream's backends, over all workers.
#[derive(Debug)]
pub(super) struct Line {
    waiting: Occupancy,
    by_worker: Box<[AtomicUsize]>,
    /// The worker that is asked first whether it has waiters.
    turn: AtomicUsize,
    bells: Arc<Bells>,
}

impl Line {
    pub(super) fn new(workers: usize, bells: Arc<Bells>) -> Self {
        Self {
            waiting: Occupancy::default(),
            by_worker: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
            turn: AtomicUsize::new(0),
            bells,
        }
    }

    /// Nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.now() == 0
    }

    /// A place has just become free.
    pub(super) fn note_free(&self) {
        fence(Ordering::SeqCst);
        if !self.is_empty() {
            self.ring_one();
        }
    }

    /// Every worker shall look, those too that only hold places.
    pub(super) fn ring_all(&self) {
        self.bells.ring_all();
    }

    fn ring_one(&self) {
        let workers = self.by_worker.len();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let waits = |worker: &usize| self.by_worker[*worker].load(Ordering::Relaxed) > 0;
        let next = (0..workers)
            .map(|step| turn.wrapping_add(step) % workers)
            .find(waits);
        if let Some(worker) = next {
            self.bells.ring(worker);
        }
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

/// Waits until `look` finds something, in the order in which sessions of this worker came.
pub(super) async fn wait<T>(
    local: &Local,
    ring: &Ring,
    state: &Arc<UpstreamState>,
    queue: config::Queue,
    mut look: impl FnMut() -> Look<T>,
) -> Result<T, Refusal> {
    let place = Place::take(local, ring, state, queue.max)?;
    let deadline = ring.now() + queue.timeout;
    let timer = ring.timer();
    poll_fn(|_| {
        let again = match place.is_first() {
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
    local: &'a Local,
    state: &'a Arc<UpstreamState>,
    ticket: u64,
    /// It was the first once: nobody can come before it again.
    first: Cell<bool>,
}

impl<'a> Place<'a> {
    fn take(
        local: &'a Local,
        ring: &Ring,
        state: &'a Arc<UpstreamState>,
        most: usize,
    ) -> Result<Self, Refusal> {
        if !state.line.waiting.enter(most) {
            return Err(Refusal::QueueFull);
        }
        state.line.by_worker[local.worker()].fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        Ok(Self {
            local,
            state,
            ticket: local.lines().join(state, ring.waker()),
            first: Cell::new(false),
        })
    }

    fn is_first(&self) -> bool {
        if !self.first.get() {
            self.first
                .set(self.local.lines().first(self.state) == Some(self.ticket));
        }
        self.first.get()
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let line = &self.state.line;
        line.by_worker[self.local.worker()].fetch_sub(1, Ordering::Relaxed);
        line.waiting.leave();
        // There may be more places, or the bell was meant for this one.
        match self.local.lines().leave(self.state, self.ticket) {
            Some(next) => next.wake(),
            None => line.note_free(),
        }
    }
}

/// The lines of one worker.
#[derive(Default)]
pub(super) struct Lines {
    lines: Vec<(Arc<UpstreamState>, Tickets)>,
    tickets: u64,
}

/// In the order in which they came.
type Tickets = VecDeque<(u64, Waker)>;

impl Lines {
    fn place(&self, state: &Arc<UpstreamState>) -> Option<usize> {
        self.lines.iter().position(|(of, _)| Arc::ptr_eq(of, state))
    }

    fn join(&mut self, state: &Arc<UpstreamState>, waker: Waker) -> u64 {
        self.tickets += 1;
        let place = self.place(state).unwrap_or_else(|| {
            self.lines.push((state.clone(), Tickets::default()));
            self.lines.len() - 1
        });
        self.lines[place].1.push_back((self.tickets, waker));
        self.tickets
    }

    fn first(&self, state: &Arc<UpstreamState>) -> Option<u64> {
        let (_, line) = &self.lines[self.place(state)?];
        line.front().map(|(ticket, _)| *ticket)
    }

    /// Leaves the line; the one that is first now, if there is one.
    fn leave(&mut self, state: &Arc<UpstreamState>, ticket: u64) -> Option<Waker> {
        let place = self.place(state)?;
        let line = &mut self.lines[place].1;
        line.retain(|(waiting, _)| *waiting != ticket);
        let next = line.front().map(|(_, waker)| waker.clone());
        if next.is_none() {
            self.lines.swap_remove(place);
        }
        next
    }

    /// The bell was rung: whoever is first shall look.
    pub(super) fn wake_first(&self) {
        for (_, line) in &self.lines {
            if let Some((_, waker)) = line.front() {
                waker.wake();
            }
        }
    }
}
