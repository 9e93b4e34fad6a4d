//! Socket calls that are better made directly than through the ring: they never block, and
//! io_uring would send some of them to a kernel thread.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use rustix::event::EventfdFlags;
use rustix::pipe::{PipeFlags, SpliceFlags};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, SockRef, Socket, TcpKeepalive, Type};

pub use super::listen::{ListenOptions, listen};

use super::driver::{PipeEnds, Shutdown, SocketOptions};
use super::op::Fd;
use crate::address::Address;

/// Hands a listening socket over to a ring.
pub fn into_fd(socket: OwnedFd) -> Fd {
    Fd(socket.into_raw_fd())
}

/// An eventfd, and a closure that signals it. It is a blocking one: io_uring fails reads of
/// non-blocking files with EAGAIN instead of waiting for them.
pub(super) fn event() -> io::Result<(Fd, impl Fn() + Send + Sync)> {
    let receiver = rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?;
    let sender = receiver.try_clone()?;
    let signal = move || {
        // The counter can't overflow: the worker takes it to zero with every read. An error would
        // be EAGAIN after 2^64 - 2 signals.
        let _ = rustix::io::write(&sender, &1u64.to_ne_bytes());
    };
    Ok((into_fd(receiver), signal))
}

pub(super) fn open(
    to: &Address,
    source: Option<IpAddr>,
    options: &SocketOptions,
) -> io::Result<Fd> {
    let Address::Ip(to) = to else {
        let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
        return Ok(Fd(socket.into_raw_fd()));
    };
    let socket = Socket::new(
        Domain::for_address(*to),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_tcp_nodelay(true)?;
    set_keepalive(&SockRef::from(&socket), options.keepalive)?;
    if options.user_timeout.is_some() {
        socket.set_tcp_user_timeout(options.user_timeout)?;
    }
    if let Some(source) = source {
        choose_port_at_connect(&socket);
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    Ok(Fd(socket.into_raw_fd()))
}

fn set_keepalive(socket: &SockRef<'_>, keepalive: Option<Duration>) -> io::Result<()> {
    let Some(time) = keepalive else {
        return Ok(());
    };
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(time))
}

pub(super) fn connect_unix(fd: Fd, address: &Address) -> io::Result<()> {
    let Address::Unix(path) = address else {
        return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
    };
    SockRef::from(&borrow(fd)).connect(&SockAddr::unix(path)?)
}

pub(super) fn accept_now(fd: Fd) -> io::Result<Fd> {
    let (socket, _) =
        SockRef::from(&borrow(fd)).accept4(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC)?;
    Ok(Fd(socket.into_raw_fd()))
}

pub(super) fn peer(fd: Fd) -> io::Result<Option<SocketAddr>> {
    let address = match SockRef::from(&borrow(fd)).peer_addr() {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => former_peer(fd)?,
        answer => answer?,
    };
    Ok(address.as_socket())
}

pub(super) fn local(fd: Fd) -> io::Result<Option<SocketAddr>> {
    let address = SockRef::from(&borrow(fd)).local_addr()?;
    Ok(address.as_socket())
}

pub(super) fn is_unix(fd: Fd) -> bool {
    SockRef::from(&borrow(fd))
        .domain()
        .is_ok_and(|domain| domain == Domain::UNIX)
}

/// Who has reset the connection: SO_PEERNAME still knows it when getpeername(2) does not. It takes
/// no length that is more than the address has, so the longer one is tried first.
fn former_peer(fd: Fd) -> io::Result<SockAddr> {
    peer_name(fd, size_of::<libc::sockaddr_in6>())
        .or_else(|_| peer_name(fd, size_of::<libc::sockaddr_in>()))
}

fn peer_name(fd: Fd, bytes: usize) -> io::Result<SockAddr> {
    let mut address = SockAddrStorage::zeroed();
    let mut len = bytes as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `address`, which has room for any address.
    let answer = unsafe {
        libc::getsockopt(
            fd.0,
            libc::SOL_SOCKET,
            libc::SO_PEERNAME,
            (&raw mut address).cast(),
            &raw mut len,
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has written an address of `len` bytes, and the rest is zero.
    Ok(unsafe { SockAddr::new(address, len) })
}

pub(super) fn open_pipe() -> io::Result<PipeEnds> {
    /// Four windows: fewer calls per MB. A user who has pinned too much already is given pipes of
    /// two pages (pipe-user-pages-soft), which are worse than none.
    const CAPACITY: usize = 256 * 1024;
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let capacity = rustix::pipe::fcntl_setpipe_size(&write, CAPACITY)?;
    Ok(PipeEnds {
        read: into_fd(read),
        write: into_fd(write),
        capacity: u32::try_from(capacity).unwrap_or(u32::MAX),
    })
}

pub(super) fn splice(from: Fd, to: Fd, most: u32) -> io::Result<u32> {
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    let moved = rustix::pipe::splice(borrow(from), None, borrow(to), None, most as usize, flags)?;
    Ok(u32::try_from(moved).unwrap_or(u32::MAX))
}

pub(super) fn shutdown(fd: Fd, how: Shutdown) {
    let how = match how {
        Shutdown::Write => std::net::Shutdown::Write,
        Shutdown::Read => std::net::Shutdown::Read,
        Shutdown::Both => std::net::Shutdown::Both,
    };
    // ENOTCONN: the other side was faster.
    let _ = SockRef::from(&borrow(fd)).shutdown(how);
}

pub(super) fn linger_zero(fd: Fd) {
    // It can only fail on what is not a socket.
    let _ = SockRef::from(&borrow(fd)).set_linger(Some(Duration::ZERO));
}

/// SIOCOUTQ.
pub(super) fn unacknowledged(fd: Fd) -> u32 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: SIOCOUTQ (the number of TIOCOUTQ) writes one int, and `bytes` is one.
    let answer = unsafe { libc::ioctl(fd.0, libc::TIOCOUTQ, &raw mut bytes) };
    if answer < 0 {
        0
    } else {
        u32::try_from(bytes).unwrap_or(0)
    }
}

/// `tcpi_bytes_acked`; for sockets without TCP_INFO the bytes in the queue, which change too.
pub(super) fn progress(fd: Fd) -> u64 {
    tcp_info(fd).map_or_else(|| u64::from(unacknowledged(fd)), |info| info[BYTES_ACKED])
}

/// `tcpi_state` is TCP_CLOSE.
pub(super) fn is_gone(fd: Fd) -> bool {
    /// TCP_CLOSE of net/tcp_states.h.
    const CLOSE: u8 = 7;
    tcp_info(fd).is_some_and(|info| info[0].to_ne_bytes()[0] == CLOSE)
}

/// Offset of `tcpi_bytes_acked` in `struct tcp_info`, in u64s (Linux 4.1; uapi/linux/tcp.h); the
/// first byte of the struct is `tcpi_state`.
const BYTES_ACKED: usize = 120 / 8;

/// The beginning of TCP_INFO; `None` for what is no TCP socket.
fn tcp_info(fd: Fd) -> Option<[u64; BYTES_ACKED + 1]> {
    let mut info = [0u64; BYTES_ACKED + 1];
    let mut len = size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `info`, which is that long.
    let answer = unsafe {
        libc::getsockopt(
            fd.0,
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    (answer == 0).then_some(info)
}

/// The descriptor as its new owner's.
pub(super) fn detach(fd: Fd) -> OwnedFd {
    // SAFETY: the slot that owned this descriptor is being emptied and nobody else has its number.
    unsafe { OwnedFd::from_raw_fd(fd.0) }
}

pub(super) fn close(fd: Fd) {
    drop(detach(fd));
}

pub(super) fn borrow(fd: Fd) -> BorrowedFd<'static> {
    // SAFETY: the number belongs to a slot, which keeps the descriptor open for as long as any
    // function of the calls in `ring` runs; the borrow does not leave them.
    unsafe { BorrowedFd::borrow_raw(fd.0) }
}

/// Lets a socket that is bound to an address without a port have one chosen at connect, where the whole
/// four-tuple is known (IP_BIND_ADDRESS_NO_PORT, Linux 4.2). Without it bind takes a port of its own,
/// which only wastes ports, so a refusal is of no consequence.
pub fn choose_port_at_connect(socket: &impl AsFd) {
    let on: libc::c_int = 1;
    // SAFETY: the option reads one int, and `on` is one.
    unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
}
