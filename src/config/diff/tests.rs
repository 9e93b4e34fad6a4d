//! What is said of each key, and that no key is forgotten.

use std::collections::BTreeSet;

use super::*;
use crate::config::keys::TABLES;
use crate::config::parse;

pub(in crate::config) mod made;
mod tls;

const OLD: &str = "
[runtime]
workers = 2
[log]
level = 'info'
[listeners.web]
bind = '127.0.0.1:80'
upstream = 'app'
[listeners.local]
bind = ['unix:/run/a.sock', '127.0.0.1:0']
upstream = 'app'
[upstreams.app]
backends = ['10.0.0.1:80', { address = '10.0.0.2:80', name = 'b2' }]
health_check = {}
outlier = {}
circuit_breaker = {}
[upstreams.other]
backends = ['10.0.0.2:80']
";

/// [`OLD`], with a listener for datagrams.
fn with_datagrams() -> String {
    format!(
        "{OLD}[listeners.dns]\nbind = '127.0.0.1:53'\nprotocol = 'udp'\nupstream = 'other'\n\
         [listeners.dns.udp]\n"
    )
}

pub(super) fn read(text: &str) -> Config {
    parse(text, "/diff.toml", &mut made::Made(0))
        .unwrap_or_else(|errors| panic!("{text}\n{errors}"))
}

/// The lines of the difference that a change of text makes.
fn lines(old: &str, from: &str, to: &str) -> Vec<String> {
    assert!(old.contains(from), "{from}");
    let (old, new) = (read(old), read(&old.replacen(from, to, 1)));
    check_laws(&old, &new);
    between(&old, &new).iter().map(Change::to_string).collect()
}

/// Each line of `cases` beside `place`, and what is said of it.
fn says(place: &str, cases: &[(&str, &str)]) {
    for (line, said) in cases {
        let found = lines(OLD, place, &format!("{place}\n{line}"));
        assert_eq!(found, [*said], "{line}");
    }
}

#[test]
fn keys_of_the_process_say_what_it_takes() {
    says(
        "workers = 2",
        &[
            (
                "pin_workers = false",
                "runtime.pin_workers: true → false (needs upgrade)",
            ),
            (
                "max_connections = 9",
                "runtime.max_connections: auto → 9 (new connections only)",
            ),
            (
                "drain_timeout = '90s'",
                "runtime.drain_timeout: 1m → 1m30s (live)",
            ),
            (
                "drain_delay = '250ms'",
                "runtime.drain_delay: 0s → 250ms (live)",
            ),
            (
                "buffer_memory = 65536",
                "runtime.buffer_memory: auto → 64KiB (needs upgrade)",
            ),
            ("user = 'www'", "runtime.user: none → www (needs upgrade)"),
            (
                "user = 'none'",
                "runtime.user: none → \"none\" (needs upgrade)",
            ),
            (
                "control_socket = 'off'",
                "runtime.control_socket: auto → off (needs upgrade)",
            ),
            (
                "control_socket = '/run/b'",
                "runtime.control_socket: auto → /run/b (needs upgrade)",
            ),
        ],
    );
    let workers = lines(OLD, "workers = 2", "workers = 'auto'");
    assert_eq!(workers, ["runtime.workers: 2 → auto (needs upgrade)"]);
    let account = lines(
        OLD,
        "workers = 2",
        "workers = 2\nuser = 'www'\ngroup = 'adm'",
    );
    assert_eq!(account[0], "runtime.group: none → adm (needs upgrade)");
    let level = lines(OLD, "'info'", "'debug'\nformat = 'json'");
    assert_eq!(
        level,
        [
            "log.format: text → json (live)",
            "log.level: info → debug (live)"
        ]
    );
    let log = lines(OLD, "'info'", "'info'\naccess_log = '/a.log'");
    assert_eq!(log, ["log.access_log: off → /a.log (live)"]);
}

#[test]
fn keys_of_the_endpoint_say_what_it_takes_and_the_token_is_not_told() {
    let with = |key: &str| lines(OLD, "[log]", &format!("[admin]\n{key}\n[log]"));
    let listen = with("listen = '127.0.0.1:9900'");
    assert_eq!(listen, ["admin.listen: none → 127.0.0.1:9900 (rebind)"]);
    let most = with("max_series = 9");
    assert_eq!(most, ["admin.max_series: 50000 → 9 (live)"]);
    let said = with("token = 'hunter2'");
    let [token] = &*said else {
        panic!("{said:?}");
    };
    assert!(token.starts_with("admin.token: none → secret "), "{token}");
    let one = format!("{OLD}[admin]\ntoken = 'hunter2'\n");
    let said = lines(&one, "hunter2", "hunter3").join("");
    assert!(
        said.starts_with("admin.token: secret ") && !said.contains("hunter"),
        "{said}"
    );
}

#[test]
fn keys_of_a_listener_say_what_it_takes() {
    says("bind = '127.0.0.1:80'", LISTENER_LINES);
    let bind = lines(OLD, "'127.0.0.1:80'", "['[::]:81', '127.0.0.1:80']");
    assert_eq!(
        bind,
        ["listeners.web.bind: [127.0.0.1:80] → [127.0.0.1:80, [::]:81] (rebind)"]
    );
    let upstream = lines(OLD, "upstream = 'app'", "upstream = 'other'");
    assert_eq!(
        upstream,
        ["listeners.web.upstream: app → other (new connections only)"]
    );
}

const LISTENER_LINES: &[(&str, &str)] = &[
    ("backlog = 1", "listeners.web.backlog: 4096 → 1 (live)"),
    (
        "max_connections = 5",
        "listeners.web.max_connections: 0 → 5 (new connections only)",
    ),
    (
        "tcp_keepalive = 'off'",
        "listeners.web.tcp_keepalive: 1m → off (new connections only)",
    ),
    (
        "congestion = 'bbr'",
        "listeners.web.congestion: system → bbr (new connections only)",
    ),
    (
        "ipv6_only = false",
        "listeners.web.ipv6_only: true → false (rebind)",
    ),
    (
        "unix_mode = '0600'",
        "listeners.web.unix_mode: 0660 → 0600 (live)",
    ),
    (
        "timeouts.idle = '1h'",
        "listeners.web.timeouts.idle: 10m → 1h (new connections only)",
    ),
    (
        "timeouts.handshake = '1s'",
        "listeners.web.timeouts.handshake: 10s → 1s (new connections only)",
    ),
    (
        "timeouts.half_close = '1s'",
        "listeners.web.timeouts.half_close: 30s → 1s (new connections only)",
    ),
    (
        "allow = ['10.0.0.0/8', '::/0', '10.0.0.0/8']",
        "listeners.web.allow: [] → [10.0.0.0/8, ::/0] (new connections only)",
    ),
    (
        "deny = '10.0.0.1'",
        "listeners.web.deny: [] → [10.0.0.1/32] (new connections only)",
    ),
    (
        "rate_limit.connections = { rate = 5, burst = 7 }",
        "listeners.web.rate_limit.connections: none → { rate = 5, burst = 7 } (new connections only)",
    ),
    (
        "rate_limit.connections_per_ip.rate = 5",
        "listeners.web.rate_limit.connections_per_ip: none → { rate = 5, burst = 5 } (new connections only)",
    ),
    (
        "rate_limit.bandwidth = { rate = '10MB', burst = 1025 }",
        "listeners.web.rate_limit.bandwidth: none → { rate = 10MB, burst = 1025B } (new connections only)",
    ),
    (
        "rate_limit.ipv6_prefix = 56",
        "listeners.web.rate_limit.ipv6_prefix: 64 → 56 (new connections only)",
    ),
    (
        "rate_limit.max_clients = 1",
        "listeners.web.rate_limit.max_clients: 100000 → 1 (new connections only)",
    ),
    (
        "rate_limit.dry_run = true",
        "listeners.web.rate_limit.dry_run: false → true (new connections only)",
    ),
];

#[test]
fn keys_of_an_upstream_say_what_it_takes() {
    let policies = "health_check = {}\noutlier = {}\ncircuit_breaker = {}";
    for (line, said) in UPSTREAM_LINES {
        let table = line.split(['.', ' ']).next().unwrap_or_default();
        let rest = policies.replacen(&format!("{table} = {{}}"), "", 1);
        let found = lines(OLD, policies, &format!("{line}\n{rest}"));
        let how = match table {
            "health_check" | "pool" => "live",
            _ => "new connections only",
        };
        assert_eq!(found, [format!("upstreams.app.{said} ({how})")], "{line}");
    }
}

const UPSTREAM_LINES: &[(&str, &str)] = &[
    ("balance = 'random'", "balance: round-robin → random"),
    ("connect_timeout = '1s'", "connect_timeout: 5s → 1s"),
    (
        "source = ['10.0.0.8', '10.0.0.7']",
        "source: [] → [10.0.0.7, 10.0.0.8]",
    ),
    ("tcp_keepalive = '10s'", "tcp_keepalive: 1m → 10s"),
    ("tcp_user_timeout = '1m'", "tcp_user_timeout: 30s → 1m"),
    ("slow_start = '1s'", "slow_start: 0s → 1s"),
    ("fail_open_below = 0.5", "fail_open_below: 0 → 0.5"),
    (
        "health_check.interval = '1s'",
        "health_check.interval: 5s → 1s",
    ),
    (
        "health_check.jitter = 0.000001",
        "health_check.jitter: 0.2 → 0.000001",
    ),
    (
        "health_check.timeout = '1s'",
        "health_check.timeout: 2s → 1s",
    ),
    ("health_check.rise = 9", "health_check.rise: 2 → 9"),
    ("health_check.fall = 9", "health_check.fall: 3 → 9"),
    (
        "health_check.start = 'checked'",
        "health_check.start: up → checked",
    ),
    (
        "health_check.send = 'a\\r\\n'",
        "health_check.send: none → \"a\\\\r\\\\n\"",
    ),
    (
        "health_check.expect = 'none'",
        "health_check.expect: none → \"none\"",
    ),
    (
        "outlier.consecutive_failures = 1",
        "outlier.consecutive_failures: 5 → 1",
    ),
    ("outlier.eject_for = '1s'", "outlier.eject_for: 30s → 1s"),
    (
        "outlier.max_eject_for = '1h'",
        "outlier.max_eject_for: 5m → 1h",
    ),
    ("outlier.max_ejected = 1", "outlier.max_ejected: 0.5 → 1"),
    (
        "circuit_breaker.failure_ratio = 1",
        "circuit_breaker.failure_ratio: 0.5 → 1",
    ),
    (
        "circuit_breaker.min_requests = 1",
        "circuit_breaker.min_requests: 20 → 1",
    ),
    (
        "circuit_breaker.window = '1s'",
        "circuit_breaker.window: 10s → 1s",
    ),
    (
        "circuit_breaker.open_for = '1s'",
        "circuit_breaker.open_for: 10s → 1s",
    ),
    (
        "circuit_breaker.half_open_requests = 1",
        "circuit_breaker.half_open_requests: 3 → 1",
    ),
    ("retry.attempts = 2", "retry.attempts: 1 → 2"),
    ("retry.backoff = '1ms'", "retry.backoff: 25ms → 1ms"),
    ("retry.max_backoff = '1s'", "retry.max_backoff: 250ms → 1s"),
    ("retry.budget = 0", "retry.budget: 0.2 → 0"),
    ("queue.max = 0", "queue.max: 1024 → 0"),
    ("queue.timeout = '2s'", "queue.timeout: 1s → 2s"),
    ("pool.preconnect = 1", "pool.preconnect: 0 → 1"),
    ("pool.idle_timeout = '1s'", "pool.idle_timeout: 1m → 1s"),
    ("pool.max_lifetime = '1s'", "pool.max_lifetime: 1h → 1s"),
];

#[test]
fn another_type_of_probe_is_told_with_its_keys() {
    let http = "health_check = { type = 'http', host = 'a.b', expect_status = [204, '200-201'] }";
    let key = "upstreams.app.health_check";
    let expected = [
        format!("{key}.expect_status: [] → [200-201, 204] (live)"),
        format!("{key}.host: none → a.b (live)"),
        format!("{key}.path: none → / (live)"),
        format!("{key}.type: tcp → http (live)"),
    ];
    assert_eq!(lines(OLD, "health_check = {}", http), expected);
}

#[test]
fn what_comes_or_goes_as_a_whole_is_one_change() {
    for (from, to, said) in [
        (
            "[listeners.web]",
            "[listeners.api]",
            &[
                "listeners.api: added (rebind)",
                "listeners.web: removed (rebind)",
            ][..],
        ),
        (
            "[upstreams.other]",
            "[upstreams.'an.other']",
            &[
                "upstreams.\"an.other\": added (new connections only)",
                "upstreams.other: removed (new connections only)",
            ],
        ),
        (
            "health_check = {}",
            "",
            &["upstreams.app.health_check: removed (live)"],
        ),
        (
            "outlier = {}",
            "",
            &["upstreams.app.outlier: removed (new connections only)"],
        ),
        (
            "circuit_breaker = {}",
            "",
            &["upstreams.app.circuit_breaker: removed (new connections only)"],
        ),
        (
            ", { address = '10.0.0.2:80', name = 'b2' }",
            "",
            &["upstreams.app.backends.b2: removed (new connections only)"],
        ),
        (
            "['10.0.0.1:80', ",
            "[",
            &["upstreams.app.backends.\"10.0.0.1:80\": removed (new connections only)"],
        ),
    ] {
        assert_eq!(lines(OLD, from, to), said, "{to}");
    }
}

#[test]
fn a_whole_says_what_it_is_about() {
    let new = OLD.replace("name = 'b2'", "name = 'b3'").replace(
        "[upstreams.app]",
        "[listeners.api]\nbind = '[::1]:9'\nupstream = 'other'\n[upstreams.app]",
    );
    let changes = between(&read(OLD), &read(&new));
    let whole: Vec<_> = changes
        .iter()
        .map(|it| (&*it.key, it.from.as_deref(), it.to.as_deref()))
        .collect();
    let expected = [
        ("listeners.api", None, Some("[[::1]:9]")),
        ("upstreams.app.backends.b2", Some("10.0.0.2:80"), None),
        ("upstreams.app.backends.b3", None, Some("10.0.0.2:80")),
    ];
    assert_eq!(whole, expected);
}

#[test]
fn a_backend_that_has_moved_or_changed_says_so() {
    let backend = "{ address = '10.0.0.2:80', name = 'b2' }";
    let changed =
        "{ address = '10.0.0.3:80', name = 'b2', weight = 2, max_connections = 9, backup = true }";
    let key = "upstreams.app.backends.b2";
    let expected = [
        format!("{key}.address: 10.0.0.2:80 → 10.0.0.3:80 (new connections only)"),
        format!("{key}.backup: false → true (new connections only)"),
        format!("{key}.max_connections: 0 → 9 (new connections only)"),
        format!("{key}.weight: 1 → 2 (new connections only)"),
    ];
    assert_eq!(lines(OLD, backend, changed), expected);
}

#[test]
fn order_is_no_change() {
    let new = "
[upstreams.other]
backends = ['10.0.0.2:80']
[upstreams.app]
backends = [{ address = '10.0.0.2:80', name = 'b2' }, '10.0.0.1:80']
circuit_breaker = {}
outlier = {}
health_check = {}
[listeners.local]
bind = ['127.0.0.1:0', 'unix:/run/a.sock']
upstream = 'app'
[listeners.web]
bind = '127.0.0.1:80'
upstream = 'app'
[runtime]
workers = 2
";
    assert_eq!(between(&read(OLD), &read(new)), []);
}

#[test]
fn of_long_lists_only_the_difference_is_told() {
    let list = |networks: std::ops::Range<u32>| {
        let all = networks.map(|it| format!("'10.0.{}.{}'", it / 256, it % 256));
        format!(
            "bind = '127.0.0.1:80'\ndeny = [{}]",
            all.collect::<Vec<_>>().join(",")
        )
    };
    let old = OLD.replace("bind = '127.0.0.1:80'", &list(0..1000));
    let one = lines(&old, &list(0..1000), &list(1..1001));
    assert_eq!(
        one,
        [
            "listeners.web.deny: [10.0.0.0/32, ... 999 more] → [10.0.3.232/32, ... 999 more] \
          (new connections only)"
        ]
    );
    let less = lines(&old, &list(0..1000), &list(0..999));
    assert!(less[0].contains("→ [... 999 more]"), "{less:?}");
    let other = lines(&old, &list(0..1000), &list(2000..3000));
    assert!(other[0].len() < 1000, "{other:?}");
}

#[test]
fn the_words_are_the_same_in_json() {
    let changes = between(&read(OLD), &read(&OLD.replace("workers = 2", "")));
    let json = serde_json::to_value(&changes[0]).unwrap();
    let expected = serde_json::json!({
        "key": "runtime.workers", "from": "2", "to": "auto", "how": "needs upgrade"
    });
    assert_eq!(json, expected);
    for how in [
        How::Live,
        How::NewConnections,
        How::Rebind,
        How::NeedsUpgrade,
    ] {
        assert_eq!(serde_json::to_value(how).unwrap(), how.to_string());
    }
    assert_eq!(needs_upgrade(&changes).count(), 1);
    assert_eq!(needs_upgrade(&[]).count(), 0);
}

#[test]
fn keys_of_datagrams_say_what_they_take() {
    let new = |key: &str| format!("listeners.dns.udp.{key} (new connections only)");
    for (line, said) in [
        ("session_timeout = '5s'", "session_timeout: 1m → 5s"),
        (
            "session_key = 'source-ip'",
            "session_key: source-ip-port → source-ip",
        ),
        ("mode = 'per-packet'", "mode: session → per-packet"),
        ("max_sessions = 9", "max_sessions: auto → 9"),
        ("responses = 1", "responses: 0 → 1"),
        (
            "reject_privileged_sources = true",
            "reject_privileged_sources: false → true",
        ),
    ] {
        let place = "[listeners.dns.udp]";
        let found = lines(&with_datagrams(), place, &format!("{place}\n{line}"));
        assert_eq!(found, [new(said)], "{line}");
    }
    let udp = "protocol = 'udp'\nupstream = 'other'\n[listeners.dns.udp]";
    let other = lines(&with_datagrams(), udp, "upstream = 'other'");
    assert_eq!(other[0], "listeners.dns.protocol: udp → tcp (rebind)");
}

#[test]
fn every_key_that_is_read_has_its_entry() {
    let datagrams = with_datagrams().replace(OLD, "");
    let config = read(&format!("{}{datagrams}", tls::with_tls()));
    let paths: BTreeSet<String> = flatten(&config).keys().map(|it| it.join(" ")).collect();
    for table in TABLES {
        // Limits, certificates and routes are values; the name is what a backend is found by.
        for key in table.keys.iter().filter(|key| {
            !matches!(
                table.name,
                "" | "listeners.NAME.rate_limit.LIMIT" | "listeners.NAME.routes"
            ) && table.name != "listeners.NAME.tls.certificates"
                && !matches!((table.name, **key), ("upstreams.NAME.backends", "name"))
        }) {
            let table = table.name.replace('.', " ");
            let table = table
                .replace("listeners NAME udp", "listeners dns udp")
                .replace("listeners NAME", "listeners web")
                .replace("upstreams NAME", "upstreams app")
                .replace(" backends", " backends b2");
            let path = format!("{table} {key}").replace("web udp", "dns udp");
            let there = |it: &String| *it == path || it.starts_with(&format!("{path} "));
            assert!(paths.iter().any(there), "{path}");
        }
    }
}
