//! How requests and connections are lost.

use std::io::{self, ErrorKind};

use ringress::ring::{Flow, Socket};
use serde::Serialize;

use super::tls::Fault;

/// Losses by kind. Whoever counts them says of what.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Losses {
    /// Nobody listened.
    pub refused: u64,
    /// Ended with RST.
    pub reset: u64,
    /// Not connected, answered or ended in time.
    pub timed_out: u64,
    /// Ended with FIN before the whole answer was there.
    pub cut_short: u64,
    /// Another answer, or more than was asked for.
    pub wrong_bytes: u64,
    /// The handshake failed, or a record could not be read.
    pub tls_failed: u64,
    /// A full handshake where a resumed one was wanted; the answer was there.
    pub not_resumed: u64,
    /// The generator could not make the connection: no port, no descriptor. Nobody else's fault.
    pub not_made: u64,
}

impl Losses {
    /// Counts one.
    pub(super) fn count(&mut self, error: &io::Error) {
        let kind = match error.kind() {
            ErrorKind::InvalidData if let Some(fault) = Fault::within(error) => match fault {
                Fault::Failed(_) => &mut self.tls_failed,
                Fault::NotResumed => &mut self.not_resumed,
            },
            ErrorKind::ConnectionRefused => &mut self.refused,
            ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
                &mut self.reset
            }
            ErrorKind::TimedOut => &mut self.timed_out,
            ErrorKind::UnexpectedEof => &mut self.cut_short,
            ErrorKind::InvalidData => &mut self.wrong_bytes,
            _ => &mut self.not_made,
        };
        *kind += 1;
    }

    /// All kinds together.
    pub fn total(&self) -> u64 {
        self.kinds().iter().map(|(_, count)| count).sum()
    }

    /// The kinds in words, with their counts.
    pub(crate) fn kinds(&self) -> [(&'static str, u64); 8] {
        [
            ("refused", self.refused),
            ("reset", self.reset),
            ("timed out", self.timed_out),
            ("cut short", self.cut_short),
            ("wrong bytes", self.wrong_bytes),
            ("failed in TLS", self.tls_failed),
            ("not resumed", self.not_resumed),
            ("not made", self.not_made),
        ]
    }
}

/// Why a connection that should still be open is of no more use; `None` = it is.
pub(super) fn broken(socket: &Socket, flow: Flow) -> Option<io::Error> {
    match flow {
        Flow::Open => socket.send_error().map(io::Error::from_raw_os_error),
        Flow::Finished => Some(ErrorKind::UnexpectedEof.into()),
        Flow::Failed { errno, .. } | Flow::Broken(errno) => {
            Some(io::Error::from_raw_os_error(errno))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_told_apart_and_all_add_up() {
        let mut losses = Losses::default();
        let errors: [io::Error; 8] = [
            ErrorKind::ConnectionRefused.into(),
            ErrorKind::ConnectionReset.into(),
            ErrorKind::TimedOut.into(),
            ErrorKind::UnexpectedEof.into(),
            ErrorKind::InvalidData.into(),
            Fault::Failed(rustls::Error::DecryptError).into(),
            Fault::NotResumed.into(),
            ErrorKind::AddrNotAvailable.into(),
        ];
        for (times, error) in errors.iter().enumerate() {
            for _ in 0..=times {
                losses.count(error);
            }
        }
        let counts = losses.kinds().map(|(_, count)| count);
        assert_eq!(counts, [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(losses.total(), 36);
    }
}
