//! What a TLS peer says, cut or held up at every byte of it.

use std::sync::Arc;
use std::time::Duration;

use ringress::ring::sim::{BackendScript, ClientScript, Ending, Layer, Wire};
use ringress::telemetry::Reason;
use ringress::tls::Version;
use rustls::server::NoServerSessionStorage;

use crate::layers::{Mark, Secure, Shaped, keys, pause};
use crate::plan::Plan;
use crate::run::{Outcome, run};
use crate::security::{Dress, Security};

const VERSIONS: [Version; 2] = [Version::Tls12, Version::Tls13];

/// Bytes of a client's hello.
fn hello_len(version: Version) -> usize {
    match Secure::client(keys().client(version)).next(usize::MAX) {
        Wire::Bytes(hello) => hello.len(),
        wire => panic!("a client says {wire:?}"),
    }
}

/// More than a client says in all after its hello.
const AFTER_HELLO: usize = 340;
/// More than a backend says.
const BACKENDS: usize = 1_100;

fn plan(security: Security, clients: usize) -> Plan {
    let mut plan = Plan::quiet(1, vec![BackendScript::Echo]);
    plan.retries = 0;
    plan.max_connections = 10_000;
    plan.buffers = 1024;
    plan.clients = vec![ClientScript::exchange(100); clients];
    plan.security = security;
    plan
}

/// A client for every place, at which `mark` happens to what it says.
fn clients(version: Version, mark: &Mark) -> Plan {
    let places = hello_len(version) + AFTER_HELLO;
    let mark = mark.clone();
    let dress = Dress::new(move |at| {
        let secure = Secure::client(keys().client(version));
        Some(Box::new(Shaped::at(at, mark.clone(), secure)) as Box<dyn Layer>)
    });
    let security = Security {
        dress_client: dress,
        ..Security::terminated()
    };
    plan(security, places)
}

/// A connection to a backend for every `step`th place, at which `mark` happens to what it says.
fn backends(version: Version, mark: &Mark, step: usize) -> Plan {
    // Nobody resumes: all handshakes are of one length.
    let mut config = keys().server(version);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    let config = Arc::new(config);
    let mark = mark.clone();
    let dress = Dress::new(move |number| {
        let secure = Secure::server(&config);
        Some(Box::new(Shaped::at(number * step, mark.clone(), secure)) as Box<dyn Layer>)
    });
    let security = Security {
        dress_backend: dress,
        version,
        ..Security::to_backends()
    };
    plan(security, BACKENDS / step)
}

fn assert_kept(outcome: &Outcome) {
    let broken = outcome.broken_promises();
    assert!(broken.is_empty(), "{:#?}", &broken[..broken.len().min(5)]);
}

#[test]
fn a_client_that_finishes_at_any_byte_has_left_or_truncated_or_closed() {
    for version in VERSIONS {
        let outcome = run(&clients(version, &Mark::Do(Wire::Finish)));
        assert_kept(&outcome);
        let reasons: Vec<_> = (0..outcome.clients.len())
            .map(|client| outcome.reason_of(client))
            .collect();
        let order = [
            Reason::ClientLeft,
            Reason::ClientTruncated,
            Reason::ClientClosed,
        ];
        let ranks: Vec<_> = reasons
            .iter()
            .map(|reason| order.iter().position(|other| Some(*other) == *reason))
            .collect();
        assert!(!ranks.contains(&None) && ranks.is_sorted(), "{reasons:?}");
        for reason in order {
            assert!(outcome.sessions_of(reason) > 10, "{version:?} {reason:?}");
        }
        assert!(outcome.sessions_of(Reason::ClientLeft) > hello_len(version));
    }
}

#[test]
fn a_client_that_resets_at_any_byte_has_reset() {
    for version in VERSIONS {
        let outcome = run(&clients(version, &Mark::Do(Wire::Reset)));
        assert_kept(&outcome);
        let (reset, closed) = (
            outcome.sessions_of(Reason::ClientReset),
            outcome.sessions_of(Reason::ClientClosed),
        );
        assert_eq!(reset + closed, outcome.sessions.len());
        assert!(reset > hello_len(version) + 50 && closed > 10, "{reset}");
    }
}

#[test]
fn a_client_that_falls_silent_at_any_byte_of_its_handshake_is_let_go_of_in_time() {
    for version in VERSIONS {
        let mut plan = clients(version, &Mark::Silence);
        plan.clients.truncate(hello_len(version) + 30);
        let outcome = run(&plan);
        assert_kept(&outcome);
        assert_eq!(
            outcome.sessions_of(Reason::HandshakeTimeout),
            plan.clients.len()
        );
        for session in &outcome.sessions {
            let over = session.duration.checked_sub(plan.handshake);
            assert!(over.is_some_and(|over| over < Duration::from_millis(10)));
        }
        assert_eq!(outcome.attempts, [0]);
    }
}

#[test]
fn a_backend_that_ends_at_any_byte_is_never_taken_for_one_that_has_finished() {
    for version in VERSIONS {
        for (wire, step) in [(Wire::Finish, 1), (Wire::Reset, 3)] {
            let outcome = run(&backends(version, &Mark::Do(wire.clone()), step));
            assert_kept(&outcome);
            let broken = match wire {
                Wire::Finish => Reason::BackendTruncated,
                _ => Reason::BackendReset,
            };
            let expected = [Reason::BackendTls, broken, Reason::ClientClosed];
            // The very first is reset while it connects.
            let refused = outcome.sessions_of(Reason::NoBackend);
            assert_eq!(refused, usize::from(wire == Wire::Reset));
            for session in &outcome.sessions {
                let known = [&expected[..], &[Reason::NoBackend]].concat();
                assert!(known.contains(&session.reason), "{session:?}");
            }
            for reason in expected {
                let met = outcome.sessions_of(reason);
                assert!(met > 5, "{version:?} {reason:?}: {met}");
            }
        }
    }
}

/// Everybody has heard everything, and nothing had to be nudged on.
fn assert_all_served(mut plan: Plan) {
    plan.lively = true;
    let outcome = run(&plan);
    assert_kept(&outcome);
    assert_eq!(
        outcome.sessions_of(Reason::ClientClosed),
        plan.clients.len()
    );
    for client in &outcome.clients {
        assert_eq!((client.received, client.ending), (100, Ending::Fin));
    }
}

#[test]
fn what_clients_say_may_come_in_two_pieces_wherever_they_are_parted() {
    for version in VERSIONS {
        assert_all_served(clients(version, &pause(3)));
    }
}

#[test]
fn what_backends_say_may_come_in_two_pieces_wherever_they_are_parted() {
    for version in VERSIONS {
        assert_all_served(backends(version, &pause(3), 2));
    }
}

#[test]
fn everything_may_come_byte_by_byte() {
    let dress = Dress::new(|_| {
        let marks = (0..1000).map(|at| (at, Mark::Do(Wire::Pause(Duration::from_micros(50)))));
        let secure = Secure::client(keys().client(Version::Tls13));
        Some(Box::new(Shaped::new(secure, marks)) as Box<dyn Layer>)
    });
    let security = Security {
        dress_client: dress,
        ..Security::both()
    };
    assert_all_served(plan(security, 20));
}
