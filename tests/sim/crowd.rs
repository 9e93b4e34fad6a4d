//! Many at the door: handshakes beside sessions that are there, clients that are slow or leave, PROXY headers
//! in pieces, and connections that are handshaken ahead.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ringress::config::Announce;
use ringress::proto::proxy_header;
use ringress::ring::sim::{BackendScript, ClientScript, Ending, Layer, Step, Wire};
use ringress::telemetry::Reason;
use ringress::time::Instant;
use ringress::tls::Version;

use crate::layers::{Blurting, Mark, Plain, Secure, Shaped, announcing, keys, pause};
use crate::plan::{Plan, Turn};
use crate::policies::{assert_all_heard, served};
use crate::run::{Outcome, run};
use crate::security::{Clients, Dress, Security};

const MILLI: Duration = Duration::from_millis(1);

fn plan(security: Security, clients: Vec<ClientScript>) -> Plan {
    let mut plan = Plan::quiet(1, vec![BackendScript::Echo]);
    plan.clients = clients;
    plan.security = security;
    plan
}

fn secure() -> Secure {
    Secure::client(keys().client(Version::Tls13))
}

fn hello_len() -> usize {
    match secure().next(usize::MAX) {
        Wire::Bytes(hello) => hello.len(),
        wire => panic!("a client says {wire:?}"),
    }
}

fn assert_kept(outcome: &Outcome) {
    let broken = outcome.broken_promises();
    assert!(broken.is_empty(), "{:#?}", &broken[..broken.len().min(5)]);
}

/// Says a byte and waits for its echo, again and again.
fn ping_pong(times: usize) -> ClientScript {
    let once = [Step::send(1), Step::Expect(1)];
    let mut steps = vec![Step::send(8), Step::Expect(8), Step::Pause(4 * MILLI)];
    steps.extend(std::iter::repeat_n(once, times).flatten());
    steps.extend([Step::Finish, Step::ReadToEnd]);
    ClientScript::new(steps)
}

/// When the first client has ended, and when the last one, in a run in which a turn takes 20 µs.
fn with_crowd(crowd: usize) -> (Duration, Duration) {
    let mut clients = vec![ping_pong(30)];
    clients.extend(vec![ClientScript::exchange(100); crowd]);
    let mut plan = plan(Security::both(), clients);
    plan.starts = vec![5 * MILLI; crowd + 1];
    plan.starts[0] = Duration::ZERO;
    plan.buffers = 2_000;
    plan.turn_takes = Duration::from_micros(20);
    let outcome = run(&plan);
    assert_kept(&outcome);
    assert_eq!(outcome.sessions_of(Reason::ClientClosed), crowd + 1);
    let ended = |index: usize| {
        let at = outcome.clients[index].ended_at.expect("it has ended");
        at - Instant::default()
    };
    let last = (0..=crowd).map(ended).max();
    (ended(0), last.expect("there is one"))
}

#[test]
fn handshakes_of_a_crowd_do_not_hold_up_who_is_there() {
    let (alone, _) = with_crowd(0);
    let (beside, last) = with_crowd(200);
    // They go on for longer than it talks.
    assert!(last > beside, "{last:?} {beside:?}");
    // It has waited for a turn or two per message at most.
    let late = beside.saturating_sub(alone);
    assert!(late < 30 * 2 * 2 * Duration::from_micros(20), "{late:?}");
}

#[test]
fn who_leaves_while_it_waits_for_its_turn_stops_nobody() {
    let hello = hello_len();
    for wire in [Wire::Reset, Wire::Finish] {
        let dress = Dress::new(move |number| {
            let marks = [
                (hello, Mark::Do(Wire::Pause(Duration::from_micros(15)))),
                (hello, Mark::Do(wire.clone())),
            ];
            let shaped = || Box::new(Shaped::new(secure(), marks)) as Box<dyn Layer>;
            (number % 3 > 0).then(shaped)
        });
        let security = Security {
            dress_client: dress,
            ..Security::terminated()
        };
        let mut plan = plan(security, vec![ClientScript::exchange(100); 150]);
        plan.starts = vec![MILLI; 150];
        plan.turn_takes = Duration::from_micros(10);
        let outcome = run(&plan);
        assert_kept(&outcome);
        let left =
            outcome.sessions_of(Reason::ClientReset) + outcome.sessions_of(Reason::ClientLeft);
        assert_eq!((left, outcome.sessions_of(Reason::ClientClosed)), (100, 50));
    }
}

#[test]
fn handshakes_that_are_under_way_at_the_end_of_a_drain_are_reset() {
    for at in [0, 1, 100, hello_len()] {
        let dress = Dress::new(move |_| {
            Some(Box::new(Shaped::at(at, Mark::Silence, secure())) as Box<dyn Layer>)
        });
        let security = Security {
            dress_client: dress,
            ..Security::terminated()
        };
        let mut plan = plan(security, vec![ClientScript::exchange(100); 30]);
        plan.drain_at = Some(40 * MILLI);
        let outcome = run(&plan);
        assert_kept(&outcome);
        let served = outcome.sessions.len();
        assert_eq!(outcome.sessions_of(Reason::Drained), served);
        assert!(served > 10);
        let mut endings = outcome.clients.iter().map(|client| client.ending);
        assert!(endings.all(|ending| matches!(ending, Ending::Reset | Ending::Refused(_))));
    }
}

#[test]
fn a_backend_that_never_ends_its_handshake_costs_one_connect_timeout() {
    let dress = Dress::new(|number| (number == 0).then(|| Box::new(Blurting::new(&[])) as _));
    let security = Security {
        dress_backend: dress,
        ..Security::to_backends()
    };
    let mut plan = plan(security, vec![ClientScript::exchange(100)]);
    plan.backends.push(BackendScript::Echo);
    let outcome = run(&plan);
    assert_kept(&outcome);
    assert_eq!(outcome.sessions[0].reason, Reason::ClientClosed);
    let lasted = outcome.sessions[0].duration;
    assert!(lasted >= plan.connect_timeout && lasted < plan.connect_timeout * 2);
}

#[test]
fn a_backend_that_speaks_before_its_handshake_is_refused() {
    for said in [
        &b"220 ready\r\n"[..],
        &[21, 3, 3, 0, 2, 2, 40],
        &[23, 3, 3, 0, 1, 0],
    ] {
        let dress = Dress::new(move |_| Some(Box::new(Blurting::new(said)) as Box<dyn Layer>));
        let security = Security {
            dress_backend: dress,
            ..Security::to_backends()
        };
        let outcome = run(&plan(security, vec![ClientScript::exchange(100); 3]));
        assert_kept(&outcome);
        let reasons: Vec<_> = outcome.sessions.iter().map(|it| it.reason).collect();
        assert_eq!(reasons, [Reason::BackendTls; 3], "{said:?}");
    }
}

#[test]
fn a_hello_to_be_passed_on_may_come_in_pieces_but_not_for_ever() {
    let hello = hello_len();
    let dress = |mark: Mark| {
        Dress::new(move |at| {
            let shaped = Shaped::at(at, mark.clone(), secure());
            Some(Box::new(shaped) as Box<dyn Layer>)
        })
    };
    let security = Security {
        dress_client: dress(pause(5)),
        ..Security::passed_on()
    };
    let clients = vec![ClientScript::exchange(100); hello + 50];
    let outcome = run(&plan(security, clients.clone()));
    assert_kept(&outcome);
    assert_all_heard(&outcome, 100);
    let security = Security {
        dress_client: dress(Mark::Silence),
        ..Security::passed_on()
    };
    let outcome = run(&plan(security, clients));
    assert_kept(&outcome);
    for client in 0..hello + 50 {
        // Who says nothing waits for the backend to speak, and so does who has said its hello.
        let expected = match (1..hello).contains(&client) {
            true => Reason::HandshakeTimeout,
            false => Reason::Idle,
        };
        assert_eq!(outcome.reason_of(client), Some(expected), "{client}");
    }
}

#[test]
fn halves_of_hellos_do_not_fill_a_tiny_pool_for_good() {
    let dress = Dress::new(|_| {
        let marks = [(100, pause(1_000))];
        Some(Box::new(Shaped::new(secure(), marks)) as Box<dyn Layer>)
    });
    let security = Security {
        dress_client: dress,
        ..Security::passed_on()
    };
    let mut plan = plan(security, vec![ClientScript::exchange(100); 3]);
    plan.buffers = 4;
    let outcome = run(&plan);
    assert_kept(&outcome);
    assert_all_heard(&outcome, 100);
}

#[test]
fn a_backend_that_speaks_first_is_heard_behind_a_look_for_a_hello() {
    let mut plan = plan(
        Security {
            client: Clients::LookedAt,
            ..Security::default()
        },
        Vec::new(),
    );
    plan.backends = vec![BackendScript::Greeting { bytes: 50 }];
    plan.clients = vec![ClientScript {
        greeting: 50,
        ..ClientScript::new(vec![
            Step::Expect(50),
            Step::send(20),
            Step::Finish,
            Step::ReadToEnd,
        ])
    }];
    let outcome = run(&plan);
    assert_kept(&outcome);
    assert_all_heard(&outcome, 70);
    let lasted = outcome.sessions[0].duration;
    assert!(lasted >= plan.handshake && lasted < plan.handshake + 20 * MILLI);
}

/// A header of each version, of the client `number`.
fn headers(number: usize) -> Vec<Vec<u8>> {
    let destination = "203.0.113.1:443".parse().expect("an address");
    let addresses = Some((Security::announced(number), destination));
    vec![proxy_header::v1(addresses), proxy_header::v2(addresses)]
}

#[test]
fn a_proxy_header_may_come_in_two_pieces_wherever_they_are_parted() {
    for (version, which) in [(1, 0), (2, 1)] {
        for tls in [false, true] {
            let dress = Dress::new(move |number| {
                let inner: Box<dyn Layer> = match tls {
                    true => Box::new(secure()),
                    false => Box::new(Plain::default()),
                };
                let header = headers(number).swap_remove(which);
                let announcing = announcing(header, inner);
                Some(Box::new(Shaped::around(announcing, [(number, pause(2))])) as Box<dyn Layer>)
            });
            let security = Security {
                client: if tls {
                    Clients::Terminated
                } else {
                    Clients::Plain
                },
                accepts: Some(version),
                announce: Announce::V2First,
                dress_client: dress,
                ..Security::default()
            };
            let outcome = run(&plan(security, vec![ClientScript::exchange(100); 90]));
            assert_kept(&outcome);
            assert_all_heard(&outcome, 100);
            assert_eq!(outcome.told.len(), 90);
        }
    }
}

#[test]
fn a_proxy_header_that_is_cut_or_false_or_of_a_stranger_reaches_no_backend() {
    let header = headers(0).swap_remove(0);
    let whole = header.len();
    let dress = Dress::new(move |number| {
        let inner = announcing(header.clone(), Box::new(Plain::default()));
        let marks = [(number % whole, Mark::Do(Wire::Finish))];
        Some(Box::new(Shaped::around(inner, marks)) as Box<dyn Layer>)
    });
    let security = Security {
        accepts: Some(1),
        dress_client: dress,
        ..Security::default()
    };
    let clients = vec![ClientScript::exchange(100); whole];
    let outcome = run(&plan(security, clients));
    assert_kept(&outcome);
    assert_eq!(outcome.sessions_of(Reason::ClientLeft), whole);
    for (said, from, reason) in [
        (
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 x\r\n",
            None,
            Reason::BadProxyHeader,
        ),
        ("GET / HTTP/1.0\r\n\r\n", None, Reason::BadProxyHeader),
        (
            "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
            Some([11, 0, 0, 1]),
            Reason::UntrustedProxy,
        ),
        ("PROXY TCP4 1.2", None, Reason::HandshakeTimeout),
    ] {
        let blurt = move |_| Some(Box::new(Blurting::new(said.as_bytes())) as Box<dyn Layer>);
        let security = Security {
            accepts: Some(1),
            dress_client: Dress::new(blurt),
            ..Security::default()
        };
        let client = ClientScript {
            from: from.map(|ip| IpAddr::V4(Ipv4Addr::from(ip))),
            ..ClientScript::new(vec![Step::ReadToEnd])
        };
        let outcome = run(&plan(security, vec![client]));
        assert_kept(&outcome);
        assert_eq!(outcome.sessions_of(reason), 1, "{said}");
        assert_eq!(outcome.attempts, [0]);
    }
}

#[test]
fn connections_ahead_are_handshaken_ahead() {
    let far = 10 * MILLI;
    let lasted = |preconnect| {
        let mut plan = plan(
            Security::to_backends(),
            vec![ClientScript::exchange(100); 2],
        );
        plan.policies.preconnect = preconnect;
        plan.distance = Some(far);
        plan.starts = vec![Duration::from_secs(1); 2];
        let outcome = run(&plan);
        assert_kept(&outcome);
        assert_all_heard(&outcome, 100);
        outcome.sessions[0].duration
    };
    // One way there and one back, and the end after it; without: TCP's handshake and TLS's before.
    assert!(lasted(2) < 4 * far, "{:?}", lasted(2));
    assert!(lasted(0) >= 6 * far, "{:?}", lasted(0));
}

#[test]
fn with_a_header_connections_ahead_stop_before_the_handshake() {
    let mut plan = plan(
        Security {
            announce: Announce::V1,
            ..Security::to_backends()
        },
        vec![ClientScript::exchange(100); 6],
    );
    plan.policies.preconnect = 2;
    plan.starts = (1..=6).map(|at| at * 100 * MILLI).collect();
    let outcome = run(&plan);
    assert_kept(&outcome);
    assert_all_heard(&outcome, 100);
    assert_eq!(outcome.told.len(), 6);
}

/// Connections ahead that come to this end after 200 ms, and clients that begin after it.
fn after_the_end_of_those_ahead(end: Step, announce: Announce) {
    let mut plan = plan(
        Security {
            announce,
            ..Security::to_backends()
        },
        vec![ClientScript::exchange(100); 40],
    );
    let short = vec![Step::Pause(200 * MILLI), end.clone(), Step::ReadToEnd];
    plan.backends = vec![BackendScript::Steps(short)];
    plan.policies.preconnect = 40;
    plan.turns = vec![(100 * MILLI, 0, Turn::Becomes(BackendScript::Echo))];
    // The end takes 10 µs, and what a client says is on its way for as long.
    let start = |index: u32| Duration::from_micros(200_000 + u64::from(index));
    plan.starts = (0..40).map(start).collect();
    let outcome = run(&plan);
    let broken = outcome.broken_promises();
    assert!(broken.is_empty(), "{end:?}: {broken:#?}");
    for client in &outcome.clients {
        let heard = (client.received, client.ending);
        assert_eq!(heard, (100, Ending::Fin), "{end:?} {announce:?} {client:?}");
    }
    assert_eq!(served(&outcome, 1), [40]);
}

#[test]
fn a_connection_ahead_that_ends_before_it_is_of_use_costs_nobody_anything() {
    for end in [Step::Finish, Step::SayEnd, Step::Reset, Step::Close] {
        after_the_end_of_those_ahead(end, Announce::Never);
    }
    // Before its handshake a backend can't say the end of TLS.
    for end in [Step::Truncate, Step::Reset, Step::Close] {
        after_the_end_of_those_ahead(end, Announce::V2First);
    }
}
