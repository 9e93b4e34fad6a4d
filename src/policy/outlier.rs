//! Ejection of a backend for its failures on live traffic. It owns the row of failures of one backend
//! and its ejection, exact over all workers; how many of an upstream are ejected is counted in an
//! [`Occupancy`] that its backends share.

mod image;

use std::num::NonZeroU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

pub use self::image::Image;
use super::admission::Occupancy;
use super::atomic::AtomicU64;
use super::share::Share;
use crate::time::Instant;

/// `[upstreams.NAME.outlier]`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Failures in a row that eject.
    pub consecutive_failures: NonZeroU32,
    /// How long the first time; doubles with every ejection in a row.
    pub eject_for: Duration,
    /// At most so long.
    pub max_eject_for: Duration,
    /// Share of the upstream that may be ejected at once.
    pub max_ejected: Share,
}

/// What live traffic has met at a backend. Shared by all workers and kept over reloads.
#[derive(Debug, Default)]
pub struct Outlier {
    /// [`State`], packed: each change of it is one compare-exchange.
    state: AtomicU64,
    /// Nanoseconds; 0 = never.
    came_back: AtomicU64,
}

/// ```text
///              consecutive_failures, and fewer than `most` of the upstream are ejected
///   ┌─▶ Within ──────────────────────────────────────────────────────────────────▶ Ejected
///   │   │    ▲                                                                       │
///   └───┘    └───────────────────────────────────────────────────────────────────────┘
///   failure: one more                                its time is over, or it is forgiven
///   success: no failures, no ejections in a row
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// It takes part; `failures` in a row, after `ejections` in a row.
    Within { failures: u32, ejections: u32 },
    /// It is out, for the `ejections`-th time in a row. What sessions from before still meet means
    /// nothing.
    Ejected { until: Instant, ejections: u32 },
}

const EJECTIONS_BITS: u32 = 5;
/// Ejections in a row that are told apart: the time doubles 31 times at most.
const EJECTIONS_MOST: u32 = (1 << EJECTIONS_BITS) - 1;
/// `until` is kept in 58 bits of 64 ns, rounded up. A millisecond is a multiple of it.
const UNTIL_UNIT: u64 = 64;
const UNTIL_MOST: u64 = u64::MAX / UNTIL_UNIT;

impl State {
    const NEW: Self = Self::Within {
        failures: 0,
        ejections: 0,
    };

    fn unpack(word: u64) -> Self {
        let ejections = (word >> 1) as u32 & EJECTIONS_MOST;
        let rest = word >> (1 + EJECTIONS_BITS);
        if word & 1 == 0 {
            Self::Within {
                failures: rest as u32,
                ejections,
            }
        } else {
            Self::Ejected {
                until: Instant::from_nanos(rest * UNTIL_UNIT),
                ejections,
            }
        }
    }

    fn pack(self) -> u64 {
        let (kind, ejections, rest) = match self {
            Self::Within {
                failures,
                ejections,
            } => (0, ejections, u64::from(failures)),
            Self::Ejected { until, ejections } => {
                let units = until.as_nanos().div_ceil(UNTIL_UNIT);
                (1, ejections, units.min(UNTIL_MOST))
            }
        };
        kind | u64::from(ejections) << 1 | rest << (1 + EJECTIONS_BITS)
    }
}

impl Outlier {
    /// A session met a backend that works: the rows of failures and of ejections end.
    pub fn success(&self) {
        let mut state = self.state();
        while matches!(state, State::Within { .. }) && state != State::NEW {
            match self.change(state, State::NEW) {
                Ok(()) => return,
                Err(now) => state = now,
            }
        }
    }

    /// A session failed for the backend's sake. Says for how long, if this ejected the backend: with
    /// `ejected` of its upstream below `most`. Where there is no room, a later failure may.
    pub fn failure(
        &self,
        settings: &Settings,
        ejected: &Occupancy,
        most: usize,
        now: Instant,
    ) -> Option<Duration> {
        loop {
            let state = self.state();
            let (failures, ejections) = match state {
                State::Within {
                    failures,
                    ejections,
                } => (failures.saturating_add(1), ejections),
                State::Ejected { until, .. } if now < until => return None,
                State::Ejected { .. } => {
                    self.release(ejected, now);
                    continue;
                }
            };
            let length = length(settings, ejections);
            let is_due = failures >= settings.consecutive_failures.get();
            let ejects = is_due && ejected.enter(most);
            let next = if ejects {
                let ejections = (ejections + 1).min(EJECTIONS_MOST);
                let until = now + length;
                State::Ejected { until, ejections }
            } else {
                State::Within {
                    failures,
                    ejections,
                }
            };
            if self.change(state, next).is_ok() {
                return ejects.then_some(length);
            }
            if ejects {
                ejected.leave();
            }
        }
    }

    /// While it is ejected: until when, a little rounded up. It may be over already, if nobody has
    /// released it since.
    pub fn ejected_until(&self) -> Option<Instant> {
        match self.state() {
            State::Within { .. } => None,
            State::Ejected { until, .. } => Some(until),
        }
    }

    /// Ends an ejection whose time is over. True for exactly one caller, who has made `ejected` one
    /// less.
    pub fn release(&self, ejected: &Occupancy, now: Instant) -> bool {
        let state = self.state();
        let State::Ejected { until, ejections } = state else {
            return false;
        };
        if now < until {
            return false;
        }
        // Written first, so that who sees it within again sees since when. All who release this
        // ejection write the same; one that was held up can't undo a later one, which ends later.
        self.came_back.fetch_max(until.as_nanos(), Ordering::AcqRel);
        let back = State::Within {
            failures: 0,
            ejections,
        };
        let is_mine = self.change(state, back).is_ok();
        if is_mine {
            ejected.leave();
        }
        is_mine
    }

    /// Forgets everything but [`Outlier::came_back`], an ejection included: passive checks were
    /// switched off, or the backend was removed.
    pub fn forgive(&self, ejected: &Occupancy) {
        let before = self.state.swap(State::NEW.pack(), Ordering::AcqRel);
        if matches!(State::unpack(before), State::Ejected { .. }) {
            ejected.leave();
        }
    }

    /// When the time of the last ejection that was released was over.
    pub fn came_back(&self) -> Option<Instant> {
        match self.came_back.load(Ordering::Acquire) {
            0 => None,
            nanos => Some(Instant::from_nanos(nanos)),
        }
    }

    /// Acquire: who sees it within again must see since when.
    fn state(&self) -> State {
        State::unpack(self.state.load(Ordering::Acquire))
    }

    /// The state that it has by now, when that isn't `from` any longer.
    fn change(&self, from: State, to: State) -> Result<(), State> {
        let (from, to) = (from.pack(), to.pack());
        self.state
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
            .map_err(State::unpack)
    }
}

/// Of an ejection after so many others in a row.
fn length(settings: &Settings, ejections: u32) -> Duration {
    settings
        .eject_for
        .saturating_mul(1 << ejections)
        .min(settings.max_eject_for)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::super::atomic::{cuts, interleave, undisturbed};
    use super::*;

    const SETTINGS: Settings = Settings {
        consecutive_failures: NonZeroU32::new(3).unwrap(),
        eject_for: Duration::from_secs(30),
        max_eject_for: Duration::from_secs(100),
        max_ejected: Share::WHOLE,
    };

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    /// The last of as many failures as it takes.
    fn fail(outlier: &Outlier, ejected: &Occupancy, most: usize, millis: u64) -> Option<Duration> {
        for _ in 0..2 {
            let ejection = outlier.failure(&SETTINGS, ejected, most, at(millis));
            assert_eq!(ejection, None);
        }
        outlier.failure(&SETTINGS, ejected, most, at(millis))
    }

    #[test]
    fn failures_in_a_row_eject_and_a_success_ends_the_row() {
        let (outlier, ejected) = (Outlier::default(), Occupancy::default());
        for _ in 0..2 {
            outlier.failure(&SETTINGS, &ejected, 1, at(7));
        }
        outlier.success();
        assert_eq!(outlier.ejected_until(), None);
        let ejection = fail(&outlier, &ejected, 1, 7);
        assert_eq!(ejection, Some(Duration::from_secs(30)));
        assert_eq!(outlier.ejected_until(), Some(at(30_007)));
        assert_eq!(ejected.now(), 1);
    }

    #[test]
    fn while_ejected_nothing_counts() {
        let (outlier, ejected) = (Outlier::default(), Occupancy::default());
        fail(&outlier, &ejected, 9, 0);
        for _ in 0..9 {
            let late = outlier.failure(&SETTINGS, &ejected, 9, at(29_999));
            assert_eq!(late, None);
        }
        outlier.success();
        assert_eq!(outlier.ejected_until(), Some(at(30_000)));
        assert!(outlier.release(&ejected, at(30_000)));
        let second = fail(&outlier, &ejected, 9, 30_000);
        assert_eq!(second, Some(Duration::from_secs(60)));
        assert_eq!(ejected.now(), 1);
    }

    #[test]
    fn it_is_released_once_and_not_before_its_time() {
        let (outlier, ejected) = (Outlier::default(), Occupancy::default());
        fail(&outlier, &ejected, 1, 0);
        assert!(!outlier.release(&ejected, at(29_999)));
        assert_eq!(outlier.came_back(), None);
        assert!(outlier.release(&ejected, at(31_000)));
        assert!(!outlier.release(&ejected, at(31_000)));
        assert_eq!(ejected.now(), 0);
        assert_eq!(outlier.ejected_until(), None);
        assert_eq!(outlier.came_back(), Some(at(30_000)));
    }

    #[test]
    fn a_failure_after_its_time_counts_even_if_nobody_has_released_it() {
        let (outlier, ejected) = (Outlier::default(), Occupancy::default());
        fail(&outlier, &ejected, 1, 0);
        let again = fail(&outlier, &ejected, 1, 30_000);
        assert_eq!(again, Some(Duration::from_secs(60)));
        assert_eq!(ejected.now(), 1);
        assert_eq!(outlier.came_back(), Some(at(30_000)));
    }

    #[test]
    fn the_time_doubles_up_to_its_bound_until_a_success_after_the_return() {
        let (outlier, ejected) = (Outlier::default(), Occupancy::default());
        for (begin, seconds) in [(0, 30), (100_000, 60), (200_000, 100), (300_000, 100)] {
            let ejection = fail(&outlier, &ejected, 1, begin);
            assert_eq!(ejection, Some(Duration::from_secs(seconds)));
            outlier.release(&ejected, at(begin + 100_000));
        }
        outlier.success();
        let ejection = fail(&outlier, &ejected, 1, 500_000);
        assert_eq!(ejection, Some(Duration::from_secs(30)));
    }

    #[test]
    fn at_the_bound_it_stays_and_a_later_failure_ejects_it() {
        let ejected = Occupancy::default();
        let outliers = [Outlier::default(), Outlier::default()];
        assert_ne!(fail(&outliers[0], &ejected, 1, 0), None);
        assert_eq!(fail(&outliers[1], &ejected, 1, 0), None);
        assert_eq!(fail(&outliers[1], &ejected, 1, 0), None);
        assert!(outliers[0].release(&ejected, at(30_000)));
        let later = outliers[1].failure(&SETTINGS, &ejected, 1, at(30_000));
        assert_eq!(later, Some(Duration::from_secs(30)));
    }

    #[test]
    fn forgiving_ends_the_ejection_and_the_row() {
        let (outlier, ejected) = (Outlier::default(), Occupancy::default());
        fail(&outlier, &ejected, 1, 0);
        outlier.forgive(&ejected);
        outlier.forgive(&ejected);
        assert_eq!((outlier.ejected_until(), ejected.now()), (None, 0));
        assert_eq!(outlier.came_back(), None);
        let ejection = fail(&outlier, &ejected, 1, 1);
        assert_eq!(ejection, Some(Duration::from_secs(30)));
    }

    #[test]
    fn no_length_and_no_row_overflows() {
        let longest = Settings {
            consecutive_failures: NonZeroU32::MIN,
            eject_for: Duration::MAX,
            max_eject_for: Duration::MAX,
            ..SETTINGS
        };
        let (outlier, ejected) = (Outlier::default(), Occupancy::default());
        let end = Instant::from_nanos(u64::MAX);
        for _ in 0..50 {
            let ejection = outlier.failure(&longest, &ejected, 1, end);
            assert_eq!(ejection, Some(Duration::MAX));
        }
        let full = State::Within {
            failures: u32::MAX,
            ejections: EJECTIONS_MOST,
        };
        assert_eq!(State::unpack(full.pack()), full);
    }

    #[test]
    fn the_time_doubles_31_times_at_most() {
        let doubling = Settings {
            consecutive_failures: NonZeroU32::MIN,
            eject_for: Duration::from_millis(1),
            max_eject_for: Duration::MAX,
            ..SETTINGS
        };
        let (outlier, ejected) = (Outlier::default(), Occupancy::default());
        let mut now = at(0);
        for ejections in 0..40 {
            let expected = Duration::from_millis(1 << ejections.min(31));
            let ejection = outlier.failure(&doubling, &ejected, 1, now);
            assert_eq!(ejection, Some(expected));
            now = now + expected;
            assert_eq!(outlier.ejected_until(), Some(now));
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Failure,
        Success,
        Release,
        Forgive,
        Pass(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
        let step = prop_oneof![
            10 => Just(Step::Failure),
            1 => Just(Step::Success),
            6 => Just(Step::Release),
            1 => Just(Step::Forgive),
            2 => (0u64..60_000).prop_map(Step::Pass),
        ];
        prop::collection::vec((0..BACKENDS, step), 1..STEPS)
    }

    const BACKENDS: usize = 4;
    const STEPS: usize = 200;

    struct Upstream {
        outliers: [Outlier; BACKENDS],
        settings: Settings,
        ejected: Occupancy,
        most: usize,
        millis: Cell<u64>,
        /// When each came back, as was last seen.
        back: [Cell<Option<Instant>>; BACKENDS],
    }

    impl Upstream {
        fn new(most: usize, failures: u32) -> Self {
            Self {
                outliers: Default::default(),
                settings: Settings {
                    consecutive_failures: NonZeroU32::new(failures).unwrap(),
                    ..SETTINGS
                },
                ejected: Occupancy::default(),
                most,
                millis: Cell::default(),
                back: Default::default(),
            }
        }

        fn take(&self, backend: usize, step: Step) {
            let outlier = &self.outliers[backend];
            let now = at(self.millis.get());
            match step {
                Step::Failure => {
                    outlier.failure(&self.settings, &self.ejected, self.most, now);
                }
                Step::Success => outlier.success(),
                Step::Release => {
                    outlier.release(&self.ejected, now);
                }
                Step::Forgive => outlier.forgive(&self.ejected),
                Step::Pass(millis) => self.millis.set(self.millis.get() + millis),
            }
            let (out, ejected) = (undisturbed(|| self.out()), self.ejected.now());
            assert!(out <= ejected && ejected <= self.most);
            let back = undisturbed(|| outlier.came_back());
            assert!(back >= self.back[backend].replace(back));
        }

        fn out(&self) -> usize {
            let until = self.outliers.iter().filter_map(Outlier::ejected_until);
            until.count()
        }
    }

    proptest! {
        #[test]
        fn whoever_cuts_in_never_more_than_most_are_ejected(
            most in 0..=BACKENDS,
            failures in 1u32..4,
            steps in steps(),
            cuts in cuts(STEPS, 8),
        ) {
            let upstream = Rc::new(Upstream::new(most, failures));
            let taking = upstream.clone();
            interleave(cuts, steps, move |(backend, step)| taking.take(backend, step));
            prop_assert_eq!(upstream.out(), upstream.ejected.now());
        }
    }
}
