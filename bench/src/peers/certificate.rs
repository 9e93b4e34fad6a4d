//! The certificate that the proxies show: ECDSA on P-256, made anew for each run.

use std::fs;
use std::path::Path;

use crate::error::Error;
use crate::load::{self, Tls};

/// A certificate and its key.
pub(crate) struct Certificate {
    chain: String,
    key: String,
    tls: Tls,
}

/// The chain, below a proxy's folder.
pub(super) const CHAIN: &str = "certificate.pem";
/// Its key.
pub(super) const KEY: &str = "key.pem";
/// Both in one, for HAProxy.
pub(super) const BOTH: &str = "both.pem";

impl Certificate {
    pub(crate) fn new() -> Result<Self, Error> {
        let failed = |error: rcgen::Error| Error::Failed(format!("making a certificate: {error}"));
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let parameters =
            rcgen::CertificateParams::new(vec![load::NAME.to_owned()]).map_err(failed)?;
        let certificate = parameters.self_signed(&key).map_err(failed)?;
        Ok(Self {
            chain: certificate.pem(),
            key: key.serialize_pem(),
            tls: Tls::new(certificate.der())?,
        })
    }

    /// Puts it into a proxy's folder.
    pub(crate) fn write(&self, folder: &Path) -> Result<(), Error> {
        let both = [self.chain.as_str(), &self.key].concat();
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(folder.join(CHAIN), &self.chain))
            .and_then(|()| fs::write(folder.join(KEY), &self.key))
            .and_then(|()| fs::write(folder.join(BOTH), both))
            .map_err(Error::while_doing(format!(
                "writing below {}",
                folder.display()
            )))
    }

    /// What clients want who are shown it.
    pub(crate) fn tls(&self) -> &Tls {
        &self.tls
    }
}
