//! The load generator's datagrams against its own backends, and against a way that loses, doubles,
//! changes and reorders them: what was done to them is what is counted.

#[path = "udp/flawed.rs"]
mod flawed;

use std::net::SocketAddr;
use std::time::Duration;

use flawed::{Flaws, Way};
use ringress::ring;
use ringress_bench::load::Edge;
use ringress_bench::udp::{self, Backend, Bursts, Faults, Outcome, Plan, Service, Work};

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn backend(service: Service) -> Backend {
    Backend::new(loopback(), service).expect("a port is free")
}

fn plan(target: SocketAddr, sources: usize, work: Work) -> Plan {
    Plan {
        target,
        sources,
        from: Vec::new(),
        warmup: Duration::ZERO,
        duration: Duration::from_millis(300),
        timeout: Duration::from_millis(500),
        work,
    }
}

/// A run with a warm-up against a backend that does everything right.
fn run(service: Service, sources: usize, work: Work) -> Outcome {
    let mut backends = [backend(service)];
    let plan = Plan {
        warmup: Duration::from_millis(50),
        from: vec![[127, 0, 0, 2].into(), [127, 0, 0, 3].into()],
        ..plan(backends[0].address(), sources, work)
    };
    let mut edges = Vec::new();
    let outcome = udp::run(&plan, &mut backends, &mut |edge| edges.push(edge));
    let outcome = outcome.expect("the run ends");
    assert_eq!(edges, [Edge::Begin, Edge::End]);
    let sent = outcome.faults.sent;
    let flawless = Faults {
        sent,
        ..Faults::default()
    };
    assert_eq!(outcome.faults, flawless);
    let load = &outcome.load;
    assert!(load.own_cpu > Duration::ZERO && load.busy() <= 1.05);
    assert!(sent >= load.completed);
    outcome
}

/// What was seen of 1,500 datagrams from 3 sources that went that way.
fn exchange_by(flaws: Flaws) -> (Faults, Flaws) {
    let mut backends = [backend(Service::Echo)];
    let way = Way::to(backends[0].address(), flaws);
    let work = Work::Rate {
        size: 100,
        per_second: 5_000,
    };
    let outcome = udp::run(&plan(way.address, 3, work), &mut backends, &mut |_| {});
    let load = outcome.as_ref().expect("the run ends").load.clone();
    assert_eq!(
        load.lateness.count(),
        1_500,
        "each was sent when it was due"
    );
    (outcome.expect("the run ends").faults, way.end())
}

#[test]
fn at_saturation_every_datagram_is_counted_once() {
    let work = Work::Saturate {
        size: 28,
        outstanding: 3,
    };
    let load = run(Service::Echo, 16, work).load;
    assert!(load.completed > 1_000, "{}", load.completed);
    assert_eq!(load.latency.count(), load.completed);
    assert_eq!(load.bytes, load.completed * 28);
}

#[test]
fn an_open_loop_keeps_its_rate() {
    let work = Work::Rate {
        size: 100,
        per_second: 2_000,
    };
    let outcome = run(Service::Echo, 7, work);
    assert_eq!(outcome.faults.sent, 700, "as many as were due");
    assert_eq!(outcome.load.latency.count(), 600, "without the warm-up");
    assert_eq!(outcome.load.lateness.count(), 600);
}

#[test]
fn the_longest_datagrams_come_back() {
    let work = Work::Saturate {
        size: udp::MOST_BYTES,
        outstanding: 1,
    };
    let load = run(Service::Echo, 2, work).load;
    assert!(load.completed > 100, "{}", load.completed);
}

#[test]
fn bursts_arrive_whole_in_both_directions() {
    let bursts = Bursts {
        size: 1_200,
        segments: 40,
        window: 2,
    };
    for work in [Work::Upload(bursts), Work::Download(bursts)] {
        let load = run(Service::Bursts, 3, work).load;
        assert!(load.completed > 100, "{}", load.completed);
        assert_eq!(load.latency.count(), load.completed);
        let bytes = load.completed * 48_000;
        assert!(load.bytes.abs_diff(bytes) <= 6 * 48_000, "{}", load.bytes);
    }
}

#[test]
fn a_stall_is_seen_by_every_datagram_that_was_due() {
    const STALL: Duration = Duration::from_millis(200);
    let from = ring::now() + STALL;
    let mut backends = [backend(Service::Stall(from, from + STALL))];
    let work = Work::Rate {
        size: 64,
        per_second: 5_000,
    };
    let plan = Plan {
        duration: STALL * 3,
        ..plan(backends[0].address(), 8, work)
    };
    let outcome = udp::run(&plan, &mut backends, &mut |_| {}).expect("the run ends");
    assert_eq!(
        (outcome.load.latency.count(), outcome.faults.lost),
        (3_000, 0)
    );
    // Those that were due in the last 20 ms of it waited less.
    let slow = outcome.load.latency.count_above(Duration::from_millis(20));
    assert!(slow >= 880, "{slow} were slow");
    assert!(outcome.load.latency.max_us() > 180e3);
}

#[test]
fn what_comes_after_it_was_given_up_is_lost_and_late() {
    const STALL: Duration = Duration::from_millis(200);
    let from = ring::now();
    let mut backends = [backend(Service::Stall(from, from + STALL))];
    let work = Work::Rate {
        size: 64,
        per_second: 1_000,
    };
    let plan = Plan {
        timeout: Duration::from_millis(50),
        ..plan(backends[0].address(), 5, work)
    };
    let outcome = udp::run(&plan, &mut backends, &mut |_| {}).expect("the run ends");
    let faults = outcome.faults;
    assert_eq!(faults.lost, faults.late, "{faults:?}");
    assert!((130..=200).contains(&faults.lost), "{faults:?}");
    let waited = outcome.load.latency.count_above(Duration::from_millis(45));
    assert!(waited >= faults.lost, "they are in the latencies");
}

#[test]
fn all_flaws_of_a_way_are_counted_as_what_they_are() {
    let (faults, done) = exchange_by(Flaws {
        lose: 13,
        double: 17,
        change: 19,
        hold_back: 23,
        ..Flaws::NONE
    });
    let expected = Faults {
        sent: 1_500,
        lost: done.lose,
        duplicates: done.double,
        corrupt: done.change,
        reordered: done.hold_back,
        ..Faults::default()
    };
    assert_eq!(faults, expected);
    assert!(done.lose > 100 && done.double > 60 && done.change > 50 && done.hold_back > 40);
}

#[test]
fn the_data_of_another_source_is_no_answer() {
    let (faults, done) = exchange_by(Flaws {
        misdirect: 50,
        ..Flaws::NONE
    });
    assert_eq!(faults.foreign, done.misdirect);
    assert_eq!(faults.lost, done.misdirect);
    assert!(done.misdirect > 20 && faults.wrong() == faults.foreign);
}

#[test]
fn a_closed_loop_goes_on_after_a_loss() {
    let mut backends = [backend(Service::Echo)];
    let flaws = Flaws {
        lose: 20,
        ..Flaws::NONE
    };
    let way = Way::to(backends[0].address(), flaws);
    let work = Work::Saturate {
        size: 64,
        outstanding: 1,
    };
    let plan = Plan {
        timeout: Duration::from_millis(10),
        ..plan(way.address, 4, work)
    };
    let outcome = udp::run(&plan, &mut backends, &mut |_| {}).expect("the run ends");
    let done = way.end();
    assert!(done.lose >= 40, "{} were lost on the way", done.lose);
    // On a busy machine one may take longer than the patience.
    assert_eq!(outcome.faults.lost - outcome.faults.late, done.lose);
}

#[test]
fn all_flaws_of_a_way_are_counted_within_bursts() {
    let bursts = Bursts {
        size: 200,
        segments: 10,
        window: 2,
    };
    for work in [Work::Upload(bursts), Work::Download(bursts)] {
        let mut backends = [backend(Service::Bursts)];
        let flaws = Flaws {
            lose: 101,
            double: 103,
            change: 107,
            hold_back: 109,
            ..Flaws::NONE
        };
        let way = Way::to(backends[0].address(), flaws);
        let plan = Plan {
            timeout: Duration::from_millis(50),
            ..plan(way.address, 1, work)
        };
        let outcome = udp::run(&plan, &mut backends, &mut |_| {}).expect("the run ends");
        let (faults, done) = (outcome.faults, way.end());
        // The very last datagram may wait for one to overtake it, or its double find nobody.
        let is_about = |one: u64, other: u64| one.abs_diff(other) <= 1;
        let all_are = is_about(faults.lost - faults.late, done.lose)
            && is_about(faults.duplicates, done.double)
            && is_about(faults.reordered, done.hold_back)
            && faults.corrupt == done.change;
        assert!(all_are, "{work:?} {done:?} {faults:?}");
        assert!(done.lose > 3, "{done:?}");
    }
}

#[test]
fn what_the_harness_itself_has_no_room_for_is_told_apart() {
    let from = ring::now();
    let stall = Service::Stall(from, from + Duration::from_millis(500));
    let mut backends = [backend(stall)];
    let work = Work::Saturate {
        size: 1_000,
        outstanding: 20_000,
    };
    let plan = Plan {
        duration: Duration::from_millis(10),
        timeout: Duration::from_secs(2),
        ..plan(backends[0].address(), 1, work)
    };
    let faults = udp::run(&plan, &mut backends, &mut |_| {});
    let faults = faults.expect("the run ends").faults;
    assert!(faults.lost > 5_000, "{faults:?}");
    assert_eq!(
        faults.lost,
        faults.dropped_at_backend + faults.dropped_at_generator
    );
}

#[test]
fn nobody_who_listens_is_said() {
    let gone = backend(Service::Echo).address();
    let work = Work::Rate {
        size: 64,
        per_second: 100,
    };
    let plan = Plan {
        timeout: Duration::from_millis(20),
        ..plan(gone, 3, work)
    };
    let faults = udp::run(&plan, &mut [], &mut |_| {});
    let faults = faults.expect("the run ends").faults;
    assert_eq!((faults.sent, faults.lost), (30, 30));
    assert!(faults.refused > 0, "{faults:?}");
    udp::ask_once(gone, Service::Echo, &mut []).expect_err("nobody listens");
}
