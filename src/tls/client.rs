//! An upstream's TLS, ready for handshakes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    ClientConfig, Resumption, UnbufferedClientConnection, WebPkiServerVerifier, verify_server_name,
};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, OtherError, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::material::Authorities;
use super::provider;
use super::server::roots;
use super::session::Session;
use super::settings::ClientSettings;

#[cfg(test)]
mod tests;

/// Sessions that are remembered of a backend, to resume them.
const MOST_REMEMBERED: usize = 8;

/// What all connections to an upstream have in common.
pub struct Client {
    config: ClientConfig,
    /// The same for each of those that remember sessions apart, made when it is first needed: workers share
    /// nothing, and of two backends neither knows the other's sessions.
    configs: Vec<OnceLock<Arc<ClientConfig>>>,
    name: Option<ServerName<'static>>,
}

impl Client {
    /// For so many memories: one for each worker and backend.
    pub fn new(settings: &ClientSettings, memories: usize) -> Self {
        Self::by(provider(), settings, memories)
    }

    /// The same with other arithmetic.
    pub(super) fn by(
        provider: Arc<CryptoProvider>,
        settings: &ClientSettings,
        memories: usize,
    ) -> Self {
        let name = settings.server_name.as_deref();
        Self {
            config: config(provider, settings),
            configs: vec![OnceLock::new(); memories],
            name: name.and_then(|name| ServerName::try_from(name.to_owned()).ok()),
        }
    }

    /// For one that resumes nothing: every connection looks at the backend's certificate.
    pub fn forgetful(settings: &ClientSettings) -> Self {
        Self::new(settings, 0)
    }

    /// A connection to a backend at this address, which was written as `host` if it was a name. Its sessions are
    /// kept in that one of the memories.
    pub fn connect(&self, memory: usize, host: Option<&str>, address: Option<IpAddr>) -> Session {
        let by_host = || ServerName::try_from(host?.to_owned()).ok();
        let by_address = || ServerName::from(address.unwrap_or(NOBODY));
        let name = self
            .name
            .clone()
            .or_else(by_host)
            .unwrap_or_else(by_address);
        let connection = UnbufferedClientConnection::new(self.config(memory), name);
        Session::client(connection.expect("the settings are such that a client can be had"))
    }

    fn config(&self, memory: usize) -> Arc<ClientConfig> {
        let with = |resumption| {
            let mut config = self.config.clone();
            config.resumption = resumption;
            Arc::new(config)
        };
        match self.configs.get(memory) {
            None => with(Resumption::disabled()),
            Some(config) => {
                let new = || with(Resumption::in_memory_sessions(MOST_REMEMBERED));
                config.get_or_init(new).clone()
            }
        }
    }
}

/// Whoever is behind a unix socket.
const NOBODY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client {{ name: {:?} }}", self.name)
    }
}

fn config(provider: Arc<CryptoProvider>, settings: &ClientSettings) -> ClientConfig {
    let verifier: Arc<dyn ServerCertVerifier> = match &settings.authorities {
        None => Arc::new(Anyone(provider.clone())),
        Some(authorities) => {
            let roots = Arc::new(roots(authorities));
            let builder = WebPkiServerVerifier::builder_with_provider(roots, provider.clone());
            Arc::new(Verifier {
                by_chain: builder.build().expect("authorities are never empty"),
                authorities: authorities.clone(),
            })
        }
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has cipher suites for both versions")
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    match &settings.identity {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let resolver = rustls::sign::SingleCertAndKey::from(pair.certified.clone());
            builder.with_client_cert_resolver(Arc::new(resolver))
        }
    }
}

/// Verifies by chains that lead to an authority. A certificate that is itself among the authorities needs no
/// chain, as it is with OpenSSL: self-signed ones are used that way. Says of others that they are self-signed.
#[derive(Debug)]
struct Verifier {
    by_chain: Arc<WebPkiServerVerifier>,
    authorities: Arc<Authorities>,
}

impl Verifier {
    fn is_authority(&self, certificate: &CertificateDer<'_>) -> bool {
        let mut known = self.authorities.certificates.iter();
        known.any(|known| known == certificate)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.is_authority(end_entity) {
            return verify_alone(end_entity, server_name, now);
        }
        let verified = self.by_chain.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        verified.map_err(|error| match error {
            rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)
                if is_self_signed(end_entity) =>
            {
                CertificateError::Other(OtherError(Arc::new(SelfSigned))).into()
            }
            rustls::Error::InvalidCertificate(CertificateError::Other(_))
                if is_authority(end_entity) =>
            {
                CertificateError::Other(OtherError(Arc::new(OfAnAuthority))).into()
            }
            error => error,
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_chain
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_chain
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_chain.supported_verify_schemes()
    }
}

fn is_self_signed(certificate: &CertificateDer<'_>) -> bool {
    let parsed = X509Certificate::from_der(certificate);
    parsed.is_ok_and(|(_, it)| it.issuer() == it.subject())
}

/// It may sign others.
fn is_authority(certificate: &CertificateDer<'_>) -> bool {
    let parsed = X509Certificate::from_der(certificate);
    parsed.is_ok_and(|(_, it)| it.is_ca())
}

/// A certificate that is trusted as it is: its time and its names.
fn verify_alone(
    certificate: &CertificateDer<'_>,
    server_name: &ServerName<'_>,
    now: UnixTime,
) -> Result<ServerCertVerified, rustls::Error> {
    let bad = || rustls::Error::from(CertificateError::BadEncoding);
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| bad())?;
    let validity = parsed.validity();
    let at = |seconds: i64| UnixTime::since_unix_epoch(Duration::from_secs(seconds.max(0) as u64));
    let (not_before, not_after) = (
        at(validity.not_before.timestamp()),
        at(validity.not_after.timestamp()),
    );
    if now.as_secs() < not_before.as_secs() {
        let time = now;
        return Err(CertificateError::NotValidYetContext { time, not_before }.into());
    }
    if now.as_secs() > not_after.as_secs() {
        let time = now;
        return Err(CertificateError::ExpiredContext { time, not_after }.into());
    }
    verify_server_name(&ParsedCertificate::try_from(certificate)?, server_name)?;
    Ok(ServerCertVerified::assertion())
}

#[derive(Debug)]
struct OfAnAuthority;

impl fmt::Display for OfAnAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it shows the certificate of an authority (CA:TRUE) as its own: give it as ca")
    }
}

impl std::error::Error for OfAnAuthority {}

#[derive(Debug)]
struct SelfSigned;

impl fmt::Display for SelfSigned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("its certificate is self-signed and not known here: give it as ca")
    }
}

impl std::error::Error for SelfSigned {}

/// Takes any certificate, as long as whoever shows it has its key.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
