//! Lengths of time, counted: a histogram in the layout of HdrHistogram for percentiles that can be merged,
//! and a few wide buckets for metrics. One worker writes, anybody reads; what was never used takes no memory.

mod counts;

use std::sync::OnceLock;
use std::time::Duration;

use hdrhistogram::Histogram;

pub use self::counts::BinCounts;
use super::counters::Counter;

/// Upper bounds of the buckets in metrics, in nanoseconds, inclusive. One more bucket holds the rest.
pub const BOUNDS: [u64; 20] = [
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
    300_000_000_000,
    3_600_000_000_000,
];

/// How many buckets there are, the one without a bound included.
pub const BUCKETS: usize = BOUNDS.len() + 1;

/// Counts by bucket, and their sum. Written by one thread.
#[derive(Debug, Default)]
pub struct Buckets {
    counts: [Counter; BUCKETS],
    sum_nanos: Counter,
}

/// [`Buckets`] at one time, of any number of workers.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct BucketCounts {
    /// How many were within each bound and above the one before.
    pub counts: [u64; BUCKETS],
    /// All of them together, in nanoseconds.
    pub sum_nanos: u64,
}

impl Buckets {
    /// Counts one.
    pub fn record(&self, time: Duration) {
        let nanos = nanos(time);
        let bucket = BOUNDS.partition_point(|bound| *bound < nanos);
        self.counts[bucket].add(1);
        self.sum_nanos.add(nanos);
    }

    /// How many there were so far.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(Counter::value).sum()
    }

    /// Adds what was counted so far to `sum`.
    pub fn add_to(&self, sum: &mut BucketCounts) {
        for (sum, count) in sum.counts.iter_mut().zip(&self.counts) {
            *sum += count.value();
        }
        sum.sum_nanos = sum.sum_nanos.wrapping_add(self.sum_nanos.value());
    }
}

impl BucketCounts {
    /// What they all have counted so far.
    pub fn sum<'a>(buckets: impl IntoIterator<Item = &'a Buckets>) -> Self {
        let mut sum = Self::default();
        buckets
            .into_iter()
            .for_each(|buckets| buckets.add_to(&mut sum));
        sum
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What was counted after `earlier`. Nothing, rather than less, of what was higher then.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            counts: std::array::from_fn(|it| self.counts[it].saturating_sub(earlier.counts[it])),
            sum_nanos: self.sum_nanos.saturating_sub(earlier.sum_nanos),
        }
    }

    /// The time within which this share of them was, 0.0..=1.0, taken to be spread evenly within its bucket;
    /// `None` = there were none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = (share * count as f64).max(1.0);
        let mut before = 0.0;
        for (bucket, here) in self.counts.iter().enumerate() {
            let here = *here as f64;
            if before + here >= rank && here > 0.0 {
                let low = bucket.checked_sub(1).map_or(0, |below| BOUNDS[below]);
                let high = BOUNDS.get(bucket).copied().unwrap_or(low);
                let within = (rank - before) / here * (high - low) as f64;
                return Some(Duration::from_nanos(low + within as u64));
            }
            before += here;
        }
        None
    }
}

/// Values of one power of two: the histogram's memory comes by these.
type Octave = [Counter; OCTAVE];

const OCTAVE: usize = 1 << OCTAVE_BITS;
const OCTAVE_BITS: u32 = 7;
/// Microseconds up to more than an hour, to two significant digits, as HdrHistogram lays them out.
const OCTAVES: usize = 26;
/// The longest time that is told apart, in microseconds: an hour.
const MOST_MICROS: u64 = 3_600_000_000;

/// Counts of microseconds to two significant digits, at the places where `Histogram::new_with_bounds(1, 1 h, 2)`
/// has them.
#[derive(Debug, Default)]
pub struct Bins {
    octaves: [OnceLock<Box<Octave>>; OCTAVES],
}

impl Bins {
    /// Counts one.
    pub fn record(&self, time: Duration) {
        let (octave, place) = place(micros(time));
        let octave = self.octaves[octave]
            .get_or_init(|| Box::new(std::array::from_fn(|_| Counter::default())));
        octave[place].add(1);
    }

    /// Adds what was counted so far to `sum`.
    pub fn add_to(&self, sum: &mut Histogram<u64>) {
        for (index, octave) in self.octaves.iter().enumerate() {
            let Some(octave) = octave.get() else {
                continue;
            };
            for (place, count) in octave.iter().enumerate() {
                let count = count.value();
                if count > 0 {
                    // Within its bounds, which are those of every value here.
                    sum.saturating_record_n(value(index, place), count);
                }
            }
        }
    }
}

/// An empty histogram of microseconds that [`Bins`] can be added to.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MOST_MICROS, 2).expect("bounds that the library takes")
}

/// Both forms.
#[derive(Debug, Default)]
pub struct Times {
    /// For percentiles.
    pub bins: Bins,
    /// For metrics.
    pub buckets: Buckets,
}

impl Times {
    /// Counts one.
    pub fn record(&self, time: Duration) {
        self.bins.record(time);
        self.buckets.record(time);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn micros(time: Duration) -> u64 {
    (nanos(time) / 1000).min(MOST_MICROS)
}

/// The octave of a number of microseconds, and its place there.
fn place(micros: u64) -> (usize, usize) {
    let shift = (micros | (2 * OCTAVE as u64 - 1)).ilog2() - OCTAVE_BITS;
    let index = ((shift as usize) << OCTAVE_BITS) + (micros >> shift) as usize;
    (index >> OCTAVE_BITS, index & (OCTAVE - 1))
}

/// The lowest number of microseconds of a place.
fn value(octave: usize, place: usize) -> u64 {
    match octave {
        0 => place as u64,
        _ => ((place + OCTAVE) as u64) << (octave - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_holds_its_own_values_and_no_others() {
        for micros in (0..70_000).chain([1 << 20, (1 << 20) + 8191, 1 << 31, MOST_MICROS]) {
            let (octave, at) = place(micros);
            assert!(octave < OCTAVES && at < OCTAVE, "{micros}");
            let lowest = value(octave, at);
            assert_eq!(place(lowest), (octave, at), "{micros}");
            assert!(
                lowest <= micros && micros - lowest <= micros / 128,
                "{micros}"
            );
        }
    }

    #[test]
    fn bins_are_where_the_librarys_are() {
        let (bins, mut ours, mut theirs) = (Bins::default(), histogram(), histogram());
        for micros in [
            0,
            1,
            127,
            128,
            255,
            256,
            1_000,
            65_537,
            999_999,
            MOST_MICROS,
        ] {
            bins.record(Duration::from_micros(micros));
            theirs.record(micros).expect("within bounds");
        }
        bins.add_to(&mut ours);
        assert_eq!(ours.len(), 10);
        for share in [0.0, 0.3, 0.5, 0.9, 1.0] {
            let (ours, theirs) = (
                ours.value_at_quantile(share),
                theirs.value_at_quantile(share),
            );
            assert_eq!(ours, theirs, "{share}");
        }
    }

    #[test]
    fn longer_than_an_hour_counts_as_an_hour() {
        let (bins, mut sum) = (Bins::default(), histogram());
        bins.record(Duration::from_secs(86_400));
        bins.add_to(&mut sum);
        assert_eq!((sum.len(), sum.max() >= MOST_MICROS), (1, true));
    }

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let buckets = Buckets::default();
        for nanos in [0, 100_000, 100_001, 3_600_000_000_000, 3_600_000_000_001] {
            buckets.record(Duration::from_nanos(nanos));
        }
        let counts = BucketCounts::sum([&buckets]);
        assert_eq!((counts.counts[0], counts.counts[1]), (2, 1));
        assert_eq!((counts.counts[19], counts.counts[20]), (1, 1));
        assert_eq!((counts.count(), counts.sum_nanos), (5, 7_200_000_200_002));
    }

    #[test]
    fn quantiles_lie_within_their_bucket() {
        let buckets = Buckets::default();
        assert_eq!(BucketCounts::default().quantile(0.5), None);
        (0..99).for_each(|_| buckets.record(Duration::from_micros(200)));
        buckets.record(Duration::from_secs(7));
        let counts = BucketCounts::sum([&buckets]);
        let at = |share| counts.quantile(share).expect("there are some");
        assert!((100..=250).contains(&at(0.5).as_micros()));
        assert!((5_000..=10_000).contains(&at(1.0).as_millis()));
    }
}
