//! Certificates, keys and authorities as they are read from files. A chain and its key are read as a pair:
//! either both fit or neither is used.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{self, SHA256};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, DnsName, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, RootCertStore};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;

use super::pem;

#[cfg(test)]
mod tests;

/// A certificate chain and its key, which fit. Equal if all their bytes are.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The file of the chain.
    pub certificate: PathBuf,
    /// The file of the key.
    pub key: PathBuf,
    /// DNS names that the certificate is for, in lower case, wildcards as `*.example.com`.
    pub names: Vec<Box<str>>,
    /// When it expires: seconds since 1970.
    pub not_after: i64,
    pub(super) certified: Arc<CertifiedKey>,
    /// SHA-256 of the key's bytes.
    digest: [u8; 32],
}

/// Certificates that others are verified by.
#[derive(Clone, Debug)]
pub struct Authorities {
    /// The file; `None` = the system's.
    pub file: Option<PathBuf>,
    pub(super) certificates: Vec<CertificateDer<'static>>,
}

/// Why a file can't be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoadError {
    /// Which one; empty = the system's authorities, wherever they are.
    pub file: PathBuf,
    /// What is wrong with it, in a sentence without a capital and full stop.
    pub what: String,
    /// What was expected.
    pub expected: &'static str,
    /// What to do, if there is something to say.
    pub hint: Option<String>,
}

impl Pair {
    /// Reads both files, certificate first. Blocks: for some milliseconds if one has just been changed, for
    /// seconds if one is changed all the time. Of files that are being replaced one may be old and one new:
    /// then they don't fit, and a later attempt will find them fitting.
    ///
    /// # Errors
    /// One can't be read or holds something else, or they don't fit. A certificate that has expired is none.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, LoadError> {
        let chain = pem::read(certificate, pem::CERTIFICATES)?;
        if key == certificate {
            return Self::from_pem(certificate, &chain, key, &chain);
        }
        let secret = pem::read(key, pem::KEY)?;
        Self::from_pem(certificate, &chain, key, &secret)
    }

    /// The same of what the two files hold.
    ///
    /// # Errors
    /// As for [`Self::load`].
    pub fn from_pem(
        certificate: &Path,
        chain: &[u8],
        key: &Path,
        secret: &[u8],
    ) -> Result<Self, LoadError> {
        let chain = pem::certificates(certificate, chain)?;
        let (names, not_after) = looked_into(certificate, &chain)?;
        let secret = pem::key(key, secret)?;
        let digest = sha256(&[secret.secret_der()]);
        let certified = certified(certificate, chain, key, secret)?;
        Ok(Self {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            names,
            not_after,
            certified: Arc::new(certified),
            digest,
        })
    }

    /// Other bytes have another one, chain and key alike: 16 hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.certified.cert, &self.digest)
    }

    /// What has to be read again if it changes: certificate and key.
    pub fn files(&self) -> [&Path; 2] {
        [&self.certificate, &self.key]
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest && self.certified.cert == other.certified.cert
    }
}

impl Eq for Pair {}

impl Authorities {
    /// Reads a file of certificates in PEM; at least one. Blocks as [`Pair::load`] does.
    ///
    /// # Errors
    /// It can't be read or holds something else.
    pub fn load(file: &Path) -> Result<Self, LoadError> {
        Self::from_pem(file, &pem::read(file, pem::CERTIFICATES)?)
    }

    /// Of all of them: SHA-256.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut context = digest::Context::new(&SHA256);
        for certificate in &self.certificates {
            context.update(certificate);
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(context.finish().as_ref());
        digest
    }

    /// The same of what the file holds.
    ///
    /// # Errors
    /// As for [`Self::load`].
    pub fn from_pem(file: &Path, text: &[u8]) -> Result<Self, LoadError> {
        let certificates = pem::certificates(file, text)?;
        for (at, certificate) in certificates.iter().enumerate() {
            if let Err(error) = RootCertStore::empty().add(certificate.clone()) {
                let what = format!("certificate {} in it can't be used: {error}", at + 1);
                return Err(LoadError::new(file, what, "certificates of authorities"));
            }
        }
        Ok(Self {
            file: Some(file.to_owned()),
            certificates,
        })
    }

    /// Those that the system trusts, as far as they can be used; at least one. Blocks.
    ///
    /// # Errors
    /// There are none.
    pub fn system() -> Result<Self, LoadError> {
        let mut certificates = rustls_native_certs::load_native_certs().certs;
        certificates.retain(|it| RootCertStore::empty().add(it.clone()).is_ok());
        // In folders they stand in any order.
        certificates.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
        certificates.dedup();
        if certificates.is_empty() {
            let what = "this system has no certificates of authorities";
            let error = LoadError::new(Path::new(""), what, "those that the system trusts");
            return Err(error.hint("install them (ca-certificates), or name a file as \"ca\""));
        }
        Ok(Self {
            file: None,
            certificates,
        })
    }

    /// Other certificates have another one: 16 hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.certificates, &[])
    }
}

impl PartialEq for Authorities {
    fn eq(&self, other: &Self) -> bool {
        self.certificates == other.certificates
    }
}

impl Eq for Authorities {}

impl LoadError {
    pub(super) fn new(file: &Path, what: impl Into<String>, expected: &'static str) -> Self {
        Self {
            file: file.to_owned(),
            what: what.into(),
            expected,
            hint: None,
        }
    }

    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }
}

impl fmt::Display for LoadError {
    /// One line: the file and what is wrong with it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.as_os_str().is_empty() {
            write!(f, "{}: ", self.file.display())?;
        }
        f.write_str(&self.what)
    }
}

impl std::error::Error for LoadError {}

/// Names and end of the first certificate. The others are looked at as well, since clients will.
fn looked_into(
    file: &Path,
    chain: &[CertificateDer<'static>],
) -> Result<(Vec<Box<str>>, i64), LoadError> {
    let mut first = None;
    for (at, der) in chain.iter().enumerate() {
        match parse_x509_certificate(der) {
            Ok(([], certificate)) => {
                let not_after = certificate.validity().not_after.timestamp();
                first.get_or_insert_with(|| (names(&certificate), not_after));
            }
            _ => {
                let what = format!("certificate {} in it is not one of X.509", at + 1);
                return Err(LoadError::new(file, what, pem::CERTIFICATES));
            }
        }
    }
    first.ok_or_else(|| LoadError::new(file, "there is no certificate in it", pem::CERTIFICATES))
}

/// RFC 6125, section 6.4.4: the common name counts only where there are no alternative names.
fn names(certificate: &X509Certificate<'_>) -> Vec<Box<str>> {
    let names: Vec<&str> = match certificate.subject_alternative_name() {
        Ok(Some(alternative)) => alternative
            .value
            .general_names
            .iter()
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some(*name),
                _ => None,
            })
            .collect(),
        Ok(None) => certificate
            .subject()
            .iter_common_name()
            .filter_map(|name| name.as_str().ok())
            .collect(),
        Err(_) => Vec::new(),
    };
    names.into_iter().filter_map(name).collect()
}

/// In lower case; `None` if no client will ask for it.
fn name(text: &str) -> Option<Box<str>> {
    let lower = text.to_ascii_lowercase();
    let host = lower.strip_prefix("*.").unwrap_or(&lower);
    DnsName::try_from(host).is_ok().then(|| lower.into())
}

/// Chain and key together, if they fit.
fn certified(
    certificate: &Path,
    chain: Vec<CertificateDer<'static>>,
    key: &Path,
    secret: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, LoadError> {
    let signing = default_provider()
        .key_provider
        .load_private_key(secret)
        .map_err(|_| LoadError::new(key, "the key in it can't be used", KEYS))?;
    let certified = CertifiedKey::new(chain, signing);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => {
            Err(mismatch(certificate, key, &certified))
        }
        Err(error) => {
            let what = match &error {
                rustls::Error::InvalidCertificate(cause) => {
                    format!("the certificate in it can't be used: {cause}")
                }
                _ => format!("the certificate in it can't be used: {error}"),
            };
            Err(LoadError::new(
                certificate,
                what,
                "an X.509 certificate of version 3",
            ))
        }
    }
}

const KEYS: &str =
    "an RSA key of 2048 to 8192 bits, an ECDSA key on P-256, P-384 or P-521, or Ed25519";

fn mismatch(certificate: &Path, key: &Path, certified: &CertifiedKey) -> LoadError {
    let what = format!("this is not the key of {}", certificate.display());
    let error = LoadError::new(key, what, "the key of the first certificate in the chain");
    let fits = |der: &CertificateDer<'static>| {
        let alone = CertifiedKey::new(vec![der.clone()], certified.key.clone());
        alone.keys_match().is_ok()
    };
    match certified.cert.iter().position(fits) {
        Some(at) => error.hint(format!(
            "it is the key of certificate {} in that file, which has to stand first",
            at + 1
        )),
        None => error,
    }
}

/// The first half of it is enough to tell files apart.
fn fingerprint(certificates: &[CertificateDer<'_>], more: &[u8]) -> String {
    let lengths: Vec<_> = certificates
        .iter()
        .map(|it| (it.len() as u64).to_be_bytes())
        .collect();
    let mut parts: Vec<&[u8]> = Vec::with_capacity(2 * certificates.len() + 1);
    for (length, certificate) in lengths.iter().zip(certificates) {
        parts.extend([&length[..], certificate.as_ref()]);
    }
    parts.push(more);
    let digest = sha256(&parts);
    digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    bytes
}
