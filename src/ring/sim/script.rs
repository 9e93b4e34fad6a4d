//! What simulated clients and backends are told to do, and the record of what became of them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::pattern::PREFIX;
use crate::address::Address;
use crate::time::Instant;

/// One step of a script. Unless it stalls, a peer reads all the time, whatever its step is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Say bytes of a greeting that depends on no stream; only as the first steps of a backend.
    Greet(u64),
    /// Say bytes of the pattern, a `chunk` at a time, with a pause after each. A backend waits
    /// until it has learned its stream.
    Send {
        /// How many; a client's count includes the eight bytes of its stream's number.
        bytes: u64,
        /// At once.
        chunk: u32,
        /// After each chunk.
        pause: Duration,
    },
    /// Answer each byte that is heard with one of the reply, until the other side's FIN.
    Echo,
    /// Wait for so many bytes after those of earlier steps, or for the end.
    Expect(u64),
    /// What ends the direction, where there is a layer, and FIN.
    Finish,
    /// What ends the direction, where there is a layer, without a FIN.
    SayEnd,
    /// FIN, without what ends the direction where there is a layer.
    Truncate,
    /// Wait for the other side's FIN.
    ReadToEnd,
    /// RST: the script ends.
    Reset,
    /// Read nothing for so long; `None`: nothing from now on, while the script goes on.
    Stall(Option<Duration>),
    /// From now on read at most `bytes` in every `interval`.
    ReadSlowly {
        /// How many.
        bytes: u32,
        /// How often.
        interval: Duration,
    },
    /// Wait, reading.
    Pause(Duration),
    /// close(2), without what ends the direction where there is a layer: the script ends.
    Close,
}

impl Step {
    /// Say so many bytes in chunks of 16 KiB, without a pause.
    pub const fn send(bytes: u64) -> Self {
        Self::Send {
            bytes,
            chunk: 16 << 10,
            pause: Duration::ZERO,
        }
    }
}

/// What a client does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientScript {
    /// After the connection is established.
    pub steps: Vec<Step>,
    /// Bytes of the backend's greeting.
    pub greeting: u64,
    /// Where it connects from, of the family it connects to; any number of clients may share it,
    /// each has its own port. `None`: an address of its own in 10.0.0.0/8, or `::1`.
    pub from: Option<IpAddr>,
}

impl ClientScript {
    /// These steps, with a backend that does not greet.
    pub const fn new(steps: Vec<Step>) -> Self {
        Self {
            steps,
            greeting: 0,
            from: None,
        }
    }

    /// Says `bytes`, finishes, and reads to the end.
    pub fn exchange(bytes: u64) -> Self {
        Self::new(vec![Step::send(bytes), Step::Finish, Step::ReadToEnd])
    }
}

/// What a backend does with each connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BackendScript {
    /// As many bytes of the reply as it hears; finishes after the client.
    Echo,
    /// So many bytes of the reply once the stream's number was heard, then FIN.
    Download {
        /// How many.
        bytes: u64,
    },
    /// Reads to the end, says nothing, finishes.
    Sink,
    /// Speaks first, then echoes.
    Greeting {
        /// How many; [`ClientScript::greeting`] must say the same.
        bytes: u64,
    },
    /// Nobody listens: ECONNREFUSED.
    Refuse,
    /// A SYN is never answered.
    BlackHole,
    /// EHOSTUNREACH.
    Unreachable,
    /// Connections are established but never accepted; further SYNs than `backlog` are dropped.
    NeverAccepts {
        /// The length of the queue.
        backlog: u32,
    },
    /// RST after so many bytes were heard.
    ResetAfter {
        /// How many; 0: at once.
        bytes: u64,
    },
    /// Accepts and never reads.
    NeverReads,
    /// FIN at once (RST when the client has spoken meanwhile).
    CloseAtOnce,
    /// A sink that reads at most `bytes` in every `interval`.
    SlowReader {
        /// How many.
        bytes: u32,
        /// How often.
        interval: Duration,
    },
    /// Any steps.
    Steps(Vec<Step>),
}

impl BackendScript {
    pub(super) fn steps(&self) -> Vec<Step> {
        match *self {
            Self::Echo => vec![Step::Echo],
            Self::Download { bytes } => vec![
                Step::Expect(PREFIX as u64),
                Step::send(bytes),
                Step::Finish,
                Step::ReadToEnd,
            ],
            Self::Greeting { bytes } => vec![Step::Greet(bytes), Step::Echo],
            Self::ResetAfter { bytes } => vec![Step::Expect(bytes), Step::Reset],
            Self::NeverReads | Self::NeverAccepts { .. } => {
                vec![Step::Stall(None), Step::ReadToEnd]
            }
            Self::SlowReader { bytes, interval } => {
                vec![Step::ReadSlowly { bytes, interval }, Step::ReadToEnd]
            }
            Self::Steps(ref steps) => steps.clone(),
            Self::Sink => vec![Step::ReadToEnd],
            Self::CloseAtOnce | Self::Refuse | Self::BlackHole | Self::Unreachable => Vec::new(),
        }
    }
}

/// How a peer's connection ended, as the peer saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// Not yet.
    Open,
    /// The other side's FIN was read, then the peer closed.
    Fin,
    /// The other side's RST came.
    Reset,
    /// The peer closed, or was killed, before it saw the other side's end.
    Closed,
    /// The other side's FIN came without what the peer's layer has for an end.
    Truncated,
    /// The peer's layer could not go on: [`PeerRecord::fault`].
    Faulty,
    /// The peer's own RST: by its script, as a fault, or because it was killed.
    Aborted,
    /// It was never established: an errno.
    Refused(i32),
}

/// What became of a client or of a backend's session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerRecord {
    /// Which address was connected to.
    pub address: Address,
    /// The stream's number: the same for a client and for the backend session it reached. `None`
    /// until a backend has learned it.
    pub stream: Option<u64>,
    /// This end; `None` before the connect and for unix sockets.
    pub local: Option<SocketAddr>,
    /// The other end, as this one sees it.
    pub remote: Option<SocketAddr>,
    /// Bytes said (taken by the socket).
    pub sent: u64,
    /// Bytes heard.
    pub received: u64,
    /// All bytes heard were the expected ones, in order.
    pub intact: bool,
    /// The other side's FIN was read, or heard what a layer has instead.
    pub saw_fin: bool,
    /// It ended with something that its layer had taken and not put on the wire.
    pub unsaid: bool,
    /// What the peer's layer has found wrong.
    pub fault: Option<String>,
    /// How it ended.
    pub ending: Ending,
    /// When.
    pub ended_at: Option<Instant>,
    /// When the connection was established as this end sees it. A backend's session begins with
    /// the SYN, or where there is a distance one round trip later, with the client's answer;
    /// `None` when that never came.
    pub began_at: Option<Instant>,
    /// When the first byte was heard (read).
    pub first_heard_at: Option<Instant>,
}
