//! The control plane: one thread that starts the workers, hears signals, reloads, drains and ends.
//! It never touches a client's bytes.

mod access_log;
pub mod activation;
pub mod admin;
mod apply;
mod bindings;
pub mod capacity;
mod certificates;
mod events;
mod explain;
mod health;
mod lengths;
mod life;
mod moments;
pub mod notify;
mod orders;
mod parts;
pub mod privileges;
mod process;
mod pulse;
mod reload;
mod screen;
mod signals;
pub mod socket;
mod sockets;
mod start;
mod status;
mod stopped;
mod succession;
mod upgrade;
mod workers;
mod writing;

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use self::capacity::Demand;
use self::start::Start;
use self::workers::Plan;
use crate::address::Address;
use crate::config::{Config, Protocol};
use crate::ring::probe::SetupError;
use crate::ring::{Without, limits};

/// Environment variable that names kernel features to do without, comma-separated; for tests and
/// for trying out what an older kernel would give.
const WITHOUT: &str = "RINGRESS_WITHOUT";

/// What [`WITHOUT`] says, if it says anything.
fn features_left_out() -> Option<String> {
    std::env::var(WITHOUT)
        .ok()
        .filter(|names| !names.is_empty())
}

/// Runs the proxy until it is told to end by SIGTERM or SIGINT. `source` is the file to read again
/// on SIGHUP.
///
/// # Errors
/// It can't start, or a worker failed. Nothing is half-started: every address is bound and every
/// ring set up before the first connection is accepted.
pub fn run(config: Config, source: Option<PathBuf>) -> Result<(), Error> {
    let (mut start, predecessor) = match upgrade::predecessor().map_err(Error::upgrade)? {
        None => (Start::afresh(), None),
        Some(inheritance) => Start::after(inheritance)?,
    };
    start.source = source;
    match start.prepare(config) {
        Ok(prepared) => tokio_uring::start(prepared.serve(predecessor)),
        Err(error) => {
            if let Some(predecessor) = predecessor {
                predecessor.refuse(&error.to_string());
            }
            Err(error)
        }
    }
}

/// Gives up, for this process and all that it executes, ever to become more than it is. To be called before
/// there is a second thread.
///
/// # Errors
/// The kernel refuses.
pub fn no_new_privileges() -> Result<(), Error> {
    privileges::no_new_privileges().map_err(Error::Privileges)
}

/// Tells the process that this one was to take over from, if there is one, that it can't: its
/// configuration is wrong.
pub fn refuse_upgrade(error: &str) {
    if let Ok(Some(inheritance)) = upgrade::predecessor() {
        inheritance.predecessor.refuse(error);
    }
}

/// A number that nobody outside can know.
fn seed() -> u64 {
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), "seed")
}

fn plan(config: &Config, workers: usize, max_connections: usize) -> Result<Plan, Error> {
    let without = features_left_out().unwrap_or_default();
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
    let demand = Demand {
        workers,
        addresses,
        ahead: ahead.sum(),
        datagrams_only: config
            .listeners
            .iter()
            .all(|it| it.protocol.udp().is_some()),
        admin: config.admin.listen.is_some(),
    };
    let most = capacity::max_connections(descriptors, demand);
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

/// The configuration with every `max_sessions` a number that descriptors and local ports hold, where the
/// process has `max_connections` at most.
fn with_max_sessions(config: &Config, max_connections: usize) -> Result<Config, Error> {
    let mut config = config.clone();
    let ports = limits::local_ports();
    for listener in &mut config.listeners {
        let Protocol::Udp(udp) = &mut listener.protocol else {
            continue;
        };
        let sources = config.upstreams[listener.upstream].source.len();
        let most = capacity::max_sessions(max_connections, ports, sources);
        let wanted = udp.max_sessions.map_or(most, usize::from);
        if wanted > most {
            return Err(Error::TooManySessions {
                listener: listener.name.clone(),
                wanted,
                most,
                ports,
            });
        }
        udp.max_sessions = NonZeroUsize::new(wanted);
    }
    Ok(config)
}

/// Tells how many sessions of datagrams there may be.
fn tell_max_sessions(config: &Config) {
    for listener in &config.listeners {
        if let Some(max_sessions) = listener.protocol.udp().and_then(|udp| udp.max_sessions) {
            tracing::info!(listener = %listener.name, max_sessions, "takes datagrams");
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
    /// `udp.max_sessions` needs more descriptors or local ports than there are.
    TooManySessions {
        /// The listener's name.
        listener: Arc<str>,
        /// Sessions asked for.
        wanted: usize,
        /// Sessions that fit.
        most: usize,
        /// Local ports of an address.
        ports: usize,
    },
    /// A thread, a descriptor or a signal handler could not be had.
    Resources(io::Error),
    /// RINGRESS_WITHOUT names a feature there isn't.
    Feature(String),
    /// A worker failed while running.
    Worker(String),
    /// What another process hands over can't be taken.
    Upgrade(String),
    /// The service manager's sockets can't be used.
    Activation(activation::Error),
    /// The process can't become who it should be, or lacks a right then.
    Privileges(privileges::Error),
    /// The access log's file can't be opened.
    AccessLog(PathBuf, io::Error),
    /// The control socket can't be had.
    ControlSocket(socket::server::ListenError),
    /// The admin endpoint can't be had.
    Admin(admin::ListenError),
}

impl Error {
    fn upgrade(error: impl fmt::Display) -> Self {
        Self::Upgrade(error.to_string())
    }
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
            Self::TooManySessions {
                listener,
                wanted,
                most,
                ports,
            } => write!(
                f,
                "max_sessions = {wanted} of listener \"{listener}\" is more than fits, which is {most}: a \
                 session takes one of the process's max_connections, and one of the {ports} local ports of \
                 its source address; lower it, raise the limit of descriptors (`ulimit -n`, LimitNOFILE=) \
                 or net.ipv4.ip_local_port_range, or give its upstream several addresses as `source`"
            ),
            Self::Resources(error) => write!(f, "can't start: {error}"),
            Self::Feature(name) => write!(f, "{WITHOUT} names \"{name}\", which is no feature"),
            Self::Worker(what) => write!(f, "can't go on: {what}"),
            Self::Upgrade(error) => write!(f, "can't take over: {error}"),
            Self::Activation(error) => error.fmt(f),
            Self::Privileges(error) => error.fmt(f),
            Self::AccessLog(path, error) => {
                write!(f, "can't open the access log {}: {error}", path.display())
            }
            Self::ControlSocket(error) => error.fmt(f),
            Self::Admin(error) => error.fmt(f),
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
