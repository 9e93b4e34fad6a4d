//! `[upstreams.NAME]`: from the file's tables to the model.

use std::net::IpAddr;

use super::diagnostics::Fault;
use super::files::Files;
use super::section::{Findings, Section, Value, one_or_many};
use super::share::share;
use super::value::{self, Read};
use super::{Announce, Backend, Upstream, backends, duration, health_check, keys, policies, tls};
use crate::policy::balance::ALGORITHMS;

/// Every upstream of the file, wrong ones included: they may be referred to.
pub(super) fn read(
    root: &Section<'_>,
    files: &mut Files<'_>,
    findings: &mut Findings,
) -> Vec<Upstream> {
    root.named("upstreams", findings)
        .into_iter()
        .map(|(name, value)| upstream(name.get_ref(), value, files, findings))
        .collect()
}

fn upstream<'a>(
    name: &str,
    value: &'a Value<'a>,
    files: &mut Files<'_>,
    findings: &mut Findings,
) -> Upstream {
    let section = Section::open(value, keys::UPSTREAM, findings);
    let backends = backends::read(&section, files.resolver, findings);
    let source = source(&section, &backends, findings);
    let pool = policies::pool(&section, backends.as_deref(), findings);
    let health_check = health_check::read(&section, backends.as_deref(), findings);
    let tls = tls::client(&section, backends.as_deref(), files, findings);
    let default = Upstream::new(name.into(), backends.unwrap_or_default());
    Upstream {
        source,
        announce: announce(&section, findings),
        tls,
        balance: section.read("balance", default.balance, findings, |value| {
            value::word(value, &keys::BALANCE, ALGORITHMS)
        }),
        connect_timeout: section.read(
            "connect_timeout",
            default.connect_timeout,
            findings,
            duration::timeout,
        ),
        tcp_keepalive: section.read(
            "tcp_keepalive",
            default.tcp_keepalive,
            findings,
            duration::keepalive,
        ),
        tcp_user_timeout: section.read(
            "tcp_user_timeout",
            default.tcp_user_timeout,
            findings,
            duration::user_timeout,
        ),
        slow_start: section.read(
            "slow_start",
            default.slow_start,
            findings,
            duration::duration,
        ),
        fail_open_below: section.read("fail_open_below", default.fail_open_below, findings, share),
        health_check,
        outlier: policies::outlier(&section, findings),
        circuit_breaker: policies::circuit_breaker(&section, findings),
        retry: policies::retry(&section, findings),
        queue: policies::queue(&section, findings),
        pool,
        ..default
    }
}

/// Who hears who the client is.
fn announce(section: &Section<'_>, findings: &mut Findings) -> Announce {
    let versions = [Announce::Never, Announce::V1, Announce::V2Every];
    let version = section.read("send_proxy_protocol", versions[0], findings, |value| {
        value::word(value, &keys::PROXY_PROTOCOL, &versions)
    });
    let which = [Announce::V2Every, Announce::V2First];
    let which = section.read("proxy_protocol_datagrams", which[0], findings, |value| {
        value::word(value, &keys::ANNOUNCED, &which)
    });
    match section.place_of("proxy_protocol_datagrams") {
        _ if version == Announce::V2Every => which,
        Some(place) => {
            let fault = Fault::new("no datagram has a header of the PROXY protocol");
            findings.push(
                place,
                fault.expected("send_proxy_protocol = \"v2\" with it"),
            );
            version
        }
        None => version,
    }
}

/// Local addresses, each of a family that a backend has.
fn source(
    section: &Section<'_>,
    backends: &Option<Vec<Backend>>,
    findings: &mut Findings,
) -> Vec<IpAddr> {
    let Some(value) = section.value("source") else {
        return Vec::new();
    };
    let mut source = Vec::new();
    for entry in one_or_many(value, SOURCE_FORM, findings) {
        let address = value::string(entry.get_ref())
            .map_err(|_| value::wrong_type(entry.get_ref(), SOURCE_FORM))
            .and_then(local_address)
            .and_then(|address| match backends {
                Some(backends) => serves(address, backends),
                None => Ok(address),
            })
            .and_then(|address| match source.contains(&address) {
                true => Err(Fault::new(format!("{address} is already in the list"))),
                false => Ok(address),
            });
        source.extend(findings.keep(entry.span(), address));
    }
    source
}

const SOURCE_FORM: &str = "an IP address of this machine without a port, or a list of them";

fn local_address(text: &str) -> Read<IpAddr> {
    match text.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() => Err(Fault::new(format!("{text:?} is no source address"))
            .expected(SOURCE_FORM)
            .hint("without the key the kernel chooses")),
        Ok(ip) if !ip.is_multicast() => Ok(ip),
        _ => Err(Fault::new(format!("{text:?} is no source address")).expected(SOURCE_FORM)),
    }
}

/// A source address is of use to backends of its own family only.
fn serves(source: IpAddr, backends: &[Backend]) -> Read<IpAddr> {
    let family = if source.is_ipv4() { "IPv4" } else { "IPv6" };
    let same = |backend: &Backend| {
        backend
            .address
            .as_ip()
            .is_some_and(|ip| ip.is_ipv4() == source.is_ipv4())
    };
    if backends.iter().any(same) {
        return Ok(source);
    }
    Err(Fault::new(format!(
        "no backend of this upstream has an {family} address"
    ))
    .expected("an address of a family that a backend has"))
}
