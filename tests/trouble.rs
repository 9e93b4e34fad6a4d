//! What attackers, tired operators and bad days do to traffic policy, through the real binary: nobody
//! is left hanging, every session ends with a reason, and nothing is left behind.

mod common;

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use common::proxy::text;
use common::socket::{exchange, parse, unconnected};
use common::switched::{Manner, Switched};
use common::system::{anonymous_kib, descriptors};
use common::{Backend, Proxy, config, connect, eventually, now, pass};
use rustix::process::Signal;

const WORKERS: &str = "[runtime]\nworkers = 2\n";

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[test]
fn the_largest_rates_refuse_nobody() {
    let backend = Backend::echo();
    let most = "{ rate = 1000000000, burst = 1000000000 }";
    let limit = format!(
        "rate_limit = {{ connections = {most}, connections_per_ip = {most}, \
         bandwidth = {{ rate = \"1TiB\", burst = \"1TiB\" }}, max_clients = 1 }}"
    );
    let proxy = Proxy::start(&config(&[&backend.address], &limit, "", WORKERS));
    for _ in 0..200 {
        assert!(exchange(None, &proxy.address("web")).is_some());
    }
    common::essentials::there_and_back(&proxy.connect(), 8 << 20);
    proxy.end();
}

#[test]
fn the_smallest_rates_let_one_through() {
    let backend = Backend::echo();
    let limit = "rate_limit = { connections_per_ip = { rate = 1, burst = 1 }, \
        bandwidth = { rate = \"1KiB\", burst = \"1KiB\" }, ipv6_prefix = 1, max_clients = 1 }";
    let proxy = Proxy::start(&config(&[&backend.address], limit, "", WORKERS));
    assert!(exchange(Some("127.0.0.2"), &proxy.address("web")).is_some());
    assert!(exchange(Some("127.0.0.2"), &proxy.address("web")).is_none());
    proxy.end();
}

#[test]
fn thousands_of_addresses_find_a_full_table_and_are_served() {
    let backend = Backend::echo();
    for most in [1, 100] {
        let limit = format!(
            "rate_limit = {{ connections_per_ip = {{ rate = 1, burst = 1 }}, max_clients = {most} }}"
        );
        let proxy = Proxy::start(&config(&[&backend.address], &limit, "", WORKERS));
        let address = proxy.address("web");
        let before = anonymous_kib(proxy.pid());
        for number in 0..3000 {
            let source = format!("127.{}.{}.1", number / 256 + 1, number % 256);
            assert!(exchange(Some(&source), &address).is_some(), "{source}");
        }
        let grown = anonymous_kib(proxy.pid()).saturating_sub(before);
        assert!(grown < 1024, "{grown} KiB");
        proxy.end();
    }
}

/// One place at a backend that holds its answers.
fn one_place(backend: &str, more: &str) -> String {
    let text = config(
        &[],
        "",
        &format!("queue = {{ timeout = \"15s\" }}\n{more}"),
        WORKERS,
    );
    let entry = format!("backends = [{{ address = {backend:?}, max_connections = 1 }}]");
    text.replace("backends = []", &entry)
}

/// Clients that wait for the one place, while `meanwhile` happens; then the backend answers.
fn all_are_served(proxy: &mut Proxy, backend: &Switched, meanwhile: impl Fn(&mut Proxy)) {
    let address = proxy.address("web");
    let before = descriptors(proxy.pid());
    thread::scope(|scope| {
        let clients: Vec<_> = (0..30)
            .map(|_| scope.spawn(|| exchange(None, &address).is_some()))
            .collect();
        eventually("the first to arrive", || {
            (backend.accepted() == 1).then_some(())
        });
        eventually("all to have come", || {
            (descriptors(proxy.pid()) > before + 30).then_some(())
        });
        meanwhile(proxy);
        assert_eq!(backend.accepted(), 1);
        backend.switch(Manner::Echo);
        for client in clients {
            assert!(client.join().expect("served or reset"));
        }
    });
    assert_eq!(backend.accepted(), 30);
    assert_eq!(backend.most(), 1);
    for session in proxy.next_sessions(30) {
        assert_eq!(
            (&*session.reason, &*session.backend),
            ("client-closed", &*backend.address)
        );
    }
}

#[test]
fn who_waits_is_served_through_a_storm_of_reloads() {
    let backend = Switched::new(Manner::Hold);
    let mut proxy = Proxy::start(&one_place(&backend.address, ""));
    all_are_served(&mut proxy, &backend, |proxy| {
        for round in 0..20 {
            let weight = ["", "slow_start = \"1s\""][round % 2];
            proxy.reload(&one_place(&backend.address, weight));
            (0..20).for_each(|_| proxy.signal(Signal::HUP));
        }
    });
    proxy.end();
}

#[test]
fn who_waits_is_served_when_the_upstream_is_taken_away() {
    let (backend, other) = (Switched::new(Manner::Hold), Backend::echo());
    let mut proxy = Proxy::start(&one_place(&backend.address, ""));
    let without = config(&[&other.address], "", "", WORKERS).replace("app", "rest");
    all_are_served(&mut proxy, &backend, |proxy| {
        assert_eq!(proxy.reload(&without)["message"], "reloaded");
        // Who comes now has nothing to do with it.
        assert!(exchange(None, &proxy.address("web")).is_some());
        assert_eq!(proxy.next_session().backend, other.address);
    });
    proxy.end();
}

#[test]
fn who_comes_after_a_cap_was_raised_need_not_wait() {
    let backend = Switched::new(Manner::Hold);
    let proxy = Proxy::start(&one_place(&backend.address, ""));
    let address = proxy.address("web");
    thread::scope(|scope| {
        let early: Vec<_> = (0..10)
            .map(|_| scope.spawn(|| exchange(None, &address).is_some()))
            .collect();
        eventually("the first to arrive", || {
            (backend.accepted() == 1).then_some(())
        });
        backend.switch(Manner::Echo);
        // The first one is held by its own client, the others wait for its place.
        let raised =
            one_place(&backend.address, "").replace("max_connections = 1", "max_connections = 50");
        assert_eq!(proxy.reload(&raised)["message"], "reloaded");
        let began = now();
        assert!(exchange(None, &address).is_some());
        let took = began.elapsed();
        assert!(took < millis(5000), "{took:?}");
        early.into_iter().for_each(|client| drop(client.join()));
    });
    proxy.end();
}

#[test]
fn a_backend_that_was_away_for_a_reload_keeps_its_cap() {
    let (backend, other) = (Switched::new(Manner::Echo), Backend::echo());
    let entry = format!("{{ address = {:?}, max_connections = 2 }}", backend.address);
    let list = |entries: &str| {
        let text = config(&[], "", "", WORKERS);
        text.replace("backends = []", &format!("backends = [{entries}]"))
    };
    let (with, without) = (list(&entry), list(&format!("{:?}", other.address)));
    let proxy = Proxy::start(&with);
    let address = proxy.address("web");
    let old: Vec<_> = (0..2).map(|_| exchange(None, &address)).collect();
    assert_eq!(old.iter().flatten().count(), 2);
    proxy.reload(&without);
    assert!(exchange(None, &address).is_some());
    proxy.reload(&with);
    assert!(
        exchange(None, &address).is_none(),
        "its two places are taken still"
    );
    assert_eq!(backend.most(), 2);
    drop(old);
    proxy.end();
}

#[test]
fn clients_that_leave_while_they_wait_leave_the_line() {
    let backend = Switched::new(Manner::Hold);
    let text =
        one_place(&backend.address, "").replace("timeout = \"15s\"", "timeout = \"15s\", max = 20");
    let mut proxy = Proxy::start(&text);
    let address = proxy.address("web");
    let mut first = connect(&address);
    first.write_all(b"x").expect("taken");
    eventually("the first to arrive", || {
        (backend.accepted() == 1).then_some(())
    });
    let waiting: Vec<_> = (0..25).map(|_| connect(&address)).collect();
    for session in proxy.next_sessions(5) {
        assert_eq!(session.reason, "queue-full");
    }
    waiting.into_iter().for_each(common::reset);
    backend.switch(Manner::Echo);
    first.read_exact(&mut [0]).expect("the answer");
    drop(first);
    for session in proxy.next_sessions(21) {
        assert!(
            ["client-closed", "client-reset"].contains(&&*session.reason),
            "{session:?}"
        );
    }
    assert!(exchange(None, &address).is_some());
    assert_eq!(backend.accepted(), 2, "nobody who had left was connected");
    proxy.end();
}

/// Four backends of one upstream with every policy there is.
fn everything(backends: &[Switched]) -> String {
    let entries: Vec<String> = backends
        .iter()
        .enumerate()
        .map(|(number, backend)| {
            let backup = number == 3;
            let address = &backend.address;
            format!("{{ address = {address:?}, max_connections = 20, backup = {backup} }}")
        })
        .collect();
    let listener = "max_connections = 200\nallow = \"127.0.0.0/8\"\ndeny = \"127.0.0.66\"\n\
        rate_limit = { connections = { rate = 1000000 }, \
        connections_per_ip = { rate = 100000, burst = 1000 }, \
        bandwidth = { rate = \"1MiB\", burst = \"64KiB\" }, max_clients = 1 }\n\
        timeouts = { idle = \"5s\", half_close = \"2s\" }";
    let upstream = "connect_timeout = \"500ms\"\nslow_start = \"100ms\"\nfail_open_below = 0.3\n\
        health_check = { interval = \"50ms\", timeout = \"40ms\", rise = 1, fall = 1 }\n\
        outlier = { consecutive_failures = 2, eject_for = \"20ms\", max_eject_for = \"100ms\" }\n\
        circuit_breaker = { min_requests = 5, window = \"1s\", open_for = \"50ms\" }\n\
        retry = { attempts = 3, backoff = \"5ms\" }\n\
        queue = { max = 50, timeout = \"200ms\" }\n\
        pool = { preconnect = 3, idle_timeout = \"100ms\", max_lifetime = \"500ms\" }";
    let text = config(&[], listener, upstream, WORKERS);
    text.replace(
        "backends = []",
        &format!("backends = [{}]", entries.join(", ")),
    )
}

/// Does something else to one backend after the other, a hundred times a second, until it is told.
fn flap(backends: &[Switched], ended: &AtomicBool) {
    let mut listens = vec![true; backends.len()];
    let manners = [
        Manner::Echo,
        Manner::Reset,
        Manner::Greet,
        Manner::Close,
        Manner::Hold,
    ];
    for step in 0.. {
        if ended.load(Ordering::SeqCst) {
            break;
        }
        // Without a common divisor, so that every backend has all of it.
        let number = step % backends.len();
        let backend = &backends[number];
        match step / backends.len() % 7 {
            0 | 1 => backend.reset_all(),
            2 => backend.finish_all(),
            3 if listens[number] => {
                backend.stop_listening();
                listens[number] = false;
            }
            4 if !listens[number] => {
                backend.listen_again();
                listens[number] = true;
            }
            _ => backend.switch(manners[step % manners.len()]),
        }
        pass(millis(5));
    }
    for (backend, listens) in backends.iter().zip(listens) {
        if !listens {
            backend.listen_again();
        }
        backend.switch(Manner::Echo);
    }
}

/// A client that takes whatever comes, for a while; whether that was a byte.
fn any_client(address: &str) -> bool {
    let mut client = unconnected(address);
    client
        .set_read_timeout(Some(millis(100)))
        .expect("a timeout");
    let answer = client
        .connect(&parse(address).1)
        .and_then(|()| client.write_all(&[7; 3000]))
        .and_then(|()| client.read(&mut [0; 3000]));
    answer.is_ok_and(|count| count > 0)
}

/// Sessions that were told of, and those that the log had no room for.
fn told_sessions(proxy: &Proxy) -> usize {
    let lines = proxy.lines();
    let ends = lines
        .iter()
        .filter(|line| line["message"] == "session closed");
    let dropped = lines.iter().filter_map(|line| line["dropped"].as_u64());
    ends.count() + dropped.sum::<u64>() as usize
}

#[test]
fn with_everything_on_and_backends_that_flap_nothing_is_lost() {
    let backends: Vec<_> = (0..4).map(|_| Switched::new(Manner::Echo)).collect();
    let config = everything(&backends);
    let proxy = Proxy::start(&config);
    let address = proxy.address("web");
    assert!(any_client(&address));
    let pools = || backends.iter().map(Switched::open).sum::<usize>();
    eventually("the pools to be full", || (pools() >= 18).then_some(()));
    let before = descriptors(proxy.pid());
    let (ended, clients) = (AtomicBool::new(false), AtomicUsize::new(1));
    thread::scope(|scope| {
        scope.spawn(|| flap(&backends, &ended));
        for _ in 0..8 {
            scope.spawn(|| {
                while !ended.load(Ordering::SeqCst) {
                    clients.fetch_add(1, Ordering::SeqCst);
                    any_client(&address);
                }
            });
        }
        for _ in 0..10 {
            pass(millis(300));
            proxy.reload(&config);
        }
        ended.store(true, Ordering::SeqCst);
    });
    // It recovers by itself.
    let mut row = 0;
    eventually("20 clients in a row to be served", || {
        clients.fetch_add(1, Ordering::SeqCst);
        row = if any_client(&address) { row + 1 } else { 0 };
        (row == 20).then_some(())
    });
    let clients = clients.load(Ordering::SeqCst);
    eventually("every session to be told of", || {
        (told_sessions(&proxy) >= clients).then_some(())
    });
    assert_eq!(told_sessions(&proxy), clients);
    eventually("descriptors to be given back", || {
        (descriptors(proxy.pid()) <= before + 3).then_some(())
    });
    for backend in &backends {
        assert!(
            backend.most() <= 21,
            "20 and a probe, not {}",
            backend.most()
        );
    }
    let mut reasons: Vec<_> = proxy
        .lines()
        .iter()
        .map(|line| text(line, "reason"))
        .collect();
    reasons.sort_unstable();
    reasons.dedup();
    println!("{clients} sessions, which ended with {reasons:?}");
    assert!(
        proxy.lines().iter().all(|line| line.is_object()),
        "a panic is no JSON"
    );
    proxy.end();
}
