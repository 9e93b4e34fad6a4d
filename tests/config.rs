//! Facts about the configuration file: what it means, and what is said when it is wrong.

#[path = "config/admin.rs"]
mod admin;
#[path = "config/documents.rs"]
mod documents;
#[path = "config/health_check.rs"]
mod health_check;
#[path = "config/listeners.rs"]
mod listeners;
#[path = "config/proxies.rs"]
mod proxies;
#[path = "config/routes.rs"]
mod routes;
#[path = "config/support.rs"]
mod support;
#[path = "config/tls.rs"]
mod tls;
#[path = "config/upstreams.rs"]
mod upstreams;
#[path = "config/wrong.rs"]
mod wrong;

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use ringress::config::{Announce, ControlSocket, LogFormat, LogLevel};

use support::{parse, with};

#[test]
fn the_smallest_file_has_the_defaults_of_the_contract() {
    let config = parse(&with("", "")).unwrap();
    let runtime = &config.runtime;
    assert_eq!((runtime.workers, runtime.pin_workers), (None, true));
    assert_eq!(
        (runtime.max_connections, runtime.buffer_memory),
        (None, None)
    );
    assert_eq!(runtime.drain_timeout, Duration::from_secs(60));
    assert_eq!(runtime.drain_delay, Duration::ZERO);
    assert_eq!((&runtime.user, &runtime.group), (&None, &None));
    assert_eq!(runtime.control_socket, ControlSocket::Auto);
    assert_eq!(
        (config.log.level, config.log.format),
        (LogLevel::Info, LogFormat::Text)
    );

    let listener = &config.listeners[0];
    assert_eq!(
        (&*listener.name, listener.upstream, listener.backlog.get()),
        ("web", 0, 4096)
    );
    assert_eq!(
        (listener.max_connections, &listener.congestion),
        (None, &None)
    );
    assert_eq!((listener.ipv6_only, listener.unix_mode), (true, 0o660));
    assert_eq!(listener.tcp_keepalive, Some(Duration::from_secs(60)));
    assert_eq!(listener.timeouts.idle, Duration::from_mins(10));
    assert_eq!(listener.timeouts.half_close, Duration::from_secs(30));
    assert_eq!(listener.timeouts.handshake, Duration::from_secs(10));
    assert_eq!((&listener.trusted_proxies, &listener.tls), (&None, &None));
    assert_eq!(listener.routes, []);

    let upstream = &config.upstreams[0];
    assert_eq!(
        (&*upstream.name, upstream.balance.name),
        ("app", "round-robin")
    );
    assert_eq!((upstream.retry.attempts, upstream.source.len()), (1, 0));
    assert_eq!(upstream.connect_timeout, Duration::from_secs(5));
    assert_eq!(upstream.tcp_keepalive, Some(Duration::from_secs(60)));
    assert_eq!(upstream.tcp_user_timeout, Duration::from_secs(30));
    assert_eq!((upstream.announce, &upstream.tls), (Announce::Never, &None));
    assert_eq!(
        (&*upstream.backends[0].name, upstream.backends[0].weight),
        ("10.0.0.9:80", 1)
    );
}

#[test]
fn every_key_is_read() {
    let config = parse(EVERY_KEY).unwrap();
    assert_eq!(config.runtime.workers, NonZeroUsize::new(4));
    assert!(!config.runtime.pin_workers);
    assert_eq!(config.runtime.max_connections, NonZeroUsize::new(1000));
    assert_eq!(config.runtime.drain_timeout, Duration::ZERO);
    assert_eq!(config.runtime.drain_delay, Duration::from_secs(15));
    assert_eq!(config.runtime.buffer_memory, NonZeroU64::new(65536));
    assert_eq!(config.runtime.user.as_deref(), Some("www-data"));
    assert_eq!(config.runtime.group.as_deref(), Some("_1.b"));
    let path = Path::new("/run/a.sock").into();
    assert_eq!(config.runtime.control_socket, ControlSocket::Path(path));
    assert_eq!(
        (config.log.level, config.log.format),
        (LogLevel::Trace, LogFormat::Json)
    );

    let web = &config.listeners[0];
    let binds: Vec<_> = web.bind.iter().map(ToString::to_string).collect();
    assert_eq!(binds, ["0.0.0.0:0", "[::]:443", "unix:/run/web.sock"]);
    assert_eq!((web.upstream, web.backlog.get()), (0, 16));
    assert_eq!(
        (web.max_connections, web.tcp_keepalive),
        (NonZeroUsize::new(7), None)
    );
    assert_eq!(
        (web.congestion.as_deref(), web.ipv6_only),
        (Some("bbr"), false)
    );
    assert_eq!(web.unix_mode, 0o600);
    assert_eq!(web.timeouts.idle, Duration::from_mins(90));
    assert_eq!(web.timeouts.half_close, Duration::from_millis(250));
    assert_eq!(web.timeouts.handshake, Duration::from_millis(1));

    let names: Vec<_> = config.upstreams.iter().map(|it| &*it.name).collect();
    assert_eq!(names, ["b", "a"], "in the order of the file");
    let b = &config.upstreams[0];
    let weights: Vec<_> = b.backends.iter().map(|it| (&*it.name, it.weight)).collect();
    assert_eq!(weights, [("x", 256), ("unix:/run/b.sock", 0)]);
    assert_eq!(
        (b.connect_timeout, b.retry.attempts),
        (Duration::from_secs(2), 0)
    );
    assert_eq!(b.source, ["::1".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(b.tcp_keepalive, Some(Duration::from_secs(10)));
    assert_eq!(b.tcp_user_timeout, Duration::from_millis(1));
}

const EVERY_KEY: &str = "
[runtime]
workers = 4
pin_workers = false
max_connections = 1_000
drain_timeout = '0s'
drain_delay = '15s'
buffer_memory = '64KiB'
user = 'www-data'
group = '_1.b'
control_socket = '/run/a.sock'
[log]
level = 'trace'
format = 'json'
[listeners.web]
bind = ['0.0.0.0:0', '[::]:443', 'unix:/run/web.sock']
protocol = 'tcp'
upstream = 'b'
backlog = 16
max_connections = 7
tcp_keepalive = 'off'
congestion = 'bbr'
ipv6_only = false
unix_mode = '600'
[listeners.web.timeouts]
idle = '1h30m'
half_close = '250ms'
handshake = '1ms'
[upstreams.b]
backends = [{ address = '[::1]:80', name = 'x', weight = 256 }, { address = 'unix:/run/b.sock', weight = 0 }]
balance = 'round-robin'
connect_timeout = '2s'
source = ['::1']
tcp_keepalive = '10s'
tcp_user_timeout = '1ms'
[upstreams.b.retry]
attempts = 0
[upstreams.a]
backends = ['10.0.0.1:80']";

#[test]
fn every_address_of_a_host_is_a_backend() {
    let text = with(
        "",
        "backends = ['one.example:80', 'two.example:81', { address = 'two.example:82', name = 'n', weight = 2 }]",
    );
    let config = parse(&text).unwrap();
    let backends: Vec<_> = config.upstreams[0]
        .backends
        .iter()
        .map(|it| (&*it.name, it.address.to_string(), it.weight))
        .collect();
    let hosts = config.upstreams[0].backends.iter();
    let hosts: Vec<_> = hosts.map(|it| it.host.as_deref().unwrap()).collect();
    let two = "two.example";
    assert_eq!(hosts, ["one.example", two, two, two, two]);
    let expected = [
        ("one.example:80", "10.0.0.1:80", 1),
        ("two.example:81/10.0.0.2:81", "10.0.0.2:81", 1),
        ("two.example:81/10.0.0.3:81", "10.0.0.3:81", 1),
        ("n/10.0.0.2:82", "10.0.0.2:82", 2),
        ("n/10.0.0.3:82", "10.0.0.3:82", 2),
    ];
    assert_eq!(
        backends,
        expected.map(|(name, address, weight)| (name, address.to_owned(), weight))
    );
}

#[test]
fn sizes_and_durations_have_units() {
    for (size, bytes) in [
        ("65536", 65_536),
        ("'64KiB'", 65_536),
        ("'65536B'", 65_536),
        ("'10MiB'", 10_485_760),
        ("'1 GiB'", 1_073_741_824),
        ("'100KB'", 100_000),
        ("'2MB'", 2_000_000),
    ] {
        let text = format!("{}\n[runtime]\nbuffer_memory = {size}", with("", ""));
        assert_eq!(
            parse(&text).unwrap().runtime.buffer_memory,
            NonZeroU64::new(bytes),
            "{size}"
        );
    }
    for (duration, millis) in [
        ("250ms", 250),
        ("10s", 10_000),
        ("5m", 300_000),
        ("12h", 43_200_000),
    ] {
        let config = parse(&with("", &format!("connect_timeout = '{duration}'"))).unwrap();
        assert_eq!(
            config.upstreams[0].connect_timeout.as_millis(),
            millis,
            "{duration}"
        );
    }
}

const EXAMPLES: [&str; 4] = [
    include_str!("../conf/quickstart.toml"),
    include_str!("../conf/tcp.toml"),
    include_str!("../fuzz/seeds/config/errors.toml"),
    include_str!("../fuzz/seeds/config/policies.toml"),
];

/// What is put in somewhere: pieces that mean something to TOML or to us.
const PIECES: [&str; 34] = [
    "\"",
    "'",
    "[",
    "]",
    "[[",
    "{",
    "}",
    "=",
    ".",
    ",",
    "#",
    "\n",
    "\r\n",
    "\t",
    "0",
    "-1",
    "é",
    "\u{0}",
    "1e9",
    "unix:",
    "two.example:80",
    "[upstreams.app]",
    "0.5",
    "nan",
    "50%",
    "10.0.0.1/8",
    "2001:db8::/32",
    "200-399",
    "[[listeners.web.routes]]",
    "sni = '*.a.example'",
    "tls.certificates = [{ cert = 'a', key = 'b' }]",
    "tls = { ca = 'a', verify = false }",
    "accept_proxy_protocol = 'require'",
    "trusted_proxies = ['10.0.0.0/8']",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_file_panics_and_every_finding_is_within_it(
        example in 0..EXAMPLES.len(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..12_usize, 0..PIECES.len()), 0..6),
    ) {
        let mut chars: Vec<char> = EXAMPLES[example].chars().collect();
        for (at, removed, piece) in edits {
            let start = at.index(chars.len() + 1);
            let end = (start + removed).min(chars.len());
            chars.splice(start..end, PIECES[piece].chars());
        }
        let text: String = chars.into_iter().collect();
        if let Err(errors) = parse(&text) {
            prop_assert!(!errors.list().is_empty());
            for error in errors.list() {
                let place = error.place.expect("a place");
                prop_assert!((1..=text.split('\n').count()).contains(&place.line));
                let line = text.split('\n').nth(place.line - 1).unwrap();
                prop_assert!(place.column - 1 + place.length <= line.chars().count() + 1);
            }
            prop_assert!(errors.to_string().contains("test.toml:"));
        }
    }
}
