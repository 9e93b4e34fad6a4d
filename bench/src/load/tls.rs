//! TLS on the generator's side: what is wanted of it, and one connection's TLS, which is fed what has come
//! and says what is to be sent. It moves no bytes itself; [`Link`](super::link::Link) does.
//!
//! Version 1.3, one cipher suite and one group are all that is offered, so that all servers do the same
//! work. Certificates are verified, as by any client.

use std::cell::Cell;
use std::fmt;
use std::io::{self, BufRead, Write};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore};

use crate::error::Error;

/// The name that is asked for, and that certificates have to be for.
pub const NAME: &str = "bench.test";

/// What clients want of TLS.
#[derive(Clone, Debug)]
pub struct Tls {
    config: Arc<ClientConfig>,
    resumes: bool,
}

impl Tls {
    /// Only servers that `certificate` (DER) is of, or has signed for, are talked to. Every handshake is a
    /// full one.
    ///
    /// # Errors
    /// It is no certificate.
    pub fn new(certificate: &[u8]) -> Result<Self, Error> {
        let failed = |error: rustls::Error| Error::Failed(format!("preparing TLS: {error}"));
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from(certificate))
            .map_err(failed)?;
        let provider = CryptoProvider {
            cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
            kx_groups: vec![aws_lc_rs::kx_group::X25519],
            ..aws_lc_rs::default_provider()
        };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(failed)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        Ok(Self {
            config: Arc::new(config),
            resumes: false,
        })
    }

    /// The same, but each place of a connection in a run keeps the tickets it gets, and all of its
    /// handshakes but the first have to be resumed ones.
    #[must_use]
    pub fn resumed(&self) -> Self {
        Self {
            config: Arc::clone(&self.config),
            resumes: true,
        }
    }
}

/// The client whose connections, one after another, have one place in a run.
pub(super) struct Client {
    config: Arc<ClientConfig>,
    resumes: bool,
    has_ticket: Cell<bool>,
}

impl Client {
    /// Without a ticket.
    pub(super) fn new(tls: &Tls) -> Self {
        /// As many tickets as rustls keeps of one server; servers give out one or two a time.
        const TICKETS: usize = 8;
        let mut config = Arc::clone(&tls.config);
        if tls.resumes {
            Arc::make_mut(&mut config).resumption = Resumption::in_memory_sessions(TICKETS);
        }
        Self {
            config,
            resumes: tls.resumes,
            has_ticket: Cell::new(false),
        }
    }

    /// Begins a handshake.
    pub(super) fn begin(&self) -> io::Result<Session> {
        let name = ServerName::try_from(NAME).expect("it is a DNS name");
        let mut connection =
            ClientConnection::new(Arc::clone(&self.config), name).map_err(Fault::Failed)?;
        // What is asked is bounded by the plan.
        connection.set_buffer_limit(None);
        Ok(Session {
            connection,
            failure: None,
        })
    }

    /// `session` had its exchange, so that its tickets have come, too.
    ///
    /// # Errors
    /// It began with a full handshake, though there was a ticket.
    pub(super) fn had(&self, session: &Session) -> io::Result<()> {
        let had_ticket = self.has_ticket.replace(self.resumes);
        let resumed = session.connection.handshake_kind() == Some(HandshakeKind::Resumed);
        match had_ticket && !resumed {
            true => Err(Fault::NotResumed.into()),
            false => Ok(()),
        }
    }
}

/// One connection's TLS.
pub(super) struct Session {
    connection: ClientConnection,
    failure: Option<rustls::Error>,
}

impl Session {
    /// Takes bytes that have come, and shows `look` what was in them. Nothing happens after a failure.
    pub(super) fn feed(&mut self, mut bytes: &[u8], mut look: impl FnMut(&[u8])) {
        while !bytes.is_empty() && self.failure.is_none() {
            if let Err(error) = self.take(&mut bytes, &mut look) {
                self.failure = Some(error);
            }
        }
    }

    fn take(
        &mut self,
        bytes: &mut &[u8],
        look: &mut impl FnMut(&[u8]),
    ) -> Result<(), rustls::Error> {
        let general = |error: io::Error| rustls::Error::General(error.to_string());
        if self.connection.read_tls(bytes).map_err(general)? == 0 {
            return Err(rustls::Error::General("bytes after close_notify".into()));
        }
        self.connection.process_new_packets()?;
        let mut reader = self.connection.reader();
        // An error says that nothing is there, or nothing any more.
        while let Ok(chunk) = reader.fill_buf()
            && !chunk.is_empty()
        {
            look(chunk);
            let taken = chunk.len();
            reader.consume(taken);
        }
        Ok(())
    }

    /// The handshake has not ended.
    pub(super) fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// `bytes` are to be sent.
    pub(super) fn say(&mut self, bytes: &[u8]) {
        let written = self.connection.writer().write_all(bytes);
        written.expect("there is no limit to what is kept");
    }

    /// No more is to be sent.
    pub(super) fn say_end(&mut self) {
        self.connection.send_close_notify();
    }

    /// There are records to be sent.
    pub(super) fn has_records(&self) -> bool {
        self.connection.wants_write()
    }

    /// The records that are to be sent now; empty = none.
    pub(super) fn records(&mut self) -> Vec<u8> {
        let mut records = Vec::new();
        while self.connection.wants_write() {
            let written = self.connection.write_tls(&mut records);
            written.expect("memory takes everything");
        }
        records
    }

    /// Why it is of no more use; `None` = it is.
    pub(super) fn failure(&self) -> Option<io::Error> {
        let failure = self.failure.clone()?;
        Some(Fault::Failed(failure).into())
    }
}

/// What goes wrong with TLS. It comes within an [`io::Error`].
#[derive(Debug)]
pub(super) enum Fault {
    /// The handshake, or a record.
    Failed(rustls::Error),
    /// A full handshake though the client had a ticket.
    NotResumed,
}

impl Fault {
    /// The one that `error` holds.
    pub(super) fn within(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        Self::new(io::ErrorKind::InvalidData, fault)
    }
}

impl std::error::Error for Fault {}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => write!(f, "TLS: {error}"),
            Self::NotResumed => f.write_str("TLS: a full handshake, though there was a ticket"),
        }
    }
}
