//! `[[listeners.NAME.routes]]`: from the file's tables to the model.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use toml::de::DeValue;

use super::diagnostics::Fault;
use super::listeners::{Clients, upstream};
use super::section::{Findings, Section, one_or_many};
use super::value::{self, Read};
use super::{Route, Upstream, endpoint, keys};

/// All routes of a listener, in the order of the file.
pub(super) fn read(
    listener: &Section<'_>,
    upstreams: &[Upstream],
    clients: Clients,
    findings: &mut Findings,
) -> Vec<Route> {
    let Some(value) = listener.value("routes") else {
        return Vec::new();
    };
    let Some(tables) = value.get_ref().as_array() else {
        let expected = "tables, each after a line [[listeners.NAME.routes]]";
        findings.push(value.span(), value::wrong_type(value.get_ref(), expected));
        return Vec::new();
    };
    let mut taken = HashSet::new();
    let mut routes = Vec::with_capacity(tables.len());
    for table in tables {
        let section = Section::open(table, keys::ROUTE, findings);
        let sni = names(&section, &mut taken, findings);
        if let Some(upstream) = upstream(&section, upstreams, clients, findings) {
            routes.push(Route { sni, upstream });
        }
    }
    routes
}

/// Names of a route; `taken` are those of the routes so far.
fn names(
    section: &Section<'_>,
    taken: &mut HashSet<Arc<str>>,
    findings: &mut Findings,
) -> Vec<Arc<str>> {
    let Some(value) = section.required("sni", NAMES_FORM, findings) else {
        return Vec::new();
    };
    let mut names = Vec::new();
    for entry in one_or_many(value, NAMES_FORM, findings) {
        let name = name(entry.get_ref()).and_then(|name| match taken.insert(name.clone()) {
            true => Ok(name),
            false => Err(
                Fault::new(format!("{name:?} is already in a route of this listener"))
                    .expected("every name once: the first route that matches is taken"),
            ),
        });
        names.extend(findings.keep(entry.span(), name));
    }
    names
}

const NAMES_FORM: &str = "a name like \"a.example.com\" or \"*.example.com\", or a list of them";

/// As RFC 6066, section 3 has them: no address, no port, no dot at the end; in lower case.
fn name(value: &DeValue<'_>) -> Read<Arc<str>> {
    let text = value::string(value).map_err(|_| value::wrong_type(value, NAMES_FORM))?;
    let lower = text.to_ascii_lowercase();
    if is_name(&lower) {
        return Ok(lower.into());
    }
    let fault = Fault::new(format!("{text:?} is not a name that clients ask for"));
    let fault = fault.expected(NAMES_FORM);
    let address = lower.trim_matches(['[', ']']).parse::<IpAddr>();
    Err(if lower == "*" {
        fault.hint("what no route is for goes to the listener's upstream")
    } else if address.is_ok() {
        fault.hint("clients that connect to an address ask for no name")
    } else if !lower.is_ascii() {
        fault.hint("write it as clients send it, in ASCII: with labels that begin with \"xn--\"")
    } else {
        match meant(&lower) {
            Some(meant) => fault.hint(format!("did you mean {meant:?}?")),
            None => fault,
        }
    })
}

fn is_name(text: &str) -> bool {
    let host = text.strip_prefix("*.").unwrap_or(text);
    endpoint::is_host_name(host) && !host.ends_with('.')
}

/// What was probably meant by a name with a port, a dot at an end, or a part of a URL around it.
fn meant(text: &str) -> Option<String> {
    let host = text.split_once("://").map_or(text, |(_, rest)| rest);
    let host = host.split(['/', ':']).next()?;
    let host = host.strip_suffix('.').unwrap_or(host);
    let host = match host.strip_prefix('.') {
        Some(rest) => format!("*.{rest}"),
        None => host.to_owned(),
    };
    is_name(&host).then_some(host)
}
