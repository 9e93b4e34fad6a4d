//! The binary upgrade: an old process starts a new one, hands over its listening sockets and what it
//! knows, and drains once the new one serves. This module owns the way the two speak to each other;
//! it never binds, accepts or drains, and doesn't know what the state means that it carries.
//!
//! They speak over a pair of unix sockets, one of which is the new process's standard input: no
//! path that somebody else could open, and no descriptor that has to survive exec(2) by luck. The
//! sockets are streams, since a packet can't be larger than the send buffer, and the state of
//! thousands of backends is. `RINGRESS_UPGRADE` holds the protocol's version and tells the new
//! process that its standard input is this link.
//!
//! ```text
//! old process                                       new process
//! ───────────                                       ───────────
//! serves; starts the new one ─────────────────────▶ starts
//! Offering   opening: version, offer, older links ▶
//!            listening sockets, older links ──────▶ Deciding: reads its configuration, binds the rest,
//!                                                   sets up its workers
//!            ◀───────────────────────────── refused ends with status 1
//!            ◀─────────────────────── ready: kept   Waiting for the state
//! Committing go: state ───────────────────────────▶ takes the control socket's path
//!            ◀───────────────────────────── serving sets the sockets that it keeps, accepts
//! Draining   counted: totals ─────────────────────▶ adds them to its own
//!            counted: totals ─────────────────────▶
//! ends       end of file ─────────────────────────▶ the old one is gone
//! ```
//!
//! Until `serving` arrives the old process has changed nothing, and the new one nothing that is not its
//! own but the control socket's path, which the old one takes back. Whatever goes wrong before (the new
//! one refuses, ends, says nonsense or is late), it kills the new one, reaps it and serves on. It
//! kills first and closes the link after: a new process that has everything and sees the link end
//! therefore knows that the old one has died, and serves, without its state if need be.
//!
//! A process that drains goes on telling what it counts. Its link is handed on like a listening
//! socket when the process that reads it is upgraded itself, with what has been read of a frame.
//!
//! Sessions of datagrams go another way, between threads of their own: see `sessions`.
//!
//! Frames and `refused` are the same in every version, so that processes that don't understand each
//! other can say so.

mod child;
mod frame;
mod handover;
mod link;
mod predecessor;
pub(super) mod sessions;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub(super) use self::child::Launch;
pub(super) use self::handover::{Failure, Successor, hand_over};
pub(super) use self::link::Link;
pub(super) use self::predecessor::{Committed, Inheritance, Predecessor, predecessor};

/// The protocol's version: of the messages below and of their order.
const VERSION: u32 = 1;

/// Environment variable that tells a process that it is the new one of an upgrade; holds the
/// protocol's version.
const VARIABLE: &str = "RINGRESS_UPGRADE";

/// What the old process is and listens on. The sockets come along, in the order of `bindings`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Offer {
    /// The seed of its hashes, so that clients keep their backends.
    pub(super) seed: u64,
    /// The addresses it listens on.
    pub(super) bindings: Vec<OfferedBinding>,
    /// Listeners that the operator has drained.
    pub(super) drained: Vec<String>,
    /// The path of its control socket, when it has one: it may be taken over.
    pub(super) control_socket: Option<PathBuf>,
    /// After the sockets of the bindings comes one by which sessions of datagrams will come.
    #[serde(default)]
    pub(super) sessions: bool,
}

/// An address that the old process listens on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct OfferedBinding {
    /// The listener's name.
    pub(super) listener: String,
    /// The address as it stands in the configuration.
    pub(super) configured: String,
    /// The address as it was bound: with the port that the kernel chose for port 0.
    pub(super) address: String,
    /// How many sockets listen there.
    pub(super) sockets: usize,
    /// Device and inode of a unix socket's path, by which to tell whether the path is still its own.
    pub(super) unix: Option<(u64, u64)>,
    /// Somebody else keeps them open, such as the service manager.
    #[serde(default)]
    pub(super) held: bool,
    /// They take datagrams.
    #[serde(default)]
    pub(super) datagrams: bool,
    /// It is no listener's: operators are listened to here.
    #[serde(default)]
    pub(super) admin: bool,
}

/// The new process can serve and says with what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Ready {
    /// The new process.
    pub(super) pid: u32,
    /// Indices of the offered bindings that it goes on with; the others end with the old process.
    pub(super) kept: Vec<usize>,
}

/// The first message: from the old to the new process. Descriptors follow.
#[derive(Serialize, Deserialize)]
struct Opening {
    version: u32,
    offer: Offer,
    /// For every link to a still older process, the bytes that have been read of an unfinished frame.
    links: Vec<Vec<u8>>,
}

/// Further messages from the old process.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FromOld {
    Go { state: Value },
    Counted { totals: Value },
}

/// Messages from the new process.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FromNew {
    Refused { error: String },
    Ready(Ready),
    Serving,
}

/// What goes wrong on a link.
#[derive(Debug)]
pub(super) enum Error {
    /// The other process has ended or closed the link.
    Gone,
    /// The other process has not answered in time.
    Silent,
    /// A frame is longer than any may be.
    TooLong {
        /// Its length, in bytes.
        bytes: usize,
    },
    /// What came is not what should have come; holds what is wrong with it.
    Malformed(String),
    /// Fewer descriptors arrived than were sent.
    Descriptors {
        /// Sent.
        expected: usize,
        /// Arrived.
        came: usize,
    },
    /// The other process speaks another version.
    Version {
        /// Its version, as it says.
        theirs: String,
    },
    /// The variable is set in a process that nobody upgrades.
    NotALink,
    /// The socket failed in another way.
    Io(io::Error),
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, TimedOut, WouldBlock};
        match error.kind() {
            BrokenPipe | ConnectionReset => Self::Gone,
            // A blocking socket's timeout.
            TimedOut | WouldBlock => Self::Silent,
            _ => Self::Io(error),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("the other process is gone"),
            Self::Silent => f.write_str("the other process does not answer"),
            Self::TooLong { bytes } => write!(
                f,
                "a message of {bytes} bytes, and {} are the most",
                frame::BODY_MAX
            ),
            Self::Malformed(what) => write!(f, "a message makes no sense: {what}"),
            Self::Descriptors { expected, came } => write!(
                f,
                "{came} of {expected} sockets arrived: RLIMIT_NOFILE may be too low (`ulimit -n`, LimitNOFILE=)"
            ),
            Self::Version { theirs } => write!(
                f,
                "the old process upgrades by version {theirs} of the protocol and the new binary by \
                 version {VERSION}: restart instead"
            ),
            Self::NotALink => write!(
                f,
                "{VARIABLE} is set, but standard input leads to no process that upgrades: unset it, \
                 an upgrade sets it by itself"
            ),
            Self::Io(error) => write!(f, "the link between the processes failed: {error}"),
        }
    }
}
