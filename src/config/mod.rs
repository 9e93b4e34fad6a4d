//! The configuration as a model that can't be wrong: text is read by [`parse`], every finding is
//! reported at once by [`diagnostics`], and what comes out here needs no further check.

mod access_log;
mod admin;
mod backends;
pub mod defaults;
pub mod diagnostics;
pub mod diff;
mod duration;
pub mod effective;
mod endpoint;
mod file;
mod files;
mod health_check;
pub mod keys;
mod listeners;
mod networks;
mod policies;
mod proxies;
mod rate_limit;
mod resolve;
mod routes;
mod runtime;
mod secret;
mod section;
mod share;
mod syntax;
mod tls;
mod udp;
mod upstreams;
mod value;

use std::net::IpAddr;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub use ipnet::IpNet;

pub use self::access_log::AccessLog;
pub use self::admin::Token;
pub use self::diagnostics::Diagnostics;
pub use self::file::{load, load_with, parse};
pub use self::resolve::{KeepingResolver, Resolver, SystemResolver};
use crate::address::Address;
use crate::policy::balance::Algorithm;
use crate::policy::bucket::Rate;
use crate::policy::share::Share;
use crate::policy::{breaker, health, outlier, retry};
use crate::tls::{ClientSettings, ServerSettings};

/// A whole configuration. Listeners and upstreams stand in the order of the file; `Listener::upstream`
/// indexes `upstreams`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// Settings of the process.
    pub runtime: Runtime,
    /// What is logged and how.
    pub log: Log,
    /// `log.access_log`: where a line per session goes.
    pub access_log: AccessLog,
    /// The endpoint for operators.
    pub admin: Admin,
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
    /// How long sessions may go on after SIGTERM, from the end of `drain_delay` on.
    pub drain_timeout: Duration,
    /// How long clients are still accepted after SIGTERM; zero = not at all.
    pub drain_delay: Duration,
    /// Bytes of relay buffers per worker at most; `None` = derived from the machine's memory.
    pub buffer_memory: Option<NonZeroU64>,
    /// Whom the process becomes once everything is bound; `None` = it stays who it is. Whether there
    /// is such a user is not known here.
    pub user: Option<Arc<str>>,
    /// Its group; `None` = that of `user`. As above.
    pub group: Option<Arc<str>>,
    /// Where commands to the process are taken.
    pub control_socket: ControlSocket,
}

/// `runtime.control_socket`
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum ControlSocket {
    /// A path that follows from the configuration's.
    #[default]
    Auto,
    /// Nowhere.
    Off,
    /// Absolute, at most 107 bytes; no listener binds it.
    Path(Arc<Path>),
}

/// `[log]`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Log {
    /// The least severe level that is written.
    pub level: LogLevel,
    /// Lines for people or for machines.
    pub format: LogFormat,
}

/// `[admin]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Admin {
    /// Where it listens, a port of 0 being the kernel's choice; `None` = there is no endpoint.
    pub listen: Option<Address>,
    /// What others than users of the unix socket have to show; there is one wherever other machines reach
    /// the address.
    pub token: Option<Token>,
    /// Metrics at most; what is beyond is left out and counted.
    pub max_series: NonZeroU32,
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

impl LogLevel {
    /// From the most severe on.
    pub const ALL: [Self; 5] = [
        Self::Error,
        Self::Warn,
        Self::Info,
        Self::Debug,
        Self::Trace,
    ];

    /// As it stands in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// `log.format`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// One readable line per event.
    Text,
    /// One JSON object per line.
    Json,
}

impl LogFormat {
    /// As it stands in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// `[listeners.NAME]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listener {
    /// The table's name.
    pub name: Arc<str>,
    /// At least one address; none twice in a configuration for the same protocol, and no unix socket for
    /// datagrams.
    pub bind: Vec<Address>,
    /// What clients speak.
    pub protocol: Protocol,
    /// Index into [`Config::upstreams`]: where sessions go that no route is for.
    pub upstream: usize,
    /// Every connection begins with a header of the PROXY protocol, which is believed of these networks;
    /// `None` = none does. Empty only where all addresses are unix sockets: whoever may connect to one is
    /// believed.
    pub trusted_proxies: Option<Vec<IpNet>>,
    /// TLS is terminated.
    pub tls: Option<ServerSettings>,
    /// By name; the first that matches is taken. Without `tls` the ClientHello is looked at and passed on.
    pub routes: Vec<Route>,
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
    /// Networks that clients may come from; empty = everywhere. They may overlap and repeat; none holds
    /// IPv4 addresses written as IPv6.
    pub allow: Vec<IpNet>,
    /// Networks that clients may not come from; wins over `allow`. As above.
    pub deny: Vec<IpNet>,
    /// `[listeners.NAME.rate_limit]`
    pub rate_limit: RateLimit,
}

/// `listeners.NAME.protocol`, and what belongs to it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Protocol {
    /// Connections over TCP or a unix socket.
    #[default]
    Tcp,
    /// Datagrams.
    Udp(Udp),
}

impl Protocol {
    /// It is UDP: what belongs to that.
    pub fn udp(&self) -> Option<&Udp> {
        match self {
            Self::Tcp => None,
            Self::Udp(udp) => Some(udp),
        }
    }
}

/// `[listeners.NAME.udp]`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Udp {
    /// A session ends after no datagram in either direction for this long; not zero.
    pub session_timeout: Duration,
    /// Which datagrams are of one session.
    pub session_key: SessionKey,
    /// Every datagram goes to a backend of its own: a session is that of a client with a backend.
    pub per_packet: bool,
    /// Cap of sessions, exact over all workers; `None` = what descriptors and ports hold.
    pub max_sessions: Option<NonZeroUsize>,
    /// A session ends after so many replies; `None` = it doesn't.
    pub responses: Option<NonZeroU32>,
    /// Datagrams from ports below 1024 are dropped.
    pub reject_privileged_sources: bool,
}

/// `listeners.NAME.udp.session_key`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionKey {
    /// Those from one address and port.
    SourceIpPort,
    /// Those from one address; replies go where the last one came from.
    SourceIp,
}

/// `[listeners.NAME.rate_limit]`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RateLimit {
    /// New connections of the whole listener.
    pub connections: Option<Rate>,
    /// New connections of one client address.
    pub connections_per_ip: Option<Rate>,
    /// Datagrams of one client address.
    pub datagrams_per_ip: Option<Rate>,
    /// Bytes of a connection, in each direction.
    pub bandwidth: Option<Rate>,
    /// Leading bits of an IPv6 address that are one client, 1..=128.
    pub ipv6_prefix: u8,
    /// Client addresses that are kept count of.
    pub max_clients: NonZeroU32,
    /// Count what would be refused, and refuse nothing.
    pub dry_run: bool,
}

/// `[[listeners.NAME.routes]]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// Names in lower case, at least one; `*.example.com` = all names below that one.
    pub sni: Vec<Arc<str>>,
    /// Index into [`Config::upstreams`].
    pub upstream: usize,
}

/// `[listeners.NAME.timeouts]`; none is zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// No byte in either direction.
    pub idle: Duration,
    /// No byte for this long once one side has sent FIN.
    pub half_close: Duration,
    /// Of everything that comes before a backend is looked for: PROXY header, TLS handshake, ClientHello.
    pub handshake: Duration,
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
    pub balance: Algorithm,
    /// Time for one connection attempt.
    pub connect_timeout: Duration,
    /// Local addresses of connections to backends, used in turn; empty = the kernel chooses.
    pub source: Vec<IpAddr>,
    /// Idle time before TCP keepalive probes to backends; `None` = off.
    pub tcp_keepalive: Option<Duration>,
    /// Unacknowledged data for this long ends the session.
    pub tcp_user_timeout: Duration,
    /// Who hears by the PROXY protocol who the client is.
    pub announce: Announce,
    /// Backends are spoken TLS with.
    pub tls: Option<ClientSettings>,
    /// How long the weight of a backend that came back takes to be whole again; zero = no time.
    pub slow_start: Duration,
    /// Share of healthy backends under which health is ignored; zero = never.
    pub fail_open_below: Share,
    /// Active checks.
    pub health_check: Option<HealthCheck>,
    /// Passive checks.
    pub outlier: Option<outlier::Settings>,
    /// A breaker per backend.
    pub circuit_breaker: Option<breaker::Settings>,
    /// Further tries.
    pub retry: retry::Settings,
    /// Where sessions wait while every backend is full.
    pub queue: Queue,
    /// Connections that are open ahead.
    pub pool: Pool,
}

/// `send_proxy_protocol` and `proxy_protocol_datagrams`
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Announce {
    /// Nobody.
    #[default]
    Never,
    /// Each connection begins with a header of version 1. No listener for datagrams goes to such an upstream.
    V1,
    /// Each connection begins with a header of version 2, and the first datagram of a session.
    V2First,
    /// Each connection begins with a header of version 2, and every datagram.
    V2Every,
}

/// The highest weight of a backend.
pub const WEIGHT_MAX: u16 = 256;

/// One address of an upstream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backend {
    /// Unique in its upstream: the name given or else the address as written; if that is a host with
    /// several addresses, `NAME/ip:port`.
    pub name: Arc<str>,
    /// Where it is.
    pub address: Address,
    /// The host name that was written; `None` = it was an address.
    pub host: Option<Arc<str>>,
    /// 0..=[`WEIGHT_MAX`]; 0 = no new sessions.
    pub weight: u16,
    /// Cap of connections, exact over all workers; `None` = none.
    pub max_connections: Option<NonZeroUsize>,
    /// Used only when no other is ready.
    pub backup: bool,
}

/// `[upstreams.NAME.health_check]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    /// What is tried.
    pub probe: Probe,
    /// From one probe to the next.
    pub interval: Duration,
    /// The interval is longer or shorter by up to this share of it.
    pub jitter: Share,
    /// Of the whole probe.
    pub timeout: Duration,
    /// What its results mean.
    pub settings: health::Settings,
}

/// `health_check.type`, and what belongs to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Probe {
    /// A connection, and an exchange on it where one is asked for.
    Tcp(Exchange),
    /// A TLS handshake, and an exchange after it where one is asked for.
    Tls(Exchange),
    /// A datagram, and its answer.
    Udp(Exchange),
    /// `GET path`.
    Http {
        /// Begins with `/`.
        path: Arc<str>,
        /// The `Host` header; `None` = the backend's address.
        host: Option<Arc<str>>,
        /// Statuses that are a success; not empty.
        expect_status: Vec<RangeInclusive<u16>>,
    },
}

/// What a probe says and wants to hear.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Exchange {
    /// Sent first.
    pub send: Option<Arc<[u8]>>,
    /// What the reply must start with.
    pub expect: Option<Arc<[u8]>>,
}

/// `[upstreams.NAME.queue]`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Queue {
    /// Sessions that may wait, exact over all workers.
    pub max: usize,
    /// How long each may.
    pub timeout: Duration,
}

/// `[upstreams.NAME.pool]`
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pool {
    /// Connections that are kept open ahead, per backend and worker.
    pub preconnect: u32,
    /// One that was not used for so long is replaced.
    pub idle_timeout: Duration,
    /// One that has been open for so long is replaced.
    pub max_lifetime: Duration,
}
