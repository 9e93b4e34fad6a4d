//! Peers that speak in datagrams.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::PATIENCE;

/// How long to wait for what is not to come.
pub(crate) const SILENCE: Duration = Duration::from_millis(200);

/// How long the loop of a backend waits for a datagram before it looks whether it is to end.
const LOOK: Duration = Duration::from_millis(20);

/// A backend that answers datagrams. Dropped, its port is closed.
pub(crate) struct DatagramBackend {
    pub(crate) address: String,
    received: Arc<AtomicUsize>,
    senders: Arc<Mutex<Vec<SocketAddr>>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl DatagramBackend {
    /// At a port of its own; `answers` says what is sent back, in order.
    pub(crate) fn start(answers: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        Self::on(socket, answers)
    }

    /// Says back what it hears.
    pub(crate) fn echo() -> Self {
        Self::start(|heard| vec![heard.to_vec()])
    }

    /// Answers with its name.
    pub(crate) fn named(name: &'static str) -> Self {
        Self::start(move |_| vec![name.as_bytes().to_vec()])
    }

    /// On a socket that is bound.
    pub(crate) fn on(
        socket: UdpSocket,
        answers: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static,
    ) -> Self {
        let address = socket.local_addr().expect("it is bound").to_string();
        socket.set_read_timeout(Some(LOOK)).expect("a timeout");
        let received: Arc<AtomicUsize> = Arc::default();
        let senders: Arc<Mutex<Vec<SocketAddr>>> = Arc::default();
        let ends: Arc<AtomicBool> = Arc::default();
        let (count, from, over) = (received.clone(), senders.clone(), ends.clone());
        let serve = move || {
            let mut heard = vec![0; 1 << 16];
            while !AtomicBool::load(&over, Ordering::Relaxed) {
                // ICMP of an earlier answer is told here, too.
                let Ok((len, sender)) = socket.recv_from(&mut heard) else {
                    continue;
                };
                count.fetch_add(1, Ordering::Relaxed);
                from.lock().expect("nobody panicked").push(sender);
                for answer in answers(&heard[..len]) {
                    // Who asked may be gone.
                    let _ = socket.send_to(&answer, sender);
                }
            }
        };
        Self {
            address,
            received,
            senders,
            ends,
            thread: Some(thread::spawn(serve)),
        }
    }

    /// Datagrams that came.
    pub(crate) fn received(&self) -> usize {
        self.received.load(Ordering::Relaxed)
    }

    /// From whom, in order.
    pub(crate) fn senders(&self) -> Vec<SocketAddr> {
        self.senders.lock().expect("nobody panicked").clone()
    }
}

impl Drop for DatagramBackend {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // If it panicked, the test has failed elsewhere.
            let _ = thread.join();
        }
    }
}

/// An address where nobody is, and nobody comes: the port is taken for TCP's sake only.
pub(crate) fn closed_address() -> String {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    socket.local_addr().expect("it is bound").to_string()
}

/// A client at `from`, which may be without a port.
pub(crate) fn client_at(from: &str) -> UdpSocket {
    let socket = UdpSocket::bind(from).expect("an address of this machine");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
}

/// A client.
pub(crate) fn client() -> UdpSocket {
    client_at("127.0.0.1:0")
}

/// Sends `bytes` to `address` and waits for an answer from there.
pub(crate) fn ask(client: &UdpSocket, address: &str, bytes: &[u8]) -> Vec<u8> {
    client.send_to(bytes, address).expect("it is sent");
    hear(client, address)
}

/// What `address` says next.
pub(crate) fn hear(client: &UdpSocket, address: &str) -> Vec<u8> {
    let mut heard = vec![0; 1 << 16];
    let (len, from) = client.recv_from(&mut heard).expect("an answer");
    assert_eq!(from.to_string(), address, "an answer of somebody else");
    heard.truncate(len);
    heard
}

/// The same, as text.
pub(crate) fn ask_text(client: &UdpSocket, address: &str) -> String {
    String::from_utf8(ask(client, address, b"?")).expect("a name")
}

/// Nothing comes, and there is no error either.
pub(crate) fn hears_nothing(client: &UdpSocket) {
    client.set_read_timeout(Some(SILENCE)).expect("a timeout");
    let heard = client.recv_from(&mut [0; 64]);
    let error = heard.expect_err("nothing was to come");
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
    client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
}

/// A configuration with one listener for datagrams, `web`; `udp` are lines of its table of that name.
pub(crate) fn udp_config(backends: &[&str], listener: &str, udp: &str, rest: &str) -> String {
    let listener = format!("protocol = \"udp\"\n{listener}\n[listeners.web.udp]\n{udp}");
    super::config(backends, &listener, "", rest)
}
