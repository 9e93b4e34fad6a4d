//! Rates of new connections, through the real binary.

mod common;

use std::net::SocketAddr;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use common::essentials::there_and_back;
use common::proxy::Session;
use common::socket::exchange;
use common::{Backend, Proxy, config, connect, now, pass};
use socket2::Socket;

const WORKERS: &str = "[runtime]\nworkers = 2\n";

/// Clients from `sources` in turn, all at once; those that were served.
fn burst(count: usize, sources: &[&str], address: &str) -> Vec<Option<Socket>> {
    let barrier = Barrier::new(count);
    let client = |number: usize| {
        barrier.wait();
        exchange(sources.get(number % sources.len().max(1)).copied(), address)
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..count)
            .map(|number| scope.spawn(move || client(number)))
            .collect();
        let ends = clients.into_iter();
        ends.map(|client| client.join().expect("served or reset"))
            .collect()
    })
}

fn served(clients: &[Option<Socket>]) -> usize {
    clients.iter().flatten().count()
}

fn with_reason(sessions: &[Session], reason: &str) -> usize {
    let sessions = sessions.iter();
    sessions.filter(|session| session.reason == reason).count()
}

/// The part of a log's address that a client is known by.
fn ip(client: &str) -> String {
    let address: SocketAddr = client.parse().expect("an address and a port");
    address.ip().to_string()
}

/// What a bucket gives in `time`.
fn earned(rate: f64, time: Duration) -> usize {
    (rate * time.as_secs_f64()) as usize
}

#[test]
fn a_listener_serves_a_burst_and_what_its_rate_adds() {
    let backend = Backend::echo();
    let limit = "rate_limit = { connections = { rate = 25, burst = 20 } }";
    let tables =
        format!("{WORKERS}[listeners.other]\nbind = \"127.0.0.1:0\"\nupstream = \"app\"\n");
    let mut proxy = Proxy::start(&config(&[&backend.address], limit, "", &tables));
    let (began, address) = (now(), proxy.address("web"));
    let first = served(&burst(60, &[], &address));
    let most = 20 + earned(25.0, began.elapsed());
    assert!((20..=most).contains(&first), "{first} of {most}");
    // A fifth of a burst comes back, then all of it and no more.
    pass(Duration::from_millis(160));
    let second = served(&burst(60, &[], &address));
    let most = 20 + earned(25.0, began.elapsed());
    assert!((first + 4..=most).contains(&(first + second)), "{second}");
    pass(Duration::from_millis(1000));
    let again = now();
    let third = served(&burst(60, &[], &address));
    let most = 20 + earned(25.0, again.elapsed());
    assert!((20..=most).contains(&third), "{third} of {most}");
    there_and_back(&connect(&proxy.address("other")), 1000);
    let sessions = proxy.next_sessions(181);
    let refused = 180 - first - second - third;
    assert_eq!(with_reason(&sessions, "rate-limit"), refused);
    assert_eq!(with_reason(&sessions, "client-closed"), 181 - refused);
    proxy.end();
}

/// 15 clients of each of these addresses at once, and 5 of each are served; then one of another.
fn every_address_has_a_bucket(sources: &[&str], bind: &str, other: &str) {
    let backend = Backend::echo();
    let limit = format!(
        "bind = {bind:?}\nrate_limit = {{ connections_per_ip = {{ rate = 1, burst = 5 }} }}"
    );
    let mut proxy = Proxy::start(&config(&[&backend.address], &limit, "", WORKERS));
    let (began, address) = (now(), proxy.address("web"));
    let clients = burst(15 * sources.len(), sources, &address);
    let most = 5 + earned(1.0, began.elapsed());
    assert!(exchange(Some(other), &address).is_some(), "{other}");
    let sum = served(&clients);
    drop(clients);
    let sessions = proxy.next_sessions(15 * sources.len() + 1);
    for source in sources {
        let own: Vec<_> = sessions
            .iter()
            .filter(|session| ip(&session.client) == *source)
            .cloned()
            .collect();
        let number = with_reason(&own, "client-closed");
        assert!((5..=most).contains(&number), "{number} from {source}");
        assert_eq!(with_reason(&own, "client-rate-limit"), 15 - number);
    }
    let all = with_reason(&sessions, "client-closed");
    assert_eq!(all, sum + usize::from(!sources.contains(&other)));
    proxy.end();
}

#[test]
fn every_client_address_has_a_bucket_of_its_own() {
    let sources = ["127.0.0.2", "127.0.0.3", "127.0.0.4", "127.1.2.3"];
    every_address_has_a_bucket(&sources, "127.0.0.1:0", "127.0.0.5");
}

#[test]
fn a_client_over_ipv6_has_a_bucket() {
    let backend = Backend::echo();
    let limit = "bind = \"[::1]:0\"\n\
        rate_limit = { connections_per_ip = { rate = 1, burst = 5 }, ipv6_prefix = 128 }";
    let mut proxy = Proxy::start(&config(&[&backend.address], limit, "", WORKERS));
    let (began, address) = (now(), proxy.address("web"));
    let number = served(&burst(20, &["::1"], &address));
    let most = 5 + earned(1.0, began.elapsed());
    assert!((5..=most).contains(&number), "{number}");
    let sessions = proxy.next_sessions(20);
    assert_eq!(with_reason(&sessions, "client-rate-limit"), 20 - number);
    proxy.end();
}

/// The same port at another address.
fn at(ip: &str, address: &str) -> String {
    let address: SocketAddr = address.parse().expect("an address and a port");
    SocketAddr::new(ip.parse().expect("an address"), address.port()).to_string()
}

#[test]
fn a_client_over_ipv4_is_the_same_on_a_socket_of_both_families() {
    let backend = Backend::echo();
    // So slow that nothing comes back meanwhile.
    let limit = "bind = [\"[::]:0\", \"127.0.0.1:0\"]\nipv6_only = false\n\
        rate_limit = { connections_per_ip = { rate = 1, burst = 60 } }";
    let mut proxy = Proxy::start(&config(&[&backend.address], limit, "", WORKERS));
    let [both, four] = &proxy.addresses("web")[..] else {
        panic!("two addresses");
    };
    let (both_four, both_six) = (at("127.0.0.1", both), at("::1", both));
    let began = now();
    let first = served(&burst(40, &["127.0.0.9"], &both_four));
    assert_eq!(first, 40);
    let second = served(&burst(40, &["127.0.0.9"], four));
    let most = 20 + earned(1.0, began.elapsed());
    assert!((20..=most).contains(&second), "{second} of {most}");
    // ::ffff:0:0/96 shares its first 64 bits with nobody.
    assert!(exchange(None, &both_six).is_some());
    assert!(exchange(Some("127.0.0.8"), &both_four).is_some());
    let sessions = proxy.next_sessions(82);
    assert_eq!(with_reason(&sessions, "client-rate-limit"), 40 - second);
    proxy.end();
}

#[test]
fn a_client_above_its_own_rate_takes_nothing_from_the_listeners() {
    let backend = Backend::echo();
    let limit = "rate_limit = { connections_per_ip = { rate = 1, burst = 5 }, \
        connections = { rate = 1, burst = 30 } }";
    let mut proxy = Proxy::start(&config(&[&backend.address], limit, "", WORKERS));
    let (began, address) = (now(), proxy.address("web"));
    let greedy = served(&burst(60, &["127.0.0.2"], &address));
    let earned = |since: std::time::Instant| earned(1.0, since.elapsed());
    assert!((5..=5 + earned(began)).contains(&greedy), "{greedy}");
    let sources: Vec<String> = (0..40).map(|last| format!("127.0.1.{last}")).collect();
    let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
    let others = served(&burst(40, &sources, &address));
    let most = 30 + earned(began);
    assert!((30..=most).contains(&(greedy + others)), "{others}");
    let sessions = proxy.next_sessions(100);
    assert_eq!(with_reason(&sessions, "client-rate-limit"), 60 - greedy);
    assert_eq!(with_reason(&sessions, "rate-limit"), 40 - others);
    proxy.end();
}

#[test]
fn a_dry_run_refuses_nobody() {
    let backend = Backend::echo();
    let limit = "rate_limit = { connections_per_ip = { rate = 1 }, \
        connections = { rate = 1 }, dry_run = true }";
    let proxy = Proxy::start(&config(&[&backend.address], limit, "", WORKERS));
    assert_eq!(served(&burst(50, &[], &proxy.address("web"))), 50);
    proxy.end();
}

#[test]
fn a_reload_changes_the_rate_and_keeps_what_clients_have_taken() {
    let backend = Backend::echo();
    let text = |limit: &str| {
        let limit = format!("rate_limit = {{ connections_per_ip = {limit} }}");
        config(&[&backend.address], &limit, "", WORKERS)
    };
    let proxy = Proxy::start(&text("{ rate = 1, burst = 5 }"));
    let (began, address) = (now(), proxy.address("web"));
    assert!(served(&burst(10, &["127.0.0.2"], &address)) >= 5);
    // The same again is no new bucket.
    proxy.reload(&text("{ rate = 1, burst = 5 }"));
    let more = served(&burst(10, &["127.0.0.2"], &address));
    assert!(more <= earned(1.0, began.elapsed()), "{more}");
    // What was taken counts as time, which the new burst has plenty of.
    proxy.reload(&text("{ rate = 1000, burst = 100000 }"));
    assert_eq!(served(&burst(50, &["127.0.0.2"], &address)), 50);
    proxy.end();
}
