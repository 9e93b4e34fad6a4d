//! The tables about TLS. Of certificates and keys it has the paths.

use std::path::Path;

use toml::{Table, Value};

use super::{file, list, put, put_some};
use crate::tls::{Authorities, ClientAuth, ClientSettings, Pair, ServerSettings, Version};

pub(super) fn server_tls(settings: &ServerSettings) -> Table {
    let ServerSettings {
        certificates,
        client_auth,
        min_version,
        alpn,
        tickets,
    } = settings;
    let mut table = Table::new();
    let pairs = certificates.iter().map(|pair| {
        let mut table = Table::new();
        put(&mut table, "cert", file(&pair.certificate));
        put(&mut table, "key", file(&pair.key));
        Value::Table(table)
    });
    put(&mut table, "certificates", Value::Array(pairs.collect()));
    let (auth, authorities) = match client_auth {
        ClientAuth::Off => ("off", None),
        ClientAuth::Optional(it) => ("optional", Some(it)),
        ClientAuth::Required(it) => ("required", Some(it)),
    };
    put(&mut table, "client_auth", auth);
    put_some(
        &mut table,
        "client_ca",
        authorities.and_then(|it| authority(it)),
    );
    let version = match min_version {
        Version::Tls12 => "1.2",
        Version::Tls13 => "1.3",
    };
    put(&mut table, "min_version", version);
    put(&mut table, "alpn", list(alpn));
    put(&mut table, "tickets", *tickets);
    table
}

/// The file; those of the system have none.
fn authority(authorities: &Authorities) -> Option<Value> {
    authorities.file.as_deref().map(file)
}

pub(super) fn client_tls(settings: &ClientSettings) -> Table {
    let ClientSettings {
        server_name,
        authorities,
        identity,
    } = settings;
    let mut table = Table::new();
    put_some(&mut table, "server_name", server_name.as_deref());
    put_some(&mut table, "ca", authorities.as_deref().and_then(authority));
    put(&mut table, "verify", authorities.is_some());
    let identity = identity.as_deref();
    let own = |of: fn(&Pair) -> &Path| identity.map(|pair| file(of(pair)));
    put_some(&mut table, "client_cert", own(|it| &it.certificate));
    put_some(&mut table, "client_key", own(|it| &it.key));
    table
}
