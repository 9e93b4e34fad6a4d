//! The load generator. It keeps one ring busy from one thread, so that what it costs can be told
//! (its own CPU time over wall time), and it counts from the time a request was meant to go out.

mod download;
mod fresh;
mod held;
mod kept;
mod link;
mod loss;
mod outcome;
mod pacer;
mod run;
mod tls;

use std::time::Duration;

pub use held::{Held, ask_once, open};
pub use link::Target;
pub use loss::Losses;
pub use outcome::{Latency, Outcome, Summary};
pub(crate) use run::thread_cpu;
pub use run::{run, run_all};
pub use tls::{NAME, Tls};

/// What is asked of whom, by how many, for how long.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Who is asked.
    pub target: Target,
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
