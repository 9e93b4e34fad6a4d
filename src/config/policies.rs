//! The tables of an upstream that say what happens when something fails or is full: from the file to
//! the model.

use std::ops::{Range, RangeInclusive};
use std::time::Duration;

use toml::de::DeValue;

use super::defaults::{CIRCUIT_BREAKER, OUTLIER, POOL, QUEUE, RETRY};
use super::diagnostics::Fault;
use super::duration::{self, shown};
use super::section::{Findings, Section, Value};
use super::share::{share, share_above_zero};
use super::value::{self, Read};
use super::{Backend, Pool, Queue, keys};
use crate::policy::{breaker, outlier, retry};

/// `[upstreams.NAME.outlier]`; not there, nothing is ejected.
pub(super) fn outlier(
    upstream: &Section<'_>,
    findings: &mut Findings,
) -> Option<outlier::Settings> {
    let section = upstream.optional("outlier", keys::OUTLIER, findings)?;
    let default = OUTLIER;
    let (eject_for, max_eject_for) = growing(
        &section,
        ("eject_for", default.eject_for),
        ("max_eject_for", default.max_eject_for),
        duration::above_zero,
        findings,
    );
    Some(outlier::Settings {
        consecutive_failures: section.read(
            "consecutive_failures",
            default.consecutive_failures,
            findings,
            |value| value::at_least_one(value, MOST_COUNTED),
        ),
        eject_for,
        max_eject_for,
        max_ejected: section.read("max_ejected", default.max_ejected, findings, share),
    })
}

/// `[upstreams.NAME.circuit_breaker]`; not there, there is none.
pub(super) fn circuit_breaker(
    upstream: &Section<'_>,
    findings: &mut Findings,
) -> Option<breaker::Settings> {
    let section = upstream.optional("circuit_breaker", keys::CIRCUIT_BREAKER, findings)?;
    let default = CIRCUIT_BREAKER;
    let count = |value: &DeValue<'_>| value::at_least_one(value, MOST_COUNTED);
    Some(breaker::Settings {
        failure_ratio: section.read(
            "failure_ratio",
            default.failure_ratio,
            findings,
            share_above_zero,
        ),
        min_requests: section.read("min_requests", default.min_requests, findings, count),
        window: section.read("window", default.window, findings, |value| {
            duration::within(value, WINDOWS)
        }),
        open_for: section.read("open_for", default.open_for, findings, duration::above_zero),
        half_open_requests: section.read(
            "half_open_requests",
            default.half_open_requests,
            findings,
            count,
        ),
    })
}

/// Sessions that are counted for a decision. More are a slip: nothing would ever be decided.
const MOST_COUNTED: u32 = 1_000_000;

/// Shorter, a window holds nothing but chance; longer, it is the past.
const WINDOWS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(1);

/// `[upstreams.NAME.retry]`
pub(super) fn retry(upstream: &Section<'_>, findings: &mut Findings) -> retry::Settings {
    let section = upstream.child("retry", keys::RETRY, findings);
    let default = RETRY;
    let (backoff, max_backoff) = growing(
        &section,
        ("backoff", default.backoff),
        ("max_backoff", default.max_backoff),
        duration::duration,
        findings,
    );
    retry::Settings {
        attempts: section.read("attempts", default.attempts, findings, |value| {
            value::count(value, 0..=MOST_RETRIES).map(|number| number as u32)
        }),
        backoff,
        max_backoff,
        budget: section.read("budget", default.budget, findings, share),
    }
}

const MOST_RETRIES: u64 = 100;

/// `[upstreams.NAME.queue]`
pub(super) fn queue(upstream: &Section<'_>, findings: &mut Findings) -> Queue {
    let section = upstream.child("queue", keys::QUEUE, findings);
    Queue {
        max: section.read("max", QUEUE.max, findings, |value| {
            value::count(value, 0..=LONGEST_QUEUE).map(|number| number as usize)
        }),
        timeout: section.read("timeout", QUEUE.timeout, findings, duration::timeout),
    }
}

const LONGEST_QUEUE: u64 = 10_000_000;

/// `[upstreams.NAME.pool]`; `backends` are `None` if nothing can be concluded from them.
pub(super) fn pool(
    upstream: &Section<'_>,
    backends: Option<&[Backend]>,
    findings: &mut Findings,
) -> Pool {
    let section = upstream.child("pool", keys::POOL, findings);
    Pool {
        preconnect: section.read("preconnect", POOL.preconnect, findings, |value| {
            preconnect(value, backends.unwrap_or_default())
        }),
        idle_timeout: section.read(
            "idle_timeout",
            POOL.idle_timeout,
            findings,
            duration::above_zero,
        ),
        max_lifetime: section.read(
            "max_lifetime",
            POOL.max_lifetime,
            findings,
            duration::above_zero,
        ),
    }
}

/// A pool that every worker fills must not be more than a backend takes.
fn preconnect(value: &DeValue<'_>, backends: &[Backend]) -> Read<u32> {
    let number = value::count(value, 0..=MOST_PRECONNECTED)?;
    let capped = backends
        .iter()
        .filter_map(|backend| Some((backend.max_connections?.get(), &backend.name)));
    match capped.min() {
        Some((cap, name)) if number > cap as u64 => Err(Fault::new(format!(
            "every worker would keep {number} open, and backend {name:?} takes {cap}"
        ))
        .expected(format!("at most {cap}, the backend's max_connections"))),
        _ => Ok(number as u32),
    }
}

const MOST_PRECONNECTED: u64 = 10_000;

/// Two durations, each a key with its default, of which the second bounds the growth of the first.
fn growing(
    section: &Section<'_>,
    (first, first_default): (&str, Duration),
    (bound, bound_default): (&str, Duration),
    read: fn(&DeValue<'_>) -> Read<Duration>,
    findings: &mut Findings,
) -> (Duration, Duration) {
    let before = findings.count();
    let from = section.read(first, first_default, findings, read);
    let to = section.read(bound, bound_default, findings, read);
    // What is wrong in itself is not compared.
    if from > to && findings.count() == before {
        let (place, fault) = too_short(section, (first, from), (bound, to));
        findings.push(place, fault);
    }
    (from, to)
}

/// The finding that `bound` is less than `first`, at the one of them that the file has.
fn too_short(
    section: &Section<'_>,
    (first, from): (&str, Duration),
    (bound, to): (&str, Duration),
) -> (Range<usize>, Fault) {
    let place = |key| section.value(key).map(Value::span);
    let (from, to) = (shown(from), shown(to));
    match (place(first), place(bound)) {
        (Some(place), None) => {
            let fault = format!("{from} is more than {bound}, which is {to} by default");
            let expected = format!("at most {to}, or a longer {bound}");
            (place, Fault::new(fault).expected(expected))
        }
        (written, place) => {
            let default = if written.is_none() { " by default" } else { "" };
            let fault = format!("{to} is less than {first}, which is {from}{default}");
            let place = place.unwrap_or_else(|| section.header.clone());
            let expected = format!("at least {from}");
            (place, Fault::new(fault).expected(expected))
        }
    }
}
