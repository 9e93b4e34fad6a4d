//! What recvmsg(2) tells beside the payload, as bytes: a name (sockaddr) and control messages (cmsg(3)).

use std::net::{IpAddr, SocketAddr};

/// `struct io_uring_recvmsg_out`.
pub(super) const HEADER: usize = 16;

/// Control messages in the room that there is for them.
pub(super) struct Control {
    pub(super) bytes: Vec<u8>,
    room: usize,
    /// Not all had room (MSG_CTRUNC).
    pub(super) is_cut: bool,
}

impl Control {
    pub(super) fn new(room: usize) -> Self {
        Self {
            bytes: Vec::new(),
            room,
            is_cut: false,
        }
    }

    pub(super) fn put_int(&mut self, level: i32, kind: i32, value: u32) {
        self.put(level, kind, &value.to_ne_bytes());
    }

    /// The address that a datagram was sent to: `in_pktinfo` or `in6_pktinfo`.
    pub(super) fn put_local(&mut self, ip: IpAddr, interface: u32) {
        let interface = interface.to_ne_bytes();
        match ip {
            IpAddr::V4(ip) => {
                // The address that would answer, and the one in the header.
                let data = [interface, ip.octets(), ip.octets()].concat();
                self.put(libc::IPPROTO_IP, libc::IP_PKTINFO, &data);
            }
            IpAddr::V6(ip) => {
                let data = [&ip.octets()[..], &interface].concat();
                self.put(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &data);
            }
        }
    }

    /// As put_cmsg(): what has no room is cut.
    fn put(&mut self, level: i32, kind: i32, data: &[u8]) {
        let left = self.room - self.bytes.len();
        self.is_cut |= left < MESSAGE + data.len();
        let Some(data_room) = left.checked_sub(MESSAGE) else {
            return;
        };
        let data = &data[..data.len().min(data_room)];
        let begin = self.bytes.len();
        self.bytes.extend((MESSAGE + data.len()).to_ne_bytes());
        self.bytes.extend(level.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(data);
        let end = begin + (MESSAGE + data.len()).next_multiple_of(WORD);
        self.bytes.resize(end.min(self.room), 0);
    }
}

/// `sockaddr_in` or `sockaddr_in6`.
pub(super) fn name(address: SocketAddr) -> Vec<u8> {
    let port = address.port().to_be_bytes();
    match address {
        SocketAddr::V4(v4) => {
            let family = (libc::AF_INET as u16).to_ne_bytes();
            [&family, &port, &v4.ip().octets()[..], &[0; 8]].concat()
        }
        SocketAddr::V6(v6) => {
            let family = (libc::AF_INET6 as u16).to_ne_bytes();
            let flow = v6.flowinfo().to_be_bytes();
            let scope = v6.scope_id().to_ne_bytes();
            [&family, &port, &flow[..], &v6.ip().octets(), &scope].concat()
        }
    }
}

/// `struct cmsghdr`, whose length is one word.
const MESSAGE: usize = WORD + 8;
const WORD: usize = size_of::<usize>();
