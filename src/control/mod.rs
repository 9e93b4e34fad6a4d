//! The control plane: one thread that starts the workers, hears signals, reloads, drains and ends.
//! It never touches a client's bytes.

pub mod capacity;
mod events;
mod health;
mod reload;
mod workers;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use self::health::Probers;
use self::reload::Reload;
use self::workers::{Bound, Plan, Workers};
use crate::address::Address;
use crate::config::Config;
use crate::proxy::{Message, Shared};
use crate::ring::probe::{self, SetupError};
use crate::ring::{Without, limits};
use crate::telemetry::events::Events;

/// Environment variable that names kernel features to do without, comma-separated; for tests and
/// for trying out what an older kernel would give.
const WITHOUT: &str = "RINGRESS_WITHOUT";

/// Runs the proxy until it is told to end by SIGTERM or SIGINT. `source` is the file to read again
/// on SIGHUP.
///
/// # Errors
/// It can't start, or a worker failed. Nothing is half-started: every address is bound and every
/// ring set up before the first connection is accepted.
pub fn run(config: Config, source: Option<PathBuf>) -> Result<(), Error> {
    // The control plane's runtime panics where io_uring can't be had; ask first.
    probe::probe().map_err(Error::Ring)?;
    tokio_uring::start(serve(config, source))
}

async fn serve(mut config: Config, source: Option<PathBuf>) -> Result<(), Error> {
    let mut signals = Signals::new().map_err(Error::Resources)?;
    let workers = config
        .runtime
        .workers
        .map_or_else(limits::worker_count, usize::from);
    let max_connections = max_connections(&config, workers)?;
    let plan = plan(&config, workers, max_connections)?;
    let Bound { sockets, addresses } = workers::bind(&config, plan.workers)?;
    let (events, receiver) = Events::new();
    let shared = Shared::new(&config, plan.workers, max_connections, events, seed());
    let reporter = events::report(receiver, &shared.around.events, config.log.level)
        .map_err(Error::Resources)?;
    let mut workers = Workers::start(plan, &shared, sockets)?;
    announce(&config, &plan, max_connections, &addresses);
    let mut probers = Probers::default();
    probers.reconcile(health::targets(&config, &shared));
    let mut reload = Reload::default();
    let source = source.as_deref();
    let end = loop {
        tokio::select! {
            request = signals.next() => match request {
                Request::End(name) => break name,
                Request::Reload => reload.request(source),
            },
            loaded = reload.loaded() => {
                if reload.finish(loaded, &mut config, &shared, source) {
                    workers.post(Message::Reloaded);
                    probers.reconcile(health::targets(&config, &shared));
                }
            }
            ended = workers.next_end() => {
                let unasked = Error::Worker("a worker ended by itself".to_owned());
                return ended.unwrap_or(Ok(())).and(Err(unasked));
            }
        }
    };
    let outcome = drain(&config, &shared, &mut workers, &mut signals, end).await;
    // Whoever may tell something lets go of the queue, the probers when they are next looked at.
    drop((shared, probers));
    tokio::task::yield_now().await;
    reporter.finish();
    outcome?;
    tracing::info!("ended");
    Ok(())
}

/// A number that nobody outside can know.
fn seed() -> u64 {
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), "seed")
}

/// Stops accepting and waits for the sessions, until `drain_timeout` or a second signal.
async fn drain(
    config: &Config,
    shared: &Arc<Shared>,
    workers: &mut Workers,
    signals: &mut Signals,
    name: &str,
) -> Result<(), Error> {
    tracing::info!(signal = name, sessions = shared.active.now(), timeout = ?config.runtime.drain_timeout, "draining");
    workers.post(Message::Drain);
    let mut deadline = std::pin::pin!(tokio::time::sleep(config.runtime.drain_timeout));
    let mut aborted = false;
    loop {
        tokio::select! {
            ended = workers.next_end() => match ended {
                Some(outcome) => outcome?,
                None => break,
            },
            () = &mut deadline => {
                if aborted {
                    return Err(Error::Worker("sessions did not end".to_owned()));
                }
                aborted = true;
                abort(shared, workers, "drain_timeout is over");
                deadline.as_mut().reset(tokio::time::Instant::now() + ABORT_TIMEOUT);
            }
            request = signals.next() => match request {
                Request::End(name) if !aborted => {
                    aborted = true;
                    abort(shared, workers, name);
                    deadline.as_mut().reset(tokio::time::Instant::now() + ABORT_TIMEOUT);
                }
                Request::End(_) => {}
                Request::Reload => tracing::warn!("reload refused: the process is draining"),
            },
        }
    }
    Ok(())
}

/// How long workers may take to abort their sessions: they need a turn or two.
const ABORT_TIMEOUT: Duration = Duration::from_secs(2);

fn abort(shared: &Shared, workers: &Workers, why: &str) {
    tracing::warn!(sessions = shared.active.now(), why, "aborting what is left");
    workers.post(Message::Abort);
}

fn plan(config: &Config, workers: usize, max_connections: usize) -> Result<Plan, Error> {
    let without = std::env::var(WITHOUT).unwrap_or_default();
    Ok(Plan {
        workers,
        pinned: config.runtime.pin_workers,
        buffer_memory: config.runtime.buffer_memory.map_or_else(
            || capacity::buffer_memory(limits::total_memory(), max_connections, workers),
            u64::from,
        ),
        without: Without::parse(&without).map_err(Error::Feature)?,
    })
}

fn max_connections(config: &Config, workers: usize) -> Result<usize, Error> {
    let descriptors = limits::raise_nofile().map_err(Error::Resources)?;
    let addresses = config
        .listeners
        .iter()
        .map(|listener| listener.bind.len())
        .sum();
    let ahead = config.upstreams.iter().map(|upstream| {
        // A probe at a time, and what every worker holds.
        upstream.backends.len() * (1 + workers * upstream.pool.preconnect as usize)
    });
    let most = capacity::max_connections(descriptors, workers, addresses, ahead.sum());
    let wanted = config.runtime.max_connections.map_or(most, usize::from);
    if wanted > most || most == 0 {
        return Err(Error::TooManyConnections {
            wanted,
            most,
            descriptors,
        });
    }
    Ok(wanted)
}

fn announce(config: &Config, plan: &Plan, max_connections: usize, bound: &[(usize, Address)]) {
    for (listener, address) in bound {
        tracing::info!(listener = %config.listeners[*listener].name, %address, "listening");
    }
    tracing::info!(
        workers = plan.workers,
        max_connections,
        buffer_memory_per_worker = plan.buffer_memory,
        "started"
    );
}

/// The signals the process hears.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What a signal asks for.
enum Request {
    /// SIGTERM or SIGINT, by name.
    End(&'static str),
    /// SIGHUP; several that came together are one.
    Reload,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Request {
        tokio::select! {
            _ = self.terminate.recv() => Request::End("SIGTERM"),
            _ = self.interrupt.recv() => Request::End("SIGINT"),
            _ = self.hangup.recv() => Request::Reload,
        }
    }
}

/// Why the proxy can't run.
#[derive(Debug)]
pub enum Error {
    /// io_uring can't be set up.
    Ring(SetupError),
    /// An address can't be listened on.
    Bind {
        /// The listener's name.
        listener: Arc<str>,
        /// The address.
        address: Address,
        /// As socket(2), bind(2) or listen(2).
        error: io::Error,
    },
    /// `runtime.max_connections` needs more descriptors than the process may have.
    TooManyConnections {
        /// Connections asked for.
        wanted: usize,
        /// Connections that fit.
        most: usize,
        /// RLIMIT_NOFILE.
        descriptors: u64,
    },
    /// A thread, a descriptor or a signal handler could not be had.
    Resources(io::Error),
    /// RINGRESS_WITHOUT names a feature there isn't.
    Feature(String),
    /// A worker failed while running.
    Worker(String),
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ring(error) => error.fmt(f),
            Self::Bind {
                listener,
                address,
                error,
            } => {
                write!(
                    f,
                    "listener \"{listener}\" can't listen on {address}: {}",
                    advice(error)
                )
            }
            Self::TooManyConnections {
                wanted,
                most,
                descriptors,
            } => write!(
                f,
                "max_connections = {wanted} needs more descriptors than the {descriptors} of RLIMIT_NOFILE, \
                 which hold {most}: lower it, or raise the limit (`ulimit -n`, LimitNOFILE=)"
            ),
            Self::Resources(error) => write!(f, "can't start: {error}"),
            Self::Feature(name) => write!(f, "{WITHOUT} names \"{name}\", which is no feature"),
            Self::Worker(what) => write!(f, "can't go on: {what}"),
        }
    }
}

fn advice(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "the address is in use by another process".to_owned(),
        io::ErrorKind::PermissionDenied => {
            "permission denied; a port below 1024 needs root or CAP_NET_BIND_SERVICE".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => "the address is not one of this machine".to_owned(),
        _ => error.to_string(),
    }
}
