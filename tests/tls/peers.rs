//! Peers that speak TLS: rustls as a client and as a backend, and the servers of others.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, ConfigBuilder, DigitallySignedStruct, HandshakeKind,
    ServerConfig, ServerConnection, SideData, SignatureScheme, StreamOwned, WantsVerifier,
};
use socket2::Socket;
use tempfile::TempDir;

use crate::common::backend::free_address;
use crate::common::pattern::Pattern;
use crate::common::tools::{Server, Talk, installed, said};
use crate::common::{Backend, eventually};

/// A client's connection.
pub(crate) type Client = StreamOwned<ClientConnection, Socket>;
/// A backend's connection.
pub(crate) type Served = StreamOwned<ServerConnection, Socket>;

/// Connects and goes through the handshake as far as a client sees it.
pub(crate) fn client(config: &Arc<ClientConfig>, name: &str, address: &str) -> io::Result<Client> {
    secure(config, name, crate::common::connect(address))
}

/// The same on a connection that there is.
pub(crate) fn secure(
    config: &Arc<ClientConfig>,
    name: &str,
    mut socket: Socket,
) -> io::Result<Client> {
    let mut connection = connection(config, name);
    if socket.local_addr()?.as_socket().is_some() {
        socket.set_tcp_nodelay(true)?;
    }
    while connection.is_handshaking() {
        connection.complete_io(&mut socket)?;
    }
    Ok(StreamOwned::new(connection, socket))
}

/// A connection without a socket.
pub(crate) fn connection(config: &Arc<ClientConfig>, name: &str) -> ClientConnection {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    ClientConnection::new(config.clone(), name).expect("the configuration is good")
}

/// A connection and its ClientHello, to be sent by hand.
pub(crate) fn hello(config: &Arc<ClientConfig>, name: &str) -> (ClientConnection, Vec<u8>) {
    let (mut connection, mut bytes) = (connection(config, name), Vec::new());
    while connection.wants_write() {
        connection.write_tls(&mut bytes).expect("memory takes it");
    }
    (connection, bytes)
}

/// A client that looks at no certificate.
pub(crate) fn anyone() -> ClientConfig {
    anyone_by(ClientConfig::builder())
}

/// The same of a configuration that has begun.
pub(crate) fn anyone_by(builder: ConfigBuilder<ClientConfig, WantsVerifier>) -> ClientConfig {
    let verifier = Arc::new(Anyone(builder.crypto_provider().clone()));
    let builder = builder
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    builder.with_no_client_auth()
}

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

/// A word and its echo.
pub(crate) fn exchange(stream: &mut (impl Read + Write)) -> io::Result<()> {
    let mut answer = [0; 6];
    stream.write_all(b"a word")?;
    stream.read_exact(&mut answer)?;
    assert_eq!(&answer, b"a word");
    Ok(())
}

/// Says that nothing more comes.
pub(crate) fn finish<C, S>(stream: &mut StreamOwned<C, Socket>)
where
    C: std::ops::DerefMut<Target = rustls::ConnectionCommon<S>>,
    S: SideData,
{
    stream.conn.send_close_notify();
    // The other side may be gone.
    let _ = stream.flush();
}

/// A whole session with an echo; what kind of handshake it began with.
pub(crate) fn visit(
    config: &Arc<ClientConfig>,
    name: &str,
    address: &str,
) -> io::Result<HandshakeKind> {
    let mut stream = client(config, name, address)?;
    exchange(&mut stream)?;
    let kind = stream.conn.handshake_kind().expect("it is over");
    finish(&mut stream);
    assert_eq!(stream.read(&mut [0; 16])?, 0);
    Ok(kind)
}

/// Writes the pattern and reads it back, while a part of it is on its way.
pub(crate) fn there_and_back(stream: &mut (impl Read + Write), count: u64) {
    /// What the buffers of all who are on the way hold for sure.
    const ON_THE_WAY: u64 = 128 << 10;
    const STEP: u64 = 16 << 10;
    let (mut there, mut back) = (Pattern::new(), Pattern::new());
    while back.place < count {
        while there.place < count && there.place - back.place < ON_THE_WAY {
            let step = STEP.min(count - there.place);
            there.write(stream, step).expect("it is taken");
        }
        let step = STEP.min(count - back.place);
        back.check(stream, step).expect("it comes back");
    }
}

/// A backend that speaks TLS; every connection with which the handshake succeeds is handed to `script`.
pub(crate) fn backend(
    config: ServerConfig,
    script: impl Fn(Served) + Send + Sync + 'static,
) -> Backend {
    let config = Arc::new(config);
    Backend::start(move |socket| {
        if let Ok(served) = serve(&config, socket) {
            script(served);
        }
    })
}

/// A backend's side of the handshake.
pub(crate) fn serve(config: &Arc<ServerConfig>, mut socket: Socket) -> io::Result<Served> {
    let connection = ServerConnection::new(config.clone());
    let mut connection = connection.expect("the configuration is good");
    socket.set_tcp_nodelay(true)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut socket)?;
    }
    Ok(StreamOwned::new(connection, socket))
}

/// Sends back what comes, then close_notify for close_notify.
pub(crate) fn echo(mut stream: Served) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                if stream.write_all(&buffer[..count]).is_err() || stream.flush().is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
    finish(&mut stream);
}

/// A backend that answers an HTTP request with these words.
pub(crate) fn http(words: &'static str) -> Backend {
    Backend::start(move |mut connection| {
        let (mut heard, mut buffer) = (Vec::new(), [0; 4096]);
        while !heard.ends_with(b"\r\n\r\n") {
            match connection.read(&mut buffer) {
                Ok(count @ 1..) => heard.extend_from_slice(&buffer[..count]),
                _ => return,
            }
        }
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{words}",
            words.len()
        );
        // The client may be gone.
        let _ = connection.write_all(answer.as_bytes());
    })
}

/// openssl's client at this address; words of its command line.
pub(crate) fn openssl(address: &str, words: &[&str]) -> Talk {
    Talk::start(
        "openssl",
        &[&["s_client", "-connect", address], words].concat(),
    )
}

/// What openssl's client prints of the handshake, and whether it has succeeded.
pub(crate) fn openssl_says(address: &str, words: &[&str]) -> (bool, String) {
    openssl(address, words).end()
}

/// A server of others, with the files that it is told by.
pub(crate) struct Other {
    pub(crate) address: String,
    _server: Server,
    _folder: Option<TempDir>,
}

impl Other {
    /// openssl's server, with further words.
    pub(crate) fn openssl(words: &str) -> Self {
        let address = free_address();
        let server = Server::start("openssl", &format!("s_server -accept {address} {words}"));
        Self::there(address, server, None)
    }

    /// HAProxy with this after the defaults; `ADDRESS` stands for its own.
    pub(crate) fn haproxy(config: &str) -> Self {
        let (address, folder) = (free_address(), tempfile::tempdir().expect("a folder"));
        let file = folder.path().join("haproxy.cfg");
        let config = format!(
            "defaults\n timeout client 20s\n timeout server 20s\n timeout connect 20s\n{}\n",
            config.replace("ADDRESS", &address)
        );
        fs::write(&file, config).expect("it can be written");
        let server = Server::start("haproxy", &format!("-db -f {}", file.display()));
        Self::there(address, server, Some(folder))
    }

    /// nginx with this `stream` and this `http`; `ADDRESS` stands for its own.
    pub(crate) fn nginx(stream: &str, http: &str) -> Self {
        let (address, folder) = (free_address(), tempfile::tempdir().expect("a folder"));
        let (file, here) = (folder.path().join("nginx.conf"), folder.path().display());
        let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|it| format!("{it}_temp_path {here}/{it};"));
        let config = format!(
            "{}daemon off; master_process off; pid {here}/pid;\nevents {{}}\n\
             stream {{ {stream} }}\nhttp {{ access_log off; {} {http} }}\n",
            stream_module(),
            paths.concat()
        );
        fs::write(&file, config.replace("ADDRESS", &address)).expect("it can be written");
        let server = Server::start("nginx", &format!("-e stderr -c {}", file.display()));
        Self::there(address, server, Some(folder))
    }

    fn there(address: String, server: Server, folder: Option<TempDir>) -> Self {
        eventually("the server", || TcpStream::connect(&address).ok());
        Self {
            address,
            _server: server,
            _folder: folder,
        }
    }
}

/// The line that loads nginx's stream module, where it is one to be loaded.
fn stream_module() -> String {
    let built = said("nginx", &["-V"]);
    if !built.contains("--with-stream=dynamic") {
        return String::new();
    }
    let folder = built
        .split_whitespace()
        .find_map(|word| word.strip_prefix("--modules-path="))
        .expect("modules are somewhere");
    let file = format!("{folder}/ngx_stream_module.so");
    installed(&file, "libnginx-mod-stream");
    format!("load_module {file};\n")
}
