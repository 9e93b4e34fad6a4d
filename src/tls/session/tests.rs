//! A client's session against a server's, in memory.

use super::super::tests::{Talk, encrypted, hear, params, self_signed, serving, trusting};
use super::super::{
    Client, ClientAuth, ClientSettings, Kind, Server, ServerSettings, Tickets, Version,
};
use super::*;
use crate::time::Instant;
use std::sync::Arc;

const SIZES: [usize; 9] = [1, 2, 3, 5, 7, 100, 1000, 5000, usize::MAX];

#[test]
fn a_handshake_may_come_in_pieces_of_any_size() {
    let (pair, authorities) = self_signed(&params(&["a.example"]));
    for size in SIZES {
        let mut talk = Talk::of(&pair, &trusting(&authorities, "A.example"));
        assert!(talk.client.is_handshaking() && talk.client.handshake().is_none());
        talk.shake_hands(size).unwrap();
        let expected = Some(Handshake {
            version: Version::Tls13,
            resumed: false,
        });
        for session in [&talk.client, &talk.server] {
            assert!(!session.is_handshaking());
            assert_eq!(session.handshake(), expected);
        }
        assert_eq!(talk.server.name(), Some("a.example"));
    }
}

#[test]
fn every_byte_arrives_however_records_are_split() {
    for plain_len in [0, 1, 100, 16_383, 16_384, 16_385, 50_000] {
        let plain: Vec<u8> = (0..plain_len).map(|at| (at % 251) as u8).collect();
        let mut talk = Talk::established();
        for size in [3, 100, 16_401, usize::MAX] {
            let said = encrypted(&mut talk.client, &plain);
            assert!(said.len() <= plain.len() + plain.len().div_ceil(RECORD) * 22);
            let (reply, heard) = hear(&mut talk.server, &said, size).unwrap();
            assert!(heard == plain && reply.is_empty());
            let said = encrypted(&mut talk.server, &plain);
            let (_, heard) = hear(&mut talk.client, &said, size).unwrap();
            assert!(heard == plain);
        }
    }
}

#[test]
fn an_error_leaves_one_alert_and_nothing_after_it() {
    let garbage = [&[23, 3, 3, 0, 32][..], &[7; 32]].concat();
    for count in 1..=3 {
        let mut talk = Talk::established();
        for session in [&mut talk.client, &mut talk.server] {
            let failure = hear(session, &garbage.repeat(count), usize::MAX).unwrap_err();
            assert_eq!(failure.fault.kind(), Kind::Protocol);
            // Alert, close to what it says with what protects it.
            assert_eq!(failure.reply.len(), 5 + 2 + 1 + 16);
            assert_eq!(failure.reply[0], 23);
            let again = hear(session, &garbage, usize::MAX).unwrap_err();
            assert_eq!(again.fault, failure.fault);
            assert!(again.reply.is_empty());
            let mut out = Vec::new();
            assert!(session.encrypt(b"x", &mut out).is_err() && out.is_empty());
        }
    }
}

#[test]
fn what_came_before_an_error_is_plaintext_still() {
    let mut talk = Talk::established();
    let mut said = encrypted(&mut talk.client, b"before");
    said.extend([23, 3, 3, 0, 20]);
    said.extend([7; 20]);
    let mut plain = Vec::new();
    let mut keep = |bytes: &[u8]| plain.extend_from_slice(bytes);
    let heard = talk.server.receive(&mut said, &mut Vec::new(), &mut keep);
    assert!(heard.is_err());
    assert_eq!(plain, b"before");
}

#[test]
fn what_is_no_tls_is_called_so_and_answered_with_an_alert() {
    for said in [
        &b"GET / HTTP/1.0\r\n\r\n"[..],
        &[0; 20],
        &[22, 9, 9, 0, 1, 1],
    ] {
        let mut talk = Talk::established();
        let (pair, authorities) = self_signed(&params(&["a.example"]));
        talk.server = Talk::of(&pair, &trusting(&authorities, "a.example")).server;
        let failure = hear(&mut talk.server, said, usize::MAX).unwrap_err();
        assert_eq!(failure.fault.kind(), Kind::NotTls);
        assert_eq!(failure.fault.to_string(), "what it says is not TLS");
        assert_eq!(failure.reply[0], 21);
        assert_eq!(failure.reply.len(), 7);
    }
}

#[test]
fn an_end_is_heard_and_the_other_direction_lives_on() {
    let mut talk = Talk::established();
    let mut out = encrypted(&mut talk.client, b"last");
    talk.client.finish(&mut out).unwrap();
    let (reply, plain) = hear(&mut talk.server, &out, 7).unwrap();
    assert_eq!(
        (plain.as_slice(), reply.as_slice()),
        (&b"last"[..], &[][..])
    );
    assert!(talk.server.peer_has_finished() && !talk.client.peer_has_finished());
    let mut out = encrypted(&mut talk.server, b"more");
    talk.server.finish(&mut out).unwrap();
    let (_, plain) = hear(&mut talk.client, &out, usize::MAX).unwrap();
    assert_eq!(plain, b"more");
    assert!(talk.client.peer_has_finished());
    // Once more says nothing more.
    let mut out = Vec::new();
    talk.server.finish(&mut out).unwrap();
    assert!(out.is_empty());
}

#[test]
fn what_comes_behind_an_end_is_not_heard() {
    let mut talk = Talk::established();
    let mut said = Vec::new();
    talk.client.finish(&mut said).unwrap();
    said.extend(b"garbage that is no record");
    let (reply, plain) = hear(&mut talk.server, &said, usize::MAX).unwrap();
    assert!(reply.is_empty() && plain.is_empty());
    assert!(talk.server.peer_has_finished());
}

#[test]
fn plaintext_with_the_end_of_a_handshake_is_kept() {
    let (pair, authorities) = self_signed(&params(&["a.example"]));
    let mut talk = Talk::of(&pair, &trusting(&authorities, "a.example"));
    let hello = hear(&mut talk.client, &[], 1).unwrap().0;
    let flight = hear(&mut talk.server, &hello, usize::MAX).unwrap().0;
    let mut said = hear(&mut talk.client, &flight, usize::MAX).unwrap().0;
    said.extend(encrypted(&mut talk.client, b"early"));
    let (_, plain) = hear(&mut talk.server, &said, usize::MAX).unwrap();
    talk.server.keep(&plain);
    assert_eq!(talk.server.early(), b"early");
    assert_eq!(talk.server.take_early(), b"early");
    assert!(talk.server.early().is_empty());
}

/// Whether the second of two connections goes on where the first was.
fn resumes(client: &Client, first: &Server, second: &Server) -> bool {
    let mut resumed = false;
    for server in [first, second] {
        let mut talk = Talk::new(client, server);
        talk.shake_hands(usize::MAX).unwrap();
        let handshake = talk.server.handshake().unwrap();
        assert_eq!(talk.client.handshake(), Some(handshake));
        resumed = handshake.resumed;
    }
    resumed
}

#[test]
fn a_session_is_resumed_by_the_same_listener_alone() {
    let (pair, authorities) = self_signed(&params(&["a.example"]));
    let settings = trusting(&authorities, "a.example");
    let tickets = Arc::new(Tickets::default());
    let server = |context: &str| Server::new(&serving(&pair), context, &tickets);
    assert!(resumes(
        &Client::new(&settings, 1),
        &server("web"),
        &server("web")
    ));
    assert!(!resumes(
        &Client::new(&settings, 1),
        &server("web"),
        &server("other")
    ));
    let other_keys = Server::new(&serving(&pair), "web", &Arc::new(Tickets::default()));
    assert!(!resumes(
        &Client::new(&settings, 1),
        &server("web"),
        &other_keys
    ));
}

#[test]
fn without_tickets_nothing_is_resumed() {
    let (pair, authorities) = self_signed(&params(&["a.example"]));
    let settings = ServerSettings {
        tickets: false,
        ..serving(&pair)
    };
    let server = Server::new(&settings, "web", &Arc::new(Tickets::default()));
    let client = Client::new(&trusting(&authorities, "a.example"), 1);
    assert!(!resumes(&client, &server, &server));
}

#[test]
fn another_policy_about_client_certificates_resumes_nothing() {
    let (pair, authorities) = self_signed(&params(&["a.example"]));
    let tickets = Arc::new(Tickets::default());
    let with = |client_auth| {
        let settings = ServerSettings {
            client_auth,
            ..serving(&pair)
        };
        Server::new(&settings, "web", &tickets)
    };
    let off = with(ClientAuth::Off);
    let optional = with(ClientAuth::Optional(authorities.clone()));
    let (_, others) = self_signed(&params(&["b.example"]));
    let by_others = with(ClientAuth::Optional(others));
    for (first, second) in [
        (&off, &optional),
        (&optional, &off),
        (&optional, &by_others),
    ] {
        let client = Client::new(&trusting(&authorities, "a.example"), 1);
        assert!(!resumes(&client, first, second));
    }
    let client = Client::new(&trusting(&authorities, "a.example"), 1);
    assert!(resumes(&client, &optional, &optional));
}

#[test]
fn workers_remember_for_themselves() {
    let (pair, authorities) = self_signed(&params(&["a.example"]));
    let server = Server::new(&serving(&pair), "web", &Arc::new(Tickets::default()));
    let client = Client::new(&trusting(&authorities, "a.example"), 2);
    for (worker, resumed) in [(0, false), (1, false), (0, true), (1, true)] {
        // Nobody else may take what is remembered.
        let mut talk = Talk {
            client: client.connect(worker, None, None),
            server: server.accept(Instant::default()),
        };
        talk.shake_hands(usize::MAX).unwrap();
        assert_eq!(talk.server.handshake().unwrap().resumed, resumed);
    }
}

/// A client that trusts anyone and asks for `name`. With `retry` its first offer is one that no server takes, so
/// that it is asked for another.
fn asking(name: &str, retry: bool) -> Session {
    use rustls::crypto::aws_lc_rs::kx_group::{MLKEM768, X25519};
    let settings = ClientSettings {
        server_name: None,
        authorities: None,
        identity: None,
    };
    let mut provider = (*super::super::provider()).clone();
    if retry {
        provider.kx_groups = vec![MLKEM768, X25519];
    }
    Client::by(Arc::new(provider), &settings, 1).connect(0, Some(name), None)
}

#[test]
fn a_name_is_never_taken_for_another_connections() {
    let (pair, _) = self_signed(&params(&["a.example"]));
    let server = Server::new(&serving(&pair), "web", &Arc::new(Tickets::default()));
    let accept = || server.accept(Instant::default());
    let mut named = Talk {
        client: asking("a.example", true),
        server: accept(),
    };
    let mut nameless = Talk {
        client: asking("192.0.2.1", false),
        server: accept(),
    };
    let hello = hear(&mut nameless.client, &[], usize::MAX).unwrap().0;
    let flight = hear(&mut nameless.server, &hello, usize::MAX).unwrap().0;
    named.shake_hands(usize::MAX).unwrap();
    let kind = named.server.state().handshake_kind();
    assert_eq!(kind, Some(HandshakeKind::FullWithHelloRetryRequest));
    // In the middle of the other's handshake, whose name was asked for twice.
    let last = hear(&mut nameless.client, &flight, usize::MAX).unwrap().0;
    hear(&mut nameless.server, &last, usize::MAX).unwrap();
    assert!(!nameless.server.is_handshaking());
    assert_eq!(named.server.name(), Some("a.example"));
    assert_eq!(nameless.server.name(), None);
}
