//! The configuration as a model that can't be wrong: text is read by [`parse`], every finding is
//! reported at once by [`diagnostics`], and what comes out here needs no further check.

pub mod diagnostics;
pub mod diff;
mod endpoint;
mod file;
pub mod keys;
mod listeners;
mod resolve;
mod section;
mod syntax;
mod upstreams;
mod value;

use std::net::IpAddr;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

pub use self::diagnostics::Diagnostics;
pub use self::file::{load, parse};
pub use self::resolve::{Resolver, SystemResolver};
use crate::address::Address;

/// A whole configuration. Listeners and upstreams stand in the order of the file; `Listener::upstream`
/// indexes `upstreams`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Settings of the process.
    pub runtime: Runtime,
    /// What is logged and how.
    pub log: Log,
    /// At least one.
    pub listeners: Vec<Listener>,
    /// Every upstream of the file, used or not.
    pub upstreams: Vec<Upstream>,
}

/// `[runtime]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Runtime {
    /// Number of workers; `None` = one per usable CPU.
    pub workers: Option<NonZeroUsize>,
    /// One CPU per worker.
    pub pin_workers: bool,
    /// Cap of client connections of the process; `None` = derived from RLIMIT_NOFILE.
    pub max_connections: Option<NonZeroUsize>,
    /// How long sessions may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// Bytes of relay buffers per worker at most; `None` = derived from the machine's memory.
    pub buffer_memory: Option<NonZeroU64>,
}

/// `[log]`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Log {
    /// The least severe level that is written.
    pub level: LogLevel,
    /// Lines for people or for machines.
    pub format: LogFormat,
}

/// `log.level`
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// `log.format`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// One readable line per event.
    Text,
    /// One JSON object per line.
    Json,
}

/// `[listeners.NAME]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listener {
    /// The table's name.
    pub name: Arc<str>,
    /// At least one address; none twice in a configuration.
    pub bind: Vec<Address>,
    /// Index into [`Config::upstreams`].
    pub upstream: usize,
    /// Length of the kernel's accept queue, per worker.
    pub backlog: NonZeroU32,
    /// Cap of client connections, exact over all workers; `None` = only the process's.
    pub max_connections: Option<NonZeroUsize>,
    /// Idle time before TCP keepalive probes to clients; `None` = off.
    pub tcp_keepalive: Option<Duration>,
    /// TCP congestion control algorithm; `None` = the system's.
    pub congestion: Option<Arc<str>>,
    /// `[::]` binds take IPv6 only.
    pub ipv6_only: bool,
    /// Permission bits of unix sockets.
    pub unix_mode: u32,
    /// `[listeners.NAME.timeouts]`
    pub timeouts: Timeouts,
}

/// `[listeners.NAME.timeouts]`; none is zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// No byte in either direction.
    pub idle: Duration,
    /// No byte for this long once one side has sent FIN.
    pub half_close: Duration,
}

/// `[upstreams.NAME]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Upstream {
    /// The table's name.
    pub name: Arc<str>,
    /// Resolved, in the order of the file; at least one, none twice. A host name that resolves to
    /// several addresses stands here once per address.
    pub backends: Vec<Backend>,
    /// How a backend is chosen.
    pub balance: Balance,
    /// Time for one connection attempt.
    pub connect_timeout: Duration,
    /// Local addresses of connections to backends, used in turn; empty = the kernel chooses.
    pub source: Vec<IpAddr>,
    /// Idle time before TCP keepalive probes to backends; `None` = off.
    pub tcp_keepalive: Option<Duration>,
    /// Unacknowledged data for this long ends the session.
    pub tcp_user_timeout: Duration,
    /// `retry.attempts`: further tries after the first, each on another backend.
    pub retry_attempts: u32,
}

/// One address of an upstream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backend {
    /// Unique in its upstream: the name given or else the address as written; if that is a host with
    /// several addresses, `NAME/ip:port`.
    pub name: Arc<str>,
    /// Where it is.
    pub address: Address,
    /// 0..=256; 0 = no new sessions.
    pub weight: u16,
}

/// `upstreams.NAME.balance`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Balance {
    /// Smooth weighted round robin, exact over all workers.
    RoundRobin,
}
