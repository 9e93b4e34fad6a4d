//! Retries, ejection and breakers, through the real binary.

mod common;

use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use common::backend::Refusing;
use common::proxy::text;
use common::socket::exchange;
use common::switched::{Manner, Switched};
use common::{Backend, Proxy, config, connect, eventually, now, pass};

const WORKERS: &str = "[runtime]\nworkers = 2\n";

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn with_tables(backends: &[&str], upstream: &str) -> Proxy {
    Proxy::start(&config(backends, "", upstream, WORKERS))
}

/// Lines so far whose message begins so.
fn lines(proxy: &Proxy, beginning: &str) -> usize {
    let all = proxy.lines();
    all.iter()
        .filter(|line| text(line, "message").starts_with(beginning))
        .count()
}

#[test]
fn when_all_refuse_few_sessions_try_more_than_once() {
    let refusing = [Refusing::new(), Refusing::new(), Refusing::new()];
    let backends = [0, 1, 2].map(|index: usize| &*refusing[index].address);
    // Who comes to the second retry is held up for half a second on average.
    let retry = "retry = { attempts = 3, backoff = \"1s\", max_backoff = \"1s\" }";
    let mut proxy = with_tables(&backends, retry);
    let (began, address) = (now(), proxy.address("web"));
    thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| (0..20).for_each(|_| assert!(exchange(None, &address).is_none())));
        }
    });
    let took = began.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
    for session in proxy.next_sessions(200) {
        assert_eq!((&*session.reason, &*session.backend), ("no-backend", "-"));
    }
    let lines = proxy.lines();
    let durations = lines.iter().filter_map(|line| line["duration_ms"].as_u64());
    let slow = durations.filter(|duration| *duration >= 100).count();
    println!("{slow} of 200 came to a second retry, {took:?}");
    // A fifth of the sessions may retry; how many of them twice is a matter of who comes first.
    assert!(slow <= 40, "{slow} of 200");
    // Once a second for the whole process.
    let told = lines
        .iter()
        .filter(|line| line["message"] == "a backend can't be connected to");
    assert!((1..=2 + took.as_secs() as usize).contains(&told.count()));
    proxy.end();
}

#[test]
fn with_one_good_backend_among_three_everybody_is_served() {
    let (first, second, good) = (Refusing::new(), Refusing::new(), Backend::echo());
    let backends = [&*first.address, &second.address, &good.address];
    // Each session's last try succeeds and is not charged; the one before may be.
    let retry = "retry = { attempts = 2, backoff = \"0s\", budget = 1.0 }";
    let mut proxy = with_tables(&backends, retry);
    let (began, address) = (now(), proxy.address("web"));
    for number in 0..200 {
        assert!(exchange(None, &address).is_some(), "client {number}");
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    for session in proxy.next_sessions(200) {
        assert_eq!(
            (&*session.reason, &*session.backend),
            ("client-closed", &*good.address)
        );
    }
    proxy.end();
}

#[test]
fn with_half_the_backends_refusing_the_usual_retry_serves_everybody() {
    let (first, second) = (Refusing::new(), Refusing::new());
    let (third, fourth) = (Backend::echo(), Backend::echo());
    // Neighbours in the turn, so that a refusal is followed by one that accepts.
    let backends = [
        &*first.address,
        &third.address,
        &second.address,
        &fourth.address,
    ];
    let proxy = with_tables(&backends, "");
    let address = proxy.address("web");
    for number in 0..200 {
        assert!(exchange(None, &address).is_some(), "client {number}");
    }
    proxy.end();
}

/// One client after the other until `until` says so; how many were served and how many were reset.
fn clients(address: &str, mut until: impl FnMut() -> bool) -> (usize, usize) {
    let (mut served, mut reset) = (0, 0);
    let end = now() + common::PATIENCE;
    while !until() {
        assert!(now() < end, "waited in vain");
        match exchange(None, address) {
            Some(_) => served += 1,
            None => reset += 1,
        }
        pass(millis(2));
    }
    (served, reset)
}

fn gap(arrivals: &[Instant], after: usize) -> Duration {
    arrivals[after] - arrivals[after - 1]
}

#[test]
fn a_backend_that_fails_in_a_row_is_ejected_for_twice_as_long_each_time() {
    let (bad, good) = (Switched::new(Manner::Reset), Switched::new(Manner::Echo));
    let outlier = "outlier = { consecutive_failures = 3, eject_for = \"500ms\" }";
    let mut proxy = with_tables(&[&bad.address, &good.address], outlier);
    let address = proxy.address("web");
    let (served, reset) = clients(&address, || bad.accepted() >= 9);
    assert!(served > 0);
    // Whoever came last was reset, too, but for the one that is not through yet.
    assert_eq!(reset, 9);
    bad.switch(Manner::Echo);
    let mut before = 0;
    clients(&address, || {
        before = bad.accepted();
        before >= 14
    });
    let arrivals = bad.arrivals();
    // Three in a row, then a rest of 0.5, 1 and 2 s.
    for (after, rest) in [(3, 500), (6, 1000), (9, 2000)] {
        let gap = gap(&arrivals, after);
        assert!(
            (millis(rest)..millis(rest + 800)).contains(&gap),
            "{gap:?} after {after}"
        );
    }
    let ejections = proxy.lines();
    let times: Vec<_> = ejections
        .iter()
        .filter(|line| text(line, "message").starts_with("backend is ejected"))
        .map(|line| (text(line, "backend"), text(line, "time")))
        .collect();
    let of_bad = |time: &str| (bad.address.clone(), time.to_owned());
    assert_eq!(times, [of_bad("500ms"), of_bad("1s"), of_bad("2s")]);
    // Since it has answered, it begins anew.
    bad.switch(Manner::Reset);
    let from = proxy.lines().len();
    clients(&address, || lines(&proxy, "backend is ejected") >= 4);
    let line = proxy.wait_message(from, "backend is ejected");
    assert_eq!(text(&line, "time"), "500ms");
    assert!(
        proxy
            .next_sessions(20)
            .iter()
            .all(|session| session.reason != "no-backend")
    );
    proxy.end();
}

#[test]
fn of_two_bad_backends_only_one_is_out_at_a_time() {
    let bad = [Switched::new(Manner::Reset), Switched::new(Manner::Reset)];
    let outlier = "outlier = { consecutive_failures = 3, eject_for = \"400ms\", \
        max_eject_for = \"400ms\", max_ejected = 0.5 }";
    let mut proxy = with_tables(&[&bad[0].address, &bad[1].address], outlier);
    let (address, began) = (proxy.address("web"), now());
    let (_, reset) = clients(&address, || began.elapsed() > millis(2000));
    for session in proxy.next_sessions(reset) {
        // Not even for a moment is there no backend.
        assert_eq!(session.reason, "backend-reset");
    }
    let ejections = lines(&proxy, "backend is ejected");
    assert!((3..=6).contains(&ejections), "{ejections} of 400 ms in 2 s");
    proxy.end();
}

const BREAKER: &str = "circuit_breaker = { min_requests = 5, open_for = \"700ms\", \
    half_open_requests = 3 }\nretry = { attempts = 0 }";

/// A backend that has opened its breaker, and when that was heard of.
fn opened(proxy: &mut Proxy, backend: &Switched) -> Instant {
    let address = proxy.address("web");
    for _ in 0..5 {
        assert!(exchange(None, &address).is_none());
    }
    proxy.wait_message(0, "breaker is open");
    assert_eq!(backend.accepted(), 5);
    for session in proxy.next_sessions(5) {
        assert_eq!(session.reason, "backend-reset");
    }
    now()
}

fn until(time: Instant) {
    pass(time.saturating_duration_since(now()));
}

#[test]
fn an_open_breaker_admits_nobody_and_a_half_open_one_exactly_so_many() {
    let backend = Switched::new(Manner::Reset);
    let mut proxy = with_tables(&[&backend.address], BREAKER);
    let address = proxy.address("web");
    let heard = opened(&mut proxy, &backend);
    backend.switch(Manner::Hold);
    for _ in 0..20 {
        assert!(exchange(None, &address).is_none());
    }
    // On a machine that stood still meanwhile they may have come late.
    if heard.elapsed() < millis(600) {
        assert_eq!(backend.accepted(), 5, "it is open");
        for session in proxy.next_sessions(20) {
            assert_eq!((&*session.reason, &*session.backend), ("no-backend", "-"));
        }
    }
    until(heard + millis(750));
    thread::scope(|scope| {
        let trials: Vec<_> = (0..30)
            .map(|_| scope.spawn(|| exchange(None, &address)))
            .collect();
        eventually("27 to be refused", || {
            let done = trials.iter().filter(|trial| trial.is_finished()).count();
            (done >= 27).then_some(())
        });
        assert_eq!(backend.accepted(), 8);
        // Still no verdict, still nobody else.
        for _ in 0..10 {
            assert!(exchange(None, &address).is_none());
        }
        assert_eq!(backend.accepted(), 8);
        proxy.wait_message(0, "breaker is half-open");
        assert_eq!(lines(&proxy, "breaker is closed"), 0);
        backend.switch(Manner::Echo);
        let ends = trials
            .into_iter()
            .map(|trial| trial.join().expect("it ran"));
        assert_eq!(ends.flatten().count(), 3);
    });
    proxy.wait_message(0, "breaker is closed");
    for _ in 0..20 {
        assert!(exchange(None, &address).is_some());
    }
    assert_eq!(lines(&proxy, "breaker is half-open"), 1);
    proxy.end();
}

#[test]
fn a_failure_while_half_open_opens_it_again() {
    let backend = Switched::new(Manner::Reset);
    let mut proxy = with_tables(&[&backend.address], BREAKER);
    let address = proxy.address("web");
    for round in 1..=3 {
        let heard = match round {
            1 => opened(&mut proxy, &backend),
            _ => now(),
        };
        assert_eq!(lines(&proxy, "breaker is open"), round);
        until(heard + millis(750));
        let before = backend.accepted();
        assert!(exchange(None, &address).is_none());
        eventually("it to open again", || {
            (lines(&proxy, "breaker is open") > round).then_some(())
        });
        assert!(exchange(None, &address).is_none());
        assert_eq!(backend.accepted(), before + 1);
    }
    backend.switch(Manner::Echo);
    pass(millis(750));
    for _ in 0..10 {
        assert!(exchange(None, &address).is_some());
    }
    proxy.end();
}

#[test]
fn clients_that_go_away_while_half_open_leave_their_places() {
    let backend = Switched::new(Manner::Reset);
    let mut proxy = with_tables(&[&backend.address], BREAKER);
    let address = proxy.address("web");
    let heard = opened(&mut proxy, &backend);
    backend.switch(Manner::Hold);
    until(heard + millis(750));
    let silent: Vec<_> = (0..3).map(|_| connect(&address)).collect();
    eventually("them to arrive", || (backend.accepted() == 8).then_some(()));
    assert!(exchange(None, &address).is_none());
    silent.into_iter().for_each(common::reset);
    for session in proxy.next_sessions(4).into_iter().skip(1) {
        assert_eq!(session.reason, "client-reset");
    }
    backend.switch(Manner::Echo);
    for _ in 0..10 {
        assert!(exchange(None, &address).is_some());
    }
    proxy.wait_message(0, "breaker is closed");
    proxy.end();
}

#[test]
fn a_breaker_counts_ends_in_order_as_successes() {
    let backend = Switched::new(Manner::Close);
    let proxy = with_tables(&[&backend.address], BREAKER);
    let address = proxy.address("web");
    for _ in 0..30 {
        // FIN without a byte is an answer.
        assert_eq!(connect(&address).read(&mut [0]).expect("FIN"), 0);
    }
    assert_eq!(backend.accepted(), 30);
    assert_eq!(lines(&proxy, "breaker is open"), 0);
    proxy.end();
}
