//! Who may connect, by network, through the real binary.

mod common;

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use common::socket::exchange;
use common::{Backend, Proxy, config, now};

const WORKERS: &str = "[runtime]\nworkers = 2\n";

fn listener(bind: &str, allow: &str, deny: &str) -> String {
    format!("bind = {bind:?}\nallow = {allow}\ndeny = {deny}\n")
}

/// Connects from `source`, which has to be refused as denied.
fn is_denied(proxy: &mut Proxy, source: &str, address: &str) {
    assert!(exchange(Some(source), address).is_none(), "{source}");
    let session = proxy.next_session();
    assert_eq!((&*session.reason, &*session.backend), ("denied", "-"));
}

/// Connects from `source`, which has to be served.
fn is_allowed(proxy: &mut Proxy, source: &str, address: &str) {
    assert!(exchange(Some(source), address).is_some(), "{source}");
    assert_eq!(proxy.next_session().reason, "client-closed");
}

#[test]
fn deny_wins_over_allow_and_the_rest_may_not() {
    let backend = Backend::echo();
    let lists = listener(
        "127.0.0.1:0",
        "[\"127.0.0.0/16\", \"127.9.9.9\"]",
        "[\"127.0.7.0/24\", \"127.0.8.8\"]",
    );
    let mut proxy = Proxy::start(&config(&[&backend.address], &lists, "", WORKERS));
    let address = proxy.address("web");
    for source in ["127.0.0.1", "127.0.8.7", "127.0.255.254", "127.9.9.9"] {
        is_allowed(&mut proxy, source, &address);
    }
    for source in [
        "127.0.7.1",
        "127.0.7.255",
        "127.0.8.8",
        "127.1.0.1",
        "127.9.9.8",
    ] {
        is_denied(&mut proxy, source, &address);
    }
    assert_eq!(backend.accepted(), 4);
    proxy.end();
}

#[test]
fn ipv6_networks_are_for_clients_over_ipv6() {
    let backend = Backend::echo();
    for (allow, deny, six) in [
        ("[\"::1\"]", "[]", true),
        ("[\"::/0\"]", "[\"::/127\"]", false),
        ("[\"127.0.0.0/8\"]", "[]", false),
        ("[]", "[\"0.0.0.0/0\"]", true),
    ] {
        let lists = listener("[::1]:0", allow, deny);
        let mut proxy = Proxy::start(&config(&[&backend.address], &lists, "", WORKERS));
        let address = proxy.address("web");
        match six {
            true => is_allowed(&mut proxy, "::1", &address),
            false => is_denied(&mut proxy, "::1", &address),
        }
        proxy.end();
    }
}

#[test]
fn on_a_socket_of_both_families_clients_over_ipv4_are_ipv4() {
    let backend = Backend::echo();
    for (allow, four, six) in [
        ("[\"127.0.0.0/8\"]", true, false),
        ("[\"::/0\"]", false, true),
        ("[\"::1\", \"127.0.0.1\"]", true, true),
    ] {
        let lists = listener("[::]:0", allow, "[]") + "ipv6_only = false\n";
        let mut proxy = Proxy::start(&config(&[&backend.address], &lists, "", WORKERS));
        let bound: SocketAddr = proxy.address("web").parse().expect("an address");
        for (source, may) in [("127.0.0.1", four), ("::1", six)] {
            let address = SocketAddr::new(source.parse().expect("an address"), bound.port());
            match may {
                true => is_allowed(&mut proxy, source, &address.to_string()),
                false => is_denied(&mut proxy, source, &address.to_string()),
            }
        }
        proxy.end();
    }
}

#[test]
fn the_log_knows_a_client_over_ipv4_by_its_ipv4_address() {
    let backend = Backend::echo();
    let lists = listener("[::]:0", "[]", "\"127.0.0.2\"") + "ipv6_only = false\n";
    let mut proxy = Proxy::start(&config(&[&backend.address], &lists, "", WORKERS));
    let bound: SocketAddr = proxy.address("web").parse().expect("an address");
    let address = format!("127.0.0.1:{}", bound.port());
    for source in ["127.0.0.1", "127.0.0.2"] {
        drop(exchange(Some(source), &address));
        let client: SocketAddr = proxy.next_session().client.parse().expect("an address");
        assert_eq!(client.ip().to_string(), source);
    }
    proxy.end();
}

/// A list in TOML: 5000 networks of IPv4 and 5000 of IPv6, none of them of the loopback, and `more`.
fn long_list(more: &str) -> String {
    let mut list = String::from("[\n");
    for number in 0..5000_u32 {
        let (high, low) = (number / 256, number % 256);
        writeln!(
            list,
            "\"10.{high}.{low}.0/24\", \"2001:db8:{number:x}::/48\","
        )
        .expect("a string");
    }
    list + more + "]"
}

#[test]
fn ten_thousand_networks_cost_neither_start_nor_clients_time() {
    let backend = Backend::echo();
    let deny = long_list("\"127.0.0.2\",");
    let lists = listener("127.0.0.1:0", "[]", &deny);
    let began = now();
    let mut proxy = Proxy::start(&config(&[&backend.address], &lists, "", WORKERS));
    let started = began.elapsed();
    let address = proxy.address("web");
    let began = now();
    for _ in 0..200 {
        is_denied(&mut proxy, "127.0.0.2", &address);
        is_allowed(&mut proxy, "127.0.0.3", &address);
    }
    let took = began.elapsed();
    println!("{started:?} to start, {took:?} for 400 clients");
    assert!(started < Duration::from_secs(5), "{started:?} to start");
    assert!(took < Duration::from_secs(5), "{took:?} for 400 clients");
    // The other way round.
    let lists = listener("127.0.0.1:0", &long_list("\"127.0.0.2\","), "[]");
    proxy.reload(&config(&[&backend.address], &lists, "", WORKERS));
    is_allowed(&mut proxy, "127.0.0.2", &address);
    is_denied(&mut proxy, "127.0.0.3", &address);
    proxy.end();
}

#[test]
fn a_reload_is_for_new_sessions() {
    let backend = Backend::echo();
    let text = |allow: &str, deny: &str| {
        let lists = format!("allow = {allow}\ndeny = {deny}");
        config(&[&backend.address], &lists, "", WORKERS)
    };
    let mut proxy = Proxy::start(&text("[]", "[]"));
    let address = proxy.address("web");
    let mut old = exchange(Some("127.0.0.2"), &address).expect("it is served");
    assert_eq!(
        proxy.reload(&text("[]", "\"127.0.0.2\""))["message"],
        "reloaded"
    );
    is_denied(&mut proxy, "127.0.0.2", &address);
    is_allowed(&mut proxy, "127.0.0.3", &address);
    proxy.reload(&text("\"127.0.0.4\"", "[]"));
    is_denied(&mut proxy, "127.0.0.2", &address);
    is_allowed(&mut proxy, "127.0.0.4", &address);
    old.write_all(b"still").expect("it lives");
    let mut answer = [0; 5];
    old.read_exact(&mut answer).expect("it lives");
    assert_eq!(&answer, b"still");
    proxy.reload(&text("[]", "[]"));
    is_allowed(&mut proxy, "127.0.0.2", &address);
    drop(old);
    assert_eq!(proxy.next_session().reason, "client-closed");
    proxy.end();
}
