//! What is counted during a run.

use ringress::time::Instant;
use serde::Serialize;

use crate::load::Latency;

/// What became of the datagrams of a run, warm-up included. A burst's datagrams count one by one.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Faults {
    /// Datagrams that were to arrive: those sent, or those asked for.
    pub sent: u64,
    /// Not there in time, wherever they were lost.
    pub lost: u64,
    /// Those of the lost that came later.
    pub late: u64,
    /// Those that a newer one of the same source was faster than.
    pub reordered: u64,
    /// Those that came once more.
    pub duplicates: u64,
    /// Other bytes than were sent, or another number of them.
    pub corrupt: u64,
    /// Intact, but another source's.
    pub foreign: u64,
    /// From another run; nobody's fault.
    pub stray: u64,
    /// Sends that met with nobody who listens, as far as the kernel tells, or that it did not take. Their
    /// datagrams are among the lost.
    pub refused: u64,
    /// Thrown away because a socket of the generator had no room. Those of the lost that the proxy is
    /// not to blame for; segments that arrive together count once.
    pub dropped_at_generator: u64,
    /// The same at a backend that was served in the same thread.
    pub dropped_at_backend: u64,
}

impl Faults {
    /// Kinds of what can become of a datagram.
    pub(crate) const KINDS: usize = 10;

    /// What no proxy may do.
    pub fn wrong(&self) -> u64 {
        self.duplicates + self.corrupt + self.foreign
    }

    /// The kinds in words, with their counts.
    pub(crate) fn kinds(&self) -> [(&'static str, u64); Self::KINDS] {
        [
            ("lost", self.lost),
            ("came after they were given up", self.late),
            ("reordered", self.reordered),
            ("came twice", self.duplicates),
            ("corrupt", self.corrupt),
            ("another source's", self.foreign),
            ("of another run", self.stray),
            ("refused", self.refused),
            (
                "dropped at the generator's sockets",
                self.dropped_at_generator,
            ),
            ("dropped at the backend's sockets", self.dropped_at_backend),
        ]
    }
}

/// Counts between two edges, and faults all the time.
pub(super) struct Tally {
    pub(super) begin: Instant,
    pub(super) end: Instant,
    /// What is due at fixed times is timed by when it was due, the rest by when it was answered.
    is_open: bool,
    pub(super) completed: u64,
    pub(super) bytes: u64,
    pub(super) latency: Latency,
    pub(super) lateness: Latency,
    pub(super) faults: Faults,
}

/// An instant that never comes: the edges' place before they are reached.
const NEVER: Instant = Instant::from_nanos(u64::MAX);

impl Tally {
    pub(super) fn new(is_open: bool) -> Self {
        Self {
            begin: NEVER,
            end: NEVER,
            is_open,
            completed: 0,
            bytes: 0,
            latency: Latency::default(),
            lateness: Latency::default(),
            faults: Faults::default(),
        }
    }

    fn is_counted(&self, at: Instant) -> bool {
        self.begin <= at && at < self.end
    }

    /// What was meant to go out at `meant` has its answer at `now`.
    pub(super) fn answered(&mut self, meant: Instant, now: Instant) {
        let completed = self.is_counted(now);
        self.completed += u64::from(completed);
        if (self.is_open && self.is_counted(meant)) || (!self.is_open && completed) {
            self.latency.record(now - meant);
        }
    }

    /// What was meant to go out at `meant` is given up at `now`. Where it was due it has waited so long.
    pub(super) fn given_up(&mut self, meant: Instant, now: Instant) {
        if self.is_open && self.is_counted(meant) {
            self.latency.record(now - meant);
        }
    }

    /// The generator got round at `now` to what is due since `due`.
    pub(super) fn handed_over(&mut self, due: Instant, now: Instant) {
        if self.is_counted(due) {
            self.lateness.record(now - due);
        }
    }

    /// So many bytes of use arrived by `now`.
    pub(super) fn carried(&mut self, bytes: u64, now: Instant) {
        if self.is_counted(now) {
            self.bytes += bytes;
        }
    }
}
