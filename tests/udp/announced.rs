//! The PROXY protocol towards backends, read by another implementation.

use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, channel};

use ppp::v2::{Addresses, Header, Protocol};

use crate::common::Proxy;
use crate::common::datagrams::{DatagramBackend, ask, client, client_at, udp_config};
use crate::segments::send_segments;

/// A backend that tells what it hears, and says it back.
fn listening() -> (DatagramBackend, Receiver<Vec<u8>>) {
    let (told, heard) = channel();
    let backend = DatagramBackend::start(move |bytes| {
        // The test may be over.
        let _ = told.send(bytes.to_vec());
        vec![b"heard".to_vec()]
    });
    (backend, heard)
}

fn announcing(backend: &str, bind: &str, which: &str) -> String {
    let announce = format!("send_proxy_protocol = \"v2\"\nproxy_protocol_datagrams = {which:?}");
    crate::common::config(
        &[backend],
        &format!("protocol = \"udp\"\nbind = {bind:?}\nipv6_only = false"),
        &announce,
        "",
    )
}

/// What a header says, and what stands behind it.
fn read(bytes: &[u8]) -> (SocketAddr, SocketAddr, Vec<u8>) {
    let header = Header::try_from(bytes).expect("a header");
    assert_eq!(header.protocol, Protocol::Datagram);
    let (client, destination) = match header.addresses {
        Addresses::IPv4(it) => (
            (it.source_address, it.source_port).into(),
            (it.destination_address, it.destination_port).into(),
        ),
        Addresses::IPv6(it) => (
            (it.source_address, it.source_port).into(),
            (it.destination_address, it.destination_port).into(),
        ),
        other => panic!("{other:?}"),
    };
    (client, destination, bytes[header.len()..].to_vec())
}

#[test]
fn every_datagram_says_who_sent_it_to_whom() {
    let (backend, heard) = listening();
    let proxy = Proxy::start(&announcing(&backend.address, "[::]:0", "every"));
    let address = proxy.address("web");
    let port = address.rsplit_once(':').expect("a port").1;
    for (from, to) in [("127.0.0.1:0", "127.0.0.2"), ("[::1]:0", "[::1]")] {
        let client = client_at(from);
        let to = format!("{to}:{port}");
        for payload in [&b"first"[..], b"", b"third"] {
            assert_eq!(ask(&client, &to, payload), b"heard");
            let (source, destination, rest) = read(&heard.recv().expect("it came"));
            assert_eq!(source, client.local_addr().expect("it is bound"));
            assert_eq!(destination.to_string(), to);
            assert_eq!(rest, payload);
        }
    }
    proxy.end_now();
}

#[test]
fn joined_datagrams_have_a_header_each() {
    let (backend, heard) = listening();
    let proxy = Proxy::start(&announcing(&backend.address, "127.0.0.1:0", "every"));
    let client = client();
    let bytes: Vec<u8> = (0..1_050).map(|at| (at % 251) as u8).collect();
    send_segments(&client, &proxy.address("web"), &bytes, 100);
    for expected in bytes.chunks(100) {
        let (source, _, rest) = read(&heard.recv().expect("it came"));
        assert_eq!(source, client.local_addr().expect("it is bound"));
        assert_eq!(rest, expected);
    }
    proxy.end_now();
}

#[test]
fn only_the_first_of_a_session_does_if_so_wanted() {
    let (backend, heard) = listening();
    let proxy = Proxy::start(&announcing(&backend.address, "127.0.0.1:0", "first"));
    let address = proxy.address("web");
    for _ in 0..2 {
        let client = client();
        for number in 0..3 {
            ask(&client, &address, b"payload");
            let bytes = heard.recv().expect("it came");
            match number {
                0 => assert_eq!(read(&bytes).2, b"payload"),
                _ => assert_eq!(bytes, b"payload"),
            }
        }
    }
    proxy.end_now();
}

#[test]
fn which_datagrams_is_asked_only_where_some_have_a_header() {
    let alone = udp_config(&["127.0.0.1:9"], "", "", "");
    let alone = alone.replace(
        "[upstreams.app]",
        "[upstreams.app]\nproxy_protocol_datagrams = \"first\"",
    );
    let (code, said) = Proxy::fails(&alone);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("send_proxy_protocol = \"v2\" with it"),
        "{said}"
    );
}
