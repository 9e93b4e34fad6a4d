//! What an upstream's file says of its backends and policies.

use std::num::{NonZeroU32, NonZeroUsize};
use std::time::Duration;

use ringress::config::defaults::{POOL, QUEUE, RETRY};
use ringress::config::{Exchange, HealthCheck, Probe, Upstream};
use ringress::policy::health::{self, Start};
use ringress::policy::share::Share;
use ringress::policy::{breaker, outlier, retry};

use crate::support::{Wrong, parse, says_where_and_what, with};

#[test]
fn a_backend_has_a_cap_and_may_be_a_backup() {
    let text = with(
        "",
        "backends = ['10.0.0.1:80', { address = 'two.example:80', max_connections = 9, backup = true }, \
         { address = '10.0.0.9:80', max_connections = 0, backup = false, weight = 0 }]",
    );
    let config = parse(&text).unwrap();
    let backends: Vec<_> = config.upstreams[0]
        .backends
        .iter()
        .map(|it| (it.weight, it.max_connections, it.backup))
        .collect();
    let nine = NonZeroUsize::new(9);
    assert_eq!(
        backends,
        [
            (1, None, false),
            (1, nine, true),
            (1, nine, true),
            (0, None, false)
        ],
        "a host's addresses have what the host has"
    );
}

#[test]
fn a_wrong_backend_is_shown_at_its_place() {
    says_where_and_what(|line| with("", line), BACKEND_LINES);
}

const BACKEND_LINES: &[Wrong] = &[
    (
        "backends = [{ address = '10.0.0.1:1', max_connections = -1 }]",
        "-1",
        "from 0 to 4294967295",
    ),
    (
        "backends = [{ address = '10.0.0.1:1', max_connections = 'auto' }]",
        "'auto'",
        "wrong type: a string",
    ),
    (
        "backends = [{ address = '10.0.0.1:1', backup = 'true' }]",
        "'true'",
        "without quotes",
    ),
    (
        "backends = [{ address = '10.0.0.1:1', backup = true }]",
        "[{ address = '10.0.0.1:1', backup = true }]",
        "every backend is a backup",
    ),
    (
        "backends = [{ address = '10.0.0.1:1', weight = 0 }, { address = '10.0.0.2:1', backup = true }]",
        "[{ address = '10.0.0.1:1', weight = 0 }, { address = '10.0.0.2:1', backup = true }]",
        "every backend that is no backup has weight 0",
    ),
    (
        "backends = [{ address = '10.0.0.1:1', weight = 0, backup = true }]",
        "[{ address = '10.0.0.1:1', weight = 0, backup = true }]",
        "every backend is a backup",
    ),
];

/// The only upstream of a file with these lines.
fn upstream(lines: &str) -> Upstream {
    match parse(&with("", lines)) {
        Ok(mut config) => config.upstreams.remove(0),
        Err(errors) => panic!("{errors}"),
    }
}

fn share(ppm: u32) -> Share {
    Share::from_ppm(ppm)
}

fn count(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap()
}

#[test]
fn without_a_table_nothing_is_checked_and_the_rest_has_its_defaults() {
    let app = upstream("");
    assert_eq!(
        (app.slow_start, app.fail_open_below),
        (Duration::ZERO, share(0))
    );
    assert_eq!(
        (app.health_check, app.outlier, app.circuit_breaker),
        (None, None, None)
    );
    assert_eq!((app.retry, app.queue, app.pool), (RETRY, QUEUE, POOL));
}

#[test]
fn an_empty_table_switches_it_on_with_the_defaults_of_the_contract() {
    let app = upstream("health_check = {}\noutlier = {}\ncircuit_breaker = {}");
    let health_check = HealthCheck {
        probe: Probe::Tcp(Exchange::default()),
        interval: Duration::from_secs(5),
        jitter: share(200_000),
        timeout: Duration::from_secs(2),
        settings: health::Settings {
            rise: count(2),
            fall: count(3),
            start: Start::Up,
        },
    };
    assert_eq!(app.health_check, Some(health_check));
    let outlier = outlier::Settings {
        consecutive_failures: count(5),
        eject_for: Duration::from_secs(30),
        max_eject_for: Duration::from_mins(5),
        max_ejected: share(500_000),
    };
    assert_eq!(app.outlier, Some(outlier));
    let breaker = breaker::Settings {
        failure_ratio: share(500_000),
        min_requests: count(20),
        window: Duration::from_secs(10),
        open_for: Duration::from_secs(10),
        half_open_requests: count(3),
    };
    assert_eq!(app.circuit_breaker, Some(breaker));
}

#[test]
fn every_key_of_a_policy_is_read() {
    let app = upstream(
        "slow_start = '20s'\nfail_open_below = 0.25
         outlier = { consecutive_failures = 1_000_000, eject_for = '1ms', max_eject_for = '1ms', max_ejected = 1 }
         circuit_breaker = { failure_ratio = 1e-6, min_requests = 1, window = '1h', open_for = '7s', half_open_requests = 9 }
         retry = { attempts = 100, backoff = '0s', max_backoff = '0s', budget = 0 }
         queue = { max = 0, timeout = '5s' }
         pool = { preconnect = 10000, idle_timeout = '2s', max_lifetime = '3s' }",
    );
    assert_eq!(app.slow_start, Duration::from_secs(20));
    assert_eq!(app.fail_open_below, share(250_000));
    let outlier = outlier::Settings {
        consecutive_failures: count(1_000_000),
        eject_for: Duration::from_millis(1),
        max_eject_for: Duration::from_millis(1),
        max_ejected: Share::WHOLE,
    };
    assert_eq!(app.outlier, Some(outlier));
    let breaker = breaker::Settings {
        failure_ratio: share(1),
        min_requests: count(1),
        window: Duration::from_hours(1),
        open_for: Duration::from_secs(7),
        half_open_requests: count(9),
    };
    assert_eq!(app.circuit_breaker, Some(breaker));
    let retry = retry::Settings {
        attempts: 100,
        backoff: Duration::ZERO,
        max_backoff: Duration::ZERO,
        budget: share(0),
    };
    assert_eq!(app.retry, retry);
    assert_eq!(
        (app.queue.max, app.queue.timeout),
        (0, Duration::from_secs(5))
    );
    assert_eq!(app.pool.preconnect, 10_000);
    assert_eq!(app.pool.idle_timeout, Duration::from_secs(2));
    assert_eq!(app.pool.max_lifetime, Duration::from_secs(3));
}

#[test]
fn a_wrong_policy_is_shown_at_its_place() {
    says_where_and_what(|line| with("", line), POLICY_LINES);
}

const POLICY_LINES: &[Wrong] = &[
    ("slow_start = 30", "30", "\"30s\" or \"30ms\""),
    ("fail_open_below = '30%'", "'30%'", "did you mean 0.3?"),
    ("fail_open_below = nan", "nan", "nan is out of range"),
    ("fail_open_below = 2", "2", "a number from 0 to 1"),
    ("outlier = true", "true", "expected: a table"),
    ("outlier.consecutive_failures = 0", "0", "from 1 to 1000000"),
    ("outlier.eject_for = '0s'", "'0s'", "zero is too short"),
    ("outlier.max_eject_for = '0s'", "'0s'", "zero is too short"),
    (
        "outlier = { eject_for = '2m', max_eject_for = '90s' }",
        "'90s'",
        "1m30s is less than eject_for, which is 2m\n",
    ),
    (
        "outlier.max_eject_for = '10s'",
        "'10s'",
        "10s is less than eject_for, which is 30s by default",
    ),
    (
        "outlier.eject_for = '6m'",
        "'6m'",
        "6m is more than max_eject_for, which is 5m by default",
    ),
    (
        "outlier = { eject_for = '6m', max_eject_for = 7 }",
        "7",
        "\"7s\" or \"7ms\"",
    ),
    ("outlier.max_ejected = -0.5", "-0.5", "a number from 0 to 1"),
    ("outlier.max_ejected = '0.5'", "'0.5'", "without quotes"),
    (
        "circuit_breaker.failure_ratio = 0",
        "0",
        "a share of 0 would always be reached",
    ),
    (
        "circuit_breaker.failure_ratio = 50",
        "50",
        "did you mean 0.5?",
    ),
    (
        "circuit_breaker.failure_ratio = inf",
        "inf",
        "inf is out of range",
    ),
    ("circuit_breaker.min_requests = 0", "0", "from 1 to 1000000"),
    (
        "circuit_breaker.window = '99ms'",
        "'99ms'",
        "99ms is out of range",
    ),
    (
        "circuit_breaker.window = '61m'",
        "'61m'",
        "from 100ms to 1h",
    ),
    (
        "circuit_breaker.open_for = '0ms'",
        "'0ms'",
        "zero is too short",
    ),
    (
        "circuit_breaker.half_open_requests = 0",
        "0",
        "from 1 to 1000000",
    ),
    (
        "retry.backoff = '1s'",
        "'1s'",
        "at most 250ms, or a longer max_backoff",
    ),
    ("retry.max_backoff = '20ms'", "'20ms'", "at least 25ms"),
    ("retry.budget = 20", "20", "did you mean 0.2?"),
    ("retry.budget = true", "true", "wrong type: a boolean"),
    ("queue.max = 10_000_001", "10_000_001", "from 0 to 10000000"),
    ("queue.timeout = '0s'", "'0s'", "zero"),
    ("queue = 5", "5", "expected: a table"),
    ("pool.preconnect = 10_001", "10_001", "from 0 to 10000"),
    (
        "backends = [{ address = '10.0.0.1:1', max_connections = 5 }, '10.0.0.2:1', \
         { address = '10.0.0.3:1', max_connections = 3 }]\npool.preconnect = 4",
        "4",
        "backend \"10.0.0.3:1\" takes 3",
    ),
    ("pool.idle_timeout = '0s'", "'0s'", "zero is too short"),
    ("pool.max_lifetime = '0s'", "'0s'", "zero is too short"),
    ("pool.max_idle = 5", "max_idle", "not available yet"),
    (
        "pool.precnnect = 5",
        "precnnect",
        "did you mean \"preconnect\"?",
    ),
];

#[test]
fn a_pool_may_be_as_large_as_a_cap() {
    let capped =
        "backends = [{ address = '10.0.0.1:1', max_connections = 4 }]\npool.preconnect = 4";
    assert_eq!(upstream(capped).pool.preconnect, 4);
}
