//! Backends: a listening socket, and a thread per connection that follows a script.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use socket2::{Domain, SockAddr, Socket, Type};

use super::PATIENCE;
use super::socket::{finish, parse, set_patience};

/// A listening backend. Its threads end with the test's process.
pub(crate) struct Backend {
    /// As a configuration names it.
    pub(crate) address: String,
    accepted: Arc<AtomicUsize>,
}

impl Backend {
    /// On 127.0.0.1; every connection is handed to `script` on a thread of its own.
    pub(crate) fn start(script: impl Fn(Socket) + Send + Sync + 'static) -> Self {
        Self::at("127.0.0.1:0", script)
    }

    pub(crate) fn at(address: &str, script: impl Fn(Socket) + Send + Sync + 'static) -> Self {
        let listener = listening(address, 4096);
        let address = written(&listener, address);
        let accepted = Arc::new(AtomicUsize::new(0));
        let (count, script) = (accepted.clone(), Arc::new(script));
        thread::spawn(move || {
            while let Ok((connection, _)) = listener.accept() {
                count.fetch_add(1, Ordering::SeqCst);
                set_patience(&connection, PATIENCE);
                let script = script.clone();
                thread::Builder::new()
                    .stack_size(256 * 1024)
                    .spawn(move || script(connection))
                    .expect("a thread");
            }
        });
        Self { address, accepted }
    }

    /// Sends back what comes, then FIN for FIN.
    pub(crate) fn echo() -> Self {
        Self::start(echo)
    }

    /// Sends its name to whoever connects, and FIN.
    pub(crate) fn named(name: &'static str) -> Self {
        Self::start(move |mut connection| {
            // The client may be gone.
            let _ = connection.write_all(name.as_bytes());
        })
    }

    /// Reads to FIN, and then sends `answer`. What each connection has sent can be received.
    pub(crate) fn recording(answer: &'static str) -> (Self, Receiver<Vec<u8>>) {
        let (tell, heard) = mpsc::channel();
        let backend = Self::start(move |mut connection| {
            let mut bytes = Vec::new();
            if connection.read_to_end(&mut bytes).is_ok() {
                // The client may be gone, and the test over.
                let _ = connection.write_all(answer.as_bytes());
                let _ = tell.send(bytes);
            }
        });
        (backend, heard)
    }

    /// One that somebody else serves.
    pub(crate) fn elsewhere(address: String) -> Self {
        Self {
            address,
            accepted: Arc::default(),
        }
    }

    /// Connections so far.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

/// The script of [`Backend::echo`].
pub(crate) fn echo(connection: Socket) {
    echo_on(&connection);
}

/// The same, for a connection that others look at, too.
pub(crate) fn echo_on(mut connection: &Socket) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = connection.read(&mut buffer) {
        if connection.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
    // It may have been reset.
    let _ = connection.shutdown(std::net::Shutdown::Write);
}

/// Reads all that the client sends, and returns it with how that ended.
pub(crate) fn drain(connection: &mut Socket) -> (usize, std::io::Result<()>) {
    let (mut total, mut buffer) = (0, vec![0; 64 * 1024]);
    loop {
        match connection.read(&mut buffer) {
            Ok(0) => return (total, Ok(())),
            Ok(count) => total += count,
            Err(error) => return (total, Err(error)),
        }
    }
}

/// Sends FIN, then waits for the client's, so that closing can't reset.
pub(crate) fn finish_and_wait(mut connection: Socket) {
    finish(&connection);
    let _ = drain(&mut connection);
}

pub(crate) fn listening(address: &str, backlog: i32) -> Socket {
    let socket = bound(address);
    socket.listen(backlog).expect("it can listen");
    socket
}

/// Bound without listening: it refuses, and nobody else can get the port meanwhile.
pub(crate) struct Refusing {
    pub(crate) address: String,
    _socket: Socket,
}

impl Refusing {
    pub(crate) fn new() -> Self {
        let socket = bound("127.0.0.1:0");
        Self {
            address: written(&socket, ""),
            _socket: socket,
        }
    }
}

/// An address of 127.0.0.1 that nobody has, for something that binds it later. Its port is none that the
/// kernel gives to those who connect, or somebody else would have it by then.
pub(crate) fn free_address() -> String {
    /// Below net.ipv4.ip_local_port_range as the kernel has it.
    const FIRST: u32 = 16_384;
    const COUNT: u32 = 16_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let turn = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (std::process::id().wrapping_mul(97).wrapping_add(turn)) % COUNT;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port as u16));
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port as u16));
        if socket.bind(&everywhere.into()).is_ok() {
            return address.to_string();
        }
    }
}

/// Listens with an accept queue that is full, so that the kernel drops every SYN.
pub(crate) struct BlackHole {
    pub(crate) address: String,
    _sockets: [Socket; 2],
}

impl BlackHole {
    pub(crate) fn new() -> Self {
        let listener = listening("127.0.0.1:0", 0);
        let address = written(&listener, "");
        let filling = super::connect(&address);
        Self {
            address,
            _sockets: [listener, filling],
        }
    }
}

fn bound(address: &str) -> Socket {
    let (domain, wanted) = parse(address);
    let socket = Socket::new(domain, Type::STREAM, None).expect("a socket");
    socket.bind(&wanted).expect("the address is free");
    socket
}

/// A socket on a free port that keeps it when it is shut down: as the kernel sees it, only what was asked
/// for by its number is bound to stay.
pub(crate) fn bound_for_life() -> (Socket, String) {
    let bound = |address: SocketAddr| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("it can be set");
        socket.bind(&address.into()).expect("the address is free");
        socket
    };
    let free = bound((Ipv4Addr::LOCALHOST, 0).into());
    let address = free.local_addr().expect("it is bound");
    let address = address.as_socket().expect("an IP address");
    (bound(address), address.to_string())
}

pub(crate) fn written(socket: &Socket, unix: &str) -> String {
    match local(socket).as_socket() {
        Some(address) => address.to_string(),
        None => unix.to_owned(),
    }
}

fn local(socket: &Socket) -> SockAddr {
    socket.local_addr().expect("it is bound")
}

/// Where a connection came from.
pub(crate) fn peer(socket: &Socket) -> SocketAddr {
    let peer = socket.peer_addr().expect("it is connected");
    peer.as_socket()
        .unwrap_or(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)))
}
