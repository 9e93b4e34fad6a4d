//! What a client may begin with: hellos in pieces, of any size, with names that are none.

use std::io::{Read, Write};
use std::sync::Arc;

use crate::common::{Backend, Proxy};
use crate::peers::{anyone, client, exchange, hello, openssl_says, visit};
use crate::pki::{Pki, tls};
use crate::terminating;

/// The handshake message in `bytes`, a single record, as records with so many bytes each.
fn cut(bytes: &[u8], each: usize) -> Vec<u8> {
    let (header, message) = bytes.split_at(5);
    let records = message.chunks(each).map(|piece| {
        let length = (piece.len() as u16).to_be_bytes();
        [&header[..3], &length, piece].concat()
    });
    records.collect::<Vec<_>>().concat()
}

#[test]
fn a_hello_may_be_cut_into_records_and_segments_of_any_size() {
    let backend = Backend::echo();
    let (pki, mut proxy) = terminating(&backend, "", "");
    let config = Arc::new(pki.client());
    for each in [1, 2, 7, 100, 1000] {
        let (connection, bytes) = hello(&config, "a.test");
        let mut socket = proxy.connect();
        socket.set_tcp_nodelay(true).expect("it can be set");
        for piece in cut(&bytes, each).chunks(11) {
            socket.write_all(piece).expect("it is taken");
        }
        let mut stream = rustls::StreamOwned::new(connection, socket);
        exchange(&mut stream).expect("an echo");
        crate::peers::finish(&mut stream);
        drop(stream);
        assert_eq!(proxy.next_session().reason, "client-closed", "{each}");
    }
    proxy.end();
}

#[test]
fn a_hello_of_many_kilobytes_is_read() {
    let backend = Backend::echo();
    let (pki, mut proxy) = terminating(&backend, "", "");
    let mut config = pki.client();
    // Names of protocols are the easiest to have many bytes of.
    config.alpn_protocols = (0..110_u8).map(|at| vec![b'a' + at % 26; 250]).collect();
    let config = Arc::new(config);
    let (_, bytes) = hello(&config, "a.test");
    assert!(bytes.len() > 27_000, "{}", bytes.len());
    visit(&config, "a.test", &proxy.address("web")).expect("an echo");
    assert_eq!(proxy.next_session().reason, "client-closed");
    proxy.end();
}

/// A listener with certificates for two names, one of which has a route.
fn routed(pki: &Pki) -> Proxy {
    let leaves = ["a.test", "b.test"].map(|name| pki.leaf(name));
    let (first, second) = (Backend::named("default"), Backend::named("routed"));
    Proxy::start(&format!(
        "[listeners.web]\nbind = \"127.0.0.1:0\"\nupstream = \"default\"\n{}\
         routes = [{{ sni = [\"b.test\", \"*.c.test\"], upstream = \"routed\" }}]\n\
         [upstreams.default]\nbackends = [{:?}]\n[upstreams.routed]\nbackends = [{:?}]\n",
        tls(&leaves.each_ref(), ""),
        first.address,
        second.address
    ))
}

/// Where a client comes that asks for this name.
fn reached(pki: &Pki, name: &str, address: &str) -> String {
    // For other names it is shown the first certificate, which is not for them.
    let config = match ["a.test", "b.test"].contains(&name) {
        true => pki.client(),
        false => anyone(),
    };
    let mut stream = client(&Arc::new(config), name, address).expect("a handshake");
    let mut said = String::new();
    stream
        .read_to_string(&mut said)
        .expect("close_notify at the end");
    said
}

#[test]
fn behind_tls_names_lead_to_their_upstreams() {
    let pki = Pki::new();
    let proxy = routed(&pki);
    let address = proxy.address("web");
    for (name, expected) in [
        ("a.test", "default"),
        ("b.test", "routed"),
        ("x.c.test", "routed"),
        ("y.x.c.test", "routed"),
        ("c.test", "default"),
        ("127.0.0.1", "default"),
    ] {
        assert_eq!(reached(&pki, name, &address), expected, "{name}");
    }
    proxy.end();
}

#[test]
fn a_name_with_control_characters_takes_no_route_and_forges_no_line_of_the_log() {
    let pki = Pki::new();
    let mut proxy = routed(&pki);
    let address = proxy.address("web");
    let (_, bytes) = hello(&Arc::new(pki.client()), "xxxx.b.test");
    let at = bytes.windows(11).position(|it| it == b"xxxx.b.test");
    let at = at.expect("the name is in it");
    for bad in [
        b"b.test\0\0\0\0\0",
        b"\r\nxx.b.test",
        b"b.test\r\nINF",
        b"\x1b[31mb.test",
    ] {
        let mut bytes = bytes.clone();
        bytes[at..at + 11].copy_from_slice(bad);
        let mut socket = proxy.connect();
        socket.write_all(&bytes).expect("it is taken");
        let mut answer = [0; 7];
        socket.read_exact(&mut answer).expect("an answer");
        assert_eq!((answer[0], answer[5]), (21, 2), "a fatal alert: {answer:?}");
        drop(socket);
        let session = proxy.next_session();
        assert_eq!(
            (session.reason.as_str(), session.backend.as_str()),
            ("client-tls", "-")
        );
    }
    // openssl's own hello, with a name that it does not look at.
    let (succeeded, said) = openssl_says(&address, &["-servername", "b.test\r\nINFO forged"]);
    assert!(!succeeded, "{said}");
    assert_eq!(proxy.next_session().reason, "client-tls");
    let lines = proxy.lines();
    assert!(lines.iter().all(serde_json::Value::is_object), "{lines:?}");
    let text = format!("{lines:?}");
    assert!(!text.contains("forged"), "{text}");
    proxy.end();
}
