use super::super::tests::{Talk, params, self_signed, serving, trusting};
use super::super::{Client, ClientSettings, Pair};
use super::*;

fn pair(names: &[&str]) -> Arc<Pair> {
    self_signed(&params(names)).0
}

fn certificates(pairs: &[&Arc<Pair>]) -> Certificates {
    Certificates::new(&ServerSettings {
        certificates: pairs.iter().map(|pair| (*pair).clone()).collect(),
        ..serving(pairs[0])
    })
}

/// Which of `pairs` are found for a name, in their order.
fn found(pairs: &[&Arc<Pair>], name: &str) -> Vec<usize> {
    let certificates = certificates(pairs);
    let place = |key: &Arc<CertifiedKey>| {
        let mut all = pairs.iter();
        all.position(|pair| Arc::ptr_eq(&pair.certified, key))
    };
    let found = certificates.find(name).iter();
    found.map(|key| place(key).unwrap()).collect()
}

#[test]
fn a_name_in_full_comes_before_a_wildcard_and_a_wildcard_before_the_first() {
    let first = pair(&["first.example"]);
    let wildcard = pair(&["*.b.example"]);
    let exact = pair(&["a.b.example", "c.example"]);
    let all = [&first, &wildcard, &exact];
    assert_eq!(found(&all, "a.b.example"), [2]);
    assert_eq!(found(&all, "c.example"), [2]);
    assert_eq!(found(&all, "x.b.example"), [1]);
    for other in ["b.example", "y.x.b.example", "z.example", "", "."] {
        assert_eq!(found(&all, other), [0], "{other}");
    }
}

#[test]
fn several_keys_for_a_name_are_candidates_in_their_order() {
    let one = pair(&["a.example"]);
    let two = pair(&["b.example"]);
    let three = pair(&["a.example"]);
    let all = [&one, &two, &three];
    assert_eq!(found(&all, "a.example"), [0, 2]);
    assert_eq!(found(&all, "b.example"), [1]);
    // The first goes with others of its names.
    assert_eq!(found(&all, "z.example"), [0, 2]);
}

#[test]
fn who_asks_for_a_name_gets_its_certificate() {
    let (one, by_one) = self_signed(&params(&["a.example"]));
    let (two, by_two) = self_signed(&params(&["b.example"]));
    let settings = ServerSettings {
        certificates: vec![one.clone(), two],
        ..serving(&one)
    };
    let server = Server::new(&settings, "web", &Arc::default());
    for (name, authorities, served) in [
        ("a.example", &by_one, true),
        ("b.example", &by_two, true),
        ("B.Example", &by_two, true),
        ("b.example", &by_one, false),
    ] {
        let mut talk = Talk::new(&Client::new(&trusting(authorities, name), 1), &server);
        assert_eq!(talk.shake_hands(usize::MAX).is_ok(), served, "{name}");
        let lower = name.to_ascii_lowercase();
        assert_eq!(talk.server.name(), Some(&*lower));
    }
}

#[test]
fn a_client_that_asks_for_an_address_asks_for_no_name() {
    let (pair, authorities) = self_signed(&params(&["192.0.2.1"]));
    let settings = ClientSettings {
        server_name: None,
        ..trusting(&authorities, "")
    };
    let server = Server::new(&serving(&pair), "web", &Arc::default());
    let client = Client::new(&settings, 1);
    let mut talk = Talk::new(&client, &server);
    talk.client = client.connect(0, None, Some("192.0.2.1".parse().unwrap()));
    talk.shake_hands(usize::MAX).unwrap();
    assert_eq!(talk.server.name(), None);
}

#[test]
fn a_client_certificate_that_is_required_has_to_be_shown() {
    let (pair, authorities) = self_signed(&params(&["a.example"]));
    let (identity, known) = self_signed(&params(&["client.example"]));
    let (stranger, _) = self_signed(&params(&["client.example"]));
    for (client_auth, shown, accepted) in [
        (ClientAuth::Required(known.clone()), None, false),
        (ClientAuth::Required(known.clone()), Some(&identity), true),
        (ClientAuth::Required(known.clone()), Some(&stranger), false),
        (ClientAuth::Optional(known.clone()), None, true),
        (ClientAuth::Optional(known.clone()), Some(&identity), true),
        (ClientAuth::Optional(known), Some(&stranger), false),
        (ClientAuth::Off, Some(&stranger), true),
    ] {
        let settings = ServerSettings {
            client_auth,
            ..serving(&pair)
        };
        let server = Server::new(&settings, "web", &Arc::default());
        let settings = ClientSettings {
            identity: shown.cloned(),
            ..trusting(&authorities, "a.example")
        };
        let mut talk = Talk::new(&Client::new(&settings, 1), &server);
        let outcome = talk.shake_hands(usize::MAX);
        assert_eq!(outcome.is_ok(), accepted, "{outcome:?}");
        if let Err(failure) = outcome {
            assert!(!failure.client);
        }
    }
}
