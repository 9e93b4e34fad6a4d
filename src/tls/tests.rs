//! What the tests of this module have in common: certificates, and two sessions that talk in memory.

use std::path::Path;
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, Issuer, KeyPair,
    PKCS_ED25519,
};

use super::{Authorities, Client, ClientAuth, ClientSettings, Fault, Pair, Server};
use super::{ServerSettings, Session, Tickets, Version};
use crate::time::Instant;

/// Somebody who signs certificates.
pub(super) struct Signer(CertifiedIssuer<'static, KeyPair>);

fn key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ED25519).unwrap()
}

pub(super) fn params(names: &[&str]) -> CertificateParams {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let subject = names.first().cloned().unwrap_or_default();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, subject);
    params
}

/// The same as an authority (CA:TRUE).
pub(super) fn as_authority(mut params: CertificateParams) -> CertificateParams {
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

fn load(chain: &str, key: &KeyPair) -> Arc<Pair> {
    let (file, secret) = (Path::new("x.pem"), key.serialize_pem());
    let key_file = Path::new("x.key");
    let pair = Pair::from_pem(file, chain.as_bytes(), key_file, secret.as_bytes());
    Arc::new(pair.unwrap())
}

pub(super) fn authorities(pem: &str) -> Arc<Authorities> {
    Arc::new(Authorities::from_pem(Path::new("ca.pem"), pem.as_bytes()).unwrap())
}

impl Signer {
    pub(super) fn new(name: &str) -> Self {
        let issuer = CertifiedIssuer::self_signed(as_authority(params(&[name])), key());
        Self(issuer.unwrap())
    }

    pub(super) fn authorities(&self) -> Arc<Authorities> {
        authorities(&self.0.pem())
    }

    pub(super) fn sign(&self, params: &CertificateParams) -> Arc<Pair> {
        let key = key();
        let issuer: &Issuer<'_, KeyPair> = &self.0;
        let certificate = params.signed_by(&key, issuer).unwrap();
        load(&certificate.pem(), &key)
    }
}

/// A certificate that signs itself, and what to trust it by.
pub(super) fn self_signed(params: &CertificateParams) -> (Arc<Pair>, Arc<Authorities>) {
    let key = key();
    let certificate = params.self_signed(&key).unwrap();
    let pem = certificate.pem();
    (load(&pem, &key), authorities(&pem))
}

pub(super) fn serving(pair: &Arc<Pair>) -> ServerSettings {
    ServerSettings {
        certificates: vec![pair.clone()],
        client_auth: ClientAuth::Off,
        min_version: Version::Tls12,
        alpn: Vec::new(),
        tickets: true,
    }
}

pub(super) fn trusting(authorities: &Arc<Authorities>, name: &str) -> ClientSettings {
    ClientSettings {
        server_name: Some(name.into()),
        authorities: Some(authorities.clone()),
        identity: None,
    }
}

/// Two sides of one connection.
pub(super) struct Talk {
    pub(super) client: Session,
    pub(super) server: Session,
}

/// A side has failed: which one (the client?), why, and what it has to say about it.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) client: bool,
    pub(super) fault: Fault,
    pub(super) reply: Vec<u8>,
}

impl Talk {
    pub(super) fn new(client: &Client, server: &Server) -> Self {
        Self {
            client: client.connect(0, None, None),
            server: server.accept(Instant::default()),
        }
    }

    /// Of a server with this certificate, and a client that trusts it.
    pub(super) fn of(pair: &Arc<Pair>, settings: &ClientSettings) -> Self {
        let server = Server::new(&serving(pair), "web", &Arc::new(Tickets::default()));
        Self::new(&Client::new(settings, 1), &server)
    }

    /// A connection that is established.
    pub(super) fn established() -> Self {
        let (pair, authorities) = self_signed(&params(&["a.example"]));
        let mut talk = Self::of(&pair, &trusting(&authorities, "a.example"));
        talk.shake_hands(usize::MAX).unwrap();
        talk
    }

    /// Goes through the handshake in pieces of so many bytes.
    pub(super) fn shake_hands(&mut self, size: usize) -> Result<(), Failure> {
        let mut said = hear(&mut self.client, &[], size)?.0;
        while !said.is_empty() {
            let reply = hear(&mut self.server, &said, size)?.0;
            said = hear(&mut self.client, &reply, size)?.0;
        }
        Ok(())
    }
}

/// A session hears `said` in pieces; what it says to that, and the plaintext.
pub(super) fn hear(
    session: &mut Session,
    said: &[u8],
    size: usize,
) -> Result<(Vec<u8>, Vec<u8>), Failure> {
    let (mut reply, mut plain) = (Vec::new(), Vec::new());
    // A client begins when it has heard nothing.
    let silence = said.is_empty().then_some(&[][..]);
    for piece in silence.into_iter().chain(said.chunks(size)) {
        let heard = session.receive(&mut piece.to_vec(), &mut reply, &mut |bytes| {
            plain.extend_from_slice(bytes);
        });
        if let Err(fault) = heard {
            return Err(Failure {
                client: session.is_client(),
                fault,
                reply,
            });
        }
    }
    Ok((reply, plain))
}

/// What `session` makes of `plain`.
pub(super) fn encrypted(session: &mut Session, plain: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    session.encrypt(plain, &mut out).unwrap();
    out
}
