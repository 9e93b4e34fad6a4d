//! Load with datagrams: many sources, each a socket of its own, and every datagram that comes back is
//! looked at. One thread does all of it and serves its backends too, so that what it costs can be told.
//!
//! | file | owns |
//! |---|---|
//! | `datagram`, `seen` | arithmetic: what a datagram looks like, what came twice or was overtaken |
//! | `sockets` | sockets, waiting for them, many datagrams per call, what they had no room for |
//! | `tally` | what is counted, and between which edges |
//! | `exchange` | datagrams that come back |
//! | `upload`, `download` | bursts, one send of many datagrams, in either direction |
//! | `backend` | what answers |
//! | `run` | warm-up, edges, end |

mod backend;
mod datagram;
mod download;
mod exchange;
mod run;
mod seen;
mod sockets;
mod tally;
mod upload;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

pub use backend::{Backend, Service, serve};
pub use datagram::{HEAD_BYTES, MOST_BYTES};
pub use run::run;
pub use tally::Faults;

use crate::error::Error;
use crate::load;

/// What is sent to whom, by how many, for how long.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Who is asked.
    pub target: SocketAddr,
    /// Sockets, each with a port of its own.
    pub sources: usize,
    /// Addresses that the sources have in turn; none = the kernel's choice.
    pub from: Vec<IpAddr>,
    /// Time before counting starts.
    pub warmup: Duration,
    /// Time that is counted.
    pub duration: Duration,
    /// What has no answer after this long is lost.
    pub timeout: Duration,
    /// What is sent.
    pub work: Work,
}

/// What is sent, and in which rhythm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// A source sends as soon as it has an answer: as much as goes.
    Saturate {
        /// Bytes of a datagram, from [`HEAD_BYTES`] to [`MOST_BYTES`].
        size: usize,
        /// Datagrams of each source that are under way at once.
        outstanding: usize,
    },
    /// Datagrams go out at fixed times, from the sources in turn, whatever became of those before.
    Rate {
        /// Bytes of a datagram, from [`HEAD_BYTES`] to [`MOST_BYTES`].
        size: usize,
        /// Datagrams per second, over all sources.
        per_second: u64,
    },
    /// Bursts to the backend, which acknowledges each.
    Upload(Bursts),
    /// Bursts from the backend, which each are asked for.
    Download(Bursts),
}

/// Many datagrams with one send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bursts {
    /// Bytes of a datagram, from [`HEAD_BYTES`] on; a burst has [`MOST_BYTES`] at most.
    pub size: usize,
    /// Datagrams of a burst, at least 1; the kernel takes 64, newer ones (6.9) 128.
    pub segments: u8,
    /// Bursts of each source that are under way at once.
    pub window: usize,
}

impl Bursts {
    /// Bytes of a burst.
    pub fn bytes(&self) -> usize {
        self.size * usize::from(self.segments)
    }
}

/// What a run showed.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// As with connections: what was answered, how fast. Its requests are datagrams or bursts, its
    /// errors what no proxy may do, its unanswered the lost datagrams.
    pub load: load::Outcome,
    /// What became of the datagrams.
    pub faults: Faults,
}

/// Asks `target` once for what `service` answers: does it serve?
///
/// # Errors
/// It does not.
pub fn ask_once(
    target: SocketAddr,
    service: Service,
    backends: &mut [Backend],
) -> Result<(), Error> {
    const SIZE: usize = 64;
    let work = match service {
        Service::Bursts => Work::Download(Bursts {
            size: SIZE,
            segments: 1,
            window: 1,
        }),
        Service::Echo | Service::Stall(..) => Work::Saturate {
            size: SIZE,
            outstanding: 1,
        },
    };
    let plan = Plan {
        target,
        sources: 1,
        from: Vec::new(),
        warmup: Duration::ZERO,
        duration: Duration::ZERO,
        timeout: Duration::from_millis(50),
        work,
    };
    let faults = run(&plan, backends, &mut |_| {})?.faults;
    match faults.lost {
        0 => Ok(()),
        _ => Err(Error::Failed(format!("asking {target}: no answer"))),
    }
}
