//! The load generator against its own backends: counts add up, a rate is kept, a stall is seen.

use std::net::SocketAddr;
use std::time::Duration;

use ringress::ring::Ring;
use ringress_bench::backend::{self, Service};
use ringress_bench::honesty::{self, Check};
use ringress_bench::load::{self, Edge, Outcome, Plan, Work};
use ringress_bench::local;

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn run(ring: &Ring, service: Service, connections: usize, work: Work) -> Outcome {
    let target = backend::start(ring, loopback(), service).expect("a port is free");
    let plan = Plan {
        target: target.into(),
        connections,
        warmup: Duration::from_millis(50),
        duration: Duration::from_millis(300),
        work,
    };
    let mut edges = Vec::new();
    let outcome = load::run(ring, &plan, &mut |edge| edges.push(edge)).expect("the run ends");
    assert_eq!(edges, [Edge::Begin, Edge::End]);
    assert_eq!((outcome.errors, outcome.unanswered), (0, 0));
    assert!(outcome.own_cpu > Duration::ZERO && outcome.busy() <= 1.05);
    outcome
}

/// One connection at a time, or as many as it takes.
fn plan(target: SocketAddr, duration: Duration, work: Work) -> Plan {
    Plan {
        target: target.into(),
        connections: 1,
        warmup: Duration::ZERO,
        duration,
        work,
    }
}

#[test]
fn at_saturation_every_request_is_counted_once() {
    let ring = local::ring().expect("io_uring is there");
    let outcome = run(&ring, Service::Echo, 16, Work::Saturate { size: 100 });
    assert!(outcome.completed > 100, "{}", outcome.completed);
    assert_eq!(outcome.latency.count(), outcome.completed);
    // An answer may come in pieces, some of them on the other side of an edge.
    let bytes = outcome.completed * 100;
    assert!(outcome.bytes.abs_diff(bytes) <= 16 * 100);
}

#[test]
fn an_open_loop_keeps_its_rate() {
    let ring = local::ring().expect("io_uring is there");
    let work = Work::Rate {
        size: 100,
        per_second: 2_000,
    };
    let outcome = run(&ring, Service::Echo, 7, work);
    assert_eq!(outcome.latency.count(), 600, "as many as were due");
    assert_eq!(outcome.lateness.count(), 600, "each was handed over once");
    // What was due at an edge has its answer behind it, on a busy machine a good deal more.
    assert!(outcome.completed > 300, "{}", outcome.completed);
}

#[test]
fn answers_larger_than_a_buffer_are_put_together() {
    let ring = local::ring().expect("io_uring is there");
    let outcome = run(&ring, Service::Echo, 2, Work::Saturate { size: 100_000 });
    assert!(outcome.completed > 10, "{}", outcome.completed);
}

#[test]
fn every_request_can_have_its_own_connection() {
    let ring = local::ring().expect("io_uring is there");
    let outcome = run(&ring, Service::Echo, 8, Work::NewConnections { size: 100 });
    assert!(outcome.completed > 50, "{}", outcome.completed);
    assert_eq!(outcome.bytes, outcome.completed * 100);
}

#[test]
fn new_connections_keep_their_rate() {
    let ring = local::ring().expect("io_uring is there");
    let work = Work::NewConnectionsAtRate {
        size: 100,
        per_second: 1_000,
    };
    let outcome = run(&ring, Service::Echo, 1, work);
    assert_eq!(outcome.latency.count(), 300, "as many as were due");
    assert_eq!(outcome.lateness.count(), 300, "each was begun once");
    assert!(outcome.completed > 150, "{}", outcome.completed);
}

#[test]
fn a_stall_is_seen_by_every_connection_that_was_due() {
    const STALL: Duration = Duration::from_millis(500);
    let ring = local::ring().expect("io_uring is there");
    let from = ring.now() + STALL / 2;
    let service = Service::Stall(from, from + STALL);
    let target = backend::start(&ring, loopback(), service).expect("a port is free");
    let work = Work::NewConnectionsAtRate {
        size: 100,
        per_second: 1_000,
    };
    let outcome = load::run(&ring, &plan(target, STALL * 2, work), &mut |_| {});
    let outcome = outcome.expect("the run ends");
    assert_eq!((outcome.errors, outcome.latency.count()), (0, 1_000));
    // Those that were due in the last 50 ms of it waited less.
    let slow = outcome.latency.count_above(Duration::from_millis(50));
    assert!(slow >= 440, "{slow} were slow");
}

#[test]
fn lost_connections_are_told_apart() {
    let ring = local::ring().expect("io_uring is there");
    let work = Work::NewConnectionsAtRate {
        size: 8,
        per_second: 500,
    };
    let (listener, nobody) = local::listen(&ring, loopback()).expect("a port is free");
    drop(listener);
    local::pass(&ring, Duration::from_millis(5)).expect("the ring turns");
    let other = backend::start(&ring, loopback(), Service::Download).expect("a port is free");
    let lasting = Duration::from_millis(100);
    let plans = [plan(nobody, lasting, work), plan(other, lasting, work)];
    let outcomes = load::run_all(&ring, &plans, &mut |_| {}).expect("the runs end");
    let [refused, wrong] = outcomes.as_slice() else {
        panic!("two plans, two outcomes")
    };
    assert_eq!((refused.losses.refused, refused.errors), (50, 50));
    assert_eq!((wrong.losses.wrong_bytes, wrong.errors), (50, 50));
}

#[test]
fn downloads_are_compared_byte_by_byte() {
    let ring = local::ring().expect("io_uring is there");
    let work = Work::Download { bytes: 1_000_003 };
    let outcome = run(&ring, Service::Download, 3, work);
    assert!(outcome.completed > 3, "{}", outcome.completed);
    assert!(outcome.bytes > 3 * 1_000_003);

    let target = backend::start(&ring, loopback(), Service::Echo).expect("a port is free");
    let plan = Plan {
        target: target.into(),
        connections: 1,
        warmup: Duration::ZERO,
        duration: Duration::from_millis(20),
        work: Work::Download { bytes: 1 << 40 },
    };
    let wrong = load::run(&ring, &plan, &mut |_| {}).expect("the run ends");
    assert!(wrong.errors > 0, "an echo is no download");
}

#[test]
fn a_wrong_answer_is_an_error() {
    let ring = local::ring().expect("io_uring is there");
    let target = backend::start(&ring, loopback(), Service::Download).expect("a port is free");
    let plan = Plan {
        target: target.into(),
        connections: 2,
        warmup: Duration::ZERO,
        duration: Duration::from_millis(50),
        // Its first eight bytes ask for a download, which is not what an echo would answer.
        work: Work::Saturate { size: 8 },
    };
    let wrong = load::run(&ring, &plan, &mut |_| {}).expect("the run ends");
    assert!(wrong.errors > 0 && wrong.completed == 0);
}

#[test]
fn who_can_not_be_connected_to_is_said() {
    let ring = local::ring().expect("io_uring is there");
    let (listener, address) = local::listen(&ring, loopback()).expect("a port is free");
    drop(listener);
    local::pass(&ring, Duration::from_millis(5)).expect("the ring turns");
    let plan = Plan {
        target: address.into(),
        connections: 2,
        warmup: Duration::ZERO,
        duration: Duration::from_secs(1),
        work: Work::Saturate { size: 8 },
    };
    let error = load::run(&ring, &plan, &mut |_| {}).expect_err("nobody listens");
    assert!(error.to_string().contains("connecting to"), "{error}");
}

#[test]
fn idle_connections_are_held_until_they_are_dropped() {
    let ring = local::ring().expect("io_uring is there");
    let target = backend::start(&ring, loopback(), Service::Echo).expect("a port is free");
    let before = ring.usage();
    let held = load::open(&ring, &target.into(), 100, 64).expect("all can be had");
    assert!(ring.usage().slots >= before.slots + 200);
    assert_eq!(ring.usage().buffers, 0, "an idle connection holds none");
    drop(held);
    while ring.usage().slots > before.slots {
        local::turn(&ring).expect("the ring turns");
    }
}

#[test]
fn a_stall_is_seen_by_every_request_that_was_due() {
    let check = Check {
        stall: Duration::from_millis(500),
        per_second: 2_000,
        connections: 20,
    };
    let ring = local::ring().expect("io_uring is there");
    let report = honesty::check(&ring, check).expect("both runs end");
    assert_eq!(report.findings(), Vec::<String>::new(), "{report}");
    // This is why a closed loop can't be trusted with latency: one slow request per connection, and
    // as many again for each time that the machine itself stalls.
    let hidden = report.closed.latency.count_above(Duration::from_millis(50));
    assert!(hidden <= 100, "{report}");
}
