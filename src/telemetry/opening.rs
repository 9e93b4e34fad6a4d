//! How sessions begin that have something before their first byte: a closed set, in counters.

/// What has come of a session's beginning, where it went on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Opening {
    /// A full handshake of TLS 1.2.
    Tls12,
    /// TLS 1.2, going on where an earlier session was.
    Tls12Resumed,
    /// A full handshake of TLS 1.3.
    Tls13,
    /// TLS 1.3, going on where an earlier session was.
    Tls13Resumed,
    /// A hello with a name, which is passed on.
    Named,
    /// A hello without a name: to the default upstream.
    NoName,
    /// No TLS: to the default upstream.
    NotTls,
    /// Nothing was said until `timeouts.handshake`: to the default upstream.
    Silent,
}

impl Opening {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Tls12,
        Self::Tls12Resumed,
        Self::Tls13,
        Self::Tls13Resumed,
        Self::Named,
        Self::NoName,
        Self::NotTls,
        Self::Silent,
    ];

    /// As it stands in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tls12 => "tls1.2",
            Self::Tls12Resumed => "tls1.2-resumed",
            Self::Tls13 => "tls1.3",
            Self::Tls13Resumed => "tls1.3-resumed",
            Self::Named => "named",
            Self::NoName => "no-name",
            Self::NotTls => "not-tls",
            Self::Silent => "silent",
        }
    }
}
