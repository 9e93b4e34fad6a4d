//! Active health checks through the real binary: what is seen and when, what the log says of it, and
//! who gets sessions meanwhile.

mod common;

#[path = "health/probes.rs"]
mod probes;
#[path = "health/readiness.rs"]
mod readiness;

use std::time::Duration;

use common::mortal::{Answer, Mortal, PING, PONG, SICK, behind_two_workers, shares, visit};
use common::proxy::text;
use common::{Proxy, now};
use serde_json::Value;

const INTERVAL: Duration = Duration::from_millis(200);
const TIMEOUT: Duration = Duration::from_millis(200);
const FALL: u32 = 2;
const RISE: u32 = 2;
/// What a busy machine may add.
const SLACK: Duration = Duration::from_millis(1500);

/// A quick check; `kind` are the lines that say of which type.
fn check(kind: &str) -> String {
    format!(
        "[upstreams.app.health_check]\n{kind}\n\
         interval = \"{INTERVAL:?}\"\ntimeout = \"{TIMEOUT:?}\"\nfall = {FALL}\nrise = {RISE}\n"
    )
}

/// A proxy in front of these, whose every backend was probed with success.
fn checked<const COUNT: usize>(backends: &[Mortal; COUNT], upstream: &str, kind: &str) -> Proxy {
    let list = backends.each_ref().map(|backend| backend.weighing(1));
    let proxy = Proxy::start(&behind_two_workers(&list, upstream, &check(kind)));
    for backend in backends {
        proxy.wait_about(0, "probe succeeded", &backend.address);
    }
    proxy
}

/// Waits until `backend` was found down for what has just been done to it.
fn goes_down(proxy: &Proxy, from: usize, backend: &Mortal) -> Value {
    proxy
        .wait_about(from, "backend is down", &backend.address)
        .1
}

fn comes_up(proxy: &Proxy, from: usize, backend: &Mortal) -> Value {
    proxy.wait_about(from, "backend is up", &backend.address).1
}

/// Probes of `backend` between two lines that had this outcome.
fn probes(proxy: &Proxy, (from, to): (usize, usize), outcome: &str, backend: &Mortal) -> usize {
    let lines = &proxy.lines()[from..to];
    let about = |line: &&Value| line["message"] == outcome && line["backend"] == backend.address;
    lines.iter().filter(about).count()
}

/// What is done to a backend is seen in time, by as many probes as it takes, told in one line each way,
/// and the other backend is left out of it. `well` is what probes like.
fn is_seen(kind: &str, well: Answer, harm: impl Fn(&Mortal), why: &str) {
    let backends = Mortal::many::<2>();
    for backend in &backends {
        backend.answer_probes(well.clone());
    }
    let proxy = checked(&backends, "", kind);
    let [victim, other] = &backends;
    let from = proxy.lines().len();
    harm(victim);
    let began = now();
    let (down, line) = proxy.wait_about(from, "backend is down", &victim.address);
    let took = began.elapsed();
    let longest = FALL * (INTERVAL.mul_f64(1.2) + TIMEOUT);
    assert!(took < longest + SLACK, "{took:?} instead of {longest:?}");
    assert_eq!(
        (text(&line, "why"), text(&line, "level")),
        (why.into(), "WARN".into())
    );
    assert_eq!(
        (&line["upstream"], &line["failures"]),
        (&"app".into(), &FALL.into())
    );
    assert_eq!(
        probes(&proxy, (from, down), "probe failed", victim),
        FALL as usize
    );
    // More failures are no news.
    let mut seen = down;
    for _ in 0..3 {
        seen = 1 + proxy.wait_about(seen, "probe failed", &victim.address).0;
    }
    let from = proxy.lines().len();
    victim.answer_probes(well);
    victim.revive();
    let (up, line) = proxy.wait_about(from, "backend is up", &victim.address);
    assert_eq!(
        (&line["successes"], &line["level"]),
        (&RISE.into(), &"INFO".into())
    );
    // A machine that is busy may have failed one in between.
    let succeeded = probes(&proxy, (from, up), "probe succeeded", victim);
    assert!(succeeded >= RISE as usize, "{succeeded} successes");
    proxy.wait_about(up, "probe succeeded", &victim.address);
    for message in ["backend is down", "backend is up"] {
        assert_eq!(proxy.count_about(message, &victim.address), 1, "{message}");
        assert_eq!(proxy.count_about(message, &other.address), 0, "{message}");
    }
    proxy.end();
}

#[test]
fn a_killed_backend_is_seen_in_time_and_told_once() {
    is_seen("type = \"tcp\"", PONG, Mortal::kill, "connection refused");
}

#[test]
fn a_black_hole_is_seen_in_time_and_told_once() {
    let why = format!("no connection within {TIMEOUT:?}");
    is_seen("type = \"tcp\"", PONG, Mortal::become_black_hole, &why);
}

#[test]
fn a_backend_that_accepts_and_never_answers_is_seen_in_time_and_told_once() {
    let mute = |backend: &Mortal| backend.answer_probes(Answer::Nothing);
    let why = format!("no answer within {TIMEOUT:?}");
    let ok = Answer::Says("HTTP/1.1 200 OK\r\n\r\n");
    is_seen("type = \"http\"", ok, mute, &why);
}

#[test]
fn a_wrong_answer_is_seen_in_time_and_told_once() {
    let sick = |backend: &Mortal| backend.answer_probes(SICK);
    let why = "answered \"-ERR no disk\" instead of \"PONG\"";
    is_seen(PING, PONG, sick, why);
}

/// How many of `count` sessions each of them got.
fn visits<const COUNT: usize>(
    proxy: &Proxy,
    backends: &[Mortal; COUNT],
    count: usize,
) -> [usize; COUNT] {
    let address = proxy.address("web");
    let names: Vec<_> = (0..count)
        .map(|_| visit(&address).expect("it is served"))
        .collect();
    shares(backends, &names)
}
