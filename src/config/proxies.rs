//! `accept_proxy_protocol` and `trusted_proxies`: from the file to the model.

use super::diagnostics::Fault;
use super::section::{Findings, Section};
use super::{IpNet, keys, networks, value};
use crate::address::Address;

/// Whose headers are believed; `None` if there are none.
pub(super) fn read(
    listener: &Section<'_>,
    bind: &[Address],
    findings: &mut Findings,
) -> Option<Vec<IpNet>> {
    let before = findings.count();
    let required = listener.read("accept_proxy_protocol", false, findings, |value| {
        value::word(value, &keys::ACCEPT_PROXY, &[false, true])
    });
    let trusted = networks::read(listener, "trusted_proxies", findings);
    if findings.count() > before {
        return required.then_some(trusted);
    }
    if !required {
        if !trusted.is_empty()
            && let Some(place) = listener.place_of("trusted_proxies")
        {
            let fault = Fault::new("nobody is asked for a header of the PROXY protocol");
            let expected = "accept_proxy_protocol = \"require\" with it";
            findings.push(place, fault.expected(expected));
        }
        return None;
    }
    // Who may connect to a unix socket is a matter of its permissions.
    let networked = bind.iter().any(|address| address.as_ip().is_some());
    if trusted.is_empty()
        && networked
        && let Some(value) = listener.value("accept_proxy_protocol")
    {
        let fault = Fault::new("nobody would be believed: \"trusted_proxies\" is empty");
        let expected =
            "trusted_proxies = [\"10.0.0.0/8\"] or the like with it: where the proxies are";
        findings.push(value.span(), fault.expected(expected));
    }
    Some(trusted)
}
