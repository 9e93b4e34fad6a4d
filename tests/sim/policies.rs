//! Traffic policy on whole workers: caps and the queue, retries, breakers, rates, pools.

use std::net::{IpAddr, Ipv4Addr};
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::time::Duration;

use ringress::config::{Queue, RateLimit};
use ringress::policy::balance::{ALGORITHMS, Algorithm};
use ringress::policy::breaker;
use ringress::policy::bucket::Rate;
use ringress::policy::share::Share;
use ringress::ring::sim::{BackendScript, ClientScript, Ending, Faults, PeerRecord, Step};
use ringress::telemetry::Reason;

use crate::plan::{Plan, Turn};
use crate::run::{Outcome, run};

const MILLI: Duration = Duration::from_millis(1);

fn algorithm(name: &str) -> Algorithm {
    let found = ALGORITHMS.iter().find(|algorithm| algorithm.name == name);
    *found.expect("an algorithm")
}

fn rate(per_second: u64, burst: u64) -> Rate {
    let nonzero = |number| NonZeroU64::new(number).expect("not zero");
    Rate {
        per_second: nonzero(per_second),
        burst: nonzero(burst),
    }
}

/// Sessions by backend, in the order of the configuration.
pub(crate) fn served(outcome: &Outcome, backends: usize) -> Vec<usize> {
    let of = |index| {
        let name = format!("b{index}");
        let sessions = outcome.sessions.iter();
        sessions
            .filter(|session| session.backend.as_deref() == Some(&name))
            .count()
    };
    (0..backends).map(of).collect()
}

/// Every client got so many bytes, and FIN.
pub(crate) fn assert_all_heard(outcome: &Outcome, bytes: u64) {
    for client in &outcome.clients {
        assert_eq!((client.received, client.ending), (bytes, Ending::Fin));
    }
}

/// Talks for a while, so that sessions overlap.
pub(crate) fn busy() -> ClientScript {
    ClientScript::new(vec![
        Step::send(100),
        Step::Pause(10 * MILLI),
        Step::send(100),
        Step::Finish,
        Step::ReadToEnd,
    ])
}

fn with_cap(workers: usize, cap: usize, queue: Queue, clients: usize) -> Plan {
    let mut plan = Plan::quiet(workers, vec![BackendScript::Echo]);
    plan.policies.backend_cap = NonZeroUsize::new(cap);
    plan.policies.queue = queue;
    plan.clients = vec![busy(); clients];
    plan
}

const PATIENT: Queue = Queue {
    max: 1000,
    timeout: Duration::from_secs(1000),
};

#[test]
fn a_backends_cap_holds_on_the_backends_side_and_everybody_is_served() {
    for workers in [1, 3] {
        let mut plan = with_cap(workers, 5, PATIENT, 80);
        plan.distance = Some(2 * MILLI);
        let outcome = run(&plan);
        assert_eq!(outcome.broken_promises(), [""; 0]);
        assert_eq!(outcome.most_connections, [5], "{workers} workers");
        assert_eq!(outcome.sessions_of(Reason::ClientClosed), 80);
    }
}

#[test]
fn who_waits_on_a_worker_is_served_in_order() {
    let mut plan = with_cap(1, 1, PATIENT, 300);
    // They come as fast as they are served, so that some come in the moment a place is free.
    plan.clients = vec![ClientScript::exchange(100); 300];
    plan.starts = (0..300)
        .map(|index| index * Duration::from_micros(60))
        .collect();
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    let ends: Vec<_> = outcome
        .clients
        .iter()
        .map(|client| client.ended_at)
        .collect();
    assert!(ends.is_sorted(), "{ends:?}");
}

#[test]
fn who_retries_does_not_hold_up_who_could_be_served() {
    // The first has tried b0 in vain and waits for b1, which is full for long; b0 is back soon.
    let hold = ClientScript::new(vec![
        Step::send(100),
        Step::Pause(Duration::from_secs(20)),
        Step::Finish,
        Step::ReadToEnd,
    ]);
    let mut plan = with_cap(1, 1, PATIENT, 0);
    plan.backends = vec![BackendScript::Refuse, BackendScript::Echo];
    plan.clients = vec![hold, busy(), busy(), busy()];
    plan.starts = [0, 10, 20, 1000].map(|at| at * MILLI).to_vec();
    plan.turns = vec![(500 * MILLI, 0, Turn::Becomes(BackendScript::Echo))];
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    let ended = outcome.clients[3].ended_at.expect("it was served");
    let ended = ended - ringress::time::Instant::default();
    assert!(ended < Duration::from_secs(2), "{ended:?}");
}

#[test]
fn places_that_come_free_together_are_taken_together() {
    let mut plan = with_cap(1, 3, PATIENT, 6);
    plan.starts = vec![Duration::ZERO; 6];
    plan.distance = Some(MILLI);
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    let neglect = outcome.longest_neglect;
    assert!(neglect < MILLI, "a place was free for {neglect:?}");
}

#[test]
fn the_queue_is_bounded_over_all_workers_and_patience_ends() {
    let queue = Queue {
        max: 3,
        timeout: 200 * MILLI,
    };
    let mut plan = with_cap(3, 2, queue, 20);
    let linger = vec![
        Step::send(100),
        Step::Pause(Duration::from_secs(5)),
        Step::Finish,
        Step::ReadToEnd,
    ];
    plan.clients = vec![ClientScript::new(linger); 20];
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    assert_eq!(outcome.sessions_of(Reason::ClientClosed), 2);
    assert_eq!(outcome.sessions_of(Reason::QueueTimeout), 3);
    assert_eq!(outcome.sessions_of(Reason::QueueFull), 15);
    let waited = outcome
        .sessions
        .iter()
        .filter(|session| session.reason == Reason::QueueTimeout);
    for session in waited {
        let over = session.duration.saturating_sub(queue.timeout);
        assert!(session.duration >= queue.timeout && over < 5 * MILLI);
    }
}

#[test]
fn a_client_that_left_while_it_waited_takes_no_place() {
    let mut plan = with_cap(1, 1, PATIENT, 2);
    plan.clients[0] = ClientScript::new(vec![
        Step::send(100),
        Step::Pause(Duration::from_secs(1)),
        Step::Finish,
        Step::ReadToEnd,
    ]);
    plan.clients[1] = ClientScript::new(vec![Step::send(8), Step::Pause(20 * MILLI), Step::Reset]);
    plan.starts = vec![Duration::ZERO, 10 * MILLI];
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    assert_eq!(outcome.attempts, [1]);
    assert_eq!(outcome.sessions_of(Reason::ClientReset), 1);
}

#[test]
fn when_all_refuse_the_load_grows_by_the_budget() {
    let mut plan = Plan::quiet(3, vec![BackendScript::Refuse; 3]);
    plan.retries = 5;
    plan.clients = vec![busy(); 200];
    let outcome = run(&plan);
    assert_eq!(outcome.sessions_of(Reason::NoBackend), 200);
    let attempts: usize = outcome.attempts.iter().sum();
    assert!((210..=240).contains(&attempts), "{attempts}");
}

#[test]
fn a_retry_that_succeeds_is_not_charged() {
    let mut plan = Plan::quiet(2, vec![BackendScript::Refuse, BackendScript::Echo]);
    plan.clients = vec![busy(); 200];
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    assert_eq!(outcome.sessions_of(Reason::ClientClosed), 200);
}

#[test]
fn a_backend_killed_under_load_costs_no_session_that_had_not_begun() {
    let mut plan = Plan::quiet(2, vec![BackendScript::Echo, BackendScript::Echo]);
    plan.clients = vec![busy(); 300];
    plan.starts = (0..300).map(|index| index * MILLI).collect();
    plan.turns = vec![(100 * MILLI, 0, Turn::Killed)];
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    let lost = outcome
        .sessions
        .iter()
        .filter(|session| !matches!(session.reason, Reason::ClientClosed));
    for session in lost {
        assert_eq!(session.backend.as_deref(), Some("b0"), "{session:?}");
        assert!(session.bytes_received > 0, "{session:?}");
    }
}

#[test]
fn a_half_open_breaker_admits_exactly_so_many_over_all_workers() {
    for half_open in [1, 3] {
        let mut plan = Plan::quiet(3, vec![BackendScript::Refuse]);
        plan.retries = 0;
        plan.policies.circuit_breaker = Some(breaker::Settings {
            failure_ratio: Share::from_ppm(500_000),
            min_requests: NonZeroU32::new(5).expect("not zero"),
            window: Duration::from_secs(10),
            open_for: 500 * MILLI,
            half_open_requests: NonZeroU32::new(half_open).expect("not zero"),
        });
        plan.clients = vec![busy(); 100];
        // Twenty open it, the rest comes after `open_for`, when it swallows what is sent.
        plan.starts = (0..20).map(|_| Duration::ZERO).collect();
        plan.starts
            .extend((20..100).map(|index| 600 * MILLI + index * MILLI));
        plan.turns = vec![(550 * MILLI, 0, Turn::Becomes(BackendScript::BlackHole))];
        let outcome = run(&plan);
        let before = outcome.attempts[0] - half_open as usize;
        assert!((5..=20).contains(&before), "{:?}", outcome.attempts);
        assert_eq!(
            outcome.sessions_of(Reason::ConnectTimeout),
            half_open as usize
        );
    }
}

#[test]
fn silent_clients_keep_a_breaker_half_open_for_open_for_at_most() {
    let mut plan = Plan::quiet(2, vec![BackendScript::Refuse]);
    plan.retries = 0;
    plan.policies.circuit_breaker = Some(breaker::Settings {
        failure_ratio: Share::from_ppm(500_000),
        min_requests: NonZeroU32::new(5).expect("not zero"),
        window: Duration::from_secs(10),
        open_for: 100 * MILLI,
        half_open_requests: NonZeroU32::new(2).expect("not zero"),
    });
    let silent = ClientScript::new(vec![
        Step::Pause(Duration::from_secs(20)),
        Step::Finish,
        Step::ReadToEnd,
    ]);
    // Ten open it, two are admitted and say nothing.
    plan.clients = vec![busy(); 10];
    plan.starts = vec![Duration::ZERO; 10];
    plan.clients.extend(vec![silent; 2]);
    plan.starts.extend([200 * MILLI; 2]);
    plan.clients.extend(vec![busy(); 10]);
    plan.starts.extend([250 * MILLI; 5]);
    plan.starts.extend([310 * MILLI; 5]);
    plan.turns = vec![(50 * MILLI, 0, Turn::Becomes(BackendScript::Echo))];
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    assert_eq!(outcome.sessions_of(Reason::NoBackend), 10 + 5);
    assert_eq!(outcome.sessions_of(Reason::ClientClosed), 2 + 5);
}

#[test]
fn a_breaker_closes_when_all_that_try_succeed() {
    let mut plan = Plan::quiet(2, vec![BackendScript::Refuse]);
    plan.retries = 0;
    plan.policies.circuit_breaker = Some(breaker::Settings {
        failure_ratio: Share::from_ppm(500_000),
        min_requests: NonZeroU32::new(5).expect("not zero"),
        window: Duration::from_secs(10),
        open_for: 100 * MILLI,
        half_open_requests: NonZeroU32::new(2).expect("not zero"),
    });
    plan.clients = vec![busy(); 60];
    plan.starts = vec![Duration::ZERO; 10];
    plan.starts
        .extend((0..50).map(|index| 200 * MILLI + index * 20 * MILLI));
    plan.turns = vec![(50 * MILLI, 0, Turn::Becomes(BackendScript::Echo))];
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    assert_eq!(outcome.sessions_of(Reason::ClientClosed), 50);
}

#[test]
fn round_robin_is_exact_over_those_that_are_ready() {
    let mut plan = Plan::quiet(3, vec![BackendScript::Echo; 3]);
    // The weights are 1, 2 and 1.
    plan.clients = vec![busy(); 240];
    plan.starts = vec![10 * MILLI; 240];
    let outcome = run(&plan);
    assert_eq!(served(&outcome, 3), [60, 120, 60]);
    plan.turns = vec![(5 * MILLI, 1, Turn::Healthy(false))];
    let outcome = run(&plan);
    assert_eq!(served(&outcome, 3), [120, 0, 120]);
    plan.turns = vec![(5 * MILLI, 0, Turn::Healthy(false))];
    let outcome = run(&plan);
    assert_eq!(served(&outcome, 3), [0, 160, 80]);
}

#[test]
fn a_backup_is_used_when_no_other_is_ready_and_not_before() {
    let mut plan = Plan::quiet(2, vec![BackendScript::Echo; 3]);
    plan.policies.backup = true;
    plan.clients = vec![busy(); 100];
    plan.starts = vec![10 * MILLI; 100];
    plan.turns = vec![(5 * MILLI, 0, Turn::Healthy(false))];
    assert_eq!(served(&run(&plan), 3), [0, 100, 0]);
    plan.turns.push((6 * MILLI, 1, Turn::Healthy(false)));
    assert_eq!(served(&run(&plan), 3), [0, 0, 100]);
}

#[test]
fn with_too_few_healthy_ones_health_is_ignored() {
    let mut plan = Plan::quiet(1, vec![BackendScript::Echo; 3]);
    plan.policies.fail_open_below = Share::from_ppm(500_000);
    plan.clients = vec![busy(); 80];
    plan.starts = vec![10 * MILLI; 80];
    plan.turns = vec![(5 * MILLI, 0, Turn::Healthy(false))];
    assert_eq!(served(&run(&plan), 3)[0], 0);
    plan.turns.push((6 * MILLI, 1, Turn::Healthy(false)));
    assert_eq!(served(&run(&plan), 3), [20, 40, 20]);
}

#[test]
fn least_connections_spares_the_slow() {
    let slow = BackendScript::Steps(vec![
        Step::Expect(100),
        Step::Pause(Duration::from_millis(300)),
        Step::Finish,
        Step::ReadToEnd,
    ]);
    let quick = BackendScript::Steps(vec![Step::Expect(100), Step::Finish, Step::ReadToEnd]);
    let mut plan = Plan::quiet(3, vec![slow, BackendScript::Refuse, quick]);
    plan.policies.balance = algorithm("least-connections");
    plan.clients =
        vec![ClientScript::new(vec![Step::send(100), Step::ReadToEnd, Step::Finish]); 200];
    plan.starts = (0..200).map(|index| index * 5 * MILLI).collect();
    let outcome = run(&plan);
    let [slow, _, quick] = served(&outcome, 3)[..] else {
        panic!("three backends");
    };
    assert_eq!(slow + quick, 200);
    assert!(quick > 5 * slow, "{slow} and {quick}");
}

#[test]
fn an_address_has_one_bucket_over_all_workers() {
    let mut plan = Plan::quiet(3, vec![BackendScript::Echo]);
    plan.policies.rate_limit.connections_per_ip = Some(rate(10, 7));
    let from = |last| Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)));
    plan.clients = (0..120)
        .map(|index| ClientScript {
            from: from(1 + index % 2),
            ..busy()
        })
        .collect();
    plan.starts = (0..120).map(|index| index / 60 * 500 * MILLI).collect();
    let outcome = run(&plan);
    // Seven at once, and five more after half a second, for each of the two.
    assert_eq!(outcome.sessions_of(Reason::ClientClosed), 2 * (7 + 5));
    assert_eq!(outcome.sessions_of(Reason::ClientRateLimit), 120 - 24);
    plan.policies.rate_limit.dry_run = true;
    assert_eq!(run(&plan).sessions_of(Reason::ClientClosed), 120);
}

#[test]
fn a_listener_has_one_bucket_over_all_workers() {
    let mut plan = Plan::quiet(3, vec![BackendScript::Echo]);
    plan.policies.rate_limit = RateLimit {
        connections: Some(rate(100, 20)),
        ..RateLimit::default()
    };
    plan.clients = vec![busy(); 120];
    plan.starts = (0..120).map(|index| index / 60 * 100 * MILLI).collect();
    let outcome = run(&plan);
    assert_eq!(outcome.sessions_of(Reason::ClientClosed), 20 + 10);
    assert_eq!(outcome.sessions_of(Reason::RateLimit), 90);
}

#[test]
fn bandwidth_is_paced_without_turning_and_without_piling_up() {
    const BYTES: u64 = 3_000_000;
    let mut plan = Plan::quiet(1, vec![BackendScript::Download { bytes: BYTES }]);
    plan.faults = Faults {
        receive_buffer: 256 << 10,
        send_buffer: 256 << 10,
        ..Faults::none()
    };
    plan.policies.rate_limit.bandwidth = Some(rate(500_000, 50_000));
    plan.clients = vec![ClientScript::new(vec![
        Step::send(8),
        Step::Finish,
        Step::ReadToEnd,
    ])];
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    assert_eq!(outcome.clients[0].received, BYTES);
    let took = outcome.sessions[0].duration.as_secs_f64();
    assert!((5.85..6.1).contains(&took), "{took}");
    assert!(outcome.most_buffers <= 6, "{}", outcome.most_buffers);
    assert!(outcome.turns < 10_000, "{}", outcome.turns);
}

/// When the first byte came, counted from the client's connection.
fn first_byte(client: &PeerRecord) -> Duration {
    let began = client.began_at.expect("it was established");
    client.first_heard_at.expect("it heard something") - began
}

#[test]
fn a_connection_ahead_saves_exactly_a_round_trip() {
    let mut plan = Plan::quiet(1, vec![BackendScript::Echo]);
    plan.distance = Some(20 * MILLI);
    // Clients are no way off.
    plan.faults.latency = (Duration::ZERO, Duration::ZERO);
    plan.clients = vec![ClientScript::exchange(100)];
    plan.starts = vec![Duration::from_secs(1)];
    let without = first_byte(&run(&plan).clients[0]);
    plan.policies.preconnect = 2;
    let with = first_byte(&run(&plan).clients[0]);
    // A packet between a client and the worker takes at least a nanosecond.
    let saved = without.saturating_sub(with) + Duration::from_nanos(2);
    assert_eq!(saved, 40 * MILLI, "{without:?} and {with:?}");
}

#[test]
fn a_greeting_is_kept_for_the_client() {
    let mut plan = Plan::quiet(2, vec![BackendScript::Greeting { bytes: 70 }]);
    plan.policies.preconnect = 3;
    let client = ClientScript {
        greeting: 70,
        ..ClientScript::new(vec![
            Step::Expect(70),
            Step::send(500),
            Step::Expect(500),
            Step::Finish,
            Step::ReadToEnd,
        ])
    };
    plan.clients = vec![client; 20];
    plan.starts = (0..20)
        .map(|index| 100 * MILLI + index * 10 * MILLI)
        .collect();
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    assert_all_heard(&outcome, 570);
}

#[test]
fn what_the_backend_closed_is_never_handed_out() {
    let forgets = BackendScript::Steps(vec![Step::Pause(30 * MILLI), Step::Close]);
    let mut plan = Plan::quiet(2, vec![forgets]);
    plan.policies.preconnect = 4;
    // All that were open at 50 ms are closed by 80 ms; new ones work.
    plan.turns = vec![(50 * MILLI, 0, Turn::Becomes(BackendScript::Echo))];
    plan.clients = vec![ClientScript::exchange(1000); 40];
    plan.starts = (0..40).map(|index| 100 * MILLI + index * MILLI).collect();
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    assert_eq!(outcome.sessions_of(Reason::ClientClosed), 40);
    assert_all_heard(&outcome, 1000);
}

#[test]
fn a_connection_found_closed_before_the_clients_first_byte_is_replaced() {
    let forgets = BackendScript::Steps(vec![Step::Pause(100 * MILLI), Step::Close]);
    let mut plan = Plan::quiet(1, vec![forgets]);
    plan.policies.preconnect = 1;
    plan.turns = vec![(40 * MILLI, 0, Turn::Becomes(BackendScript::Echo))];
    // It takes the connection before it is closed, and speaks after.
    plan.clients = vec![ClientScript::new(vec![
        Step::Pause(200 * MILLI),
        Step::send(1000),
        Step::Finish,
        Step::ReadToEnd,
    ])];
    plan.starts = vec![30 * MILLI];
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    assert_all_heard(&outcome, 1000);
    assert_eq!(outcome.sessions_of(Reason::ClientClosed), 1);
}

#[test]
fn connections_ahead_count_and_give_way_to_sessions_that_wait() {
    for workers in [1, 3] {
        let mut plan = with_cap(workers, 4, PATIENT, 40);
        plan.policies.preconnect = 4;
        plan.starts = (0..40).map(|index| 100 * MILLI + index * MILLI).collect();
        plan.distance = Some(2 * MILLI);
        let outcome = run(&plan);
        assert_eq!(outcome.broken_promises(), [""; 0]);
        assert!(
            outcome.most_connections[0] <= 4,
            "{:?}",
            outcome.most_connections
        );
        assert_eq!(outcome.sessions_of(Reason::ClientClosed), 40);
        // Those that waited did not wait for connections ahead to grow old.
        let slowest = outcome
            .sessions
            .iter()
            .map(|session| session.duration)
            .max();
        assert!(slowest < Some(Duration::from_secs(2)), "{slowest:?}");
    }
}

#[test]
fn another_workers_connections_ahead_give_way_to_who_waits() {
    let mut plan = with_cap(2, 2, PATIENT, 12);
    plan.policies.preconnect = 2;
    plan.starts = (1..13).map(|index| index * 500 * MILLI).collect();
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    let slowest = outcome
        .sessions
        .iter()
        .map(|session| session.duration)
        .max();
    assert!(slowest < Some(300 * MILLI), "{slowest:?}");
}

#[test]
fn connections_ahead_are_renewed_when_they_get_old() {
    let mut plan = Plan::quiet(1, vec![BackendScript::Echo]);
    plan.policies.preconnect = 2;
    plan.policies.idle_timeout = 100 * MILLI;
    plan.clients = vec![ClientScript::exchange(10)];
    plan.starts = vec![Duration::from_secs(1)];
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    assert!(
        (20..=26).contains(&outcome.attempts[0]),
        "{:?}",
        outcome.attempts
    );
}

#[test]
fn a_backend_that_closes_at_once_is_not_opened_to_again_and_again() {
    let mut plan = Plan::quiet(1, vec![BackendScript::CloseAtOnce]);
    plan.policies.preconnect = 8;
    plan.clients = vec![ClientScript::exchange(10)];
    plan.starts = vec![Duration::from_secs(10)];
    let outcome = run(&plan);
    assert!(outcome.attempts[0] < 40, "{:?}", outcome.attempts);
}

#[test]
fn connections_ahead_that_fail_together_have_failed_once() {
    let mut plan = Plan::quiet(1, vec![BackendScript::Refuse]);
    plan.policies.preconnect = 20;
    plan.turns = vec![(80 * MILLI, 0, Turn::Becomes(BackendScript::Echo))];
    plan.clients = vec![ClientScript::exchange(10)];
    plan.starts = vec![Duration::from_secs(1)];
    let outcome = run(&plan);
    assert_eq!(outcome.broken_promises(), [""; 0]);
    // 20 at once, one after 50 ms, one that succeeds after 100 ms more; 19 when it has lasted, and one in
    // the place of the one that was taken.
    assert_eq!(outcome.attempts, [20 + 1 + 1 + 19 + 1]);
    assert_eq!(outcome.most_connections, [21]);
}
