//! Certificates of authorities that the tests make up, and clients that trust them.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PKCS_RSA_SHA256, date_time_ymd,
};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig, ServerConnection,
};

use super::{Backend, PATIENCE};

/// Somebody who signs certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its own certificate.
    pub(crate) pem: String,
    pub(crate) der: Vec<u8>,
}

/// A certificate of somebody who doesn't sign any.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Leaf {
    pub(crate) cert_pem: String,
    /// PKCS#8.
    pub(crate) key_pem: String,
    pub(crate) der: Vec<u8>,
}

/// What a certificate is to be like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) names: &'a [&'a str],
    pub(crate) key: Key,
    /// Days from now on; negative ones are over.
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    /// It is for clients, and not for servers.
    pub(crate) client: bool,
}

/// What kind of key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Key {
    P256,
    /// 2048 bits, which take a while to find.
    Rsa,
    Ed25519,
}

impl<'a> Wanted<'a> {
    /// A server's of these names, on P-256, from yesterday on for three months.
    pub(crate) fn new(names: &'a [&'a str]) -> Self {
        Self {
            names,
            key: Key::P256,
            not_before: -1,
            not_after: 90,
            client: false,
        }
    }

    fn parameters(&self) -> CertificateParams {
        let names: Vec<String> = self.names.iter().map(ToString::to_string).collect();
        let name = names.first().cloned().unwrap_or_default();
        let mut parameters = CertificateParams::new(names).expect("they are names");
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.not_before = date_time_ymd(1970, 1, 1) + day(self.not_before);
        parameters.not_after = date_time_ymd(1970, 1, 1) + day(self.not_after);
        parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        parameters.extended_key_usages = vec![match self.client {
            true => ExtendedKeyUsagePurpose::ClientAuth,
            false => ExtendedKeyUsagePurpose::ServerAuth,
        }];
        parameters.use_authority_key_identifier_extension = true;
        parameters
    }

    fn key(&self) -> KeyPair {
        let algorithm = match self.key {
            Key::P256 => &PKCS_ECDSA_P256_SHA256,
            Key::Rsa => &PKCS_RSA_SHA256,
            Key::Ed25519 => &PKCS_ED25519,
        };
        KeyPair::generate_for(algorithm).expect("a key can be had")
    }

    /// One that signs itself.
    pub(crate) fn self_signed(&self) -> Leaf {
        let key = self.key();
        let made = self.parameters().self_signed(&key);
        Leaf::new(&made.expect("it can be signed"), &key)
    }
}

/// So many days from now, since 1970.
fn day(days: i64) -> Duration {
    #[expect(
        clippy::disallowed_methods,
        reason = "certificates end by the calendar, and the proxy goes by the same"
    )]
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.expect("it is after 1970").as_secs() as i64;
    Duration::from_secs(u64::try_from(now + days * 86_400).expect("it is after 1970"))
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut parameters = CertificateParams::default();
        parameters.distinguished_name.push(DnType::CommonName, name);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key can be had");
        let own = parameters.self_signed(&key).expect("it can be signed");
        Self {
            issuer: Issuer::new(parameters, key),
            pem: own.pem(),
            der: own.der().to_vec(),
        }
    }

    /// A server's certificate of these names.
    pub(crate) fn leaf(&self, names: &[&str]) -> Leaf {
        self.issue(Wanted::new(names))
    }

    /// A client's certificate.
    pub(crate) fn client(&self, name: &str) -> Leaf {
        self.issue(Wanted {
            client: true,
            ..Wanted::new(&[name])
        })
    }

    pub(crate) fn issue(&self, wanted: Wanted<'_>) -> Leaf {
        let key = wanted.key();
        let made = wanted.parameters().signed_by(&key, &self.issuer);
        Leaf::new(&made.expect("it can be signed"), &key)
    }

    /// Writes its certificate to `NAME.pem`.
    pub(crate) fn write(&self, folder: &Path, name: &str) -> PathBuf {
        let file = folder.join(format!("{name}.pem"));
        fs::write(&file, &self.pem).expect("the folder can be written to");
        file
    }
}

impl Leaf {
    fn new(certificate: &rcgen::Certificate, key: &KeyPair) -> Self {
        Self {
            cert_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            der: certificate.der().to_vec(),
        }
    }

    /// Writes certificate and key to `NAME.pem` and `NAME.key`, in place.
    pub(crate) fn write(&self, folder: &Path, name: &str) -> [PathBuf; 2] {
        let files = ["pem", "key"].map(|end| folder.join(format!("{name}.{end}")));
        fs::write(&files[0], &self.cert_pem).expect("the folder can be written to");
        fs::write(&files[1], &self.key_pem).expect("the folder can be written to");
        files
    }
}

/// A backend that speaks TLS with this certificate, and sends back what comes.
pub(crate) fn secure_echo(leaf: &Leaf) -> Backend {
    let key = PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes());
    let chain = vec![leaf.der.clone().into()];
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has what it takes")
        .with_no_client_auth()
        .with_single_cert(chain, key.expect("it is a key"))
        .expect("they fit");
    let config = Arc::new(config);
    Backend::start(move |socket| {
        let connection = ServerConnection::new(config.clone());
        let connection = connection.expect("the settings are fine");
        let mut stream = rustls::StreamOwned::new(connection, socket);
        let mut buffer = vec![0; 16 << 10];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..count]).is_err() {
                return;
            }
        }
        stream.conn.send_close_notify();
        // The other side may have gone.
        let _ = stream.flush();
    })
}

/// The lines of a listener that terminates TLS with the pair in these files, as [`Leaf::write`] names them.
pub(crate) fn terminates([certificate, key]: &[PathBuf; 2]) -> String {
    format!("tls.certificates = [{{ cert = {certificate:?}, key = {key:?} }}]\n")
}

/// A client that speaks TLS, and trusts one authority.
#[derive(Clone)]
pub(crate) struct Client(Arc<ClientConfig>);

/// What a client has seen of a handshake.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    /// The server's own certificate.
    pub(crate) certificate: Vec<u8>,
    pub(crate) resumed: bool,
}

/// A connection of a client.
pub(crate) type Stream = rustls::StreamOwned<ClientConnection, TcpStream>;

impl Client {
    pub(crate) fn new(authority: &Authority) -> Self {
        Self::with(authority, None)
    }

    /// It shows this certificate to whoever asks for it.
    pub(crate) fn with(authority: &Authority, identity: Option<&Leaf>) -> Self {
        let mut roots = RootCertStore::empty();
        let root = authority.der.clone().into();
        roots.add(root).expect("it is an authority's");
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider has what it takes")
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(leaf) => {
                let key = PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes());
                let chain = vec![leaf.der.clone().into()];
                builder
                    .with_client_auth_cert(chain, key.expect("it is a key"))
                    .expect("they fit")
            }
        };
        Self(Arc::new(config))
    }

    /// The same, with nothing remembered that could be resumed.
    pub(crate) fn afresh(&self) -> Self {
        let mut config = ClientConfig::clone(&self.0);
        config.resumption = rustls::client::Resumption::disabled();
        Self(Arc::new(config))
    }

    /// Goes through a handshake with whoever is at `address`, asking for `name`.
    pub(crate) fn connect(&self, address: &str, name: &str) -> io::Result<Stream> {
        let mut socket = TcpStream::connect(address)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_nodelay(true)?;
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let connection = ClientConnection::new(self.0.clone(), name);
        let mut connection = connection.map_err(io::Error::other)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        Ok(Stream::new(connection, socket))
    }

    /// Connects, looks, and leaves in order.
    pub(crate) fn look(&self, address: &str, name: &str) -> io::Result<Seen> {
        let mut stream = self.connect(address, name)?;
        let seen = seen(&stream);
        // So that tickets, which come after the handshake, are taken in.
        stream.conn.send_close_notify();
        stream.flush()?;
        stream.sock.shutdown(std::net::Shutdown::Write)?;
        io::copy(&mut stream, &mut io::sink())?;
        Ok(seen)
    }
}

/// What became of the handshake.
pub(crate) fn seen(stream: &Stream) -> Seen {
    let chain = stream.conn.peer_certificates().unwrap_or_default();
    Seen {
        certificate: chain.first().map(|it| it.to_vec()).unwrap_or_default(),
        resumed: stream.conn.handshake_kind() == Some(HandshakeKind::Resumed),
    }
}
