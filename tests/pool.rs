//! Connections that are open ahead of sessions, through the real binary.

mod common;

use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use common::backend::BlackHole;
use common::essentials::there_and_back;
use common::socket::{exchange, finish};
use common::switched::{GREETING, Manner, Switched};
use common::system::{cpu_ticks, descriptors};
use common::{Proxy, config, connect, eventually, now, pass, read_to_end};
use rustix::process::Signal;

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// `preconnect` connections for each of two workers; `more` lines of the upstream.
fn text(backend: &str, preconnect: usize, more: &str) -> String {
    let pool = format!("pool = {{ preconnect = {preconnect} }}\n{more}");
    config(&[backend], "", &pool, "[runtime]\nworkers = 2\n")
}

fn with_pool(backend: &Switched, preconnect: usize, more: &str) -> Proxy {
    Proxy::start(&text(&backend.address, preconnect, more))
}

/// Waits until so many are open and stay so.
fn settles(backend: &Switched, count: usize) {
    eventually(&format!("{count} connections to be open"), || {
        let there = backend.open() == count;
        there.then(|| pass(millis(30)));
        (there && backend.open() == count).then_some(())
    });
}

#[test]
fn so_many_are_open_before_any_client_and_with_sessions_so_many_more() {
    let backend = Switched::new(Manner::Echo);
    let mut proxy = with_pool(&backend, 3, "");
    settles(&backend, 6);
    assert_eq!(backend.accepted(), 6);
    let address = proxy.address("web");
    for count in 1..=20 {
        let clients: Vec<_> = (0..count).map(|_| exchange(None, &address)).collect();
        assert_eq!(clients.iter().flatten().count(), count);
        settles(&backend, 6 + count);
        assert!(
            backend.most() <= 6 + count,
            "{} with {count}",
            backend.most()
        );
        drop(clients);
        for session in proxy.next_sessions(count) {
            assert_eq!(session.reason, "client-closed");
        }
        settles(&backend, 6);
    }
    // Each session had one, and none was opened besides.
    assert_eq!(backend.accepted(), 6 + (1..=20).sum::<usize>());
    let ticks = cpu_ticks(proxy.pid());
    pass(millis(1000));
    let ticks = cpu_ticks(proxy.pid()) - ticks;
    assert!(ticks <= 3, "{ticks} ticks in a second of silence");
    proxy.end();
}

#[test]
fn a_session_takes_a_connection_that_was_open_before_it_came() {
    let backend = Switched::new(Manner::Echo);
    let proxy = with_pool(&backend, 3, "");
    settles(&backend, 6);
    backend.stop_listening();
    // Nothing can be opened any more, on either worker.
    for number in 0..3 {
        there_and_back(&proxy.connect(), 100_000);
        assert_eq!(backend.accepted(), 6, "client {number}");
    }
}

#[test]
fn a_greeting_comes_to_every_client_once() {
    let backend = Switched::new(Manner::Greet);
    let mut proxy = with_pool(&backend, 3, "");
    settles(&backend, 6);
    let address = proxy.address("web");
    let client = |number: usize| {
        let mut client = connect(&address);
        if number.is_multiple_of(3) {
            // It speaks first, as a client that sends all at once does.
            client.write_all(b"EHLO\r\n").expect("taken");
        }
        let mut greeting = [0; GREETING.len()];
        client.read_exact(&mut greeting).expect("a greeting");
        assert_eq!(&greeting, GREETING);
        client.write_all(b"QUIT\r\n").expect("taken");
        finish(&client);
        let answer = read_to_end(&mut client);
        let expected: &[u8] = match number % 3 {
            0 => b"EHLO\r\nQUIT\r\n",
            _ => b"QUIT\r\n",
        };
        assert_eq!(answer, expected);
    };
    for number in 0..30 {
        client(number);
    }
    thread::scope(|scope| (0..40).for_each(|number| drop(scope.spawn(move || client(number)))));
    for session in proxy.next_sessions(70) {
        assert_eq!(session.reason, "client-closed");
        assert!(session.bytes_sent > GREETING.len() as u64);
    }
    settles(&backend, 6);
    assert_eq!(backend.accepted(), 76);
    proxy.end();
}

/// Clients go on while the backend ends every idle connection again and again.
fn nobody_notices(end_all: impl Fn(&Switched)) {
    let backend = Switched::new(Manner::Echo);
    let proxy = with_pool(&backend, 3, "");
    let address = proxy.address("web");
    for round in 0..4 {
        settles(&backend, 6);
        // What ends younger than that is replaced after a rest.
        pass(millis(300));
        end_all(&backend);
        for number in 0..10 {
            let client = exchange(None, &address);
            assert!(client.is_some(), "client {number} of round {round}");
        }
    }
    settles(&backend, 6);
    proxy.end();
}

#[test]
fn connections_that_the_backend_finished_are_replaced_and_nobody_notices() {
    nobody_notices(Switched::finish_all);
}

#[test]
fn connections_that_the_backend_reset_are_replaced_and_nobody_notices() {
    nobody_notices(Switched::reset_all_at_once);
}

#[test]
fn after_a_restart_of_the_backend_the_pool_is_filled_again() {
    let backend = Switched::new(Manner::Echo);
    let mut proxy = with_pool(&backend, 3, "retry = { attempts = 0 }");
    settles(&backend, 6);
    let address = proxy.address("web");
    backend.stop_listening();
    backend.reset_all();
    settles(&backend, 0);
    let began = now();
    let mut refused = 0;
    while began.elapsed() < millis(1000) {
        assert!(exchange(None, &address).is_none(), "nobody listens");
        refused += 1;
        pass(millis(20));
    }
    for session in proxy.next_sessions(refused) {
        assert_eq!((&*session.reason, &*session.backend), ("no-backend", "-"));
    }
    backend.listen_again();
    let before = backend.accepted();
    for number in 0..10 {
        assert!(exchange(None, &address).is_some(), "client {number}");
    }
    settles(&backend, 6);
    let took = began.elapsed();
    println!("filled again after {took:?}, of which 1 s without a listener");
    // The rests between tries had not grown beyond 5 s.
    assert!(took < millis(9000), "{took:?}");
    // Those that were opened one by one are not opened twice.
    assert!(
        backend.accepted() <= before + 10 + 6 + 2,
        "{}",
        backend.accepted() - before
    );
    proxy.end();
}

#[test]
fn a_backend_that_closes_every_connection_at_once_is_left_alone() {
    let backend = Switched::new(Manner::Close);
    let proxy = with_pool(&backend, 10, "");
    pass(millis(2000));
    let (opened, ticks) = (backend.accepted(), cpu_ticks(proxy.pid()));
    println!("{opened} connections, {ticks} ticks in 2 s");
    // The first ten of each worker, then one by one after growing rests.
    assert!((20..=60).contains(&opened), "{opened} connections in 2 s");
    proxy.end();
}

#[test]
fn a_reload_makes_a_pool_smaller_larger_and_none() {
    let backend = Switched::new(Manner::Echo);
    let other = Switched::new(Manner::Echo);
    let mut proxy = with_pool(&backend, 3, "");
    settles(&backend, 6);
    let mut client = exchange(None, &proxy.address("web")).expect("it is served");
    settles(&backend, 7);
    for (preconnect, open) in [(1, 3), (5, 11), (0, 1), (2, 5)] {
        proxy.reload(&text(&backend.address, preconnect, ""));
        settles(&backend, open);
    }
    // Another backend has a pool of its own, and the old one none.
    proxy.reload(&text(&other.address, 2, ""));
    settles(&other, 4);
    settles(&backend, 1);
    client.write_all(b"x").expect("it lives");
    client.read_exact(&mut [0]).expect("it lives");
    drop(client);
    settles(&backend, 0);
    assert_eq!(proxy.next_session().reason, "client-closed");
    proxy.reload(&text(&other.address, 0, ""));
    settles(&other, 0);
    proxy.end();
}

/// SIGTERM without sessions ends the process well, long before `drain_timeout`.
fn ends_at_once(mut proxy: Proxy) {
    let began = now();
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait_exit().code(), Some(0));
    let took = began.elapsed();
    // The default drain_timeout is 60 s.
    assert!(took < millis(3000), "{took:?}");
}

#[test]
fn a_pool_does_not_hold_up_an_end() {
    let backend = Switched::new(Manner::Echo);
    let proxy = with_pool(&backend, 50, "");
    settles(&backend, 100);
    ends_at_once(proxy);
    settles(&backend, 0);
}

#[test]
fn connections_that_are_being_opened_do_not_hold_up_an_end() {
    let nowhere = BlackHole::new();
    let proxy = Proxy::start(&text(&nowhere.address, 5, ""));
    pass(millis(100));
    ends_at_once(proxy);
}

#[test]
fn a_draining_process_closes_its_pool_and_lets_sessions_end() {
    let backend = Switched::new(Manner::Echo);
    let mut proxy = with_pool(&backend, 3, "");
    settles(&backend, 6);
    let client = exchange(None, &proxy.address("web")).expect("it is served");
    settles(&backend, 7);
    proxy.signal(Signal::TERM);
    settles(&backend, 1);
    there_and_back(&client, 100_000);
    drop(client);
    assert_eq!(proxy.next_session().reason, "client-closed");
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

/// A backend that takes four at once.
fn with_cap(backend: &Switched, preconnect: usize) -> Proxy {
    let upstream =
        format!("pool = {{ preconnect = {preconnect} }}\nqueue = {{ timeout = \"10s\" }}");
    let backends = format!("{{ address = {:?}, max_connections = 4 }}", backend.address);
    let text = config(&[], "", &upstream, "[runtime]\nworkers = 2\n");
    Proxy::start(&text.replace("backends = []", &format!("backends = [{backends}]")))
}

#[test]
fn connections_ahead_count_towards_the_cap() {
    let backend = Switched::new(Manner::Echo);
    let proxy = with_cap(&backend, 4);
    settles(&backend, 4);
    pass(millis(200));
    assert_eq!((backend.most(), backend.accepted()), (4, 4));
    // Four sessions fit, whichever worker holds the connections.
    let address = proxy.address("web");
    for _ in 0..10 {
        let clients: Vec<_> = (0..4).map(|_| exchange(None, &address)).collect();
        assert_eq!(clients.iter().flatten().count(), 4);
        assert_eq!(backend.open(), 4);
    }
    assert_eq!(backend.most(), 4);
    proxy.end();
}

#[test]
fn with_a_pool_the_cap_holds_under_load_and_everybody_is_served() {
    let backend = Switched::new(Manner::Echo);
    let mut proxy = with_cap(&backend, 3);
    let (address, began) = (proxy.address("web"), now());
    thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| (0..25).for_each(|_| assert!(exchange(None, &address).is_some())));
        }
    });
    println!("500 sessions in {:?}", began.elapsed());
    for session in proxy.next_sessions(500) {
        assert_eq!(session.reason, "client-closed");
    }
    assert!(backend.most() <= 4, "{} at once", backend.most());
    settles(&backend, 4);
    proxy.end();
}

#[test]
fn a_pool_leaves_no_descriptors_behind() {
    let backend = Switched::new(Manner::Echo);
    let proxy = with_pool(&backend, 3, "");
    settles(&backend, 6);
    let address = proxy.address("web");
    // Its ring and signals are open by then.
    assert!(exchange(None, &address).is_some());
    settles(&backend, 6);
    let before = descriptors(proxy.pid());
    for round in 0..30 {
        (0..10).for_each(|_| drop(exchange(None, &address)));
        match round % 3 {
            0 => backend.finish_all(),
            1 => backend.reset_all(),
            _ => proxy.signal(Signal::HUP),
        }
    }
    settles(&backend, 6);
    eventually("descriptors to be given back", || {
        (descriptors(proxy.pid()) <= before).then_some(())
    });
    proxy.end();
}
