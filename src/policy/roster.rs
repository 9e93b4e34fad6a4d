//! Who of an upstream may be chosen at an instant, and with which weight. It draws the conclusions from
//! orders, health, ejections and breakers; it holds none of that state, and doesn't choose.

use std::time::Duration;

use super::share::Share;
use crate::time::Instant;

/// What is known of a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// As configured or ordered, 0..=256; 0 = no new sessions.
    pub weight: u16,
    /// Used only when no other is ready.
    pub backup: bool,
    /// The operator lets it have new sessions; if not, it is as good as one of weight 0.
    pub enabled: bool,
    /// As active checks see it.
    pub healthy: bool,
    /// The end of its ejection.
    pub ejected_until: Option<Instant>,
    /// The end of its breaker's being open.
    pub open_until: Option<Instant>,
    /// When it last came back; it starts slowly from then on.
    pub came_back: Option<Instant>,
}

/// What an upstream wants of its roster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rules {
    /// How long the weight of a backend that came back takes to be whole again; zero = no time.
    pub slow_start: Duration,
    /// Share of good backends under which health and ejections are ignored; zero = never.
    pub fail_open_below: Share,
}

/// Who may be chosen, until something changes.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Roster {
    /// By backend: 0 = may not be chosen. All are scaled by ten while one of them starts slowly.
    pub weights: Vec<u16>,
    /// Backups that are ready while others are: what is left to a session whose tries have failed.
    pub spares: Vec<usize>,
    /// Health and ejections are ignored, as too few backends are good.
    pub failing_open: bool,
    /// From when on time alone may make it different; `None` = only a change of a standing does.
    pub until: Option<Instant>,
}

impl Roster {
    /// The roster of backends in these standings.
    pub fn new(standings: &[Standing], rules: Rules, now: Instant) -> Self {
        let failing_open = fails_open(standings, rules, now);
        let ready = |backup: bool| -> Vec<usize> {
            let ready = standings.iter().enumerate().filter(|(_, standing)| {
                standing.backup == backup && standing.is_ready(failing_open, now)
            });
            ready.map(|(backend, _)| backend).collect()
        };
        let (mut chosen, mut spares) = (ready(false), ready(true));
        if chosen.is_empty() {
            std::mem::swap(&mut chosen, &mut spares);
        }
        let ends = standings
            .iter()
            .flat_map(|standing| standing.ends(failing_open, now));
        let steps = chosen
            .iter()
            .filter_map(|&backend| standings[backend].next_step(rules, now));
        let until = ends.chain(steps).filter(|&end| end > now).min();
        Self {
            weights: weights(standings, &chosen, rules, now),
            spares,
            failing_open,
            until,
        }
    }
}

impl Standing {
    /// Healthy and not ejected.
    fn is_good(&self, now: Instant) -> bool {
        self.healthy && is_over(self.ejected_until, now)
    }

    /// It may get sessions, if all goes well.
    fn takes_part(&self) -> bool {
        self.weight > 0 && self.enabled
    }

    fn is_ready(&self, failing_open: bool, now: Instant) -> bool {
        self.takes_part() && (failing_open || self.is_good(now)) && is_over(self.open_until, now)
    }

    /// When time alone may make it good or ready.
    fn ends(&self, failing_open: bool, now: Instant) -> impl Iterator<Item = Instant> {
        let takes_part = self.takes_part();
        let ejected = self.ejected_until.filter(|_| takes_part && self.healthy);
        let open = self
            .open_until
            .filter(|_| takes_part && (failing_open || self.is_good(now)));
        ejected.into_iter().chain(open)
    }

    /// How many tenths of its weight it has.
    fn tenths(&self, rules: Rules, now: Instant) -> u16 {
        let slow_start = rules.slow_start.as_nanos();
        let elapsed = self.came_back.map(|back| now.since(back).as_nanos());
        match elapsed {
            Some(elapsed) if elapsed < slow_start => {
                (elapsed * u128::from(TENTHS)).div_ceil(slow_start).max(1) as u16
            }
            _ => TENTHS,
        }
    }

    /// When it has a tenth more: as the tenths are rounded up, just after the present one is over.
    fn next_step(&self, rules: Rules, now: Instant) -> Option<Instant> {
        let tenths = self.tenths(rules, now);
        let over = rules.slow_start.as_nanos() * u128::from(tenths) / u128::from(TENTHS);
        let over = u64::try_from(over).unwrap_or(u64::MAX).saturating_add(1);
        let back = self.came_back.filter(|_| tenths < TENTHS)?;
        Some(back + Duration::from_nanos(over))
    }
}

/// Steps of a slow start.
const TENTHS: u16 = 10;

fn is_over(end: Option<Instant>, now: Instant) -> bool {
    end.is_none_or(|end| end <= now)
}

/// Too few of those that may get sessions at all are good; backups are among them. In whole numbers, so
/// that a share of exactly `fail_open_below` is not a matter of rounding.
fn fails_open(standings: &[Standing], rules: Rules, now: Instant) -> bool {
    let all = standings.iter().filter(|standing| standing.takes_part());
    let good = all.clone().filter(|standing| standing.is_good(now));
    let (all, good) = (all.count() as u64, good.count() as u64);
    let threshold = u64::from(rules.fail_open_below.ppm());
    good * u64::from(Share::WHOLE.ppm()) < all * threshold
}

/// In tenths while one of the chosen starts slowly, else as configured.
fn weights(standings: &[Standing], chosen: &[usize], rules: Rules, now: Instant) -> Vec<u16> {
    let tenths = |backend: usize| standings[backend].tenths(rules, now);
    let ramps = chosen.iter().any(|&backend| tenths(backend) < TENTHS);
    let mut weights = vec![0; standings.len()];
    for &backend in chosen {
        let factor = if ramps { tenths(backend) } else { 1 };
        weights[backend] = standings[backend].weight.saturating_mul(factor);
    }
    weights
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: Standing = Standing {
        weight: 1,
        backup: false,
        enabled: true,
        healthy: true,
        ejected_until: None,
        open_until: None,
        came_back: None,
    };
    const BACKUP: Standing = Standing {
        backup: true,
        ..GOOD
    };
    const DOWN: Standing = Standing {
        healthy: false,
        ..GOOD
    };
    const DRAINING: Standing = Standing {
        enabled: false,
        ..GOOD
    };
    const RULES: Rules = Rules {
        slow_start: Duration::ZERO,
        fail_open_below: Share::from_ppm(0),
    };
    const SLOW: Rules = Rules {
        slow_start: Duration::from_secs(10),
        ..RULES
    };

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    fn weighted(weight: u16, standing: Standing) -> Standing {
        Standing { weight, ..standing }
    }

    fn ejected(until: u64) -> Standing {
        Standing {
            ejected_until: Some(at(until)),
            ..GOOD
        }
    }

    fn open(until: u64) -> Standing {
        Standing {
            open_until: Some(at(until)),
            ..GOOD
        }
    }

    fn back(since: u64) -> Standing {
        Standing {
            came_back: Some(at(since)),
            ..GOOD
        }
    }

    fn roster(standings: &[Standing], millis: u64) -> Roster {
        Roster::new(standings, RULES, at(millis))
    }

    fn fail_open_below(ppm: u32) -> Rules {
        Rules {
            fail_open_below: Share::from_ppm(ppm),
            ..RULES
        }
    }

    #[test]
    fn only_the_ready_have_a_weight() {
        let standings = [
            weighted(7, GOOD),
            DOWN,
            ejected(8),
            open(9),
            weighted(0, GOOD),
        ];
        let first = roster(&standings, 7);
        assert_eq!(first.weights, [7, 0, 0, 0, 0]);
        assert_eq!(first.until, Some(at(8)));
        let second = roster(&standings, 8);
        assert_eq!(second.weights, [7, 0, 1, 0, 0]);
        assert_eq!(second.until, Some(at(9)));
        let third = roster(&standings, 9);
        assert_eq!(third.weights, [7, 0, 1, 1, 0]);
        assert_eq!((third.until, third.failing_open), (None, false));
    }

    #[test]
    fn backups_are_spares_until_no_other_is_ready() {
        let standings = [BACKUP, GOOD, weighted(3, BACKUP), weighted(0, BACKUP)];
        let roster_of = |second| roster(&[BACKUP, second, standings[2], standings[3]], 0);
        let calm = roster_of(GOOD);
        assert_eq!((calm.weights, calm.spares), (vec![0, 1, 0, 0], vec![0, 2]));
        let last = roster_of(DOWN);
        assert_eq!((last.weights, last.spares), (vec![1, 0, 3, 0], vec![]));
    }

    #[test]
    fn an_upstream_without_anybody_has_an_empty_roster() {
        assert_eq!(roster(&[], 0), Roster::default());
        assert_eq!(roster(&[DOWN, DOWN], 0).weights, [0, 0]);
        let all = fail_open_below(1_000_000);
        assert!(!Roster::new(&[weighted(0, DOWN)], all, at(0)).failing_open);
    }

    #[test]
    fn what_makes_no_difference_has_no_end() {
        let unhealthy = Standing {
            healthy: false,
            ..ejected(5)
        };
        let unhealthy_and_open = Standing {
            healthy: false,
            ..open(5)
        };
        let never = weighted(0, ejected(5));
        let roster = roster(&[GOOD, unhealthy, unhealthy_and_open, never], 0);
        assert_eq!(roster.until, None);
    }

    #[test]
    fn it_fails_open_below_the_share_and_not_at_it() {
        let half = fail_open_below(500_000);
        let at_half = [GOOD, DOWN, BACKUP, ejected(5), weighted(0, DOWN)];
        let roster = Roster::new(&at_half, half, at(0));
        assert!(!roster.failing_open);
        assert_eq!(roster.weights, [1, 0, 0, 0, 0]);
        let below = [
            GOOD,
            DOWN,
            Standing {
                healthy: false,
                ..BACKUP
            },
            ejected(5),
        ];
        let roster = Roster::new(&below, half, at(0));
        assert!(roster.failing_open);
        assert_eq!((roster.weights, roster.spares), (vec![1, 1, 0, 1], vec![2]));
        assert_eq!(roster.until, Some(at(5)));
        assert!(!Roster::new(&below, half, at(5)).failing_open);
    }

    #[test]
    fn who_drains_is_not_chosen_in_any_case() {
        let all = fail_open_below(1_000_000);
        let standings = [DRAINING, DOWN];
        let failing_open = Roster::new(&standings, all, at(0));
        assert_eq!(failing_open.weights, [0, 1]);
        assert_eq!(roster(&standings, 0).weights, [0, 0]);
        let alone = Roster::new(&[DRAINING], all, at(0));
        assert!(!alone.failing_open, "there is nobody to be ignored");
        assert_eq!(alone.weights, [0]);
    }

    #[test]
    fn backups_come_in_when_all_others_drain_and_a_backup_that_drains_is_no_spare() {
        let drains = Standing {
            backup: true,
            ..DRAINING
        };
        let without = roster(&[DRAINING, DRAINING, BACKUP, drains], 0);
        assert_eq!(
            (without.weights, without.spares),
            (vec![0, 0, 1, 0], vec![])
        );
        let with = roster(&[DRAINING, GOOD, BACKUP, drains], 0);
        assert_eq!((with.weights, with.spares), (vec![0, 1, 0, 0], vec![2]));
    }

    #[test]
    fn who_drains_does_not_count_for_failing_open() {
        let half = fail_open_below(500_000);
        // One of two is good; with the one that drains it would be one of three, or two of three.
        let standings = [GOOD, DOWN, DRAINING];
        assert!(!Roster::new(&standings, half, at(0)).failing_open);
        let most = fail_open_below(600_000);
        assert!(Roster::new(&standings, most, at(0)).failing_open);
    }

    #[test]
    fn what_makes_no_difference_to_one_that_drains_has_no_end() {
        let drains = |standing| Standing {
            enabled: false,
            ..standing
        };
        let roster = Roster::new(&[GOOD, drains(ejected(5)), drains(open(5))], RULES, at(0));
        assert_eq!(roster.until, None);
    }

    #[test]
    fn a_third_is_a_third() {
        let one_of_three = [GOOD, DOWN, DOWN];
        let fails_open = |ppm| Roster::new(&one_of_three, fail_open_below(ppm), at(0)).failing_open;
        assert!(!fails_open(333_333));
        assert!(fails_open(333_334));
    }

    #[test]
    fn failing_open_does_not_close_breakers() {
        let standings = [
            Standing {
                healthy: false,
                ..open(5)
            },
            DOWN,
        ];
        let all = fail_open_below(1_000_000);
        let roster = Roster::new(&standings, all, at(0));
        assert_eq!((roster.weights, roster.until), (vec![0, 1], Some(at(5))));
    }

    #[test]
    fn a_slow_start_goes_by_tenths() {
        let standings = [weighted(256, GOOD), weighted(2, back(1_000))];
        let of = |millis| Roster::new(&standings, SLOW, at(millis));
        for (millis, tenths) in [
            (1_000, 1),
            (2_000, 1),
            (2_001, 2),
            (3_000, 2),
            (9_001, 9),
            (10_000, 9),
        ] {
            assert_eq!(of(millis).weights, [2_560, 2 * tenths], "{millis}");
        }
        for millis in [10_001, 11_000, 99_000] {
            assert_eq!(of(millis).weights, [256, 2]);
            assert_eq!(of(millis).until, None);
        }
        let step = |second: u64| Some(Instant::from_nanos(second * 1_000_000_000 + 1));
        assert_eq!(of(1_000).until, step(2));
        assert_eq!(of(9_500).until, step(10));
    }

    #[test]
    fn no_slow_start_overflows() {
        let longest = Rules {
            slow_start: Duration::MAX,
            ..RULES
        };
        let standings = [weighted(u16::MAX, back(5)), weighted(u16::MAX, GOOD)];
        let end = Instant::from_nanos(u64::MAX);
        for now in [at(0), end] {
            let roster = Roster::new(&standings, longest, now);
            assert_eq!(roster.weights, [u16::MAX, u16::MAX]);
            assert_eq!(roster.until.is_some(), now < end);
        }
    }

    const HORIZON: u64 = 40;

    fn standing() -> impl Strategy<Value = Standing> {
        let instant = || prop::option::weighted(0.3, (0..HORIZON).prop_map(Instant::from_nanos));
        let often = || prop::bool::weighted(0.7);
        let fixed = (0u16..4, any::<bool>(), often(), often());
        (fixed, instant(), instant(), instant()).prop_map(
            |((weight, backup, enabled, healthy), ejected_until, open_until, came_back)| Standing {
                weight,
                backup,
                enabled,
                healthy,
                ejected_until,
                open_until,
                came_back,
            },
        )
    }

    fn rules() -> impl Strategy<Value = Rules> {
        (0u64..2 * HORIZON, 0u32..=1_000_000).prop_map(|(slow_start, ppm)| Rules {
            slow_start: Duration::from_nanos(slow_start),
            fail_open_below: Share::from_ppm(ppm),
        })
    }

    proptest! {
        #[test]
        fn it_stays_the_same_until_it_says_so_and_for_ever_if_it_never_does(
            standings in prop::collection::vec(standing(), 0..7),
            rules in rules(),
            now in 0..HORIZON,
        ) {
            let roster = Roster::new(&standings, rules, Instant::from_nanos(now));
            let end = roster.until.map_or(4 * HORIZON, Instant::as_nanos);
            prop_assert!(end > now);
            for later in now..end {
                let later = Roster::new(&standings, rules, Instant::from_nanos(later));
                prop_assert_eq!(&later, &roster);
            }
        }

        #[test]
        fn everybody_in_it_may_be_chosen_and_nobody_else(
            standings in prop::collection::vec(standing(), 0..7),
            rules in rules(),
            now in (0..HORIZON).prop_map(Instant::from_nanos),
        ) {
            let roster = Roster::new(&standings, rules, now);
            let ready = |standing: &Standing| standing.is_ready(roster.failing_open, now);
            let others_ready = standings.iter().any(|standing| !standing.backup && ready(standing));
            for (backend, standing) in standings.iter().enumerate() {
                let is_spare = roster.spares.contains(&backend);
                let is_chosen = roster.weights[backend] > 0;
                prop_assert_eq!(is_chosen, ready(standing) && standing.backup != others_ready);
                prop_assert_eq!(is_spare, ready(standing) && standing.backup && others_ready);
            }
        }
    }
}
