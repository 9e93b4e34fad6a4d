//! Hands the requests of a run that has a schedule to its connections, when they are due.

use std::rc::Rc;

use ringress::time::Instant;

use super::fresh;
use super::kept::Lane;
use super::run::{Rhythm, Run};

/// A run with its kept connections, if it has any.
pub(super) struct Pacer {
    pub(super) run: Rc<Run>,
    lanes: Vec<Rc<Lane>>,
    /// The first request that was not handed over yet.
    next: u64,
}

impl Pacer {
    /// Nothing is handed over yet. Without `lanes` every request gets a connection of its own.
    pub(super) fn new(run: Rc<Run>, lanes: Vec<Rc<Lane>>) -> Self {
        let next = 0;
        Self { run, lanes, next }
    }

    /// Sees to everything that has become due; returns when the next one will be.
    pub(super) fn hand_over(&mut self) -> Option<Instant> {
        let run = &self.run;
        let Some(Rhythm::Open { schedule, last }) = run.rhythm.get() else {
            return None;
        };
        let now = run.ring.now();
        loop {
            let due = schedule.due(self.next);
            if due >= last {
                return None;
            }
            if due > now {
                return Some(due);
            }
            run.handed_over(due);
            match self.lanes.as_slice() {
                [] => {
                    run.task_begins();
                    run.ring.spawn(fresh::visit(run.clone(), self.next, due));
                }
                lanes => lanes[(self.next % lanes.len() as u64) as usize].advance(run),
            }
            self.next += 1;
        }
    }

    /// Something was due before the end and has no answer yet.
    pub(super) fn is_due(&self) -> bool {
        match (self.run.rhythm.get(), self.lanes.as_slice()) {
            (Some(Rhythm::Open { .. }), []) => self.run.is_alive(),
            (Some(Rhythm::Open { .. }), lanes) => lanes.iter().any(|lane| lane.is_due(&self.run)),
            _ => false,
        }
    }

    /// Gives up what has no answer. A connection for one request alone gives up by itself.
    pub(super) fn give_up(&self) {
        if let Some(Rhythm::Open { .. }) = self.run.rhythm.get() {
            for lane in &self.lanes {
                lane.open_requests(&self.run, |meant| self.run.given_up(meant));
            }
        }
    }
}
