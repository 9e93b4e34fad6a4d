//! Why a session ended: a closed set, in logs and counters. There is no "unknown".

/// The one reason of a session's end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Reason {
    /// Both sides finished in order, the client first.
    ClientClosed,
    /// Both sides finished in order, the backend first.
    BackendClosed,
    /// The client reset the connection.
    ClientReset,
    /// The backend reset the connection.
    BackendReset,
    /// The client can't be reached any more (keepalive or unacknowledged data).
    ClientLost,
    /// The backend can't be reached any more (keepalive or unacknowledged data).
    BackendLost,
    /// No byte for `timeouts.idle`, or no datagram for `udp.session_timeout`.
    Idle,
    /// No byte for `timeouts.half_close` after one side had finished.
    HalfClose,
    /// Every backend that was tried refused, or there was none to try.
    NoBackend,
    /// The last backend tried did not answer within `connect_timeout`.
    ConnectTimeout,
    /// The process is at `runtime.max_connections`.
    ProcessFull,
    /// The listener is at its `max_connections`.
    ListenerFull,
    /// The client's address may not connect.
    Denied,
    /// The listener was above its rate of new connections.
    RateLimit,
    /// The client's address was above its rate of new connections.
    ClientRateLimit,
    /// Every backend was full, and as many sessions waited as may.
    QueueFull,
    /// Every backend stayed full for `queue.timeout`.
    QueueTimeout,
    /// This machine had no descriptor, port or memory for the backend's side.
    NoResources,
    /// Still open at `drain_timeout`.
    Drained,
    /// The backend has sent as many datagrams as `udp.responses` says.
    Answered,
    /// The backend takes no datagrams (ICMP), and no other was to be had.
    BackendRefused,
    /// The client left before its PROXY header, its TLS handshake or its hello was whole.
    ClientLeft,
    /// The client's PROXY header, TLS handshake or hello was not whole within `timeouts.handshake`.
    HandshakeTimeout,
    /// A PROXY header is required, and the peer is none of `trusted_proxies`.
    UntrustedProxy,
    /// What should have been a PROXY header is none.
    BadProxyHeader,
    /// What should have been a ClientHello is malformed.
    BadHello,
    /// The ClientHello is longer than 16 KiB.
    LongHello,
    /// TLS with the client could not be begun or go on.
    ClientTls,
    /// The client's connection ended without the end that TLS has (close_notify).
    ClientTruncated,
    /// TLS with the last backend that was tried could not be begun, or not go on.
    BackendTls,
    /// The backend's connection ended without the end that TLS has (close_notify).
    BackendTruncated,
    /// The worker that had it panicked.
    WorkerPanicked,
}

impl Reason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 32] = [
        Self::ClientClosed,
        Self::BackendClosed,
        Self::ClientReset,
        Self::BackendReset,
        Self::ClientLost,
        Self::BackendLost,
        Self::Idle,
        Self::HalfClose,
        Self::NoBackend,
        Self::ConnectTimeout,
        Self::ProcessFull,
        Self::ListenerFull,
        Self::Denied,
        Self::RateLimit,
        Self::ClientRateLimit,
        Self::QueueFull,
        Self::QueueTimeout,
        Self::NoResources,
        Self::Drained,
        Self::Answered,
        Self::BackendRefused,
        Self::ClientLeft,
        Self::HandshakeTimeout,
        Self::UntrustedProxy,
        Self::BadProxyHeader,
        Self::BadHello,
        Self::LongHello,
        Self::ClientTls,
        Self::ClientTruncated,
        Self::BackendTls,
        Self::BackendTruncated,
        Self::WorkerPanicked,
    ];

    /// The client was turned away before it had a backend: by a rule, or for want of room.
    pub const fn is_refusal(self) -> bool {
        matches!(
            self,
            Self::ProcessFull
                | Self::ListenerFull
                | Self::Denied
                | Self::RateLimit
                | Self::ClientRateLimit
                | Self::QueueFull
                | Self::QueueTimeout
                | Self::NoResources
                | Self::UntrustedProxy
        )
    }

    /// As it stands in logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClientClosed => "client-closed",
            Self::BackendClosed => "backend-closed",
            Self::ClientReset => "client-reset",
            Self::BackendReset => "backend-reset",
            Self::ClientLost => "client-lost",
            Self::BackendLost => "backend-lost",
            Self::Idle => "idle",
            Self::HalfClose => "half-close",
            Self::NoBackend => "no-backend",
            Self::ConnectTimeout => "connect-timeout",
            Self::ProcessFull => "process-full",
            Self::ListenerFull => "listener-full",
            Self::Denied => "denied",
            Self::RateLimit => "rate-limit",
            Self::ClientRateLimit => "client-rate-limit",
            Self::QueueFull => "queue-full",
            Self::QueueTimeout => "queue-timeout",
            Self::NoResources => "no-resources",
            Self::Drained => "drained",
            Self::Answered => "answered",
            Self::BackendRefused => "backend-refused",
            Self::ClientLeft => "client-left",
            Self::HandshakeTimeout => "handshake-timeout",
            Self::UntrustedProxy => "untrusted-proxy",
            Self::BadProxyHeader => "bad-proxy-header",
            Self::BadHello => "bad-hello",
            Self::LongHello => "long-hello",
            Self::ClientTls => "client-tls",
            Self::ClientTruncated => "client-truncated",
            Self::BackendTls => "backend-tls",
            Self::BackendTruncated => "backend-truncated",
            Self::WorkerPanicked => "worker-panicked",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reasons_number_is_its_place() {
        for (place, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, place);
        }
    }
}
