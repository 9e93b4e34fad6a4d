//! Many senders of datagrams with one socket: every address below 127.0.0.0/8 is this machine's, and a
//! datagram may leave from any of them (ip(7), `IP_PKTINFO`).

use std::io::{IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt,
    sockopt::Ipv4PacketInfo,
};
use socket2::SockRef;

/// Senders, by number.
pub(crate) struct Crowd {
    socket: UdpSocket,
    to: SockaddrIn,
}

impl Crowd {
    /// Senders to this IPv4 address; none is heard of before it sends.
    pub(crate) fn to(address: &str) -> Self {
        /// Answers to all of a burst have to fit, as far as the kernel lets them.
        const QUEUE_BYTES: usize = 4 << 20;
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a port");
        setsockopt(&socket, Ipv4PacketInfo, &true).expect("it can be set");
        let queue = SockRef::from(&socket).set_recv_buffer_size(QUEUE_BYTES);
        queue.expect("it can be set");
        socket.set_nonblocking(true).expect("it can be set");
        let to: SocketAddrV4 = address.parse().expect("an IPv4 address");
        Self {
            socket,
            to: to.into(),
        }
    }

    /// Sends as this one of them.
    pub(crate) fn send(&self, who: u32, bytes: &[u8]) {
        let from = libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr {
                s_addr: u32::from(address(who)).to_be(),
            },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        let sent = sendmsg(
            self.socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            &[ControlMessage::Ipv4PacketInfo(&from)],
            MsgFlags::empty(),
            Some(&self.to),
        );
        assert_eq!(sent.expect("the loopback takes it"), bytes.len());
    }

    /// Who has got an answer, with its bytes; `None` = there is none at the moment.
    pub(crate) fn take(&self) -> Option<(u32, Vec<u8>)> {
        let mut bytes = vec![0; 2048];
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let mut control = nix::cmsg_space!(libc::in_pktinfo);
        let heard = recvmsg::<SockaddrIn>(
            self.socket.as_raw_fd(),
            &mut slices,
            Some(&mut control),
            MsgFlags::empty(),
        );
        let heard = heard.ok()?;
        assert_eq!(heard.address, Some(self.to), "an answer of somebody else");
        let to = heard.cmsgs().expect("it has room").find_map(|it| match it {
            ControlMessageOwned::Ipv4PacketInfo(it) => Some(it.ipi_addr.s_addr),
            _ => None,
        });
        let (to, len) = (u32::from_be(to.expect("it was asked for")), heard.bytes);
        bytes.truncate(len);
        Some((to - u32::from(FIRST), bytes))
    }
}

/// The address of the sender with this number.
fn address(who: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(FIRST) + who)
}

/// Nobody else's.
const FIRST: Ipv4Addr = Ipv4Addr::new(127, 64, 0, 0);
