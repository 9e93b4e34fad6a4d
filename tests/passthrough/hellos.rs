//! Hellos in pieces, with all that may be in one, and such as are none.

use std::io::{Read, Write};
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::client::{EchGreaseConfig, EchMode};
use rustls::crypto::aws_lc_rs::{default_provider, hpke::ALL_SUPPORTED_SUITES};

use crate::common::socket::{ending_after, finish};
use crate::common::{Backend, Ending, Proxy, read_to_end, told};
use crate::peers::{exchange, hello, secure as secured};
use crate::pki::{Pki, VERSIONS};
use crate::{secure, split};

/// The handshake message in `bytes`, a single record, as records with so many bytes each.
fn cut(bytes: &[u8], each: usize) -> Vec<u8> {
    let (header, message) = bytes.split_at(5);
    let records = message.chunks(each).map(|piece| {
        let length = (piece.len() as u16).to_be_bytes();
        [&header[..3], &length, piece].concat()
    });
    records.collect::<Vec<_>>().concat()
}

/// Sends `pieces` and FIN, and hears where that came.
fn reaches(proxy: &Proxy, pieces: &[&[u8]]) -> Vec<u8> {
    let mut client = proxy.connect();
    client.set_tcp_nodelay(true).expect("it can be set");
    for piece in pieces {
        client.write_all(piece).expect("it is taken");
    }
    finish(&client);
    read_to_end(&mut client)
}

#[test]
fn a_hello_that_is_split_at_any_byte_reaches_its_backend_untouched() {
    let pki = Pki::new();
    let (a, heard) = Backend::recording("a");
    let others = Backend::named("others");
    let proxy = Proxy::start(&split([&a.address, &others.address, &others.address], ""));
    // The short one of TLS 1.2, and one with the long keys of today.
    for (version, step) in [(VERSIONS[0], 1), (VERSIONS[1], 37)] {
        let (_, bytes) = hello(&Arc::new(pki.client_of(&[version])), "a.test");
        for at in (1..bytes.len()).step_by(step) {
            let (first, second) = bytes.split_at(at);
            assert_eq!(reaches(&proxy, &[first, second]), b"a", "{at}");
            assert!(told(&heard) == bytes, "{at}");
        }
        let single: Vec<_> = bytes.chunks(1).collect();
        assert_eq!(reaches(&proxy, &single), b"a");
        assert!(told(&heard) == bytes);
        for each in [1, 3, 50, 200] {
            let records = cut(&bytes, each);
            for segment in [1, 17, records.len()] {
                let pieces: Vec<_> = records.chunks(segment).collect();
                assert_eq!(reaches(&proxy, &pieces), b"a", "{each} {segment}");
                assert!(told(&heard) == records, "{each} {segment}");
            }
        }
        // With what follows it.
        let more = [&bytes[..], b"more of the same"].concat();
        assert_eq!(reaches(&proxy, &[&more]), b"a");
        assert!(told(&heard) == more);
    }
    proxy.end();
}

#[test]
fn a_hello_with_extensions_that_mean_nothing_is_routed() {
    let pki = Pki::new();
    let (a, others) = (secure(&pki, &pki.leaf("a.test")), Backend::named("others"));
    let proxy = Proxy::start(&split([&a.address, &others.address, &others.address], ""));
    let suite = ALL_SUPPORTED_SUITES[0];
    let (key, _) = suite.generate_key_pair().expect("a key");
    let ech = EchMode::Grease(EchGreaseConfig::new(suite, key));
    let builder = ClientConfig::builder_with_provider(default_provider().into()).with_ech(ech);
    let anyone = crate::peers::anyone_by(builder.expect("TLS 1.3 has it"));
    let mut stream = secured(&Arc::new(anyone), "a.test", proxy.connect()).expect("a handshake");
    exchange(&mut stream).expect("an echo");
    drop(stream);
    proxy.end();
}

#[test]
fn a_hello_is_read_up_to_16_kib() {
    let (a, heard) = Backend::recording("a");
    let others = Backend::named("others");
    let mut proxy = Proxy::start(&split([&a.address, &others.address, &others.address], ""));
    let pki = Pki::new();
    let of = |count: u8| {
        let mut config = pki.client_of(&[VERSIONS[0]]);
        // Names of protocols are the easiest to have many bytes of.
        config.alpn_protocols = (0..count).map(|at| vec![b'a' + at % 26; 250]).collect();
        hello(&Arc::new(config), "a.test").1
    };
    let fits = of(60);
    assert!((15_000..16_384).contains(&fits.len()), "{}", fits.len());
    assert_eq!(reaches(&proxy, &[&fits]), b"a");
    assert!(told(&heard) == fits);
    assert_eq!(proxy.next_session().reason, "client-closed");

    let mut client = proxy.connect();
    // It is reset when enough of it has come.
    assert_eq!(ending_after(&mut client, &of(80)), Ending::Reset);
    assert_eq!(proxy.next_session().reason, "long-hello");
    proxy.end();
}

#[test]
fn a_malformed_hello_is_refused_with_a_reason() {
    let others = Backend::named("others");
    let mut proxy = Proxy::start(&split([&others.address; 3].map(String::as_str), ""));
    let (_, good) = hello(&Arc::new(Pki::new().client_of(&[VERSIONS[0]])), "b.a.test");
    let at = good.windows(8).position(|it| it == b"b.a.test");
    let at = at.expect("the name is in it");
    let with = |place: usize, bytes: &[u8]| {
        let mut changed = good.clone();
        changed[place..place + bytes.len()].copy_from_slice(bytes);
        changed
    };
    for (what, bytes) in [
        ("NUL in the name", with(at, b"a.test\0\0")),
        ("CR LF in the name", with(at, b"a\r\n.test")),
        (
            "the name is longer than what it is in",
            with(at - 2, b"\xff\xff"),
        ),
        ("another message than a hello", with(5, b"\x02")),
        ("a record without content", b"\x16\x03\x01\x00\x00".to_vec()),
        ("the session's name is too long", with(43, b"\xff")),
    ] {
        let mut client = proxy.connect();
        client.write_all(&bytes).expect("it is taken");
        let mut answer = Vec::new();
        let error = client.read_to_end(&mut answer).expect_err(what);
        assert_eq!(
            crate::common::socket::ending_of(&error),
            Ending::Reset,
            "{what}"
        );
        let session = proxy.next_session();
        assert_eq!(
            (session.reason.as_str(), session.backend.as_str()),
            ("bad-hello", "-"),
            "{what}"
        );
        assert!(!session.detail.is_empty(), "{what}");
        println!("{what}: {}", session.detail);
    }
    assert_eq!(others.accepted(), 0);
    proxy.end();
}

#[test]
fn a_hello_that_does_not_come_to_its_end_is_told_apart() {
    let others = Backend::named("others");
    let lines = "timeouts = { handshake = \"300ms\" }";
    let addresses = [&others.address; 3].map(String::as_str);
    let mut proxy = Proxy::start(&split(addresses, lines));
    let (_, bytes) = hello(&Arc::new(Pki::new().client()), "a.test");
    for sent in [1, 6, bytes.len() - 1] {
        let mut client = proxy.connect();
        client.write_all(&bytes[..sent]).expect("it is taken");
        assert_eq!(crate::common::ending(&mut client), Ending::Reset);
        assert_eq!(proxy.next_session().reason, "handshake-timeout", "{sent}");

        let mut client = proxy.connect();
        client.write_all(&bytes[..sent]).expect("it is taken");
        finish(&client);
        let _ = client.read(&mut [0]);
        assert_eq!(proxy.next_session().reason, "client-left", "{sent}");
    }
    proxy.end();
}
