//! Connections that are open ahead, and backends that speak before their TLS handshake.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use crate::common::socket::ending_after;
use crate::common::{Backend, Ending, Proxy, config, ending, eventually, told};
use crate::peers::{self, Served, exchange, serve};
use crate::pki::Pki;

/// The upstream's lines: one worker, two connections ahead, and this beside them.
fn ahead(pki: &Pki, more: &str) -> String {
    format!(
        "pool = {{ preconnect = 2 }}\ntls = {{ ca = {:?} }}\n{more}",
        pki.ca()
    )
}

const ONE_WORKER: &str = "[runtime]\nworkers = 1\n";

#[test]
fn the_first_client_finds_a_connection_whose_handshake_is_over() {
    let pki = Pki::new();
    let handshakes = Arc::new(AtomicUsize::new(0));
    let (tell, served) = mpsc::channel();
    let count = handshakes.clone();
    let backend = peers::backend(
        pki.server(&pki.leaf("127.0.0.1")),
        move |mut stream: Served| {
            let number = count.fetch_add(1, Ordering::SeqCst) + 1;
            let mut word = [0; 6];
            if stream.read_exact(&mut word).is_ok() {
                tell.send(number).expect("the test waits");
                stream.write_all(&word).expect("it is taken");
                peers::echo(stream);
            }
        },
    );
    let mut proxy = Proxy::start(&config(
        &[&backend.address],
        "",
        &ahead(&pki, ""),
        ONE_WORKER,
    ));
    let handshakes_are = |count: usize| {
        eventually("handshakes", || {
            (handshakes.load(Ordering::SeqCst) == count).then_some(())
        });
    };
    handshakes_are(2);
    for round in 1..=3 {
        let mut client = proxy.connect();
        exchange(&mut client).expect("an echo");
        assert!(told(&served) <= 1 + round, "it was open before");
        // Another takes its place.
        handshakes_are(2 + round);
        crate::common::socket::finish(&client);
        assert_eq!(ending(&mut client), Ending::Fin);
        assert_eq!(proxy.next_session().reason, "client-closed");
    }
    assert_eq!(backend.accepted(), 5);
    proxy.end();
}

#[test]
fn with_a_header_to_send_the_handshake_waits_for_it() {
    let pki = Pki::new();
    let config_of = Arc::new(pki.server(&pki.leaf("127.0.0.1")));
    let (tell, headers) = mpsc::channel();
    let backend = Backend::start(move |mut socket| {
        let mut header = Vec::new();
        while !header.ends_with(b"\r\n") {
            let mut byte = [0];
            match socket.read(&mut byte) {
                Ok(1) => header.push(byte[0]),
                _ => return,
            }
        }
        tell.send(String::from_utf8(header).expect("a line"))
            .expect("the test waits");
        peers::echo(serve(&config_of, socket).expect("then the handshake"));
    });
    let upstream = ahead(&pki, "send_proxy_protocol = \"v1\"");
    let mut proxy = Proxy::start(&config(&[&backend.address], "", &upstream, ONE_WORKER));
    eventually("two connections", || {
        (backend.accepted() == 2).then_some(())
    });
    for _ in 0..3 {
        let mut client = proxy.connect();
        let own = client
            .local_addr()
            .expect("it is connected")
            .as_socket()
            .expect("an address");
        exchange(&mut client).expect("an echo");
        let line = told(&headers);
        let (ip, port) = (own.ip(), own.port());
        assert!(
            line.starts_with(&format!("PROXY TCP4 {ip} 127.0.0.1 {port} ")),
            "{line}"
        );
        crate::common::socket::finish(&client);
        assert_eq!(ending(&mut client), Ending::Fin);
        assert_eq!(proxy.next_session().reason, "client-closed");
    }
    proxy.end();
}

/// What somebody on the way, or the backend, puts before the handshake.
const EARLY: [&[u8]; 3] = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged",
    // Records: of data, and a handshake message that is no hello.
    b"\x17\x03\x03\x00\x06forged",
    b"\x16\x03\x03\x00\x04\x00\x00\x00\x00",
];

#[test]
fn what_a_backend_says_before_its_handshake_never_reaches_a_client() {
    let pki = Pki::new();
    let server = Arc::new(pki.server(&pki.leaf("127.0.0.1")));
    for early in EARLY {
        for more in [
            "",
            "send_proxy_protocol = \"v2\"",
            "pool = { preconnect = 2 }",
            "pool = { preconnect = 2 }\nsend_proxy_protocol = \"v2\"",
        ] {
            let (server, announced) = (server.clone(), more.contains("v2"));
            let backend = Backend::start(move |mut socket| {
                let _ = socket.write_all(early);
                let header = &mut [0; 28][..if announced { 28 } else { 0 }];
                if socket.read_exact(header).is_ok()
                    && let Ok(served) = serve(&server, socket)
                {
                    peers::echo(served);
                }
            });
            let upstream = format!("tls = {{ ca = {:?} }}\n{more}", pki.ca());
            let mut proxy = Proxy::start(&config(&[&backend.address], "", &upstream, ONE_WORKER));
            if more.contains("preconnect") {
                eventually("a connection ahead", || {
                    (backend.accepted() > 0).then_some(())
                });
            }
            let what = format!("{more}: {}", String::from_utf8_lossy(early));
            let mut client = proxy.connect();
            let end = ending_after(&mut client, b"a word");
            assert_eq!(end, Ending::Reset, "{what}");
            let session = proxy.next_session();
            assert_eq!(
                (session.reason.as_str(), session.bytes_sent),
                ("backend-tls", 0),
                "{what}"
            );
            proxy.end();
        }
    }
}

#[test]
fn a_connection_ahead_that_has_spoken_too_early_is_replaced_by_a_fresh_one() {
    let pki = Pki::new();
    let server = Arc::new(pki.server(&pki.leaf("127.0.0.1")));
    let number = AtomicUsize::new(0);
    let held = Arc::new(Mutex::new(Vec::new()));
    let kept = held.clone();
    let backend = Backend::start(move |mut socket| {
        if number.fetch_add(1, Ordering::SeqCst) < 2 {
            socket.write_all(b"forged").expect("it is taken");
            kept.lock().expect("nobody panicked").push(socket);
            return;
        }
        // The header of an IPv4 client.
        if socket.read_exact(&mut [0; 28]).is_ok() {
            peers::echo(serve(&server, socket).expect("then the handshake"));
        }
    });
    let upstream = ahead(&pki, "send_proxy_protocol = \"v2\"");
    let mut proxy = Proxy::start(&config(&[&backend.address], "", &upstream, ONE_WORKER));
    eventually("what was said to be on its way", || {
        (held.lock().expect("nobody panicked").len() == 2).then_some(())
    });
    let mut client = proxy.connect();
    exchange(&mut client).expect("an echo of its own word");
    crate::common::socket::finish(&client);
    assert_eq!(ending(&mut client), Ending::Fin);
    let session = proxy.next_session();
    assert_eq!(
        (session.reason.as_str(), session.bytes_sent),
        ("client-closed", 6)
    );
    proxy.end();
}

#[test]
fn a_header_that_a_reload_asks_for_never_goes_into_an_established_stream() {
    let pki = Pki::new();
    let server = Arc::new(pki.server(&pki.leaf("127.0.0.1")));
    let (opened, secured) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
    let count = secured.clone();
    let backend = Backend::start(move |mut socket| {
        // Those that were opened before the reload begin with TLS, all others with the header.
        let announced = opened.fetch_add(1, Ordering::SeqCst) >= 2;
        if announced && socket.read_exact(&mut [0; 28]).is_err() {
            return;
        }
        if let Ok(served) = serve(&server, socket) {
            count.fetch_add(1, Ordering::SeqCst);
            peers::echo(served);
        }
    });
    let with = |more: &str| config(&[&backend.address], "", &ahead(&pki, more), ONE_WORKER);
    let mut proxy = Proxy::start(&with(""));
    eventually("two connections that are handshaken", || {
        (secured.load(Ordering::SeqCst) == 2).then_some(())
    });
    let reloaded = proxy.reload(&with("send_proxy_protocol = \"v2\""));
    assert_eq!(reloaded["message"], "reloaded");
    for _ in 0..3 {
        let mut client = proxy.connect();
        exchange(&mut client).expect("an echo");
        crate::common::socket::finish(&client);
        assert_eq!(ending(&mut client), Ending::Fin);
        assert_eq!(proxy.next_session().reason, "client-closed");
    }
    proxy.end();
}
