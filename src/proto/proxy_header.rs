//! PROXY protocol: how a proxy tells the one behind it who the client is
//! (<https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>).
//!
//! Headers are read as they come, in pieces of any size, and never a byte more. What is kept of them is a
//! line of version 1 or the addresses of version 2; all else is checked while it goes by.

use std::net::{IpAddr, SocketAddr};

use ppp::v2::{Builder, Command, Protocol, Version};

mod binary;
mod fault;
mod laws;
mod line;

use self::binary::Binary;
pub use self::fault::{Excerpt, Fault};
#[doc(hidden)]
pub use self::laws::check_laws;
use self::line::Line;

/// Reads the header, of version 1 or 2, that a connection begins with.
#[derive(Debug)]
pub struct HeaderReader(State);

#[derive(Debug)]
enum State {
    /// The first byte tells the versions apart.
    Start,
    /// Version 1.
    Line(Line),
    /// Version 2.
    Binary(Binary),
    /// There is an answer, whatever comes.
    Ended(Progress),
}

/// What has become of a piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fed {
    /// Bytes of the piece that belong to the header; the others are payload, unless it is bad.
    pub used: usize,
    /// What is known by now.
    pub progress: Progress,
}

/// What is known of a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// It goes on.
    More,
    /// It is complete.
    Done(Announced),
    /// It is none.
    Bad(Fault),
}

/// Who is on the other side of the proxy that wrote a header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Announced {
    /// The connection's own addresses hold: the proxy speaks for itself (LOCAL), or it can't say (UNKNOWN,
    /// UNSPEC), or it names addresses that are not of TCP.
    Own,
    /// A client, over TCP. IPv4 that is mapped to IPv6 is given as IPv4.
    Client {
        /// Its address.
        source: SocketAddr,
        /// The address that it has connected to.
        destination: SocketAddr,
    },
}

impl Default for HeaderReader {
    fn default() -> Self {
        Self::new()
    }
}

impl HeaderReader {
    /// Nothing has come yet.
    pub fn new() -> Self {
        Self(State::Start)
    }

    /// Takes what of `bytes` belongs to the header. Once it is done or bad it takes nothing any more.
    pub fn feed(&mut self, bytes: &[u8]) -> Fed {
        if let (State::Start, Some(first)) = (&self.0, bytes.first()) {
            self.0 = match *first {
                line::FIRST => State::Line(Line::new()),
                // What is neither has no right byte for version 2.
                _ => State::Binary(Binary::new()),
            };
        }
        let (used, answer) = match &mut self.0 {
            State::Start => (0, None),
            State::Line(line) => line.feed(bytes),
            State::Binary(binary) => binary.feed(bytes),
            State::Ended(progress) => {
                let progress = *progress;
                return Fed { used: 0, progress };
            }
        };
        let progress = match answer {
            None => Progress::More,
            Some(answer) => {
                let progress = answer.map_or_else(Progress::Bad, Progress::Done);
                self.0 = State::Ended(progress);
                progress
            }
        };
        Fed { used, progress }
    }
}

/// An answer, once there is one.
type Answer = Option<Result<Announced, Fault>>;

impl Announced {
    fn client(source: SocketAddr, destination: SocketAddr) -> Self {
        Self::Client {
            source: plain(source),
            destination: plain(destination),
        }
    }
}

/// A version 1 header for a connection of a client to a destination; `None` = UNKNOWN. Of two families
/// both are written as IPv6.
pub fn v1(addresses: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    let Some((client, destination)) = addresses else {
        return b"PROXY UNKNOWN\r\n".to_vec();
    };
    let (client, destination) = same_family(client, destination);
    let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (client.ip(), destination.ip());
    let (from_port, to_port) = (client.port(), destination.port());
    format!("PROXY {family} {from} {to} {from_port} {to_port}\r\n").into_bytes()
}

/// A version 2 header for a connection of a client to a destination; `None` = LOCAL. Of two families both
/// are written as IPv6.
pub fn v2(addresses: Option<(SocketAddr, SocketAddr)>) -> Vec<u8> {
    match addresses {
        Some((client, destination)) => proxied(Protocol::Stream, client, destination),
        None => {
            // LOCAL goes with no family and no addresses (section 2.2).
            let built = Builder::new(Version::Two | Command::Local, 0).build();
            built.expect("nothing fits into a header")
        }
    }
}

/// A version 2 header for a datagram of our own, such as a probe. LOCAL names no protocol, so it is the
/// same as for a connection.
pub fn v2_local_datagram() -> Vec<u8> {
    v2(None)
}

/// A version 2 header for a datagram of `client` to `destination`. Of two families both are written as
/// IPv6.
pub fn of_datagram(client: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    proxied(Protocol::Datagram, client, destination)
}

fn proxied(protocol: Protocol, client: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let addresses = same_family(client, destination);
    let command = Version::Two | Command::Proxy;
    let built = Builder::with_addresses(command, protocol, addresses).build();
    built.expect("two addresses fit into a header")
}

fn same_family(client: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
    let (client, destination) = (plain(client), plain(destination));
    if client.is_ipv4() == destination.is_ipv4() {
        return (client, destination);
    }
    let mapped = |it: SocketAddr| match it.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), it.port()),
        IpAddr::V6(_) => it,
    };
    (mapped(client), mapped(destination))
}

/// Without scope and flow; what is mapped as what it is.
fn plain(it: SocketAddr) -> SocketAddr {
    SocketAddr::new(it.ip().to_canonical(), it.port())
}

#[cfg(test)]
mod tests;
