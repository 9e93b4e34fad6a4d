//! TCP sessions through the real binary: who gets them, how their bytes and their ends are passed on.

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::backend::{BlackHole, Refusing, drain, finish_and_wait, peer};
use common::essentials::{self, MIB};
use common::pattern::Pattern;
use common::socket::{ending_of, finish};
use common::system::pipes;
use common::{Backend, Ending, Proxy, config, connect, ending, now, plain, read_to_end, reset};

const TWO_WORKERS: &str = "[runtime]\nworkers = 2\n";

#[test]
fn round_robin_is_exact_over_workers_and_clients() {
    let backends = ["a", "b", "c"].map(Backend::named);
    let list = backends.iter().zip([3, 2, 1]).map(|(backend, weight)| {
        format!("{{ address = {:?}, weight = {weight} }}", backend.address)
    });
    let list = list.collect::<Vec<_>>().join(", ");
    let text =
        config(&[], "", "", TWO_WORKERS).replace("backends = []", &format!("backends = [{list}]"));
    let mut proxy = Proxy::start(&text);
    let address = proxy.address("web");
    let clients: Vec<_> = (0..6)
        .map(|_| {
            let address = address.clone();
            thread::spawn(move || {
                (0..20)
                    .map(|_| read_to_end(&mut connect(&address)))
                    .collect::<Vec<_>>()
            })
        })
        .collect();
    let mut counts = BTreeMap::new();
    for client in clients {
        for answer in client.join().expect("every client is served") {
            *counts.entry(answer).or_insert(0) += 1;
        }
    }
    let expected = [("a", 60), ("b", 40), ("c", 20)];
    assert_eq!(
        counts,
        expected
            .map(|(name, count)| (name.as_bytes().to_vec(), count))
            .into()
    );
    assert_eq!(backends.each_ref().map(Backend::accepted), [60, 40, 20]);
    assert_eq!(proxy.next_sessions(120).len(), 120);
    proxy.end();
}

#[test]
fn a_listener_serves_every_address_it_is_bound_to() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = format!("unix:{}/front.sock", folder.path().display());
    let backend = Backend::echo();
    let listener = format!("bind = [\"127.0.0.1:0\", \"[::1]:0\", {path:?}, \"127.0.0.2:0\"]\n");
    let mut proxy = Proxy::start(&config(&[&backend.address], &listener, "", TWO_WORKERS));
    let addresses = proxy.addresses("web");
    assert_eq!(addresses.len(), 4);
    assert!(addresses[1].starts_with("[::1]:"), "{addresses:?}");
    assert_eq!(addresses[2], path);
    for address in &addresses {
        for _ in 0..5 {
            essentials::there_and_back(&connect(address), 100_000);
            let session = proxy.next_session();
            assert_eq!(
                (session.reason.as_str(), session.bytes_sent),
                ("client-closed", 100_000)
            );
            assert_eq!(session.client == "unix", address == &path);
        }
    }
    proxy.end();
}

#[test]
fn backends_are_reached_over_ipv4_ipv6_and_unix_sockets() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = format!("unix:{}/back.sock", folder.path().display());
    let backends = [
        Backend::echo(),
        Backend::at("[::1]:0", common::backend::echo),
        Backend::at(&path, common::backend::echo),
    ];
    let addresses = backends.each_ref().map(|backend| backend.address.as_str());
    let mut proxy = Proxy::start(&plain(&addresses));
    for _ in 0..2 {
        for address in addresses {
            essentials::there_and_back(&proxy.connect(), MIB);
            let session = proxy.next_session();
            assert_eq!(session.backend, address);
            assert_eq!(
                (session.reason.as_str(), session.bytes_sent),
                ("client-closed", MIB)
            );
        }
    }
    assert_eq!(backends.each_ref().map(Backend::accepted), [2, 2, 2]);
    proxy.end();
}

#[test]
fn unix_sockets_work_on_both_sides_with_half_close() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| format!("unix:{}/{name}", folder.path().display());
    let backend = Backend::at(&path("back"), |mut connection| {
        let (received, end) = drain(&mut connection);
        end.expect("the client's FIN is passed on");
        write!(connection, "{received}").expect("the reply is taken");
    });
    let listener = format!("bind = {:?}\n", path("front"));
    let mut proxy = Proxy::start(&config(&[&backend.address], &listener, "", TWO_WORKERS));
    let clients: Vec<_> = (0..8)
        .map(|_| proxy.connect())
        .map(|mut client| {
            thread::spawn(move || {
                client.write_all(&vec![7; 300_000]).expect("it is taken");
                finish(&client);
                read_to_end(&mut client)
            })
        })
        .collect();
    for client in clients {
        assert_eq!(client.join().expect("it is served"), b"300000");
    }
    for session in proxy.next_sessions(8) {
        assert_eq!(session.reason, "client-closed");
        assert_eq!((session.bytes_received, session.bytes_sent), (300_000, 6));
    }
    proxy.end();
}

#[test]
fn the_source_addresses_are_used_in_turn() {
    let backend = Backend::start(|mut connection| {
        let from = peer(&connection).ip().to_string();
        connection.write_all(from.as_bytes()).expect("it is taken");
    });
    let source = "source = [\"127.0.0.2\", \"127.0.0.3\"]";
    let proxy = Proxy::start(&config(&[&backend.address], "", source, ""));
    let seen: Vec<_> = (0..4)
        .map(|_| read_to_end(&mut proxy.connect()))
        .map(|seen| String::from_utf8(seen).expect("an address"))
        .collect();
    assert_eq!(seen, ["127.0.0.2", "127.0.0.3", "127.0.0.2", "127.0.0.3"]);
    proxy.end();
}

#[test]
fn bytes_go_both_ways_at_once() {
    essentials::echoes_at_once(&Proxy::start);
}

#[test]
fn half_close_leaves_the_other_direction_open() {
    essentials::client_fin_first(&Proxy::start);
    essentials::backend_fin_first(&Proxy::start);
}

#[test]
fn an_end_without_bytes_is_passed_on() {
    essentials::ends_without_bytes(&Proxy::start);
}

#[test]
fn a_backends_reset_comes_after_every_byte() {
    for count in [0, 1, 4096, 100_000, 8 * MIB] {
        essentials::reset_comes_after_every_byte(&Proxy::start, count, false);
    }
}

#[test]
fn a_backends_reset_comes_after_every_byte_to_a_slow_reader() {
    for count in [200_000, 3 * MIB] {
        essentials::reset_comes_after_every_byte(&Proxy::start, count, true);
    }
}

#[test]
fn a_clients_reset_reaches_the_backend_after_every_byte() {
    for count in [0, 1, 100_000, 8 * MIB] {
        essentials::client_reset_reaches_the_backend(&Proxy::start, count);
    }
}

#[test]
fn a_reset_after_fin_is_a_reset() {
    let backend = Backend::start(|mut connection| {
        connection.write_all(b"half").expect("it is taken");
        let mut question = [0; 8];
        connection.read_exact(&mut question).expect("it comes");
        assert_eq!(connection.read(&mut [0]).expect("the client's FIN"), 0);
        common::system::taken_by_the_other_end(&connection);
        reset(connection);
    });
    let mut proxy = Proxy::start(&plain(&[&backend.address]));
    let mut client = proxy.connect();
    client.write_all(b"question").expect("it is taken");
    finish(&client);
    let mut answer = [0; 4];
    client.read_exact(&mut answer).expect("it comes");
    assert_eq!(ending(&mut client), Ending::Reset);
    assert_eq!(proxy.next_session().reason, "backend-reset");
    proxy.end();
}

#[test]
fn an_answer_before_a_reset_arrives_while_the_client_is_still_uploading() {
    let backend = Backend::start(|mut connection| {
        let mut head = [0; 1000];
        connection.read_exact(&mut head).expect("it comes");
        connection.write_all(b"413 too large").expect("it is taken");
        common::system::taken_by_the_other_end(&connection);
        // Unread bytes are there: closing resets.
        reset(connection);
    });
    let mut proxy = Proxy::start(&plain(&[&backend.address]));
    for _ in 0..10 {
        let client = proxy.connect();
        let mut writing = client.try_clone().expect("a descriptor");
        let upload = thread::spawn(move || Pattern::new().write(&mut writing, 64 * MIB));
        let mut answer = Vec::new();
        let read = (&client).read_to_end(&mut answer);
        assert_eq!(answer, b"413 too large");
        let written = upload.join().expect("it ends");
        // The kernel tells of the reset once: to the reader or to the writer.
        let told = [read.err(), written.err()];
        let reset = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionReset;
        assert!(told.iter().flatten().any(reset), "{told:?}");
        assert_eq!(proxy.next_session().reason, "backend-reset");
    }
    proxy.end();
}

#[test]
fn a_client_that_closes_with_an_answer_unread_resets_the_backend() {
    let (told, seen) = mpsc::channel();
    let backend = Backend::start(move |mut connection| {
        let (_, end) = {
            connection.write_all(b"an answer").expect("it is taken");
            drain(&mut connection)
        };
        told.send(end).expect("the test waits");
    });
    let mut proxy = Proxy::start(&plain(&[&backend.address]));
    let client = proxy.connect();
    client
        .peek(&mut [std::mem::MaybeUninit::uninit()])
        .expect("the answer is there");
    drop(client);
    let end = common::told(&seen);
    assert_eq!(ending_of(&end.expect_err("RST")), Ending::Reset);
    assert_eq!(proxy.next_session().reason, "client-reset");
    proxy.end();
}

#[test]
fn a_client_is_reset_at_once_when_every_backend_refuses() {
    let backends = [Refusing::new(), Refusing::new(), Refusing::new()];
    let addresses = backends.each_ref().map(|backend| backend.address.as_str());
    let mut proxy = Proxy::start(&plain(&addresses));
    for _ in 0..5 {
        let mut client = proxy.connect();
        let began = now();
        assert_eq!(ending(&mut client), Ending::Reset);
        let took = began.elapsed();
        assert!(took < Duration::from_millis(500), "{took:?}");
        let session = proxy.next_session();
        assert_eq!(
            (session.reason.as_str(), session.backend.as_str()),
            ("no-backend", "-")
        );
        assert_ne!(session.client, "unix");
    }
    proxy.end();
}

#[test]
fn a_refusing_backend_is_passed_over() {
    let (dead, living) = (Refusing::new(), Backend::named("living"));
    let mut proxy = Proxy::start(&plain(&[&dead.address, &living.address]));
    for _ in 0..10 {
        assert_eq!(read_to_end(&mut proxy.connect()), b"living");
        assert_eq!(proxy.next_session().backend, living.address);
    }
    proxy.end();
}

#[test]
fn without_retries_a_refusing_backend_costs_its_share() {
    let (dead, living) = (Refusing::new(), Backend::named("living"));
    let mut proxy = Proxy::start(&config(
        &[&dead.address, &living.address],
        "",
        "",
        "[upstreams.app.retry]\nattempts = 0\n",
    ));
    let reasons: Vec<_> = (0..4)
        .map(|_| {
            let _ = proxy.connect().read(&mut [0; 6]);
            proxy.next_session().reason
        })
        .map(|reason| reason == "no-backend")
        .collect();
    assert_eq!(reasons, [true, false, true, false]);
    proxy.end();
}

#[test]
fn a_black_hole_costs_connect_timeout_and_then_the_next_backend_serves() {
    let (hole, living) = (BlackHole::new(), Backend::named("living"));
    let mut proxy = Proxy::start(&config(
        &[&hole.address, &living.address],
        "",
        "connect_timeout = \"300ms\"",
        "",
    ));
    let began = now();
    assert_eq!(read_to_end(&mut proxy.connect()), b"living");
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(290), "{took:?}");
    assert!(took < Duration::from_millis(2000), "{took:?}");
    assert_eq!(proxy.next_session().backend, living.address);
    proxy.end();
}

#[test]
fn black_holes_alone_end_with_connect_timeout() {
    let holes = [BlackHole::new(), BlackHole::new()];
    let addresses = holes.each_ref().map(|hole| hole.address.as_str());
    let timeout = "connect_timeout = \"200ms\"";
    let mut proxy = Proxy::start(&config(&addresses, "", timeout, ""));
    let mut client = proxy.connect();
    let began = now();
    assert_eq!(ending(&mut client), Ending::Reset);
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(380), "{took:?}");
    let session = proxy.next_session();
    assert_eq!(
        (session.reason.as_str(), session.backend.as_str()),
        ("connect-timeout", "-")
    );
    proxy.end();
}

#[test]
fn bytes_sent_before_the_backend_was_connected_are_not_lost() {
    let (hole, echo) = (BlackHole::new(), Backend::echo());
    let mut proxy = Proxy::start(&config(
        &[&hole.address, &echo.address],
        "",
        "connect_timeout = \"200ms\"",
        "",
    ));
    let mut client = proxy.connect();
    client.write_all(b"hasty").expect("it is taken");
    finish(&client);
    assert_eq!(read_to_end(&mut client), b"hasty");
    let session = proxy.next_session();
    assert_eq!(
        (session.reason.as_str(), session.bytes_received),
        ("client-closed", 5)
    );
    proxy.end();
}

#[test]
fn small_messages_are_not_held_back() {
    let backend = Backend::echo();
    let proxy = Proxy::start(&plain(&[&backend.address]));
    let mut client = proxy.connect();
    let began = now();
    for _ in 0..100 {
        // Two writes: with Nagle's algorithm on either side each would wait for a delayed ACK.
        for part in [b"a", b"b"] {
            client.write_all(part).expect("it is taken");
        }
        client.read_exact(&mut [0; 2]).expect("the echo comes");
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(3), "{took:?}");
    drop(client);
    proxy.end();
}

#[test]
fn a_byte_at_a_time_arrives_in_order() {
    let backend = Backend::start(|mut connection| {
        connection.set_tcp_nodelay(true).expect("TCP");
        let mut pattern = Pattern::new();
        for _ in 0..5000 {
            pattern.write(&mut connection, 1).expect("it is taken");
        }
        finish_and_wait(connection);
    });
    let mut proxy = Proxy::start(&plain(&[&backend.address]));
    let mut client = proxy.connect();
    let mut pattern = Pattern::new();
    while pattern.check_some(&mut client, 1).expect("it comes") > 0 {}
    assert_eq!(pattern.place, 5000);
    drop(client);
    assert_eq!(proxy.next_session().bytes_sent, 5000);
    proxy.end();
}

#[test]
fn bulk_goes_by_splice_both_ways_at_once_and_every_byte_arrives() {
    let total = 48 * MIB;
    let backend = Backend::start(move |connection| {
        let mut reader = connection.try_clone().expect("a second handle");
        let upload = thread::spawn(move || {
            let mut pattern = Pattern::new();
            pattern.check_to_end(&mut reader).expect("FIN");
            assert_eq!(pattern.place, total);
        });
        let mut writer = connection;
        Pattern::new()
            .write(&mut writer, total)
            .expect("it is taken");
        finish(&writer);
        upload.join().expect("the upload is whole");
    });
    let mut proxy = Proxy::start(&plain(&[&backend.address]));
    let before = pipes(proxy.pid());
    let mut client = connect(&proxy.address("web"));
    let mut writer = client.try_clone().expect("a second handle");
    let upload = thread::spawn(move || {
        Pattern::new()
            .write(&mut writer, total)
            .expect("it is taken");
        finish(&writer);
    });
    let mut download = Pattern::new();
    download.check_to_end(&mut client).expect("FIN");
    assert_eq!(download.place, total);
    upload.join().expect("the upload is taken");
    let session = proxy.next_session();
    assert_eq!((session.bytes_received, session.bytes_sent), (total, total));
    // Both directions had one, and the worker keeps them for the next.
    assert_eq!(pipes(proxy.pid()), before + 4);
    proxy.end();
}
