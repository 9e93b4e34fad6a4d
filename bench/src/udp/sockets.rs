//! Sockets, waiting for them, and taking many datagrams at once from one.

use std::fs;
use std::io::{self, ErrorKind, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, setsockopt, sockopt,
};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use crate::error::Error;

/// Receive buffer of every socket: what arrives while the thread is elsewhere has to wait, not go.
const BUFFER_BYTES: usize = 4 << 20;

/// A non-blocking socket on `address` with large buffers.
pub(super) fn open(address: SocketAddr) -> Result<UdpSocket, Error> {
    let doing = || Error::while_doing(format!("a UDP socket on {address}"));
    let socket = UdpSocket::bind(address).map_err(doing())?;
    socket.set_nonblocking(true).map_err(doing())?;
    // Beyond the system's limit for those who may, up to it for the others; either is enough at the
    // rates that one thread makes, and what does not fit is counted (`drops`).
    if setsockopt(&socket, sockopt::RcvBufForce, &BUFFER_BYTES).is_err() {
        let _ = setsockopt(&socket, sockopt::RcvBuf, &BUFFER_BYTES);
    }
    let _ = setsockopt(&socket, sockopt::SndBuf, &BUFFER_BYTES);
    Ok(socket)
}

/// Any address of the same family.
pub(super) fn any_like(target: SocketAddr) -> IpAddr {
    match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Segments of one burst arrive together, where they were sent together.
pub(super) fn take_segments_together(socket: &UdpSocket) -> Result<(), Error> {
    setsockopt(socket, sockopt::UdpGroSegment, &true).map_err(|errno| Error::System {
        doing: "UDP_GRO".to_owned(),
        error: errno.into(),
    })
}

/// Every send is cut into datagrams of `size` bytes by the kernel.
pub(super) fn send_in_segments(socket: &UdpSocket, size: usize) -> Result<(), Error> {
    let size = i32::try_from(size).unwrap_or(i32::MAX);
    setsockopt(socket, sockopt::UdpGsoSegment, &size).map_err(|errno| Error::System {
        doing: "UDP_SEGMENT".to_owned(),
        error: errno.into(),
    })
}

/// By what /proc names a socket.
pub(super) fn inode(socket: &UdpSocket) -> Result<u64, Error> {
    let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
    let metadata = fs::metadata(&path).map_err(Error::while_doing(path))?;
    Ok(metadata.ino())
}

/// How often the kernel threw something away because one of these sockets (inodes, sorted) had no
/// room for it. Segments that arrive together count once.
pub(super) fn drops(sockets: &[u64]) -> u64 {
    /// The kernel writes the table in parts, and sockets of others that come or go between two of them
    /// may hide one.
    const LOOKS: usize = 5;
    let look = |_| {
        ["/proc/net/udp", "/proc/net/udp6"]
            .iter()
            .filter_map(|path| fs::read_to_string(path).ok())
            .map(|table| drops_in(&table, sockets))
            .sum()
    };
    (0..LOOKS).map(look).max().unwrap_or(0)
}

fn drops_in(table: &str, sockets: &[u64]) -> u64 {
    const INODE: usize = 9;
    const DROPS: usize = 12;
    let number = |fields: &[&str], at: usize| fields.get(at)?.parse::<u64>().ok();
    let mut sum = 0;
    for line in table.lines() {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        if let (Some(inode), Some(drops)) = (number(&fields, INODE), number(&fields, DROPS))
            && sockets.binary_search(&inode).is_ok()
        {
            sum += drops;
        }
    }
    sum
}

/// Waits for sockets.
pub(super) struct Poller {
    epoll: OwnedFd,
    ready: Vec<epoll::Event>,
}

impl Poller {
    pub(super) fn new() -> Result<Self, Error> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|errno| Error::while_doing("epoll")(errno.into()))?;
        let ready = Vec::with_capacity(256);
        Ok(Self { epoll, ready })
    }

    /// `socket` is called `token` from now on, until it is closed.
    pub(super) fn add(&self, socket: &UdpSocket, token: u64) -> Result<(), Error> {
        let data = epoll::EventData::new_u64(token);
        epoll::add(&self.epoll, socket, data, epoll::EventFlags::IN)
            .map_err(|errno| Error::while_doing("watching a socket")(errno.into()))
    }

    /// Waits `patience` at most; puts those that have something to be read into `tokens`.
    pub(super) fn wait(&mut self, patience: Duration, tokens: &mut Vec<u64>) -> Result<(), Error> {
        let patience = Timespec::try_from(patience).expect("seconds fit into the kernel's time");
        self.ready.clear();
        tokens.clear();
        match epoll::wait(
            &self.epoll,
            spare_capacity(&mut self.ready),
            Some(&patience),
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::while_doing("waiting for sockets")(errno.into())),
        }
        tokens.extend(self.ready.iter().map(|event| event.data.u64()));
        Ok(())
    }
}

/// Takes many datagrams from a socket with one call.
pub(super) struct Batch {
    buffers: Box<[u8]>,
    /// Of those that the last call brought.
    received: Vec<Received>,
    /// Where segments come together there is a control message with each, for which nix prepares room
    /// only in new headers.
    headers: Option<MultiHeaders<SockaddrStorage>>,
}

/// One datagram, or segments of one length that came together, of which the last may be shorter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    pub(super) bytes: usize,
    pub(super) segment: usize,
    pub(super) from: Option<SockaddrStorage>,
}

/// Bytes of a buffer: the longest datagram, or as much as comes together, fits.
const SLOT_BYTES: usize = 1 << 16;

impl Batch {
    /// Of `most` datagrams, or of as many bursts when they come `together`.
    pub(super) fn new(most: usize, together: bool) -> Self {
        Self {
            buffers: vec![0; most * SLOT_BYTES].into(),
            received: Vec::with_capacity(most),
            headers: (!together).then(|| MultiHeaders::preallocate(most, None)),
        }
    }

    /// Takes what is there; nothing is no error. A refusal that an earlier datagram met with comes as
    /// the error of whatever call is next, and is left out here.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        self.received.clear();
        let most = self.buffers.len() / SLOT_BYTES;
        let mut fresh;
        let headers = match &mut self.headers {
            Some(headers) => headers,
            None => {
                let room = nix::cmsg_space!(i32);
                fresh = MultiHeaders::preallocate(most, Some(room));
                &mut fresh
            }
        };
        let slots = self.buffers.chunks_exact_mut(SLOT_BYTES);
        let mut slices: Vec<_> = slots.map(|slot| [IoSliceMut::new(slot)]).collect();
        let flags = MsgFlags::MSG_DONTWAIT;
        match recvmmsg(socket.as_raw_fd(), headers, slices.iter_mut(), flags, None) {
            Ok(messages) => self.received.extend(messages.map(|message| Received {
                bytes: message.bytes,
                segment: segment_bytes(&message).unwrap_or(message.bytes).max(1),
                from: message.address,
            })),
            Err(errno) => match io::Error::from(errno).kind() {
                ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::ConnectionRefused => {}
                _ => return Err(errno.into()),
            },
        }
        Ok(self.received.len())
    }

    /// What the last call brought: how, and the bytes.
    pub(super) fn received(&self) -> impl Iterator<Item = (&Received, &[u8])> {
        let slots = self.buffers.chunks_exact(SLOT_BYTES);
        let received = self.received.iter();
        received
            .zip(slots)
            .map(|(it, slot)| (it, &slot[..it.bytes]))
    }
}

type Message<'a, 'b> = nix::sys::socket::RecvMsg<'a, 'b, SockaddrStorage>;

fn segment_bytes(message: &Message<'_, '_>) -> Option<usize> {
    message.cmsgs().ok()?.find_map(|control| match control {
        ControlMessageOwned::UdpGroSegments(bytes) => usize::try_from(bytes).ok(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_those_of_the_named_sockets() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   \
                     uid  timeout inode ref pointer drops\n\
                     1: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     \
                     0        0 111 2 0000000000000000 5\n\
                     2: 0100007F:0036 00000000:0000 07 00000000:00000000 00:00000000 00000000     \
                     0        0 222 2 0000000000000000 7\n";
        assert_eq!(drops_in(table, &[111]), 5);
        assert_eq!(drops_in(table, &[111, 222]), 12);
        assert_eq!(drops_in(table, &[7, 333]), 0);
    }

    #[test]
    fn a_socket_without_room_has_drops() {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let full = open(loopback).expect("a port is free");
        setsockopt(&full, sockopt::RcvBuf, &2048).expect("it can be small");
        let inodes = [inode(&full).expect("it has one")];
        assert_eq!(drops(&inodes), 0);
        let target = full.local_addr().expect("it is bound");
        let sender = open(loopback).expect("a port is free");
        for _ in 0..50 {
            sender.send_to(&[0; 1000], target).expect("it can be sent");
        }
        let mut batch = Batch::new(64, false);
        let arrived = batch.receive(&full).expect("it can be read");
        assert_eq!(drops(&inodes) + arrived as u64, 50);
    }

    #[test]
    fn segments_come_together_and_are_told_apart() {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let sink = open(loopback).expect("a port is free");
        take_segments_together(&sink).expect("the kernel can");
        let sender = open(loopback).expect("a port is free");
        send_in_segments(&sender, 100).expect("the kernel can");
        let target = sink.local_addr().expect("it is bound");
        let mut batch = Batch::new(4, true);
        for _ in 0..3 {
            sender.send_to(&[7; 250], target).expect("it can be sent");
            assert_eq!(batch.receive(&sink).expect("it can be read"), 1);
            let (received, bytes) = batch.received().next().expect("there is one");
            assert_eq!((received.segment, bytes), (100, [7; 250].as_slice()));
            assert!(received.from.is_some());
        }
    }
}
