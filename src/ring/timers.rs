//! A hierarchical timer wheel: six levels of 64 slots, about a millisecond a tick. It owns the
//! deadlines of one worker and names the tasks to wake; it never reads a clock.
//!
//! A timer is made once per session and set again and again: setting moves an entry between two
//! lists, so that renewing costs no allocation. An entry that fired stays its owner's.

use crate::ring::executor::TaskId;
use crate::time::Instant;

/// 2^20 ns = 1.05 ms a tick: shifting is cheaper than dividing, and no timeout of a proxy is finer.
const TICK_SHIFT: u32 = 20;
const LEVELS: usize = 6;
const SLOTS: usize = 64;
const NONE: u32 = u32::MAX;
/// The furthest tick ahead that the wheel can hold, about 2.3 years: one slot of the last level less
/// than a lap of it, so that no deadline falls into the slot where time stands. A later one waits
/// there and is put back when its time comes.
const HORIZON: u64 = (1 << (6 * LEVELS)) - (1 << (6 * (LEVELS - 1)));

/// An entry of the wheel; it belongs to whoever created it until it is removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TimerId(u32);

impl TimerId {
    /// No timer.
    pub(crate) const NONE: Self = Self(NONE);
}

struct Entry {
    deadline: Instant,
    task: TaskId,
    previous: u32,
    next: u32,
    /// level * 64 + slot, or `IDLE` when it is in no list.
    list: u16,
}

const IDLE: u16 = u16::MAX;

/// The wheel.
pub(crate) struct Timers {
    entries: Vec<Entry>,
    free: Vec<u32>,
    heads: [u32; LEVELS * SLOTS],
    occupied: [u64; LEVELS],
    /// The tick up to which everything has fired.
    elapsed: u64,
}

impl Timers {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            entries: Vec::new(),
            free: Vec::new(),
            heads: [NONE; LEVELS * SLOTS],
            occupied: [0; LEVELS],
            elapsed: now.as_nanos() >> TICK_SHIFT,
        }
    }

    /// A timer that is not set.
    pub(crate) fn create(&mut self) -> TimerId {
        let entry = Entry {
            deadline: Instant::default(),
            task: TaskId::NONE,
            previous: NONE,
            next: NONE,
            list: IDLE,
        };
        if let Some(index) = self.free.pop() {
            self.entries[index as usize] = entry;
            return TimerId(index);
        }
        self.entries.push(entry);
        TimerId(u32::try_from(self.entries.len() - 1).expect("fewer than 2^32 timers"))
    }

    /// Wakes `task` once, not before `deadline` and at most a tick and a turn after it. A deadline
    /// that has passed fires with the next tick, so that a loop can't spin on it.
    pub(crate) fn set(&mut self, id: TimerId, deadline: Instant, task: TaskId) {
        self.unlink(id.0);
        let entry = &mut self.entries[id.0 as usize];
        entry.deadline = deadline;
        entry.task = task;
        self.link(id.0);
    }

    /// The timer will not fire until it is set again.
    pub(crate) fn clear(&mut self, id: TimerId) {
        self.unlink(id.0);
    }

    /// Gives the entry back.
    pub(crate) fn remove(&mut self, id: TimerId) {
        self.unlink(id.0);
        self.free.push(id.0);
    }

    /// Entries that exist, set or not.
    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// When [`Timers::expire`] has to be called next; it may find nothing to fire then.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let (_, _, tick) = self.next_slot()?;
        Some(Instant::from_nanos(tick << TICK_SHIFT))
    }

    /// Hands `wake` the task of every timer whose deadline is not after `now`.
    pub(crate) fn expire(&mut self, now: Instant, mut wake: impl FnMut(TaskId)) {
        let now_tick = now.as_nanos() >> TICK_SHIFT;
        while let Some((level, slot, tick)) = self.next_slot() {
            if tick > now_tick {
                break;
            }
            self.elapsed = self.elapsed.max(tick);
            let list = level * SLOTS + slot;
            let mut index = self.heads[list];
            self.heads[list] = NONE;
            self.occupied[level] &= !(1 << slot);
            while index != NONE {
                let entry = &mut self.entries[index as usize];
                let next = entry.next;
                entry.list = IDLE;
                if due_tick(entry.deadline) <= self.elapsed {
                    wake(entry.task);
                } else {
                    self.link(index);
                }
                index = next;
            }
        }
        self.elapsed = self.elapsed.max(now_tick);
    }

    /// The first occupied slot: level, slot, and the tick at which it is due.
    fn next_slot(&self) -> Option<(usize, usize, u64)> {
        let level = self.occupied.iter().position(|&bits| bits != 0)?;
        let shift = 6 * level as u32;
        let here = (self.elapsed >> shift) & 63;
        let ahead = self.occupied[level]
            .rotate_right(here as u32)
            .trailing_zeros();
        let slot = (here + u64::from(ahead)) & 63;
        let lap = self.elapsed & !((1 << (shift + 6)) - 1);
        let mut tick = lap + (slot << shift);
        if slot < here {
            tick += 1 << (shift + 6);
        }
        Some((level, slot as usize, tick))
    }

    fn link(&mut self, index: u32) {
        let due = due_tick(self.entries[index as usize].deadline);
        let tick = due.clamp(self.elapsed + 1, self.elapsed + HORIZON);
        let differing = 63 - ((self.elapsed ^ tick) | 63).leading_zeros();
        let level = (differing as usize / 6).min(LEVELS - 1);
        let slot = ((tick >> (6 * level)) & 63) as usize;
        let list = level * SLOTS + slot;
        let head = self.heads[list];
        if head != NONE {
            self.entries[head as usize].previous = index;
        }
        let entry = &mut self.entries[index as usize];
        entry.previous = NONE;
        entry.next = head;
        entry.list = list as u16;
        self.heads[list] = index;
        self.occupied[level] |= 1 << slot;
    }

    fn unlink(&mut self, index: u32) {
        let Entry {
            previous,
            next,
            list,
            ..
        } = self.entries[index as usize];
        if list == IDLE {
            return;
        }
        self.entries[index as usize].list = IDLE;
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        if previous != NONE {
            self.entries[previous as usize].next = next;
            return;
        }
        self.heads[list as usize] = next;
        if next == NONE {
            self.occupied[list as usize / SLOTS] &= !(1 << (list as usize % SLOTS));
        }
    }
}

/// The first tick that begins at or after `deadline`.
fn due_tick(deadline: Instant) -> u64 {
    let nanos = deadline.as_nanos();
    (nanos >> TICK_SHIFT) + u64::from(nanos & ((1 << TICK_SHIFT) - 1) != 0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const TICK: Duration = Duration::from_nanos(1 << TICK_SHIFT);

    fn fired(timers: &mut Timers, now: Instant) -> Vec<u32> {
        let mut tasks = Vec::new();
        timers.expire(now, |task| tasks.push(task.index()));
        tasks.sort_unstable();
        tasks
    }

    #[test]
    fn a_timer_fires_once_and_not_before_its_deadline() {
        let start = Instant::from_nanos(12_345_678_901);
        let mut timers = Timers::new(start);
        let id = timers.create();
        timers.set(id, start + Duration::from_millis(10), TaskId::from_index(7));
        assert!(fired(&mut timers, start + Duration::from_millis(9)).is_empty());
        assert_eq!(
            fired(&mut timers, start + Duration::from_millis(10) + TICK),
            [7]
        );
        assert!(fired(&mut timers, start + Duration::from_secs(10)).is_empty());
    }

    #[test]
    fn a_deadline_in_the_past_fires_strictly_later_than_now() {
        let start = Instant::from_nanos(1 << 40);
        let mut timers = Timers::new(start);
        let id = timers.create();
        timers.set(id, Instant::default(), TaskId::from_index(1));
        assert!(timers.next_deadline().expect("one is set") > start);
        assert!(fired(&mut timers, start).is_empty());
        assert_eq!(fired(&mut timers, start + TICK), [1]);
    }

    #[test]
    fn a_deadline_beyond_the_horizon_waits_for_its_time() {
        let start = Instant::from_nanos(123_456_789_012_345);
        let ten_years = Duration::from_secs(10 * 365 * 86_400);
        let mut timers = Timers::new(start);
        let id = timers.create();
        timers.set(id, start + ten_years, TaskId::from_index(3));
        while let Some(next) = timers.next_deadline() {
            let tasks = fired(&mut timers, next);
            assert!(tasks.is_empty() || next >= start + ten_years);
            assert!(next <= start + ten_years + TICK);
        }
    }

    /// A machine that has run for up to 36 years; often one whose wheel is about to complete a lap,
    /// the first of them 2.3 years after boot.
    fn start() -> impl Strategy<Value = u64> {
        const LAP_BITS: u32 = TICK_SHIFT + 6 * LEVELS as u32;
        let before_a_lap = (1u64..16, 0u64..600_000_000_000);
        prop_oneof![
            0..1u64 << 60,
            before_a_lap.prop_map(|(laps, before)| (laps << LAP_BITS) - before),
        ]
    }

    proptest! {
        #[test]
        fn as_a_sorted_list_would(
            start in start(),
            steps in prop::collection::vec((0u8..4, 0u32..40, 0u64..200_000), 1..300),
        ) {
            let mut now = Instant::from_nanos(start);
            let mut timers = Timers::new(now);
            let ids: Vec<TimerId> = (0..40).map(|_| timers.create()).collect();
            let mut model: Vec<Option<Instant>> = vec![None; 40];
            for (kind, which, millis) in steps {
                let id = ids[which as usize];
                match kind {
                    0 | 1 => {
                        let deadline = now + Duration::from_millis(millis * u64::from(kind + 1));
                        timers.set(id, deadline, TaskId::from_index(which));
                        model[which as usize] = Some(deadline);
                    }
                    2 => {
                        timers.clear(id);
                        model[which as usize] = None;
                    }
                    _ => {
                        now = now + Duration::from_millis(millis / 7 + 2);
                        let tasks = fired(&mut timers, now);
                        for (index, deadline) in model.iter_mut().enumerate() {
                            let Some(at) = *deadline else {
                                prop_assert!(!tasks.contains(&(index as u32)));
                                continue;
                            };
                            if tasks.contains(&(index as u32)) {
                                prop_assert!(at <= now);
                                *deadline = None;
                            } else {
                                prop_assert!(at + TICK > now, "{at:?} was not fired at {now:?}");
                            }
                        }
                    }
                }
            }
            for id in ids {
                timers.remove(id);
            }
            prop_assert_eq!(timers.len(), 0);
            prop_assert_eq!(timers.next_deadline(), None);
        }
    }
}
