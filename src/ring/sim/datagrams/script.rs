//! What clients and backends of datagrams are told to do.

use std::net::SocketAddr;
use std::time::Duration;

/// What a client does: it sends, and hears whatever comes for as long as the world is there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DatagramClientScript {
    /// Where it sends from; any number of clients may share an IP address, and port 0 is replaced by a
    /// free one. `None`: an address of its own in 10.0.0.0/8, or `fd00::/64`.
    pub from: Option<SocketAddr>,
    /// How many datagrams.
    pub count: u32,
    /// Bytes of each, from 0 to 65,507, and over again. From 16 bytes on a datagram says whose it is, and
    /// everything is found that can happen to it; of a shorter one, what it has in common with another is
    /// not, and how often it was answered neither.
    pub sizes: Vec<u32>,
    /// Between two sends.
    pub interval: Duration,
    /// How many datagrams a send joins at most, as long as they are of one size (UDP_SEGMENT).
    pub joined: u32,
    /// After so many datagrams it sends from another port, as behind a router that has forgotten it. It
    /// hears at both.
    pub moves_after: Option<u32>,
}

impl DatagramClientScript {
    /// So many datagrams of one size, one in every `interval`.
    pub fn new(count: u32, size: u32, interval: Duration) -> Self {
        Self {
            from: None,
            count,
            sizes: vec![size],
            interval,
            joined: 1,
            moves_after: None,
        }
    }
}

/// What a backend does with each datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DatagramScript {
    /// One reply of the same size. What came joined is answered joined.
    Echo,
    /// Hears it.
    Silent,
    /// Nobody is there: ICMP, port unreachable.
    Closed,
    /// So many replies of the same size, one after the other; at most 32,767.
    Replies(u32),
    /// So many replies of the same size, joined as far as that goes.
    JoinedReplies(u32),
    /// One reply, after so long.
    Late(Duration),
    /// One reply; and to each address that speaks for the first time, unasked, `count` datagrams of 64
    /// bytes in every `interval` after that.
    Unsolicited {
        /// How many.
        count: u32,
        /// How often.
        interval: Duration,
    },
    /// One reply, from another port than it was asked at.
    Elsewhere,
}
