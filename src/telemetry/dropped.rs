//! Why a datagram went no further: a closed set, in counters. Nothing is dropped in silence.

/// The one reason why a datagram was dropped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Dropped {
    /// The kernel's queue of the socket was full: the worker did not keep up.
    Overflow,
    /// The buffer had no room for all of it.
    Truncated,
    /// It would have begun a session, and the process is at `runtime.max_connections`.
    ProcessFull,
    /// The same, and the listener is at `max_sessions` or `max_connections`.
    ListenerFull,
    /// The client's address may not send.
    Denied,
    /// It claims to come from the listener itself: its answer would be the next question.
    Loop,
    /// It came from a port below 1024, with `reject_privileged_sources`.
    PrivilegedSource,
    /// It would have begun a session above the listener's rate of new ones.
    RateLimit,
    /// The same, above the client's rate.
    ClientRateLimit,
    /// The client's address was above its rate of datagrams.
    DatagramRateLimit,
    /// No backend was ready, or each that was tried refused.
    NoBackend,
    /// Every backend was full.
    BackendsFull,
    /// This machine had no descriptor, port or memory for a session.
    NoResources,
    /// There was no room in the kernel to send it.
    NoRoom,
    /// It was longer than the way takes.
    TooLong,
    /// There was no way to where it was to go.
    Unroutable,
    /// It would have begun a session, and the listener takes none any more.
    Draining,
    /// The backend has sent it when its session was over.
    Unwanted,
}

impl Dropped {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 18] = [
        Self::Overflow,
        Self::Truncated,
        Self::ProcessFull,
        Self::ListenerFull,
        Self::Denied,
        Self::Loop,
        Self::PrivilegedSource,
        Self::RateLimit,
        Self::ClientRateLimit,
        Self::DatagramRateLimit,
        Self::NoBackend,
        Self::BackendsFull,
        Self::NoResources,
        Self::NoRoom,
        Self::TooLong,
        Self::Unroutable,
        Self::Draining,
        Self::Unwanted,
    ];

    /// As it stands in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Overflow => "overflow",
            Self::Truncated => "truncated",
            Self::ProcessFull => "process-full",
            Self::ListenerFull => "listener-full",
            Self::Denied => "denied",
            Self::Loop => "loop",
            Self::PrivilegedSource => "privileged-source",
            Self::RateLimit => "rate-limit",
            Self::ClientRateLimit => "client-rate-limit",
            Self::DatagramRateLimit => "datagram-rate-limit",
            Self::NoBackend => "no-backend",
            Self::BackendsFull => "backends-full",
            Self::NoResources => "no-resources",
            Self::NoRoom => "no-room",
            Self::TooLong => "too-long",
            Self::Unroutable => "unroutable",
            Self::Draining => "draining",
            Self::Unwanted => "unwanted",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reasons_number_is_its_place() {
        for (place, dropped) in Dropped::ALL.into_iter().enumerate() {
            assert_eq!(dropped as usize, place);
        }
    }
}
