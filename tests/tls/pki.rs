//! Authorities, certificates and keys, made anew for each test, in files and for rustls.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SignatureAlgorithm, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore, ServerConfig, SupportedProtocolVersion,
    WantsVerifier,
};
use tempfile::TempDir;

/// Both versions, each alone.
pub(crate) const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// A root, and a folder for its files.
pub(crate) struct Pki {
    folder: TempDir,
    root: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate with its key.
pub(crate) struct Leaf {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    chain: Vec<CertificateDer<'static>>,
    secret: PrivateKeyDer<'static>,
}

impl Pki {
    /// With a root of a name of its own.
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        Self::named(&format!("root {}", NUMBER.fetch_add(1, Ordering::Relaxed)))
    }

    /// With a root of this name.
    pub(crate) fn named(name: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let root = CertifiedIssuer::self_signed(authority(name), key(&PKCS_ECDSA_P256_SHA256));
        let root = root.expect("it can be made");
        fs::write(folder.path().join("root.pem"), root.pem()).expect("it can be written");
        Self { folder, root }
    }

    /// The root's certificate.
    pub(crate) fn ca(&self) -> String {
        self.path("root.pem").display().to_string()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// For this DNS name or address, on P-256.
    pub(crate) fn leaf(&self, name: &str) -> Leaf {
        self.leaf_with(name, &PKCS_ECDSA_P256_SHA256, |_| ())
    }

    /// The same with another kind of key, and with a change.
    pub(crate) fn leaf_with(
        &self,
        name: &str,
        algorithm: &'static SignatureAlgorithm,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Leaf {
        let (mut params, key) = (named(name), key(algorithm));
        change(&mut params);
        let certificate = params.signed_by(&key, &self.root).expect("it can be made");
        self.write(&[&certificate], &key)
    }

    /// Below an authority that is below the root; the file has them both.
    pub(crate) fn leaf_of_a_chain(
        &self,
        name: &str,
        algorithm: &'static SignatureAlgorithm,
    ) -> Leaf {
        let between = CertifiedIssuer::signed_by(
            authority("an intermediate"),
            key(&PKCS_ECDSA_P256_SHA256),
            &self.root,
        );
        let (between, key) = (between.expect("it can be made"), key(algorithm));
        let certificate = named(name).signed_by(&key, &between);
        let certificate = certificate.expect("it can be made");
        self.write(&[&certificate, between.as_ref()], &key)
    }

    /// Of nobody but itself.
    pub(crate) fn self_signed(&self, name: &str) -> Leaf {
        let key = key(&PKCS_ECDSA_P256_SHA256);
        let certificate = named(name).self_signed(&key).expect("it can be made");
        self.write(&[&certificate], &key)
    }

    /// Its time was over long ago.
    pub(crate) fn expired(&self, name: &str) -> Leaf {
        self.leaf_with(name, &PKCS_ECDSA_P256_SHA256, |params| {
            params.not_after = date_time_ymd(2020, 2, 29);
        })
    }

    fn write(&self, chain: &[&Certificate], key: &KeyPair) -> Leaf {
        let number = fs::read_dir(&self.folder).expect("a folder").count();
        let leaf = Leaf {
            cert: self.path(&format!("{number}.pem")),
            key: self.path(&format!("{number}.key")),
            chain: chain.iter().map(|it| it.der().clone()).collect(),
            secret: PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        };
        let text: String = chain.iter().map(|it| it.pem()).collect();
        fs::write(&leaf.cert, text).expect("it can be written");
        fs::write(&leaf.key, key.serialize_pem()).expect("it can be written");
        leaf
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.der().clone()).expect("it is one");
        roots
    }

    /// A client that trusts the root.
    pub(crate) fn client(&self) -> ClientConfig {
        self.client_of(&VERSIONS)
    }

    /// The same with these versions only.
    pub(crate) fn client_of(&self, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        self.trusting(versions).with_no_client_auth()
    }

    /// A client that shows this certificate when it is asked for one.
    pub(crate) fn client_with(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        leaf: &Leaf,
    ) -> ClientConfig {
        let (chain, key) = (leaf.chain.clone(), leaf.secret.clone_key());
        let config = self.trusting(versions).with_client_auth_cert(chain, key);
        config.expect("they fit")
    }

    fn trusting(
        &self,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
        ClientConfig::builder_with_protocol_versions(versions).with_root_certificates(self.roots())
    }

    /// A server with this certificate.
    pub(crate) fn server(&self, leaf: &Leaf) -> ServerConfig {
        leaf.server(ServerConfig::builder())
    }

    /// The same with one version only.
    pub(crate) fn server_of(
        &self,
        leaf: &Leaf,
        version: &'static SupportedProtocolVersion,
    ) -> ServerConfig {
        leaf.server(ServerConfig::builder_with_protocol_versions(&[version]))
    }

    /// A server that wants its clients to show a certificate of the root's.
    pub(crate) fn demanding_server(&self, leaf: &Leaf) -> ServerConfig {
        let verifier = WebPkiClientVerifier::builder(Arc::new(self.roots()));
        let builder = ServerConfig::builder()
            .with_client_cert_verifier(verifier.build().expect("there is a root"));
        let config = builder.with_single_cert(leaf.chain.clone(), leaf.secret.clone_key());
        config.expect("they fit")
    }
}

impl Leaf {
    /// As a configuration's `certificates` name it.
    pub(crate) fn table(&self) -> String {
        format!("{{ cert = {:?}, key = {:?} }}", self.cert, self.key)
    }

    /// The same with another file of the key.
    pub(crate) fn table_with(&self, key: &str) -> String {
        format!("{{ cert = {:?}, key = {key:?} }}", self.cert)
    }

    /// The certificate itself.
    pub(crate) fn der(&self) -> &CertificateDer<'static> {
        &self.chain[0]
    }

    /// Certificate and key in one file, as HAProxy wants them.
    pub(crate) fn together(&self) -> PathBuf {
        let read = |path| fs::read_to_string(path).expect("it was written");
        let file = self.cert.with_extension("both");
        fs::write(&file, read(&self.cert) + &read(&self.key)).expect("it can be written");
        file
    }

    fn server(&self, builder: ConfigBuilder<ServerConfig, WantsVerifier>) -> ServerConfig {
        let builder = builder.with_no_client_auth();
        let config = builder.with_single_cert(self.chain.clone(), self.secret.clone_key());
        config.expect("they fit")
    }
}

/// `tls` of a listener with these certificates and further keys.
pub(crate) fn tls(leaves: &[&Leaf], more: &str) -> String {
    let tables: Vec<_> = leaves.iter().map(|leaf| leaf.table()).collect();
    let comma = if more.is_empty() { "" } else { ", " };
    format!(
        "tls = {{ certificates = [{}]{comma}{more} }}\n",
        tables.join(", ")
    )
}

fn key(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).expect("it can be made")
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new([name.to_owned()]).expect("a name");
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    params
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}
