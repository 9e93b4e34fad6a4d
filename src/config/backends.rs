//! `backends` of an upstream: from the file's list to the model, host names resolved.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use super::diagnostics::Fault;
use super::endpoint::{self, Target};
use super::resolve::Resolver;
use super::section::{Findings, Section, Value, check_name, one_or_many};
use super::value::{self, Read};
use super::{Backend, WEIGHT_MAX, keys};
use crate::address::Address;

/// All backends; `None` if something about them was wrong, so that nothing more is concluded from them.
pub(super) fn read(
    section: &Section<'_>,
    resolver: &mut dyn Resolver,
    findings: &mut Findings,
) -> Option<Vec<Backend>> {
    let before = findings.count();
    let expected = endpoint::BACKENDS_FORM;
    let value = section.required("backends", expected, findings)?;
    if !value.get_ref().is_array() {
        findings.push(value.span(), value::wrong_type(value.get_ref(), expected));
        return None;
    }
    let mut members = Members::default();
    for entry in one_or_many(value, expected, findings) {
        let Some(written) = written(entry, findings) else {
            continue;
        };
        for backend in resolved(&written, resolver, findings) {
            findings.keep(written.span.clone(), members.add(backend));
        }
    }
    if findings.count() > before {
        return None;
    }
    findings.keep(value.span(), some_can_work(&members.list))?;
    Some(members.list)
}

/// A backup takes the place of others, so that there must be one that sessions go to normally.
fn some_can_work(backends: &[Backend]) -> Read<()> {
    let mut others = backends.iter().filter(|backend| !backend.backup).peekable();
    if others.peek().is_none() {
        return Err(Fault::new("every backend is a backup")
            .expected("at least one without `backup = true`")
            .hint("backups are used only when no other backend is ready"));
    }
    if others.any(|backend| backend.weight > 0) {
        return Ok(());
    }
    Err(match backends.iter().any(|backend| backend.backup) {
        false => Fault::new("every backend has weight 0").expected("at least one above 0"),
        true => Fault::new("every backend that is no backup has weight 0")
            .expected("at least one above 0")
            .hint("give one of them a weight, or take `backup = true` from a backend"),
    })
}

/// A backend as the file has it.
#[derive(Default)]
struct Written<'a> {
    address: &'a str,
    /// Of the address.
    span: Range<usize>,
    name: Option<&'a str>,
    weight: Option<u16>,
    max_connections: Option<NonZeroUsize>,
    backup: Option<bool>,
}

impl Written<'_> {
    /// One of the backends that it stands for.
    fn backend(&self, name: Arc<str>, address: Address, host: Option<&str>) -> Backend {
        let default = Backend::new(name, address);
        Backend {
            host: host.map(Arc::from),
            weight: self.weight.unwrap_or(default.weight),
            max_connections: self.max_connections,
            backup: self.backup.unwrap_or(default.backup),
            ..default
        }
    }
}

/// An entry of the list: an address or a table.
fn written<'a>(entry: &'a Value<'a>, findings: &mut Findings) -> Option<Written<'a>> {
    if let Some(address) = entry.get_ref().as_str() {
        return Some(Written {
            address,
            span: entry.span(),
            ..Written::default()
        });
    }
    if !entry.get_ref().is_table() {
        let expected = format!("{} or a table", endpoint::TARGET_FORM);
        findings.push(entry.span(), value::wrong_type(entry.get_ref(), &expected));
        return None;
    }
    let section = Section::open(entry, keys::BACKEND, findings);
    let weight = section.read("weight", None, findings, |value| {
        value::count(value, 0..=u64::from(WEIGHT_MAX)).map(|number| Some(number as u16))
    });
    let name = section.read("name", None, findings, |value| {
        let name = value::string(value)?;
        check_name(name).map(|()| Some(name))
    });
    let max_connections = section.read("max_connections", None, findings, value::cap);
    let backup = section.read("backup", None, findings, |value| {
        value::boolean(value).map(Some)
    });
    let address = section.required("address", endpoint::TARGET_FORM, findings)?;
    Some(Written {
        address: findings.keep(address.span(), value::string(address.get_ref()))?,
        span: address.span(),
        name,
        weight,
        max_connections,
        backup,
    })
}

/// The backends of an entry, each with its name: the name given or else the address as written; where
/// that stands for several addresses, `NAME/ip:port`.
fn resolved(
    written: &Written<'_>,
    resolver: &mut dyn Resolver,
    findings: &mut Findings,
) -> Vec<Backend> {
    let span = || written.span.clone();
    let Some(target) = findings.keep(span(), endpoint::target(written.address)) else {
        return Vec::new();
    };
    let name = written.name.unwrap_or(written.address);
    match target {
        Target::Address(address) => vec![written.backend(name.into(), address, None)],
        Target::Host { name: host, port } => {
            let addresses = findings.keep(span(), resolve(host, port, resolver));
            match addresses.unwrap_or_default().as_slice() {
                [only] => vec![written.backend(name.into(), only.clone(), Some(host))],
                several => several
                    .iter()
                    .map(|address| {
                        let name = format!("{name}/{address}").into();
                        written.backend(name, address.clone(), Some(host))
                    })
                    .collect(),
            }
        }
    }
}

/// The addresses of a host, each once, sorted: name servers rotate their answers, and a reload must not
/// see a change in that.
fn resolve(host: &str, port: u16, resolver: &mut dyn Resolver) -> Read<Vec<Address>> {
    let unresolved = |why: String| {
        Fault::new(format!("host {host:?} can't be resolved: {why}"))
            .expected("a name that this machine can resolve, or an address")
    };
    let mut addresses = resolver
        .resolve(host, port)
        .map_err(|error| unresolved(error.to_string()))?;
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() {
        return Err(unresolved("it has no address".to_owned()));
    }
    Ok(addresses.into_iter().map(Address::from).collect())
}

/// The backends so far; neither an address nor a name comes twice.
#[derive(Default)]
struct Members {
    list: Vec<Backend>,
    names: HashSet<Arc<str>>,
    addresses: HashMap<Address, Arc<str>>,
}

impl Members {
    fn add(&mut self, backend: Backend) -> Read<()> {
        if let Some(other) = self.addresses.get(&backend.address) {
            let address = &backend.address;
            return Err(
                Fault::new(format!("{address} is already backend {other:?}"))
                    .expected("every address once in an upstream")
                    .hint("a weight gives a backend a larger share"),
            );
        }
        if !self.names.insert(backend.name.clone()) {
            let name = &backend.name;
            return Err(Fault::new(format!("there is already a backend {name:?}"))
                .expected("every name once in an upstream"));
        }
        self.addresses
            .insert(backend.address.clone(), backend.name.clone());
        self.list.push(backend);
        Ok(())
    }
}
