//! What is said of a wrong file, and where.

use std::path::Path;

use ringress::config;
use ringress::config::keys::{TABLES, WORDS};

use crate::support::{Wrong, parse, says_where_and_what, with};

#[test]
fn a_wrong_listener_is_shown_at_its_place() {
    // What needs a bind of its own keeps the other one out of the way.
    says_where_and_what(
        |line| match line.starts_with("[listeners") {
            true => format!(
                "[listeners.web]\nbind = '127.0.0.1:80'\nupstream = 'app'\n{line}\n[upstreams.app]\nbackends = ['10.0.0.9:80']"
            ),
            false => with(line, ""),
        },
        LISTENER_LINES,
    );
}

const LISTENER_LINES: &[Wrong] = &[
    ("bind = []", "[]", "the list is empty"),
    ("bind = 80", "80", "wrong type: an integer"),
    ("bind = ['a:80']", "'a:80'", "expected: \"ip:port\""),
    ("bind = ':80'", "':80'", "did you mean \"0.0.0.0:80\"?"),
    ("bind = '::1:80'", "'::1:80'", "did you mean \"[::1]:80\"?"),
    ("bind = 'unix:'", "'unix:'", "is empty"),
    (
        "bind = ['[::]:80', '[0:0::0]:80']",
        "'[0:0::0]:80'",
        "already bound by listener \"web\"",
    ),
    (
        "protocol = 'http'",
        "'http'",
        "\"http\" is not available yet in this version",
    ),
    (
        "udp = {}",
        "udp",
        "\"udp\" has no meaning with protocol \"tcp\", which is the default",
    ),
    (
        "rate_limit.datagrams_per_ip = { rate = 1 }",
        "datagrams_per_ip",
        "only with protocol = \"udp\"",
    ),
    ("protocol = 'tpc'", "'tpc'", "did you mean \"tcp\"?"),
    ("upstream = 'ap'", "'ap'", "help: did you mean \"app\"?"),
    ("upstream = ['app']", "['app']", "wrong type: an array"),
    ("backlog = 0", "0", "a whole number from 1"),
    ("backlog = -1", "-1", "-1 is out of range"),
    ("backlog = '5'", "'5'", "without quotes"),
    (
        "max_connections = 99999999999999999999",
        "99999999999999999999",
        "out of range",
    ),
    ("tcp_keepalive = '0s'", "'0s'", "\"off\" disables it"),
    ("tcp_keepalive = '1500ms'", "'1500ms'", "whole seconds"),
    ("tcp_keepalive = '10h'", "'10h'", "32767s"),
    ("congestion = ''", "''", "tcp_available_congestion_control"),
    ("ipv6_only = 'true'", "'true'", "without quotes"),
    ("unix_mode = '0999'", "'0999'", "octal"),
    ("unix_mode = 660", "660", "octal"),
    ("timeouts = 5", "5", "expected: a table"),
    ("timeouts.idle = '0s'", "'0s'", "zero"),
    ("timeouts.idle = '10M'", "'10M'", "did you mean \"10m\"?"),
    ("timeouts.idle = '10'", "'10'", "is not a duration"),
    ("timeouts.idle = 10", "10", "\"10s\" or \"10ms\""),
    ("timeouts.idle = '-1s'", "'-1s'", "is not a duration"),
    (
        "timeouts.idle = '5 parsecs'",
        "'5 parsecs'",
        "is not a duration",
    ),
    ("timeouts.idle = '11years'", "'11years'", "at most 10 years"),
    (
        "timeouts.idle = '99999999999999999999s'",
        "'99999999999999999999s'",
        "is too long",
    ),
    ("timeouts.half_close = '1us'", "'1us'", "whole milliseconds"),
    ("timeouts.handshake = '0s'", "'0s'", "zero"),
    (
        "timeouts.half_clse = '1s'",
        "half_clse",
        "did you mean \"half_close\"?",
    ),
    (
        "idle = '1s'",
        "idle",
        "is a key of [listeners.NAME.timeouts]",
    ),
    ("ipv6only = true", "ipv6only", "did you mean \"ipv6_only\"?"),
    // A slip, though another table has just this key.
    ("timeout = '1s'", "timeout", "did you mean \"timeouts\"?"),
    (
        "backlog = 1\nbacklog = 2",
        "backlog",
        "duplicate key \"backlog\"",
    ),
    (
        "[listeners.'a b']\nbind = '[::]:1'\nupstream = 'app'",
        "'a b'",
        "is not a name",
    ),
    (
        "[listeners.b]\nbind = '127.0.0.1:80'\nupstream = 'app'",
        "'127.0.0.1:80'",
        "already bound",
    ),
    (
        "[listeners.b]\nbind = '[::]:1'",
        "[listeners.b]",
        "missing key \"upstream\"",
    ),
];

#[test]
fn what_does_not_go_with_datagrams_is_shown_at_its_place() {
    let udp = |line: &str| with(&format!("protocol = 'udp'\n{line}"), "");
    says_where_and_what(udp, UDP_LINES);
    let udp = |line: &str| with("protocol = 'udp'", line);
    says_where_and_what(udp, UDP_UPSTREAM_LINES);
    let twice = "[listeners.a]\nbind = '127.0.0.1:53'\nupstream = 'app'\n\
                 [listeners.b]\nbind = '127.0.0.1:53'\nupstream = 'app'\nprotocol = 'udp'\n\
                 [upstreams.app]\nbackends = ['10.0.0.1:53']\n";
    parse(twice).expect("each protocol has ports of its own");
    let error = parse(&twice.replace("\n[listeners.b]", "\nprotocol = 'udp'\n[listeners.b]"));
    let error = error.expect_err("the same port twice").to_string();
    assert!(error.contains("already bound by listener \"a\""), "{error}");
}

const UDP_LINES: &[Wrong] = &[
    ("backlog = 9", "backlog", "only with protocol = \"tcp\""),
    (
        "tcp_keepalive = 'off'",
        "tcp_keepalive",
        "no meaning with protocol \"udp\"",
    ),
    ("congestion = 'bbr'", "congestion", "no meaning"),
    ("unix_mode = '0600'", "unix_mode", "no meaning"),
    ("timeouts.idle = '1s'", "timeouts", "no meaning"),
    (
        "accept_proxy_protocol = 'require'",
        "accept_proxy_protocol",
        "only with protocol = \"tcp\"",
    ),
    (
        "trusted_proxies = '10.0.0.1'",
        "trusted_proxies",
        "no meaning",
    ),
    ("tls = {}", "tls", "no meaning"),
    (
        "routes = [{ sni = 'a', upstream = 'app' }]",
        "routes",
        "no meaning",
    ),
    (
        "rate_limit.bandwidth = { rate = 9999 }",
        "bandwidth",
        "no meaning",
    ),
    (
        "bind = 'unix:/run/a'",
        "'unix:/run/a'",
        "not taken from unix sockets",
    ),
    ("udp = 5", "5", "expected: a table"),
    ("udp.timeout = '5s'", "timeout", "unknown key"),
    ("udp.session_timeout = '0s'", "'0s'", "zero"),
    ("udp.session_key = 'source'", "'source'", "source-ip"),
    ("udp.mode = 'packet'", "'packet'", "per-packet"),
    ("udp.max_sessions = 0", "0", "from 1 to"),
    ("udp.max_sessions = 'all'", "'all'", "\"auto\""),
    ("udp.responses = -1", "-1", "out of range"),
    ("udp.reject_privileged_sources = 1", "1", "true or false"),
];

const UDP_UPSTREAM_LINES: &[Wrong] = &[
    (
        "backends = ['unix:/run/b']",
        "'app'",
        "unix:/run/b of upstream \"app\" takes no datagrams",
    ),
    ("pool.preconnect = 1", "'app'", "opens connections ahead"),
    (
        "send_proxy_protocol = 'v1'",
        "'app'",
        "version 1 of the PROXY protocol, which has no datagrams",
    ),
    ("tls.verify = false", "'app'", "is spoken TLS with"),
];

#[test]
fn a_wrong_upstream_is_shown_at_its_place() {
    says_where_and_what(|line| with("", line), UPSTREAM_LINES);
}

const UPSTREAM_LINES: &[Wrong] = &[
    ("backends = []", "[]", "the list is empty"),
    (
        "backends = '10.0.0.1:1'",
        "'10.0.0.1:1'",
        "wrong type: a string",
    ),
    ("backends = [1]", "1", "wrong type: an integer"),
    (
        "backends = ['10.0.0.1']",
        "'10.0.0.1'",
        "the port is missing",
    ),
    (
        "backends = ['10.0.0.1:0']",
        "'10.0.0.1:0'",
        "a port from 1 to 65535",
    ),
    (
        "backends = ['a.example:0']",
        "'a.example:0'",
        "a port from 1 to 65535",
    ),
    (
        "backends = ['10.0.0.1:99999']",
        "'10.0.0.1:99999'",
        "is not a backend's address",
    ),
    (
        "backends = ['0.0.0.0:80']",
        "'0.0.0.0:80'",
        "can't be connected to",
    ),
    (
        "backends = ['b.example:80']",
        "'b.example:80'",
        "can't be resolved: no such name",
    ),
    (
        "backends = ['none.example:80']",
        "'none.example:80'",
        "it has no address",
    ),
    (
        "backends = ['10.0.0.2:80', 'two.example:80']",
        "'two.example:80'",
        "10.0.0.2:80 is already backend",
    ),
    (
        "backends = [{ address = '10.0.0.1:1', name = 'a' }, { address = '10.0.0.2:1', name = 'a' }]",
        "'10.0.0.2:1'",
        "already a backend \"a\"",
    ),
    (
        "backends = [{ name = 'a' }]",
        "{ name = 'a' }",
        "missing key \"address\"",
    ),
    (
        "backends = [{ address = '10.0.0.1:1', weight = 257 }]",
        "257",
        "from 0 to 256",
    ),
    (
        "backends = [{ address = '10.0.0.1:1', weight = 0 }]",
        "[{ address = '10.0.0.1:1', weight = 0 }]",
        "every backend has weight 0",
    ),
    (
        "backends = [{ adress = '10.0.0.1:1', address = '10.0.0.1:1' }]",
        "adress",
        "did you mean \"address\"?",
    ),
    ("balance = 'magelv'", "'magelv'", "did you mean \"maglev\"?"),
    ("connect_timeout = '0ms'", "'0ms'", "zero"),
    ("source = []", "[]", "the list is empty"),
    (
        "source = '::1'",
        "'::1'",
        "no backend of this upstream has an IPv6 address",
    ),
    ("source = '0.0.0.0'", "'0.0.0.0'", "the kernel chooses"),
    ("source = '10.0.0.1:5'", "'10.0.0.1:5'", "without a port"),
    (
        "source = ['10.0.0.1', '10.0.0.1']",
        "'10.0.0.1'",
        "already in the list",
    ),
    ("tcp_user_timeout = '30days'", "'30days'", "about 24 days"),
    (
        "timeout = '1s'",
        "timeout",
        "is a key of [upstreams.NAME.health_check] and [upstreams.NAME.queue]",
    ),
    ("retry.attempts = 101", "101", "from 0 to 100"),
    (
        "[upstreams.empty]",
        "[upstreams.empty]",
        "missing key \"backends\"",
    ),
    (
        "[upstreams.'']\nbackends = ['10.0.0.1:1']",
        "''",
        "1 to 64 characters",
    ),
];

#[test]
fn a_wrong_process_setting_is_shown_at_its_place() {
    says_where_and_what(|line| format!("{line}\n{}", with("", "")), PROCESS_LINES);
}

const PROCESS_LINES: &[Wrong] = &[
    ("runtime.workers = 0", "0", "from 1 to 1024"),
    ("runtime.workers = 1025", "1025", "from 1 to 1024"),
    (
        "runtime.workers = 'atuo'",
        "'atuo'",
        "did you mean \"auto\"?",
    ),
    ("runtime.workers = '4'", "'4'", "without quotes"),
    ("runtime.pin_workers = 1", "1", "true or false"),
    (
        "runtime.max_connections = 1.5",
        "1.5",
        "wrong type: a float",
    ),
    (
        "runtime.drain_timeout = 'forever'",
        "'forever'",
        "is not a duration",
    ),
    (
        "runtime.buffer_memory = '63KiB'",
        "'63KiB'",
        "at least 64KiB",
    ),
    ("runtime.buffer_memory = '64'", "'64'", "is not a size"),
    (
        "runtime.buffer_memory = '64kib'",
        "'64kib'",
        "did you mean \"64KiB\"?",
    ),
    (
        "runtime.buffer_memory = '99999999TiB'",
        "'99999999TiB'",
        "is too much",
    ),
    ("runtime.buffer_memory = -5", "-5", "out of range"),
    ("runtime.drain_delay = 5", "5", "\"5s\" or \"5ms\""),
    (
        "runtime.user = 1000",
        "1000",
        "expected: the name of a user",
    ),
    ("runtime.user = '1000'", "'1000'", "not only digits"),
    (
        "runtime.user = '-rf'",
        "'-rf'",
        "can't be the name of a user",
    ),
    ("runtime.group = 'adm'", "'adm'", "a group without a user"),
    (
        "runtime = { user = 'u', group = '' }",
        "''",
        "can't be the name of a group",
    ),
    (
        "runtime = { user = 'u', group = 'a b' }",
        "'a b'",
        "1 to 32 characters",
    ),
    ("runtime.control_socket = true", "true", "\"auto\", \"off\""),
    (
        "runtime.control_socket = 'atuo'",
        "'atuo'",
        "did you mean \"auto\"?",
    ),
    (
        "runtime.control_socket = 'a.sock'",
        "'a.sock'",
        "the absolute path of a file",
    ),
    (
        "runtime.control_socket = 'unix:/run/a.sock'",
        "'unix:/run/a.sock'",
        "did you mean \"/run/a.sock\"?",
    ),
    (
        "runtime.control_socket = '/run/'",
        "'/run/'",
        "at most 107 bytes",
    ),
    (
        "log.level = 'warning'",
        "'warning'",
        "\"error\", \"warn\", \"info\", \"debug\" or \"trace\"",
    ),
    ("log.format = 'jsn'", "'jsn'", "did you mean \"json\"?"),
    ("listners.a = 1", "listners", "did you mean \"listeners\"?"),
    ("runtime = 1", "1", "expected: a table"),
    (
        "max_connections = 5",
        "max_connections",
        "is a key of [runtime] and [listeners.NAME] and [upstreams.NAME.backends]",
    ),
];

#[test]
fn a_control_socket_is_not_where_a_listener_is() {
    let binds = "bind = ['127.0.0.1:80', 'unix:/run/a.sock']";
    let file = |line: &str| format!("{line}\n{}", with(binds, ""));
    let bound = "runtime.control_socket = '/run//a.sock'";
    let cases = &[(bound, "'/run//a.sock'", "bound by listener \"web\"")];
    says_where_and_what(file, cases);
    assert!(parse(&file("runtime.control_socket = '/run/b.sock'")).is_ok());
    let long = format!("/{}", "a".repeat(106));
    assert!(parse(&file(&format!("runtime.control_socket = '{long}'"))).is_ok());
    assert!(parse(&file(&format!("runtime.control_socket = '{long}a'"))).is_err());
    let names = format!("runtime.user = '{}'", "a".repeat(33));
    assert!(parse(&file(&names)).is_err());
}

#[test]
fn a_file_without_a_listener_is_refused() {
    for text in ["", "\n", "[listeners]\n", "[log]\nlevel = 'info'\n"] {
        let errors = parse(text).unwrap_err();
        assert_eq!(errors.list().len(), 1);
        assert_eq!(errors.list()[0].message, "no listener");
    }
}

#[test]
fn what_is_not_available_yet_is_refused_by_its_name() {
    for table in TABLES {
        for key in table.not_yet {
            let text = with_key(table.name, key);
            let errors = parse(&text).expect_err(key);
            assert_eq!(errors.list().len(), 1, "{errors}");
            let message = format!("{key:?} is not available yet in this version");
            assert_eq!(errors.list()[0].message, message);
        }
    }
    for words in WORDS {
        for word in words.not_yet {
            let text = with_line(words.name, &format!("= '{word}'"));
            assert!(
                parse(&text)
                    .unwrap_err()
                    .to_string()
                    .contains("not available yet"),
                "{word}"
            );
        }
    }
}

/// A file that has `key` in the table of that name.
fn with_key(table: &str, key: &str) -> String {
    match table {
        "" => format!("{key} = {{}}\n{}", with("", "")),
        "listeners.NAME.routes" => with(
            &format!("routes = [{{ sni = 'a', upstream = 'app', {key} = 1 }}]"),
            "",
        ),
        "upstreams.NAME.backends" => with(
            "",
            &format!("backends = [{{ address = '10.0.0.1:1', {key} = 1 }}]"),
        ),
        table => with_line(&format!("{table}.{key}"), "= {}"),
    }
}

/// A file that has the line `path value`, where it belongs.
fn with_line(path: &str, value: &str) -> String {
    if let Some(path) = path.strip_prefix("listeners.NAME.") {
        with(&format!("{path} {value}"), "")
    } else if let Some(path) = path.strip_prefix("upstreams.NAME.") {
        with("", &format!("{path} {value}"))
    } else {
        format!("{path} {value}\n{}", with("", ""))
    }
}

#[test]
fn six_errors_are_reported_in_one_run() {
    let text = "\
[listeners.web]
bind = \"127.0.0.1:8080\"
upstrem = \"app\"

[listeners.api]
bind = \"127.0.0.1:8080\"
upstream = \"ap\"
no value

[upstreams.app]
\tbackends = [\"10.0.0.1:80\", { address = \"10.0.0.2:80\", weight = 300 }]
balance = \"magelv\"
";
    let expected = include_str!("six_errors.txt");
    let errors = parse(text).unwrap_err().to_string();
    assert_eq!(errors, expected, "\n{errors}");
}

#[test]
fn every_finding_of_a_file_of_wrong_policies_is_reported_in_one_run() {
    let errors = parse(include_str!("../../fuzz/seeds/config/policies.toml")).unwrap_err();
    let found: Vec<_> = errors
        .list()
        .iter()
        .map(|error| {
            let place = error.place.unwrap();
            format!("{}:{}: {}", place.line, place.column, error.message)
        })
        .collect();
    let expected: Vec<_> = include_str!("wrong_policies.txt").lines().collect();
    assert_eq!(found, expected, "\n{errors}");
}

#[test]
fn what_stands_in_a_broken_line_is_not_reported_twice() {
    let errors = parse(&with("upstream = 'ap", "")).unwrap_err();
    assert_eq!(errors.list().len(), 1, "{errors}");
}

#[test]
fn a_file_that_cannot_be_read_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let latin1 = folder.path().join("latin1.toml");
    std::fs::write(&latin1, b"# ok\n# caf\xe9\n").unwrap();
    for (path, said) in [
        (folder.path().join("none.toml"), "there is no such file"),
        (folder.path().to_owned(), "this is a directory"),
        (latin1, "not UTF-8: byte 10, in line 2"),
        (Path::new("/dev/zero").to_owned(), "too long"),
    ] {
        let errors = config::load(&path).unwrap_err();
        let [error] = errors.list() else {
            panic!("{errors}")
        };
        assert!(error.message.contains(said), "{errors}");
        assert_eq!(error.place, None);
        assert!(
            errors
                .to_string()
                .starts_with(&format!("{}: error: ", path.display()))
        );
    }
}
