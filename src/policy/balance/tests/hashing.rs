//! What is true of every algorithm that ties clients to backends.

use super::super::{ALGORITHMS, Algorithm, Passed, Request};
use super::{Stage, assert_shares, request};
use crate::time::Instant;

const CLIENTS: usize = 60_000;

fn hashing_algorithms() -> impl Iterator<Item = Algorithm> {
    ALGORITHMS
        .iter()
        .copied()
        .filter(|algorithm| algorithm.needs_client)
}

/// Where each client goes.
fn homes(stage: &Stage, weights: &[u16]) -> Vec<usize> {
    let clients = (0..CLIENTS).map(|client| stage.choose(request(client), weights));
    clients.map(Option::unwrap).collect()
}

fn count(homes: impl IntoIterator<Item = usize>, weights: &[u16]) -> Vec<usize> {
    let mut counts = vec![0; weights.len()];
    homes.into_iter().for_each(|backend| counts[backend] += 1);
    counts
}

#[test]
fn a_client_finds_its_backend_again() {
    let weights = [1, 2, 3, 4];
    for algorithm in hashing_algorithms() {
        let stage = Stage::new(algorithm, &weights);
        let first = homes(&stage, &weights);
        assert_eq!(homes(&stage, &weights), first);
        for chance in [1, u64::MAX] {
            let again = Request {
                random: chance,
                now: Instant::from_nanos(chance),
                ..request(77)
            };
            assert_eq!(stage.choose(again, &weights), Some(first[77]));
        }
    }
}

#[test]
fn a_backend_that_is_out_moves_only_its_own_clients_and_those_by_weight() {
    let weights = [3, 1, 2, 4];
    for algorithm in hashing_algorithms() {
        let stage = Stage::new(algorithm, &weights);
        let before = homes(&stage, &weights);
        for out in 0..weights.len() {
            let mut now = weights;
            now[out] = 0;
            let after = homes(&stage, &now);
            let moved: Vec<_> = (0..CLIENTS).filter(|&it| before[it] != after[it]).collect();
            assert!(moved.iter().all(|&client| before[client] == out));
            let went_to = count(moved.iter().map(|&client| after[client]), &weights);
            assert_shares(&went_to, &now, algorithm.name);
        }
    }
}

#[test]
fn passing_over_and_taking_out_lead_to_the_same_backend() {
    let weights = [3, 1, 2, 4];
    for algorithm in hashing_algorithms() {
        let stage = Stage::new(algorithm, &weights);
        for client in 0..1_000 {
            let mut choices = stage.order(request(client), &weights, Passed::default());
            let (first, second) = (choices.next().unwrap(), choices.next());
            let mut now = weights;
            now[first] = 0;
            assert_eq!(stage.choose(request(client), &now), second);
        }
    }
}

#[test]
fn the_order_of_the_configuration_does_not_matter() {
    let weights = [1, 2, 3, 4, 5];
    for algorithm in hashing_algorithms() {
        let stage = Stage::new(algorithm, &weights);
        let mut turned = stage.members.clone();
        turned.reverse();
        let other = Stage::over(algorithm, turned);
        let mirrored = homes(&other, &[5, 4, 3, 2, 1]);
        let mirrored: Vec<_> = mirrored.into_iter().map(|backend| 4 - backend).collect();
        assert_eq!(mirrored, homes(&stage, &weights), "{algorithm:?}");
    }
}

#[test]
fn slow_start_moves_clients_to_the_one_that_starts_and_nowhere_else() {
    let weights = [2, 1, 3];
    for algorithm in hashing_algorithms() {
        let stage = Stage::new(algorithm, &weights);
        let mut before = homes(&stage, &[20, 0, 30]);
        for step in 1..=10 {
            let now = [20, step, 30];
            let after = homes(&stage, &now);
            let moved = (0..CLIENTS).filter(|&it| before[it] != after[it]);
            assert!(moved.map(|client| after[client]).all(|to| to == 1));
            let share = count(after.iter().copied(), &weights)[1];
            let expected = CLIENTS * usize::from(step) / (50 + usize::from(step));
            assert!(
                share.abs_diff(expected) * 20 < expected * 2,
                "{algorithm:?}: {share} instead of {expected}"
            );
            before = after;
        }
        assert_eq!(before, homes(&stage, &weights), "{algorithm:?}");
    }
}

#[test]
fn a_client_is_the_same_in_both_notations() {
    for algorithm in hashing_algorithms() {
        let stage = Stage::new(algorithm, &[1; 50]);
        for client in 0..100 {
            let request = request(client);
            let mapped = Request {
                client: request.client.map(|it| match it {
                    std::net::IpAddr::V4(it) => it.to_ipv6_mapped().into(),
                    std::net::IpAddr::V6(it) => it.into(),
                }),
                ..request
            };
            let chosen = [request, mapped].map(|it| stage.choose(it, &[1; 50]));
            assert_eq!(chosen[0], chosen[1], "{algorithm:?}");
        }
    }
}

#[test]
fn clients_without_an_address_are_spread_by_chance() {
    let weights = [1, 2, 3];
    for algorithm in hashing_algorithms() {
        let stage = Stage::new(algorithm, &weights);
        let chosen = (0..60_000).map(|number| {
            let nobody = Request {
                client: None,
                ..request(number)
            };
            stage.choose(nobody, &weights).unwrap()
        });
        assert_shares(&count(chosen, &weights), &weights, algorithm.name);
    }
}
