//! What a file says of active checks.

use ringress::config::{Exchange, HealthCheck, Probe};
use ringress::policy::health::Start;

use crate::support::{Wrong, parse, says_where_and_what, with};

fn health_check(lines: &str) -> HealthCheck {
    let text = with("", &format!("[upstreams.app.health_check]\n{lines}"));
    match parse(&text) {
        Ok(mut config) => config.upstreams.remove(0).health_check.unwrap(),
        Err(errors) => panic!("{errors}"),
    }
}

fn exchange(send: Option<&str>, expect: Option<&str>) -> Exchange {
    let bytes = |text: &str| text.as_bytes().into();
    Exchange {
        send: send.map(bytes),
        expect: expect.map(bytes),
    }
}

#[test]
fn a_probe_is_of_its_type() {
    for (lines, probe) in [
        ("type = 'tcp'", Probe::Tcp(exchange(None, None))),
        (
            "send = \"PING\\r\\n\"\nexpect = '+PONG'",
            Probe::Tcp(exchange(Some("PING\r\n"), Some("+PONG"))),
        ),
        (
            "expect = 'SSH-2.0'",
            Probe::Tcp(exchange(None, Some("SSH-2.0"))),
        ),
        ("type = 'tls'", Probe::Tls(exchange(None, None))),
        (
            "type = 'tls'\nsend = 'PING'\nexpect = 'PONG'",
            Probe::Tls(exchange(Some("PING"), Some("PONG"))),
        ),
        (
            "type = 'udp'\nsend = \"\\u0000\"",
            Probe::Udp(exchange(Some("\0"), None)),
        ),
        (
            "type = 'http'",
            Probe::Http {
                path: "/".into(),
                host: None,
                expect_status: vec![200..=399],
            },
        ),
        (
            "type = 'http'\npath = '/a?b=%20'\nhost = 'app.internal:81'\nexpect_status = [204, '100-599', '301']",
            Probe::Http {
                path: "/a?b=%20".into(),
                host: Some("app.internal:81".into()),
                expect_status: vec![204..=204, 100..=599, 301..=301],
            },
        ),
    ] {
        assert_eq!(health_check(lines).probe, probe, "{lines}");
    }
}

#[test]
fn times_and_counts_are_read() {
    let check = health_check(
        "interval = '1ms'\njitter = 1\ntimeout = '1m'\nrise = 1000\nfall = 1\nstart = 'checked'",
    );
    assert_eq!(
        (check.interval.as_millis(), check.timeout.as_secs()),
        (1, 60)
    );
    assert_eq!(check.jitter.ppm(), 1_000_000);
    let settings = check.settings;
    assert_eq!((settings.rise.get(), settings.fall.get()), (1000, 1));
    assert_eq!(settings.start, Start::Checked);
    assert_eq!(health_check("start = 'down'").settings.start, Start::Down);
}

#[test]
fn a_wrong_health_check_is_shown_at_its_place() {
    says_where_and_what(
        |lines| match lines.starts_with("backends") {
            true => with("", lines),
            false => with("", &format!("[upstreams.app.health_check]\n{lines}")),
        },
        LINES,
    );
}

const LINES: &[Wrong] = &[
    ("type = 'htpp'", "'htpp'", "did you mean \"http\"?"),
    ("type = ['tcp']", "['tcp']", "wrong type: an array"),
    (
        "path = '/'",
        "path",
        "\"path\" has no meaning with type \"tcp\", which is the default",
    ),
    (
        "type = 'tcp'\nhost = 'a'",
        "host",
        "expected: \"host\" only with type = \"http\"",
    ),
    (
        "type = 'tls'\npath = '/'",
        "path",
        "\"path\" has no meaning with type \"tls\"\n",
    ),
    (
        "type = 'udp'\nsend = 'x'\nexpect_status = 200",
        "expect_status",
        "has no meaning with type \"udp\"\n",
    ),
    (
        "type = 'http'\nsend = 'GET /'",
        "send",
        "expected: \"send\" only with type = \"tcp\", \"tls\" or \"udp\"",
    ),
    (
        "type = 'http'\nexpect = 'HTTP/1.1 200'",
        "expect",
        "has no meaning with type \"http\"",
    ),
    (
        "type = 'udp'\nexpect = 'x'",
        "[upstreams.app.health_check]",
        "missing key \"send\"",
    ),
    (
        "backends = ['unix:/a', '10.0.0.1:1']\nhealth_check = { type = 'udp', send = 'x' }",
        "'udp'",
        "backend \"unix:/a\" is a unix socket, which takes no datagrams",
    ),
    ("send = ''", "''", "the text is empty"),
    ("expect = 5", "5", "expected: a string"),
    (
        "type = 'http'\npath = 'healthz'",
        "'healthz'",
        "did you mean \"/healthz\"?",
    ),
    ("type = 'http'\npath = ''", "''", "did you mean \"/\"?"),
    (
        "type = 'http'\npath = 'http://a/'",
        "'http://a/'",
        "is not a path",
    ),
    (
        "type = 'http'\npath = '/a b'",
        "'/a b'",
        "a space is written as %20",
    ),
    (
        "type = 'http'\npath = \"/\\r\\nX: y\"",
        "\"/\\r\\nX: y\"",
        "is not a path",
    ),
    ("type = 'http'\npath = '/é'", "'/é'", "visible ASCII"),
    ("type = 'http'\nhost = ''", "''", "is not a host"),
    ("type = 'http'\nhost = 'a b'", "'a b'", "is not a host"),
    (
        "type = 'http'\nhost = \"a\\nb\"",
        "\"a\\nb\"",
        "is not a host",
    ),
    (
        "type = 'http'\nhost = 'http://a'",
        "'http://a'",
        "is not a host",
    ),
    (
        "type = 'http'\nexpect_status = []",
        "[]",
        "the list is empty",
    ),
    (
        "type = 'http'\nexpect_status = [200, 99]",
        "99",
        "from 100 to 599",
    ),
    (
        "type = 'http'\nexpect_status = '200-600'",
        "'200-600'",
        "from 100 to 599",
    ),
    (
        "type = 'http'\nexpect_status = '399-200'",
        "'399-200'",
        "did you mean \"200-399\"?",
    ),
    (
        "type = 'http'\nexpect_status = '2xx'",
        "'2xx'",
        "did you mean \"200-299\"?",
    ),
    (
        "type = 'http'\nexpect_status = '+20'",
        "'+20'",
        "is not a status",
    ),
    (
        "type = 'http'\nexpect_status = 2.0",
        "2.0",
        "wrong type: a float",
    ),
    ("interval = '0s'", "'0s'", "zero is too short"),
    ("timeout = '0s'", "'0s'", "zero"),
    ("jitter = 1.1", "1.1", "a number from 0 to 1"),
    ("jitter = '20%'", "'20%'", "did you mean 0.2?"),
    ("rise = 0", "0", "from 1 to 1000"),
    ("fall = 1001", "1001", "from 1 to 1000"),
    (
        "start = 'unknown'",
        "'unknown'",
        "\"up\", \"down\" or \"checked\"",
    ),
    (
        "intervall = '1s'",
        "intervall",
        "did you mean \"interval\"?",
    ),
];

#[test]
fn what_is_sent_has_an_end() {
    let send = |bytes: usize| {
        let line = format!("health_check.send = '{}'", "x".repeat(bytes));
        parse(&with("", &line))
    };
    assert!(send(4096).is_ok());
    let errors = send(4097).unwrap_err().to_string();
    assert!(errors.contains("this is 4097 bytes long"), "{errors}");
}

#[test]
fn with_a_wrong_type_the_other_keys_are_checked_all_the_same() {
    let lines = "health_check = { type = 'tsl', path = 'x', send = '', host = 'ok' }";
    let errors = parse(&with("", lines)).unwrap_err();
    assert_eq!(errors.list().len(), 3, "{errors}");
}
