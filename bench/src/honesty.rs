//! The self-check of honesty: a backend that does nothing for a while in the middle of a run. Every
//! request that was due meanwhile has to show it. A closed loop asks nothing while it waits, so it
//! would report one slow request per connection and call the rest fast.

use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use ringress::ring::Ring;

use crate::backend::{self, Service};
use crate::error::Error;
use crate::load::{self, Outcome, Plan, Work};

/// The run that is made.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// How long the backend does nothing.
    pub stall: Duration,
    /// Requests per second of the open loop.
    pub per_second: u64,
    /// Connections.
    pub connections: usize,
}

/// What both loops saw of the same stall.
#[derive(Debug)]
pub struct Report {
    check: Check,
    /// At a fixed rate.
    pub open: Outcome,
    /// At saturation.
    pub closed: Outcome,
}

/// Longer than any request takes that no stall delays, also on a busy machine.
const SLOW: Duration = Duration::from_millis(50);

/// What was seen over what there was to see. Less is dishonest, but for rounding; more happens when
/// the machine stalls as well.
const PLAUSIBLE: RangeInclusive<f64> = 0.98..=2.0;

/// Makes both runs, with the stall in the middle third of each.
///
/// # Errors
/// A run can't be made.
pub fn check(ring: &Ring, check: Check) -> Result<Report, Error> {
    let open = stalled_run(ring, check, |size| Work::Rate {
        size,
        per_second: check.per_second,
    })?;
    let closed = stalled_run(ring, check, |size| Work::Saturate { size })?;
    Ok(Report {
        check,
        open,
        closed,
    })
}

fn stalled_run(
    ring: &Ring,
    check: Check,
    work: impl FnOnce(usize) -> Work,
) -> Result<Outcome, Error> {
    const SIZE: usize = 64;
    let warmup = Duration::from_millis(50);
    let from = ring.now() + warmup + check.stall;
    let service = Service::Stall(from, from + check.stall);
    let target = backend::start(ring, SocketAddr::from(([127, 0, 0, 1], 0)), service)?;
    let plan = Plan {
        target: target.into(),
        connections: check.connections,
        warmup,
        duration: check.stall * 3,
        work: work(SIZE),
    };
    load::run(ring, &plan, &mut |_| {})
}

impl Report {
    /// Requests that were due during the stall.
    pub fn affected_by_arithmetic(&self) -> f64 {
        self.check.per_second as f64 * self.check.stall.as_secs_f64()
    }

    /// Requests of the open loop that were delayed by more than an unstalled one can be.
    pub fn affected(&self) -> u64 {
        self.open.latency.count_above(SLOW)
    }

    /// What is wrong with what the open loop saw; empty when it was honest.
    pub fn findings(&self) -> Vec<String> {
        let stall = self.check.stall.as_secs_f64();
        let slow = SLOW.as_secs_f64();
        // Those that were due in the last moments of the stall waited less than what counts as slow.
        let expected = self.affected_by_arithmetic() * (1.0 - slow / stall);
        let mut findings = Vec::new();
        let affected = self.affected() as f64;
        if !PLAUSIBLE.contains(&(affected / expected)) {
            findings.push(format!(
                "{affected:.0} requests were slow, {expected:.0} should have been"
            ));
        }
        let longest = self.open.latency.max_us() / 1e6;
        if !PLAUSIBLE.contains(&(longest / stall)) {
            findings.push(format!(
                "the longest took {longest:.3} s of a stall of {stall} s"
            ));
        }
        let due = self.check.per_second as f64 * stall * 3.0;
        let counted = self.open.latency.count() as f64;
        if (counted - due).abs() > 1.0 {
            findings.push(format!("{counted} requests are counted, {due} were due"));
        }
        if self.open.errors + self.open.unanswered > 0 {
            findings.push("requests failed or had no answer".to_owned());
        }
        findings
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stall = self.check.stall.as_secs_f64();
        writeln!(
            f,
            "a backend that does nothing for {stall} s in the middle of {} s:",
            stall * 3.0
        )?;
        for (name, outcome) in [
            ("open loop", &self.open),
            ("closed loop, for contrast", &self.closed),
        ] {
            let latency = &outcome.latency;
            writeln!(
                f,
                "  {name}: {} requests, {} of them slower than {} ms; p50 {:.0} µs, p99 {:.0} µs, \
                 max {:.0} µs",
                latency.count(),
                latency.count_above(SLOW),
                SLOW.as_millis(),
                latency.quantile_us(0.5),
                latency.quantile_us(0.99),
                latency.max_us(),
            )?;
        }
        writeln!(
            f,
            "  due during the stall, by arithmetic: {:.0} at {} a second",
            self.affected_by_arithmetic(),
            self.check.per_second
        )
    }
}
