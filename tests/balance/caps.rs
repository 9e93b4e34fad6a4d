//! The cap of a backend, and the queue of those who wait for a place.

use std::thread;
use std::time::Duration;

use socket2::Socket;

use crate::common::mortal::{Mortal, ask, behind_two_workers, visit};
use crate::common::{Ending, Proxy, connect, ending, now, pass};

const CAP: u64 = 100;
const CLIENTS: usize = 300;

/// In front of one backend with this cap, and this queue.
fn capped(backend: &Mortal, cap: u64, queue: &str) -> Proxy {
    let entry = backend.with(&format!("max_connections = {cap}"));
    let queue = format!("[upstreams.app.queue]\n{queue}\n");
    Proxy::start(&behind_two_workers(&[entry], "", &queue))
}

#[test]
fn a_backend_never_has_more_than_its_cap_and_everybody_is_served() {
    let backend = Mortal::new();
    let mut proxy = capped(&backend, CAP, "max = 1024\ntimeout = \"20s\"");
    let address = &proxy.address("web");
    backend.hold(true);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| scope.spawn(|| visit(address)))
            .collect();
        backend.wait("the cap to be reached", |counts| counts.open >= CAP);
        // Time for one too many to come.
        pass(Duration::from_millis(300));
        assert_eq!(backend.counts().open, CAP);
        backend.hold(false);
        for client in clients {
            let served = client.join().expect("it ends");
            assert_eq!(served.expect("it is served"), backend.address);
        }
    });
    let counts = backend.counts();
    assert_eq!((counts.most_open, counts.sessions), (CAP, CLIENTS as u64));
    for session in proxy.next_sessions(CLIENTS) {
        assert_eq!(session.reason, "client-closed");
    }
    proxy.end();
}

#[test]
fn the_cap_holds_while_sessions_come_and_go() {
    let backend = Mortal::new();
    let proxy = capped(&backend, 3, "max = 1024\ntimeout = \"20s\"");
    let address = &proxy.address("web");
    thread::scope(|scope| {
        let visits = || {
            for _ in 0..50 {
                visit(address).expect("it is served");
            }
        };
        for _ in 0..12 {
            scope.spawn(visits);
        }
    });
    let counts = backend.counts();
    assert_eq!((counts.most_open, counts.sessions), (3, 600));
    proxy.end();
}

/// A session that has the only place.
fn occupy(proxy: &Proxy) -> Socket {
    let client = proxy.connect();
    ask(&client).expect("it is answered");
    client
}

#[test]
fn who_finds_the_queue_full_is_reset_at_once_and_who_waits_is_served() {
    let backend = Mortal::new();
    let mut proxy = capped(&backend, 1, "max = 2\ntimeout = \"20s\"");
    let address = &proxy.address("web");
    let occupying = occupy(&proxy);
    let began = now();
    let (refused, served) = thread::scope(|scope| {
        let clients: Vec<_> = (0..5).map(|_| scope.spawn(|| visit(address))).collect();
        let refused: Vec<_> = proxy
            .next_sessions(3)
            .into_iter()
            .map(|it| it.reason)
            .collect();
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert_eq!(refused, ["queue-full"; 3]);
        assert_eq!(backend.counts().connections, 1);
        drop(occupying);
        let ends: Vec<_> = clients
            .into_iter()
            .map(|client| client.join().expect("it ends"))
            .collect();
        let resets = ends
            .iter()
            .filter_map(|end| end.as_ref().err())
            .map(std::io::Error::kind);
        let resets: Vec<_> = resets.collect();
        (resets, ends.iter().flatten().count())
    });
    assert_eq!(refused, [std::io::ErrorKind::ConnectionReset; 3]);
    assert_eq!(served, 2);
    assert_eq!(backend.counts().most_open, 1);
    proxy.end();
}

#[test]
fn without_a_queue_who_finds_the_backend_full_is_reset_at_once() {
    let backend = Mortal::new();
    let mut proxy = capped(&backend, 1, "max = 0\ntimeout = \"20s\"");
    let occupying = occupy(&proxy);
    for _ in 0..5 {
        let began = now();
        let refused = visit(&proxy.address("web")).expect_err("there is no place");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionReset);
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert_eq!(proxy.next_session().reason, "queue-full");
    }
    drop(occupying);
    proxy.end();
}

#[test]
fn who_has_waited_for_too_long_is_reset() {
    let backend = Mortal::new();
    let mut proxy = capped(&backend, 1, "timeout = \"400ms\"");
    let occupying = occupy(&proxy);
    let began = now();
    let mut waiting = [(); 4].map(|()| connect(&proxy.address("web")));
    for client in &mut waiting {
        assert_eq!(ending(client), Ending::Reset);
    }
    let took = began.elapsed();
    let expected = Duration::from_millis(390)..Duration::from_secs(3);
    assert!(expected.contains(&took), "{took:?}");
    for session in proxy.next_sessions(4) {
        let ended = (session.reason.as_str(), session.backend.as_str());
        assert_eq!(ended, ("queue-timeout", "-"));
    }
    assert_eq!(backend.counts().connections, 1);
    drop(occupying);
    proxy.end();
}
