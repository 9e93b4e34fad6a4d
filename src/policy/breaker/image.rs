//! A breaker as plain data, for another process to go on with.

use std::sync::atomic::Ordering;

use super::stage::{GENERATIONS, PLACES_MOST, Stage, State};
use super::{Breaker, Settings};
use crate::policy::window;
use crate::time::Instant;

/// What a breaker has come to.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Image {
    /// Where it stands.
    pub kind: Kind,
    /// Changes of that so far, as far as they are told apart; the window's counts belong to it.
    pub generation: u32,
    /// Half-open: those who have tried and succeeded.
    pub succeeded: u32,
    /// The end of the last time it was open, in nanoseconds.
    pub open_until_nanos: u64,
    /// Results while closed, packed.
    pub window: window::Image,
}

/// Where a breaker stands.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Kind {
    /// All may use the backend.
    #[default]
    Closed,
    /// Nobody may.
    Open,
    /// A few try.
    HalfOpen,
}

impl Breaker {
    /// What it has come to. The permits that it has given are left out, as nobody will report them to
    /// the other process.
    pub fn image(&self) -> Image {
        let stage = self.stage();
        let (kind, succeeded) = match stage.state {
            State::Closed => (Kind::Closed, 0),
            State::Open => (Kind::Open, 0),
            State::HalfOpen { succeeded, .. } => (Kind::HalfOpen, succeeded),
        };
        Image {
            kind,
            generation: stage.generation,
            succeeded,
            open_until_nanos: self.end_of_open().as_nanos(),
            window: self.window.image(),
        }
    }

    /// Goes on where `image` stands, before anybody asks for leave.
    ///
    /// Half-open, the places of those who had not been judged are free again, as if they had been
    /// abandoned: so nobody is waited for who never comes, and those who have succeeded still count.
    /// While sessions of the other process try, too, there may so be twice as many of them.
    ///
    /// An end beyond what `settings` make possible is brought back to that.
    pub fn restore(&self, image: Image, settings: &Settings, now: Instant) {
        let latest = now + settings.open_for;
        let open_until = image.open_until_nanos.min(latest.as_nanos());
        let succeeded = image.succeeded.min(PLACES_MOST);
        let stage = Stage {
            generation: image.generation % GENERATIONS,
            state: match image.kind {
                Kind::Closed => State::Closed,
                Kind::Open => State::Open,
                Kind::HalfOpen => State::half_open(succeeded, succeeded),
            },
        };
        self.window.restore(image.window);
        self.open_until.swap(open_until, Ordering::AcqRel);
        // Last: who sees that it is open must see until when.
        self.stage.swap(stage.pack(), Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::{Permit, Transition, Verdict};
    use super::*;
    use crate::policy::share::Share;

    const SETTINGS: Settings = Settings {
        failure_ratio: Share::from_ppm(500_000),
        min_requests: NonZeroU32::new(4).unwrap(),
        window: Duration::from_secs(10),
        open_for: Duration::from_secs(5),
        half_open_requests: NonZeroU32::new(3).unwrap(),
    };

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    fn restored(image: Image, now: Instant) -> Breaker {
        let breaker = Breaker::default();
        breaker.restore(image, &SETTINGS, now);
        breaker
    }

    fn result(breaker: &Breaker, verdict: Verdict, now: Instant) -> Option<Transition> {
        let permit = breaker.admit(&SETTINGS, now)?;
        let transition = breaker.report(&SETTINGS, permit, verdict, now);
        transition.or(permit.transition())
    }

    #[test]
    fn half_open_it_waits_for_nobody_of_the_other_process() {
        let breaker = Breaker::default();
        for _ in 0..4 {
            result(&breaker, Verdict::Failure, at(0));
        }
        let admit = || breaker.admit(&SETTINGS, at(5_000));
        let permits: Vec<Permit> = std::iter::from_fn(admit).collect();
        assert_eq!(permits.len(), 3);
        breaker.report(&SETTINGS, permits[0], Verdict::Success, at(5_000));
        let other = restored(breaker.image(), at(6_000));
        assert!(other.is_half_open());
        assert_eq!(result(&other, Verdict::Success, at(6_000)), None);
        let last = result(&other, Verdict::Success, at(6_000));
        assert_eq!(last, Some(Transition::Closed), "one had succeeded before");
    }

    #[test]
    fn it_is_open_for_as_long_as_its_settings_say_at_most() {
        let image = Image {
            kind: Kind::Open,
            open_until_nanos: u64::MAX,
            ..Image::default()
        };
        assert_eq!(restored(image, at(7)).open_until(), Some(at(5_007)));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Admit,
        Report(Verdict),
        Pass(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let verdict = prop_oneof![
            2 => Just(Verdict::Success),
            3 => Just(Verdict::Failure),
            1 => Just(Verdict::Abandoned),
        ];
        let step = prop_oneof![
            4 => Just(Step::Admit),
            4 => verdict.prop_map(Step::Report),
            1 => (0u64..6_000).prop_map(Step::Pass),
        ];
        prop::collection::vec(step, 0..120)
    }

    fn image() -> impl Strategy<Value = Image> {
        let kind = prop_oneof![Just(Kind::Closed), Just(Kind::Open), Just(Kind::HalfOpen)];
        let generation = prop_oneof![0u32..3, any::<u32>()];
        let numbers = (generation, any::<u32>(), any::<u64>());
        // Half of the words mean the first minutes.
        let word = prop_oneof![any::<u64>(), any::<u64>().prop_map(|word| word >> 22)];
        (kind, numbers, prop::array::uniform11(word)).prop_map(
            |(kind, (generation, succeeded, open_until_nanos), window)| Image {
                kind,
                generation,
                succeeded,
                open_until_nanos,
                window,
            },
        )
    }

    /// What became of it, and when that was.
    fn after(breaker: &Breaker, steps: &[Step], mut now: Instant) -> (Vec<Transition>, Instant) {
        let mut permits = Vec::new();
        let mut transitions = Vec::new();
        for step in steps {
            match *step {
                Step::Admit => {
                    let permit = breaker.admit(&SETTINGS, now);
                    transitions.extend(permit.and_then(Permit::transition));
                    permits.extend(permit);
                }
                Step::Report(verdict) => {
                    let report = |permit| breaker.report(&SETTINGS, permit, verdict, now);
                    transitions.extend(permits.pop().and_then(report));
                }
                Step::Pass(millis) => now = now + Duration::from_millis(millis),
            }
        }
        (transitions, now)
    }

    proptest! {
        #[test]
        fn an_image_is_what_it_makes(
            before in steps(),
            next in steps(),
        ) {
            let breaker = Breaker::default();
            let (_, now) = after(&breaker, &before, at(1_000));
            let image = breaker.image();
            let other = restored(image, now);
            prop_assert_eq!(other.image(), image);
            if !breaker.is_half_open() {
                prop_assert_eq!(after(&other, &next, now), after(&breaker, &next, now));
            }
        }

        #[test]
        fn any_image_makes_a_breaker_that_recovers(
            image in image(),
            steps in steps(),
            start in prop_oneof![0u64..60_000_000_000, 0u64..1 << 60],
        ) {
            let start = Instant::from_nanos(start);
            let breaker = restored(image, start);
            let again = restored(breaker.image(), start);
            prop_assert_eq!(again.image(), breaker.image());
            let (_, now) = after(&breaker, &steps, start);
            // Permits that were never answered go with the sessions of this process.
            let next = restored(breaker.image(), now);
            // The first may meet failures that are in the window.
            for round in 1..4 {
                for _ in 0..4 {
                    result(&next, Verdict::Success, now + 3 * round * SETTINGS.window);
                }
            }
            prop_assert!(!next.is_half_open() && next.open_until().is_none());
            prop_assert!(next.admits(&SETTINGS, now + 9 * SETTINGS.window));
        }
    }
}
