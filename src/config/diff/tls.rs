//! The tables about TLS as keys with values. What is in a file is told by its fingerprint.

use std::path::Path;

use super::How::NewConnections;
use super::flat::{Section, WHOLE};
use super::written::{or, text};
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
    let pairs = certificates.iter().map(|it| pair(it)).collect();
    section.sequence("certificates", pairs, how);
    let (auth, file) = match client_auth {
        ClientAuth::Off => ("off", None),
        ClientAuth::Optional(it) => ("optional", Some(authorities(it))),
        ClientAuth::Required(it) => ("required", Some(authorities(it))),
    };
    section.key("client_auth", auth, how);
    section.key("client_ca", or("none", &file), how);
    let version = match min_version {
        Version::Tls12 => "1.2",
        Version::Tls13 => "1.3",
    };
    section.key("min_version", version, how);
    section.sequence("alpn", alpn.iter().map(text).collect(), how);
    section.key("tickets", tickets, how);
}

pub(super) fn client_keys(upstream: &mut Section<'_>, settings: &ClientSettings) {
    let ClientSettings {
        server_name,
        authorities: verified_by,
        identity,
    } = settings;
    let how = NewConnections;
    let mut section = upstream.table("tls", WHOLE.to_owned(), how);
    let name = server_name.as_deref().map(text);
    section.key("server_name", or("none", &name), how);
    let ca = verified_by.as_deref().map(authorities);
    section.key("ca", or("none", &ca), how);
    section.key("verify", verified_by.is_some(), how);
    let certificate = identity
        .as_deref()
        .map(|it| content(&it.certificate, &it.fingerprint()));
    section.key("client_cert", or("none", &certificate), how);
    let key = identity.as_deref().map(|it| path(&it.key));
    section.key("client_key", or("none", &key), how);
}

/// `{ cert = /etc/a.pem (d1f1), key = /etc/a.key }`
fn pair(pair: &Pair) -> String {
    let certificate = content(&pair.certificate, &pair.fingerprint());
    format!("{{ cert = {certificate}, key = {} }}", path(&pair.key))
}

fn authorities(authorities: &Authorities) -> String {
    let fingerprint = authorities.fingerprint();
    match &authorities.file {
        Some(file) => content(file, &fingerprint),
        None => format!("the system's ({fingerprint})"),
    }
}

fn content(file: &Path, fingerprint: &str) -> String {
    format!("{} ({fingerprint})", path(file))
}

fn path(file: &Path) -> String {
    text(file.to_string_lossy())
}
