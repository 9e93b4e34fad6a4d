//! Client sockets: any family by its written address, with an end to every wait.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use super::PATIENCE;

/// How a stream ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    Fin,
    Reset,
}

/// `ip:port`, `[ip6]:port` or `unix:/path`.
pub(crate) fn parse(address: &str) -> (Domain, SockAddr) {
    if let Some(path) = address.strip_prefix("unix:") {
        return (Domain::UNIX, SockAddr::unix(path).expect("a short path"));
    }
    let address: SocketAddr = address.parse().expect("an address");
    (Domain::for_address(address), address.into())
}

/// A socket for `address` that isn't connected; reads and writes on it end.
pub(crate) fn unconnected(address: &str) -> Socket {
    let (domain, _) = parse(address);
    let socket = Socket::new(domain, Type::STREAM, None).expect("a socket");
    set_patience(&socket, PATIENCE);
    socket
}

/// A connection to `address`.
pub(crate) fn connect(address: &str) -> Socket {
    let socket = unconnected(address);
    socket
        .connect(&parse(address).1)
        .unwrap_or_else(|error| panic!("{address}: {error}"));
    socket
}

/// Connects from `source`, an address of the loopback, and sends a byte that comes back; `None` when
/// the client is reset instead, at whatever point.
pub(crate) fn exchange(source: Option<&str>, address: &str) -> Option<Socket> {
    let mut socket = unconnected(address);
    if let Some(source) = source {
        let source: IpAddr = source.parse().expect("an IP address");
        let source = SocketAddr::new(source, 0).into();
        socket.bind(&source).expect("it is the loopback's");
    }
    let answer = socket
        .connect(&parse(address).1)
        .and_then(|()| socket.write_all(b"x"))
        .and_then(|()| socket.read_exact(&mut [0]));
    match answer {
        Ok(()) => Some(socket),
        Err(error) => {
            assert_eq!(ending_of(&error), Ending::Reset);
            None
        }
    }
}

/// A connection to `address` whose kernel holds about `bytes` that nobody has read.
pub(crate) fn connect_with_small_window(address: &str, bytes: usize) -> Socket {
    let socket = unconnected(address);
    socket
        .set_recv_buffer_size(bytes)
        .expect("a size can be set");
    socket.connect(&parse(address).1).expect("somebody listens");
    socket
}

pub(crate) fn set_patience(socket: &Socket, time: Duration) {
    socket.set_read_timeout(Some(time)).expect("a timeout");
    socket.set_write_timeout(Some(time)).expect("a timeout");
}

/// Closes with RST.
pub(crate) fn reset(socket: Socket) {
    socket
        .set_linger(Some(Duration::ZERO))
        .expect("lingering can be set");
}

/// Sends FIN; reading goes on.
pub(crate) fn finish(socket: &Socket) {
    socket
        .shutdown(Shutdown::Write)
        .expect("it is connected still");
}

/// All that comes before FIN.
pub(crate) fn read_to_end(socket: &mut Socket) -> Vec<u8> {
    let mut bytes = Vec::new();
    socket.read_to_end(&mut bytes).expect("it ends with FIN");
    bytes
}

/// How the stream ends, which must come without another byte.
pub(crate) fn ending(socket: &mut Socket) -> Ending {
    match socket.read(&mut [0; 16]) {
        Ok(0) => Ending::Fin,
        Ok(count) => panic!("{count} bytes more instead of an end"),
        Err(error) => ending_of(&error),
    }
}

/// How a stream ends to which `words` are said that may be refused by then. A write that is told of a reset is the
/// only one who is.
pub(crate) fn ending_after(socket: &mut Socket, words: &[u8]) -> Ending {
    match socket.write_all(words) {
        Ok(()) => ending(socket),
        Err(error) => ending_of(&error),
    }
}

pub(crate) fn ending_of(error: &io::Error) -> Ending {
    match error.kind() {
        // Aborted: the reset came before connect(2) had returned, or was told of once already.
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe => Ending::Reset,
        _ => panic!("neither FIN nor RST: {error}"),
    }
}
