//! Records of all sizes, ends at every point, and clients that keep to no rule once they are in.

use std::time::Duration;

use ringress::ring::sim::{BackendScript, ClientScript, Ending, Layer, Step, Wire};
use ringress::telemetry::Reason;
use ringress::tls::Version;

use crate::layers::{Blurting, Mark, Secure, Shaped, keys, pause};
use crate::plan::Plan;
use crate::policies::assert_all_heard;
use crate::raw::{Raw, Record};
use crate::run::{Outcome, run};
use crate::security::{Dress, Security};

const VERSIONS: [Version; 2] = [Version::Tls12, Version::Tls13];

/// What a TLS 1.3 client says in its second flight.
const SECOND_FLIGHT: usize = 64;

fn plan(security: Security, backend: BackendScript, clients: Vec<ClientScript>) -> Plan {
    let mut plan = Plan::quiet(1, vec![backend]);
    plan.clients = clients;
    plan.security = security;
    plan
}

fn hello() -> (Vec<u8>, Secure) {
    let mut client = Secure::client(keys().client(Version::Tls13));
    match client.next(usize::MAX) {
        Wire::Bytes(hello) => (hello, client),
        wire => panic!("a client says {wire:?}"),
    }
}

fn assert_kept(outcome: &Outcome) {
    let broken = outcome.broken_promises();
    assert!(broken.is_empty(), "{:#?}", &broken[..broken.len().min(5)]);
}

#[test]
fn records_of_every_size_arrive() {
    let sizes = (1..=300).chain([16_383, 16_384, 16_385, 40_000]);
    let clients = sizes.map(|size| {
        let records = Step::Send {
            bytes: 3 * size + 8,
            chunk: size as u32,
            pause: Duration::ZERO,
        };
        ClientScript::new(vec![records, Step::Finish, Step::ReadToEnd])
    });
    let clients: Vec<_> = clients.collect();
    for version in VERSIONS {
        let security = Security {
            version,
            ..Security::both()
        };
        let mut plan = plan(security, BackendScript::Echo, clients.clone());
        plan.lively = true;
        let outcome = run(&plan);
        assert_kept(&outcome);
        for client in &outcome.clients {
            assert_eq!((client.received, client.ending), (client.sent, Ending::Fin));
        }
    }
}

#[test]
fn a_client_may_say_its_end_at_any_point_and_send_no_fin() {
    for security in [
        Security::terminated(),
        Security::both(),
        Security::passed_on(),
    ] {
        let script =
            |bytes| ClientScript::new(vec![Step::send(bytes), Step::SayEnd, Step::ReadToEnd]);
        let clients = (8..60).chain([20_000, 300_000]).map(script).collect();
        let mut plan = plan(security, BackendScript::Echo, clients);
        plan.lively = true;
        let outcome = run(&plan);
        assert_kept(&outcome);
        for client in &outcome.clients {
            assert_eq!((client.received, client.ending), (client.sent, Ending::Fin));
        }
    }
}

#[test]
fn a_backend_may_say_its_end_at_any_point_and_send_no_fin() {
    for security in [Security::to_backends(), Security::both()] {
        for bytes in (0..20).chain([20_000, 300_000]) {
            let backend = BackendScript::Steps(vec![
                Step::Expect(8),
                Step::send(bytes),
                Step::SayEnd,
                Step::ReadToEnd,
            ]);
            let client = ClientScript::new(vec![
                Step::send(50),
                Step::Expect(bytes + 1),
                Step::Finish,
                Step::ReadToEnd,
            ]);
            let mut plan = plan(security.clone(), backend, vec![client; 2]);
            plan.lively = true;
            let outcome = run(&plan);
            assert_kept(&outcome);
            for client in &outcome.clients {
                assert_eq!((client.received, client.ending), (bytes, Ending::Fin));
            }
            assert_eq!(outcome.sessions_of(Reason::BackendClosed), 2, "{bytes}");
        }
    }
}

#[test]
fn silence_ends_with_what_tls_has_for_an_end_on_both_sides() {
    for security in [
        Security::terminated(),
        Security::to_backends(),
        Security::both(),
    ] {
        let silent = ClientScript::new(vec![Step::send(100), Step::ReadToEnd]);
        let mut plan = plan(security, BackendScript::Echo, vec![silent]);
        plan.idle = Duration::from_secs(10);
        let outcome = run(&plan);
        assert_kept(&outcome);
        assert_eq!(outcome.sessions[0].reason, Reason::Idle);
        let peers = [&outcome.clients[0], &outcome.backends[0]];
        assert_eq!(peers.map(|peer| peer.ending), [Ending::Fin; 2]);
    }
}

#[test]
fn a_record_that_stays_incomplete_is_no_end_in_order() {
    let dress = Dress::new(|_| {
        let (hello, secure) = hello();
        let at = SECOND_FLIGHT + 200;
        let shaped = Shaped::new(
            secure,
            [(0, Mark::Do(Wire::Bytes(hello))), (at, Mark::Silence)],
        );
        Some(Box::new(shaped) as Box<dyn Layer>)
    });
    let security = Security {
        dress_client: dress,
        ..Security::terminated()
    };
    let client = ClientScript::new(vec![Step::send(1_000), Step::ReadToEnd]);
    let outcome = run(&plan(security, BackendScript::Echo, vec![client]));
    assert_kept(&outcome);
    assert_eq!(outcome.sessions[0].reason, Reason::Idle);
    assert_eq!(outcome.backends[0].received, 8);
    assert!(!outcome.backends[0].saw_fin);
}

#[test]
fn incomplete_records_in_a_tiny_pool_stop_nobody() {
    for buffers in [4, 8] {
        let dress = Dress::new(|_| {
            let (hello, secure) = hello();
            let at = SECOND_FLIGHT + 8_000;
            let shaped = Shaped::new(
                secure,
                [(0, Mark::Do(Wire::Bytes(hello))), (at, pause(2_000))],
            );
            Some(Box::new(shaped) as Box<dyn Layer>)
        });
        let security = Security {
            dress_client: dress,
            ..Security::terminated()
        };
        let clients = vec![ClientScript::exchange(30_000); 30];
        let mut plan = plan(security, BackendScript::Echo, clients);
        plan.buffers = buffers;
        let outcome = run(&plan);
        assert_kept(&outcome);
        assert!(outcome.most_buffers <= buffers as usize);
        assert_eq!(outcome.sessions_of(Reason::ClientClosed), 30);
        assert_all_heard(&outcome, 30_000);
    }
}

#[test]
fn a_hello_may_come_in_fragments_of_any_size() {
    for size in [1, 2, 3, 4, 5, 7, 50, 100] {
        let dress = Dress::new(move |_| {
            let (hello, secure) = hello();
            let record = |piece: &[u8]| {
                let length = (piece.len() as u16).to_be_bytes();
                [&[22, 3, 1][..], &length, piece].concat()
            };
            let fragments: Vec<u8> = hello[5..].chunks(size).flat_map(record).collect();
            let said = Mark::Do(Wire::Bytes(fragments));
            Some(Box::new(Shaped::at(0, said, secure)) as Box<dyn Layer>)
        });
        for security in [Security::terminated(), Security::passed_on()] {
            let security = Security {
                dress_client: dress.clone(),
                ..security
            };
            let clients = vec![ClientScript::exchange(1_000); 2];
            let outcome = run(&plan(security, BackendScript::Echo, clients));
            assert_kept(&outcome);
            assert_eq!(outcome.sessions_of(Reason::ClientClosed), 2, "{size}");
        }
    }
}

#[test]
fn what_is_no_hello_is_refused_with_an_alert() {
    let endless = [
        &[22, 3, 1, 0x40, 0][..],
        &[1, 0xff, 0xff, 0xff],
        &[0; 16_380],
    ]
    .concat();
    for said in [
        b"GET / HTTP/1.0\r\n\r\n".to_vec(),
        vec![0; 100],
        vec![22, 3, 1, 0xff, 0xff, 1],
        vec![22, 3, 1, 0, 4, 0, 0, 0, 0],
        vec![21, 3, 1, 0, 2, 2, 40],
        vec![23, 3, 3, 0, 3, 1, 2, 3],
        endless,
    ] {
        let blurted = said.clone();
        let dress = Dress::new(move |_| Some(Box::new(Blurting::new(&blurted)) as Box<dyn Layer>));
        let security = Security {
            dress_client: dress,
            ..Security::terminated()
        };
        let client = ClientScript::new(vec![Step::ReadToEnd]);
        let outcome = run(&plan(security, BackendScript::Echo, vec![client]));
        let reasons: Vec<_> = outcome.sessions.iter().map(|it| it.reason).collect();
        assert_eq!(reasons, [Reason::ClientTls], "{:?}", &said[..6]);
        assert_eq!(outcome.attempts, [0]);
        // It has had time to read why.
        assert_eq!(outcome.clients[0].ending, Ending::Fin, "{:?}", &said[..6]);
    }
}

#[test]
fn garbage_in_the_middle_is_answered_with_an_alert_and_reaches_nobody() {
    let dress = Dress::new(|_| {
        let (hello, secure) = hello();
        let garbage = [&[23, 3, 3, 0, 32][..], &[7; 32]].concat();
        let marks = [
            (0, Mark::Do(Wire::Bytes(hello))),
            (SECOND_FLIGHT + 30, pause(5)),
            (SECOND_FLIGHT + 30, Mark::Do(Wire::Bytes(garbage))),
        ];
        Some(Box::new(Shaped::new(secure, marks)) as Box<dyn Layer>)
    });
    let security = Security {
        dress_client: dress,
        ..Security::terminated()
    };
    let client = ClientScript::new(vec![Step::send(100), Step::ReadToEnd]);
    let outcome = run(&plan(security, BackendScript::Echo, vec![client]));
    assert_kept(&outcome);
    assert_eq!(outcome.sessions[0].reason, Reason::ClientTls);
    assert_eq!(outcome.backends[0].received, 8);
    assert_eq!(outcome.backends[0].ending, Ending::Reset);
    let fault = outcome.clients[0].fault.clone();
    assert_eq!(fault.as_deref(), Some("received fatal alert: BadRecordMac"));
}

#[test]
fn keys_may_change_but_not_without_end() {
    for (updates, reason) in [
        (1, Reason::ClientClosed),
        (20, Reason::ClientClosed),
        (40, Reason::ClientTls),
    ] {
        let dress = Dress::new(move |_| {
            let mut secure = Secure::client(keys().client(Version::Tls13));
            secure.key_updates = updates;
            Some(Box::new(secure) as Box<dyn Layer>)
        });
        let security = Security {
            dress_client: dress,
            ..Security::both()
        };
        let clients = vec![ClientScript::exchange(100_000); 2];
        let outcome = run(&plan(security, BackendScript::Echo, clients));
        assert_kept(&outcome);
        assert_eq!(outcome.sessions_of(reason), 2, "{updates}");
    }
}

const DATA: u8 = 23;
const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;

/// Between the two halves of its first eight bytes a client says `records`.
struct Attack {
    version: Version,
    records: Vec<Record>,
    /// It gets away with it.
    harmless: bool,
}

fn attacks() -> Vec<Attack> {
    use Version::{Tls12, Tls13};
    let sealed = |kind, content: &[u8]| Record::Sealed(kind, content.to_vec());
    let many = |count, kind, content: &[u8]| vec![sealed(kind, content); count];
    let verbatim = |bytes: &[u8]| vec![Record::Verbatim(bytes.to_vec())];
    let (hello, _) = hello();
    let attack = |version, harmless, records| Attack {
        version,
        records,
        harmless,
    };
    let mut attacks = vec![
        // Renegotiation: refused once, then it is enough.
        attack(Tls12, true, many(1, HANDSHAKE, &hello[5..])),
        attack(Tls12, false, many(3, HANDSHAKE, &hello[5..])),
        attack(Tls13, false, many(1, HANDSHAKE, &hello[5..])),
        attack(Tls12, true, many(4, ALERT, &[1, 100])),
        attack(Tls12, false, many(6, ALERT, &[1, 100])),
        attack(Tls13, true, many(4, ALERT, &[1, 90])),
        attack(Tls13, false, many(6, ALERT, &[1, 90])),
        attack(Tls13, false, many(1, ALERT, &[1, 100])),
        attack(Tls13, false, many(1, HANDSHAKE, &[24, 0, 0, 1, 7])),
        // A handshake message may not stand around data.
        attack(
            Tls13,
            false,
            vec![sealed(HANDSHAKE, &[24, 0]), sealed(DATA, &[])],
        ),
        attack(Tls13, false, many(1, DATA, &[0; (1 << 14) + 1])),
        attack(Tls12, false, many(1, DATA, &[0; (1 << 14) + 1])),
        attack(Tls13, false, verbatim(&[20, 3, 3, 0, 1, 1])),
    ];
    for version in VERSIONS {
        let too_long = [&[DATA, 3, 3, 0x48, 0x01][..], &[0; 0x4801]].concat();
        attacks.extend([
            attack(version, true, many(20, DATA, &[])),
            attack(version, false, many(40, DATA, &[])),
            attack(version, false, many(1, HANDSHAKE, &[0, 0, 0, 0])),
            attack(version, false, many(1, ALERT, &[2, 40])),
            attack(version, false, many(1, 99, &[0])),
            attack(
                version,
                false,
                verbatim(&[&[DATA, 3, 3, 0, 32][..], &[0; 32]].concat()),
            ),
            attack(version, false, verbatim(&too_long)),
            attack(version, false, verbatim(&[DATA, 3, 3, 0xff, 0xff])),
            attack(version, false, verbatim(b"GET / HTTP/1.1\r\n\r\n")),
        ]);
    }
    attacks
}

#[test]
fn who_breaks_the_rules_of_an_established_session_ends_it() {
    let dress = Dress::new(|number| {
        let Attack {
            version, records, ..
        } = attacks().swap_remove(number);
        let stream = (number as u64).to_le_bytes();
        let first = Record::Sealed(DATA, stream[..4].to_vec());
        let second = Record::Sealed(DATA, stream[4..].to_vec());
        let end = Record::Sealed(ALERT, vec![1, 0]);
        let all = [vec![first], records, vec![second, end]].concat();
        Some(Box::new(Raw::new(version, all)) as Box<dyn Layer>)
    });
    let attacks = attacks();
    for backend in [false, true] {
        let security = Security {
            dress_client: dress.clone(),
            backend,
            ..Security::terminated()
        };
        let client = ClientScript::new(vec![Step::ReadToEnd]);
        let outcome = run(&plan(
            security,
            BackendScript::Sink,
            vec![client; attacks.len()],
        ));
        assert_kept(&outcome);
        for (number, attack) in attacks.iter().enumerate() {
            let expected = match attack.harmless {
                true => Reason::ClientClosed,
                false => Reason::ClientTls,
            };
            let (version, records) = (attack.version, &attack.records[0]);
            let said = format!("{version:?} {records:?}");
            let said = &said[..said.len().min(100)];
            assert_eq!(outcome.reason_of(number), Some(expected), "{said}");
        }
        let heard = |backend: &&ringress::ring::sim::PeerRecord| backend.received == 8;
        let harmless = attacks.iter().filter(|attack| attack.harmless).count();
        assert_eq!(outcome.backends.iter().filter(heard).count(), harmless);
    }
}
