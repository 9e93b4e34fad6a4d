//! What a configuration wants of TLS, with everything that comes from files read already.

use std::sync::Arc;

use super::material::{Authorities, Pair};

/// `[listeners.NAME.tls]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerSettings {
    /// At least one. Chosen by SNI: exact, then wildcard, then the first.
    pub certificates: Vec<Arc<Pair>>,
    /// Whether clients show a certificate.
    pub client_auth: ClientAuth,
    /// The oldest version that is spoken.
    pub min_version: Version,
    /// Protocols in the order of preference; empty = ALPN is not spoken. Each has 1 to 255 bytes.
    pub alpn: Vec<Arc<str>>,
    /// Sessions may be resumed.
    pub tickets: bool,
}

/// `client_auth`, and what belongs to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientAuth {
    /// None is asked for.
    Off,
    /// One is asked for; if it is shown, it is verified.
    Optional(Arc<Authorities>),
    /// One is asked for and verified.
    Required(Arc<Authorities>),
}

/// A version of TLS.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Version {
    /// RFC 5246.
    Tls12,
    /// RFC 8446.
    Tls13,
}

/// `[upstreams.NAME.tls]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientSettings {
    /// What backends' certificates are to be for, and what is sent as SNI if it is a DNS name; `None` = the
    /// host part of each backend's address as it was written.
    pub server_name: Option<Arc<str>>,
    /// Who may have signed them; `None` = they are not verified at all.
    pub authorities: Option<Arc<Authorities>>,
    /// What is shown to backends that ask for it.
    pub identity: Option<Arc<Pair>>,
}
