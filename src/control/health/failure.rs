//! Why a probe failed, in words for the log.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::tls::Fault;
use crate::upstream::lacks_resources;

/// Why a probe failed.
#[derive(Debug)]
pub(in crate::control) enum Failure {
    /// This machine had no descriptor, port or memory, or does not have the source address. It says
    /// nothing of the backend.
    NoResources(io::Error),
    /// Connecting, sending or receiving failed.
    Io(io::Error),
    /// No connection within the timeout.
    NotConnected { timeout: Duration },
    /// A connection, and no TLS on it within the timeout.
    NotSecured { timeout: Duration },
    /// TLS with the backend can't be begun, or not go on.
    Tls(Fault),
    /// The backend closed in the middle of the TLS handshake.
    ClosedInHandshake,
    /// A connection or a datagram, and no answer, or only a part of one, within the timeout.
    Silent { timeout: Duration, heard: Vec<u8> },
    /// The backend closed before its answer was whole.
    Closed { heard: Vec<u8> },
    /// The answer does not start as it should.
    Unexpected { heard: Vec<u8>, wanted: Vec<u8> },
    /// The answer is no HTTP.
    NotHttp {
        error: httparse::Error,
        heard: Vec<u8>,
    },
    /// The head of the HTTP answer is longer than so many bytes.
    LongHead { most: usize },
    /// An HTTP status that is not expected.
    Status(u16),
    /// There are no datagrams to a unix stream socket.
    DatagramsToUnix,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if lacks_resources(&error) {
            return Self::NoResources(error);
        }
        match error.downcast::<Fault>() {
            Ok(fault) => Self::Tls(fault),
            Err(error) => Self::Io(error),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoResources(error) | Self::Io(error) => write_error(error, f),
            Self::NotConnected { timeout } => write!(f, "no connection within {timeout:?}"),
            Self::NotSecured { timeout } => write!(f, "no TLS handshake within {timeout:?}"),
            Self::Tls(fault) => write!(f, "TLS: {fault}"),
            Self::ClosedInHandshake => f.write_str("TLS: closed during the handshake"),
            Self::Silent { timeout, heard } if heard.is_empty() => {
                write!(f, "no answer within {timeout:?}")
            }
            Self::Silent { timeout, heard } => {
                write!(f, "only {} within {timeout:?}", Quoted(heard))
            }
            Self::Closed { heard } if heard.is_empty() => f.write_str("closed without an answer"),
            Self::Closed { heard } => write!(f, "closed after {}", Quoted(heard)),
            Self::Unexpected { heard, wanted } => {
                write!(
                    f,
                    "answered {} instead of {}",
                    Quoted(heard),
                    Quoted(wanted)
                )
            }
            Self::NotHttp { error, heard } => write!(f, "not HTTP: {error} in {}", Quoted(heard)),
            Self::LongHead { most } => write!(f, "the head of the answer is over {most} bytes"),
            Self::Status(status) => write!(f, "HTTP status {status}"),
            Self::DatagramsToUnix => f.write_str("udp can't be checked over a unix socket"),
        }
    }
}

/// The usual ones in plain words, without the number.
fn write_error(error: &io::Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable,
        NetworkUnreachable, NotFound, PermissionDenied,
    };
    match error.kind() {
        NotFound => f.write_str("no such socket"),
        kind @ (ConnectionRefused | ConnectionReset | ConnectionAborted | BrokenPipe
        | HostUnreachable | NetworkUnreachable | PermissionDenied) => write!(f, "{kind}"),
        _ => write!(f, "{error}"),
    }
}

/// Bytes as text in quotes, escaped; only the first of many.
struct Quoted<'a>(&'a [u8]);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = &self.0[..self.0.len().min(SHOWN)];
        let more = if shown.len() < self.0.len() {
            "…"
        } else {
            ""
        };
        write!(f, "\"{}{more}\"", shown.escape_ascii())
    }
}

/// Bytes of an answer that a line of the log shows.
pub(super) const SHOWN: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_in_plain_words() {
        let os = |errno| Failure::from(io::Error::from_raw_os_error(errno)).to_string();
        assert_eq!(os(libc::ECONNREFUSED), "connection refused");
        assert_eq!(os(libc::ENETUNREACH), "network unreachable");
        assert_eq!(os(libc::ENOENT), "no such socket");
        assert_eq!(os(libc::EPROTO), "Protocol error (os error 71)");
        let silent = |heard: &[u8]| Failure::Silent {
            timeout: Duration::from_millis(1500),
            heard: heard.to_vec(),
        };
        assert_eq!(silent(b"").to_string(), "no answer within 1.5s");
        assert_eq!(silent(b"PO").to_string(), "only \"PO\" within 1.5s");
    }

    #[test]
    fn an_answer_is_quoted_escaped_and_cut() {
        let failure = Failure::Unexpected {
            heard: [b"-ERR\r\n\xff\"".as_slice(), &[b'x'; 100]].concat(),
            wanted: b"PONG".to_vec(),
        };
        let cut = "x".repeat(SHOWN - 8);
        assert_eq!(
            failure.to_string(),
            format!("answered \"-ERR\\r\\n\\xff\\\"{cut}…\" instead of \"PONG\"")
        );
    }

    #[test]
    fn what_this_machine_lacks_is_not_the_backends_failure() {
        for errno in [
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOBUFS,
            libc::EADDRNOTAVAIL,
        ] {
            let failure = Failure::from(io::Error::from_raw_os_error(errno));
            assert!(matches!(failure, Failure::NoResources(_)), "{failure}");
        }
        let refused = Failure::from(io::Error::from_raw_os_error(libc::ECONNREFUSED));
        assert!(matches!(refused, Failure::Io(_)));
    }
}
