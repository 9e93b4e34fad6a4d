//! Which certificate is shown, of which kinds, from which files.

use std::process::Command;

use rcgen::{PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PKCS_RSA_SHA256};

use crate::common::tools::printed;
use crate::common::{Backend, Proxy, config};
use crate::peers::{http, openssl, openssl_says};
use crate::pki::{Leaf, Pki, tls};
use crate::terminating;

/// Whom the certificate is for that openssl is shown.
fn shown(address: &str, words: &[&str]) -> String {
    let (succeeded, said) = openssl_says(address, words);
    assert!(succeeded, "{said}");
    let mut lines = said
        .lines()
        .filter_map(|line| line.strip_prefix("subject="));
    let subject = lines.next().expect("it is shown one").replace(' ', "");
    subject
        .strip_prefix("CN=")
        .expect("a common name")
        .to_owned()
}

#[test]
fn the_certificate_is_that_of_the_name_then_of_a_wildcard_then_the_first() {
    let pki = Pki::new();
    let names = ["first.test", "a.example.test", "*.example.test"];
    let leaves = names.map(|name| pki.leaf(name));
    let backend = Backend::echo();
    let listener = tls(&leaves.each_ref(), "");
    let proxy = Proxy::start(&config(&[&backend.address], &listener, "", ""));
    let address = proxy.address("web");
    for (asked, expected) in [
        ("a.example.test", "a.example.test"),
        ("A.Example.TEST", "a.example.test"),
        ("b.example.test", "*.example.test"),
        ("c.b.example.test", "first.test"),
        ("example.test", "first.test"),
        ("elsewhere.test", "first.test"),
    ] {
        for version in ["-tls1_2", "-tls1_3"] {
            let words = ["-servername", asked, version];
            assert_eq!(shown(&address, &words), expected, "{asked} {version}");
        }
    }
    assert_eq!(shown(&address, &["-noservername"]), "first.test");
    proxy.end();
}

/// The key of `leaf` as another kind of file, written by openssl.
fn rewritten(leaf: &Leaf, command: &[&str], form: &str) -> String {
    let file = leaf.key.with_extension("old");
    let mut openssl = Command::new("openssl");
    openssl
        .args(command)
        .arg("-in")
        .arg(&leaf.key)
        .arg("-out")
        .arg(&file);
    let output = openssl.output().expect("it is installed");
    assert!(output.status.success(), "{output:?}");
    let text = std::fs::read_to_string(&file).expect("it was written");
    assert!(text.contains(form), "{text}");
    leaf.table_with(&file.display().to_string())
}

#[test]
fn keys_of_every_kind_and_form_serve_both_versions_with_a_chain() {
    let pki = Pki::new();
    let leaf = |algorithm| pki.leaf_of_a_chain("a.test", algorithm);
    let ecdsa = leaf(&PKCS_ECDSA_P256_SHA256);
    let (rsa, ed25519) = (leaf(&PKCS_RSA_SHA256), leaf(&PKCS_ED25519));
    let sec1 = rewritten(&ecdsa, &["ec"], "BEGIN EC PRIVATE KEY");
    let pkcs1 = rewritten(&rsa, &["rsa", "-traditional"], "BEGIN RSA PRIVATE KEY");
    let tables = [
        ("ECDSA", ecdsa.table()),
        ("ECDSA", sec1),
        ("RSA-PSS", rsa.table()),
        ("RSA-PSS", pkcs1),
        ("ed25519", ed25519.table()),
    ];
    let backend = Backend::echo();
    let listeners = tables.iter().enumerate().map(|(at, (_, table))| {
        format!(
            "[listeners.l{at}]\nbind = \"127.0.0.1:0\"\nupstream = \"app\"\n\
             tls = {{ certificates = [{table}] }}\n"
        )
    });
    let listeners: String = listeners.collect();
    let proxy = Proxy::start(&format!(
        "{listeners}[upstreams.app]\nbackends = [{:?}]\n",
        backend.address
    ));
    let ca = pki.ca();
    for (at, (kind, _)) in tables.iter().enumerate() {
        let address = proxy.address(&format!("l{at}"));
        for version in ["-tls1_2", "-tls1_3"] {
            let words = [
                version,
                "-CAfile",
                &ca,
                "-verify_return_error",
                "-verify_hostname",
                "a.test",
            ];
            let mut client = openssl(&address, &words);
            client.say("a word\n");
            client.hears("a word", 1);
            let (succeeded, said) = client.end();
            assert!(succeeded, "{kind} {version}: {said}");
            let signed = format!("Peer signature type: {kind}");
            assert!(said.contains(&signed), "{kind} {version}: {said}");
        }
    }
    proxy.end();
}

#[test]
fn of_two_certificates_for_a_name_each_client_is_shown_one_that_it_can_verify() {
    let pki = Pki::new();
    let ecdsa = pki.leaf("a.test");
    let rsa = pki.leaf_with("a.test", &PKCS_RSA_SHA256, |_| ());
    let backend = Backend::echo();
    let listener = tls(&[&ecdsa, &rsa], "");
    let proxy = Proxy::start(&config(&[&backend.address], &listener, "", ""));
    let address = proxy.address("web");
    for name in ["a.test", "unknown.test"] {
        for version in ["-tls1_2", "-tls1_3"] {
            let words = ["-servername", name, version];
            let (_, said) = openssl_says(&address, &words);
            assert!(said.contains("Peer signature type: ECDSA"), "{said}");
            let only = ["-sigalgs", "RSA-PSS+SHA256:RSA+SHA256"];
            let (_, said) = openssl_says(&address, &[&words[..], &only].concat());
            assert!(said.contains("Peer signature type: RSA"), "{said}");
        }
    }
    proxy.end();
}

#[test]
fn curl_gets_what_a_backend_says_without_tls() {
    let backend = http("in the clear");
    let (pki, mut proxy) = terminating(&backend, "alpn = [\"http/1.1\"]", "");
    let address = proxy.address("web");
    let port = address.rsplit_once(':').expect("a port").1;
    for version in ["--tlsv1.2 --tls-max 1.2", "--tlsv1.3"] {
        let words = format!(
            "-sS --cacert {} --resolve a.test:{port}:127.0.0.1 {version} https://a.test:{port}/",
            pki.ca()
        );
        assert_eq!(printed("curl", &words).as_deref(), Some("in the clear"));
        // curl knows where the answer ends, and may be the first to close.
        let reason = proxy.next_session().reason;
        assert!(reason.ends_with("-closed"), "{reason}");
    }
    let stranger = format!("-sS --resolve a.test:{port}:127.0.0.1 https://a.test:{port}/");
    assert_eq!(printed("curl", &stranger), None, "it knows no such root");
    let session = proxy.next_session();
    assert_eq!(session.reason, "client-tls");
    assert!(session.detail.contains("UnknownCA"), "{}", session.detail);
    proxy.end();
}
