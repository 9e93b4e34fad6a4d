//! TLS on either side or both, passed on, and PROXY headers, with the same faults, tiny pools and limits as
//! without: over seeds.

use std::collections::BTreeSet;

use ringress::telemetry::Reason;

use crate::plan::Plan;
use crate::run::run;
use crate::seeds_of;

const SEEDS: u64 = 200;

#[test]
fn every_secured_seed_keeps_every_promise() {
    let mut met = BTreeSet::new();
    for seed in seeds_of(SEEDS) {
        let outcome = run(&Plan::secured(seed));
        let broken = outcome.broken_promises();
        assert!(broken.is_empty(), "seed {seed}: {broken:#?}\n{outcome:#?}");
        met.extend(outcome.sessions.iter().map(|session| session.reason));
    }
    if seeds_of(SEEDS) == (0..SEEDS) {
        for reason in [
            Reason::ClientTruncated,
            Reason::BackendTruncated,
            Reason::BackendTls,
            Reason::ClientReset,
            Reason::BackendReset,
            Reason::Idle,
            Reason::Drained,
        ] {
            assert!(met.contains(&reason), "no seed ended with {reason:?}");
        }
    }
}

#[test]
fn the_same_secured_seed_gives_the_same_run() {
    for seed in 0..15 {
        let (first, second) = (run(&Plan::secured(seed)), run(&Plan::secured(seed)));
        assert_eq!(first.trace, second.trace, "seed {seed}");
    }
}

#[test]
fn secured_runs_on_older_kernels_keep_the_same_promises() {
    for seed in seeds_of(60) {
        let mut plan = Plan::secured(seed);
        plan.capabilities.recv_budget = false;
        plan.capabilities.multishot_recv = seed % 2 == 0;
        let outcome = run(&plan);
        let broken = outcome.broken_promises();
        assert!(broken.is_empty(), "seed {seed}: {broken:#?}\n{outcome:#?}");
    }
}
