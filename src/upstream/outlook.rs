//! What would become of a session that asked for a backend now, and what keeps it from each of the others. It
//! goes through the same rules as a choice and takes nothing: no turn, no place, no permit.

use std::net::IpAddr;
use std::time::Duration;

use super::{Backend, Upstream};
use crate::policy::balance::{Candidates, Foresight, Passed, Request};
use crate::policy::roster::{Roster, Standing};
use crate::time::Instant;

/// Where a session would go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outlook {
    /// The name of the algorithm.
    pub balance: &'static str,
    /// What the prospect is worth.
    pub foresight: Foresight,
    /// Where to.
    pub prospect: Prospect,
    /// What keeps it from each backend, in the order of the configuration; `None` = nothing.
    pub hindrances: Vec<Option<Hindrance>>,
    /// The weights that they have at the moment, in the same order: 0 = it may not be chosen. They stand in
    /// proportion and may all be scaled by ten.
    pub weights: Vec<u16>,
    /// Health and ejections are ignored, as too few backends are good.
    pub failing_open: bool,
    /// Sessions that wait for a place.
    pub waiting: usize,
    /// How many may.
    pub most_waiting: usize,
}

/// Where to. Backends are named by their place in the configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Prospect {
    /// To this one.
    Goes(usize),
    /// To one of these, which is drawn.
    Draws(Vec<usize>),
    /// All that may be chosen have as many connections as they may have.
    Full,
    /// None may be chosen.
    Nobody,
}

/// What keeps sessions from a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hindrance {
    /// By the configuration.
    NoWeight,
    /// The operator has ordered it.
    Drained,
    /// Its health checks say so.
    Unhealthy,
    /// For so long still.
    Ejected(Duration),
    /// For so long still.
    BreakerOpen(Duration),
    /// Its breaker is half-open, and as many sessions try it as may.
    BreakerBusy,
    /// It has as many connections as it may have.
    Full(usize),
    /// It is a backup, and others are ready.
    Backup,
}

impl Upstream {
    /// Backends that may be chosen at `now`, backups among them; those that are full as well.
    pub fn ready(&self, now: Instant) -> usize {
        let standings = self.backends.iter().map(|it| it.standing_at(now));
        let roster = Roster::new(&standings.collect::<Vec<_>>(), self.rules, now);
        roster.weights.iter().filter(|weight| **weight > 0).count() + roster.spares.len()
    }

    /// Where a session of this client would go if it came now. What connections the workers hold open ahead is
    /// not known here: one of them may serve where the backend is full.
    pub fn outlook(&self, client: Option<IpAddr>, now: Instant) -> Outlook {
        let standings: Vec<_> = self
            .backends
            .iter()
            .map(|backend| backend.standing_at(now))
            .collect();
        let roster = Roster::new(&standings, self.rules, now);
        let refusals: Vec<_> = self
            .backends
            .iter()
            .map(|backend| backend.refusal(now))
            .collect();
        let foresight = match self.balancer.foresight() {
            // A hash of nothing is drawn.
            Foresight::Certain if self.needs_client() && client.is_none() => Foresight::Chance,
            foresight => foresight,
        };
        let prospect = match foresight {
            Foresight::Chance => drawn(&roster, &refusals),
            Foresight::Certain | Foresight::Next => self.foreseen(&roster, &refusals, client, now),
        };
        let hindrances = standings.iter().zip(&refusals).enumerate();
        Outlook {
            balance: self.algorithm.name,
            foresight,
            prospect,
            hindrances: hindrances
                .map(|(index, (standing, refusal))| {
                    let spare = roster.spares.contains(&index);
                    let barred = barred(standing, roster.failing_open, now);
                    barred.or(*refusal).or(spare.then_some(Hindrance::Backup))
                })
                .collect(),
            failing_open: roster.failing_open,
            weights: roster.weights,
            waiting: self.waiting(),
            most_waiting: self.queue.max,
        }
    }

    /// As [`Upstream::pick`], with a balancer that is thrown away.
    fn foreseen(
        &self,
        roster: &Roster,
        refusals: &[Option<Hindrance>],
        client: Option<IpAddr>,
        now: Instant,
    ) -> Prospect {
        let rehearsal = self.balancer.rehearsal();
        let balancer = rehearsal.as_deref().unwrap_or(&*self.balancer);
        let arrangement = balancer.arrange(&roster.weights);
        let draw = balancer.draw(Request {
            client,
            random: 0,
            now,
        });
        let mut passed = Passed::default();
        let mut full = false;
        loop {
            let candidates = Candidates {
                weights: &roster.weights,
                arrangement: &arrangement,
                passed: &passed,
            };
            let Some(index) = balancer.choose(&draw, &candidates) else {
                return otherwise(roster, refusals, full);
            };
            match refusals[index] {
                None => return Prospect::Goes(index),
                Some(refusal) => full |= matches!(refusal, Hindrance::Full(_)),
            }
            passed.insert(index);
        }
    }
}

impl Backend {
    /// What a roster of `now` goes by, where an ejection that is over counts as released.
    fn standing_at(&self, now: Instant) -> Standing {
        let standing = self.standing();
        match standing.ejected_until {
            Some(until) if until <= now => Standing {
                ejected_until: None,
                came_back: standing.came_back.max(Some(until)),
                ..standing
            },
            _ => standing,
        }
    }

    /// Why it can't be used at the moment, though it may be chosen.
    fn refusal(&self, now: Instant) -> Option<Hindrance> {
        let open = self.state.open.now();
        if !self.admits(now) {
            Some(Hindrance::BreakerBusy)
        } else if open >= self.most_connections() {
            Some(Hindrance::Full(open))
        } else {
            None
        }
    }
}

/// Why it may not be chosen at all.
fn barred(standing: &Standing, failing_open: bool, now: Instant) -> Option<Hindrance> {
    let left = |end: Option<Instant>| end.filter(|end| *end > now).map(|end| end - now);
    let ejected = || left(standing.ejected_until).map(Hindrance::Ejected);
    if standing.weight == 0 {
        Some(Hindrance::NoWeight)
    } else if !standing.enabled {
        Some(Hindrance::Drained)
    } else if !failing_open && !standing.healthy {
        Some(Hindrance::Unhealthy)
    } else if !failing_open && let Some(ejected) = ejected() {
        Some(ejected)
    } else {
        left(standing.open_until).map(Hindrance::BreakerOpen)
    }
}

/// Of those that can be used.
fn drawn(roster: &Roster, refusals: &[Option<Hindrance>]) -> Prospect {
    let may = roster.weights.iter().zip(refusals).enumerate();
    let mut may = may.filter(|(_, (weight, _))| **weight > 0);
    let usable: Vec<_> = may
        .clone()
        .filter(|(_, (_, refusal))| refusal.is_none())
        .map(|(index, _)| index)
        .collect();
    match usable[..] {
        [] => {
            let full = may.any(|(_, (_, refusal))| matches!(refusal, Some(Hindrance::Full(_))));
            otherwise(roster, refusals, full)
        }
        [only] => Prospect::Goes(only),
        _ => Prospect::Draws(usable),
    }
}

/// Where a session goes that finds none of those that the balancer chooses among: to a backup, unless some of
/// them are merely full.
fn otherwise(roster: &Roster, refusals: &[Option<Hindrance>], full: bool) -> Prospect {
    if full {
        return Prospect::Full;
    }
    let spares = roster.spares.iter().copied();
    let usable: Vec<_> = spares.filter(|spare| refusals[*spare].is_none()).collect();
    let full = |spare: &usize| matches!(refusals[*spare], Some(Hindrance::Full(_)));
    match usable[..] {
        [] if roster.spares.iter().any(full) => Prospect::Full,
        [] => Prospect::Nobody,
        [only] => Prospect::Goes(only),
        _ => Prospect::Draws(usable),
    }
}

#[cfg(test)]
mod tests {
    use super::super::queue::Look;
    use super::super::tests::{around, at, model};
    use super::super::{Lease, Order};
    use super::*;
    use crate::config;
    use crate::policy::balance::ALGORITHMS;

    fn upstream(change: impl FnOnce(&mut config::Upstream)) -> Upstream {
        let mut model = model(&[1, 2, 3, 4]);
        change(&mut model);
        Upstream::new(&model, None, &around())
    }

    fn client(number: u8) -> Option<IpAddr> {
        Some([192, 0, 2, number].into())
    }

    /// What a session gets that comes at `now`, and its lease.
    fn pick(upstream: &Upstream, client: Option<IpAddr>, now: Instant) -> Option<(usize, Lease)> {
        let draw = upstream.balancer.draw(Request {
            client,
            random: 5,
            now,
        });
        match upstream.pick(&draw, &Passed::default(), None, now) {
            Look::Found(choice) => choice.map(|choice| (choice.index, choice.lease)),
            Look::NotYet(_) => None,
        }
    }

    #[test]
    fn the_outlook_is_what_is_picked_then_and_looking_changes_nothing() {
        for algorithm in ALGORITHMS {
            let upstream = upstream(|model| {
                model.balance = *algorithm;
                for (backend, weight) in model.backends.iter_mut().zip([1, 2, 3, 4]) {
                    backend.weight = weight;
                    backend.max_connections = std::num::NonZeroUsize::new(20);
                }
            });
            upstream.order("127.0.0.1:4", Order::Draining, at(0));
            let mut leases = Vec::new();
            for number in 0..70 {
                let outlook = upstream.outlook(client(number), at(1));
                assert_eq!(upstream.outlook(client(number), at(1)), outlook);
                let picked = pick(&upstream, client(number), at(1));
                let index = picked.as_ref().map(|(index, _)| *index);
                match &outlook.prospect {
                    Prospect::Goes(goes) => assert_eq!(Some(*goes), index, "{algorithm:?}"),
                    Prospect::Draws(among) => {
                        assert_eq!(outlook.foresight, Foresight::Chance);
                        assert!(index.is_some_and(|index| among.contains(&index)));
                    }
                    Prospect::Full => assert_eq!((index, leases.len()), (None, 60)),
                    Prospect::Nobody => panic!("there are some"),
                }
                leases.extend(picked);
            }
            assert_eq!(leases.len(), 60);
        }
    }

    #[test]
    fn every_hindrance_is_told() {
        let upstream = upstream(|model| {
            model.circuit_breaker = None;
            model.backends[0].weight = 0;
            model.backends[2].max_connections = std::num::NonZeroUsize::new(1);
            model.backends[3].backup = true;
        });
        upstream.order("127.0.0.1:2", Order::Draining, at(0));
        let first = upstream.outlook(client(1), at(1));
        let expected = [
            Some(Hindrance::NoWeight),
            Some(Hindrance::Drained),
            None,
            Some(Hindrance::Backup),
        ];
        assert_eq!(first.hindrances, expected);
        assert_eq!(first.prospect, Prospect::Goes(2));
        let (_, lease) = pick(&upstream, client(1), at(1)).expect("it is ready");
        let full = upstream.outlook(client(1), at(1));
        assert_eq!(full.hindrances[2], Some(Hindrance::Full(1)));
        assert_eq!(full.prospect, Prospect::Full, "backups don't help the full");
        drop(lease);
        upstream.order("127.0.0.1:3", Order::Draining, at(1));
        let last = upstream.outlook(client(1), at(1));
        assert_eq!(
            (last.hindrances[3], last.prospect),
            (None, Prospect::Goes(3))
        );
        upstream.order("127.0.0.1:4", Order::Draining, at(1));
        let none = upstream.outlook(client(1), at(1));
        assert_eq!(none.prospect, Prospect::Nobody);
    }

    #[test]
    fn a_breaker_is_looked_at_and_no_permit_taken() {
        let upstream = upstream(|model| model.backends.truncate(1));
        let (_, lease) = pick(&upstream, None, at(0)).expect("it is ready");
        lease.connect_failed(false, at(0));
        let open = upstream.outlook(None, at(4));
        let left = Duration::from_secs(6);
        assert_eq!(open.hindrances, [Some(Hindrance::BreakerOpen(left))]);
        assert_eq!(open.prospect, Prospect::Nobody);
        // Its time is over: one session may try, and looking is not trying.
        for _ in 0..3 {
            let trial = upstream.outlook(None, at(10));
            assert_eq!(
                (&trial.hindrances[0], trial.prospect),
                (&None, Prospect::Goes(0))
            );
        }
        let trial = pick(&upstream, None, at(10)).expect("one may try");
        let busy = upstream.outlook(None, at(10));
        assert_eq!(busy.hindrances, [Some(Hindrance::BreakerBusy)]);
        assert_eq!(busy.prospect, Prospect::Nobody);
        drop(trial);
    }

    #[test]
    fn without_a_client_a_hash_is_drawn() {
        let ip_hash = ALGORITHMS.iter().find(|it| it.name == "ip-hash");
        let upstream = upstream(|model| model.balance = *ip_hash.expect("there is one"));
        let outlook = upstream.outlook(None, at(0));
        assert_eq!(outlook.foresight, Foresight::Chance);
        assert_eq!(outlook.prospect, Prospect::Draws(vec![0, 1, 2, 3]));
    }
}
