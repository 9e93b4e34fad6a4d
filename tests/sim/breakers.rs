//! Circuit breakers beside the other policies, on whole workers: the queue and connections ahead.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use ringress::config::Queue;
use ringress::policy::breaker;
use ringress::policy::share::Share;
use ringress::ring::sim::{BackendScript, ClientScript, Step};
use ringress::telemetry::Reason;
use ringress::time::Instant;

use crate::plan::{Plan, Turn};
use crate::run::run;

const MILLI: Duration = Duration::from_millis(1);

/// One failure opens it, and one session at a time tries.
const TOUCHY: breaker::Settings = breaker::Settings {
    failure_ratio: Share::from_ppm(300_000),
    min_requests: NonZeroU32::MIN,
    window: Duration::from_secs(10),
    open_for: Duration::from_millis(100),
    half_open_requests: NonZeroU32::MIN,
};

/// Says nothing for so long.
fn silent(pause: Duration) -> ClientScript {
    ClientScript::new(vec![Step::Pause(pause), Step::Finish, Step::ReadToEnd])
}

#[test]
fn who_waits_beside_a_half_open_breaker_waits_in_peace_and_until_it_closes() {
    for workers in [1, 3] {
        let mut plan = Plan::quiet(workers, vec![BackendScript::Refuse, BackendScript::Echo]);
        plan.policies.backend_cap = NonZeroUsize::new(2);
        plan.policies.circuit_breaker = Some(TOUCHY);
        plan.policies.queue = Queue {
            max: 1000,
            timeout: Duration::from_secs(1000),
        };
        plan.turns = vec![(50 * MILLI, 0, Turn::Becomes(BackendScript::Echo))];
        // Three find the first backend refusing, so that its breaker opens.
        plan.clients = vec![ClientScript::exchange(10); 3];
        plan.starts = vec![Duration::ZERO; 3];
        // Two fill the second one, one tries the first, and one has to wait.
        plan.clients
            .extend(vec![silent(Duration::from_secs(20)); 3]);
        plan.starts.extend([200 * MILLI; 3]);
        plan.clients.push(ClientScript::exchange(10));
        plan.starts.push(210 * MILLI);
        let outcome = run(&plan);
        assert_eq!(outcome.broken_promises(), [""; 0]);
        assert_eq!(outcome.sessions_of(Reason::ClientClosed), 7);
        let waited = outcome.clients[6].ended_at.expect("it has ended");
        let closes = Instant::default() + 300 * MILLI;
        assert!(waited >= closes, "{waited:?}, {workers} workers");
        assert!(
            waited < closes + 20 * MILLI,
            "{waited:?}, {workers} workers"
        );
    }
}

#[test]
fn who_may_not_try_a_half_open_backend_costs_it_no_connection_ahead() {
    let mut plan = Plan::quiet(1, vec![BackendScript::Refuse]);
    plan.retries = 0;
    plan.policies.preconnect = 2;
    plan.policies.circuit_breaker = Some(breaker::Settings {
        open_for: Duration::from_secs(2),
        ..TOUCHY
    });
    plan.turns = vec![(50 * MILLI, 0, Turn::Becomes(BackendScript::Echo))];
    plan.clients = vec![ClientScript::exchange(10)];
    plan.starts = vec![Duration::ZERO];
    // The trial, and those that come while it lasts.
    plan.clients.push(silent(Duration::from_secs(20)));
    plan.starts.push(Duration::from_secs(5));
    plan.clients.extend(vec![ClientScript::exchange(10); 50]);
    plan.starts
        .extend((0..50).map(|index| Duration::from_secs(6) + index * 10 * MILLI));
    let outcome = run(&plan);
    assert_eq!(outcome.sessions_of(Reason::NoBackend), 51);
    assert_eq!(outcome.sessions_of(Reason::ClientClosed), 1);
    assert!(outcome.attempts[0] < 15, "{:?}", outcome.attempts);
}
