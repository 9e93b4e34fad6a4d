//! Why TLS can't go on, in words for an operator.

use std::fmt;

use rustls::{CertificateError, Error, InvalidMessage};

/// What went wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    kind: Kind,
    text: Box<str>,
}

/// What kind of thing it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// What came is no TLS.
    NotTls,
    /// The other side's certificate is missing or not to be trusted.
    Certificate,
    /// The other side has said that it can't go on (an alert).
    Alert,
    /// Anything else of the protocol.
    Protocol,
}

impl Fault {
    /// `client`: it was us who connected.
    pub(super) fn new(error: &Error, client: bool, handshaking: bool) -> Self {
        let kind = match error {
            Error::InvalidMessage(
                InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion,
            ) if handshaking => Kind::NotTls,
            Error::InvalidCertificate(_) | Error::NoCertificatesPresented => Kind::Certificate,
            Error::AlertReceived(_) => Kind::Alert,
            _ => Kind::Protocol,
        };
        let text = match error {
            _ if kind == Kind::NotTls => "what it says is not TLS".to_owned(),
            Error::AlertReceived(alert) => format!("it sent the alert {alert:?}"),
            Error::NoCertificatesPresented => "it shows no certificate".to_owned(),
            Error::InvalidCertificate(error) => certificate(error),
            Error::InappropriateMessage { .. } if client && handshaking => {
                "it speaks out of turn in the TLS handshake".to_owned()
            }
            error => error.to_string(),
        };
        Self {
            kind,
            text: text.into(),
        }
    }

    /// A message that is never whole.
    pub(super) fn too_long() -> Self {
        Self {
            kind: Kind::Protocol,
            text: "its handshake message is too long".into(),
        }
    }

    /// What kind of thing it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Fault {}

/// What is wrong with a certificate.
fn certificate(error: &CertificateError) -> String {
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, InvalidPurpose, InvalidPurposeContext,
        NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext, Other,
        UnknownIssuer,
    };
    match error {
        Expired | ExpiredContext { .. } => match error {
            ExpiredContext { time, not_after } => {
                let days = time.as_secs().saturating_sub(not_after.as_secs()) / 86_400;
                format!("its certificate expired {days} days ago")
            }
            _ => "its certificate has expired".to_owned(),
        },
        NotValidYet | NotValidYetContext { .. } => {
            "its certificate is not valid yet: is this machine's clock right?".to_owned()
        }
        NotValidForNameContext {
            expected,
            presented,
        } => {
            let expected = expected.to_str();
            let mut names: Vec<_> = presented.iter().map(|name| presented_name(name)).collect();
            let more = names.len() > MOST_NAMES;
            names.truncate(MOST_NAMES);
            let names = match (names.is_empty(), more) {
                (true, _) => "no name".to_owned(),
                (_, true) => format!("{}, …", names.join(", ")),
                (_, false) => names.join(", "),
            };
            format!("its certificate is for {names}, not for {expected} (server_name)")
        }
        NotValidForName => "its certificate is for another name (server_name)".to_owned(),
        UnknownIssuer => {
            "its certificate is signed by an authority that is not known here (ca)".to_owned()
        }
        BadSignature => {
            "its certificate is not signed by the authority of that name that is known here (ca)"
                .to_owned()
        }
        InvalidPurpose | InvalidPurposeContext { .. } => {
            "its certificate is not meant for this use".to_owned()
        }
        Other(why) => why.0.to_string(),
        error => format!("its certificate is not valid: {error}"),
    }
}

/// Names of a certificate that are told.
const MOST_NAMES: usize = 4;

/// A name as rustls has it, `DnsName("a.example")`, without what is around it.
fn presented_name(text: &str) -> String {
    let inner = text
        .split_once('(')
        .and_then(|(_, rest)| rest.strip_suffix(')'));
    let plain = inner.unwrap_or(text).trim_matches('"');
    plain.escape_debug().to_string()
}
