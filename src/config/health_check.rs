//! `[upstreams.NAME.health_check]`: from the file's table to the model.

use std::ops::RangeInclusive;
use std::sync::Arc;

use toml::de::DeValue;

use super::defaults::{EXPECT_STATUS, PATH};
use super::diagnostics::Fault;
use super::section::{Findings, Section, one_or_many};
use super::share::share;
use super::value::{self, Read};
use super::{Backend, Exchange, HealthCheck, Probe, duration, keys};
use crate::policy::health::{Settings, Start};

/// `None` if there is no such table. `backends` are `None` if nothing can be concluded from them.
pub(super) fn read(
    upstream: &Section<'_>,
    backends: Option<&[Backend]>,
    findings: &mut Findings,
) -> Option<HealthCheck> {
    let section = upstream.optional("health_check", keys::HEALTH_CHECK, findings)?;
    let default = HealthCheck::default();
    let backends = backends.unwrap_or_default();
    Some(HealthCheck {
        probe: probe(&section, backends, default.probe, findings),
        interval: section.read("interval", default.interval, findings, duration::above_zero),
        jitter: section.read("jitter", default.jitter, findings, share),
        timeout: section.read("timeout", default.timeout, findings, duration::timeout),
        settings: settings(&section, default.settings, findings),
    })
}

fn settings(section: &Section<'_>, default: Settings, findings: &mut Findings) -> Settings {
    let in_a_row = |value: &DeValue<'_>| value::at_least_one(value, MOST_IN_A_ROW);
    Settings {
        rise: section.read("rise", default.rise, findings, in_a_row),
        fall: section.read("fall", default.fall, findings, in_a_row),
        start: section.read("start", default.start, findings, |value| {
            value::word(
                value,
                &keys::START,
                &[Start::Up, Start::Down, Start::Checked],
            )
        }),
    }
}

const MOST_IN_A_ROW: u32 = 1000;

/// `type`
#[derive(Clone, Copy, PartialEq, Eq)]
enum Type {
    Tcp,
    Tls,
    Udp,
    Http,
}

/// What is tried. If the type is wrong, every key may be the right one for what was meant, and
/// `default` is as good as another.
fn probe(
    section: &Section<'_>,
    backends: &[Backend],
    default: Probe,
    findings: &mut Findings,
) -> Probe {
    let kind = match section.value("type") {
        None => Some(Type::Tcp),
        Some(value) => findings.keep(value.span(), kind(value.get_ref(), backends)),
    };
    let Some(kind) = kind else {
        exchange(section, findings);
        http(section, findings);
        return default;
    };
    refuse_keys_of_others(section, kind, findings);
    match kind {
        Type::Http => http(section, findings),
        Type::Tcp => Probe::Tcp(exchange(section, findings)),
        Type::Tls => Probe::Tls(exchange(section, findings)),
        Type::Udp => {
            section.required("send", "what a udp probe sends, like \"ping\"", findings);
            Probe::Udp(exchange(section, findings))
        }
    }
}

fn kind(value: &DeValue<'_>, backends: &[Backend]) -> Read<Type> {
    let kinds = [Type::Tcp, Type::Tls, Type::Udp, Type::Http];
    let kind = value::word(value, &keys::PROBE, &kinds)?;
    let unix = backends.iter().find(|it| it.address.as_ip().is_none());
    match unix {
        Some(backend) if kind == Type::Udp => Err(Fault::new(format!(
            "backend {:?} is a unix socket, which takes no datagrams",
            backend.name
        ))
        .expected("\"tcp\", \"tls\" or \"http\"")),
        _ => Ok(kind),
    }
}

/// The keys that only some types have.
const KEYS_OF_HTTP: [&str; 3] = ["path", "host", "expect_status"];
const KEYS_OF_EXCHANGE: [&str; 2] = ["send", "expect"];

fn refuse_keys_of_others(section: &Section<'_>, kind: Type, findings: &mut Findings) {
    let (name, others, owners): (_, &[&str], _) = match kind {
        Type::Tcp => ("tcp", &KEYS_OF_HTTP, "type = \"http\""),
        Type::Tls => ("tls", &KEYS_OF_HTTP, "type = \"http\""),
        Type::Udp => ("udp", &KEYS_OF_HTTP, "type = \"http\""),
        Type::Http => (
            "http",
            &KEYS_OF_EXCHANGE,
            "type = \"tcp\", \"tls\" or \"udp\"",
        ),
    };
    let by_default = match section.value("type") {
        Some(_) => "",
        None => ", which is the default",
    };
    for key in others {
        if let Some(place) = section.place_of(key) {
            let fault = Fault::new(format!(
                "{key:?} has no meaning with type {name:?}{by_default}"
            ))
            .expected(format!("{key:?} only with {owners}"));
            findings.push(place, fault);
        }
    }
}

fn exchange(section: &Section<'_>, findings: &mut Findings) -> Exchange {
    Exchange {
        send: section.read("send", None, findings, bytes),
        expect: section.read("expect", None, findings, bytes),
    }
}

fn bytes(value: &DeValue<'_>) -> Read<Option<Arc<[u8]>>> {
    let text = value::string(value)?;
    if text.is_empty() {
        return Err(Fault::new("the text is empty").expected("at least one byte"));
    }
    short_enough(text)?;
    Ok(Some(text.as_bytes().into()))
}

/// A probe is small, in each direction.
fn short_enough(text: &str) -> Read<()> {
    match text.len() {
        0..=LONGEST_TEXT => Ok(()),
        bytes => Err(Fault::new(format!("this is {bytes} bytes long"))
            .expected(format!("at most {LONGEST_TEXT} bytes"))),
    }
}

const LONGEST_TEXT: usize = 4096;

fn http(section: &Section<'_>, findings: &mut Findings) -> Probe {
    Probe::Http {
        path: section.read("path", PATH.into(), findings, path),
        host: section.read("host", None, findings, host),
        expect_status: statuses(section, findings),
    }
}

/// What RFC 9112, section 3.2.1 calls origin-form, as it goes onto the wire.
fn path(value: &DeValue<'_>) -> Read<Arc<str>> {
    let expected = "a path that begins with \"/\", of visible ASCII characters";
    let text = value::string(value).map_err(|_| value::wrong_type(value, expected))?;
    let fault = || Fault::new(format!("{text:?} is not a path")).expected(expected);
    if !text.starts_with('/') {
        let meant = format!("/{text}");
        return Err(match is_visible(&meant) && !text.contains("://") {
            true => fault().hint(format!("did you mean {meant:?}?")),
            false => fault(),
        });
    }
    if !is_visible(text) {
        return Err(fault().hint("a space is written as %20, others likewise"));
    }
    short_enough(text)?;
    Ok(text.into())
}

/// What may stand in a `Host` header.
fn host(value: &DeValue<'_>) -> Read<Option<Arc<str>>> {
    let expected = "a host name, with \":port\" where one is wanted";
    let text = value::string(value).map_err(|_| value::wrong_type(value, expected))?;
    let fits = (1..=255).contains(&text.len()) && is_visible(text);
    if fits && !text.contains(['/', '?', '#', '@']) {
        return Ok(Some(text.into()));
    }
    Err(Fault::new(format!("{text:?} is not a host")).expected(expected))
}

fn is_visible(text: &str) -> bool {
    text.bytes().all(|c| c.is_ascii_graphic())
}

fn statuses(section: &Section<'_>, findings: &mut Findings) -> Vec<RangeInclusive<u16>> {
    let Some(value) = section.value("expect_status") else {
        return vec![EXPECT_STATUS];
    };
    one_or_many(value, STATUS_FORM, findings)
        .into_iter()
        .filter_map(|entry| findings.keep(entry.span(), status(entry.get_ref())))
        .collect()
}

const STATUS_FORM: &str = "a status like 200, a range like \"200-399\", or a list of them";

fn status(value: &DeValue<'_>) -> Read<RangeInclusive<u16>> {
    let (first, last) = match value {
        DeValue::Integer(number) => return one_status(number.as_str()).map(|it| it..=it),
        DeValue::String(text) => match text.split_once('-') {
            Some(range) => range,
            None => return one_status(text).map(|it| it..=it),
        },
        other => return Err(value::wrong_type(other, STATUS_FORM)),
    };
    let (first, last) = (one_status(first)?, one_status(last)?);
    if first > last {
        return Err(Fault::new(format!("{first} to {last} is no range"))
            .expected(STATUS_FORM)
            .hint(format!("did you mean \"{last}-{first}\"?")));
    }
    Ok(first..=last)
}

fn one_status(text: &str) -> Read<u16> {
    let text = text.trim();
    let digits = text.len() == 3 && text.bytes().all(|c| c.is_ascii_digit());
    match text.parse() {
        Ok(status @ 100..=599) if digits => Ok(status),
        _ => {
            let fault = Fault::new(format!("{text:?} is not a status"))
                .expected(format!("{STATUS_FORM}, each from 100 to 599"));
            Err(match text.to_ascii_lowercase().strip_suffix("xx") {
                Some(class @ ("1" | "2" | "3" | "4" | "5")) => {
                    fault.hint(format!("did you mean \"{class}00-{class}99\"?"))
                }
                _ => fault,
            })
        }
    }
}
