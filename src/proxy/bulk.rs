//! The tier of one direction: by buffers, which is cheapest for messages, or by splice, which is
//! cheapest for bulk.
//!
//! ```text
//!   Buffers ──16 windows in a row, each within 20 ms of the last──▶ Splice
//!      ▲                                                              │
//!      ├──16 times in a row less than 32 KiB at once, pipe empty──────┤  (then twice as many windows, up to 128)
//!      └──the end, TCP's urgent mark, or a second of silence──────────┘
//! ```

use crate::ring::{Pipe, Relayed, Socket};
use crate::time::Instant;

/// Bytes held of a direction on buffers at most, one buffer more at the end.
pub(super) const WINDOW: u32 = 64 * 1024;
/// Windows in a row after which a direction is bulk: a MiB.
const STREAK: u8 = 16;
/// The same after splicing was given up again and again.
const LONGEST_STREAK: u8 = 8 * STREAK;
/// Bytes are counted by 64, in 16 bits.
const UNIT: u32 = 6;
/// The longest time between two windows of bulk: 3 MiB a second.
const QUICK_MS: u32 = 20;
/// Moving less than this at once is better done by buffers.
const SMALL: u32 = 32 * 1024;

/// The tier and what it is chosen by.
pub(super) struct Bulk {
    pipe: Option<Box<Pipe>>,
    /// Windows in a row (buffers), or small moves in a row (splice).
    streak: u8,
    /// The streak of windows after which it is bulk: twice as many each time that splicing was given up.
    enough: u8,
    /// What was moved since, in 64 bytes.
    since: u16,
    /// When the last window began, in ms; it may wrap, since only short differences count.
    window_at: u32,
}

impl Default for Bulk {
    fn default() -> Self {
        Self {
            pipe: None,
            streak: 0,
            enough: STREAK,
            since: 0,
            window_at: 0,
        }
    }
}

impl Bulk {
    /// Nothing is in a pipe.
    pub(super) fn is_empty(&self) -> bool {
        self.pipe.as_ref().is_none_or(|pipe| pipe.is_empty())
    }

    /// Moves what `source` has sent to `target`.
    #[inline(always)]
    pub(super) fn relay(&mut self, source: &Socket, target: &Socket, now: Instant) -> Relayed {
        if self.pipe.is_some() || self.streak >= self.enough {
            return self.splice(source, target, now);
        }
        let relayed = source.relay_to(target, WINDOW);
        self.note_buffers(relayed.moved, now);
        relayed
    }

    /// The same of what is bulk, or has just become it. Apart, so that messages don't pay for it.
    #[inline(never)]
    fn splice(&mut self, source: &Socket, target: &Socket, now: Instant) -> Relayed {
        if let Some(pipe) = &mut self.pipe {
            let relayed = source.splice_to(target, pipe);
            if pipe.is_stuck() {
                self.pipe = None;
                self.streak = 0;
                let mut next = source.relay_to(target, WINDOW);
                next.moved += relayed.moved;
                return next;
            }
            self.note_move(relayed.moved);
            return relayed;
        }
        let relayed = source.relay_to(target, 0);
        if !relayed.quiet {
            return relayed;
        }
        self.streak = 0;
        self.pipe = source.ring().pipe().map(Box::new);
        let mut next = self.relay(source, target, now);
        next.moved += relayed.moved;
        next
    }

    /// Gives the pipe to whoever needs one: nothing has moved for a while.
    pub(super) fn rest(&mut self) {
        if self.is_empty() {
            self.pipe = None;
        }
    }

    /// It has a pipe.
    pub(super) fn has_pipe(&self) -> bool {
        self.pipe.is_some()
    }

    fn note_buffers(&mut self, moved: u32, now: Instant) {
        self.since = self.since.saturating_add((moved >> UNIT) as u16);
        if self.since < (WINDOW >> UNIT) as u16 {
            return;
        }
        self.since = 0;
        let now = (now.as_nanos() / 1_000_000) as u32;
        let quick = now.wrapping_sub(self.window_at) < QUICK_MS;
        self.streak = if quick {
            self.streak.saturating_add(1)
        } else {
            0
        };
        self.window_at = now;
    }

    fn note_move(&mut self, moved: u32) {
        if moved >= SMALL {
            self.streak = 0;
        } else if moved > 0 {
            self.streak = self.streak.saturating_add(1);
        }
        if self.streak >= STREAK && self.is_empty() {
            self.pipe = None;
            self.streak = 0;
            self.enough = self.enough.saturating_mul(2).min(LONGEST_STREAK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_that_splicing_is_given_up_it_takes_twice_as_much_up_to_a_bound() {
        let mut bulk = Bulk::default();
        let enough = [32, 64, 128, 128, 128].map(|_: u8| {
            for _ in 0..STREAK {
                bulk.note_move(1);
            }
            bulk.enough
        });
        assert_eq!(enough, [32, 64, 128, 128, 128]);
    }
}
