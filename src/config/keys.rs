//! Every table and key of the configuration contract: those that this version reads, and those that
//! it does not have yet. A key moves from `not_yet` to `keys` with the feature that reads it.

use crate::policy::balance::ALGORITHMS;

/// A table of the file.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Its path; `NAME` stands for the name that the file chooses, `LIMIT` for any of the limits, ""
    /// for the file itself.
    pub name: &'static str,
    /// Keys and tables that are read.
    pub keys: &'static [&'static str],
    /// Keys and tables that are refused as not available yet, whatever their value.
    pub not_yet: &'static [&'static str],
}

/// A key whose value is one of a set of words, some of which are not available yet.
#[derive(Clone, Copy, Debug)]
pub struct Words {
    /// Path of the key.
    pub name: &'static str,
    /// Words that are accepted.
    pub words: &'static [&'static str],
    /// Words that are refused as not available yet.
    pub not_yet: &'static [&'static str],
}

/// All tables.
pub const TABLES: &[Table] = &[
    ROOT,
    RUNTIME,
    LOG,
    ADMIN,
    LISTENER,
    TIMEOUTS,
    UDP,
    RATE_LIMIT,
    RATE,
    TLS,
    CERTIFICATE,
    ROUTE,
    UPSTREAM,
    BACKEND,
    HEALTH_CHECK,
    OUTLIER,
    CIRCUIT_BREAKER,
    RETRY,
    QUEUE,
    POOL,
    UPSTREAM_TLS,
];

/// All keys that take one of a set of words.
pub const WORDS: &[Words] = &[
    LEVEL,
    FORMAT,
    PROTOCOL,
    ACCEPT_PROXY,
    CLIENT_AUTH,
    MIN_VERSION,
    SESSION_KEY,
    MODE,
    BALANCE,
    PROXY_PROTOCOL,
    ANNOUNCED,
    PROBE,
    START,
];

pub(super) const ROOT: Table = Table {
    name: "",
    keys: &["runtime", "log", "admin", "listeners", "upstreams"],
    not_yet: &[],
};

pub(super) const RUNTIME: Table = Table {
    name: "runtime",
    keys: &[
        "workers",
        "pin_workers",
        "max_connections",
        "drain_timeout",
        "drain_delay",
        "buffer_memory",
        "user",
        "group",
        "control_socket",
    ],
    not_yet: &[],
};

pub(super) const LOG: Table = Table {
    name: "log",
    keys: &["level", "format", "access_log"],
    not_yet: &[],
};

pub(super) const ADMIN: Table = Table {
    name: "admin",
    keys: &["listen", "token", "max_series"],
    not_yet: &[],
};

pub(super) const LISTENER: Table = Table {
    name: "listeners.NAME",
    keys: &[
        "bind",
        "protocol",
        "upstream",
        "backlog",
        "max_connections",
        "tcp_keepalive",
        "congestion",
        "ipv6_only",
        "unix_mode",
        "accept_proxy_protocol",
        "trusted_proxies",
        "allow",
        "deny",
        "timeouts",
        "rate_limit",
        "tls",
        "routes",
        "udp",
    ],
    not_yet: &[],
};

pub(super) const TIMEOUTS: Table = Table {
    name: "listeners.NAME.timeouts",
    keys: &["idle", "half_close", "handshake"],
    not_yet: &[],
};

pub(super) const UDP: Table = Table {
    name: "listeners.NAME.udp",
    keys: &[
        "session_timeout",
        "session_key",
        "mode",
        "max_sessions",
        "responses",
        "reject_privileged_sources",
    ],
    not_yet: &[],
};

pub(super) const RATE_LIMIT: Table = Table {
    name: "listeners.NAME.rate_limit",
    keys: &[
        "connections",
        "connections_per_ip",
        "datagrams_per_ip",
        "bandwidth",
        "ipv6_prefix",
        "max_clients",
        "dry_run",
    ],
    not_yet: &["requests_per_ip"],
};

pub(super) const RATE: Table = Table {
    name: "listeners.NAME.rate_limit.LIMIT",
    keys: &["rate", "burst"],
    not_yet: &[],
};

pub(super) const TLS: Table = Table {
    name: "listeners.NAME.tls",
    keys: &[
        "certificates",
        "client_auth",
        "client_ca",
        "min_version",
        "alpn",
        "tickets",
    ],
    not_yet: &[],
};

pub(super) const CERTIFICATE: Table = Table {
    name: "listeners.NAME.tls.certificates",
    keys: &["cert", "key"],
    not_yet: &[],
};

pub(super) const ROUTE: Table = Table {
    name: "listeners.NAME.routes",
    keys: &["sni", "upstream"],
    not_yet: &["host", "path"],
};

pub(super) const UPSTREAM: Table = Table {
    name: "upstreams.NAME",
    keys: &[
        "backends",
        "balance",
        "connect_timeout",
        "source",
        "tcp_keepalive",
        "tcp_user_timeout",
        "send_proxy_protocol",
        "proxy_protocol_datagrams",
        "slow_start",
        "fail_open_below",
        "health_check",
        "outlier",
        "circuit_breaker",
        "retry",
        "queue",
        "pool",
        "tls",
    ],
    not_yet: &[],
};

pub(super) const BACKEND: Table = Table {
    name: "upstreams.NAME.backends",
    keys: &["address", "name", "weight", "max_connections", "backup"],
    not_yet: &[],
};

pub(super) const HEALTH_CHECK: Table = Table {
    name: "upstreams.NAME.health_check",
    keys: &[
        "type",
        "interval",
        "jitter",
        "timeout",
        "rise",
        "fall",
        "start",
        "path",
        "host",
        "expect_status",
        "send",
        "expect",
    ],
    not_yet: &[],
};

pub(super) const OUTLIER: Table = Table {
    name: "upstreams.NAME.outlier",
    keys: &[
        "consecutive_failures",
        "eject_for",
        "max_eject_for",
        "max_ejected",
    ],
    not_yet: &[],
};

pub(super) const CIRCUIT_BREAKER: Table = Table {
    name: "upstreams.NAME.circuit_breaker",
    keys: &[
        "failure_ratio",
        "min_requests",
        "window",
        "open_for",
        "half_open_requests",
    ],
    not_yet: &[],
};

pub(super) const RETRY: Table = Table {
    name: "upstreams.NAME.retry",
    keys: &["attempts", "backoff", "max_backoff", "budget"],
    not_yet: &[],
};

pub(super) const QUEUE: Table = Table {
    name: "upstreams.NAME.queue",
    keys: &["max", "timeout"],
    not_yet: &[],
};

pub(super) const POOL: Table = Table {
    name: "upstreams.NAME.pool",
    keys: &["preconnect", "idle_timeout", "max_lifetime"],
    not_yet: &["max_idle", "max_requests"],
};

pub(super) const UPSTREAM_TLS: Table = Table {
    name: "upstreams.NAME.tls",
    keys: &["server_name", "ca", "client_cert", "client_key", "verify"],
    not_yet: &[],
};

pub(super) const LEVEL: Words = Words {
    name: "log.level",
    words: &["error", "warn", "info", "debug", "trace"],
    not_yet: &[],
};

pub(super) const FORMAT: Words = Words {
    name: "log.format",
    words: &["text", "json"],
    not_yet: &[],
};

pub(super) const PROTOCOL: Words = Words {
    name: "listeners.NAME.protocol",
    words: &["tcp", "udp"],
    not_yet: &["http"],
};

pub(super) const ACCEPT_PROXY: Words = Words {
    name: "listeners.NAME.accept_proxy_protocol",
    words: &["off", "require"],
    not_yet: &[],
};

pub(super) const CLIENT_AUTH: Words = Words {
    name: "listeners.NAME.tls.client_auth",
    words: &["off", "optional", "required"],
    not_yet: &[],
};

pub(super) const MIN_VERSION: Words = Words {
    name: "listeners.NAME.tls.min_version",
    words: &["1.2", "1.3"],
    not_yet: &[],
};

pub(super) const SESSION_KEY: Words = Words {
    name: "listeners.NAME.udp.session_key",
    words: &["source-ip-port", "source-ip"],
    not_yet: &[],
};

pub(super) const MODE: Words = Words {
    name: "listeners.NAME.udp.mode",
    words: &["session", "per-packet"],
    not_yet: &[],
};

pub(super) const BALANCE: Words = Words {
    name: "upstreams.NAME.balance",
    words: &BALANCE_WORDS,
    not_yet: &[],
};

const BALANCE_WORDS: [&str; ALGORITHMS.len()] = {
    let mut words = [""; ALGORITHMS.len()];
    let mut place = 0;
    while place < words.len() {
        words[place] = ALGORITHMS[place].name;
        place += 1;
    }
    words
};

pub(super) const PROXY_PROTOCOL: Words = Words {
    name: "upstreams.NAME.send_proxy_protocol",
    words: &["off", "v1", "v2"],
    not_yet: &[],
};

pub(super) const ANNOUNCED: Words = Words {
    name: "upstreams.NAME.proxy_protocol_datagrams",
    words: &["every", "first"],
    not_yet: &[],
};

pub(super) const PROBE: Words = Words {
    name: "upstreams.NAME.health_check.type",
    words: &["tcp", "tls", "udp", "http"],
    not_yet: &[],
};

pub(super) const START: Words = Words {
    name: "upstreams.NAME.health_check.start",
    words: &["up", "down", "checked"],
    not_yet: &[],
};
