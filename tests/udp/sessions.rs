//! Which datagrams belong together, and for how long.

use std::collections::HashSet;
use std::time::Duration;

use crate::common::datagrams::{
    DatagramBackend, ask, ask_text, client, client_at, hear, hears_nothing, udp_config,
};
use crate::common::system::descriptors;
use crate::common::{Proxy, eventually, now, pass};
use crate::{closed, listener, wait_sessions};

const TWO_WORKERS: &str = "[runtime]\nworkers = 2\n";

#[test]
fn a_client_stays_with_its_backend_and_clients_take_turns() {
    let (a, b) = (DatagramBackend::named("a"), DatagramBackend::named("b"));
    let backends = [a.address.as_str(), b.address.as_str()];
    let proxy = Proxy::start(&udp_config(&backends, "", "", TWO_WORKERS));
    let address = proxy.address("web");
    let clients: Vec<_> = (0..20).map(|_| client()).collect();
    let first: Vec<_> = clients.iter().map(|it| ask_text(it, &address)).collect();
    assert_eq!(first.iter().filter(|name| *name == "a").count(), 10);
    for (client, name) in clients.iter().zip(&first) {
        for _ in 0..3 {
            assert_eq!(ask_text(client, &address), *name);
        }
    }
    // Each with a socket of its own towards its backend.
    let senders: HashSet<_> = a.senders().into_iter().chain(b.senders()).collect();
    assert_eq!(senders.len(), 20);
    assert_eq!(listener(&proxy)["sessions"], 20);
    proxy.end_now();
}

#[test]
fn replies_go_to_nobody_else() {
    let backend = DatagramBackend::echo();
    let proxy = Proxy::start(&udp_config(&[&backend.address], "", "", TWO_WORKERS));
    let address = proxy.address("web");
    let clients: Vec<_> = (0..50).map(|_| client()).collect();
    for round in 0..4 {
        for (number, client) in clients.iter().enumerate() {
            let bytes = format!("{number} {round}");
            client.send_to(bytes.as_bytes(), &address).expect("sent");
        }
        for (number, client) in clients.iter().enumerate() {
            let expected = format!("{number} {round}");
            assert_eq!(hear(client, &address), expected.as_bytes());
        }
    }
    clients.iter().take(3).for_each(hears_nothing);
    // A stranger who finds the session's port is not heard.
    let inside = backend.senders()[0];
    let stranger = client();
    stranger.send_to(b"boo", inside).expect("it is sent");
    hears_nothing(&clients[0]);
    proxy.end_now();
}

#[test]
fn silence_of_both_sides_ends_a_session_to_the_second() {
    let backend = DatagramBackend::echo();
    let timeout = "session_timeout = \"1s\"";
    let proxy = Proxy::start(&udp_config(&[&backend.address], "", timeout, TWO_WORKERS));
    let address = proxy.address("web");
    let before = descriptors(proxy.pid());
    let clients: Vec<_> = (0..100).map(|_| client()).collect();
    for client in &clients {
        ask(client, &address, b"x");
    }
    assert!(descriptors(proxy.pid()) >= before + 100);
    // Kept alive by the client alone, it goes on.
    let alive = client();
    for _ in 0..6 {
        pass(Duration::from_millis(300));
        alive.send_to(b"x", &address).expect("it is sent");
    }
    let last = now();
    assert_eq!(listener(&proxy)["sessions"], 1);
    assert_eq!(closed(&proxy, "idle"), 100);
    wait_sessions(&proxy, 0);
    let took = last.elapsed();
    assert!(took > Duration::from_millis(900), "{took:?}");
    assert!(took < Duration::from_millis(2_000), "{took:?}");
    // The connection that has asked for the sessions may be there for a moment more.
    eventually("every descriptor", || {
        (descriptors(proxy.pid()) == before).then_some(())
    });
    proxy.end();
}

#[test]
fn a_reply_keeps_a_session_alive_too() {
    let backend = DatagramBackend::start(|heard| {
        // What was sent last time comes while the client is silent.
        for _ in 0..5 {
            pass(Duration::from_millis(300));
        }
        vec![heard.to_vec()]
    });
    let other = DatagramBackend::echo();
    let timeout = "session_timeout = \"2s\"";
    let proxy = Proxy::start(&udp_config(&[&backend.address], "", timeout, ""));
    let client = client();
    assert_eq!(ask(&client, &proxy.address("web"), b"x"), b"x");
    pass(Duration::from_millis(1_000));
    // 2.5 s after the last datagram of the client, and 1 s after that of the backend.
    assert_eq!(listener(&proxy)["sessions"], 1);
    drop(other);
    proxy.end_now();
}

#[test]
fn as_many_replies_as_wanted_end_a_session() {
    let backend = DatagramBackend::start(|heard| vec![heard.to_vec(); 3]);
    let proxy = Proxy::start(&udp_config(&[&backend.address], "", "responses = 2", ""));
    let address = proxy.address("web");
    let client = client();
    for round in 1..=5 {
        client.send_to(&[round], &address).expect("it is sent");
        assert_eq!(hear(&client, &address), [round]);
        assert_eq!(hear(&client, &address), [round]);
        wait_sessions(&proxy, 0);
    }
    hears_nothing(&client);
    assert_eq!(closed(&proxy, "answered"), 5);
    assert_eq!(listener(&proxy)["accepted"], 5);
    proxy.end();
}

#[test]
fn by_source_ip_a_client_keeps_its_session_when_its_port_changes() {
    let backends: Vec<_> = ["a", "b", "c", "d"].map(DatagramBackend::named).into();
    let addresses: Vec<_> = backends.iter().map(|it| it.address.as_str()).collect();
    let tables = "[runtime]\nworkers = 4\npin_workers = false\n";
    let key = "session_key = \"source-ip\"";
    let proxy = Proxy::start(&udp_config(&addresses, "", key, tables));
    let address = proxy.address("web");
    for host in 1..=40 {
        let from = format!("127.0.1.{host}:0");
        let first = client_at(&from);
        let name = ask_text(&first, &address);
        for _ in 0..5 {
            // Wherever its port leads to, it is the same worker.
            assert_eq!(ask_text(&client_at(&from), &address), name, "{from}");
        }
    }
    assert_eq!(listener(&proxy)["sessions"], 40);
    for backend in &backends {
        let senders: HashSet<_> = backend.senders().into_iter().collect();
        assert_eq!((senders.len(), backend.received()), (10, 60));
    }
    proxy.end_now();
}

#[test]
fn by_source_ip_replies_go_to_the_port_that_was_used_last() {
    let backend = DatagramBackend::start(|heard| match heard {
        b"twice" => vec![heard.to_vec(); 2],
        _ => Vec::new(),
    });
    let key = "session_key = \"source-ip\"";
    let proxy = Proxy::start(&udp_config(&[&backend.address], "", key, TWO_WORKERS));
    let address = proxy.address("web");
    let (old, new) = (client(), client());
    assert_eq!(ask(&old, &address, b"twice"), b"twice");
    assert_eq!(hear(&old, &address), b"twice");
    assert_eq!(ask(&new, &address, b"twice"), b"twice");
    assert_eq!(hear(&new, &address), b"twice");
    hears_nothing(&old);
    assert_eq!(listener(&proxy)["sessions"], 1);
    proxy.end_now();
}

#[test]
fn the_session_key_can_be_changed_by_a_reload() {
    let backend = DatagramBackend::echo();
    let with = |key: &str, address: &str| {
        let bind = format!("bind = {address:?}");
        let key = format!("session_key = {key:?}");
        let tables = "[runtime]\nworkers = 4\npin_workers = false\n";
        udp_config(&[&backend.address], &bind, &key, tables)
    };
    let address = crate::common::backend::free_address();
    let proxy = Proxy::start(&with("source-ip-port", &address));
    for (key, more) in [("source-ip", 1), ("source-ip-port", 8), ("source-ip", 0)] {
        assert_eq!(proxy.reload(&with(key, &address))["message"], "reloaded");
        let before = listener(&proxy)["accepted"].as_u64().expect("a number");
        for _ in 0..8 {
            ask(&client(), &address, b"x");
        }
        let after = listener(&proxy)["accepted"].as_u64().expect("a number");
        assert_eq!(after - before, more, "{key}");
    }
    proxy.end_now();
}

#[test]
fn per_packet_every_datagram_goes_to_another_backend() {
    let (a, b) = (DatagramBackend::named("a"), DatagramBackend::named("b"));
    let backends = [a.address.as_str(), b.address.as_str()];
    let proxy = Proxy::start(&udp_config(&backends, "", "mode = \"per-packet\"", ""));
    let address = proxy.address("web");
    let client = client();
    let names: Vec<_> = (0..10).map(|_| ask_text(&client, &address)).collect();
    for pair in names.windows(2) {
        assert_ne!(pair[0], pair[1]);
    }
    // One session with each backend, not one per datagram.
    assert_eq!(listener(&proxy)["sessions"], 2);
    proxy.end_now();
}
