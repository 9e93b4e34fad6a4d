//! What a worker has of all upstreams for itself: its part of their queues, the connections it has
//! open ahead, and its random numbers.

use std::cell::{Cell, RefCell, RefMut};
use std::rc::Rc;
use std::sync::Arc;

use super::gate::Gate;
use super::lines::Lines;
use super::pool::Pools;
use crate::telemetry::Reason;
use crate::telemetry::recorder::{Moment, Recorder, What};
use crate::time::Instant;

/// One per worker; never leaves its thread.
pub struct Local {
    worker: usize,
    random: Cell<u64>,
    lines: RefCell<Lines>,
    /// Connections that are open ahead.
    pub pools: Pools,
    /// Where handshakes line up.
    pub gate: Rc<Gate>,
    recorder: Arc<Recorder>,
}

impl Local {
    /// Of worker number `worker`. The same `seed` gives the same random numbers.
    pub fn new(worker: usize, seed: u64, recorder: Arc<Recorder>) -> Self {
        let gate = Rc::new(Gate::default());
        Self {
            worker,
            random: Cell::new(seed ^ (worker as u64).wrapping_mul(0xd6e8_feb8_6659_fd93)),
            lines: RefCell::default(),
            pools: Pools::new(worker, gate.clone()),
            gate,
            recorder,
        }
    }

    pub(super) fn worker(&self) -> usize {
        self.worker
    }

    /// Notes in the flight recorder what has happened to a session, and `subject`: the number of a listener's
    /// or a backend's name.
    pub fn note(&self, (at, session): (Instant, u32), what: What, subject: u32, value: u64) {
        self.recorder.note(&Moment {
            at,
            session,
            what,
            reason: None,
            subject,
            value,
        });
    }

    /// The same of a session's end, after so many bytes.
    pub fn note_end(
        &self,
        (at, session): (Instant, u32),
        reason: Reason,
        subject: u32,
        bytes: u64,
    ) {
        self.recorder.note(&Moment {
            at,
            session,
            what: What::Close,
            reason: Some(reason),
            subject,
            value: bytes,
        });
    }

    /// The worker was signalled: there may be places, and others may need those that are held ahead.
    pub fn answer_bell(&self) {
        self.lines.borrow().wake();
        self.pools.wake_all();
    }

    pub(super) fn lines(&self) -> RefMut<'_, Lines> {
        self.lines.borrow_mut()
    }

    /// A number out of all of them (SplitMix64).
    pub(super) fn random(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
