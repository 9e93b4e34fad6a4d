//! Clients' certificates.

use std::sync::Arc;

use crate::common::{Backend, Proxy};
use crate::peers::{openssl, openssl_says, visit};
use crate::pki::{Pki, VERSIONS};
use crate::terminates;

/// The reason and its detail of the session in which this client was refused.
fn refused(proxy: &mut Proxy, config: rustls::ClientConfig) -> (String, String) {
    let outcome = visit(&Arc::new(config), "a.test", &proxy.address("web"));
    outcome.expect_err("it is refused");
    let session = proxy.next_session();
    (session.reason, session.detail)
}

#[test]
fn a_certificate_is_verified_and_where_it_is_optional_it_may_be_missing() {
    let (pki, theirs, others) = (Pki::new(), Pki::new(), Pki::new());
    let (leaf, backend) = (pki.leaf("a.test"), Backend::echo());
    for (kind, is_required) in [("optional", false), ("required", true)] {
        let more = format!("client_auth = {kind:?}, client_ca = {:?}", theirs.ca());
        let mut proxy = Proxy::start(&terminates(&backend, &leaf, &more, ""));
        let address = proxy.address("web");
        for version in VERSIONS {
            let with = |theirs: &crate::pki::Leaf| pki.client_with(&[version], theirs);
            let good = Arc::new(with(&theirs.leaf("a client")));
            visit(&good, "a.test", &address).expect("it is welcome");
            assert_eq!(proxy.next_session().reason, "client-closed");

            let without = pki.client_of(&[version]);
            if is_required {
                let (reason, detail) = refused(&mut proxy, without);
                assert_eq!(reason, "client-tls");
                assert!(detail.contains("it shows no certificate"), "{detail}");
            } else {
                visit(&Arc::new(without), "a.test", &address).expect("it needs none");
                assert_eq!(proxy.next_session().reason, "client-closed");
            }
            for (bad, words) in [
                (
                    others.leaf("a client"),
                    "an authority that is not known here",
                ),
                (theirs.expired("a client"), "expired"),
                (
                    theirs.self_signed("a client"),
                    "an authority that is not known here",
                ),
            ] {
                let (reason, detail) = refused(&mut proxy, with(&bad));
                assert_eq!(reason, "client-tls");
                assert!(detail.contains(words), "{detail}");
            }
        }
        proxy.end();
    }
}

#[test]
fn openssl_shows_its_certificate() {
    let pki = Pki::new();
    let (leaf, backend) = (pki.leaf("a.test"), Backend::echo());
    let more = format!("client_auth = \"required\", client_ca = {:?}", pki.ca());
    let mut proxy = Proxy::start(&terminates(&backend, &leaf, &more, ""));
    let address = proxy.address("web");
    let theirs = pki.leaf("a client");
    let files = [&theirs.cert, &theirs.key].map(|file| file.display().to_string());
    for version in ["-tls1_2", "-tls1_3"] {
        let words = [version, "-cert", &files[0], "-key", &files[1]];
        let mut client = openssl(&address, &words);
        client.say("a word\n");
        client.hears("a word", 1);
        assert!(client.end().0);
        assert_eq!(proxy.next_session().reason, "client-closed");
    }
    let (succeeded, said) = openssl_says(&address, &["-tls1_2"]);
    assert!(!succeeded && said.contains("alert"), "{said}");
    assert_eq!(proxy.next_session().reason, "client-tls");
    proxy.end();
}
