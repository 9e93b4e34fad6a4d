//! A backend that is killed while sessions come and go.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::THREADS;
use crate::common::mortal::{Mortal, behind_two_workers, visit};
use crate::common::{Proxy, eventually, now, pass};

/// A client's session.
struct Visit {
    began: Instant,
    outcome: Result<String, io::Error>,
    ended: Instant,
}

fn visits_until(stop: &AtomicBool, address: &str) -> Vec<Visit> {
    let mut visits = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        visits.push(Visit {
            began: now(),
            outcome: visit(address),
            ended: now(),
        });
    }
    visits
}

/// What several clients met, while a backend was killed after a second and came back after two.
fn under_load(proxy: &Proxy, victim: &Mortal) -> (Vec<Visit>, [Instant; 3]) {
    let (stop, address) = (AtomicBool::new(false), &proxy.address("web"));
    thread::scope(|scope| {
        let load = || visits_until(&stop, address);
        let clients: Vec<_> = (0..THREADS).map(|_| scope.spawn(load)).collect();
        pass(Duration::from_secs(1));
        let dying = now();
        victim.kill();
        let dead = now();
        pass(Duration::from_secs(1));
        let back = now();
        victim.revive();
        pass(Duration::from_millis(500));
        stop.store(true, Ordering::Relaxed);
        let parts = clients
            .into_iter()
            .map(|task| task.join().expect("it ends"));
        (parts.flatten().collect(), [dying, dead, back])
    })
}

#[test]
fn a_backend_killed_under_load_costs_only_the_sessions_that_it_had() {
    let [victim, other] = Mortal::many();
    let list = [victim.weighing(1), other.weighing(1)];
    let retry = "[upstreams.app.retry]\nattempts = 1\n";
    let mut proxy = Proxy::start(&behind_two_workers(&list, "", retry));
    let (visits, [dying, dead, back]) = under_load(&proxy, &victim);
    let failed: Vec<_> = visits
        .iter()
        .filter(|visit| visit.outcome.is_err())
        .collect();
    for visit in &failed {
        let late = visit.began.saturating_duration_since(dead);
        assert!(
            late.is_zero(),
            "{late:?} after the kill: {:?}",
            visit.outcome
        );
    }
    assert!(
        failed.len() <= THREADS,
        "one session of each client: {}",
        failed.len()
    );
    let served_by = |backend: &Mortal, from: Instant, to: Instant| {
        let between = |visit: &&Visit| from <= visit.began && visit.ended <= to;
        let by = |visit: &Visit| matches!(&visit.outcome, Ok(by) if *by == backend.address);
        let visits = visits.iter().filter(between);
        visits.filter(|visit| by(visit)).count()
    };
    assert!(
        served_by(&victim, visits[0].began, dying) > 0,
        "it had sessions"
    );
    assert_eq!(served_by(&victim, dead, back), 0, "it is dead");
    assert!(
        served_by(&other, dead, back) > THREADS,
        "the other one goes on"
    );
    eventually("it to be used again", || {
        (visit(&proxy.address("web")).ok()? == victim.address).then_some(())
    });
    // Whatever failed had been established on the victim.
    for _ in 0..visits.len() {
        let session = proxy.next_session();
        if session.reason != "client-closed" {
            let ended = (session.reason.as_str(), session.backend.as_str());
            assert_eq!(ended, ("backend-reset", victim.address.as_str()));
        }
    }
    proxy.end();
}
