//! Every table and key of the configuration contract: those that this version reads, and those that
//! it does not have yet. A key moves from `not_yet` to `keys` with the feature that reads it.

use crate::policy::balance::ALGORITHMS;

/// A table of the file.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Its path; `NAME` stands for the name that the file chooses, "" for the file itself.
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
    ROOT, RUNTIME, LOG, LISTENER, TIMEOUTS, UPSTREAM, BACKEND, RETRY,
];

/// All keys that take one of a set of words.
pub const WORDS: &[Words] = &[LEVEL, FORMAT, PROTOCOL, BALANCE];

pub(super) const ROOT: Table = Table {
    name: "",
    keys: &["runtime", "log", "listeners", "upstreams"],
    not_yet: &["admin"],
};

pub(super) const RUNTIME: Table = Table {
    name: "runtime",
    keys: &[
        "workers",
        "pin_workers",
        "max_connections",
        "drain_timeout",
        "buffer_memory",
    ],
    not_yet: &["user", "group", "control_socket", "drain_delay"],
};

pub(super) const LOG: Table = Table {
    name: "log",
    keys: &["level", "format"],
    not_yet: &["access_log"],
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
        "timeouts",
    ],
    not_yet: &[
        "accept_proxy_protocol",
        "trusted_proxies",
        "allow",
        "deny",
        "rate_limit",
        "tls",
        "routes",
        "udp",
    ],
};

pub(super) const TIMEOUTS: Table = Table {
    name: "listeners.NAME.timeouts",
    keys: &["idle", "half_close"],
    not_yet: &["handshake"],
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
        "retry",
    ],
    not_yet: &[
        "send_proxy_protocol",
        "slow_start",
        "fail_open_below",
        "health_check",
        "outlier",
        "circuit_breaker",
        "queue",
        "pool",
        "tls",
    ],
};

pub(super) const BACKEND: Table = Table {
    name: "upstreams.NAME.backends",
    keys: &["address", "name", "weight"],
    not_yet: &["max_connections", "backup"],
};

pub(super) const RETRY: Table = Table {
    name: "upstreams.NAME.retry",
    keys: &["attempts"],
    not_yet: &["backoff", "max_backoff", "budget"],
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
    words: &["tcp"],
    not_yet: &["udp", "http"],
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
