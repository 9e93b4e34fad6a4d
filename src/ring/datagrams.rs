//! Calls for datagram sockets: opening one towards a backend, and sending without waiting.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, IntoRawFd};

use rustix::net::SendFlags;
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};

use super::driver::Datagram;
use super::net;
use super::op::Fd;
use crate::proto::datagram::{LONGEST_CONTROL, write_control};

/// A socket towards one backend. That it is connected lets ICMP errors come up, and strangers stay out.
pub(super) fn open(to: SocketAddr, source: Option<IpAddr>) -> io::Result<Fd> {
    let socket = Socket::new(
        Domain::for_address(to),
        Type::DGRAM.nonblocking(),
        Some(Protocol::UDP),
    )?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    set_queue(
        &SockRef::from(&socket),
        libc::SO_RCVBUFFORCE,
        libc::SO_RCVBUF,
        QUEUE_BYTES / 4,
    )?;
    tell_more(&SockRef::from(&socket));
    socket.connect(&to.into())?;
    Ok(Fd(socket.into_raw_fd()))
}

/// Room for what comes while a worker is busy; the system caps it (net.core.rmem_max, wmem_max). Nothing of it
/// is used by a socket whose datagrams are received in time.
const QUEUE_BYTES: libc::c_int = 4 << 20;

/// Who is root here is not bound to the system's cap.
fn set_queue(socket: &SockRef<'_>, force: i32, plain: i32, bytes: libc::c_int) -> io::Result<()> {
    set(socket, libc::SOL_SOCKET, force, bytes)
        .or_else(|_| set(socket, libc::SOL_SOCKET, plain, bytes))
}

/// What a socket needs on which clients at `address` are heard.
pub(super) fn prepare_for_clients(socket: &SockRef<'_>, address: SocketAddr) -> io::Result<()> {
    for (force, plain) in [
        (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF),
        (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF),
    ] {
        set_queue(socket, force, plain, QUEUE_BYTES)?;
    }
    tell_more(socket);
    // Bound to one address, a socket answers from that.
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => {
            set(socket, libc::IPPROTO_IP, libc::IP_PKTINFO, 1)
        }
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => {
            set(socket, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)
        }
        _ => Ok(()),
    }
}

/// Lets a socket say which datagrams were joined (UDP_GRO, Linux 5.0) and how many it has lost
/// (SO_RXQ_OVFL). A kernel that can't joins none, and does not count.
fn tell_more(socket: &SockRef<'_>) {
    let _ = set(socket, libc::SOL_UDP, libc::UDP_GRO, 1);
    let _ = set(socket, libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1);
}

/// Sets an option whose value is one int.
fn set(socket: &SockRef<'_>, level: i32, option: i32, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the option reads one int, and `value` is one.
    let answer = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// As [`super::Driver::send_datagrams`].
pub(super) fn send(fd: Fd, datagrams: &[Datagram<'_>]) -> io::Result<usize> {
    if let [one] = datagrams {
        return send_one(fd, one).map(|()| 1);
    }
    let mut sent = 0;
    for batch in datagrams.chunks(BATCH) {
        match send_batch(fd, batch) {
            Ok(count) if count == batch.len() => sent += count,
            Ok(count) => return Ok(sent + count),
            // It comes again if it is about the next one.
            Err(_) if sent > 0 => return Ok(sent),
            Err(error) => return Err(error),
        }
    }
    Ok(sent)
}

/// By the call that costs the least.
fn send_one(fd: Fd, datagram: &Datagram<'_>) -> io::Result<()> {
    if (datagram.to, datagram.from, datagram.segment) == (None, None, None) {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        rustix::net::send(net::borrow(fd), datagram.bytes, flags)?;
        return Ok(());
    }
    let mut envelope = Envelope::of(datagram);
    // SAFETY: msghdr is a C struct of integers and pointers, for which zero is a valid value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    envelope.address(&mut header);
    // SAFETY: the kernel reads the header and what it names, all of which lives until the end of this
    // function, and writes nothing.
    let sent = unsafe { libc::sendmsg(fd.0, &raw const header, FLAGS) };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

const FLAGS: libc::c_int = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;

/// Datagrams of one call: what batching wins is had by then, and what they need fits on the stack.
const BATCH: usize = 16;

/// Who a datagram goes to, and how.
struct Envelope {
    to: Option<SockAddr>,
    control: [u8; LONGEST_CONTROL],
    control_len: usize,
    bytes: libc::iovec,
}

fn send_batch(fd: Fd, datagrams: &[Datagram<'_>]) -> io::Result<usize> {
    let mut envelopes: [Option<Envelope>; BATCH] = [const { None }; BATCH];
    // SAFETY: mmsghdr is a C struct of integers and pointers, for which zero is a valid value.
    let mut headers: [libc::mmsghdr; BATCH] = unsafe { std::mem::zeroed() };
    for ((envelope, header), datagram) in envelopes.iter_mut().zip(&mut headers).zip(datagrams) {
        let envelope = envelope.insert(Envelope::of(datagram));
        envelope.address(&mut header.msg_hdr);
    }
    // SAFETY: the kernel reads as many headers as there are datagrams, each of which was set above, and
    // what they name, all of which lives until the end of this function; of the headers it writes `msg_len`.
    let sent = unsafe {
        libc::sendmmsg(
            fd.0,
            headers.as_mut_ptr(),
            datagrams.len() as libc::c_uint,
            FLAGS,
        )
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

impl Envelope {
    /// Lets `header` name what is in here.
    fn address(&mut self, header: &mut libc::msghdr) {
        if let Some(to) = &self.to {
            header.msg_name = to.as_ptr().cast_mut().cast();
            header.msg_namelen = to.len();
        }
        if self.control_len > 0 {
            header.msg_control = self.control.as_mut_ptr().cast();
            header.msg_controllen = self.control_len;
        }
        header.msg_iov = &raw mut self.bytes;
        header.msg_iovlen = 1;
    }

    fn of(datagram: &Datagram<'_>) -> Self {
        let mut control = [0; LONGEST_CONTROL];
        let control_len = write_control(&mut control, datagram.from, datagram.segment);
        Self {
            to: datagram.to.map(SockAddr::from),
            control,
            control_len,
            bytes: libc::iovec {
                iov_base: datagram.bytes.as_ptr().cast_mut().cast(),
                iov_len: datagram.bytes.len(),
            },
        }
    }
}
