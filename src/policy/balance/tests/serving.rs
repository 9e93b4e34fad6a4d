//! Sessions that take their time: what the algorithms that look at it make of slow backends.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::{ALGORITHMS, Algorithm, Request};
use super::{Stage, request};
use crate::time::Instant;

fn algorithm(name: &str) -> Algorithm {
    let found = ALGORITHMS.iter().find(|algorithm| algorithm.name == name);
    *found.unwrap()
}

#[derive(Debug)]
struct Served {
    /// Sessions, by backend.
    counts: Vec<usize>,
    /// The most that there were at once, by backend.
    most: Vec<usize>,
}

/// 10,000 sessions, one every `pause_ms`, which take as long as `service_ms` says of their backend.
fn serve(stage: &Stage, weights: &[u16], service_ms: &[u64], pause_ms: u64) -> Served {
    let mut served = Served {
        counts: vec![0; weights.len()],
        most: vec![0; weights.len()],
    };
    let mut ends = BTreeSet::<(u64, usize, usize)>::new();
    for session in 0..10_000 {
        let now = session as u64 * pause_ms;
        while let Some(&(end, _, backend)) = ends.first()
            && end <= now
        {
            ends.pop_first();
            let load = &stage.members[backend].load;
            load.active.leave();
            let took = Duration::from_millis(service_ms[backend]);
            load.latency.observe(took, at(end));
        }
        let request = Request {
            now: at(now),
            ..request(session)
        };
        let backend = stage.choose(request, weights).unwrap();
        let active = &stage.members[backend].load.active;
        active.enter(usize::MAX);
        served.counts[backend] += 1;
        served.most[backend] = served.most[backend].max(active.now());
        ends.insert((now + service_ms[backend], session, backend));
    }
    served
}

fn at(millis: u64) -> Instant {
    Instant::from_nanos(0) + Duration::from_millis(millis)
}

fn serve_with(name: &str, weights: &[u16], service_ms: &[u64], pause_ms: u64) -> Served {
    let stage = Stage::new(algorithm(name), weights);
    serve(&stage, weights, service_ms, pause_ms)
}

#[test]
fn least_connections_gives_a_slow_backend_what_it_can_bear() {
    let slow = |name| serve_with(name, &[1, 1, 1], &[20, 20, 400], 2);
    let evenly = slow("round-robin");
    assert!(evenly.most[2] > 60, "{evenly:?}");
    let served = slow("least-connections");
    // A twentieth of what the others get, and never more at once than they have.
    assert!(served.counts[2] * 15 < served.counts[0], "{served:?}");
    assert!(served.most[2] <= 6, "{served:?}");
}

#[test]
fn least_connections_follows_the_weights_under_load() {
    let served = serve_with("least-connections", &[1, 2, 3], &[120; 3], 1);
    super::assert_shares(&served.counts, &[1, 2, 3], "least-connections");
}

#[test]
fn power_of_two_gives_a_slow_backend_less() {
    let served = serve_with("power-of-two", &[1, 1, 1], &[20, 20, 400], 2);
    assert!(served.counts[2] * 8 < served.counts[0], "{served:?}");
    assert!(served.most[2] < 12, "{served:?}");
}

#[test]
fn peak_ewma_shuns_a_slow_backend_but_looks_after_it() {
    let served = serve_with("peak-ewma", &[1, 1, 1], &[20, 20, 400], 2);
    assert!(served.counts[2] * 50 < served.counts[0], "{served:?}");
    // 20 s went by.
    assert!(served.counts[2] >= 2, "{served:?}");
    assert!(
        served.counts[0].abs_diff(served.counts[1]) < 500,
        "{served:?}"
    );
}

#[test]
fn peak_ewma_goes_by_speed_where_least_connections_sees_no_difference() {
    let idle = |name| serve_with(name, &[1, 1], &[5, 50], 100);
    assert_eq!(idle("least-connections").counts, [5_000; 2]);
    assert!(idle("peak-ewma").counts[0] > 9_000);
}
