//! Bins at one time: what is told of a period is the difference of two of these.

use std::time::Duration;

use super::{Bins, OCTAVE, OCTAVES, value};

/// [`Bins`] at one time, of any number of workers. It has memory for the octaves that were used, as they have.
#[derive(Debug, Default)]
pub struct BinCounts {
    octaves: [Option<Box<[u64; OCTAVE]>>; OCTAVES],
}

impl BinCounts {
    /// What they all hold now.
    pub fn sum<'a>(bins: impl IntoIterator<Item = &'a Bins>) -> Self {
        let mut sum = Self::default();
        bins.into_iter().for_each(|bins| sum.add(bins));
        sum
    }

    /// Adds what `bins` hold now.
    fn add(&mut self, bins: &Bins) {
        for (sum, octave) in self.octaves.iter_mut().zip(&bins.octaves) {
            let Some(octave) = octave.get() else {
                continue;
            };
            let sum = sum.get_or_insert_with(|| Box::new([0; OCTAVE]));
            for (sum, count) in sum.iter_mut().zip(octave.iter()) {
                *sum += count.value();
            }
        }
    }

    /// What was counted after `earlier`. Nothing, rather than less, where it was higher then.
    pub fn since(&self, earlier: &Self) -> Self {
        let octave = |index: usize| {
            let mut more = self.octaves[index].clone()?;
            if let Some(earlier) = &earlier.octaves[index] {
                for (more, earlier) in more.iter_mut().zip(earlier.iter()) {
                    *more = more.saturating_sub(*earlier);
                }
            }
            Some(more)
        };
        Self {
            octaves: std::array::from_fn(octave),
        }
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        let octaves = self.octaves.iter().flatten();
        octaves.map(|octave| octave.iter().sum::<u64>()).sum()
    }

    /// The time within which this share of them was, 0.0..=1.0, to a hundredth of itself; `None` = there are none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let rank = (share * self.count() as f64).ceil().max(1.0) as u64;
        let mut left = rank;
        for (index, octave) in self.octaves.iter().enumerate() {
            for (place, count) in octave.iter().flat_map(|octave| octave.iter().enumerate()) {
                if *count >= left {
                    return Some(Duration::from_micros(highest(index, place)));
                }
                left -= count;
            }
        }
        None
    }
}

/// The highest number of microseconds of a place, as the library tells it.
fn highest(octave: usize, place: usize) -> u64 {
    value(octave, place) + (1 << octave.saturating_sub(1)) - 1
}

#[cfg(test)]
mod tests {
    use super::super::histogram;
    use super::*;

    fn counts(bins: &Bins) -> BinCounts {
        BinCounts::sum([bins])
    }

    #[test]
    fn quantiles_are_those_of_the_library() {
        let (bins, mut theirs) = (Bins::default(), histogram());
        for micros in (0..5000).map(|n| n * n / 7) {
            bins.record(Duration::from_micros(micros));
            theirs.record(micros).expect("within bounds");
        }
        let ours = counts(&bins);
        assert_eq!(ours.count(), 5000);
        for share in [0.0, 0.01, 0.5, 0.9, 0.99, 1.0] {
            let at = ours.quantile(share).expect("there are some").as_micros();
            assert_eq!(
                at,
                u128::from(theirs.value_at_quantile(share)),
                "share {share}"
            );
        }
    }

    #[test]
    fn a_difference_knows_nothing_of_what_was_before() {
        let bins = Bins::default();
        (0..1000).for_each(|_| bins.record(Duration::from_secs(9)));
        let before = counts(&bins);
        assert_eq!(counts(&bins).since(&before).count(), 0);
        assert_eq!(counts(&bins).since(&before).quantile(0.5), None);
        bins.record(Duration::from_micros(100));
        let since = counts(&bins).since(&before);
        assert_eq!(since.count(), 1);
        assert_eq!(since.quantile(0.99), Some(Duration::from_micros(100)));
    }

    #[test]
    fn a_difference_is_never_negative() {
        let bins = Bins::default();
        bins.record(Duration::from_millis(1));
        let since = BinCounts::default().since(&counts(&bins));
        assert_eq!((since.count(), since.quantile(1.0)), (0, None));
    }

    #[test]
    fn workers_are_added_up() {
        let (one, other) = (Bins::default(), Bins::default());
        one.record(Duration::from_micros(1));
        other.record(Duration::from_millis(1));
        let sum = BinCounts::sum([&one, &other]);
        assert_eq!(sum.count(), 2);
        assert_eq!(sum.quantile(0.5), Some(Duration::from_micros(1)));
    }
}
