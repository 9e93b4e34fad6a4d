//! What a listener's file says of whom it takes, and how many.

use ringress::config::RateLimit;
use ringress::policy::balance::ALGORITHMS;
use ringress::policy::bucket::Rate;

use crate::support::{Wrong, parse, says_where_and_what, with};

#[test]
fn networks_are_a_list_or_a_single_one() {
    let text = with(
        "allow = ['10.0.0.0/8', '2001:db8::/32', '10.1.0.0/16', '192.0.2.1', '10.0.0.0/8']\ndeny = '::1'",
        "",
    );
    let config = parse(&text).unwrap();
    let listener = &config.listeners[0];
    let allowed: Vec<_> = listener.allow.iter().map(ToString::to_string).collect();
    assert_eq!(
        allowed,
        [
            "10.0.0.0/8",
            "2001:db8::/32",
            "10.1.0.0/16",
            "192.0.2.1/32",
            "10.0.0.0/8"
        ],
        "as written: they may overlap and repeat"
    );
    assert_eq!(listener.deny, ["::1/128".parse().unwrap()]);
}

#[test]
fn a_wrong_network_is_shown_at_its_place() {
    says_where_and_what(|line| with(line, ""), NETWORK_LINES);
}

const NETWORK_LINES: &[Wrong] = &[
    (
        "allow = ['10.0.0.0/8', '10.0.0.1/8']",
        "'10.0.0.1/8'",
        "help: did you mean \"10.0.0.0/8\"?",
    ),
    (
        "deny = '2001:db8::1/32'",
        "'2001:db8::1/32'",
        "help: did you mean \"2001:db8::/32\"?",
    ),
    ("deny = ['10.0.0.0/33']", "'10.0.0.0/33'", "/0 to /32"),
    ("deny = ['::/129']", "'::/129'", "/0 to /128"),
    (
        "deny = ['::ffff:10.0.0.0/104']",
        "'::ffff:10.0.0.0/104'",
        "help: did you mean \"10.0.0.0/8\"?",
    ),
    ("allow = 'lan'", "'lan'", "expected: a network like"),
    ("allow = [10]", "10", "wrong type: an integer"),
    ("allow = true", "true", "wrong type: a boolean"),
    ("alow = []", "alow", "did you mean \"allow\"?"),
];

#[test]
fn a_unix_socket_has_no_client_address() {
    says_where_and_what(|line| with(line, ""), UNIX_LINES);
    for algorithm in ALGORITHMS {
        let text = with(
            "bind = 'unix:/run/a.sock'",
            &format!("balance = '{}'", algorithm.name),
        );
        assert_eq!(
            parse(&text).is_err(),
            algorithm.needs_client,
            "{algorithm:?}"
        );
    }
    let harmless = "bind = 'unix:/run/a.sock'\nallow = []\ndeny = []";
    assert!(parse(&with(harmless, "")).is_ok());
}

const UNIX_LINES: &[Wrong] = &[
    (
        "bind = ['[::1]:80', 'unix:/run/a.sock']\nallow = ['10.0.0.0/8']",
        "['10.0.0.0/8']",
        "\"allow\" goes by the client's address, and a unix socket has none",
    ),
    (
        "deny = '10.0.0.0/8'\nbind = 'unix:/run/a.sock'",
        "'10.0.0.0/8'",
        "give the unix socket a listener of its own",
    ),
    (
        "bind = 'unix:/run/a.sock'\nrate_limit.connections_per_ip = { rate = 1 }",
        "{ rate = 1 }",
        "\"connections_per_ip\" goes by the client's address, and a unix socket has none",
    ),
];

#[test]
fn limits_are_rates_with_a_burst() {
    let rate_limit = |lines: &str| {
        let text = with(&format!("[listeners.web.rate_limit]\n{lines}"), "");
        parse(&text)
            .unwrap_or_else(|errors| panic!("{errors}"))
            .listeners[0]
            .rate_limit
    };
    let rate = |per_second: u64, burst: u64| {
        Some(Rate {
            per_second: per_second.try_into().unwrap(),
            burst: burst.try_into().unwrap(),
        })
    };
    assert_eq!(rate_limit(""), RateLimit::default());
    let all = rate_limit(
        "connections = { rate = 1_000, burst = 1 }\nconnections_per_ip = { rate = 1_000_000_000 }\n\
         bandwidth = { rate = '10MiB', burst = 1024 }\nipv6_prefix = 128\nmax_clients = 10_000_000\n\
         dry_run = true",
    );
    let expected = RateLimit {
        connections: rate(1000, 1),
        connections_per_ip: rate(1_000_000_000, 1_000_000_000),
        datagrams_per_ip: None,
        bandwidth: rate(10 << 20, 1 << 10),
        ipv6_prefix: 128,
        max_clients: 10_000_000.try_into().unwrap(),
        dry_run: true,
    };
    assert_eq!(all, expected);
    assert_eq!(
        rate_limit("[listeners.web.rate_limit.bandwidth]\nrate = '1TiB'").bandwidth,
        rate(1 << 40, 1 << 40)
    );
}

#[test]
fn a_wrong_limit_is_shown_at_its_place() {
    says_where_and_what(|line| with(&format!("rate_limit.{line}"), ""), LIMIT_LINES);
}

const LIMIT_LINES: &[Wrong] = &[
    (
        "connections = 100",
        "100",
        "help: did you mean connections = { rate = 100 }?",
    ),
    (
        "connections = '100/s'",
        "'100/s'",
        "a table like { rate = 1000, burst = 2000 }",
    ),
    (
        "bandwidth = '10MiB'",
        "'10MiB'",
        "help: did you mean bandwidth = { rate = \"10MiB\" }?",
    ),
    ("connections = 0", "0", "a table like"),
    ("connections = {}", "{}", "missing key \"rate\""),
    (
        "connections = { burst = 5 }",
        "{ burst = 5 }",
        "missing key \"rate\"",
    ),
    (
        "connections = { rate = 0 }",
        "0",
        "0 would refuse everything",
    ),
    (
        "connections_per_ip = { rate = 0x0 }",
        "0x0",
        "`deny` refuses networks",
    ),
    (
        "connections = { rate = 5, burst = 0 }",
        "0",
        "0 would refuse everything",
    ),
    ("connections = { rate = -5 }", "-5", "from 1 to 1000000000"),
    (
        "connections = { rate = 1_000_000_001 }",
        "1_000_000_001",
        "from 1 to 1000000000",
    ),
    ("connections = { rate = 0.5 }", "0.5", "wrong type: a float"),
    ("connections = { rate = '5' }", "'5'", "without quotes"),
    (
        "connections = { rate = 5, burts = 7 }",
        "burts",
        "did you mean \"burst\"?",
    ),
    ("bandwidth = { rate = 0 }", "0", "0 bytes are too few"),
    (
        "bandwidth = { rate = '1023B' }",
        "'1023B'",
        "from 1KiB to 1TiB",
    ),
    (
        "bandwidth = { rate = '1MiB', burst = '2TiB' }",
        "'2TiB'",
        "too many",
    ),
    (
        "bandwidth = { rate = '10mib' }",
        "'10mib'",
        "did you mean \"10MiB\"?",
    ),
    ("ipv6_prefix = 0", "0", "from 1 to 128"),
    ("ipv6_prefix = 129", "129", "from 1 to 128"),
    ("ipv6_prefix = '/64'", "'/64'", "wrong type: a string"),
    ("max_clients = 0", "0", "from 1 to 10000000"),
    (
        "max_clients = 10_000_001",
        "10_000_001",
        "from 1 to 10000000",
    ),
    ("dry_run = 'true'", "'true'", "without quotes"),
    (
        "conections.rate = 1",
        "conections",
        "did you mean \"connections\"?",
    ),
    (
        "requests_per_ip = { rate = 1 }",
        "requests_per_ip",
        "not available yet",
    ),
];
