//! Counts over a sliding window of time, shared by all workers. It owns the slices and nothing of
//! what is concluded from them, and it keeps no settings: the caller says which slice it means.
//!
//! The window is cut into [`SLICES`] slices; the present one is counted on top of them. So what was
//! counted stays for at least the window, and for a tenth of it more at most. A slice is one atomic
//! word with its own name in it: emptying it for a new time and the first count of that time are one
//! compare-exchange, and no count can fall between them. What is not exact:
//!
//! - A slice has room for a million counts. When it is full both of its counts are halved, which keeps
//!   their ratio.
//! - A name repeats after 2^18 laps: a slice that nobody wrote to for just that long (33 days, for a
//!   window of 10 s) would count once more.
//! - Names of different lengths of the window have nothing to do with each other. A reload that
//!   changes it begins anew, and each count that is still made with the old length costs a slice; so
//!   does one that comes two windows late.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::atomic::AtomicU64;
use crate::time::Instant;

/// Parts that the window is cut into.
const SLICES: usize = 10;
/// One more than a window holds, for the slice that is only beginning.
const SLOTS: usize = SLICES + 1;

/// Bits of each of the two counts of a slice.
const COUNT_BITS: u32 = 20;
const COUNT_MOST: u64 = (1 << COUNT_BITS) - 1;
const LAP_BITS: u32 = 18;
const ERA_BITS: u32 = u64::BITS - 2 * COUNT_BITS - LAP_BITS;

/// Counts by slices of time.
#[derive(Debug, Default)]
pub(super) struct Window([AtomicU64; SLOTS]);

/// All slots as they stand, word by word. Any words will do: a slot whose name is of another time counts
/// as empty. A version that packs them differently has to give the image another name.
pub(super) type Image = [u64; SLOTS];

/// So many, and how many of them were of the kind that matters.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Counts {
    pub(super) whole: u64,
    pub(super) part: u64,
}

/// A slice of time, of the window's length that it was made with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slice {
    number: u64,
    era: u64,
}

impl Slice {
    /// The slice of `now`. Slices of another `era` (64 of them are told apart) count as empty, which
    /// is how a caller begins anew.
    pub(super) fn at(now: Instant, window: Duration, era: u32) -> Self {
        let window = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX);
        let number = now.as_nanos() / (window / SLICES as u64).max(1);
        Self {
            // Starts a lap later, so that there is a window before the beginning of time, too.
            number: number.saturating_add(SLOTS as u64),
            era: u64::from(era) % (1 << ERA_BITS),
        }
    }

    /// The slices of the window that ends with this one, the latest first.
    fn back(self) -> impl Iterator<Item = Self> {
        (0..SLOTS as u64).map(move |back| Self {
            number: self.number - back,
            ..self
        })
    }

    fn slot(self) -> usize {
        (self.number % SLOTS as u64) as usize
    }

    /// What a slot that holds this slice bears, or with a lap more, one that another worker, whose
    /// clock is ahead, has already begun anew.
    fn name(self, laps_more: u64) -> u64 {
        let lap = (self.number / SLOTS as u64 + laps_more) % (1 << LAP_BITS);
        self.era << LAP_BITS | lap
    }

    fn is_in(self, word: Word) -> bool {
        word.name == self.name(0) || word.name == self.name(1)
    }
}

/// What a slot holds.
#[derive(Clone, Copy)]
struct Word {
    name: u64,
    counts: Counts,
}

impl Word {
    fn unpack(word: u64) -> Self {
        Self {
            name: word >> (2 * COUNT_BITS),
            counts: Counts {
                whole: word >> COUNT_BITS & COUNT_MOST,
                part: word & COUNT_MOST,
            },
        }
    }

    fn pack(self) -> u64 {
        self.name << (2 * COUNT_BITS) | self.counts.whole << COUNT_BITS | self.counts.part
    }
}

// All orderings are SeqCst: who counts and then sums up must see another who did the same at the same
// time in the neighbouring slice, or one of the two must be seen by the other.
impl Window {
    /// Counts `more` (at most one of each). Says what does not count any longer because of it: the
    /// slice that stood in this place before, or a half of one that was full.
    pub(super) fn add(&self, slice: Slice, more: Counts) -> Counts {
        let slot = &self.0[slice.slot()];
        let mut word = slot.load(Ordering::SeqCst);
        loop {
            let old = Word::unpack(word);
            let (next, lost) = added(old, slice, more);
            match slot.compare_exchange(word, next.pack(), Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return lost,
                Err(now) => word = now,
            }
        }
    }

    /// Takes one part back: of this slice, or of the latest before it in the window that has one.
    pub(super) fn take_part(&self, slice: Slice) -> bool {
        slice.back().any(|slice| {
            self.update(slice.slot(), |old| {
                let counts = Counts {
                    part: old.counts.part.checked_sub(1)?,
                    ..old.counts
                };
                (old.name == slice.name(0)).then_some(Word { counts, ..old })
            })
            .is_some()
        })
    }

    /// What was counted in the window that ends with `slice`, and by workers that are ahead of it.
    pub(super) fn sum(&self, slice: Slice) -> Counts {
        slice
            .back()
            .map(|slice| (slice, self.0[slice.slot()].load(Ordering::SeqCst)))
            .map(|(slice, word)| (slice, Word::unpack(word)))
            .filter(|(slice, word)| slice.is_in(*word))
            .fold(Counts::default(), |sum, (_, word)| Counts {
                whole: sum.whole + word.counts.whole,
                part: sum.part + word.counts.part,
            })
    }

    /// Empties what is older than the window that ends with `slice`. Says how many parts that were;
    /// nobody else is told of the same.
    pub(super) fn sweep(&self, slice: Slice) -> u64 {
        let swept = slice.back().filter_map(|slice| {
            self.update(slice.slot(), |old| {
                let is_old = old.counts != Counts::default() && !slice.is_in(old);
                is_old.then_some(Word::unpack(0))
            })
        });
        swept.map(|old| old.counts.part).sum()
    }

    /// What it holds.
    pub(super) fn image(&self) -> Image {
        std::array::from_fn(|slot| self.0[slot].load(Ordering::SeqCst))
    }

    /// Holds what `image` does, before anybody counts. Says how many parts that are, old ones included.
    pub(super) fn restore(&self, image: Image) -> u64 {
        for (slot, word) in self.0.iter().zip(image) {
            slot.swap(word, Ordering::SeqCst);
        }
        image
            .map(|word| Word::unpack(word).counts.part)
            .iter()
            .sum()
    }

    /// The word that was replaced, if `change` had one to put in its place.
    fn update(&self, slot: usize, change: impl Fn(Word) -> Option<Word>) -> Option<Word> {
        let change = |word| change(Word::unpack(word)).map(Word::pack);
        let old = self.0[slot].fetch_update(Ordering::SeqCst, Ordering::SeqCst, change);
        old.ok().map(Word::unpack)
    }
}

/// A count that comes a whole window too late goes to the slice that has taken the place of its own.
fn added(old: Word, slice: Slice, more: Counts) -> (Word, Counts) {
    let (name, kept) = if slice.is_in(old) {
        (old.name, old.counts)
    } else {
        (slice.name(0), Counts::default())
    };
    let mut counts = Counts {
        whole: kept.whole + more.whole,
        part: kept.part + more.part,
    };
    if counts.whole.max(counts.part) > COUNT_MOST {
        counts = Counts {
            whole: counts.whole / 2,
            part: counts.part / 2,
        };
    }
    let lost = Counts {
        whole: old.counts.whole + more.whole - counts.whole,
        part: old.counts.part + more.part - counts.part,
    };
    (Word { name, counts }, lost)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use proptest::prelude::*;

    use super::super::atomic::{cuts, interleave};
    use super::*;

    const WINDOW: Duration = Duration::from_secs(10);
    const BOTH: Counts = Counts { whole: 1, part: 1 };
    const WHOLE: Counts = Counts { whole: 1, part: 0 };

    fn at_millis(millis: u64) -> Slice {
        Slice::at(Instant::from_nanos(millis * 1_000_000), WINDOW, 0)
    }

    fn sum(window: &Window, millis: u64) -> (u64, u64) {
        let sum = window.sum(at_millis(millis));
        (sum.whole, sum.part)
    }

    #[test]
    fn what_was_counted_stays_for_the_window_and_for_a_tenth_more_at_most() {
        let window = Window::default();
        window.add(at_millis(5_700), BOTH);
        window.add(at_millis(6_000), WHOLE);
        assert_eq!(sum(&window, 5_999), (2, 1));
        assert_eq!(sum(&window, 15_999), (2, 1));
        assert_eq!(sum(&window, 16_000), (1, 0));
        assert_eq!(sum(&window, 17_000), (0, 0));
    }

    #[test]
    fn a_slot_is_emptied_by_the_first_count_of_its_next_slice_which_says_what_was_lost() {
        let window = Window::default();
        window.add(at_millis(0), BOTH);
        assert_eq!(window.add(at_millis(999), BOTH), Counts::default());
        let lost = window.add(at_millis(11_000), WHOLE);
        assert_eq!(lost, Counts { whole: 2, part: 2 });
        assert_eq!(sum(&window, 11_000), (1, 0));
    }

    #[test]
    fn a_count_that_comes_late_is_counted_all_the_same() {
        let window = Window::default();
        window.add(at_millis(11_000), WHOLE);
        window.add(at_millis(10_999), BOTH);
        window.add(at_millis(0), BOTH);
        assert_eq!(sum(&window, 11_000), (3, 2));
        assert_eq!(sum(&window, 10_000), (3, 2));
    }

    #[test]
    fn sweeping_takes_what_is_old_once_and_leaves_the_rest() {
        let window = Window::default();
        window.add(at_millis(1_000), BOTH);
        window.add(at_millis(1_500), BOTH);
        window.add(at_millis(2_000), BOTH);
        assert_eq!(window.sweep(at_millis(11_999)), 0);
        assert_eq!(window.sweep(at_millis(12_000)), 2);
        assert_eq!(window.sweep(at_millis(12_000)), 0);
        assert_eq!(sum(&window, 12_000), (1, 1));
        assert_eq!(window.sweep(at_millis(13_000)), 1);
    }

    #[test]
    fn a_part_is_taken_from_the_latest_slice_up_to_the_one_that_is_named() {
        let window = Window::default();
        window.add(at_millis(0), BOTH);
        window.add(at_millis(3_000), BOTH);
        window.add(at_millis(5_000), BOTH);
        assert!(window.take_part(at_millis(4_000)));
        assert_eq!(sum(&window, 10_000), (3, 2));
        assert!(window.take_part(at_millis(4_000)));
        assert_eq!(sum(&window, 11_000), (2, 1));
        assert!(!window.take_part(at_millis(4_000)));
        assert!(!window.take_part(at_millis(16_000)));
    }

    #[test]
    fn another_era_and_another_length_see_nothing() {
        let window = Window::default();
        let now = Instant::from_nanos(7_000_000_000);
        window.add(Slice::at(now, WINDOW, 1), BOTH);
        assert_eq!(window.sum(Slice::at(now, WINDOW, 2)), Counts::default());
        let shorter = Slice::at(now, WINDOW / 5, 1);
        assert_eq!(window.sum(shorter), Counts::default());
        window.add(shorter, BOTH);
        assert_eq!(window.sum(shorter), BOTH);
    }

    #[test]
    fn a_full_slice_is_halved_and_keeps_its_ratio() {
        let window = Window::default();
        let slice = at_millis(0);
        let mut lost = Counts::default();
        for i in 0..=COUNT_MOST {
            let gone = window.add(slice, if i % 4 == 0 { BOTH } else { WHOLE });
            lost.whole += gone.whole;
            lost.part += gone.part;
        }
        let half = 1 << (COUNT_BITS - 1);
        let rest = Counts {
            whole: half,
            part: half / 4,
        };
        assert_eq!(lost, rest);
        assert_eq!(window.sum(slice), rest);
    }

    #[test]
    fn an_image_holds_all_that_was_counted() {
        let window = Window::default();
        for millis in [0, 1_000, 1_500, 9_000] {
            window.add(at_millis(millis), BOTH);
        }
        let other = Window::default();
        assert_eq!(other.restore(window.image()), 4);
        assert_eq!(other.image(), window.image());
        for millis in [9_000, 12_000, 13_000, 25_000] {
            assert_eq!(sum(&other, millis), sum(&window, millis));
        }
        assert_eq!(other.sweep(at_millis(99_000)), 4);
    }

    #[test]
    fn any_length_and_any_time_will_do() {
        let window = Window::default();
        for length in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
            for nanos in [0, 1, u64::MAX] {
                let slice = Slice::at(Instant::from_nanos(nanos), length, u32::MAX);
                window.add(slice, BOTH);
                assert_ne!(window.sum(slice), Counts::default());
                assert!(window.take_part(slice));
                window.sweep(slice);
            }
        }
    }

    proptest! {
        #[test]
        fn whoever_cuts_in_nothing_is_lost_or_counted_twice(
            cuts in cuts(60, 40),
            steps in prop::collection::vec(0u64..3, 1..60),
        ) {
            let count = steps.len() as u64;
            let shared = Rc::new((Window::default(), Cell::new(0)));
            let (world, seconds) = (shared.clone(), Cell::new(0));
            interleave(cuts, steps, move |step| {
                seconds.set(seconds.get() + 5 * step);
                let slice = at_millis(seconds.get() * 1_000);
                let gone = world.0.add(slice, BOTH).part + world.0.sweep(slice);
                world.1.set(world.1.get() + gone);
            });
            let (window, lost) = &*shared;
            let left = window.sweep(at_millis(1_000_000_000));
            prop_assert_eq!(lost.get() + left, count);
        }

        #[test]
        fn the_sum_lies_between_that_of_the_window_and_that_of_a_tenth_more(
            uptime in prop_oneof![Just(0), 0u64..40 * 365 * 86_400_000],
            steps in prop::collection::vec((0u64..3_000, any::<bool>()), 1..200),
        ) {
            let window = Window::default();
            let mut counted: Vec<(u64, u64)> = Vec::new();
            let mut now = uptime;
            for (step, part) in steps {
                now += step;
                let more = Counts { whole: 1, part: u64::from(part) };
                window.add(at_millis(now), more);
                counted.push((now, more.part));
                let within = |length: u64| {
                    let recent = counted.iter().filter(move |(at, _)| at + length > now);
                    recent.fold((0, 0), |sum, (_, part)| (sum.0 + 1, sum.1 + part))
                };
                let sum = sum(&window, now);
                prop_assert!(within(10_000) <= sum && sum <= within(11_000));
                prop_assert!(within(10_000).1 <= sum.1 && sum.1 <= within(11_000).1);
            }
        }
    }
}
