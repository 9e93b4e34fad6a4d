//! The PROXY protocol over TCP, in and out, with HAProxy, nginx and curl on either side, and by hand.

mod common;

#[path = "proxy_protocol/addresses.rs"]
mod addresses;
#[path = "proxy_protocol/headers.rs"]
mod headers;
#[path = "proxy_protocol/others.rs"]
mod others;
#[path = "tls/peers.rs"]
#[allow(dead_code, reason = "other files of tests use the rest of it")]
mod peers;
#[path = "tls/pki.rs"]
#[allow(dead_code, reason = "other files of tests use the rest of it")]
mod pki;

use std::io::Write;
use std::net::SocketAddr;

use common::socket::finish;
use common::{Proxy, config, read_to_end};
use socket2::Socket;

/// The lines of a listener that wants a header of whoever is on this machine.
const TRUSTING: &str =
    "accept_proxy_protocol = \"require\"\ntrusted_proxies = [\"127.0.0.0/8\", \"::1\"]\n";

/// A proxy that takes headers, with further lines.
fn taking(backends: &[&str], listener: &str, upstream: &str) -> Proxy {
    let listener = format!("{TRUSTING}{listener}");
    Proxy::start(&config(
        backends,
        &listener,
        upstream,
        "[runtime]\nworkers = 2\n",
    ))
}

/// A line of version 1.
fn line(source: &str, destination: &str) -> Vec<u8> {
    let [source, destination]: [SocketAddr; 2] =
        [source, destination].map(|it| it.parse().expect("an address"));
    let family = if source.is_ipv4() { 4 } else { 6 };
    format!(
        "PROXY TCP{family} {} {} {} {}\r\n",
        source.ip(),
        destination.ip(),
        source.port(),
        destination.port()
    )
    .into_bytes()
}

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// A header of version 2: command, family and protocol, addresses, and what follows them.
fn binary(command: u8, family: u8, addresses: &[u8], tlvs: &[u8]) -> Vec<u8> {
    let length = (addresses.len() + tlvs.len()) as u16;
    let head = [0x20 | command, family];
    [
        &SIGNATURE[..],
        &head,
        &length.to_be_bytes(),
        addresses,
        tlvs,
    ]
    .concat()
}

/// From 192.0.2.7:4000 to 198.51.100.1:443, over TCP.
fn binary_client(tlvs: &[u8]) -> Vec<u8> {
    let addresses = [192, 0, 2, 7, 198, 51, 100, 1, 0x0f, 0xa0, 0x01, 0xbb];
    binary(1, 0x11, &addresses, tlvs)
}

fn own_address(socket: &Socket) -> SocketAddr {
    let address = socket.local_addr().expect("it is connected");
    address.as_socket().expect("an IP address")
}

/// Sends this and FIN on a new connection, and hears the answer.
fn says(proxy: &Proxy, bytes: &[u8]) -> Vec<u8> {
    let mut client = proxy.connect();
    client.write_all(bytes).expect("it is taken");
    finish(&client);
    read_to_end(&mut client)
}
