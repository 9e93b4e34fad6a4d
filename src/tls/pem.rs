//! What is in a file of PEM: certificates or a key, or what is wrong with it. Knows nothing of whether they
//! fit.

use std::io;
use std::path::Path;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::material::LoadError;
use crate::settled;

/// What was expected of a file of certificates.
pub(super) const CERTIFICATES: &str = "certificates in PEM, \"-----BEGIN CERTIFICATE-----\"";

/// What was expected of a file with a key.
pub(super) const KEY: &str = "a private key in PEM that is not encrypted";

/// The file's bytes, all from one moment. Blocks: for some milliseconds if it has just been changed, for 2 s
/// if it is changed all the time.
pub(super) fn read(file: &Path, expected: &'static str) -> Result<Vec<u8>, LoadError> {
    let fault = |what: &str| LoadError::new(file, what, expected);
    settled::read_regular(file, LONGEST_FILE).map_err(|error| match error {
        settled::Error::Io(error) => match error.kind() {
            io::ErrorKind::NotFound => fault("there is no such file"),
            io::ErrorKind::PermissionDenied => fault("no permission to read the file")
                .hint("check its owner and mode, and those of its directories, with ls -l"),
            io::ErrorKind::IsADirectory => {
                fault("this is a directory").hint("give the path of a file in it")
            }
            _ => fault(&format!("the file can't be read: {error}")),
        },
        settled::Error::Special => {
            fault("this is no regular file").hint("a FIFO or a device can't be read again")
        }
        settled::Error::TooLong => fault("the file has more than 1 MiB"),
        settled::Error::KeepsChanging => {
            fault("the file keeps changing").hint("write a new file and rename it over this one")
        }
    })
}

/// Chains have a few KiB, the authorities of a system some hundred.
const LONGEST_FILE: u64 = 1 << 20;

/// All certificates of a file, at least one, in its order.
pub(super) fn certificates(
    file: &Path,
    text: &[u8],
) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let found = CertificateDer::pem_slice_iter(text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| LoadError::new(file, broken(&error), CERTIFICATES))?;
    if !found.is_empty() {
        return Ok(found);
    }
    let fault = |what: &str| LoadError::new(file, what, CERTIFICATES);
    Err(if has(text, "PRIVATE KEY-----") {
        fault("there is a key in it and no certificate").hint(SWAPPED)
    } else if has(text, "BEGIN CERTIFICATE REQUEST-----") {
        fault("there is a request for a certificate in it and no certificate")
    } else if is_der(text) {
        let hint = format!(
            "if it is DER: openssl x509 -inform der -in {} -out NEW",
            file.display()
        );
        fault("there is no certificate in it").hint(hint)
    } else {
        fault("there is no certificate in it")
    })
}

/// The first key of a file: PKCS#8, PKCS#1 or SEC1.
pub(super) fn key(file: &Path, text: &[u8]) -> Result<PrivateKeyDer<'static>, LoadError> {
    let fault = |what: &str| LoadError::new(file, what, KEY);
    let error = match PrivateKeyDer::from_pem_slice(text) {
        Ok(key) => return Ok(key),
        Err(error) => error,
    };
    // OpenSSL's own form says so in a header, which is no Base64.
    Err(
        if has(text, "BEGIN ENCRYPTED PRIVATE KEY-----") || has(text, "Proc-Type: 4,ENCRYPTED") {
            let hint = format!("decrypt it: openssl pkey -in {} -out NEW", file.display());
            fault("the key is encrypted").hint(hint)
        } else if !matches!(error, pem::Error::NoItemsFound) {
            fault(broken(&error))
        } else if has(text, "BEGIN CERTIFICATE-----") {
            fault("there is a certificate in it and no key").hint(SWAPPED)
        } else if has(text, "BEGIN PUBLIC KEY-----") {
            fault("there is a public key in it and no private one")
        } else if is_der(text) {
            let hint = format!(
                "if it is DER: openssl pkey -inform der -in {} -out NEW",
                file.display()
            );
            fault("there is no key in it").hint(hint)
        } else {
            fault("there is no key in it")
        },
    )
}

const SWAPPED: &str = "have the files of the certificate and of the key been swapped?";

/// Says nothing of what is in the file, which may be a secret.
fn broken(error: &pem::Error) -> &'static str {
    match error {
        pem::Error::MissingSectionEnd { .. } => "its PEM ends in the middle: there is no END line",
        pem::Error::IllegalSectionStart { .. } => "its PEM is broken: a BEGIN line is malformed",
        pem::Error::Base64Decode(_) => "its PEM is broken: what it holds is not Base64",
        _ => "its PEM is broken",
    }
}

fn has(text: &[u8], words: &str) -> bool {
    text.windows(words.len())
        .any(|window| window == words.as_bytes())
}

/// Begins like an ASN.1 sequence of some length, which no text does.
fn is_der(text: &[u8]) -> bool {
    matches!(text, [0x30, 0x80..=0x83, ..])
}
