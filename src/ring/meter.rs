//! What a ring tells about itself: numbers that its worker writes now and then, and anybody reads.

use std::sync::atomic::{AtomicU64, Ordering};

/// Of one ring, and of those that took its place.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Meter {
    turns: AtomicU64,
    completions: AtomicU64,
    busy_nanos: AtomicU64,
    shortages: AtomicU64,
    overflows: AtomicU64,
    tasks: AtomicU64,
    descriptors: AtomicU64,
    buffers: AtomicU64,
    starved: AtomicU64,
    timers: AtomicU64,
}

/// A [`Meter`] at one time.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Reading {
    /// Turns so far.
    pub turns: u64,
    /// Completions so far.
    pub completions: u64,
    /// Nanoseconds that the worker's thread was on a CPU, in user space and in the kernel, so far.
    pub busy_nanos: u64,
    /// Receives that found no buffer (ENOBUFS), so far.
    pub shortages: u64,
    /// Completions for which the queue had no room, so far; the kernel kept them elsewhere.
    pub overflows: u64,
    /// Tasks that have not ended.
    pub tasks: u64,
    /// Descriptors that are worked on.
    pub descriptors: u64,
    /// Receive buffers that sessions hold.
    pub buffers: u64,
    /// Receives that wait for a buffer.
    pub starved: u64,
    /// Timers that exist.
    pub timers: u64,
}

impl Meter {
    /// As of some moment of the last 100 ms in which anything happened.
    pub fn reading(&self) -> Reading {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        Reading {
            turns: read(&self.turns),
            completions: read(&self.completions),
            busy_nanos: read(&self.busy_nanos),
            shortages: read(&self.shortages),
            overflows: read(&self.overflows),
            tasks: read(&self.tasks),
            descriptors: read(&self.descriptors),
            buffers: read(&self.buffers),
            starved: read(&self.starved),
            timers: read(&self.timers),
        }
    }

    /// Turns are over. What grows is added to what was there before; the owner alone calls this.
    pub(super) fn note(&self, turn: &Reading) {
        let add = |sum: &AtomicU64, more: u64| {
            if more > 0 {
                sum.store(
                    sum.load(Ordering::Relaxed).wrapping_add(more),
                    Ordering::Relaxed,
                );
            }
        };
        add(&self.turns, turn.turns);
        add(&self.completions, turn.completions);
        add(&self.busy_nanos, turn.busy_nanos);
        add(&self.shortages, turn.shortages);
        add(&self.overflows, turn.overflows);
        let set = |gauge: &AtomicU64, now: u64| gauge.store(now, Ordering::Relaxed);
        set(&self.tasks, turn.tasks);
        set(&self.descriptors, turn.descriptors);
        set(&self.buffers, turn.buffers);
        set(&self.starved, turn.starved);
        set(&self.timers, turn.timers);
    }
}
