//! Whom the proxy believes to be its backend.

use std::io::{Read, Write};
use std::sync::mpsc;

use rcgen::{IsCa, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::CertificateDer;
use serde_json::Value;

use crate::common::socket::ending_after;
use crate::common::{Backend, Ending, Proxy, config, ending, told};
use crate::peers::{self, echo};
use crate::pki::Pki;

/// `[upstreams.app.tls]` with these keys.
fn started(backend: &str, keys: &str) -> Proxy {
    let upstream = format!("tls = {{ {keys} }}");
    Proxy::start(&config(
        &[backend],
        "",
        &upstream,
        "[runtime]\nworkers = 1\n",
    ))
}

/// A word and its echo, without TLS.
fn exchanges(proxy: &mut Proxy) {
    let mut client = proxy.connect();
    peers::exchange(&mut client).expect("an echo");
    crate::common::socket::finish(&client);
    assert_eq!(ending(&mut client), Ending::Fin);
    assert_eq!(proxy.next_session().reason, "client-closed");
}

/// A client that is refused, and what the log says of the backend.
fn is_refused(proxy: &mut Proxy) -> String {
    let mut client = proxy.connect();
    assert_eq!(ending_after(&mut client, b"a word"), Ending::Reset);
    assert_eq!(proxy.next_session().reason, "backend-tls");
    let line = proxy.wait_message(0, "a backend can't be connected to");
    crate::common::proxy::text(&line, "error")
}

#[test]
fn backends_that_are_not_who_they_should_be_are_refused_in_words() {
    let (pki, others) = (Pki::named("a root"), Pki::new());
    // As after a new key for an authority.
    let of_the_same_name = Pki::named("a root");
    let root = format!("ca = {:?}, server_name = \"b.test\"", pki.ca());
    let as_authority = pki.leaf_with("b.test", &PKCS_ECDSA_P256_SHA256, |params| {
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    });
    let not_yet = pki.leaf_with("b.test", &PKCS_ECDSA_P256_SHA256, |params| {
        params.not_before = rcgen::date_time_ymd(3000, 1, 1);
    });
    for (leaf, words) in [
        (pki.expired("b.test"), "its certificate expired "),
        (not_yet, "is not valid yet: is this machine's clock right?"),
        (
            pki.self_signed("b.test"),
            "is self-signed and not known here: give it as ca",
        ),
        (as_authority, "the certificate of an authority (CA:TRUE)"),
        (
            others.leaf("b.test"),
            "signed by an authority that is not known here (ca)",
        ),
        (
            of_the_same_name.leaf("b.test"),
            "not signed by the authority of that name that is known here (ca)",
        ),
        (
            pki.leaf("c.test"),
            "is for c.test, not for b.test (server_name)",
        ),
    ] {
        let backend = peers::backend(pki.server(&leaf), echo);
        let mut proxy = started(&backend.address, &root);
        let said = is_refused(&mut proxy);
        assert!(said.contains(words), "{said}");
        proxy.end();
    }
}

#[test]
fn without_verification_anyone_is_the_backend_and_the_log_warns_of_it() {
    let pki = Pki::new();
    for leaf in [pki.expired("c.test"), pki.self_signed("c.test")] {
        let backend = peers::backend(pki.server(&leaf), echo);
        let mut proxy = started(&backend.address, "verify = false");
        exchanges(&mut proxy);
        let lines = proxy.lines();
        let warns = |line: &&Value| line["level"] == "WARN" && line.to_string().contains("verif");
        assert!(lines.iter().find(warns).is_some(), "{lines:?}");
        proxy.end();
    }
}

#[test]
fn the_name_is_the_host_of_the_address_or_what_the_configuration_says() {
    let pki = Pki::new();
    let (tell, asked) = mpsc::channel();
    for (name, host, keys, sni) in [
        ("127.0.0.1", "127.0.0.1", "", None),
        ("localhost", "localhost", "", Some("localhost")),
        (
            "b.test",
            "127.0.0.1",
            "server_name = \"b.test\"",
            Some("b.test"),
        ),
        (
            "*.b.test",
            "localhost",
            "server_name = \"X.b.test\"",
            Some("x.b.test"),
        ),
    ] {
        let tell = tell.clone();
        let backend = peers::backend(pki.server(&pki.leaf(name)), move |stream| {
            let name = stream.conn.server_name().map(str::to_owned);
            tell.send(name).expect("the test waits");
            echo(stream);
        });
        let port = backend.address.rsplit_once(':').expect("a port").1;
        let comma = if keys.is_empty() { "" } else { ", " };
        let keys = format!("ca = {:?}{comma}{keys}", pki.ca());
        let mut proxy = started(&format!("{host}:{port}"), &keys);
        exchanges(&mut proxy);
        assert_eq!(told(&asked).as_deref(), sni);
        proxy.end();
    }
}

#[test]
fn a_certificate_that_is_its_own_authority_is_known_by_itself() {
    let pki = Pki::new();
    let leaf = pki.self_signed("b.test");
    let backend = peers::backend(pki.server(&leaf), echo);
    let ca = leaf.cert.display().to_string();
    let mut proxy = started(
        &backend.address,
        &format!("ca = {ca:?}, server_name = \"b.test\""),
    );
    exchanges(&mut proxy);
    proxy.end();
    let mut proxy = started(
        &backend.address,
        &format!("ca = {ca:?}, server_name = \"c.test\""),
    );
    let said = is_refused(&mut proxy);
    assert!(said.contains("not for c.test"), "{said}");
    proxy.end();
}

#[test]
fn a_backend_that_asks_for_a_certificate_is_shown_the_one_there_is() {
    let pki = Pki::new();
    let (leaf, ours) = (pki.leaf("127.0.0.1"), pki.leaf("the proxy"));
    let (tell, shown) = mpsc::channel();
    let backend = peers::backend(pki.demanding_server(&leaf), move |stream| {
        let certificate = stream.conn.peer_certificates();
        let certificate = certificate.map(|list| list[0].clone().into_owned());
        tell.send(certificate).expect("the test waits");
        echo(stream);
    });
    let keys = format!(
        "ca = {:?}, client_cert = {:?}, client_key = {:?}",
        pki.ca(),
        ours.cert,
        ours.key
    );
    let mut proxy = started(&backend.address, &keys);
    exchanges(&mut proxy);
    let shown: Option<CertificateDer<'_>> = told(&shown);
    assert_eq!(shown.as_ref(), Some(ours.der()));
    proxy.end();

    let mut proxy = started(&backend.address, &format!("ca = {:?}", pki.ca()));
    let mut client = proxy.connect();
    assert_eq!(ending_after(&mut client, b"a word"), Ending::Reset);
    let session = proxy.next_session();
    assert_eq!(session.reason, "backend-tls");
    assert!(
        session.detail.contains("CertificateRequired"),
        "{}",
        session.detail
    );
    proxy.end();
}

#[test]
fn a_backend_that_speaks_no_tls_is_refused_in_words() {
    let backend = Backend::start(|mut connection| {
        let mut heard = [0; 1024];
        let _ = connection.read(&mut heard);
        let _ = connection.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let _ = connection.read(&mut heard);
    });
    let mut proxy = started(&backend.address, "verify = false");
    let said = is_refused(&mut proxy);
    assert_eq!(said, "TLS: what it says is not TLS");
    proxy.end();

    let closing = Backend::start(drop);
    let mut proxy = started(&closing.address, "verify = false");
    let said = is_refused(&mut proxy);
    assert!(said.contains("during the handshake"), "{said}");
    proxy.end();
}

#[test]
fn a_backend_that_does_not_answer_the_handshake_costs_connect_timeout() {
    let silent = Backend::start(
        |mut connection| {
            while let Ok(1..) = connection.read(&mut [0; 4096]) {}
        },
    );
    let upstream = "connect_timeout = \"300ms\"\ntls = { verify = false }";
    let mut proxy = Proxy::start(&config(&[&silent.address], "", upstream, ""));
    let mut client = proxy.connect();
    assert_eq!(ending(&mut client), Ending::Reset);
    assert_eq!(proxy.next_session().reason, "connect-timeout");
    proxy.end();
}
