//! A listener whose sessions live on is wanted again, a backend is gone from the configuration, a burst meets
//! a closed port, a sender is forged.

use std::io::IoSlice;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};

use crate::common::datagrams::{
    DatagramBackend, SILENCE, ask, ask_text, client, client_at, closed_address, hears_nothing,
    udp_config,
};
use crate::common::{Backend, Proxy, backend::free_address};
use crate::listener;

#[test]
fn a_drained_listener_can_be_resumed_while_its_sessions_live() {
    let backend = DatagramBackend::echo();
    let address = free_address();
    let bind = format!("bind = {address:?}");
    let proxy = Proxy::start(&udp_config(&[&backend.address], &bind, "", ""));
    let live = client();
    ask(&live, &address, b"x");
    proxy.done("drain --listener web");
    assert_eq!(ask(&live, &address, b"y"), b"y");
    proxy.done("resume --listener web");
    assert_eq!(ask(&client(), &address, b"z"), b"z");
    assert_eq!(ask(&live, &address, b"y"), b"y");
    proxy.end_now();
}

#[test]
fn a_listener_that_was_removed_comes_back_while_its_sessions_live() {
    let backend = DatagramBackend::echo();
    let (address, other) = (free_address(), free_address());
    let one = udp_config(&[&backend.address], &format!("bind = {other:?}"), "", "");
    let second = format!("[listeners.b]\nbind = {address:?}\nprotocol = \"udp\"\n");
    let both = format!("{one}{second}upstream = \"app\"\n");
    let proxy = Proxy::start(&both);
    let live = client();
    ask(&live, &address, b"x");
    assert_eq!(proxy.reload(&one)["message"], "reloaded");
    assert_eq!(ask(&live, &address, b"y"), b"y");
    assert_eq!(proxy.reload(&both)["message"], "reloaded");
    assert_eq!(ask(&client(), &address, b"z"), b"z");
    assert_eq!(ask(&live, &address, b"y"), b"y");
    proxy.end_now();
}

#[test]
fn sessions_live_on_when_their_listener_becomes_one_for_tcp() {
    let (udp, tcp) = (DatagramBackend::echo(), Backend::echo());
    let address = free_address();
    let bind = format!("bind = {address:?}");
    let proxy = Proxy::start(&udp_config(&[&udp.address], &bind, "", ""));
    let live = client();
    ask(&live, &address, b"x");
    let changed = crate::common::config(&[&tcp.address], &bind, "", "");
    assert_eq!(proxy.reload(&changed)["message"], "reloaded");
    assert_eq!(ask(&live, &address, b"y"), b"y");
    proxy.end_now();
}

#[test]
fn new_clients_are_served_after_a_change_of_ipv6_only_while_sessions_live() {
    let backend = DatagramBackend::echo();
    let address = free_address().replace("127.0.0.1", "[::]");
    let with = |only: bool| {
        let bind = format!("bind = {address:?}\nipv6_only = {only}");
        udp_config(&[&backend.address], &bind, "", "")
    };
    let proxy = Proxy::start(&with(true));
    let address = address.replace("[::]", "[::1]");
    let live = client_at("[::1]:0");
    ask(&live, &address, b"x");
    assert_eq!(proxy.reload(&with(false))["message"], "reloaded");
    // What comes in the moment of the change may be in the queue of a socket that goes.
    crate::common::pass(SILENCE);
    for _ in 0..10 {
        assert_eq!(ask(&client_at("[::1]:0"), &address, b"z"), b"z");
    }
    assert_eq!(ask(&live, &address, b"y"), b"y");
    proxy.end_now();
}

#[test]
fn who_leaves_a_backend_goes_to_one_that_is_in_the_configuration() {
    let (old, removed) = (
        DatagramBackend::named("old"),
        DatagramBackend::named("removed"),
    );
    let new = DatagramBackend::named("new");
    let address = free_address();
    let bind = format!("bind = {address:?}");
    let with = |backends: &[&str]| udp_config(backends, &bind, "", "");
    let proxy = Proxy::start(&with(&[&old.address, &removed.address]));
    let clients = [client(), client()];
    let names: Vec<_> = clients.iter().map(|it| ask_text(it, &address)).collect();
    let at_old = &clients[usize::from(names[0] != "old")];
    assert_eq!(proxy.reload(&with(&[&new.address]))["message"], "reloaded");
    drop(old);
    assert_eq!(ask_text(at_old, &address), "new");
    proxy.end_now();
}

/// Nobody checks it any more: the operator took it out as it has hung, and clients ask again and again.
#[test]
fn sessions_leave_a_backend_that_has_hung_and_was_removed() {
    let mute = Arc::new(AtomicBool::new(false));
    let is_mute = mute.clone();
    let hung = DatagramBackend::start(move |_| match is_mute.load(Ordering::Relaxed) {
        true => Vec::new(),
        false => vec![b"hung".to_vec()],
    });
    let new = DatagramBackend::named("new");
    let address = free_address();
    let bind = format!("bind = {address:?}");
    let with = |backend: &str| udp_config(&[backend], &bind, "session_timeout = \"1s\"", "");
    let proxy = Proxy::start(&with(&hung.address));
    let live = client();
    assert_eq!(ask_text(&live, &address), "hung");
    mute.store(true, Ordering::Relaxed);
    assert_eq!(proxy.reload(&with(&new.address))["message"], "reloaded");
    for _ in 0..20 {
        live.send_to(b"?", &address).expect("it is sent");
        crate::common::pass(SILENCE);
    }
    assert_eq!(ask_text(&live, &address), "new");
    proxy.end_now();
}

/// "Sent or counted": what a closed port has refused was not sent to anybody.
fn every_datagram_is_sent_or_counted(backends: &[&str], send: impl Fn(&UdpSocket, &str)) {
    let proxy = Proxy::start(&udp_config(backends, "", "", ""));
    let address = proxy.address("web");
    let clients: Vec<_> = (0..10).map(|_| client()).collect();
    for client in &clients {
        send(client, &address);
    }
    crate::common::pass(SILENCE);
    let datagrams = listener(&proxy)["datagrams"].clone();
    let dropped = datagrams["dropped"].as_object().expect("a table").values();
    let dropped: u64 = dropped.filter_map(serde_json::Value::as_u64).sum();
    // The backend that is there, if any, answers each datagram once.
    let sent = datagrams["sent"].as_u64().expect("a number");
    assert_eq!(datagrams["received"], sent + dropped, "{datagrams}");
    proxy.end_now();
}

fn five(client: &UdpSocket, address: &str) {
    for number in 0..5 {
        client.send_to(&[number], address).expect("it is sent");
    }
}

fn joined(client: &UdpSocket, address: &str) {
    let to: std::net::SocketAddr = address.parse().expect("an address");
    let sent = sendmsg(
        client.as_raw_fd(),
        &[IoSlice::new(&[7; 1_000])],
        &[ControlMessage::UdpGsoSegments(&100)],
        MsgFlags::empty(),
        Some(&SockaddrStorage::from(to)),
    );
    assert_eq!(sent.expect("the loopback takes it"), 1_000);
}

#[test]
fn a_burst_at_a_closed_port_is_counted() {
    every_datagram_is_sent_or_counted(&[&closed_address()], five);
}

#[test]
fn joined_datagrams_at_a_closed_port_are_counted() {
    every_datagram_is_sent_or_counted(&[&closed_address()], joined);
}

#[test]
fn a_burst_at_a_closed_port_is_counted_or_goes_to_the_next_backend() {
    let backend = DatagramBackend::echo();
    every_datagram_is_sent_or_counted(&[&closed_address(), &backend.address], five);
}

#[test]
fn joined_datagrams_at_a_closed_port_are_counted_or_go_to_the_next_backend() {
    let backend = DatagramBackend::echo();
    every_datagram_is_sent_or_counted(&[&closed_address(), &backend.address], joined);
}

/// A forged sender: the listener itself. Its answer would be its next question.
#[test]
fn what_claims_to_come_from_the_listener_itself_is_not_answered() {
    let backend = DatagramBackend::echo();
    let proxy = Proxy::start(&udp_config(&[&backend.address], "", "", ""));
    let address: std::net::SocketAddr = proxy.address("web").parse().expect("an address");
    let raw = socket2::Socket::new(
        socket2::Domain::IPV4,
        socket2::Type::RAW,
        Some(socket2::Protocol::UDP),
    );
    // Who is not root can't forge.
    let Ok(raw) = raw else { return };
    let port = address.port().to_be_bytes();
    let packet = [&port[..], &port, &[0, 9, 0, 0, b'x']].concat();
    let to = std::net::SocketAddr::new(address.ip(), 0);
    raw.send_to(&packet, &to.into()).expect("it is sent");
    hears_nothing(&client());
    let received = listener(&proxy)["datagrams"]["received"].clone();
    assert!(received.as_u64() < Some(10), "{received} in a circle");
    proxy.end_now();
}
