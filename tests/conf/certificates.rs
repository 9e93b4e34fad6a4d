//! What is spoken before a session's own bytes: headers of the PROXY protocol and TLS, with certificates of
//! the test's own in the place of those that a file names.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::ops::DerefMut;
use std::sync::Arc;

use rcgen::{PKCS_ECDSA_P256_SHA256, SanType};
use rustls::{ClientConfig, ConnectionCommon, ServerConfig, SideData, StreamOwned};
use socket2::Socket;
use toml::{Table, Value};

use crate::peers;
use crate::pki::{Leaf, Pki, VERSIONS};

/// A connection on which it makes no difference what is spoken below.
pub(crate) trait Wire: Read + Write {
    /// Says that nothing more comes.
    fn finish(&mut self) -> io::Result<()>;
}

impl Wire for Socket {
    fn finish(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl<C, S> Wire for StreamOwned<C, Socket>
where
    C: DerefMut<Target = ConnectionCommon<S>>,
    S: SideData,
{
    fn finish(&mut self) -> io::Result<()> {
        self.conn.send_close_notify();
        self.flush()
    }
}

/// What is spoken first.
#[derive(Clone, Default)]
pub(crate) struct Layers {
    /// A header of the PROXY protocol.
    header: bool,
    pub(crate) tls: Option<Tls>,
}

#[derive(Clone)]
pub(crate) enum Tls {
    Client(Arc<ClientConfig>),
    Server(Arc<ServerConfig>),
}

impl Layers {
    /// As a backend.
    pub(crate) fn accept(&self, mut socket: Socket) -> io::Result<Box<dyn Wire>> {
        if self.header {
            skip_header(&mut socket)?;
        }
        Ok(match &self.tls {
            Some(Tls::Server(config)) => Box::new(peers::serve(config, socket)?),
            _ => Box::new(socket),
        })
    }

    /// As a client that asks for this name.
    pub(crate) fn connect(&self, mut socket: Socket, name: &str) -> io::Result<Box<dyn Wire>> {
        if self.header {
            socket.write_all(b"PROXY TCP4 127.0.0.1 127.0.0.1 4000 443\r\n")?;
        }
        Ok(match &self.tls {
            Some(Tls::Client(config)) => Box::new(peers::secure(config, name, socket)?),
            _ => Box::new(socket),
        })
    }
}

/// Reads a header of either version.
fn skip_header(socket: &mut Socket) -> io::Result<()> {
    let mut start = [0; 16];
    socket.read_exact(&mut start)?;
    if start.starts_with(b"PROXY ") {
        let mut end = [0; 2];
        while &end != b"\r\n" {
            end[0] = end[1];
            socket.read_exact(&mut end[1..])?;
        }
        return Ok(());
    }
    let mut rest = vec![0; usize::from(u16::from_be_bytes([start[14], start[15]]))];
    socket.read_exact(&mut rest)
}

/// Has an upstream speak to backends with certificates of `pki`; what those speak.
pub(crate) fn settle_upstream(upstream: &mut Table, pki: &Pki) -> Layers {
    let header = upstream.get("send_proxy_protocol");
    let header = header.is_some_and(|version| version.as_str() != Some("off"));
    let tls = upstream.get_mut("tls").and_then(Value::as_table_mut);
    let tls = tls.map(|table| {
        let name = table.get("server_name").and_then(Value::as_str);
        let leaf = pki.leaf(name.unwrap_or("127.0.0.1"));
        if table.contains_key("ca") {
            table.insert("ca".to_owned(), pki.ca().into());
        }
        if table.contains_key("client_cert") {
            replace(table, ["client_cert", "client_key"], &pki.leaf("ringress"));
        }
        Tls::Server(Arc::new(pki.server(&leaf)))
    });
    Layers { header, tls }
}

/// Has a listener show certificates of `pki`, for every name that there is a route for; what its clients
/// speak, and which names they may ask for. One that is no TLS asks for "".
pub(crate) fn settle_listener(listener: &mut Table, pki: &Pki) -> (Layers, Vec<String>) {
    let header = listener.get("accept_proxy_protocol") == Some(&"require".into());
    if header && let Some(Value::Array(trusted)) = listener.get_mut("trusted_proxies") {
        trusted.extend(["127.0.0.0/8".into(), "::1".into()]);
    }
    let mut names = routed(listener);
    let Some(table) = listener.get_mut("tls").and_then(Value::as_table_mut) else {
        names.push(String::new());
        return (Layers { header, tls: None }, names);
    };
    names.push("localhost".to_owned());
    let leaf = pki.leaf_with("localhost", &PKCS_ECDSA_P256_SHA256, |params| {
        let all = names.iter().map(|name| name.as_str().try_into());
        let all = all.map(|name| SanType::DnsName(name.expect("it is ASCII")));
        params.subject_alt_names = all.collect();
    });
    let certificates = table["certificates"].as_array_mut().expect("a list");
    for certificate in certificates {
        replace(
            certificate.as_table_mut().expect("a table"),
            ["cert", "key"],
            &leaf,
        );
    }
    if table.contains_key("client_ca") {
        table.insert("client_ca".to_owned(), pki.ca().into());
    }
    // It shows it to those who ask for one.
    let config = pki.client_with(&VERSIONS, &pki.leaf("a client"));
    let tls = Some(Tls::Client(Arc::new(config)));
    (Layers { header, tls }, names)
}

fn replace(table: &mut Table, keys: [&str; 2], leaf: &Leaf) {
    for (key, file) in keys.iter().zip([&leaf.cert, &leaf.key]) {
        table.insert((*key).to_owned(), file.display().to_string().into());
    }
}

/// A name for each pattern of the routes.
fn routed(listener: &Table) -> Vec<String> {
    let routes = listener.get("routes").and_then(Value::as_array);
    let patterns = routes
        .into_iter()
        .flatten()
        .flat_map(|route| match &route["sni"] {
            Value::Array(list) => list.clone(),
            one => vec![one.clone()],
        });
    let name = |pattern: Value| {
        let pattern = pattern.as_str().expect("a string");
        pattern.replacen("*.", "anything.", 1)
    };
    patterns.map(name).collect()
}
