//! Shares of sessions by weight, one after another and at once.

use std::thread;
use std::time::Duration;

use ringress::policy::balance::ALGORITHMS;
use socket2::Socket;

use crate::common::mortal::{Mortal, PING, PONG, SICK, ask, behind_two_workers, shares, visit};
use crate::common::{Proxy, connect, pass};
use crate::{THREADS, visit_as, visits_at_once};

/// Sessions where shares are a matter of chance: 5 % of them is five standard deviations.
const MANY: usize = 2400;
/// Sessions that are open at once.
const OPEN: usize = 600;

/// How near to the weights the shares are.
#[derive(Clone, Copy, Debug)]
enum Promise {
    Exact,
    /// In sessions.
    Within(usize),
    /// The weight is not all that counts.
    Some,
}

impl Promise {
    /// Within 5 % of all sessions.
    fn near(sessions: usize) -> Self {
        Self::Within(sessions / 20)
    }

    fn check(self, algorithm: &str, shares: [usize; 3]) {
        let sessions: usize = shares.iter().sum();
        for (share, weight) in shares.into_iter().zip(1..) {
            let off = share.abs_diff(sessions * weight / 6);
            let kept = match self {
                Self::Exact => off == 0,
                Self::Within(most) => off <= most,
                Self::Some => share > 0,
            };
            assert!(kept, "{algorithm}: {shares:?} is not {self:?}");
        }
    }
}

/// What an algorithm promises of sessions one after another, of which there are so many, and of those
/// that are open at once. One that is new has to be given a line.
fn promises(algorithm: &str) -> (usize, Promise, Promise) {
    let exact = Promise::Exact;
    let near = |sessions| (sessions, Promise::near(sessions), Promise::near(OPEN));
    match algorithm {
        "round-robin" => (120, exact, exact),
        // A session is counted for a moment longer than its client lives.
        "least-connections" => near(300),
        "random" | "power-of-two" => near(MANY),
        // Of clients, each with an address of its own.
        "ip-hash" | "maglev" => near(MANY),
        // What it measures differs from moment to moment.
        "peak-ewma" => (120, Promise::Some, Promise::Some),
        new => panic!("{new}: what does it promise?"),
    }
}

fn by_weight(backends: &[Mortal; 3]) -> Vec<String> {
    let weighted = backends.iter().zip(1..);
    weighted
        .map(|(backend, weight)| backend.weighing(weight))
        .collect()
}

/// Opens that many sessions, from several threads, and leaves them open; who answered in them.
fn open_at_once(address: &str, count: usize) -> (Vec<Socket>, Vec<String>) {
    let open = || {
        let client = connect(address);
        let who = ask(&client).expect("it is answered");
        (client, who)
    };
    let open = &open;
    thread::scope(|scope| {
        let part = || (0..count / THREADS).map(|_| open()).collect::<Vec<_>>();
        let tasks: Vec<_> = (0..THREADS).map(|_| scope.spawn(part)).collect();
        let parts = tasks.into_iter().map(|task| task.join().expect("served"));
        parts.flatten().unzip()
    })
}

#[test]
fn every_algorithm_serves_by_weight_one_after_another_and_at_once() {
    for algorithm in ALGORITHMS {
        let name = algorithm.name;
        let backends = Mortal::many::<3>();
        let balance = format!("balance = {name:?}");
        let proxy = Proxy::start(&behind_two_workers(&by_weight(&backends), &balance, ""));
        let address = proxy.address("web");
        let (count, in_turn, at_once) = promises(name);
        if algorithm.needs_client {
            let clients: Vec<_> = (0..count).collect();
            let names: Vec<_> = clients
                .iter()
                .map(|client| visit_as(*client, &address))
                .collect();
            in_turn.check(name, shares(&backends, &names));
            assert_eq!(visits_at_once(&address, &clients), names, "{name}");
            proxy.end();
            continue;
        }
        let names: Vec<_> = (0..count)
            .map(|_| visit(&address).expect("it is served"))
            .collect();
        in_turn.check(name, shares(&backends, &names));
        let (clients, names) = open_at_once(&address, OPEN);
        at_once.check(name, shares(&backends, &names));
        drop(clients);
        proxy.end();
    }
}

#[test]
fn least_connections_counts_the_sessions_of_all_workers() {
    let backends = Mortal::many::<3>();
    let balance = "balance = \"least-connections\"";
    let proxy = Proxy::start(&behind_two_workers(&by_weight(&backends), balance, ""));
    let address = proxy.address("web");
    for round in 1..=10 {
        // One after another, so that no two workers choose in the same moment.
        let open = |_| {
            let client = connect(&address);
            (ask(&client).expect("it is answered"), client)
        };
        let (names, clients): (Vec<_>, Vec<_>) = (0..6 * round).map(open).unzip();
        let expected = [1, 2, 3].map(|weight| weight * round);
        assert_eq!(shares(&backends, &names), expected);
        drop(clients);
        for backend in &backends {
            backend.wait("its sessions to end", |counts| counts.open == 0);
        }
        // A place is free when the backend has closed as well, which the proxy hears a moment later.
        pass(Duration::from_millis(100));
    }
    proxy.end();
}

#[test]
fn round_robin_is_exact_over_those_that_are_healthy() {
    let backends = Mortal::many::<3>();
    let check = format!(
        "[upstreams.app.health_check]\n{PING}\
         interval = \"50ms\"\ntimeout = \"5s\"\nfall = 1\nrise = 1\n"
    );
    let proxy = Proxy::start(&behind_two_workers(&by_weight(&backends), "", &check));
    let address = proxy.address("web");
    let clients: Vec<_> = (0..120).collect();
    for (down, expected) in [[0, 48, 72], [30, 0, 90], [40, 80, 0]]
        .into_iter()
        .enumerate()
    {
        let backend = &backends[down];
        let from = proxy.lines().len();
        backend.answer_probes(SICK);
        proxy.wait_about(from, "backend is down", &backend.address);
        let names = visits_at_once(&address, &clients);
        assert_eq!(shares(&backends, &names), expected);
        let from = proxy.lines().len();
        backend.answer_probes(PONG);
        proxy.wait_about(from, "backend is up", &backend.address);
        let names = visits_at_once(&address, &clients);
        assert_eq!(shares(&backends, &names), [20, 40, 60]);
    }
    proxy.end();
}

/// The shares of a backend that is this slow, and of one that isn't, with so many clients at once.
fn slow_and_fast(balance: &str, delay: Duration, threads: usize, each: usize) -> [usize; 2] {
    let backends = Mortal::many::<2>();
    let list = backends.each_ref().map(|backend| backend.weighing(1));
    let balance = format!("balance = {balance:?}");
    let proxy = Proxy::start(&behind_two_workers(&list, &balance, ""));
    let address = &proxy.address("web");
    backends[0].slow_down(delay);
    let visits = || {
        let visits = (0..each).map(|_| visit(address).expect("it is served"));
        visits.collect::<Vec<_>>()
    };
    let names: Vec<_> = thread::scope(|scope| {
        let tasks: Vec<_> = (0..threads).map(|_| scope.spawn(visits)).collect();
        let parts = tasks.into_iter().map(|task| task.join().expect("served"));
        parts.flatten().collect()
    });
    proxy.end();
    shares(&backends, &names)
}

#[test]
fn least_connections_spares_a_backend_that_holds_sessions_long() {
    let [slow, fast] = slow_and_fast("least-connections", Duration::from_millis(300), THREADS, 30);
    assert!(slow > 0 && fast > 3 * slow, "{slow} and {fast}");
}

#[test]
fn peak_ewma_prefers_the_fast_backend() {
    let [slow, fast] = slow_and_fast("peak-ewma", Duration::from_millis(300), 1, 60);
    // An unmeasured one is tried.
    assert!(slow > 0 && fast > 5 * slow, "{slow} and {fast}");
}
