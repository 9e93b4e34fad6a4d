//! The tables about TLS as keys with values. What is in a file is told by its fingerprint.

use std::sync::Arc;

use super::How::NewConnections;
use super::flat::{Section, WHOLE};
use super::value::{Value, table};
use crate::tls::{Authorities, ClientAuth, ClientSettings, Pair, ServerSettings, Version};

pub(super) fn server_keys(listener: &mut Section<'_>, settings: &ServerSettings) {
    let ServerSettings {
        certificates,
        client_auth,
        min_version,
        alpn,
        tickets,
    } = settings;
    let how = NewConnections;
    let mut section = listener.table("tls", WHOLE.to_owned(), how);
    section.key("certificates", pairs(certificates), how);
    let (auth, file) = match client_auth {
        ClientAuth::Off => ("off", None),
        ClientAuth::Optional(it) => ("optional", Some(authorities(it))),
        ClientAuth::Required(it) => ("required", Some(authorities(it))),
    };
    section.key("client_auth", auth, how);
    section.key("client_ca", Value::some(file), how);
    let version = match min_version {
        Version::Tls12 => "1.2",
        Version::Tls13 => "1.3",
    };
    section.key("min_version", version, how);
    section.key("alpn", Value::sequence(alpn), how);
    section.key("tickets", *tickets, how);
}

pub(super) fn client_keys(upstream: &mut Section<'_>, settings: &ClientSettings) {
    let ClientSettings {
        server_name,
        authorities: verified_by,
        identity,
    } = settings;
    let how = NewConnections;
    let mut section = upstream.table("tls", WHOLE.to_owned(), how);
    let name = server_name.as_ref().map(Value::text);
    section.key("server_name", Value::some(name), how);
    let ca = verified_by.as_deref().map(authorities);
    section.key("ca", Value::some(ca), how);
    section.key("verify", verified_by.is_some(), how);
    let identity = identity.as_deref();
    section.key("client_cert", Value::some(identity.map(certificate)), how);
    let key = identity.map(|it| Value::path(&it.key));
    section.key("client_key", Value::some(key), how);
}

/// Each as `{ cert = /etc/a.pem (d1f1), key = /etc/a.key }`.
fn pairs(pairs: &[Arc<Pair>]) -> Value {
    let (mut shown, mut tables) = (Vec::new(), Vec::new());
    for pair in pairs {
        let (certificate, key) = (certificate(pair), Value::path(&pair.key));
        shown.push(format!(
            "{{ cert = {}, key = {} }}",
            certificate.shown(None),
            key.shown(None)
        ));
        tables.push(table([("cert", certificate), ("key", key)]));
    }
    Value::Sequence(shown, tables.into())
}

fn authorities(authorities: &Authorities) -> Value {
    let path = authorities
        .file
        .as_deref()
        .map(|it| it.to_string_lossy().into_owned());
    Value::File(path, authorities.fingerprint())
}

fn certificate(pair: &Pair) -> Value {
    let path = pair.certificate.to_string_lossy().into_owned();
    Value::File(Some(path), pair.fingerprint())
}
