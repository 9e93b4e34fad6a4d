//! Where operators are listened to: an address bound here, or handed over by the process before this one.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;

use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::super::advice;
use super::super::socket::server::ListenError as FileError;
use super::super::socket::server::Options;
use super::super::socket::{Access, SocketFile, listen_for};
use super::super::upgrade::OfferedBinding;
use crate::address::Address;

/// Operators of the file's group may connect, too.
const SOCKET_MODE: u32 = 0o660;
/// Who finds no place waits here; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// A socket that listens. Dropping it closes it, and removes a unix socket's file.
pub(in crate::control) struct Bound {
    /// As configured.
    wanted: Address,
    /// With the port that the kernel chose.
    address: Address,
    /// Of a unix socket. Dropped before the socket: another file may have its number once that is closed.
    file: Option<SocketFile>,
    /// Which file that is, as long as it is another process's.
    handed: Option<(u64, u64)>,
    socket: Socket,
    /// Its number in the offer of the process that handed it over.
    pub(in crate::control) offered: Option<usize>,
}

impl Bound {
    /// Listens at an address that nobody else may have. `owner` is who the process is about to become.
    pub(super) fn new(wanted: &Address, owner: Option<(u32, u32)>) -> Result<Self, ListenError> {
        let failed = |cause| ListenError {
            address: wanted.clone(),
            cause,
        };
        let (socket, file) = match wanted {
            Address::Unix(path) => bind_unix(path, owner).map_err(failed)?,
            Address::Ip(address) => (
                bind_tcp(*address).map_err(|it| failed(Cause::System(it)))?,
                None,
            ),
        };
        let address = match wanted.as_ip() {
            Some(_) => socket.local_addr().map(|it| it.as_socket()),
            None => Ok(None),
        };
        let address = address.map_err(|it| failed(Cause::System(it)))?;
        Ok(Self {
            address: address.map_or_else(|| wanted.clone(), Address::Ip),
            wanted: wanted.clone(),
            socket,
            file,
            handed: None,
            offered: None,
        })
    }

    /// What another process listens at. As long as [`Self::settle`] was not called, it is the other one's.
    pub(in crate::control) fn inherited(
        number: usize,
        offered: &OfferedBinding,
        socket: OwnedFd,
    ) -> io::Result<Self> {
        let socket = Socket::from(socket);
        let address = match offered.address.strip_prefix("unix:") {
            Some(path) => Address::Unix(Path::new(path).into()),
            None => {
                let address = socket.local_addr()?.as_socket();
                address
                    .ok_or_else(|| io::Error::other("it is no TCP socket"))?
                    .into()
            }
        };
        let wanted = match offered.configured.parse::<SocketAddr>() {
            Ok(wanted) => wanted.into(),
            Err(_) => address.clone(),
        };
        Ok(Self {
            wanted,
            address,
            socket,
            file: None,
            handed: offered.unix,
            offered: Some(number),
        })
    }

    /// It is where the configuration wants it.
    pub(super) fn serves(&self, wanted: &Address) -> bool {
        self.wanted == *wanted
    }

    /// It is this process's from now on: a unix socket's file goes with it.
    pub(super) fn settle(&mut self) {
        if let (Address::Unix(path), Some(identity)) = (&self.address, self.handed.take()) {
            self.file = Some(SocketFile::inherited(path.to_path_buf(), identity));
        }
    }

    /// For a new process.
    pub(super) fn offer(&self) -> io::Result<(OfferedBinding, OwnedFd)> {
        let offered = OfferedBinding {
            listener: String::new(),
            configured: self.wanted.to_string(),
            address: self.address.to_string(),
            sockets: 1,
            unix: self.file.as_ref().map(SocketFile::identity),
            held: false,
            datagrams: false,
            admin: true,
        };
        Ok((offered, self.socket.try_clone()?.into()))
    }

    /// Another process goes on with it.
    pub(super) fn leave(&mut self) {
        if let Some(file) = self.file.take() {
            file.leave();
        }
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// To accept from. Within a runtime.
    pub(super) fn acceptor(&self) -> io::Result<Acceptor> {
        let socket = self.socket.try_clone()?;
        socket.set_nonblocking(true)?;
        Ok(match self.address {
            Address::Unix(_) => Acceptor::Unix(UnixListener::from_std(socket.into())?),
            Address::Ip(_) => Acceptor::Tcp(TcpListener::from_std(socket.into())?),
        })
    }
}

fn bind_tcp(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // What is left of connections of a process before this one is in nobody's way.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn bind_unix(
    path: &Path,
    owner: Option<(u32, u32)>,
) -> Result<(Socket, Option<SocketFile>), Cause> {
    let access = Access {
        mode: SOCKET_MODE,
        owner,
    };
    let listening = listen_for(path, Options::default(), access);
    let (listener, file) = listening.map_err(Cause::File)?;
    let socket = Socket::from(listener);
    // As many may wait as over TCP.
    socket.listen(BACKLOG).map_err(Cause::System)?;
    Ok((socket, Some(file)))
}

/// What connections come from.
pub(super) enum Acceptor {
    Tcp(TcpListener),
    Unix(UnixListener),
}

const SEND_BUFFER: usize = 256 * 1024;

/// A connection.
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Acceptor {
    /// The next connection. If it is dropped before that, none is lost.
    pub(super) async fn accept(&self) -> io::Result<Stream> {
        match self {
            Self::Tcp(listener) => listener.accept().await.map(|(it, _)| {
                // Else the kernel keeps megabytes for one who reads slowly, and asks for more so rarely that he
                // seems not to read at all.
                let _ = SockRef::from(&it).set_send_buffer_size(SEND_BUFFER);
                Stream::Tcp(it)
            }),
            Self::Unix(listener) => listener.accept().await.map(|(it, _)| Stream::Unix(it)),
        }
    }
}

impl Stream {
    /// Who is at the other end, as people are told.
    pub(super) fn peer(&self) -> String {
        match self {
            Self::Tcp(stream) => stream
                .peer_addr()
                .map_or_else(|_| UNKNOWN.to_owned(), |it| it.to_string()),
            Self::Unix(stream) => match stream.peer_cred() {
                Ok(peer) => format!("uid {}, pid {}", peer.uid(), peer.pid().unwrap_or_default()),
                Err(_) => UNKNOWN.to_owned(),
            },
        }
    }
}

const UNKNOWN: &str = "unknown";

/// Why operators can't be listened to.
#[derive(Debug)]
pub struct ListenError {
    address: Address,
    cause: Cause,
}

#[derive(Debug)]
enum Cause {
    File(FileError),
    System(io::Error),
}

impl std::error::Error for ListenError {}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = &self.address;
        write!(f, "admin.listen: can't listen on {address}: ")?;
        match &self.cause {
            Cause::System(error) => f.write_str(&advice(error)),
            Cause::File(FileError::InUse(_)) => {
                f.write_str("another process answers there: give each a path of its own")
            }
            Cause::File(FileError::NotASocket(_)) => {
                f.write_str("there is a file that is no socket: name another path")
            }
            Cause::File(FileError::System { error, .. }) => {
                write!(f, "{error}: the folder has to be there, and to be writable")
            }
        }
    }
}
