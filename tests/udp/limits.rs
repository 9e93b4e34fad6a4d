//! What is not let in, and that it is counted.

use std::net::UdpSocket;

use crate::common::datagrams::{
    DatagramBackend, ask, client, client_at, hears_nothing, udp_config,
};
use crate::common::{Proxy, eventually};
use crate::{dropped, listener};

/// The proxy has dropped so many for this reason.
fn wait_dropped(proxy: &Proxy, reason: &str, count: u64) {
    eventually(reason, || (dropped(proxy, reason) == count).then_some(()));
}

#[test]
fn over_max_sessions_new_clients_are_dropped_and_others_go_on() {
    let backend = DatagramBackend::echo();
    let tables = "[runtime]\nworkers = 2\n";
    let cap = "max_sessions = 20";
    let proxy = Proxy::start(&udp_config(&[&backend.address], "", cap, tables));
    let address = proxy.address("web");
    let live: Vec<_> = (0..20).map(|_| client()).collect();
    for client in &live {
        ask(client, &address, b"x");
    }
    let flood: Vec<_> = (0..200).map(|_| client()).collect();
    for (round, late) in flood.iter().enumerate() {
        late.send_to(b"x", &address).expect("it is sent");
        let client = &live[round % live.len()];
        assert_eq!(
            ask(client, &address, &[7]),
            [7],
            "a live session was disturbed"
        );
    }
    wait_dropped(&proxy, "listener-full", 200);
    hears_nothing(&flood[0]);
    assert_eq!(listener(&proxy)["sessions"], 20);
    proxy.end_now();
}

#[test]
fn more_sessions_than_fit_are_refused_at_start() {
    let cap = "max_sessions = 70000";
    let (code, said) = Proxy::fails(&udp_config(&["127.0.0.1:9"], "", cap, ""));
    assert_eq!(code, Some(1));
    for part in [
        "max_sessions = 70000 of listener \"web\"",
        "local ports",
        "`source`",
    ] {
        assert!(said.contains(part), "{part} is missing in {said}");
    }
}

#[test]
fn who_is_denied_is_dropped() {
    let backend = DatagramBackend::echo();
    let deny = "deny = [\"127.0.0.66\"]";
    let proxy = Proxy::start(&udp_config(&[&backend.address], deny, "", ""));
    let address = proxy.address("web");
    let denied = client_at("127.0.0.66:0");
    denied.send_to(b"x", &address).expect("it is sent");
    hears_nothing(&denied);
    assert_eq!(ask(&client(), &address, b"x"), b"x");
    wait_dropped(&proxy, "denied", 1);
    assert_eq!(
        (backend.received(), &listener(&proxy)["accepted"]),
        (1, &1.into())
    );
    proxy.end_now();
}

#[test]
fn rates_of_new_sessions_and_of_datagrams_hold() {
    let backend = DatagramBackend::echo();
    let limits = "[listeners.web.rate_limit]\n\
                  connections_per_ip = { rate = 1, burst = 3 }\n\
                  datagrams_per_ip = { rate = 1, burst = 10 }\n";
    let proxy = Proxy::start(&udp_config(&[&backend.address], "", "", limits));
    let address = proxy.address("web");
    let clients: Vec<_> = (0..5).map(|_| client()).collect();
    for client in &clients {
        client.send_to(b"x", &address).expect("it is sent");
    }
    wait_dropped(&proxy, "client-rate-limit", 2);
    for _ in 0..20 {
        clients[0].send_to(b"x", &address).expect("it is sent");
    }
    wait_dropped(&proxy, "datagram-rate-limit", 15);
    // Another address has buckets of its own.
    assert_eq!(ask(&client_at("127.0.0.2:0"), &address, b"x"), b"x");
    proxy.end_now();
}

#[test]
fn datagrams_from_privileged_ports_can_be_refused() {
    let backend = DatagramBackend::echo();
    let reject = "reject_privileged_sources = true";
    for (udp, heard) in [("", true), (reject, false)] {
        let proxy = Proxy::start(&udp_config(&[&backend.address], "", udp, ""));
        let address = proxy.address("web");
        // Who is not root may not have such a port: then there is nobody who could send from it.
        let Some(privileged) = (1..1024).find_map(|port| UdpSocket::bind(("127.0.0.1", port)).ok())
        else {
            return;
        };
        let limit = crate::common::PATIENCE;
        privileged.set_read_timeout(Some(limit)).expect("a timeout");
        if heard {
            assert_eq!(ask(&privileged, &address, b"x"), b"x");
        } else {
            privileged.send_to(b"x", &address).expect("it is sent");
            wait_dropped(&proxy, "privileged-source", 1);
            hears_nothing(&privileged);
            assert_eq!(ask(&client(), &address, b"x"), b"x");
        }
        proxy.end_now();
    }
}
