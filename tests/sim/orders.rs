//! The operator's orders on backends, on whole workers. That no session begins where it is not to, and
//! that no connection is opened ahead, is looked after in every run.

use std::num::NonZeroUsize;
use std::time::Duration;

use ringress::config::Queue;
use ringress::policy::balance::ALGORITHMS;
use ringress::policy::share::Share;
use ringress::ring::sim::{BackendScript, ClientScript, Step};
use ringress::telemetry::Reason;
use ringress::upstream::Order;

use crate::plan::{Plan, Turn};
use crate::policies::{assert_all_heard, busy, served};
use crate::run::run;

const MILLI: Duration = Duration::from_millis(1);

fn ordered(at: Duration, backend: usize, order: Order) -> (Duration, usize, Turn) {
    (at, backend, Turn::Ordered(order))
}

/// A client per millisecond.
fn steady(plan: &mut Plan, clients: u32) {
    plan.clients = vec![busy(); clients as usize];
    plan.starts = (0..clients).map(|index| index * MILLI).collect();
}

/// Says a byte every 200 µs for 20 ms: turns come at their times only where something happens.
fn ticking() -> ClientScript {
    let bytes = Step::Send {
        bytes: 100,
        chunk: 1,
        pause: Duration::from_micros(200),
    };
    ClientScript::new(vec![bytes, Step::Finish, Step::ReadToEnd])
}

#[test]
fn the_load_of_one_that_drains_goes_to_the_others_until_it_is_back() {
    for (seed, balance) in (0u32..).zip(ALGORITHMS) {
        for workers in [1, 3] {
            let mut plan = Plan::quiet(workers, vec![BackendScript::Echo; 3]);
            plan.policies.balance = *balance;
            steady(&mut plan, 200);
            let drains_at = (1 + seed * 37 % 60) * MILLI;
            plan.turns = vec![ordered(drains_at, 1, Order::Draining)];
            let without = run(&plan);
            assert_eq!(without.broken_promises(), [""; 0], "{}", balance.name);
            assert_all_heard(&without, 200);
            plan.turns.push(ordered(120 * MILLI, 1, Order::Enabled));
            let with = run(&plan);
            assert_eq!(with.broken_promises(), [""; 0], "{}", balance.name);
            assert_all_heard(&with, 200);
            // With a single client address, whoever hashes it has one backend for all.
            if !balance.needs_client {
                let (without, with) = (served(&without, 3), served(&with, 3));
                assert!(without[1] < with[1], "{}: {with:?}", balance.name);
            }
        }
    }
}

#[test]
fn round_robin_is_exact_without_those_that_drain() {
    for order in [Order::Draining, Order::Aborting] {
        let mut plan = Plan::quiet(3, vec![BackendScript::Echo; 3]);
        // The weights are 1, 2 and 1.
        plan.clients = vec![busy(); 240];
        plan.starts = vec![10 * MILLI; 240];
        plan.turns = vec![ordered(5 * MILLI, 1, order)];
        assert_eq!(served(&run(&plan), 3), [120, 0, 120]);
        plan.turns.push(ordered(6 * MILLI, 1, Order::Enabled));
        assert_eq!(served(&run(&plan), 3), [60, 120, 60]);
    }
}

#[test]
fn backups_serve_when_all_others_drain_and_nobody_does_when_backups_drain_too() {
    let mut plan = Plan::quiet(2, vec![BackendScript::Echo; 3]);
    plan.policies.backup = true;
    // It is not ignored, like bad health is.
    plan.policies.fail_open_below = Share::WHOLE;
    plan.clients = vec![ticking()];
    plan.clients.extend(vec![busy(); 60]);
    plan.starts = vec![Duration::ZERO];
    plan.starts.extend([10 * MILLI; 60]);
    plan.turns = (0..2)
        .map(|backend| ordered(5 * MILLI, backend, Order::Draining))
        .collect();
    assert_eq!(served(&run(&plan), 3)[2], 60);
    plan.turns.push(ordered(5 * MILLI, 2, Order::Draining));
    let outcome = run(&plan);
    assert_eq!(outcome.sessions_of(Reason::NoBackend), 60);
    assert_eq!(outcome.attempts.iter().sum::<usize>(), 1);
}

#[test]
fn who_waits_for_a_backend_that_drains_goes_elsewhere_at_once() {
    let hold = ClientScript::new(vec![
        Step::send(100),
        Step::Pause(Duration::from_secs(20)),
        Step::Finish,
        Step::ReadToEnd,
    ]);
    let mut plan = Plan::quiet(2, vec![BackendScript::Echo; 2]);
    plan.policies.backup = true;
    plan.policies.backend_cap = NonZeroUsize::new(1);
    plan.policies.queue = Queue {
        max: 10,
        timeout: Duration::from_secs(10),
    };
    plan.clients = vec![hold, busy(), ticking()];
    plan.starts = [0, 10, 490].map(|at| at * MILLI).to_vec();
    plan.turns = vec![ordered(500 * MILLI, 0, Order::Draining)];
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    assert_eq!(served(&outcome, 2), [1, 2]);
    let ended = outcome.clients[1].ended_at.expect("it was served");
    let ended = ended - ringress::time::Instant::default();
    assert!(ended < Duration::from_secs(1), "{ended:?}");
}

#[test]
fn connections_ahead_are_let_go_of_until_the_backend_is_enabled_again() {
    let mut plan = Plan::quiet(2, vec![BackendScript::Echo; 2]);
    plan.policies.preconnect = 3;
    plan.clients = vec![busy(); 20];
    plan.starts = vec![300 * MILLI; 20];
    plan.turns = vec![ordered(50 * MILLI, 0, Order::Draining)];
    let before = run(&plan);
    assert_eq!(before.broken_promises(), [""; 0]);
    assert_eq!(served(&before, 2), [0, 20]);
    // Three for each worker, and none after.
    assert_eq!(before.attempts[0], 6);
    // At once, and not when a keeper looks again by itself.
    plan.turns.push(ordered(100 * MILLI, 0, Order::Enabled));
    plan.starts = vec![200 * MILLI; 20];
    let after = run(&plan);
    assert_eq!(after.broken_promises(), [""; 0]);
    assert!(after.attempts[0] >= 12, "{:?}", after.attempts);
    assert!(served(&after, 2)[0] > 0);
}

#[test]
fn a_session_that_was_there_before_goes_on() {
    let mut plan = Plan::quiet(1, vec![BackendScript::Echo]);
    plan.clients = vec![ClientScript::new(vec![
        Step::send(100),
        Step::Pause(Duration::from_secs(1)),
        Step::send(100),
        Step::Finish,
        Step::ReadToEnd,
    ])];
    plan.starts = vec![Duration::ZERO];
    plan.turns = vec![ordered(500 * MILLI, 0, Order::Draining)];
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    assert_all_heard(&outcome, 200);
}
