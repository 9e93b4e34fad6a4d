//! The load generator. It keeps one ring busy from one thread, so that what it costs can be told
//! (its own CPU time over wall time), and it counts from the time a request was meant to go out.

mod download;
mod fresh;
mod held;
mod kept;
mod loss;
mod outcome;
mod pacer;
mod run;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ringress::address::Address;
use ringress::ring::{Ring, Socket, SocketOptions};
use ringress::time::Instant;

pub use held::{Held, ask_once, open};
pub use loss::Losses;
pub use outcome::{Latency, Outcome, Summary};
pub(crate) use run::thread_cpu;
pub use run::{run, run_all};

/// What is asked of whom, by how many, for how long.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Who is asked.
    pub target: SocketAddr,
    /// Connections at once; where each is made when it is due, as many as that takes.
    pub connections: usize,
    /// Time before counting starts.
    pub warmup: Duration,
    /// Time that is counted.
    pub duration: Duration,
    /// What is asked.
    pub work: Work,
}

/// What is asked, and in which rhythm.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// A connection asks again as soon as it has its answer: as much as goes.
    Saturate {
        /// Bytes of a request, all of which must come back.
        size: usize,
    },
    /// Requests are due at fixed times, spread over the connections in turn. One that finds its
    /// connection busy waits, and the waiting counts.
    Rate {
        /// Bytes of a request, all of which must come back.
        size: usize,
        /// Requests per second, over all connections.
        per_second: u64,
    },
    /// Connect, one exchange, close; and again.
    NewConnections {
        /// Bytes of a request, all of which must come back.
        size: usize,
    },
    /// Connect, one exchange, end in order (FIN both ways), each at its fixed time whatever became of
    /// those before it.
    NewConnectionsAtRate {
        /// Bytes of a request, all of which must come back.
        size: usize,
        /// Connections per second.
        per_second: u64,
    },
    /// Downloads, one after another on each connection; every byte is compared.
    Download {
        /// Bytes of a download.
        bytes: u64,
    },
}

/// The two moments at which whoever measures something beside the load takes a look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Edge {
    /// Counting starts.
    Begin,
    /// Counting ends.
    End,
}

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects to `target`; on the loopback from the `number`th of 16 addresses. A connection that the
/// client closes leaves its port unusable for a while (TIME_WAIT), and one address has 28 thousand
/// ports: that is a few seconds' worth of new connections. More addresses are chosen over closing
/// with a reset, because a FIN is how clients end and what a proxy should be measured with.
async fn connect(ring: &Ring, target: SocketAddr, number: u64) -> std::io::Result<Socket> {
    connect_until(ring, target, number, ring.now() + CONNECT_TIMEOUT).await
}

async fn connect_until(
    ring: &Ring,
    target: SocketAddr,
    number: u64,
    deadline: Instant,
) -> std::io::Result<Socket> {
    const SOURCES: u64 = 16;
    let source = match target {
        SocketAddr::V4(target) if target.ip().is_loopback() => {
            Some(IpAddr::from([127, 0, 1, (1 + number % SOURCES) as u8]))
        }
        _ => None,
    };
    let options = SocketOptions::default();
    ring.connect(&Address::from(target), source, &options, deadline)
        .await
}
