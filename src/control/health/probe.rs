//! One attempt of a health check: connect, say what is to be said, judge the answer. It knows nothing
//! of the attempts before it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket, UnixStream};
use tokio::time::{Instant, sleep, timeout_at};

use super::failure::{Failure, SHOWN};
use super::{Target, http, tls};
use crate::address::Address;
use crate::config::{Announce, Exchange, Probe};
use crate::proto::proxy_header;
use crate::ring::net::choose_port_at_connect;

/// A connection to a backend. Dropping it closes it with FIN, if all was read that came: that is a client
/// with nothing more to say, which servers pass over in silence; a reset is an error in many a log.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// Tries `target` once as its check says. All of it ends within the check's timeout, but for a goodbye; when
/// this is dropped its socket is closed at once.
///
/// # Errors
/// Why the backend can't be taken for healthy, or why this machine can't tell.
pub(super) async fn probe(target: &Target) -> Result<(), Failure> {
    let timeout = target.check.timeout;
    let deadline = Instant::now() + timeout;
    let mut heard = Vec::new();
    let mut stream = match &target.check.probe {
        Probe::Udp(exchange) => {
            let answer = timeout_at(deadline, send_datagram(target, exchange)).await;
            return answer.unwrap_or(Err(Failure::Silent { timeout, heard }));
        }
        _ => begin(target, deadline).await?,
    };
    let conversation = converse(&mut stream, target, &mut heard);
    let verdict = timeout_at(deadline, conversation).await;
    if target.tls.is_some() {
        tls::take_leave(stream).await;
    }
    verdict.unwrap_or(Err(Failure::Silent { timeout, heard }))
}

/// A connection, up to where the backend is talked to.
async fn begin(target: &Target, deadline: Instant) -> Result<Box<dyn Stream>, Failure> {
    let timeout = target.check.timeout;
    let opened = timeout_at(deadline, open(&target.address, target.source)).await;
    let mut stream = opened.map_err(|_| Failure::NotConnected { timeout })??;
    stream.write_all(&header(target.announce)).await?;
    let Some(tls) = &target.tls else {
        return Ok(stream);
    };
    let session = tls.session(&target.address);
    match timeout_at(deadline, tls::secure(stream, session)).await {
        Ok(secured) => Ok(Box::new(secured?)),
        Err(_) => Err(Failure::NotSecured { timeout }),
    }
}

/// What a connection begins with: nobody is behind it (LOCAL, or UNKNOWN as version 1 calls it).
fn header(announce: Announce) -> Vec<u8> {
    match announce {
        Announce::Never => Vec::new(),
        Announce::V1 => proxy_header::v1(None),
        Announce::V2First | Announce::V2Every => proxy_header::v2(None),
    }
}

async fn converse(
    stream: &mut impl Stream,
    target: &Target,
    heard: &mut Vec<u8>,
) -> Result<(), Failure> {
    match &target.check.probe {
        Probe::Http {
            path,
            host,
            expect_status,
        } => {
            let request = http::request(path, host.as_deref(), &target.address);
            http::exchange(stream, &request, expect_status, heard).await
        }
        Probe::Tcp(exchange) | Probe::Tls(exchange) | Probe::Udp(exchange) => {
            say_and_hear(stream, exchange, heard).await
        }
    }
}

async fn open(address: &Address, source: Option<IpAddr>) -> io::Result<Box<dyn Stream>> {
    Ok(match address {
        Address::Ip(to) => Box::new(connect(*to, source).await?),
        Address::Unix(path) => Box::new(connect_unix(path).await?),
    })
}

async fn connect(to: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = match to {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if let Some(source) = source {
        choose_port_at_connect(&socket);
        socket.bind(SocketAddr::new(source, 0))?;
    }
    unless_itself(socket.connect(to).await?)
}

/// Where nobody listens on a port that the kernel may choose for us, it can choose that one, and TCP then
/// connects the socket to itself.
pub(super) fn unless_itself(stream: TcpStream) -> io::Result<TcpStream> {
    let own = stream.local_addr()?;
    // It has none any more when it was reset meanwhile.
    if stream.peer_addr().is_ok_and(|peer| peer == own) {
        return Err(io::Error::from_raw_os_error(libc::ECONNREFUSED));
    }
    Ok(stream)
}

async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    /// As TCP does by itself, only sooner: nothing tells when there is room.
    const PAUSE: Duration = Duration::from_millis(20);
    loop {
        match UnixStream::connect(path).await {
            // The backend's accept queue is full.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(PAUSE).await,
            outcome => return outcome,
        }
    }
}

/// A connection is enough when there is nothing to send or to expect. Else there must be an answer, and
/// it must start with what is expected; the first byte that differs decides.
async fn say_and_hear(
    stream: &mut impl Stream,
    exchange: &Exchange,
    heard: &mut Vec<u8>,
) -> Result<(), Failure> {
    if let Some(send) = &exchange.send {
        stream.write_all(send).await?;
    } else if exchange.expect.is_none() {
        return Ok(());
    }
    let wanted = exchange.expect.as_deref().unwrap_or_default();
    let enough = wanted.len().max(1);
    while heard.len() < enough {
        hear(stream, heard, enough.max(SHOWN)).await?;
        let common = wanted.len().min(heard.len());
        if wanted[..common] != heard[..common] {
            return Err(unexpected(heard, wanted));
        }
    }
    Ok(())
}

fn unexpected(heard: &[u8], wanted: &[u8]) -> Failure {
    Failure::Unexpected {
        heard: heard.to_vec(),
        wanted: wanted.to_vec(),
    }
}

/// Waits for more, and takes it as long as `heard` holds no more than `most` bytes, which are more than
/// it holds now.
pub(super) async fn hear(
    stream: &mut impl Stream,
    heard: &mut Vec<u8>,
    most: usize,
) -> Result<(), Failure> {
    const AT_ONCE: usize = 2048;
    let room = most.saturating_sub(heard.len());
    heard.reserve(room.min(AT_ONCE));
    match stream.take(room as u64).read_buf(heard).await? {
        0 => Err(Failure::Closed {
            heard: std::mem::take(heard),
        }),
        _ => Ok(()),
    }
}

/// A datagram there and one back; the first that comes decides. An ICMP error comes as that of the
/// receive.
async fn send_datagram(target: &Target, exchange: &Exchange) -> Result<(), Failure> {
    let to = target.address.as_ip().ok_or(Failure::DatagramsToUnix)?;
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let source = target.source.unwrap_or(any);
    let socket = UdpSocket::bind(SocketAddr::new(source, 0)).await?;
    socket.connect(to).await?;
    let send = exchange.send.as_deref().unwrap_or_default();
    let datagram = match target.announce {
        Announce::V2First | Announce::V2Every => {
            [&proxy_header::v2_local_datagram(), send].concat()
        }
        // Version 1 is for connections.
        Announce::Never | Announce::V1 => send.to_vec(),
    };
    socket.send(&datagram).await?;
    let wanted = exchange.expect.as_deref().unwrap_or_default();
    // What is longer is cut off.
    let mut answer = vec![0; wanted.len().max(SHOWN)];
    let length = socket.recv(&mut answer).await?;
    if answer[..length].starts_with(wanted) {
        Ok(())
    } else {
        Err(unexpected(&answer[..length], wanted))
    }
}
