//! TLS that is passed on as it is, by the name in its first message; and what is on the same port beside it.

mod common;

#[path = "passthrough/hellos.rs"]
mod hellos;
#[path = "tls/peers.rs"]
#[allow(dead_code, reason = "other files of tests use the rest of it")]
mod peers;
#[path = "tls/pki.rs"]
#[allow(dead_code, reason = "other files of tests use the rest of it")]
mod pki;

use std::io::{Read, Write};
use std::sync::Arc;

use common::socket::finish;
use common::{Backend, Ending, Proxy, ending, read_to_end};
use peers::{Other, client, exchange, hello, openssl};
use pki::{Leaf, Pki};

/// A listener with three routes in front of the upstreams `a`, `b` and, for all else, `plain`.
fn split(backends: [&str; 3], lines: &str) -> String {
    let [a, b, plain] = backends;
    format!(
        "[listeners.web]\nbind = \"127.0.0.1:0\"\nupstream = \"plain\"\n{lines}\n\
         routes = [{{ sni = [\"a.test\", \"also.test\"], upstream = \"a\" }},\n\
         {{ sni = [\"first.b.test\"], upstream = \"a\" }},\n\
         {{ sni = \"*.b.test\", upstream = \"b\" }}]\n\
         [upstreams.a]\nbackends = [{a:?}]\n[upstreams.b]\nbackends = [{b:?}]\n\
         [upstreams.plain]\nbackends = [{plain:?}]\n[runtime]\nworkers = 2\n"
    )
}

/// A backend that speaks TLS with this certificate, and echoes.
fn secure(pki: &Pki, leaf: &Leaf) -> Backend {
    peers::backend(pki.server(leaf), peers::echo)
}

#[test]
fn the_first_route_for_the_name_is_taken_and_tls_is_the_backends() {
    let pki = Pki::new();
    let leaves = ["a.test", "*.b.test"].map(|name| pki.leaf(name));
    let [a, b] = leaves.each_ref().map(|leaf| secure(&pki, leaf));
    let plain = Backend::named("plain");
    let config = split([&a.address, &b.address, &plain.address], "");
    let mut proxy = Proxy::start(&config);
    let client_config = Arc::new(peers::anyone());
    for (name, expected) in [
        ("a.test", 0),
        ("A.TEST", 0),
        ("also.test", 0),
        ("first.b.test", 0),
        ("second.b.test", 1),
        ("x.second.B.test", 1),
    ] {
        let mut stream = client(&client_config, name, &proxy.address("web")).expect("a handshake");
        let shown = stream.conn.peer_certificates().expect("it is shown one");
        assert_eq!(&shown[0], leaves[expected].der(), "{name}");
        exchange(&mut stream).expect("an echo");
        peers::finish(&mut stream);
        assert_eq!(stream.read(&mut [0]).expect("close_notify"), 0);
        drop(stream);
        // Which of the two closes first after the end of TLS is up to them.
        let session = proxy.next_session();
        let expected = [&a.address, &b.address][expected];
        assert!(session.reason.ends_with("-closed"), "{}", session.reason);
        assert_eq!(&session.backend, expected, "{name}");
    }
    proxy.end();
}

#[test]
fn servers_and_clients_of_other_makers_meet_through_it() {
    let pki = Pki::new();
    let [a, b] = ["a.test", "x.b.test"].map(|name| pki.leaf(name));
    let (cert, key) = (a.cert.display(), a.key.display());
    let a = Other::openssl(&format!("-cert {cert} -key {key} -rev"));
    let (cert, key) = (b.cert.display(), b.key.display());
    let b = Other::nginx(
        "",
        &format!(
            "server {{ listen ADDRESS ssl; ssl_certificate {cert}; ssl_certificate_key {key};\
             ssl_protocols TLSv1.2 TLSv1.3; return 200 \"$ssl_server_name $ssl_protocol\"; }}"
        ),
    );
    let plain = Backend::named("plain");
    let proxy = Proxy::start(&split([&a.address, &b.address, &plain.address], ""));
    let address = proxy.address("web");
    let ca = pki.ca();
    for version in ["-tls1_2", "-tls1_3"] {
        let words = [
            "-servername",
            "a.test",
            "-CAfile",
            &ca,
            "-verify_return_error",
            version,
        ];
        let mut client = openssl(&address, &words);
        client.say("abc\n");
        client.hears("cba", 1);
        let (succeeded, said) = client.end();
        assert!(succeeded, "{said}");
    }
    let port = address.rsplit_once(':').expect("a port").1;
    for (words, version) in [("--tls-max 1.2", "TLSv1.2"), ("--tlsv1.3", "TLSv1.3")] {
        let words = format!(
            "-sS --cacert {ca} --resolve x.b.test:{port}:127.0.0.1 {words} https://x.b.test:{port}/"
        );
        let said = common::tools::printed("curl", &words);
        assert_eq!(said, Some(format!("x.b.test {version}")));
    }
    proxy.end();
}

#[test]
fn what_has_no_route_goes_to_the_listeners_upstream_on_the_same_port() {
    let pki = Pki::new();
    let routed = Backend::named("routed");
    let (plain, heard) = Backend::recording("plain");
    let addresses = [&*routed.address, &*routed.address, &*plain.address];
    let mut proxy = Proxy::start(&split(addresses, ""));
    let config = Arc::new(pki.client());
    let (_, unknown) = hello(&config, "elsewhere.test");
    // An address is no name, and is not sent.
    let (_, nameless) = hello(&config, "127.0.0.1");
    for bytes in [
        &unknown[..],
        &nameless,
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"x",
        // The beginning of a record, but of data.
        b"\x17\x03\x03\x00\x05hello",
        // A handshake record of another protocol's version.
        b"\x16\x04\x00\x00\x05hello",
    ] {
        let mut client = proxy.connect();
        client.write_all(bytes).expect("it is taken");
        finish(&client);
        assert_eq!(read_to_end(&mut client), b"plain");
        assert_eq!(common::told(&heard), bytes);
        drop(client);
        assert_eq!(proxy.next_session().reason, "client-closed");
    }
    assert_eq!(routed.accepted(), 0);
    proxy.end();
}

#[test]
fn a_client_that_waits_for_the_backend_to_speak_is_connected_after_a_while() {
    let routed = Backend::named("routed");
    let plain = Backend::start(|mut connection| {
        connection.write_all(b"220 hello\r\n").expect("it is taken");
        common::backend::echo(connection);
    });
    let addresses = [&*routed.address, &*routed.address, &*plain.address];
    let mut proxy = Proxy::start(&split(addresses, "timeouts = { handshake = \"300ms\" }"));
    let began = common::now();
    let mut client = proxy.connect();
    let mut greeting = [0; 11];
    client.read_exact(&mut greeting).expect("a greeting");
    assert_eq!(&greeting, b"220 hello\r\n");
    let took = began.elapsed().as_millis();
    assert!((250..3000).contains(&took), "{took} ms");
    exchange(&mut client).expect("an echo");
    finish(&client);
    assert_eq!(ending(&mut client), Ending::Fin);
    assert_eq!(proxy.next_session().reason, "client-closed");
    proxy.end();
}

#[test]
fn behind_a_header_of_the_proxy_protocol_names_lead_the_same_way() {
    let pki = Pki::new();
    let leaf = pki.leaf("a.test");
    let a = secure(&pki, &leaf);
    let plain = Backend::named("plain");
    let addresses = [&*a.address, &*plain.address, &*plain.address];
    let lines = "accept_proxy_protocol = \"require\"\ntrusted_proxies = [\"127.0.0.0/8\"]";
    let mut proxy = Proxy::start(&split(addresses, lines));
    let config = Arc::new(pki.client());
    let (connection, bytes) = hello(&config, "a.test");
    let mut socket = proxy.connect();
    let header = b"PROXY TCP4 192.0.2.7 198.51.100.1 4000 443\r\n";
    // In one segment.
    socket
        .write_all(&[&header[..], &bytes].concat())
        .expect("it is taken");
    let mut stream = rustls::StreamOwned::new(connection, socket);
    exchange(&mut stream).expect("an echo");
    peers::finish(&mut stream);
    drop(stream);
    let session = proxy.next_session();
    assert!(session.reason.ends_with("-closed"), "{}", session.reason);
    assert_eq!(
        (session.client.as_str(), &session.backend),
        ("192.0.2.7:4000", &a.address)
    );
    proxy.end();
}

#[test]
fn sixty_four_mebibytes_pass_untouched() {
    let pki = Pki::new();
    let a = secure(&pki, &pki.leaf("a.test"));
    let addresses = [&*a.address, &*a.address, &*a.address];
    let mut proxy = Proxy::start(&split(addresses, ""));
    let config = Arc::new(pki.client());
    let mut stream = client(&config, "a.test", &proxy.address("web")).expect("a handshake");
    peers::there_and_back(&mut stream, 64 << 20);
    peers::finish(&mut stream);
    assert_eq!(stream.read(&mut [0]).expect("close_notify"), 0);
    drop(stream);
    let session = proxy.next_session();
    assert!(session.reason.ends_with("-closed"), "{}", session.reason);
    assert!(
        session.bytes_sent > 64 << 20,
        "records are longer than what is in them"
    );
    proxy.end();
}
