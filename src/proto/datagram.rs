//! What the kernel says of a datagram beside its payload, and what it is told: the layout of a buffer
//! that recvmsg(2) has filled through io_uring, and control messages (cmsg(3)).
//!
//! ```text
//!   ┌──────────────────────┬──────────────────┬─────────────────────┬─────────┐
//!   │ io_uring_recvmsg_out │ name, as many    │ control, as many    │ payload │
//!   │ 4 × u32              │ bytes as room is │ bytes as room is    │         │
//!   └──────────────────────┴──────────────────┴─────────────────────┴─────────┘
//! ```
//!
//! The places follow from the room that was asked for, not from what was used of it
//! (io_uring_prep_recvmsg_multishot(3)).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::ops::Range;

/// The room for name and control messages in each buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Bytes for the sender's address.
    pub name: usize,
    /// Bytes for control messages.
    pub control: usize,
}

impl Layout {
    /// For sockets that hear from anybody: sender, local address, segment size and losses.
    pub const ANYBODY: Self = Self {
        name: size_of::<libc::sockaddr_in6>(),
        control: space(PKTINFO6) + space(INT) + space(INT),
    };

    /// For sockets that hear from one peer: segment size and losses.
    pub const ONE_PEER: Self = Self {
        name: 0,
        control: space(INT) + space(INT),
    };

    /// Bytes before the payload.
    pub const fn overhead(&self) -> usize {
        HEADER + self.name + self.control
    }
}

/// What was received: one datagram, or several of one sender that the kernel has joined.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Received {
    /// Who sent it, in the socket's family.
    pub sender: Option<SocketAddr>,
    /// The address that it was sent to, in the socket's family.
    pub local: Option<Local>,
    /// Bytes of each of the datagrams that were joined; the last may have fewer. `None` = it is one.
    pub segment: Option<u16>,
    /// Datagrams that this socket has lost since it is there, as its queue was full; a number that goes
    /// round. `None` = none.
    pub lost: Option<u32>,
    /// There was more than fits.
    pub truncated: bool,
    /// Where the payload is in the buffer.
    pub payload: Range<usize>,
}

/// An address of this machine, as a datagram came to it or leaves from it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Local {
    /// The address.
    pub ip: IpAddr,
    /// The interface, where the address alone does not say which: IPv6's link-local ones. 0 = any.
    pub interface: u32,
}

/// What the kernel wrote is not what was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a datagram whose header makes no sense")
    }
}

impl std::error::Error for Malformed {}

/// Reads what the kernel has put into a buffer: all the bytes of it that it has filled.
///
/// # Errors
/// The lengths in it point beyond its end.
pub fn parse(buffer: &[u8], layout: Layout) -> Result<Received, Malformed> {
    let word = |at: usize| u32_at(buffer, at).ok_or(Malformed);
    let (name_len, control_len, flags) = (word(0)? as usize, word(4)? as usize, word(12)?);
    let overhead = layout.overhead();
    if buffer.len() < overhead {
        return Err(Malformed);
    }
    let name = &buffer[HEADER..HEADER + layout.name.min(name_len)];
    let control = &buffer[HEADER + layout.name..overhead];
    let control = control.get(..control_len).ok_or(Malformed)?;
    let mut received = Received {
        sender: address(name),
        local: None,
        segment: None,
        lost: None,
        truncated: flags & libc::MSG_TRUNC as u32 != 0,
        payload: overhead..buffer.len(),
    };
    for message in Controls(control) {
        received.note(&message);
    }
    Ok(received)
}

impl Received {
    fn note(&mut self, message: &Control<'_>) {
        let Control { level, kind, data } = message;
        match (*level, *kind) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                let size = u32_at(data, 0).and_then(|size| u16::try_from(size).ok());
                self.segment = size.filter(|size| usize::from(*size) < self.payload.len());
                // A size of nothing would never come to an end.
                self.segment = self.segment.filter(|size| *size > 0);
            }
            (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => self.lost = u32_at(data, 0),
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                // ipi_spec_dst: for a datagram to many, the address of ours that answers.
                self.local = bytes_at::<4>(data, 4).map(|ip| Local {
                    ip: Ipv4Addr::from(ip).into(),
                    interface: 0,
                });
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                let parts = bytes_at::<16>(data, 0).zip(u32_at(data, 16));
                self.local = parts.map(|(ip, interface)| {
                    let ip = Ipv6Addr::from(ip);
                    let interface = if ip.is_unicast_link_local() {
                        interface
                    } else {
                        0
                    };
                    Local {
                        ip: ip.into(),
                        interface,
                    }
                });
            }
            _ => {}
        }
    }
}

/// Room for what [`write_control`] writes at most.
pub const LONGEST_CONTROL: usize = space(PKTINFO6) + space(SEGMENT);

/// Writes the control messages of a datagram that is to leave from `from`, and to be cut into datagrams
/// of `segment` bytes. Returns the bytes; 0 = none is needed.
pub fn write_control(
    to: &mut [u8; LONGEST_CONTROL],
    from: Option<Local>,
    segment: Option<u16>,
) -> usize {
    let mut end = 0;
    match from {
        Some(Local {
            ip: IpAddr::V4(ip), ..
        }) => {
            let mut data = [0; PKTINFO4];
            data[4..8].copy_from_slice(&ip.octets());
            put(to, &mut end, (libc::IPPROTO_IP, libc::IP_PKTINFO), &data);
        }
        Some(Local {
            ip: IpAddr::V6(ip),
            interface,
        }) => {
            let mut data = [0; PKTINFO6];
            data[..16].copy_from_slice(&ip.octets());
            data[16..].copy_from_slice(&interface.to_ne_bytes());
            put(
                to,
                &mut end,
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO),
                &data,
            );
        }
        None => {}
    }
    if let Some(segment) = segment {
        let data = segment.to_ne_bytes();
        put(to, &mut end, (libc::SOL_UDP, libc::UDP_SEGMENT), &data);
    }
    end
}

fn put(to: &mut [u8], end: &mut usize, (level, kind): (i32, i32), data: &[u8]) {
    let message = &mut to[*end..*end + space(data.len())];
    let len = CONTROL_HEADER + data.len();
    message[..WORD].copy_from_slice(&len.to_ne_bytes());
    message[WORD..WORD + 4].copy_from_slice(&level.to_ne_bytes());
    message[WORD + 4..CONTROL_HEADER].copy_from_slice(&kind.to_ne_bytes());
    message[CONTROL_HEADER..len].copy_from_slice(data);
    message[len..].fill(0);
    *end += message.len();
}

/// One control message.
struct Control<'a> {
    level: i32,
    kind: i32,
    data: &'a [u8],
}

/// Control messages one after the other; what makes no sense is the end.
struct Controls<'a>(&'a [u8]);

impl<'a> Iterator for Controls<'a> {
    type Item = Control<'a>;

    fn next(&mut self) -> Option<Control<'a>> {
        let len = usize::from_ne_bytes(bytes_at(self.0, 0)?);
        let level = i32::from_ne_bytes(bytes_at(self.0, WORD)?);
        let kind = i32::from_ne_bytes(bytes_at(self.0, WORD + 4)?);
        let data = self.0.get(CONTROL_HEADER..len)?;
        // The last one may go without the bytes that would align a next one.
        self.0 = &self.0[len.next_multiple_of(WORD).min(self.0.len())..];
        Some(Control { level, kind, data })
    }
}

fn address(name: &[u8]) -> Option<SocketAddr> {
    let family = i32::from(u16::from_ne_bytes(bytes_at(name, 0)?));
    let port = u16::from_be_bytes(bytes_at(name, 2)?);
    match family {
        libc::AF_INET => Some((Ipv4Addr::from(bytes_at::<4>(name, 4)?), port).into()),
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from(bytes_at::<16>(name, 8)?);
            // The flow's label is of one datagram, and not who the sender is.
            let scope = u32_at(name, 24)?;
            Some(SocketAddrV6::new(ip, port, 0, scope).into())
        }
        _ => None,
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_ne_bytes)
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// Bytes that a control message with so much data takes (CMSG_SPACE).
const fn space(data: usize) -> usize {
    CONTROL_HEADER + data.next_multiple_of(WORD)
}

/// `struct io_uring_recvmsg_out`.
const HEADER: usize = 16;
/// `struct cmsghdr`, whose length is one word.
const CONTROL_HEADER: usize = WORD + 8;
const WORD: usize = size_of::<usize>();
/// Data of the control messages.
const PKTINFO4: usize = 12;
const PKTINFO6: usize = 20;
const INT: usize = 4;
const SEGMENT: usize = 2;

#[cfg(test)]
mod tests;
