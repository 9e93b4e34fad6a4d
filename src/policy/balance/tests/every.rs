//! What is true of every algorithm of the registry, and of the example of docs/guide/balancing.md.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;

use super::super::{ALGORITHMS, Algorithm, Foresight, Passed, Request, example};
use super::{Stage, assert_shares, passed_of, request};
use crate::time::Instant;

fn every_algorithm() -> impl Iterator<Item = Algorithm> {
    ALGORITHMS.iter().copied().chain([example::ALGORITHM])
}

/// Algorithms that know of weights.
fn weighted_algorithms() -> impl Iterator<Item = Algorithm> {
    ALGORITHMS.iter().copied()
}

#[test]
fn every_name_stands_for_one_algorithm() {
    let names: HashSet<_> = every_algorithm().map(|algorithm| algorithm.name).collect();
    assert_eq!(names.len(), ALGORITHMS.len() + 1);
}

#[test]
fn the_example_of_the_guide_is_the_one_that_is_tested() {
    let guide = include_str!("../../../../docs/guide/balancing.md");
    assert!(guide.contains(include_str!("../example.rs")));
}

#[test]
fn the_guide_tells_of_every_algorithm() {
    let guide = include_str!("../../../../docs/guide/balancing.md");
    for algorithm in ALGORITHMS {
        assert!(
            guide.contains(&format!("| `{}` |", algorithm.name)),
            "{algorithm:?}"
        );
    }
}

#[test]
fn sessions_that_last_are_spread_by_weight() {
    let weights = [1, 2, 3];
    for algorithm in weighted_algorithms() {
        let stage = || Stage::new(algorithm, &weights).measured();
        let counts = stage().counts(&weights, &[], 60_000, true);
        assert_shares(&counts, &weights, algorithm.name);
    }
}

#[test]
fn sessions_that_end_at_once_are_spread_by_weight() {
    let weights = [1, 2, 3];
    // Those of peak-ewma all go to the backend that has the shortest wait.
    for algorithm in weighted_algorithms().filter(|algorithm| !algorithm.needs_latency) {
        let stage = Stage::new(algorithm, &weights);
        let counts = stage.counts(&weights, &[], 60_000, false);
        assert_shares(&counts, &weights, algorithm.name);
    }
}

#[test]
fn a_rehearsal_chooses_what_is_chosen_then_and_moves_nothing_on() {
    let weights = [1, 2, 3, 4];
    for algorithm in every_algorithm() {
        let stage = Stage::new(algorithm, &weights).measured();
        for number in 0..300 {
            // Somebody is passed over, and sessions come and stay.
            let passed = passed_of(&[number % 5][..usize::from(number % 5 < 4)]);
            let order = |stage: &Stage| {
                let order = stage.order(request(number), &weights, passed.clone());
                order.collect::<Vec<_>>()
            };
            let foreseen: [Vec<_>; 2] = std::array::from_fn(|_| {
                let rehearsal = stage.rehearsal();
                order(rehearsal.as_ref().unwrap_or(&stage))
            });
            let chosen = order(&stage);
            assert_eq!(foreseen, [chosen.clone(), chosen.clone()], "{algorithm:?}");
            if number % 3 == 0 {
                stage.members[chosen[0]].load.active.enter(usize::MAX);
            }
        }
    }
}

#[test]
fn what_is_certain_is_the_same_whatever_is_drawn_and_however_many_come_between() {
    let weights = [1, 2, 3, 4];
    let certain = |algorithm: &Algorithm| {
        let stage = Stage::new(*algorithm, &weights);
        stage.foresight() == Foresight::Certain
    };
    let names = every_algorithm().filter(certain).map(|it| it.name);
    assert_eq!(names.collect::<Vec<_>>(), ["ip-hash", "maglev", "first"]);
    for algorithm in every_algorithm().filter(certain) {
        let stage = Stage::new(algorithm, &weights);
        for number in 0..300 {
            let first = stage.choose(request(number), &weights);
            stage.choose(request(number + 1), &weights);
            let other = Request {
                random: 17,
                ..request(number)
            };
            assert_eq!(stage.choose(other, &weights), first, "{algorithm:?}");
        }
    }
}

#[test]
fn the_share_of_one_that_is_out_is_spread_by_weight() {
    let weights = [1, 2, 3, 4];
    for algorithm in weighted_algorithms() {
        for out in 0..weights.len() {
            let mut now = weights;
            now[out] = 0;
            let stage = || Stage::new(algorithm, &weights).measured();
            let by_weight = stage().counts(&now, &[], 60_000, true);
            assert_shares(&by_weight, &now, algorithm.name);
            let by_passing = stage().counts(&weights, &[out], 60_000, true);
            assert_shares(&by_passing, &now, algorithm.name);
        }
    }
}

#[test]
fn weights_may_be_scaled_by_a_common_factor() {
    let weights = [1, 2, 3];
    let scaled = [10, 20, 30];
    for algorithm in weighted_algorithms() {
        let [plain, tenfold] = [weights, scaled].map(|now| {
            let stage = Stage::new(algorithm, &weights).measured();
            (0..100)
                .map(|client| stage.choose(request(client), &now))
                .collect::<Vec<_>>()
        });
        // The lots of the two that draw them are different ones.
        let draws = ["random", "power-of-two"].contains(&algorithm.name);
        assert!(draws || plain == tenfold, "{algorithm:?}");
    }
}

#[test]
fn a_backend_that_starts_slowly_gets_a_fraction() {
    let (weights, now) = ([1, 2, 3], [10, 20, 3]);
    for algorithm in weighted_algorithms() {
        let stage = Stage::new(algorithm, &weights).measured();
        let counts = stage.counts(&now, &[], 60_000, true);
        assert_shares(&counts, &now, algorithm.name);
    }
}

#[test]
fn nothing_is_chosen_where_nothing_fits() {
    for algorithm in every_algorithm() {
        for weights in [&[][..], &[0], &[0, 0, 0]] {
            let stage = Stage::new(algorithm, weights);
            assert_eq!(stage.choose(request(0), weights), None, "{algorithm:?}");
        }
        let all = passed_of(&[0, 1]);
        let stage = Stage::new(algorithm, &[1, 2]);
        assert_eq!(stage.order(request(0), &[1, 2], all).next(), None);
    }
}

#[test]
fn two_thousand_backends_can_be_balanced_over() {
    let weights: Vec<u16> = (0..2_000).map(|backend| backend % 257).collect();
    for algorithm in every_algorithm() {
        let stage = Stage::new(algorithm, &weights);
        let chosen: HashSet<_> = stage
            .order(request(0), &weights, Passed::default())
            .collect();
        let usable = weights.iter().filter(|&&weight| weight > 0).count();
        assert_eq!(chosen.len(), usable, "{algorithm:?}");
    }
}

#[derive(Clone, Debug)]
struct State {
    configured: u16,
    now: u16,
    is_passed: bool,
    active: usize,
    latency: Option<u64>,
}

fn state() -> impl Strategy<Value = State> {
    (
        0..257_u16,
        prop_oneof![2 => 0..20_u16, 1 => Just(u16::MAX)],
        prop::bool::weighted(0.2),
        0..9_usize,
        prop::option::of(any::<u64>()),
    )
        .prop_map(|(configured, now, is_passed, active, latency)| State {
            configured,
            now,
            is_passed,
            active,
            latency,
        })
}

fn staged(algorithm: Algorithm, states: &[State]) -> Stage {
    let weights: Vec<_> = states.iter().map(|state| state.configured).collect();
    let stage = Stage::new(algorithm, &weights);
    for (member, state) in stage.members.iter().zip(states) {
        for _ in 0..state.active {
            member.load.active.enter(usize::MAX);
        }
        if let Some(nanos) = state.latency {
            let latency = Duration::from_nanos(nanos);
            member.load.latency.observe(latency, Instant::from_nanos(0));
        }
    }
    stage
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_fitting_backend_is_reached_and_no_other(
        states in prop::collection::vec(state(), 0..9),
        client in prop::option::of(any::<IpAddr>()),
        random: u64,
        now: u64,
    ) {
        let weights: Vec<_> = states.iter().map(|state| state.now).collect();
        let passed: Vec<_> = (0..states.len()).filter(|&it| states[it].is_passed).collect();
        let fitting: HashSet<_> = (0..states.len())
            .filter(|&it| states[it].now > 0 && !states[it].is_passed)
            .collect();
        let request = Request { client, random, now: Instant::from_nanos(now) };
        for algorithm in every_algorithm() {
            let stage = staged(algorithm, &states);
            let order: Vec<_> = stage.order(request, &weights, passed_of(&passed)).collect();
            prop_assert_eq!(order.len(), fitting.len(), "{:?}", algorithm);
            prop_assert_eq!(order.into_iter().collect::<HashSet<_>>(), fitting.clone(), "{:?}", algorithm);
        }
    }
}
