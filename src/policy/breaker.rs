//! The circuit breaker of a backend: it stops traffic to it by the share of failures among recent
//! results, and lets a few sessions try before it allows all again. It owns that state, exact over all
//! workers; what a failure is and whom to tell of a transition is its users' matter.

mod image;
mod stage;

use std::num::NonZeroU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub use self::image::{Image, Kind};
use self::stage::{PLACES_MOST, Stage, State};
use super::atomic::AtomicU64;
use super::share::Share;
use super::window::{Counts, Slice, Window};
use crate::time::Instant;

/// `[upstreams.NAME.circuit_breaker]`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Failures among the results of the window that open it; above 0.
    pub failure_ratio: Share,
    /// Results in the window below which it stays closed.
    pub min_requests: NonZeroU32,
    /// What the ratio is taken over.
    pub window: Duration,
    /// How long it stays open.
    pub open_for: Duration,
    /// Sessions that try the backend before it closes, exact over all workers.
    pub half_open_requests: NonZeroU32,
}

/// A backend's breaker, closed at first. Shared by all workers and kept over reloads.
#[derive(Debug, Default)]
pub struct Breaker {
    /// [`Stage`], packed.
    stage: AtomicU64,
    /// Nanoseconds; means something while it is open.
    open_until: AtomicU64,
    /// Results while it is closed. The generation is the era: what was counted before is forgotten
    /// in the moment of closing, and a late report can't get into it.
    window: Window,
}

/// Leave to use the backend. Every permit is answered by exactly one [`Breaker::report`]: a half-open
/// breaker waits for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Permit {
    generation: u32,
    transition: Option<Transition>,
}

impl Permit {
    /// What giving this permit made of the breaker: the first after `open_for` makes it half-open.
    pub fn transition(self) -> Option<Transition> {
        self.transition
    }
}

/// What came of a permit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The backend answered, or ended in order.
    Success,
    /// The backend failed.
    Failure,
    /// It ended without saying anything about the backend.
    Abandoned,
}

/// A change of state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transition {
    /// It admits nobody for `open_for`.
    Opened,
    /// It admits `half_open_requests`.
    HalfOpened,
    /// It admits everybody.
    Closed,
}

impl Breaker {
    /// [`Breaker::admit`] would give leave at `now`. Changes nothing.
    pub fn admits(&self, settings: &Settings, now: Instant) -> bool {
        let stage = self.stage();
        let is_over = now >= self.end_of_open();
        stage.admitting(places(settings), is_over).is_some()
    }

    /// Leave for one session to use the backend, if there is any at `now`.
    pub fn admit(&self, settings: &Settings, now: Instant) -> Option<Permit> {
        loop {
            let stage = self.stage();
            let is_over = now >= self.end_of_open();
            let (next, transition) = stage.admitting(places(settings), is_over)?;
            if next == stage || self.change(stage, next, settings, now) {
                return Some(next.permit(transition));
            }
        }
    }

    /// What came of `permit`. Permits of an earlier state change nothing.
    pub fn report(
        &self,
        settings: &Settings,
        permit: Permit,
        verdict: Verdict,
        now: Instant,
    ) -> Option<Transition> {
        let stage = self.stage();
        if stage.generation != permit.generation {
            return None;
        }
        match stage.state {
            State::Closed => {
                let trips = self.count(stage.generation, settings, verdict, now);
                let opened = trips && self.change(stage, stage.next(State::Open), settings, now);
                opened.then_some(Transition::Opened)
            }
            // Nobody is given a permit of it.
            State::Open => None,
            State::HalfOpen { .. } => self.judge(permit, settings, verdict, now),
        }
    }

    /// It is half-open: each permit that it gives keeps others waiting.
    pub fn is_half_open(&self) -> bool {
        matches!(self.stage().state, State::HalfOpen { .. })
    }

    /// While it is open: until when. It may be over already, if nobody has asked for leave since.
    pub fn open_until(&self) -> Option<Instant> {
        (self.stage().state == State::Open).then(|| self.end_of_open())
    }

    /// A result while closed; true when it is to open for it.
    fn count(&self, era: u32, settings: &Settings, verdict: Verdict, now: Instant) -> bool {
        let part = match verdict {
            Verdict::Success => 0,
            Verdict::Failure => 1,
            Verdict::Abandoned => return false,
        };
        let slice = Slice::at(now, settings.window, era);
        self.window.add(slice, Counts { whole: 1, part });
        // Asked for successes, too: one can be the result that completes `min_requests`.
        trips(settings, self.window.sum(slice))
    }

    /// A verdict on one of the admitted while half-open.
    fn judge(
        &self,
        permit: Permit,
        settings: &Settings,
        verdict: Verdict,
        now: Instant,
    ) -> Option<Transition> {
        loop {
            let stage = self.stage();
            if stage.generation != permit.generation {
                return None;
            }
            let (next, transition) = stage.judged(places(settings), verdict);
            if self.change(stage, next, settings, now) {
                return transition;
            }
        }
    }

    /// Acquire: who sees that it is open must see until when.
    fn stage(&self) -> Stage {
        Stage::unpack(self.stage.load(Ordering::Acquire))
    }

    /// False when it has changed in the meantime.
    ///
    /// Several may want to open it at once, and one that was held up may come when it is long past what
    /// that one saw. So the end is written first and only ever raised: every time of being open ends
    /// after the one before it, so that a late writer changes nothing.
    fn change(&self, stage: Stage, next: Stage, settings: &Settings, now: Instant) -> bool {
        if next.state == State::Open {
            let until = now + settings.open_for;
            self.open_until
                .fetch_max(until.as_nanos(), Ordering::AcqRel);
        }
        // Release: see `stage`.
        let (from, to) = (stage.pack(), next.pack());
        self.stage
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }

    fn end_of_open(&self) -> Instant {
        Instant::from_nanos(self.open_until.load(Ordering::Acquire))
    }
}

fn places(settings: &Settings) -> u32 {
    settings.half_open_requests.get().min(PLACES_MOST)
}

/// In whole numbers, so that a ratio of exactly `failure_ratio` is not a matter of rounding.
fn trips(settings: &Settings, results: Counts) -> bool {
    let share = u64::from(settings.failure_ratio.ppm());
    results.whole >= u64::from(settings.min_requests.get())
        && results.part * u64::from(Share::WHOLE.ppm()) >= share * results.whole
}

#[cfg(test)]
mod tests;
