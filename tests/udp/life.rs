//! Reload, drain and end.

use std::time::Duration;

use rustix::process::Signal;

use crate::common::datagrams::{DatagramBackend, ask, ask_text, client, hears_nothing, udp_config};
use crate::common::{Proxy, backend::free_address, eventually, now};
use crate::{closed, dropped, listener};

#[test]
fn sessions_live_on_through_reloads() {
    let (a, b) = (DatagramBackend::named("a"), DatagramBackend::named("b"));
    let address = free_address();
    let bind = format!("bind = {address:?}");
    let tables = "[runtime]\nworkers = 2\n";
    let with = |backends: &[&str]| udp_config(backends, &bind, "", tables);
    let proxy = Proxy::start(&with(&[&a.address]));
    let clients: Vec<_> = (0..20).map(|_| client()).collect();
    for client in &clients {
        assert_eq!(ask_text(client, &address), "a");
    }
    // Also when their backend is not in the configuration any more.
    assert_eq!(proxy.reload(&with(&[&b.address]))["message"], "reloaded");
    for client in &clients {
        assert_eq!(ask_text(client, &address), "a");
    }
    assert_eq!(ask_text(&client(), &address), "b");
    assert_eq!(listener(&proxy)["sessions"], 21);
    proxy.end_now();
}

#[test]
fn after_the_order_to_end_sessions_go_on_and_none_begins() {
    let backend = DatagramBackend::echo();
    let tables = "[runtime]\ndrain_timeout = \"2s\"\n";
    let mut proxy = Proxy::start(&udp_config(&[&backend.address], "", "", tables));
    let address = proxy.address("web");
    let live = client();
    ask(&live, &address, b"x");
    proxy.signal(Signal::TERM);
    let began = now();
    eventually("the process to drain", || {
        (dropped(&proxy, "draining") > 0 || {
            client().send_to(b"x", &address).expect("it is sent");
            false
        })
        .then_some(())
    });
    let late = client();
    late.send_to(b"x", &address).expect("it is sent");
    hears_nothing(&late);
    assert_eq!(ask(&live, &address, b"still?"), b"still?");
    assert_eq!(proxy.wait_exit().code(), Some(0));
    assert!(began.elapsed() > Duration::from_millis(1_500));
}

#[test]
fn the_process_ends_with_its_last_session() {
    let backend = DatagramBackend::echo();
    let proxy = Proxy::start(&udp_config(&[&backend.address], "", "responses = 1", ""));
    let address = proxy.address("web");
    ask(&client(), &address, b"x");
    eventually("the end of the session", || {
        (closed(&proxy, "answered") == 1).then_some(())
    });
    proxy.end();
}

#[test]
fn a_listener_that_is_removed_serves_its_sessions_to_their_end() {
    let backend = DatagramBackend::echo();
    let (address, other) = (free_address(), free_address());
    let both = |both: bool| {
        let second = match both {
            true => format!(
                "[listeners.b]\nbind = {address:?}\nprotocol = \"udp\"\nupstream = \"app\"\n"
            ),
            false => String::new(),
        };
        udp_config(
            &[&backend.address],
            &format!("bind = {other:?}"),
            "",
            &second,
        )
    };
    let proxy = Proxy::start(&both(true));
    let live = client();
    ask(&live, &address, b"x");
    assert_eq!(proxy.reload(&both(false))["message"], "reloaded");
    assert_eq!(ask(&live, &address, b"y"), b"y");
    let late = client();
    late.send_to(b"x", &address).expect("it is sent");
    hears_nothing(&late);
    proxy.end_now();
}
