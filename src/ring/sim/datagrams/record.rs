//! What became of datagrams, of those who sent them and of those who heard them.

use std::net::SocketAddr;

use crate::time::Instant;

/// What became of a client. One that a backend answers as often as it is asked hears at most as many
/// replies as it has sent datagrams; more are duplicates.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DatagramClientRecord {
    /// Whom it sends to.
    pub address: SocketAddr,
    /// Where it has sent from, in order.
    pub from: Vec<SocketAddr>,
    /// Datagrams.
    pub sent: u64,
    /// Replies to its own datagrams, each counted once.
    pub replies: u64,
    /// Datagrams of at least 16 bytes that have had a reply.
    pub answered: u64,
    /// What a backend said to it of its own accord.
    pub unsolicited: u64,
    /// What it had heard before.
    pub duplicates: u64,
    /// What was meant for another client.
    pub foreign: u64,
    /// What nobody has said in this form.
    pub corrupt: u64,
    /// What came from another address than it sends to, whatever it was.
    pub wrong_source: u64,
    /// When it heard something for the last time.
    pub last_heard_at: Option<Instant>,
}

/// What a backend has heard, over all its scripts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DatagramBackendRecord {
    /// Datagrams.
    pub received: u64,
    /// What it had heard before, of at least 16 bytes.
    pub duplicates: u64,
    /// What no client has said in this form.
    pub corrupt: u64,
    /// By the socket that it came from, in the order in which they were heard first.
    pub sessions: Vec<DatagramSession>,
}

/// What has come from one socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DatagramSession {
    /// Its address.
    pub source: SocketAddr,
    /// Whose datagrams it carried, in the order in which they were heard first; one of less than 16 bytes
    /// does not say.
    pub clients: Vec<usize>,
    /// Datagrams.
    pub received: u64,
    /// Replies to it.
    pub replied: u64,
    /// When it was heard first.
    pub began_at: Instant,
    /// When it was heard last.
    pub last_heard_at: Instant,
}

/// Where all datagrams of a world have gone. Those that are joined count each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traffic {
    /// Taken by a socket, whoever's.
    pub sent: u64,
    /// Come into being on their way.
    pub doubled: u64,
    /// Lost on their way.
    pub lost: u64,
    /// Lost at a worker's socket whose queue was full.
    pub overflowed: u64,
    /// Come to where nobody was.
    pub unheard: u64,
    /// Heard by clients and backends.
    pub heard: u64,
    /// Received by workers.
    pub received: u64,
    /// In the queue of a worker's socket when it was closed.
    pub forgotten: u64,
    /// On their way now, or in a queue.
    pub under_way: u64,
}

impl Traffic {
    /// Each datagram has gone to one place.
    pub const fn adds_up(&self) -> bool {
        let gone = self.lost + self.overflowed + self.unheard + self.forgotten;
        self.sent + self.doubled == gone + self.heard + self.received + self.under_way
    }
}
