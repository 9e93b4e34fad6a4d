//! `[listeners.NAME.tls]` and `[upstreams.NAME.tls]`: from the file's tables to the model, with what is in
//! the files that they name.

use std::net::IpAddr;
use std::sync::Arc;

use toml::de::DeValue;

use super::diagnostics::Fault;
use super::files::Files;
use super::section::{Findings, Section, one_or_many};
use super::value::{self, Read};
use super::{Backend, endpoint, keys};
use crate::tls::{Authorities, ClientAuth, ClientSettings, Pair, ServerSettings, Version};

/// `None` if there is no such table.
pub(super) fn server(
    listener: &Section<'_>,
    files: &mut Files<'_>,
    findings: &mut Findings,
) -> Option<ServerSettings> {
    let section = listener.optional("tls", keys::TLS, findings)?;
    Some(ServerSettings {
        certificates: certificates(&section, files, findings),
        client_auth: client_auth(&section, files, findings),
        min_version: section.read("min_version", Version::Tls12, findings, |value| {
            value::word(value, &keys::MIN_VERSION, &[Version::Tls12, Version::Tls13])
        }),
        alpn: alpn(&section, findings),
        tickets: section.read("tickets", true, findings, value::boolean),
    })
}

fn certificates(
    section: &Section<'_>,
    files: &mut Files<'_>,
    findings: &mut Findings,
) -> Vec<Arc<Pair>> {
    let Some(value) = section.required("certificates", CERTIFICATES_FORM, findings) else {
        return Vec::new();
    };
    let mut certificates = Vec::new();
    for entry in one_or_many(value, CERTIFICATES_FORM, findings) {
        if !entry.get_ref().is_table() {
            let fault = value::wrong_type(entry.get_ref(), CERTIFICATES_FORM);
            findings.push(entry.span(), fault);
            continue;
        }
        let entry = Section::open(entry, keys::CERTIFICATE, findings);
        entry.required("cert", "the file of a certificate chain in PEM", findings);
        entry.required("key", "the file of its private key in PEM", findings);
        certificates.extend(files.pair(&entry, ["cert", "key"], findings));
    }
    certificates
}

const CERTIFICATES_FORM: &str = "a list of tables like { cert = \"a.pem\", key = \"a.key\" }";

fn client_auth(
    section: &Section<'_>,
    files: &mut Files<'_>,
    findings: &mut Findings,
) -> ClientAuth {
    let before = findings.count();
    let wanted = section.read("client_auth", None, findings, |value| {
        let optional: fn(_) -> _ = ClientAuth::Optional;
        let required: fn(_) -> _ = ClientAuth::Required;
        value::word(
            value,
            &keys::CLIENT_AUTH,
            &[None, Some(optional), Some(required)],
        )
    });
    if findings.count() > before {
        // Whether there is to be a file is not known then.
        return ClientAuth::Off;
    }
    let Some(wanted) = wanted else {
        if let Some(place) = section.place_of("client_ca") {
            let by_default = match section.value("client_auth") {
                Some(_) => "",
                None => ", which is the default",
            };
            let fault = Fault::new(format!(
                "\"client_ca\" has no meaning with client_auth \"off\"{by_default}"
            ));
            let expected = "client_auth = \"optional\" or \"required\" with it";
            findings.push(place, fault.expected(expected));
        }
        return ClientAuth::Off;
    };
    let expected = "the file of the authorities that clients' certificates are from";
    section
        .required("client_ca", expected, findings)
        .and_then(|value| {
            let read = files.authorities(Some(value.get_ref()));
            findings.keep(value.span(), read)
        })
        .map_or(ClientAuth::Off, wanted)
}

/// In the order of the file, which is that of the preference.
fn alpn(section: &Section<'_>, findings: &mut Findings) -> Vec<Arc<str>> {
    let Some(value) = section.value("alpn") else {
        return Vec::new();
    };
    let entries = match value.get_ref() {
        DeValue::Array(list) => list.iter().collect(),
        _ => vec![value],
    };
    let mut protocols: Vec<Arc<str>> = Vec::with_capacity(entries.len());
    for entry in entries {
        let protocol = protocol(entry.get_ref()).and_then(|it| match protocols.contains(&it) {
            true => Err(Fault::new(format!("{it:?} is already in the list"))),
            false => Ok(it),
        });
        protocols.extend(findings.keep(entry.span(), protocol));
    }
    protocols
}

/// RFC 7301, section 3.1.
fn protocol(value: &DeValue<'_>) -> Read<Arc<str>> {
    let expected = "names of protocols like \"h2\", each of 1 to 255 bytes";
    let text = value::string(value).map_err(|_| value::wrong_type(value, expected))?;
    match text.len() {
        1..=255 => Ok(text.into()),
        bytes => Err(Fault::new(format!("this name has {bytes} bytes")).expected(expected)),
    }
}

/// `None` if there is no such table. `backends` are `None` if nothing can be concluded from them.
pub(super) fn client(
    upstream: &Section<'_>,
    backends: Option<&[Backend]>,
    files: &mut Files<'_>,
    findings: &mut Findings,
) -> Option<ClientSettings> {
    let section = upstream.optional("tls", keys::UPSTREAM_TLS, findings)?;
    let verify = section.read("verify", true, findings, value::boolean);
    if verify && section.value("server_name").is_none() {
        let mut backends = backends.unwrap_or_default().iter();
        if let Some(unix) = backends.find(|it| it.address.as_ip().is_none()) {
            let fault = Fault::new(format!(
                "backend {:?} is a unix socket, which has no name to verify",
                unix.name
            ))
            .expected("\"server_name\", or verify = false");
            findings.push(section.header.clone(), fault);
        }
    }
    Some(ClientSettings {
        server_name: section.read("server_name", None, findings, server_name),
        authorities: authorities(&section, verify, files, findings),
        identity: identity(&section, files, findings),
    })
}

/// Who may have signed backends' certificates.
fn authorities(
    section: &Section<'_>,
    verify: bool,
    files: &mut Files<'_>,
    findings: &mut Findings,
) -> Option<Arc<Authorities>> {
    if verify {
        let value = section.value("ca");
        let place = value.map_or_else(|| section.header.clone(), |value| value.span());
        let read = files.authorities(value.map(|value| value.get_ref()));
        return findings.keep(place, read);
    }
    if let Some(place) = section.place_of("ca") {
        let fault = Fault::new("\"ca\" has no meaning with verify = false");
        findings.push(
            place,
            fault.expected("\"ca\" only where backends are verified"),
        );
    }
    None
}

/// What is shown to backends: both keys or neither.
fn identity(
    section: &Section<'_>,
    files: &mut Files<'_>,
    findings: &mut Findings,
) -> Option<Arc<Pair>> {
    let keys = ["client_cert", "client_key"];
    match keys.map(|key| section.place_of(key)) {
        [Some(_), Some(_)] => return files.pair(section, keys, findings),
        [None, None] => (),
        [Some(place), None] | [None, Some(place)] => {
            let fault = Fault::new("a certificate and its key go together");
            let expected = "both \"client_cert\" and \"client_key\", or neither";
            findings.push_missing_key(place, fault.expected(expected));
        }
    }
    None
}

/// A name in lower case, or an address.
fn server_name(value: &DeValue<'_>) -> Read<Option<Arc<str>>> {
    let expected =
        "a host name or an IP address that backends' certificates are for, without a port";
    let text = value::string(value).map_err(|_| value::wrong_type(value, expected))?;
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Some(address.to_string().into()));
    }
    if endpoint::is_host_name(text) && !text.ends_with('.') {
        return Ok(Some(text.to_ascii_lowercase().into()));
    }
    Err(Fault::new(format!("{text:?} is not a name to verify")).expected(expected))
}
