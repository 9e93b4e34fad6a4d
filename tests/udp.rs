//! Datagrams through the real process: sizes, addresses, sessions and their ends, limits, and what becomes
//! of every datagram that goes no further.

mod common;

#[path = "udp/again.rs"]
mod again;
#[path = "udp/announced.rs"]
mod announced;
#[path = "udp/backends.rs"]
mod backends;
#[path = "udp/life.rs"]
mod life;
#[path = "udp/limits.rs"]
mod limits;
#[path = "udp/many.rs"]
mod many;
#[path = "udp/questions.rs"]
mod questions;
#[path = "udp/roaming.rs"]
mod roaming;
#[path = "udp/segments.rs"]
mod segments;
#[path = "udp/sessions.rs"]
mod sessions;
#[path = "udp/tools.rs"]
mod tools;

use common::datagrams::{DatagramBackend, ask, ask_text, client_at, udp_config};
use common::{Proxy, eventually};
use serde_json::Value;

/// What the process says of the listener.
fn listener(proxy: &Proxy) -> Value {
    common::commands::named(&proxy.status()["listeners"], "web").clone()
}

/// Datagrams that were dropped for this reason.
fn dropped(proxy: &Proxy, reason: &str) -> u64 {
    listener(proxy)["datagrams"]["dropped"][reason]
        .as_u64()
        .unwrap_or(0)
}

/// Sessions that ended for this reason.
fn closed(proxy: &Proxy, reason: &str) -> u64 {
    listener(proxy)["closed"][reason].as_u64().unwrap_or(0)
}

fn wait_sessions(proxy: &Proxy, count: u64) {
    eventually("the sessions", || {
        (listener(proxy)["sessions"] == count).then_some(())
    });
}

#[test]
fn datagrams_of_every_size_pass_whole() {
    let backend = DatagramBackend::echo();
    let proxy = Proxy::start(&udp_config(&[&backend.address], "", "", ""));
    let address = proxy.address("web");
    let client = client_at("127.0.0.1:0");
    for len in [0, 1, 64, 512, 1_472, 1_473, 9_000, 32_768, 65_506, 65_507] {
        let bytes: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        assert!(ask(&client, &address, &bytes) == bytes, "{len}");
    }
    // The client may have the last one before it is counted.
    let listener = eventually("the last one to be counted", || {
        let listener = listener(&proxy);
        (listener["datagrams"]["sent"] == 10).then_some(listener)
    });
    assert_eq!(listener["accepted"], 1);
    let datagrams = &listener["datagrams"];
    assert_eq!(datagrams["received"], 10);
    assert_eq!(datagrams["dropped"], serde_json::json!({}));
    proxy.end_now();
}

#[test]
fn the_reply_comes_from_the_address_that_was_asked() {
    let backend = DatagramBackend::echo();
    for (bind, clients) in [
        (
            "0.0.0.0:0",
            &[("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "127.0.0.2")][..],
        ),
        (
            "[::]:0",
            &[
                ("[::1]", "[::1]"),
                ("127.0.0.1", "127.0.0.3"),
                ("127.0.0.9", "127.0.0.4"),
            ],
        ),
    ] {
        let lines = format!("bind = {bind:?}\nipv6_only = false");
        let proxy = Proxy::start(&udp_config(&[&backend.address], &lines, "", ""));
        let address = proxy.address("web");
        let port = address.rsplit_once(':').expect("a port").1;
        for (from, to) in clients {
            let client = client_at(&format!("{from}:0"));
            let to = format!("{to}:{port}");
            assert_eq!(ask(&client, &to, b"who?"), b"who?", "{to}");
        }
        // From one socket to two addresses: two sessions, and each reply from where it was asked.
        let client = client_at("127.0.0.5:0");
        for to in ["127.0.0.6", "127.0.0.7", "127.0.0.6"] {
            ask(&client, &format!("{to}:{port}"), b"who?");
        }
        assert_eq!(listener(&proxy)["sessions"], clients.len() + 2);
        proxy.end_now();
    }
}

#[test]
fn both_families_on_either_side() {
    let ipv4 = DatagramBackend::echo();
    let socket = std::net::UdpSocket::bind("[::1]:0").expect("IPv6 is there");
    let ipv6 = DatagramBackend::on(socket, |heard| vec![heard.to_vec()]);
    for bind in ["127.0.0.1:0", "[::1]:0"] {
        for backend in [&ipv4, &ipv6] {
            let lines = format!("bind = {bind:?}");
            let proxy = Proxy::start(&udp_config(&[&backend.address], &lines, "", ""));
            let client = client_at(bind);
            assert_eq!(ask(&client, &proxy.address("web"), b"x"), b"x");
            proxy.end_now();
        }
    }
}

#[test]
fn a_port_can_be_served_for_both_protocols() {
    let tcp = common::Backend::echo();
    let udp = DatagramBackend::named("udp");
    let address = common::backend::free_address();
    let text = format!(
        "[listeners.a]\nbind = {address:?}\nupstream = \"tcp\"\n\
         [listeners.b]\nbind = {address:?}\nupstream = \"udp\"\nprotocol = \"udp\"\n\
         [upstreams.tcp]\nbackends = [{:?}]\n[upstreams.udp]\nbackends = [{:?}]\n\
         [runtime]\ndrain_timeout = \"1s\"\n",
        tcp.address, udp.address
    );
    let proxy = Proxy::start(&text);
    common::essentials::there_and_back(&common::connect(&address), 1000);
    assert_eq!(ask_text(&client_at("127.0.0.1:0"), &address), "udp");
    proxy.end();
}

#[test]
fn a_port_that_is_taken_is_refused() {
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let bind = format!("bind = \"{}\"", taken.local_addr().expect("it is bound"));
    let (code, said) = Proxy::fails(&udp_config(&["127.0.0.1:9"], &bind, "", ""));
    assert_eq!(code, Some(1));
    assert!(said.contains("in use by another process"), "{said}");
    let backend = DatagramBackend::echo();
    let proxy = Proxy::start(&udp_config(&[&backend.address], "", "", ""));
    let bind = format!("bind = \"{}\"", proxy.address("web"));
    let (code, said) = Proxy::fails(&udp_config(&["127.0.0.1:9"], &bind, "", ""));
    assert_eq!(code, Some(1), "a second instance");
    assert!(said.contains("in use by another process"), "{said}");
    proxy.end_now();
}
