//! Choosing a backend: the roster of those that may be chosen, made again when something has
//! changed, and one choice out of it.

use std::sync::Arc;

use arc_swap::Guard;

use super::backend::{Lease, Refusal};
use super::connect::Opened;
use super::pool::Pools;
use super::queue::Look;
use super::{Backend, Upstream};
use crate::policy::balance::{Balancer, Candidates, Draw, Passed};
use crate::policy::roster::{Roster, Standing};
use crate::time::Instant;

/// A roster, and what it was made of.
#[derive(Default, Debug)]
pub(super) struct Known {
    pub(super) roster: Roster,
    arrangement: Vec<u16>,
    /// The number of changes that it has seen; `None` = it was never made.
    changes: Option<u64>,
}

/// What was chosen, its place taken.
pub(super) struct Choice {
    pub(super) index: usize,
    pub(super) lease: Lease,
    /// A connection that was open ahead.
    pub(super) ahead: Option<Opened>,
}

impl Known {
    /// The first in the order of `balancer` that is not `tried` and that `take` gets something of. These are
    /// the rules of every choice, whether it is made or only told of.
    pub(super) fn find<T>(
        &self,
        balancer: &dyn Balancer,
        draw: &Draw,
        tried: &Passed,
        mut take: impl FnMut(usize) -> Result<T, Refusal>,
    ) -> Look<Option<T>> {
        let mut passed = tried.clone();
        let mut full = false;
        while let Some(index) = self.next(balancer, draw, &passed, full) {
            match take(index) {
                Ok(taken) => return Look::Found(Some(taken)),
                Err(Refusal::Full) => full = true,
                Err(Refusal::Broken) => {}
            }
            passed.insert(index);
        }
        match full {
            true => Look::NotYet(self.roster.until),
            false => Look::Found(None),
        }
    }

    /// The balancer's choice, or a backup when no other is left; when others are merely full, they are
    /// waited for instead.
    fn next(
        &self,
        balancer: &dyn Balancer,
        draw: &Draw,
        passed: &Passed,
        full: bool,
    ) -> Option<usize> {
        let candidates = Candidates {
            weights: &self.roster.weights,
            arrangement: &self.arrangement,
            passed,
        };
        let spare = || {
            let spares = &self.roster.spares;
            let first = draw.request.random as usize % spares.len().max(1);
            let in_turn = spares[first..].iter().chain(&spares[..first]);
            in_turn.copied().find(|spare| !passed.contains(*spare))
        };
        let choice = balancer.choose(draw, &candidates);
        choice.or_else(|| if full { None } else { spare() })
    }
}

impl Upstream {
    /// Chooses among those not `tried` and takes a place at it; `None` when there is none that may be
    /// chosen. Not yet: those that may have as many connections as they may have, and no other can be
    /// used; to be looked again when a place is free. `pools`: where to look for a connection that is
    /// open ahead.
    pub(super) fn pick(
        &self,
        draw: &Draw,
        tried: &Passed,
        pools: Option<&Pools>,
        now: Instant,
    ) -> Look<Option<Choice>> {
        let known = self.known(now);
        known.find(&*self.balancer, draw, tried, |index| {
            let (lease, ahead) = self.take(index, pools, now)?;
            Ok(Choice {
                index,
                lease,
                ahead,
            })
        })
    }

    /// It may be chosen now.
    pub(super) fn is_ready(&self, index: usize, now: Instant) -> bool {
        let known = self.known(now);
        known.roster.weights[index] > 0 || known.roster.spares.contains(&index)
    }

    /// Backends that may be chosen now, backups among them; those that are full as well.
    pub fn ready(&self, now: Instant) -> usize {
        let known = self.known(now);
        let weights = known.roster.weights.iter();
        weights.filter(|weight| **weight > 0).count() + known.roster.spares.len()
    }

    /// One of them may be chosen now.
    pub fn has_ready(&self, now: Instant) -> bool {
        self.ready(now) > 0
    }

    fn take(
        &self,
        index: usize,
        pools: Option<&Pools>,
        now: Instant,
    ) -> Result<(Lease, Option<Opened>), Refusal> {
        let backend = &self.backends[index];
        if !backend.admits(now) {
            return Err(Refusal::Broken);
        }
        let (ahead, slot) = pools.and_then(|pools| pools.take(backend)).unzip();
        Lease::take(backend, slot, now).map(|lease| (lease, ahead))
    }

    /// Who may be chosen now.
    pub(super) fn known(&self, now: Instant) -> Guard<Arc<Known>> {
        let known = self.known.load();
        let current = known.changes == Some(self.state.changes())
            && known.roster.until.is_none_or(|until| now < until);
        if current {
            return known;
        }
        self.renew(now);
        self.known.load()
    }

    /// Makes the roster of this moment.
    pub(super) fn renew(&self, now: Instant) {
        // First, so that a change meanwhile is seen the next time.
        let changes = self.state.changes();
        for backend in &self.backends {
            backend.release(now);
        }
        let standings: Vec<Standing> = self
            .backends
            .iter()
            .map(|backend| Backend::standing(backend))
            .collect();
        let roster = Roster::new(&standings, self.rules, now);
        if self.state.note_failing_open(roster.failing_open) {
            self.events
                .failing_open(self.name.clone(), roster.failing_open);
        }
        self.known.store(Arc::new(Known {
            arrangement: self.balancer.arrange(&roster.weights),
            roster,
            changes: Some(changes),
        }));
    }
}
