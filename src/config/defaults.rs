//! What a configuration means where it says nothing: the defaults of the contract, once.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use super::{
    Admin, Announce, Backend, ControlSocket, Exchange, HealthCheck, Listener, Log, LogFormat,
    LogLevel, Pool, Probe, Protocol, Queue, RateLimit, Runtime, SessionKey, Timeouts, Udp,
    Upstream,
};
use crate::address::Address;
use crate::policy::balance::Algorithm;
use crate::policy::share::Share;
use crate::policy::{breaker, health, outlier, retry};

/// `health_check.path`
pub const PATH: &str = "/";

/// `health_check.expect_status`
pub const EXPECT_STATUS: RangeInclusive<u16> = 200..=399;

/// `[upstreams.NAME.outlier]` without a key.
pub const OUTLIER: outlier::Settings = outlier::Settings {
    consecutive_failures: count(5),
    eject_for: Duration::from_secs(30),
    max_eject_for: Duration::from_mins(5),
    max_ejected: Share::from_ppm(500_000),
};

/// `[upstreams.NAME.circuit_breaker]` without a key.
pub const CIRCUIT_BREAKER: breaker::Settings = breaker::Settings {
    failure_ratio: Share::from_ppm(500_000),
    min_requests: count(20),
    window: Duration::from_secs(10),
    open_for: Duration::from_secs(10),
    half_open_requests: count(3),
};

/// `[upstreams.NAME.retry]` without a key, or left out.
pub const RETRY: retry::Settings = retry::Settings {
    attempts: 1,
    backoff: Duration::from_millis(25),
    max_backoff: Duration::from_millis(250),
    budget: Share::from_ppm(200_000),
};

/// `[upstreams.NAME.queue]` without a key, or left out.
pub const QUEUE: Queue = Queue {
    max: 1024,
    timeout: Duration::from_secs(1),
};

/// `[upstreams.NAME.pool]` without a key, or left out.
pub const POOL: Pool = Pool {
    preconnect: 0,
    idle_timeout: Duration::from_mins(1),
    max_lifetime: Duration::from_hours(1),
};

impl Default for Runtime {
    /// `[runtime]` without a key, or left out.
    fn default() -> Self {
        Self {
            workers: None,
            pin_workers: true,
            max_connections: None,
            drain_timeout: Duration::from_mins(1),
            drain_delay: Duration::ZERO,
            buffer_memory: None,
            user: None,
            group: None,
            control_socket: ControlSocket::default(),
        }
    }
}

impl Default for Log {
    /// `[log]` without a key, or left out.
    fn default() -> Self {
        Self {
            level: LogLevel::Info,
            format: LogFormat::Text,
        }
    }
}

impl Default for Admin {
    /// `[admin]` without a key, or left out.
    fn default() -> Self {
        Self {
            listen: None,
            token: None,
            max_series: count(50_000),
        }
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        Self {
            connections: None,
            connections_per_ip: None,
            datagrams_per_ip: None,
            bandwidth: None,
            ipv6_prefix: 64,
            max_clients: count(100_000),
            dry_run: false,
        }
    }
}

impl Default for Udp {
    /// `[listeners.NAME.udp]` without a key, or left out.
    fn default() -> Self {
        Self {
            session_timeout: Duration::from_mins(1),
            session_key: SessionKey::SourceIpPort,
            per_packet: false,
            max_sessions: None,
            responses: None,
            reject_privileged_sources: false,
        }
    }
}

impl Default for HealthCheck {
    /// `[upstreams.NAME.health_check]` without a key.
    fn default() -> Self {
        Self {
            probe: Probe::Tcp(Exchange::default()),
            interval: Duration::from_secs(5),
            jitter: Share::from_ppm(200_000),
            timeout: Duration::from_secs(2),
            settings: health::Settings {
                rise: count(2),
                fall: count(3),
                start: health::Start::Up,
            },
        }
    }
}

impl Listener {
    /// A listener with every default.
    pub fn new(name: Arc<str>, bind: Vec<Address>, upstream: usize) -> Self {
        Self {
            name,
            bind,
            protocol: Protocol::Tcp,
            upstream,
            trusted_proxies: None,
            tls: None,
            routes: Vec::new(),
            backlog: count(4096),
            max_connections: None,
            tcp_keepalive: Some(Duration::from_mins(1)),
            congestion: None,
            ipv6_only: true,
            unix_mode: 0o660,
            timeouts: Timeouts {
                idle: Duration::from_mins(10),
                half_close: Duration::from_secs(30),
                handshake: Duration::from_secs(10),
            },
            allow: Vec::new(),
            deny: Vec::new(),
            rate_limit: RateLimit::default(),
        }
    }
}

impl Upstream {
    /// An upstream with every default.
    pub fn new(name: Arc<str>, backends: Vec<Backend>) -> Self {
        Self {
            name,
            backends,
            balance: Algorithm::default(),
            connect_timeout: Duration::from_secs(5),
            source: Vec::new(),
            tcp_keepalive: Some(Duration::from_mins(1)),
            tcp_user_timeout: Duration::from_secs(30),
            announce: Announce::Never,
            tls: None,
            slow_start: Duration::ZERO,
            fail_open_below: Share::default(),
            health_check: None,
            outlier: None,
            circuit_breaker: None,
            retry: RETRY,
            queue: QUEUE,
            pool: POOL,
        }
    }
}

impl Backend {
    /// A backend with every default.
    pub fn new(name: Arc<str>, address: Address) -> Self {
        Self {
            name,
            address,
            host: None,
            weight: 1,
            max_connections: None,
            backup: false,
        }
    }
}

/// `number` is a literal above 0.
const fn count(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).expect("a default that is not zero")
}
