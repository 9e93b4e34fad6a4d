//! What live traffic has met at a backend as plain data, for another process to go on with.

use std::sync::atomic::Ordering;

use super::{EJECTIONS_MOST, Outlier, Settings, State};
use crate::policy::admission::Occupancy;
use crate::time::Instant;

/// The rows of failures and of ejections of one backend.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Image {
    /// Failures in a row; of one that is ejected none.
    pub failures: u32,
    /// Ejections in a row, the present one included.
    pub ejections: u32,
    /// While it is ejected: until when, in nanoseconds.
    pub ejected_until_nanos: Option<u64>,
    /// [`Outlier::came_back`], in nanoseconds.
    pub came_back_nanos: Option<u64>,
}

impl Outlier {
    /// What was met.
    pub fn image(&self) -> Image {
        let (failures, ejections, until) = match self.state() {
            State::Within {
                failures,
                ejections,
            } => (failures, ejections, None),
            State::Ejected { until, ejections } => (0, ejections, Some(until)),
        };
        Image {
            failures,
            ejections,
            ejected_until_nanos: until.map(Instant::as_nanos),
            came_back_nanos: self.came_back().map(Instant::as_nanos),
        }
    }

    /// Goes on where `image` stands. An ejection that is not over is counted in `ejected`; where `most`
    /// are out already the backend stays within, and its next failure may eject it. An end beyond what
    /// `settings` make possible is brought back to that.
    pub fn restore(
        &self,
        image: Image,
        settings: &Settings,
        (ejected, most): (&Occupancy, usize),
        now: Instant,
    ) {
        self.forgive(ejected);
        let (state, came_back) = restored(image, settings, now);
        let enters = matches!(state, State::Ejected { .. });
        let state = match enters && !ejected.enter(most) {
            true => as_before(image, settings),
            false => state,
        };
        let came_back = came_back.min(now.as_nanos());
        self.came_back.fetch_max(came_back, Ordering::AcqRel);
        if self.change(State::NEW, state).is_err() && matches!(state, State::Ejected { .. }) {
            // Somebody has met something meanwhile.
            ejected.leave();
        }
    }
}

/// The state if there is room for it, and when the backend came back.
fn restored(image: Image, settings: &Settings, now: Instant) -> (State, u64) {
    let ejections = image.ejections.min(EJECTIONS_MOST);
    let came_back = image.came_back_nanos.unwrap_or(0);
    let latest = now + settings.max_eject_for;
    let until = image
        .ejected_until_nanos
        .map(|nanos| Instant::from_nanos(nanos).min(latest));
    match until {
        Some(until) if now < until => (State::Ejected { until, ejections }, came_back),
        // Over by now, as if it had been released.
        over => {
            let failures = if over.is_some() { 0 } else { image.failures };
            let came_back = came_back.max(over.map_or(0, Instant::as_nanos));
            let state = State::Within {
                failures,
                ejections,
            };
            (state, came_back)
        }
    }
}

/// The failures that ejected it have happened, the ejection has not.
fn as_before(image: Image, settings: &Settings) -> State {
    State::Within {
        failures: settings.consecutive_failures.get(),
        ejections: image.ejections.min(EJECTIONS_MOST).saturating_sub(1),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::policy::share::Share;

    const SETTINGS: Settings = Settings {
        consecutive_failures: NonZeroU32::new(3).unwrap(),
        eject_for: Duration::from_secs(30),
        max_eject_for: Duration::from_secs(100),
        max_ejected: Share::WHOLE,
    };

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    fn fail(outlier: &Outlier, ejected: &Occupancy, times: u32, now: Instant) {
        for _ in 0..times {
            outlier.failure(&SETTINGS, ejected, usize::MAX, now);
        }
    }

    fn restored(image: Image, ejected: &Occupancy, most: usize, now: Instant) -> Outlier {
        let outlier = Outlier::default();
        outlier.restore(image, &SETTINGS, (ejected, most), now);
        outlier
    }

    #[test]
    fn an_ejection_goes_on_to_its_end_and_the_next_one_is_longer() {
        let (outlier, there) = (Outlier::default(), Occupancy::default());
        fail(&outlier, &there, 3, at(0));
        let here = Occupancy::default();
        let other = restored(outlier.image(), &here, 1, at(10_000));
        assert_eq!(here.now(), 1);
        assert_eq!(other.ejected_until(), Some(at(30_000)));
        assert!(other.release(&here, at(30_000)));
        assert_eq!((here.now(), other.came_back()), (0, Some(at(30_000))));
        fail(&other, &here, 3, at(31_000));
        assert_eq!(other.ejected_until(), Some(at(91_000)));
    }

    #[test]
    fn an_ejection_that_is_over_takes_no_place() {
        let (outlier, there) = (Outlier::default(), Occupancy::default());
        fail(&outlier, &there, 3, at(0));
        let here = Occupancy::default();
        let other = restored(outlier.image(), &here, 1, at(40_000));
        assert_eq!((here.now(), other.ejected_until()), (0, None));
        assert_eq!(other.came_back(), Some(at(30_000)));
        assert_eq!(other.image().ejections, 1);
    }

    #[test]
    fn without_room_it_stays_within_until_the_next_failure() {
        let (outlier, there) = (Outlier::default(), Occupancy::default());
        fail(&outlier, &there, 3, at(0));
        let here = Occupancy::default();
        let other = restored(outlier.image(), &here, 0, at(1_000));
        assert_eq!((here.now(), other.ejected_until()), (0, None));
        fail(&other, &here, 1, at(1_000));
        assert_eq!(other.ejected_until(), Some(at(31_000)), "as the first one");
    }

    #[test]
    fn what_was_there_before_counts_no_longer() {
        let (outlier, ejected) = (Outlier::default(), Occupancy::default());
        fail(&outlier, &ejected, 3, at(0));
        let image = outlier.image();
        outlier.restore(image, &SETTINGS, (&ejected, 1), at(0));
        assert_eq!((outlier.image(), ejected.now()), (image, 1));
        outlier.restore(Image::default(), &SETTINGS, (&ejected, 1), at(0));
        assert_eq!((outlier.image(), ejected.now()), (Image::default(), 0));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Failures(u32),
        Success,
        Release,
        Pass(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
        let step = prop_oneof![
            6 => (1u32..4).prop_map(Step::Failures),
            1 => Just(Step::Success),
            2 => Just(Step::Release),
            2 => (0u64..40_000).prop_map(Step::Pass),
        ];
        prop::collection::vec((0..BACKENDS, step), 0..60)
    }

    const BACKENDS: usize = 3;

    /// When it was at the end.
    fn take(
        outliers: &[Outlier],
        (ejected, most): (&Occupancy, usize),
        steps: &[(usize, Step)],
        mut now: Instant,
    ) -> Instant {
        for &(backend, step) in steps {
            let outlier = &outliers[backend];
            match step {
                Step::Failures(count) => {
                    for _ in 0..count {
                        outlier.failure(&SETTINGS, ejected, most, now);
                    }
                }
                Step::Success => outlier.success(),
                Step::Release => {
                    outlier.release(ejected, now);
                }
                Step::Pass(millis) => now = now + Duration::from_millis(millis),
            }
        }
        now
    }

    fn images(outliers: &[Outlier]) -> Vec<Image> {
        outliers.iter().map(Outlier::image).collect()
    }

    fn out(outliers: &[Outlier]) -> usize {
        let until = outliers.iter().filter_map(Outlier::ejected_until);
        until.count()
    }

    fn image() -> impl Strategy<Value = Image> {
        let instant = || prop::option::of(prop_oneof![any::<u64>(), 0u64..300_000_000_000]);
        (any::<u32>(), any::<u32>(), instant(), instant()).prop_map(
            |(failures, ejections, ejected_until_nanos, came_back_nanos)| Image {
                failures,
                ejections,
                ejected_until_nanos,
                came_back_nanos,
            },
        )
    }

    proptest! {
        #[test]
        fn an_image_is_what_it_makes(
            most in 0..=BACKENDS,
            before in steps(),
            next in steps(),
        ) {
            let (there, here) = (Occupancy::default(), Occupancy::default());
            let outliers: [Outlier; BACKENDS] = Default::default();
            let now = take(&outliers, (&there, most), &before, at(0));
            for outlier in &outliers {
                outlier.release(&there, now);
            }
            let others: Vec<Outlier> = images(&outliers)
                .into_iter()
                .map(|image| restored(image, &here, most, now))
                .collect();
            prop_assert_eq!(images(&others), images(&outliers));
            prop_assert_eq!(here.now(), there.now());
            take(&outliers, (&there, most), &next, now);
            take(&others, (&here, most), &next, now);
            prop_assert_eq!(images(&others), images(&outliers));
        }

        #[test]
        fn any_images_keep_the_count_and_the_bound(
            images in prop::collection::vec(image(), BACKENDS),
            most in 0..=BACKENDS,
            steps in steps(),
            start in 0u64..400_000,
        ) {
            let ejected = Occupancy::default();
            let outliers: Vec<Outlier> = images
                .iter()
                .map(|image| restored(*image, &ejected, most, at(start)))
                .collect();
            prop_assert_eq!(out(&outliers), ejected.now());
            prop_assert!(ejected.now() <= most);
            let now = take(&outliers, (&ejected, most), &steps, at(start));
            prop_assert_eq!(out(&outliers), ejected.now());
            let later = now + SETTINGS.max_eject_for;
            for outlier in &outliers {
                prop_assert!(outlier.came_back() <= Some(now));
                outlier.release(&ejected, later);
            }
            prop_assert_eq!(ejected.now(), 0);
        }
    }
}
