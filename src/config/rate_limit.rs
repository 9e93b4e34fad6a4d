//! `[listeners.NAME.rate_limit]`: from the file's table to the model.

use std::num::NonZeroU64;
use std::ops::RangeInclusive;

use toml::de::DeValue;

use super::diagnostics::Fault;
use super::section::{Findings, Section};
use super::value::{self, Read};
use super::{RateLimit, endpoint, keys};
use crate::policy::bucket::Rate;

/// The limits of `listener`; `nameless` = some of its clients have no address.
pub(super) fn read(listener: &Section<'_>, nameless: bool, findings: &mut Findings) -> RateLimit {
    let section = listener.child("rate_limit", keys::RATE_LIMIT, findings);
    let default = RateLimit::default();
    if let Some(value) = section.value("connections_per_ip")
        && nameless
    {
        let fault = endpoint::no_client_address("\"connections_per_ip\"");
        findings.push(value.span(), fault);
    }
    RateLimit {
        connections: rate(&section, "connections", &CONNECTIONS, findings),
        connections_per_ip: rate(&section, "connections_per_ip", &CONNECTIONS, findings),
        datagrams_per_ip: rate(&section, "datagrams_per_ip", &CONNECTIONS, findings),
        bandwidth: rate(&section, "bandwidth", &BYTES, findings),
        ipv6_prefix: section.read("ipv6_prefix", default.ipv6_prefix, findings, |value| {
            value::count(value, 1..=128).map(|bits| bits as u8)
        }),
        max_clients: section.read("max_clients", default.max_clients, findings, |value| {
            value::at_least_one(value, MOST_CLIENTS)
        }),
        dry_run: section.read("dry_run", default.dry_run, findings, value::boolean),
    }
}

/// The table takes about 37 bytes for each.
const MOST_CLIENTS: u32 = 10_000_000;

/// What is counted by a limit.
struct Unit {
    /// One value of `rate` or `burst`.
    tokens: fn(&DeValue<'_>) -> Read<NonZeroU64>,
    /// What it looks like.
    form: &'static str,
    /// What the table looks like.
    table: &'static str,
}

const CONNECTIONS: Unit = Unit {
    tokens: connections,
    form: "a whole number from 1 to 1000000000",
    table: "a table like { rate = 1000, burst = 2000 }",
};

const BYTES: Unit = Unit {
    tokens: bytes,
    form: "a size like \"10MiB\"",
    table: "a table like { rate = \"10MiB\", burst = \"1MiB\" }",
};

/// `{ rate, burst }`; `None` if it is not there, and if it is wrong.
fn rate(section: &Section<'_>, key: &str, unit: &Unit, findings: &mut Findings) -> Option<Rate> {
    let value = section.value(key)?;
    if !value.get_ref().is_table() {
        findings.push(value.span(), no_table(key, value.get_ref(), unit));
        return None;
    }
    let section = Section::open(value, keys::RATE, findings);
    let per_second = section.required("rate", unit.form, findings);
    let burst = section.read("burst", None, findings, |value| {
        (unit.tokens)(value).map(Some)
    });
    let per_second = per_second?;
    let tokens = (unit.tokens)(per_second.get_ref());
    let per_second = findings.keep(per_second.span(), tokens)?;
    Some(Rate {
        per_second,
        burst: burst.unwrap_or(per_second),
    })
}

/// The fault of `connections = 100`.
fn no_table(key: &str, value: &DeValue<'_>, unit: &Unit) -> Fault {
    let fault = value::wrong_type(value, unit.table);
    let written = match value {
        DeValue::Integer(number) => number.to_string(),
        DeValue::String(text) => format!("{text:?}"),
        _ => return fault,
    };
    match (unit.tokens)(value) {
        Ok(_) => fault.hint(format!("did you mean {key} = {{ rate = {written} }}?")),
        Err(_) => fault,
    }
}

fn connections(value: &DeValue<'_>) -> Read<NonZeroU64> {
    if value::count(value, 0..=0).is_ok() {
        return Err(Fault::new("0 would refuse everything")
            .expected(CONNECTIONS.form)
            .hint("without the key nothing is limited; `deny` refuses networks"));
    }
    value::count(value, 1..=MOST_CONNECTIONS).map(above_zero)
}

/// Per second, and at once. Far more than a machine accepts, and what it takes to refill a bucket is
/// still a number of nanoseconds.
const MOST_CONNECTIONS: u64 = 1_000_000_000;

fn bytes(value: &DeValue<'_>) -> Read<NonZeroU64> {
    let bytes = value::size(value)?;
    if SENSIBLE_BYTES.contains(&bytes) {
        return Ok(above_zero(bytes));
    }
    let many = if bytes < *SENSIBLE_BYTES.start() {
        "few"
    } else {
        "many"
    };
    Err(Fault::new(format!("{bytes} bytes are too {many}")).expected("from 1KiB to 1TiB"))
}

/// Below a packet's worth a connection would be a trickle of tiny ones.
const SENSIBLE_BYTES: RangeInclusive<u64> = 1 << 10..=1 << 40;

fn above_zero(number: u64) -> NonZeroU64 {
    NonZeroU64::new(number).unwrap_or(NonZeroU64::MIN)
}
