//! One test per bug that was found, named by the fact that was broken.

mod common;
#[path = "sim/layers.rs"]
#[allow(dead_code, reason = "shared with the simulation, which uses all of it")]
mod layers;
#[path = "sim/plan.rs"]
#[allow(dead_code, reason = "shared with the simulation, which uses all of it")]
mod plan;
#[path = "regressions/process.rs"]
mod process;
#[path = "sim/promises.rs"]
#[allow(dead_code, reason = "shared with the simulation, which uses all of it")]
mod promises;
#[path = "regressions/reload.rs"]
mod reload;
#[path = "sim/run.rs"]
#[allow(dead_code, reason = "shared with the simulation, which uses all of it")]
mod run;
#[path = "sim/security.rs"]
#[allow(dead_code, reason = "shared with the simulation, which uses all of it")]
mod security;

use std::time::Duration;

use plan::Plan;
use ringress::ring::sim::{BackendScript, ClientScript, Step};
use run::run;

/// The kernel tells a reset once. When the send in flight was told, receiving saw an end that was
/// passed on as FIN, and the backend took half an upload for the whole.
#[test]
fn a_reset_that_a_send_was_told_of_is_not_passed_on_as_fin() {
    // The backend's bytes fill the client's window, so that a send is on its way when the reset
    // comes; its completion is late, and receives are often not armed at that moment.
    for seed in 0..100 {
        let client = vec![
            Step::send(8),
            Step::Stall(None),
            Step::send(100_000),
            Step::Reset,
        ];
        let mut plan = Plan::quiet(1, vec![BackendScript::Download { bytes: 400_000 }]);
        plan.seed = seed;
        plan.faults.no_buffers = 3_000;
        plan.faults.receive_ends = 3_000;
        plan.faults.late = 5_000;
        plan.faults.late_by = Duration::from_millis(20);
        plan.clients = vec![ClientScript::new(client)];
        let outcome = run(&plan);
        let broken = outcome.broken_promises();
        assert!(broken.is_empty(), "seed {seed}: {broken:#?}");
        assert!(
            !outcome.backends[0].saw_fin,
            "seed {seed}: {:?}",
            outcome.backends[0]
        );
    }
}

/// Growing receive buffers back to their first size forgot the pages of buffers that the kernel
/// had filled, whose completions were still to come: clients got zeros.
#[test]
fn giving_pages_back_forgets_no_received_byte() {
    let mut plan = Plan::quiet(1, vec![BackendScript::Download { bytes: 600_000 }]);
    plan.buffers = 256;
    plan.faults.late = 3_000;
    plan.faults.late_by = Duration::from_millis(20);
    plan.faults.latency = (Duration::from_millis(1), Duration::from_millis(30));
    let slow = Step::ReadSlowly {
        bytes: 20_000,
        interval: Duration::from_millis(100),
    };
    plan.clients = vec![ClientScript::new(vec![Step::send(8), slow, Step::ReadToEnd]); 60];
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    assert!(
        outcome.most_buffers > 32,
        "the pool has to grow for this: {}",
        outcome.most_buffers
    );
}

fn stalled() -> ClientScript {
    ClientScript::new(vec![Step::send(8), Step::Stall(None), Step::ReadToEnd])
}

/// A receiver that had starved while its session held bytes stayed marked as holding; nothing woke
/// a one-way stream after its last send.
#[test]
fn a_one_way_stream_goes_on_while_stalled_readers_keep_buffers_scarce() {
    let mut plan = Plan::quiet(1, vec![BackendScript::Download { bytes: 2_000_000 }]);
    plan.buffers = 8;
    let reader = ClientScript::new(vec![Step::send(8), Step::Finish, Step::ReadToEnd]);
    plan.clients = vec![stalled(), stalled(), stalled(), reader];
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    assert_eq!(outcome.clients[3].received, 2_000_000);
    let ended = outcome.clients[3].ended_at.expect("it ended");
    assert!(ended.as_nanos() < 5_000_000_000, "{ended:?}");
}

/// Past half of the pool windows shrank for new receives only, so that stalled readers took the
/// quarter that is kept for sessions without any.
#[test]
fn stalled_readers_leave_buffers_for_those_that_hold_none() {
    let mut plan = Plan::quiet(1, vec![BackendScript::Download { bytes: 400_000 }]);
    plan.buffers = 1024;
    plan.clients = vec![stalled(); 320];
    let late = vec![
        Step::Pause(Duration::from_secs(1)),
        Step::send(8),
        Step::Finish,
        Step::ReadToEnd,
    ];
    plan.clients.push(ClientScript::new(late));
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    assert_eq!(outcome.clients[320].received, 400_000);
    let ended = outcome.clients[320].ended_at.expect("it ended");
    assert!(ended.as_nanos() < 5_000_000_000, "{ended:?}");
}

/// While the window was full nothing was received, and so a reset was only found by `idle`.
#[test]
fn a_reset_behind_a_full_window_is_noticed() {
    let mut plan = Plan::quiet(1, vec![BackendScript::NeverReads]);
    plan.idle = Duration::from_secs(600);
    plan.half_close = Duration::from_secs(10);
    let wait = Step::Pause(Duration::from_secs(5));
    plan.clients = vec![ClientScript::new(vec![
        Step::send(190_000),
        wait,
        Step::Reset,
    ])];
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    let session = &outcome.sessions[0];
    assert_eq!(session.reason, ringress::telemetry::Reason::ClientReset);
    assert!(session.duration < Duration::from_secs(20), "{session:?}");
}

/// A retry was counted before there was anybody to try: with a single backend, one for each failure.
#[test]
fn a_retry_that_finds_no_other_backend_is_none() {
    let mut plan = Plan::quiet(1, vec![BackendScript::Refuse]);
    plan.clients = vec![ClientScript::new(vec![Step::ReadToEnd])];
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    let session = &outcome.sessions[0];
    assert_eq!(
        (session.reason, session.retries),
        (ringress::telemetry::Reason::NoBackend, 0)
    );
}
