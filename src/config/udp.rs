//! `protocol = "udp"` and `[listeners.NAME.udp]`: from the file's table to the model, and what goes with
//! which protocol.

use std::num::NonZeroU32;

use super::diagnostics::Fault;
use super::section::{Findings, Section};
use super::{Protocol, SessionKey, Udp, duration, keys, value};

/// What the listener takes, with the keys that are about that alone.
pub(super) fn protocol(listener: &Section<'_>, findings: &mut Findings) -> Protocol {
    let udp = Protocol::Udp(Udp::default());
    let protocol = listener.read("protocol", Protocol::Tcp, findings, |value| {
        value::word(value, &keys::PROTOCOL, &[Protocol::Tcp, udp])
    });
    let limits = listener.child("rate_limit", keys::RATE_LIMIT, &mut Findings::default());
    match protocol {
        Protocol::Tcp => {
            refuse(listener, &["udp"], "tcp", findings);
            refuse(&limits, &["datagrams_per_ip"], "tcp", findings);
            Protocol::Tcp
        }
        Protocol::Udp(default) => {
            refuse(listener, &KEYS_OF_CONNECTIONS, "udp", findings);
            refuse(&limits, &["bandwidth"], "udp", findings);
            Protocol::Udp(read(listener, default, findings))
        }
    }
}

/// Keys of a listener that are about connections.
pub(super) const KEYS_OF_CONNECTIONS: [&str; 9] = [
    "backlog",
    "tcp_keepalive",
    "congestion",
    "unix_mode",
    "timeouts",
    "accept_proxy_protocol",
    "trusted_proxies",
    "tls",
    "routes",
];

fn refuse(section: &Section<'_>, keys: &[&str], protocol: &str, findings: &mut Findings) {
    let (other, by_default) = match protocol {
        "udp" => ("tcp", ""),
        _ => ("udp", ", which is the default"),
    };
    for key in keys {
        if let Some(place) = section.place_of(key) {
            let fault = Fault::new(format!(
                "{key:?} has no meaning with protocol {protocol:?}{by_default}"
            ));
            let expected = format!("{key:?} only with protocol = {other:?}");
            findings.push(place, fault.expected(expected));
        }
    }
}

fn read(listener: &Section<'_>, default: Udp, findings: &mut Findings) -> Udp {
    let section = listener.child("udp", keys::UDP, findings);
    Udp {
        session_timeout: section.read(
            "session_timeout",
            default.session_timeout,
            findings,
            duration::timeout,
        ),
        session_key: section.read("session_key", default.session_key, findings, |value| {
            let meanings = [SessionKey::SourceIpPort, SessionKey::SourceIp];
            value::word(value, &keys::SESSION_KEY, &meanings)
        }),
        per_packet: section.read("mode", default.per_packet, findings, |value| {
            value::word(value, &keys::MODE, &[false, true])
        }),
        max_sessions: section.read("max_sessions", default.max_sessions, findings, |value| {
            value::auto_or_count(value, value::MOST_CONNECTIONS)
        }),
        responses: section.read("responses", default.responses, findings, |value| {
            value::count(value, 0..=u64::from(u32::MAX))
                .map(|number| NonZeroU32::new(number as u32))
        }),
        reject_privileged_sources: section.read(
            "reject_privileged_sources",
            default.reject_privileged_sources,
            findings,
            value::boolean,
        ),
    }
}
