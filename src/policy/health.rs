//! What active checks know of a backend: how results of probes become a state. It is written by the
//! backend's prober alone, and read by all workers; it knows nothing of what a probe is.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::time::Instant;

/// How results of probes become a state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Successes in a row to come up.
    pub rise: NonZeroU32,
    /// Failures in a row to go down.
    pub fall: NonZeroU32,
    /// What a backend is before the first result.
    pub start: Start,
}

/// `health_check.start`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// Healthy until probes say otherwise.
    Up,
    /// Not healthy until `rise` probes have succeeded.
    Down,
    /// Not healthy until the first probe has ended; then what that says.
    Checked,
}

/// What probes made of a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// It is healthy now.
    Up,
    /// It isn't, and it is known why. One that has never been up may have been unhealthy before.
    Down,
}

/// The health of a backend, kept over reloads. Healthy and not checked by default.
#[derive(Debug, Default)]
pub struct Health {
    /// [`Known`], packed.
    known: AtomicU64,
    /// Nanoseconds and 1; 0 = never.
    came_up: AtomicU64,
}

/// What is known of a backend's health, to be handed to another process.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Image {
    /// Where it stands.
    pub state: State,
    /// What the last probe said.
    pub success: bool,
    /// How many in a row have said the same.
    pub streak: u32,
    /// [`Health::came_up`], in nanoseconds.
    pub came_up_nanos: Option<u64>,
}

/// ```text
///              start = up
///   Unchecked ─────────────────────────────┐
///     │ │                                  ▼   fall failures
///     │ │ start = checked    success   ┌──────┐──────────────▶┌──────┐
///     │ └────────────▶ Undecided ─────▶│  Up  │               │ Down │
///     │                    │           └──────┘◀──────────────└──────┘
///     │                    │               ▲   rise successes   ▲  ▲
///     │                    └───────────────│────────────────────┘  │
///     │ start = down             failure   │ rise successes        │
///     └────────────▶ NotYetUp ─────────────┘                       │
///                        └─────────────────────────────────────────┘
///                                        fall failures
/// ```
///
/// From everywhere back to `Unchecked` when checks are switched off.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum State {
    /// Healthy, as nobody asks.
    #[default]
    Unchecked,
    /// Healthy.
    Up,
    /// Not healthy: no probe has ended yet.
    Undecided,
    /// Not healthy by order: too few probes have ended.
    NotYetUp,
    /// Not healthy because of probes.
    Down,
}

/// A state, and the row of equal results that the last probe belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Known {
    state: State,
    success: bool,
    streak: u32,
}

impl Known {
    fn new(state: State) -> Self {
        Self {
            state,
            success: false,
            streak: 0,
        }
    }

    /// After one more result.
    fn with(self, success: bool, settings: &Settings) -> Self {
        let streak = if success == self.success {
            self.streak.saturating_add(1)
        } else {
            1
        };
        let rises = success && streak >= settings.rise.get();
        let falls = !success && streak >= settings.fall.get();
        let state = match self.state {
            State::Undecided if success => State::Up,
            State::Undecided => State::Down,
            State::NotYetUp | State::Down if rises => State::Up,
            State::NotYetUp | State::Up if falls => State::Down,
            state => state,
        };
        Self {
            state,
            success,
            streak,
        }
    }

    fn unpack(word: u64) -> Self {
        Self {
            state: match word & 7 {
                0 => State::Unchecked,
                1 => State::Up,
                2 => State::Undecided,
                3 => State::NotYetUp,
                _ => State::Down,
            },
            success: word & 8 != 0,
            streak: (word >> 32) as u32,
        }
    }

    fn pack(self) -> u64 {
        self.state as u64 | u64::from(self.success) << 3 | u64::from(self.streak) << 32
    }
}

impl Health {
    /// Of a backend that is checked from now on.
    pub fn new(start: Start) -> Self {
        let health = Self::default();
        health.adopt(Some(start));
        health
    }

    /// The backend may be used, as far as checks go.
    pub fn is_healthy(&self) -> bool {
        matches!(self.known().state, State::Unchecked | State::Up)
    }

    /// When it last came up after probes had found it down. Coming up for the first time, as
    /// [`Start`] has it, doesn't count.
    pub fn came_up(&self) -> Option<Instant> {
        let nanos = self.came_up.load(Ordering::Acquire).checked_sub(1)?;
        Some(Instant::from_nanos(nanos))
    }

    /// How many results in a row were like the last one, that one included; 0 before the first.
    pub fn streak(&self) -> u32 {
        self.known().streak
    }

    /// A probe has ended. Says what it changed. Ignored where checks are off.
    pub fn record(&self, settings: &Settings, success: bool, now: Instant) -> Option<Change> {
        let before = self.known();
        if before.state == State::Unchecked {
            return None;
        }
        let after = before.with(success, settings);
        if (before.state, after.state) == (State::Down, State::Up) {
            // Before the state: who sees it up must see since when.
            let nanos = now.as_nanos().saturating_add(1);
            self.came_up.store(nanos, Ordering::Release);
        }
        self.write(after);
        let change = match after.state {
            State::Up => Change::Up,
            _ => Change::Down,
        };
        (before.state != after.state).then_some(change)
    }

    /// What a reload says: checks are on, or off. What is known of a backend that is checked already
    /// is kept; one that was not begins as `start` says.
    pub fn adopt(&self, start: Option<Start>) {
        let state = match start {
            None => State::Unchecked,
            Some(_) if self.known().state != State::Unchecked => return,
            Some(Start::Up) => State::Up,
            Some(Start::Down) => State::NotYetUp,
            Some(Start::Checked) => State::Undecided,
        };
        self.write(Known::new(state));
    }

    /// What is known of it.
    pub fn image(&self) -> Image {
        let Known {
            state,
            success,
            streak,
        } = self.known();
        Image {
            state,
            success,
            streak,
            came_up_nanos: self.came_up().map(Instant::as_nanos),
        }
    }

    /// Goes on where `image` stands, for a prober that has not begun. As a reload has it: checks that
    /// are off here stay off, and where none were made there what `start` says holds. A time to come
    /// is now.
    pub fn restore(&self, image: Image, now: Instant) {
        if let Some(nanos) = image.came_up_nanos {
            let nanos = nanos.min(now.as_nanos()).saturating_add(1);
            self.came_up.store(nanos, Ordering::Release);
        }
        let is_checked = self.known().state != State::Unchecked;
        if is_checked && image.state != State::Unchecked {
            self.write(Known {
                state: image.state,
                success: image.success,
                streak: image.streak,
            });
        }
    }

    /// Acquire: see [`Health::write`].
    fn known(&self) -> Known {
        Known::unpack(self.known.load(Ordering::Acquire))
    }

    /// A plain store, as there is one writer. Release: `came_up` goes before it.
    fn write(&self, known: Known) {
        self.known.store(known.pack(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings {
        rise: NonZeroU32::new(2).unwrap(),
        fall: NonZeroU32::new(3).unwrap(),
        start: Start::Up,
    };

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    /// What each result changed; the first ends at 1 s, the second at 2 s and so on.
    fn after(health: &Health, results: &[bool]) -> Vec<Option<Change>> {
        let seconds = 1..;
        let results = results.iter().zip(seconds);
        results
            .map(|(&success, second)| health.record(&SETTINGS, success, at(second)))
            .collect()
    }

    const UP: Option<Change> = Some(Change::Up);
    const DOWN: Option<Change> = Some(Change::Down);

    #[test]
    fn it_falls_and_rises_after_as_many_results_in_a_row_as_are_asked_for() {
        let health = Health::new(Start::Up);
        let changes = after(&health, &[false, false, true, false, false, false]);
        assert_eq!(changes, [None, None, None, None, None, DOWN]);
        assert!(!health.is_healthy());
        assert_eq!(health.came_up(), None);
        let changes = after(&health, &[true, false, true, true, true]);
        assert_eq!(changes, [None, None, None, UP, None]);
        assert!(health.is_healthy());
        assert_eq!(health.came_up(), Some(at(4)));
    }

    #[test]
    fn the_streak_is_the_row_of_the_last_result() {
        let health = Health::new(Start::Up);
        assert_eq!(health.streak(), 0);
        let mut streaks = Vec::new();
        for success in [true, true, false, false, false, false, true] {
            health.record(&SETTINGS, success, at(1));
            streaks.push(health.streak());
        }
        assert_eq!(streaks, [1, 2, 1, 2, 3, 4, 1]);
    }

    #[test]
    fn started_down_it_needs_rise_successes() {
        let health = Health::new(Start::Down);
        assert!(!health.is_healthy());
        let changes = after(&health, &[true, false, true, true]);
        assert_eq!(changes, [None, None, None, UP]);
        assert_eq!(health.came_up(), None);
    }

    #[test]
    fn one_that_probes_found_down_at_the_start_comes_up_like_any_other() {
        let health = Health::new(Start::Down);
        let changes = after(&health, &[false, false, false, true, true]);
        assert_eq!(changes, [None, None, DOWN, None, UP]);
        assert_eq!(health.came_up(), Some(at(5)));
    }

    #[test]
    fn started_checked_the_first_result_decides() {
        let health = Health::new(Start::Checked);
        assert!(!health.is_healthy());
        assert_eq!(after(&health, &[true, false, false]), [UP, None, None]);
        assert!(health.is_healthy());
        assert_eq!(health.came_up(), None);

        let health = Health::new(Start::Checked);
        assert_eq!(after(&health, &[false, true, true]), [DOWN, None, UP]);
        assert_eq!(health.came_up(), Some(at(3)));
    }

    #[test]
    fn unchecked_it_is_healthy_and_results_mean_nothing() {
        let health = Health::default();
        assert_eq!(after(&health, &[false; 5]), [None; 5]);
        assert!(health.is_healthy());
        assert_eq!(health.streak(), 0);
    }

    #[test]
    fn a_reload_keeps_what_is_known_of_a_checked_backend() {
        let health = Health::new(Start::Up);
        after(&health, &[false; 4]);
        health.adopt(Some(Start::Up));
        assert_eq!((health.is_healthy(), health.streak()), (false, 4));
        after(&health, &[true; 2]);
        health.adopt(Some(Start::Down));
        assert_eq!((health.is_healthy(), health.streak()), (true, 2));
    }

    #[test]
    fn a_reload_switches_checks_off_and_on() {
        let health = Health::new(Start::Up);
        after(&health, &[false; 3]);
        health.adopt(None);
        assert_eq!((health.is_healthy(), health.streak()), (true, 0));
        health.adopt(Some(Start::Down));
        assert!(!health.is_healthy());
        assert_eq!(after(&health, &[true, true]), [None, UP]);
    }

    #[test]
    fn a_lower_bound_counts_from_the_next_result_on() {
        let health = Health::new(Start::Up);
        after(&health, &[false, false]);
        let strict = Settings {
            fall: NonZeroU32::MIN,
            ..SETTINGS
        };
        assert_eq!(health.record(&strict, false, at(3)), DOWN);
        assert_eq!(health.streak(), 3);
    }

    /// After these results, and what another one that begins as `start` says makes of its image.
    fn moved(results: &[bool], start: Option<Start>) -> (Health, Health) {
        let health = Health::new(Start::Up);
        after(&health, results);
        let other = Health::default();
        other.adopt(start);
        other.restore(health.image(), at(100));
        (health, other)
    }

    #[test]
    fn another_process_goes_on_where_one_stands() {
        let results = [false, false, false, true, true, false, false];
        for count in 0..=results.len() {
            let (health, other) = moved(&results[..count], Some(Start::Down));
            assert_eq!(other.image(), health.image());
            let rest = &results[count..];
            assert_eq!(after(&other, rest), after(&health, rest));
            assert_eq!(other.came_up(), health.came_up());
        }
    }

    #[test]
    fn checks_that_are_off_stay_off_and_new_ones_begin_as_they_are_told() {
        let (_, unchecked) = moved(&[false; 3], None);
        assert_eq!(unchecked.image(), Image::default());
        let fresh = Health::new(Start::Down);
        fresh.restore(Image::default(), at(1));
        assert_eq!(fresh.image().state, State::NotYetUp);
    }

    #[test]
    fn it_did_not_come_up_in_the_future() {
        let health = Health::new(Start::Up);
        let image = Image {
            came_up_nanos: Some(u64::MAX),
            ..health.image()
        };
        health.restore(image, at(5));
        assert_eq!(health.came_up(), Some(at(5)));
        health.restore(image, Instant::from_nanos(u64::MAX));
        assert!(health.came_up().is_some());
    }

    #[test]
    fn what_is_known_fits_into_its_word() {
        for state in [
            State::Unchecked,
            State::Up,
            State::Undecided,
            State::NotYetUp,
            State::Down,
        ] {
            for success in [false, true] {
                let known = Known {
                    state,
                    success,
                    streak: u32::MAX,
                };
                assert_eq!(Known::unpack(known.pack()), known);
                assert_eq!(known.with(success, &SETTINGS).streak, u32::MAX);
            }
        }
    }
}
