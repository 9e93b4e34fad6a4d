//! Sessions that go on where an earlier one was.

use std::io;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::{ClientConfig, HandshakeKind, SupportedProtocolVersion};

use crate::common::{Backend, Proxy};
use crate::peers::{openssl, visit};
use crate::pki::{Leaf, Pki, VERSIONS, tls};
use crate::{terminates, terminating};

/// A client with this version that remembers sessions, and shows `leaf` if it is asked for a certificate.
fn remembering(
    pki: &Pki,
    version: &'static SupportedProtocolVersion,
    leaf: Option<&Leaf>,
) -> Arc<ClientConfig> {
    let mut config = match leaf {
        Some(leaf) => pki.client_with(&[version], leaf),
        None => pki.client_of(&[version]),
    };
    config.resumption = Resumption::in_memory_sessions(64);
    Arc::new(config)
}

/// Whether the next session of this client is a resumed one.
fn resumes(config: &Arc<ClientConfig>, address: &str) -> io::Result<bool> {
    visit(config, "a.test", address).map(|kind| kind == HandshakeKind::Resumed)
}

fn is_resumed(config: &Arc<ClientConfig>, address: &str) -> bool {
    resumes(config, address).expect("it is served")
}

#[test]
fn a_session_is_resumed_by_any_worker_and_after_a_reload() {
    let (pki, backend) = (Pki::new(), Backend::echo());
    let leaf = pki.leaf("a.test");
    let before = terminates(&backend, &leaf, "", "");
    let after = terminates(
        &backend,
        &leaf,
        "alpn = [\"h2\"]",
        "max_connections = 500\n",
    );
    for version in VERSIONS {
        let proxy = Proxy::start(&before);
        let client = remembering(&pki, version, None);
        // The kernel spreads connections over the workers: one in 2^31 times all 32 come to the same one.
        let first = proxy.address("web");
        assert!(!is_resumed(&client, &first));
        for _ in 0..32 {
            assert!(is_resumed(&client, &first), "{version:?}");
        }
        let line = proxy.reload(&after);
        assert_eq!(line["message"], "reloaded", "{line}");
        for _ in 0..4 {
            assert!(is_resumed(&client, &first), "{version:?}");
        }
        proxy.end();
    }
}

#[test]
fn openssl_resumes() {
    let backend = Backend::echo();
    let (pki, proxy) = terminating(&backend, "", "");
    let address = proxy.address("web");
    for version in ["-tls1_2", "-tls1_3"] {
        let file = pki.path(version).display().to_string();
        for (words, expected) in [("-sess_out", "New, "), ("-sess_in", "Reused, ")] {
            let mut client = openssl(&address, &[version, words, &file]);
            client.say("a word\n");
            client.hears("a word", 1);
            let (succeeded, said) = client.end();
            assert!(succeeded && said.contains(expected), "{version}: {said}");
        }
    }
    proxy.end();
}

/// Two listeners, each with the keys that are given.
fn two(backend: &Backend, leaf: &Leaf, keys: [&str; 2]) -> String {
    let listener = |name, keys| {
        let tls = tls(&[leaf], keys);
        format!("[listeners.{name}]\nbind = \"127.0.0.1:0\"\nupstream = \"app\"\n{tls}")
    };
    format!(
        "{}{}[upstreams.app]\nbackends = [{:?}]\n",
        listener("one", keys[0]),
        listener("two", keys[1]),
        backend.address
    )
}

#[test]
fn a_ticket_of_one_listener_is_worth_nothing_at_another() {
    let (pki, backend) = (Pki::new(), Backend::echo());
    let leaf = pki.leaf("a.test");
    let demanding = format!("client_auth = \"required\", client_ca = {:?}", pki.ca());
    let alike = Proxy::start(&two(&backend, &leaf, ["", ""]));
    let strict = Proxy::start(&two(&backend, &leaf, ["", &demanding]));
    for version in VERSIONS {
        let client = remembering(&pki, version, None);
        let [one, two] = ["one", "two"].map(|name| alike.address(name));
        assert!(!is_resumed(&client, &one) && is_resumed(&client, &one));
        assert!(!is_resumed(&client, &two), "{version:?}");

        // Whoever has shown no certificate must not get in where one is required.
        let client = remembering(&pki, version, None);
        let [one, two] = ["one", "two"].map(|name| strict.address(name));
        assert!(!is_resumed(&client, &one) && is_resumed(&client, &one));
        resumes(&client, &two).expect_err("a certificate is required");
    }
    alike.end();
    strict.end();
}

#[test]
fn a_ticket_from_before_another_policy_for_clients_is_worth_nothing() {
    let (pki, backend) = (Pki::new(), Backend::echo());
    let (others, leaf) = (Pki::new(), pki.leaf("a.test"));
    let theirs = pki.leaf("a client");
    let policy = |kind: &str, ca: &Pki| {
        let more = format!("client_auth = {kind:?}, client_ca = {:?}", ca.ca());
        terminates(&backend, &leaf, &more, "")
    };
    let off = terminates(&backend, &leaf, "", "");
    for version in VERSIONS {
        let proxy = Proxy::start(&off);
        let address = proxy.address("web");
        let known = remembering(&pki, version, Some(&theirs));
        let unknown = remembering(&pki, version, None);
        let change = |config: &str| {
            let line = proxy.reload(config);
            assert_eq!(line["message"], "reloaded", "{line}");
        };
        for client in [&known, &unknown] {
            assert!(!is_resumed(client, &address) && is_resumed(client, &address));
        }
        change(&policy("optional", &pki));
        for client in [&known, &unknown] {
            assert!(!is_resumed(client, &address), "{version:?}");
            assert!(is_resumed(client, &address), "{version:?}");
        }
        change(&policy("required", &pki));
        resumes(&unknown, &address).expect_err("a certificate is required");
        assert!(!is_resumed(&known, &address) && is_resumed(&known, &address));
        change(&policy("required", &others));
        resumes(&known, &address).expect_err("it is of another authority");
        proxy.end();
    }
}

#[test]
fn without_tickets_no_session_is_resumed() {
    let backend = Backend::echo();
    let (pki, proxy) = terminating(&backend, "tickets = false", "");
    let address = proxy.address("web");
    for version in VERSIONS {
        let client = remembering(&pki, version, None);
        for _ in 0..3 {
            assert!(!is_resumed(&client, &address), "{version:?}");
        }
    }
    for version in ["-tls1_2", "-tls1_3"] {
        let mut client = openssl(&address, &[version]);
        client.say("a word\n");
        client.hears("a word", 1);
        let (_, said) = client.end();
        let none = !said.contains("New Session Ticket") && !said.contains("session ticket:");
        assert!(none && said.contains("New, "), "{said}");
    }
    proxy.end();
}
