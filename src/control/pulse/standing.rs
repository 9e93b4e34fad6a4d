//! Whether a backend may be chosen, and why not, in words: the same ones for whoever asks.

use std::time::Duration;

use super::super::socket::{BackendState, BreakerState};
use crate::policy::health;
use crate::time::Instant;
use crate::upstream::{Backend, Order};

/// How a backend stands, as it is told.
pub(in super::super) struct Standing {
    pub(in super::super) state: BackendState,
    /// Why it may not be chosen, or what else there is to say.
    pub(in super::super) why: Option<String>,
    pub(in super::super) breaker: BreakerState,
}

impl Standing {
    /// Why, where the state does not stand beside it.
    pub(in super::super) fn in_words(self) -> Option<String> {
        let why = self.why?;
        Some(match self.state {
            BackendState::Down => format!("unhealthy: {why}"),
            BackendState::Ejected => format!("ejected: {why}"),
            _ => why,
        })
    }
}

/// What decides.
struct Facts {
    order: Order,
    health: health::State,
    /// Why the last probe failed, if it did.
    probe: Option<String>,
    /// For how long it is still ejected.
    ejected: Option<Duration>,
    breaker: Breaker,
    weight: u16,
    /// Its upstream has too few that are good, and goes by none of it.
    health_ignored: bool,
}

#[derive(Clone, Copy)]
enum Breaker {
    Closed,
    /// For so long.
    Open(Duration),
    HalfOpen,
}

/// How it stands at `now`. `health_ignored`: its upstream has too few that are good, and goes by none of it.
pub(in super::super) fn of(backend: &Backend, health_ignored: bool, now: Instant) -> Standing {
    let health = backend.state.health.image().state;
    let down = !backend.is_healthy();
    let facts = Facts {
        order: backend.state.order(),
        health,
        probe: down.then(|| backend.state.tallies.last_failure()).flatten(),
        ejected: backend.ejected_until().map(|until| until - now),
        breaker: match backend.broken_until() {
            Some(until) => Breaker::Open(until - now),
            None if backend.is_half_open() => Breaker::HalfOpen,
            None => Breaker::Closed,
        },
        weight: backend.weight(),
        health_ignored,
    };
    let (state, why) = facts.judge();
    Standing {
        state,
        why,
        breaker: facts.breaker(),
    }
}

impl Facts {
    fn judge(&self) -> (BackendState, Option<String>) {
        let told = |state, why: String| (state, Some(why));
        match self.order {
            Order::Draining => return told(BackendState::Disabled, "drained by order".to_owned()),
            Order::Aborting => {
                let why = "drained by order, its sessions are ended";
                return told(BackendState::Disabled, why.to_owned());
            }
            Order::Enabled => {}
        }
        if let Some(why) = self.unhealthy() {
            return told(BackendState::Down, self.although_ignored(why));
        }
        if let Some(left) = self.ejected.filter(|left| !left.is_zero()) {
            let why = format!("failures in a row, back in {}", seconds(left));
            return told(BackendState::Ejected, self.although_ignored(why));
        }
        let state = match self.breaker {
            Breaker::Open(_) => BackendState::Open,
            Breaker::HalfOpen => BackendState::HalfOpen,
            Breaker::Closed => BackendState::Up,
        };
        (state, self.barred().or_else(|| self.on_trial()))
    }

    /// What keeps sessions away whatever its health.
    fn barred(&self) -> Option<String> {
        match self.breaker {
            Breaker::Open(left) if !left.is_zero() => {
                Some(format!("breaker open, {} left", seconds(left)))
            }
            _ => (self.weight == 0).then(|| "weight 0: no new sessions".to_owned()),
        }
    }

    /// What its breaker lets through.
    fn on_trial(&self) -> Option<String> {
        let told = match self.breaker {
            Breaker::Open(_) => "breaker open, the next session tries it",
            Breaker::HalfOpen => "breaker half-open, a few sessions try",
            Breaker::Closed => return None,
        };
        Some(told.to_owned())
    }

    fn unhealthy(&self) -> Option<String> {
        let otherwise = match self.health {
            health::State::Unchecked | health::State::Up => return None,
            health::State::Undecided => "no probe has ended yet",
            health::State::NotYetUp => "too few probes have succeeded yet",
            // Fewer in a row than it takes to come up.
            health::State::Down => "the last probe succeeded, more have to",
        };
        Some(self.probe.clone().unwrap_or_else(|| otherwise.to_owned()))
    }

    fn although_ignored(&self, why: String) -> String {
        match self.barred() {
            _ if !self.health_ignored => why,
            Some(barred) => format!("{why}; {barred}"),
            None => format!("{why}; used all the same, too few are healthy"),
        }
    }

    fn breaker(&self) -> BreakerState {
        match self.breaker {
            Breaker::Closed => BreakerState::Closed,
            Breaker::Open(_) => BreakerState::Open,
            Breaker::HalfOpen => BreakerState::HalfOpen,
        }
    }
}

/// `3.2 s`, and from a minute on whole ones.
fn seconds(time: Duration) -> String {
    match time.as_secs() {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        seconds => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            order: Order::Enabled,
            health: health::State::Up,
            probe: None,
            ejected: None,
            breaker: Breaker::Closed,
            weight: 1,
            health_ignored: false,
        }
    }

    fn judged(facts: &Facts) -> (BackendState, String) {
        let (state, why) = facts.judge();
        (state, why.unwrap_or_default())
    }

    #[test]
    fn what_keeps_a_backend_out_is_told_in_words_the_gravest_first() {
        let mut facts = good();
        assert_eq!(facts.judge(), (BackendState::Up, None));
        facts.weight = 0;
        let expected = (BackendState::Up, "weight 0: no new sessions".to_owned());
        assert_eq!(judged(&facts), expected);
        facts.breaker = Breaker::HalfOpen;
        assert_eq!(judged(&facts).0, BackendState::HalfOpen);
        facts.breaker = Breaker::Open(Duration::from_millis(3210));
        let expected = (BackendState::Open, "breaker open, 3.2 s left".to_owned());
        assert_eq!(judged(&facts), expected);
        facts.ejected = Some(Duration::from_secs(75));
        let why = "failures in a row, back in 75 s".to_owned();
        assert_eq!(judged(&facts), (BackendState::Ejected, why));
        facts.health = health::State::Down;
        facts.probe = Some("connection refused".to_owned());
        let expected = (BackendState::Down, "connection refused".to_owned());
        assert_eq!(judged(&facts), expected);
        facts.order = Order::Draining;
        let expected = (BackendState::Disabled, "drained by order".to_owned());
        assert_eq!(judged(&facts), expected);
        assert_eq!(facts.breaker(), BreakerState::Open);
    }

    #[test]
    fn an_ejection_that_is_over_is_none_and_an_open_breaker_waits_for_a_session() {
        let mut facts = good();
        facts.ejected = Some(Duration::ZERO);
        facts.breaker = Breaker::Open(Duration::ZERO);
        let (state, why) = judged(&facts);
        assert_eq!(state, BackendState::Open);
        assert!(why.ends_with("the next session tries it"), "{why}");
    }

    #[test]
    fn one_that_is_down_without_a_failed_probe_says_what_it_waits_for() {
        let mut facts = good();
        for (health, part) in [
            (health::State::Undecided, "no probe has ended"),
            (health::State::NotYetUp, "too few"),
            (health::State::Down, "more have to"),
        ] {
            facts.health = health;
            assert!(judged(&facts).1.contains(part), "{health:?}");
        }
        facts.health_ignored = true;
        assert!(judged(&facts).1.ends_with("too few are healthy"));
    }

    #[test]
    fn where_health_is_ignored_what_still_bars_a_backend_is_told() {
        let mut facts = good();
        facts.health = health::State::Down;
        facts.probe = Some("connection refused".to_owned());
        facts.health_ignored = true;
        let used = "connection refused; used all the same, too few are healthy";
        assert_eq!(judged(&facts).1, used);
        facts.weight = 0;
        let expected = "connection refused; weight 0: no new sessions";
        assert_eq!(judged(&facts), (BackendState::Down, expected.to_owned()));
        facts.breaker = Breaker::Open(Duration::from_secs(2));
        assert!(judged(&facts).1.ends_with("; breaker open, 2.0 s left"));
        (facts.weight, facts.breaker) = (1, Breaker::Open(Duration::ZERO));
        assert_eq!(judged(&facts).1, used);
    }

    #[test]
    fn nobody_tries_one_of_weight_0() {
        let mut facts = good();
        facts.weight = 0;
        for breaker in [Breaker::HalfOpen, Breaker::Open(Duration::ZERO)] {
            facts.breaker = breaker;
            assert_eq!(judged(&facts).1, "weight 0: no new sessions");
        }
    }

    #[test]
    fn a_reason_without_its_state_names_it() {
        let said = |state| {
            let standing = Standing {
                state,
                why: Some("why".to_owned()),
                breaker: BreakerState::Closed,
            };
            standing.in_words()
        };
        assert_eq!(said(BackendState::Down).as_deref(), Some("unhealthy: why"));
        assert_eq!(said(BackendState::Ejected).as_deref(), Some("ejected: why"));
        assert_eq!(said(BackendState::Disabled).as_deref(), Some("why"));
    }
}
