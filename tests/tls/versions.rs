//! Versions, and protocols by ALPN.

use std::sync::Arc;

use crate::common::Backend;
use crate::peers::{client, exchange, finish, openssl_says};
use crate::terminating;

#[test]
fn both_versions_are_spoken_and_no_older_one() {
    let backend = Backend::echo();
    let (_pki, mut proxy) = terminating(&backend, "", "");
    let address = proxy.address("web");
    for (version, name) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let (succeeded, said) = openssl_says(&address, &[version]);
        assert!(
            succeeded && said.contains(&format!("New, {name}")),
            "{said}"
        );
        assert_eq!(proxy.next_session().reason, "client-closed");
    }
    for version in ["-tls1", "-tls1_1"] {
        let (succeeded, said) = openssl_says(&address, &[version, "-cipher", "ALL:@SECLEVEL=0"]);
        assert!(!succeeded, "{said}");
        assert!(said.contains("alert handshake failure"), "{said}");
        assert_eq!(proxy.next_session().reason, "client-tls");
    }
    proxy.end();
}

#[test]
fn min_version_1_3_refuses_1_2() {
    let backend = Backend::echo();
    let (_pki, mut proxy) = terminating(&backend, "min_version = \"1.3\"", "");
    let address = proxy.address("web");
    let (succeeded, said) = openssl_says(&address, &["-tls1_3"]);
    assert!(succeeded && said.contains("New, TLSv1.3"), "{said}");
    assert_eq!(proxy.next_session().reason, "client-closed");
    let (succeeded, said) = openssl_says(&address, &["-tls1_2"]);
    assert!(
        !succeeded && said.contains("alert protocol version"),
        "{said}"
    );
    let session = proxy.next_session();
    assert_eq!(session.reason, "client-tls");
    assert!(
        session.detail.contains("SupportedVersions"),
        "{}",
        session.detail
    );
    proxy.end();
}

#[test]
fn the_listeners_first_protocol_that_the_client_knows_is_agreed_on() {
    let backend = Backend::echo();
    let (pki, mut proxy) = terminating(&backend, "alpn = [\"h2\", \"http/1.1\"]", "");
    let address = proxy.address("web");
    for (offered, agreed) in [
        (&["http/1.1", "h2"][..], Some("h2")),
        (&["imap", "http/1.1"], Some("http/1.1")),
        (&[], None),
    ] {
        let mut config = pki.client();
        config.alpn_protocols = offered.iter().map(|it| it.as_bytes().to_vec()).collect();
        let mut stream = client(&Arc::new(config), "a.test", &address).expect("a handshake");
        assert_eq!(stream.conn.alpn_protocol(), agreed.map(str::as_bytes));
        exchange(&mut stream).expect("an echo");
        finish(&mut stream);
        assert_eq!(proxy.next_session().reason, "client-closed");
    }
    for version in ["-tls1_2", "-tls1_3"] {
        let (succeeded, said) = openssl_says(&address, &[version, "-alpn", "imap,irc"]);
        assert!(!succeeded, "{said}");
        assert!(said.contains("alert no application protocol"), "{said}");
        assert_eq!(proxy.next_session().reason, "client-tls");
    }
    proxy.end();
}

#[test]
fn without_protocols_of_its_own_a_listener_agrees_on_none() {
    let backend = Backend::echo();
    let (_pki, proxy) = terminating(&backend, "", "");
    let (succeeded, said) = openssl_says(&proxy.address("web"), &["-alpn", "h2"]);
    assert!(succeeded && said.contains("No ALPN negotiated"), "{said}");
    proxy.end();
}
