//! What simulated peers speak: TLS by rustls, PROXY headers around it, and pieces, pauses and cuts on the
//! wire below it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair, PKCS_ED25519};
use ringress::proto::proxy_header::{Announced, HeaderReader, Progress};
use ringress::ring::sim::{Layer, Wire};
use ringress::tls::{Authorities, Pair, Version};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ServerSessionMemoryCache;
use rustls::{ClientConfig, Connection, RootCertStore, ServerConfig};

/// The name that all certificates are for.
pub(crate) const NAME: &str = "a.test";

/// What the peers and the proxy speak TLS by.
pub(crate) struct Keys {
    /// Of the proxy's listeners.
    pub(crate) pair: Arc<Pair>,
    /// Of its upstreams.
    pub(crate) authorities: Arc<Authorities>,
    clients: [Arc<ClientConfig>; 2],
    servers: [Arc<ServerConfig>; 2],
}

/// Made once. Keys are Ed25519: their signatures have one length, so that a seed gives one trace.
pub(crate) fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(Keys::new)
}

impl Keys {
    fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key can be made");
        let params = CertificateParams::new(vec![NAME.to_owned()]).expect("it is a name");
        let certificate = params.self_signed(&key).expect("it can be signed");
        let (chain, secret) = (certificate.pem(), key.serialize_pem());
        let (chain_file, key_file) = (Path::new("a.pem"), Path::new("a.key"));
        let pair = Pair::from_pem(chain_file, chain.as_bytes(), key_file, secret.as_bytes());
        let authorities = Authorities::from_pem(chain_file, chain.as_bytes());
        let der = CertificateDer::from_pem_slice(chain.as_bytes()).expect("it is a certificate");
        Self {
            pair: Arc::new(pair.expect("they fit")),
            authorities: Arc::new(authorities.expect("it is one")),
            clients: VERSIONS.map(|version| Arc::new(client(&der, version))),
            servers: VERSIONS.map(|version| Arc::new(server(&der, secret.as_bytes(), version))),
        }
    }

    /// A client of this version that remembers nothing.
    pub(crate) fn client(&self, version: Version) -> ClientConfig {
        (*self.clients[version as usize]).clone()
    }

    /// A server of this version that remembers nothing of other runs.
    pub(crate) fn server(&self, version: Version) -> ServerConfig {
        let mut config = (*self.servers[version as usize]).clone();
        config.session_storage = ServerSessionMemoryCache::new(1000);
        config
    }
}

const VERSIONS: [Version; 2] = [Version::Tls12, Version::Tls13];

/// With keys and signatures of one length, and short hellos.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        cipher_suites: vec![
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        ],
        ..aws_lc_rs::default_provider()
    })
}

fn protocol(version: Version) -> &'static rustls::SupportedProtocolVersion {
    match version {
        Version::Tls12 => &rustls::version::TLS12,
        Version::Tls13 => &rustls::version::TLS13,
    }
}

fn client(certificate: &CertificateDer<'static>, version: Version) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("it can be trusted");
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[protocol(version)])
        .expect("there are suites for it")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.enable_secret_extraction = true;
    config
}

fn server(certificate: &CertificateDer<'static>, key: &[u8], version: Version) -> ServerConfig {
    let key = PrivateKeyDer::from_pem_slice(key).expect("it is a key");
    ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[protocol(version)])
        .expect("there are suites for it")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .expect("they fit")
}

/// One side of a TLS connection.
pub(crate) struct Secure {
    tls: Connection,
    out: VecDeque<u8>,
    fault: Option<String>,
    ended: bool,
    /// Times that it changes its keys, and wants the other side to, before it says anything.
    pub(crate) key_updates: u32,
}

impl Secure {
    /// A client's, with this configuration.
    pub(crate) fn client(config: ClientConfig) -> Self {
        let name = ServerName::try_from(NAME).expect("it is a name");
        let client = rustls::ClientConnection::new(Arc::new(config), name);
        Self::new(Connection::Client(client.expect("it can be had")))
    }

    /// A backend's.
    pub(crate) fn server(config: &Arc<ServerConfig>) -> Self {
        let server = rustls::ServerConnection::new(config.clone());
        Self::new(Connection::Server(server.expect("it can be had")))
    }

    fn new(mut tls: Connection) -> Self {
        tls.set_buffer_limit(None);
        let mut layer = Self {
            tls,
            out: VecDeque::new(),
            fault: None,
            ended: false,
            key_updates: 0,
        };
        layer.collect();
        layer
    }

    pub(crate) fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    pub(crate) fn into_client(self) -> Option<rustls::ClientConnection> {
        match self.tls {
            Connection::Client(client) => Some(client),
            Connection::Server(_) => None,
        }
    }

    fn collect(&mut self) {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.out).expect("it is memory");
        }
    }
}

impl Layer for Secure {
    fn hear(&mut self, mut wire: &[u8], plain: &mut Vec<u8>) {
        while !wire.is_empty() && self.fault.is_none() {
            if !matches!(self.tls.read_tls(&mut wire), Ok(1..)) {
                break;
            }
            match self.tls.process_new_packets() {
                Ok(state) => self.ended |= state.peer_has_closed(),
                Err(error) => self.fault = Some(error.to_string()),
            }
            // Ends with an error when there is nothing more for now; what there is was put behind `plain`.
            let _ = self.tls.reader().read_to_end(plain);
        }
        self.collect();
    }

    fn has_ended(&self) -> bool {
        self.ended
    }

    fn room(&self) -> usize {
        match self.is_handshaking() || self.fault.is_some() {
            true => 0,
            false => MOST_QUEUED.saturating_sub(self.out.len()),
        }
    }

    fn say(&mut self, plain: &[u8]) {
        for _ in 0..std::mem::take(&mut self.key_updates) {
            self.tls.refresh_traffic_keys().expect("it is established");
            self.collect();
        }
        self.tls.writer().write_all(plain).expect("it is memory");
        self.collect();
    }

    fn finish(&mut self) {
        self.tls.send_close_notify();
        self.collect();
    }

    fn next(&mut self, room: usize) -> Wire {
        take(&mut self.out, room)
    }

    fn fault(&self) -> Option<String> {
        self.fault.clone()
    }
}

/// What a layer keeps for the wire.
const MOST_QUEUED: usize = 64 << 10;

fn take(queue: &mut VecDeque<u8>, room: usize) -> Wire {
    match queue.len().min(room) {
        0 => Wire::Rest,
        some => Wire::Bytes(queue.drain(..some).collect()),
    }
}

/// No protocol, for what goes around one.
#[derive(Default)]
pub(crate) struct Plain {
    out: VecDeque<u8>,
    ended: bool,
}

impl Layer for Plain {
    fn hear(&mut self, wire: &[u8], plain: &mut Vec<u8>) {
        plain.extend_from_slice(wire);
    }

    fn hear_fin(&mut self) {
        self.ended = true;
    }

    fn has_ended(&self) -> bool {
        self.ended
    }

    fn room(&self) -> usize {
        MOST_QUEUED.saturating_sub(self.out.len())
    }

    fn say(&mut self, plain: &[u8]) {
        self.out.extend(plain);
    }

    fn finish(&mut self) {}

    fn next(&mut self, room: usize) -> Wire {
        take(&mut self.out, room)
    }

    fn fault(&self) -> Option<String> {
        None
    }
}

/// At these places of what it says, in order, something else happens to the wire.
pub(crate) struct Shaped {
    inner: Box<dyn Layer>,
    marks: VecDeque<(usize, Mark)>,
    said: usize,
    silent: bool,
    /// Bytes of a mark.
    aside: VecDeque<u8>,
}

/// What happens there.
#[derive(Clone, Debug)]
pub(crate) enum Mark {
    /// This, once.
    Do(Wire),
    /// Nothing more is said.
    Silence,
}

impl Shaped {
    pub(crate) fn new(
        inner: impl Layer + 'static,
        marks: impl IntoIterator<Item = (usize, Mark)>,
    ) -> Self {
        Self::around(Box::new(inner), marks)
    }

    pub(crate) fn around(
        inner: Box<dyn Layer>,
        marks: impl IntoIterator<Item = (usize, Mark)>,
    ) -> Self {
        Self {
            inner,
            marks: marks.into_iter().collect(),
            said: 0,
            silent: false,
            aside: VecDeque::new(),
        }
    }

    /// `mark` at `at`.
    pub(crate) fn at(at: usize, mark: Mark, inner: impl Layer + 'static) -> Self {
        Self::new(inner, [(at, mark)])
    }
}

impl Layer for Shaped {
    fn hear(&mut self, wire: &[u8], plain: &mut Vec<u8>) {
        self.inner.hear(wire, plain);
    }

    fn hear_fin(&mut self) {
        self.inner.hear_fin();
    }

    fn has_ended(&self) -> bool {
        self.inner.has_ended()
    }

    fn room(&self) -> usize {
        self.inner.room()
    }

    fn say(&mut self, plain: &[u8]) {
        self.inner.say(plain);
    }

    fn finish(&mut self) {
        self.inner.finish();
    }

    fn next(&mut self, mut room: usize) -> Wire {
        if !self.aside.is_empty() {
            return take(&mut self.aside, room);
        }
        if self.silent {
            return Wire::Pause(Duration::from_hours(24));
        }
        if let Some((at, mark)) = self.marks.front() {
            if *at > self.said {
                room = room.min(at - self.said);
            } else {
                let mark = mark.clone();
                self.marks.pop_front();
                self.silent = matches!(mark, Mark::Silence);
                return match mark {
                    Mark::Do(Wire::Bytes(bytes)) => {
                        self.aside.extend(bytes);
                        take(&mut self.aside, room)
                    }
                    Mark::Do(wire) => wire,
                    Mark::Silence => Wire::Pause(Duration::from_hours(24)),
                };
            }
        }
        let wire = self.inner.next(room);
        if let Wire::Bytes(bytes) = &wire {
            self.said += bytes.len();
        }
        wire
    }

    fn fault(&self) -> Option<String> {
        self.inner.fault()
    }
}

/// A proxy in front of the proxy: says a header first.
pub(crate) fn announcing(header: Vec<u8>, inner: Box<dyn Layer>) -> Box<dyn Layer> {
    let said = Mark::Do(Wire::Bytes(header));
    Box::new(Shaped::around(inner, [(0, said)]))
}

/// Who backends were told the clients are: stream and source, where both are known.
pub(crate) type Told = Rc<RefCell<Vec<(u64, SocketAddr)>>>;

/// A backend that hears a header first.
pub(crate) struct Hearing {
    inner: Box<dyn Layer>,
    reader: Option<HeaderReader>,
    source: Option<SocketAddr>,
    /// The first bytes of what the client says.
    stream: Vec<u8>,
    told: Told,
    fault: Option<String>,
}

impl Hearing {
    pub(crate) fn new(inner: Box<dyn Layer>, told: Told) -> Self {
        Self {
            inner,
            reader: Some(HeaderReader::new()),
            source: None,
            stream: Vec::new(),
            told,
            fault: None,
        }
    }

    /// Takes the header off `wire`.
    fn header<'a>(&mut self, wire: &'a [u8]) -> &'a [u8] {
        let Some(reader) = &mut self.reader else {
            return wire;
        };
        let fed = reader.feed(wire);
        match fed.progress {
            Progress::More => {}
            Progress::Done(announced) => {
                self.reader = None;
                if let Announced::Client { source, .. } = announced {
                    self.source = Some(source);
                }
            }
            Progress::Bad(fault) => self.fault = Some(fault.to_string()),
        }
        &wire[fed.used..]
    }
}

impl Layer for Hearing {
    fn hear(&mut self, wire: &[u8], plain: &mut Vec<u8>) {
        let rest = self.header(wire);
        if rest.is_empty() || self.fault.is_some() {
            return;
        }
        let before = plain.len();
        self.inner.hear(rest, plain);
        if self.stream.len() < 8 {
            self.stream.extend_from_slice(&plain[before..]);
            if let (Some(stream), Some(source)) = (self.stream.first_chunk(), self.source) {
                let entry = (u64::from_le_bytes(*stream), source);
                self.told.borrow_mut().push(entry);
            }
        }
    }

    fn hear_fin(&mut self) {
        self.inner.hear_fin();
    }

    fn has_ended(&self) -> bool {
        self.inner.has_ended()
    }

    fn room(&self) -> usize {
        match self.reader {
            Some(_) => 0,
            None => self.inner.room(),
        }
    }

    fn say(&mut self, plain: &[u8]) {
        self.inner.say(plain);
    }

    fn finish(&mut self) {
        self.inner.finish();
    }

    fn next(&mut self, room: usize) -> Wire {
        self.inner.next(room)
    }

    fn fault(&self) -> Option<String> {
        self.fault.clone().or_else(|| self.inner.fault())
    }
}

/// A pause of the wire.
pub(crate) fn pause(millis: u64) -> Mark {
    Mark::Do(Wire::Pause(Duration::from_millis(millis)))
}

/// Says something and takes no notice of what it hears.
pub(crate) struct Blurting {
    out: VecDeque<u8>,
    ended: bool,
}

impl Blurting {
    pub(crate) fn new(said: &[u8]) -> Self {
        Self {
            out: said.iter().copied().collect(),
            ended: false,
        }
    }
}

impl Layer for Blurting {
    fn hear(&mut self, _: &[u8], _: &mut Vec<u8>) {}

    fn hear_fin(&mut self) {
        self.ended = true;
    }

    fn has_ended(&self) -> bool {
        self.ended
    }

    fn room(&self) -> usize {
        usize::from(self.ended)
    }

    fn say(&mut self, _: &[u8]) {}

    fn finish(&mut self) {}

    fn next(&mut self, room: usize) -> Wire {
        take(&mut self.out, room)
    }

    fn fault(&self) -> Option<String> {
        None
    }
}
