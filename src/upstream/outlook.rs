//! What would become of a session that asked for a backend now, and what keeps it from each of the others. It
//! goes through the same rules as a choice and takes nothing: no turn, no place, no permit. As a choice it may be
//! what notices that time has passed: that an ejection is over.

use std::net::IpAddr;

use super::backend::Refusal;
use super::queue::Look;
use super::select::Known;
use super::{Backend, Upstream};
use crate::policy::balance::{Foresight, Passed, Request};
use crate::policy::roster::Roster;
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
    /// To one of these, which is drawn. Among backups one that is full may be drawn, too, and is waited for.
    Draws(Vec<usize>),
    /// All that may be chosen have as many connections as they may have.
    Full,
    /// None may be chosen.
    Nobody,
}

/// What keeps sessions from a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hindrance {
    /// It may not be chosen: for its weight, an order, its health, an ejection or its breaker.
    Barred,
    /// Its breaker is half-open, and as many sessions try it as may.
    BreakerBusy,
    /// It has as many connections as it may have.
    Full(usize),
    /// It is a backup, and others are ready.
    Backup,
}

impl Upstream {
    /// Where a session of this client would go if it came now. What connections the workers hold open ahead is
    /// not known here: one of them may serve where the backend is full.
    pub fn outlook(&self, client: Option<IpAddr>, now: Instant) -> Outlook {
        let known = self.known(now);
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
        let drawn = match foresight {
            Foresight::Chance => usable(&known.roster, &refusals),
            Foresight::Certain | Foresight::Next => Vec::new(),
        };
        let prospect = match drawn[..] {
            [] => self.foreseen(&known, &refusals, client, now),
            // Whichever it draws first, it comes to one of these.
            _ => one_of(drawn, false),
        };
        Outlook {
            balance: self.algorithm.name,
            foresight,
            prospect,
            hindrances: hindrances(&known.roster, refusals),
            failing_open: known.roster.failing_open,
            weights: known.roster.weights.clone(),
            waiting: self.waiting(),
            most_waiting: self.queue.max,
        }
    }

    /// As [`Upstream::pick`], with a balancer that is thrown away and nothing taken.
    fn foreseen(
        &self,
        known: &Known,
        refusals: &[Option<Hindrance>],
        client: Option<IpAddr>,
        now: Instant,
    ) -> Prospect {
        let rehearsal = self.balancer.rehearsal();
        let balancer = rehearsal.as_deref().unwrap_or(&*self.balancer);
        let mut draw = balancer.draw(Request {
            client,
            random: 0,
            now,
        });
        let (mut tried, mut among, mut full) = (Passed::default(), Vec::new(), false);
        // Where it comes to backups, each of them may be the first that is tried.
        for first in 0..known.roster.spares.len().max(1) {
            draw.request.random = first as u64;
            let (before, mut to_backups) = (among.len(), false);
            let look = known.find(balancer, &draw, &tried, |index| {
                let is_backup = known.roster.weights[index] == 0;
                to_backups |= is_backup;
                match refusals[index] {
                    Some(Hindrance::Full(_)) => Err(Refusal::Full),
                    Some(_) => Err(Refusal::Broken),
                    None if is_backup => {
                        among.push(index);
                        // This is where such a session ends.
                        Err(Refusal::Full)
                    }
                    None => Ok(index),
                }
            });
            match look {
                Look::Found(Some(index)) => return Prospect::Goes(index),
                Look::NotYet(_) => full |= among.len() == before,
                Look::Found(None) => {}
            }
            if !to_backups {
                break;
            }
            if first == 0 {
                // None of the others can be used: they need not be asked again.
                let weights = known.roster.weights.iter().enumerate();
                let others = weights.filter(|(_, weight)| **weight > 0);
                others.for_each(|(index, _)| tried.insert(index));
            }
        }
        among.sort_unstable();
        among.dedup();
        one_of(among, full)
    }
}

impl Backend {
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

/// That it is not in the roster; or else what is there at the moment; or else that it is a backup.
fn hindrances(roster: &Roster, refusals: Vec<Option<Hindrance>>) -> Vec<Option<Hindrance>> {
    let weights = roster.weights.iter();
    let mut standings: Vec<_> = weights
        .map(|weight| (*weight == 0).then_some(Hindrance::Barred))
        .collect();
    for spare in &roster.spares {
        standings[*spare] = Some(Hindrance::Backup);
    }
    let both = standings.into_iter().zip(refusals);
    both.map(|(standing, refusal)| match standing {
        Some(Hindrance::Barred) => standing,
        _ => refusal.or(standing),
    })
    .collect()
}

/// Those of the roster, without backups, that can be used.
fn usable(roster: &Roster, refusals: &[Option<Hindrance>]) -> Vec<usize> {
    let may = roster.weights.iter().zip(refusals).enumerate();
    may.filter(|(_, (weight, refusal))| **weight > 0 && refusal.is_none())
        .map(|(index, _)| index)
        .collect()
}

/// `full`: it may also come to one that is full.
fn one_of(among: Vec<usize>, full: bool) -> Prospect {
    match (&among[..], full) {
        ([], true) => Prospect::Full,
        ([], false) => Prospect::Nobody,
        ([only], false) => Prospect::Goes(*only),
        _ => Prospect::Draws(among),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
            Some(Hindrance::Barred),
            Some(Hindrance::Barred),
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
        assert_eq!(open.hindrances, [Some(Hindrance::Barred)]);
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

    #[test]
    fn backups_are_foreseen_as_they_are_picked() {
        let upstream = upstream(|model| {
            for backend in &mut model.backends {
                backend.backup = true;
                backend.max_connections = std::num::NonZeroUsize::new(1);
            }
            model.backends[0].backup = false;
            model.circuit_breaker.as_mut().expect("it has one").open_for = Duration::from_secs(1);
        });
        let outlook = |second| upstream.outlook(client(1), at(second)).prospect;
        // The only other one is half-open and busy from now on.
        let (index, lease) = pick(&upstream, client(1), at(0)).expect("it is ready");
        assert_eq!(index, 0);
        lease.connect_failed(false, at(0));
        let (index, _trial) = pick(&upstream, client(1), at(1)).expect("it is tried");
        assert_eq!((index, outlook(1)), (0, Prospect::Draws(vec![1, 2, 3])));
        let choose = |first: u64| {
            let request = Request {
                client: client(1),
                random: first,
                now: at(1),
            };
            let draw = upstream.balancer.draw(request);
            match upstream.pick(&draw, &Passed::default(), None, at(1)) {
                Look::Found(choice) => choice.map(|choice| (choice.index, choice.lease)),
                Look::NotYet(_) => None,
            }
        };
        let first = choose(0).expect("one of them");
        assert_eq!((first.0, outlook(1)), (1, Prospect::Draws(vec![2, 3])));
        assert!(choose(0).is_none(), "one that is full is waited for");
        let (second, third) = (choose(1).expect("free"), choose(2).expect("free"));
        assert_eq!((second.0, third.0, outlook(1)), (2, 3, Prospect::Full));
    }
}
