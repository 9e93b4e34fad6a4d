//! Whole workers on the simulated kernel: the same session code as on the real one, with simulated
//! clients and backends, faults, and a seed. After each run every byte is accounted for, nothing is
//! leaked, every limit held, and every session ended with one reason. A failing seed replays
//! exactly: `RINGRESS_SEED=17 cargo test --test sim`; `RINGRESS_SEEDS=20000` runs more of them.

#[path = "sim/breakers.rs"]
mod breakers;
#[path = "sim/crowd.rs"]
mod crowd;
#[path = "sim/cuts.rs"]
mod cuts;
#[path = "sim/datagrams.rs"]
mod datagrams;
#[path = "sim/layers.rs"]
mod layers;
#[path = "sim/orders.rs"]
mod orders;
#[cfg(debug_assertions)]
#[path = "sim/panics.rs"]
mod panics;
#[path = "sim/plan.rs"]
mod plan;
#[path = "sim/policies.rs"]
mod policies;
#[path = "sim/promises.rs"]
mod promises;
#[path = "sim/raw.rs"]
mod raw;
#[path = "sim/records.rs"]
mod records;
#[path = "sim/run.rs"]
mod run;
#[path = "sim/secured.rs"]
mod secured;
#[path = "sim/security.rs"]
mod security;

use std::time::Duration;

use plan::Plan;
use ringress::ring::sim::{BackendScript, ClientScript, Ending, Faults, Step};
use ringress::telemetry::Reason;
use run::{Outcome, run};

const SEEDS: u64 = 400;

fn seeds() -> std::ops::Range<u64> {
    seeds_of(SEEDS)
}

/// The seeds to run: the usual number, as many as are asked for, or the one that is asked for.
fn seeds_of(usual: u64) -> std::ops::Range<u64> {
    let asked = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(
            text.parse::<u64>()
                .unwrap_or_else(|_| panic!("{name} is a number")),
        )
    };
    match asked("RINGRESS_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..asked("RINGRESS_SEEDS").unwrap_or(usual),
    }
}

#[test]
fn every_seed_keeps_every_promise() {
    for seed in seeds() {
        let outcome = run(&Plan::from_seed(seed));
        let broken = outcome.broken_promises();
        assert!(broken.is_empty(), "seed {seed}: {broken:#?}\n{outcome:#?}");
    }
}

#[test]
fn the_seeds_meet_every_kind_of_ending() {
    let mut met = std::collections::BTreeSet::new();
    for seed in 0..SEEDS {
        let outcome = run(&Plan::from_seed(seed));
        met.extend(outcome.sessions.iter().map(|session| session.reason));
    }
    // Two are of datagrams; what ends TLS and what comes before it has suites of its own.
    let never = [
        Reason::ClientLost,
        Reason::BackendLost,
        Reason::Answered,
        Reason::BackendRefused,
        Reason::ClientLeft,
        Reason::HandshakeTimeout,
        Reason::UntrustedProxy,
        Reason::BadProxyHeader,
        Reason::BadHello,
        Reason::LongHello,
        Reason::ClientTls,
        Reason::ClientTruncated,
        Reason::BackendTls,
        Reason::BackendTruncated,
        Reason::WorkerPanicked,
    ];
    let missing: Vec<_> = Reason::ALL
        .iter()
        .filter(|reason| !met.contains(reason) && !never.contains(reason))
        .collect();
    assert!(
        missing.is_empty(),
        "no seed ended a session with {missing:?}"
    );
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..20 {
        let (first, second) = (run(&Plan::from_seed(seed)), run(&Plan::from_seed(seed)));
        assert_eq!(first.trace, second.trace, "seed {seed}");
    }
}

#[test]
fn a_hundred_connections_share_four_buffers() {
    let mut plan = Plan::quiet(1, vec![BackendScript::Echo]);
    plan.buffers = 4;
    plan.clients = vec![ClientScript::exchange(100 << 10); 100];
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    for client in &outcome.clients {
        assert_eq!((client.sent, client.received), (100 << 10, 100 << 10));
        assert_eq!(client.ending, Ending::Fin);
    }
    assert!(outcome.most_buffers <= 4);
}

#[test]
fn a_stalled_reader_holds_no_more_than_its_window() {
    let stalled = ClientScript::new(vec![Step::send(64), Step::Stall(None), Step::ReadToEnd]);
    let mut plan = Plan::quiet(1, vec![BackendScript::Download { bytes: 8 << 20 }]);
    plan.clients = vec![stalled];
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    assert_eq!(outcome.sessions[0].reason, Reason::Idle);
    // 64 KiB are four buffers; one more for the last receive, and one that was sent while partly full.
    assert!(
        outcome.most_buffers <= 6,
        "{} buffers",
        outcome.most_buffers
    );
}

#[test]
fn single_bytes_into_a_stalled_reader_do_not_eat_the_pool() {
    let chatty = Step::Send {
        bytes: 30_000,
        chunk: 1,
        pause: Duration::from_micros(50),
    };
    let mut plan = Plan::quiet(1, vec![BackendScript::NeverReads]);
    plan.faults.receive_buffer = 1 << 10;
    plan.faults.send_buffer = 1 << 10;
    plan.clients = vec![ClientScript::new(vec![
        chatty,
        Step::Finish,
        Step::ReadToEnd,
    ])];
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    assert!(
        outcome.most_buffers <= 6,
        "{} buffers",
        outcome.most_buffers
    );
}

#[test]
fn a_deadline_is_renewed_by_every_byte() {
    let slow = Step::Send {
        bytes: 40,
        chunk: 1,
        pause: Duration::from_secs(9),
    };
    let mut plan = Plan::quiet(1, vec![BackendScript::Echo]);
    plan.idle = Duration::from_secs(10);
    plan.clients = vec![ClientScript::new(vec![slow, Step::Finish, Step::ReadToEnd])];
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    assert_eq!(outcome.sessions[0].reason, Reason::ClientClosed);
    assert_eq!(outcome.clients[0].received, 40);
}

#[test]
fn silence_ends_a_session_after_exactly_the_idle_timeout() {
    let silent = ClientScript::new(vec![Step::send(100), Step::ReadToEnd]);
    let mut plan = Plan::quiet(1, vec![BackendScript::Echo]);
    plan.idle = Duration::from_secs(10);
    plan.clients = vec![silent];
    let outcome = run(&plan);
    assert_eq!(outcome.sessions[0].reason, Reason::Idle);
    let lasted = outcome.sessions[0].duration;
    assert!(
        lasted >= Duration::from_secs(10) && lasted < Duration::from_millis(10_010),
        "{lasted:?}"
    );
}

#[test]
fn bytes_that_trickle_out_of_one_send_are_no_silence() {
    // 128 KiB at 1 KiB a second: far slower than `idle`, but never silent for as long.
    let slow = BackendScript::SlowReader {
        bytes: 1 << 10,
        interval: Duration::from_secs(1),
    };
    let mut plan = Plan::quiet(1, vec![slow]);
    plan.idle = Duration::from_secs(10);
    plan.half_close = Duration::from_secs(10);
    plan.faults.receive_buffer = 4 << 10;
    plan.faults.send_buffer = 4 << 10;
    plan.clients = vec![ClientScript::exchange(128 << 10)];
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    assert_eq!(outcome.sessions[0].reason, Reason::ClientClosed);
}

#[test]
fn a_black_hole_costs_one_connect_timeout_and_the_next_backend_serves() {
    let mut plan = Plan::quiet(1, vec![BackendScript::BlackHole, BackendScript::Echo]);
    plan.clients = vec![ClientScript::exchange(1000)];
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    assert_eq!(outcome.sessions[0].reason, Reason::ClientClosed);
    let lasted = outcome.sessions[0].duration;
    assert!(
        lasted >= plan.connect_timeout && lasted < plan.connect_timeout * 2,
        "{lasted:?}"
    );
}

#[test]
fn a_reset_reaches_the_client_after_every_byte_that_came_before() {
    for bytes in [1, 100, 70_000, 500_000] {
        let steps = vec![
            Step::Expect(8),
            Step::send(bytes),
            Step::Pause(Duration::from_secs(1)),
            Step::Reset,
        ];
        let mut plan = Plan::quiet(1, vec![BackendScript::Steps(steps)]);
        plan.clients = vec![ClientScript::new(vec![Step::send(8), Step::ReadToEnd])];
        let outcome = run(&plan);
        assert_eq!(outcome.broken_promises(), [""; 0]);
        assert_eq!(outcome.sessions[0].reason, Reason::BackendReset);
        assert_eq!(
            (outcome.clients[0].received, outcome.clients[0].ending),
            (bytes, Ending::Reset)
        );
    }
}

#[test]
fn a_reset_waits_for_bytes_that_a_slow_client_has_not_read() {
    let steps = vec![
        Step::Expect(8),
        Step::send(150_000),
        Step::Pause(Duration::from_secs(1)),
        Step::Reset,
    ];
    let slowly = Step::ReadSlowly {
        bytes: 5_000,
        interval: Duration::from_millis(100),
    };
    let mut plan = Plan::quiet(1, vec![BackendScript::Steps(steps)]);
    plan.clients = vec![ClientScript::new(vec![
        slowly,
        Step::send(8),
        Step::ReadToEnd,
    ])];
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    assert_eq!(outcome.sessions[0].reason, Reason::BackendReset);
    let client = &outcome.clients[0];
    assert_eq!((client.received, client.ending), (150_000, Ending::Reset));
}

#[test]
fn bulk_goes_by_splice_and_every_byte_arrives() {
    for seed in 0..60 {
        let mut plan = Plan::quiet(2, vec![BackendScript::Download { bytes: 5_000_000 }]);
        plan.seed = seed;
        plan.faults = Faults {
            peer_reset: 0,
            exhausted: 0,
            accept_fails: 0,
            ..Faults::from_seed(seed)
        };
        plan.faults.receive_buffer = 256 << 10;
        plan.faults.send_buffer = 256 << 10;
        let read = vec![Step::send(8), Step::Finish, Step::ReadToEnd];
        let stall = Step::Stall(Some(Duration::from_secs(3)));
        let stall = vec![Step::send(8), stall, Step::Finish, Step::ReadToEnd];
        plan.clients = vec![ClientScript::new(read), ClientScript::new(stall)];
        let outcome = run(&plan);
        assert_eq!(outcome.broken_promises(), [""; 0], "seed {seed}");
        for client in &outcome.clients {
            assert_eq!(
                (client.received, client.ending),
                (5_000_000, Ending::Fin),
                "seed {seed}"
            );
        }
        let near = plan.faults.latency.1 < Duration::from_millis(2) && plan.faults.late == 0;
        assert!(outcome.pipes > 0 || !near, "seed {seed} did not splice");
    }
}

#[test]
fn older_kernels_keep_the_same_promises() {
    for seed in seeds() {
        let mut plan = Plan::from_seed(seed);
        plan.capabilities.recv_budget = false;
        plan.capabilities.multishot_recv = seed % 2 == 0;
        plan.capabilities.multishot_accept = seed % 3 == 0;
        let outcome = run(&plan);
        let broken = outcome.broken_promises();
        assert!(broken.is_empty(), "seed {seed}: {broken:#?}\n{outcome:#?}");
    }
}

#[test]
fn caps_are_never_passed() {
    let mut plan = Plan::quiet(3, vec![BackendScript::Echo]);
    plan.faults = Faults {
        latency: (Duration::from_millis(1), Duration::from_millis(20)),
        ..Faults::none()
    };
    plan.max_connections = 7;
    plan.clients = vec![ClientScript::exchange(50_000); 60];
    let outcome: Outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    assert!(outcome.most_sessions <= 7, "{}", outcome.most_sessions);
    assert!(outcome.sessions_of(Reason::ClientClosed) >= 7);
    assert!(outcome.refused > 0);
}
