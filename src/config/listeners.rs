//! `[listeners.NAME]`: from the file's tables to the model.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;

use toml::de::DeValue;

use super::diagnostics::Fault;
use super::files::Files;
use super::section::{Findings, Key, Section, Value, one_or_many};
use super::value::{self, Read};
use super::{
    Announce, IpNet, Listener, Timeouts, Upstream, duration, endpoint, keys, networks, proxies,
    rate_limit, routes, tls, udp,
};
use crate::address::Address;

/// Every listener of the file. `upstreams` are those that may be referred to.
pub(super) fn read(
    root: &Section<'_>,
    upstreams: &[Upstream],
    files: &mut Files<'_>,
    findings: &mut Findings,
) -> Vec<Listener> {
    let before = findings.count();
    let tables = root.named("listeners", findings);
    if tables.is_empty() && findings.count() == before {
        let header = root.value("listeners").map_or(0..0, Value::span);
        let fault = Fault::new("no listener").expected("at least one table [listeners.NAME]");
        findings.push_missing_table(header, fault);
    }
    let mut around = Around {
        upstreams,
        bound: HashMap::new(),
        files,
    };
    tables
        .into_iter()
        .filter_map(|(name, value)| listener(name, value, &mut around, findings))
        .collect()
}

/// What the listeners of a file have in common.
struct Around<'a, 'f> {
    upstreams: &'a [Upstream],
    bound: Bound<'a>,
    files: &'a mut Files<'f>,
}

/// Whoever comes to a listener, as far as an upstream cares.
#[derive(Clone, Copy)]
pub(super) struct Clients {
    /// Some have no address.
    nameless: bool,
    /// They send datagrams.
    datagrams: bool,
}

/// Addresses bound so far, for datagrams or not, each with the name of its listener.
type Bound<'a> = HashMap<(Address, bool), &'a str>;

/// Whoever binds an address.
#[derive(Clone, Copy)]
struct Owner<'a> {
    name: &'a str,
    datagrams: bool,
}

fn listener<'a>(
    name: &'a Key<'a>,
    value: &'a Value<'a>,
    around: &mut Around<'a, '_>,
    findings: &mut Findings,
) -> Option<Listener> {
    let section = Section::open(value, keys::LISTENER, findings);
    let protocol = udp::protocol(&section, findings);
    let owner = Owner {
        name: name.get_ref(),
        datagrams: protocol.udp().is_some(),
    };
    let bind = bind(owner, &section, &mut around.bound, findings);
    // With datagrams, what only connections have has been refused.
    let (trusted_proxies, tls) = match owner.datagrams {
        true => (None, None),
        false => (
            proxies::read(&section, &bind, findings),
            tls::server(&section, around.files, findings),
        ),
    };
    let unix = bind.iter().any(|address| address.as_ip().is_none());
    let clients = Clients {
        nameless: unix && trusted_proxies.is_none(),
        datagrams: owner.datagrams,
    };
    let upstream = upstream(&section, around.upstreams, clients, findings);
    let nameless = clients.nameless;
    let default = Listener::new(Arc::from(&**name.get_ref()), bind, 0);
    Some(Listener {
        protocol,
        trusted_proxies,
        tls,
        routes: match owner.datagrams {
            true => Vec::new(),
            false => routes::read(&section, around.upstreams, clients, findings),
        },
        backlog: section.read("backlog", default.backlog, findings, backlog),
        max_connections: section.read("max_connections", None, findings, value::cap),
        tcp_keepalive: section.read(
            "tcp_keepalive",
            default.tcp_keepalive,
            findings,
            duration::keepalive,
        ),
        congestion: section.read("congestion", None, findings, congestion),
        ipv6_only: section.read("ipv6_only", default.ipv6_only, findings, value::boolean),
        unix_mode: section.read("unix_mode", default.unix_mode, findings, value::mode),
        timeouts: timeouts(&section, default.timeouts, findings),
        allow: networks(&section, "allow", nameless, findings),
        deny: networks(&section, "deny", nameless, findings),
        rate_limit: rate_limit::read(&section, nameless, findings),
        // Last, so that everything else has been looked at.
        upstream: upstream?,
        ..default
    })
}

fn timeouts(listener: &Section<'_>, default: Timeouts, findings: &mut Findings) -> Timeouts {
    let section = listener.child("timeouts", keys::TIMEOUTS, findings);
    Timeouts {
        idle: section.read("idle", default.idle, findings, duration::timeout),
        half_close: section.read(
            "half_close",
            default.half_close,
            findings,
            duration::timeout,
        ),
        handshake: section.read("handshake", default.handshake, findings, duration::timeout),
    }
}

/// `nameless` = some clients have no address.
fn networks(
    section: &Section<'_>,
    key: &str,
    nameless: bool,
    findings: &mut Findings,
) -> Vec<IpNet> {
    if let Some(value) = section.value(key)
        && nameless
        && !matches!(value.get_ref(), DeValue::Array(list) if list.is_empty())
    {
        let fault = endpoint::no_client_address(&format!("{key:?}"));
        findings.push(value.span(), fault);
    }
    networks::read(section, key, findings)
}

fn bind<'a>(
    owner: Owner<'a>,
    section: &Section<'a>,
    bound: &mut Bound<'a>,
    findings: &mut Findings,
) -> Vec<Address> {
    let Some(value) = section.required("bind", endpoint::BIND_FORM, findings) else {
        return Vec::new();
    };
    let mut binds = Vec::new();
    for value in one_or_many(value, endpoint::BIND_FORM, findings) {
        let address = value::string(value.get_ref())
            .map_err(|_| value::wrong_type(value.get_ref(), endpoint::BIND_FORM))
            .and_then(endpoint::bind)
            .and_then(|address| claim(address, owner, bound));
        binds.extend(findings.keep(value.span(), address));
    }
    binds
}

/// Notes that `owner` binds `address`, which nobody else may for the same.
fn claim<'a>(address: Address, owner: Owner<'a>, bound: &mut Bound<'a>) -> Read<Address> {
    if owner.datagrams && address.as_ip().is_none() {
        return Err(
            Fault::new("datagrams are not taken from unix sockets").expected("an \"ip:port\"")
        );
    }
    // Each port 0 becomes another port.
    if address.as_ip().is_some_and(|ip| ip.port() == 0) {
        return Ok(address);
    }
    let place = (address.clone(), owner.datagrams);
    match bound.get(&place) {
        Some(owner) => Err(
            Fault::new(format!("{address} is already bound by listener {owner:?}"))
                .expected("every address once"),
        ),
        None => {
            bound.insert(place, owner.name);
            Ok(address)
        }
    }
}

/// Index of the upstream that a listener or a route names.
pub(super) fn upstream(
    section: &Section<'_>,
    upstreams: &[Upstream],
    clients: Clients,
    findings: &mut Findings,
) -> Option<usize> {
    let value = section.required("upstream", "the name of an upstream", findings)?;
    let name = findings.keep(value.span(), value::string(value.get_ref()))?;
    let Some(index) = upstreams.iter().position(|it| *it.name == *name) else {
        findings.push_missing_table(value.span(), no_upstream(name, upstreams));
        return None;
    };
    let balance = upstreams[index].balance;
    if clients.nameless && balance.needs_client {
        let what = format!("balance = {:?} of upstream {name:?}", balance.name);
        findings.push(value.span(), endpoint::no_client_address(&what));
    }
    if clients.datagrams {
        findings.keep(value.span(), takes_datagrams(&upstreams[index]));
    }
    Some(index)
}

/// What an upstream can't have when datagrams go to it.
fn takes_datagrams(upstream: &Upstream) -> Read<()> {
    let name = &upstream.name;
    let mut backends = upstream.backends.iter();
    if let Some(unix) = backends.find(|it| it.address.as_ip().is_none()) {
        let fault = Fault::new(format!(
            "{} of upstream {name:?} takes no datagrams",
            unix.address
        ));
        return Err(fault.expected("backends at an \"ip:port\" with protocol = \"udp\""));
    }
    if upstream.pool.preconnect > 0 {
        let fault = Fault::new(format!("upstream {name:?} opens connections ahead"));
        return Err(fault.expected("no \"preconnect\" where datagrams go"));
    }
    if upstream.tls.is_some() {
        let fault = Fault::new(format!("upstream {name:?} is spoken TLS with"));
        return Err(fault.expected("no [upstreams.NAME.tls] where datagrams go"));
    }
    if upstream.announce == Announce::V1 {
        let what = "announces clients by version 1 of the PROXY protocol, which has no datagrams";
        let fault = Fault::new(format!("upstream {name:?} {what}"));
        return Err(fault.expected("send_proxy_protocol = \"v2\" where datagrams go"));
    }
    Ok(())
}

fn no_upstream(name: &str, upstreams: &[Upstream]) -> Fault {
    let names: Vec<_> = upstreams.iter().map(|it| &*it.name).collect();
    let expected = match names.as_slice() {
        [] => format!("a table [upstreams.{name}]"),
        names => value::quoted_list(names),
    };
    Fault::new(format!("there is no upstream {name:?}"))
        .expected(expected)
        .suggest(name, names)
}

fn backlog(value: &DeValue<'_>) -> Read<NonZeroU32> {
    // listen(2) takes an `int`.
    value::at_least_one(value, i32::MAX as u32)
}

/// `"system"` is `None`. Whether the kernel knows the name shows when the listener is bound.
fn congestion(value: &DeValue<'_>) -> Read<Option<Arc<str>>> {
    let expected = "\"system\" or a name from /proc/sys/net/ipv4/tcp_available_congestion_control";
    let name = value::string(value).map_err(|_| value::wrong_type(value, expected))?;
    // TCP_CA_NAME_MAX is 16 with the zero that ends it.
    let plain = |c: u8| c.is_ascii_alphanumeric() || c == b'_' || c == b'-';
    if !(1..=15).contains(&name.len()) || !name.bytes().all(plain) {
        return Err(
            Fault::new(format!("{name:?} is not a congestion control algorithm"))
                .expected(expected),
        );
    }
    Ok((name != "system").then(|| name.into()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use toml::de::DeTable;

    use super::*;
    use crate::policy::balance::Algorithm;

    /// What is said of a listener at this address before an upstream whose balance goes by the client.
    fn said(bind: &str) -> String {
        let text = format!("[listeners.web]\nbind = ['[::1]:80', '{bind}']\nupstream = 'app'");
        let table = DeTable::parse(&text).unwrap();
        let mut findings = Findings::default();
        let root = Section::root(table.get_ref(), keys::ROOT, &mut findings);
        let app = Upstream {
            balance: Algorithm {
                name: "by-client",
                needs_client: true,
                ..Algorithm::default()
            },
            ..Upstream::new("app".into(), Vec::new())
        };
        let mut nobody = |_: &str, _: u16| Ok(Vec::new());
        let mut files = Files::beside(Path::new("a.toml"), &mut nobody);
        read(&root, &[app], &mut files, &mut findings);
        let list = findings.into_list();
        assert!(list.iter().all(|(span, _)| text[span.clone()] == *"'app'"));
        format!("{list:?}")
    }

    #[test]
    fn a_balance_that_goes_by_the_client_is_refused_with_a_unix_socket() {
        let fault =
            "balance = \\\"by-client\\\" of upstream \\\"app\\\" goes by the client's address";
        let said_of_unix = said("unix:/run/a.sock");
        assert!(said_of_unix.contains(fault), "{said_of_unix}");
        assert_eq!(said("127.0.0.1:80"), "[]");
    }
}
