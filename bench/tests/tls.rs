//! The load generator against a server that speaks TLS: every handshake is of the kind that was asked for,
//! every byte is compared, and what is not as it should be is an error.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use ringress_bench::load::{self, Outcome, Plan, Target, Tls, Work};
use ringress_bench::{load::NAME, local};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ProducesTickets;
use rustls::{HandshakeKind, ServerConfig, ServerConnection};

/// What a server does with the bytes that come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answer {
    Echo,
    /// Echo, but the last byte of each answer is another.
    Changed,
    /// As many of the counted pattern as the eight bytes say.
    Download,
}

/// A server on a thread for each connection, as long as the test's process lives.
struct Server {
    address: SocketAddr,
    certificate: CertificateDer<'static>,
    seen: Arc<Seen>,
}

/// What a server saw.
#[derive(Default)]
struct Seen {
    full: AtomicU64,
    resumed: AtomicU64,
    /// Connections that ended with close_notify.
    closed: AtomicU64,
    suites: Mutex<Vec<String>>,
}

impl Server {
    fn start(answer: Answer, tickets: bool) -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key can be made");
        let parameters = CertificateParams::new(vec![NAME.to_owned()]).expect("it is a name");
        let certificate = parameters.self_signed(&key).expect("it can be signed");
        let certificate = certificate.der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("it is a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has them")
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .expect("they fit");
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        if tickets {
            let ticketer = rustls::crypto::aws_lc_rs::Ticketer::new();
            let ticketer: Arc<dyn ProducesTickets> = ticketer.expect("there is randomness");
            config.ticketer = ticketer;
        }
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let (config, seen) = (Arc::new(config), Arc::new(Seen::default()));
        let seen_by_it = Arc::clone(&seen);
        thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                let (config, seen) = (Arc::clone(&config), Arc::clone(&seen_by_it));
                thread::spawn(move || serve(socket, config, &seen, answer));
            }
        });
        Self {
            address,
            certificate,
            seen,
        }
    }

    fn tls(&self) -> Tls {
        Tls::new(&self.certificate).expect("it is a certificate")
    }

    fn run(&self, tls: Tls, connections: usize, work: Work) -> Outcome {
        let plan = Plan {
            target: Target {
                address: self.address,
                tls: Some(tls),
            },
            connections,
            warmup: Duration::ZERO,
            duration: Duration::from_millis(300),
            work,
        };
        let ring = local::ring().expect("io_uring is there");
        load::run(&ring, &plan, &mut |_| {}).expect("the run ends")
    }
}

/// Ends quietly with the connection: what was wrong with it, the generator says.
fn serve(mut socket: TcpStream, config: Arc<ServerConfig>, seen: &Seen, answer: Answer) {
    let mut tls = ServerConnection::new(config).expect("the configuration is whole");
    if tls.complete_io(&mut socket).is_err() {
        return;
    }
    match tls.handshake_kind() {
        Some(HandshakeKind::Resumed) => &seen.resumed,
        _ => &seen.full,
    }
    .fetch_add(1, Ordering::Relaxed);
    let suite = tls.negotiated_cipher_suite().expect("it is over").suite();
    let group = tls.negotiated_key_exchange_group().map(|it| it.name());
    let mut suites = seen.suites.lock().expect("nobody panics with it");
    suites.push(format!("{suite:?} {group:?}"));
    drop(suites);
    let mut stream = rustls::Stream::new(&mut tls, &mut socket);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let said = match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => answer_to(&buffer[..count], answer),
            Err(_) => return,
        };
        if stream.write_all(&said).is_err() {
            return;
        }
    }
    seen.closed.fetch_add(1, Ordering::Relaxed);
    stream.conn.send_close_notify();
    let _ = stream.conn.complete_io(stream.sock);
}

fn answer_to(heard: &[u8], answer: Answer) -> Vec<u8> {
    let mut said = heard.to_vec();
    match answer {
        Answer::Echo => {}
        Answer::Changed => *said.last_mut().expect("something was heard") ^= 1,
        Answer::Download => {
            let bytes = u64::from_be_bytes(heard.try_into().expect("eight bytes at once"));
            said = (0..bytes).map(|n| (n % 251) as u8).collect();
        }
    }
    said
}

#[test]
fn every_handshake_is_a_full_one_of_the_suite_that_all_proxies_get() {
    let server = Server::start(Answer::Echo, true);
    let outcome = server.run(server.tls(), 4, Work::NewConnections { size: 128 });
    let seen = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let full = seen(&server.seen.full);
    assert_eq!(outcome.errors, 0, "{:?}", outcome.losses);
    assert_eq!(seen(&server.seen.resumed), 0);
    assert!(outcome.completed > 10 && outcome.completed <= full);
    assert_eq!(outcome.bytes, outcome.completed * 128);
    // But for those that the end of the run has cut off.
    assert!(
        seen(&server.seen.closed) + 4 >= full,
        "close_notify ends a visit"
    );
    let suites = server.seen.suites.lock().expect("nobody panics with it");
    let wanted = "TLS13_AES_128_GCM_SHA256 Some(X25519)";
    assert!(suites.iter().all(|suite| suite == wanted), "{suites:?}");
}

#[test]
fn all_handshakes_but_the_first_of_each_place_are_resumed() {
    let server = Server::start(Answer::Echo, true);
    let outcome = server.run(
        server.tls().resumed(),
        4,
        Work::NewConnections { size: 128 },
    );
    assert_eq!(outcome.errors, 0, "{:?}", outcome.losses);
    assert_eq!(server.seen.full.load(Ordering::Relaxed), 4);
    let resumed = server.seen.resumed.load(Ordering::Relaxed);
    assert!(resumed > 10 && outcome.completed <= resumed + 4);
}

#[test]
fn a_full_handshake_where_a_resumed_one_was_wanted_is_an_error_and_no_answer() {
    let server = Server::start(Answer::Echo, false);
    let outcome = server.run(
        server.tls().resumed(),
        4,
        Work::NewConnections { size: 128 },
    );
    assert_eq!(outcome.completed, 4, "the first of each place");
    assert!(outcome.losses.not_resumed > 10, "{:?}", outcome.losses);
    assert_eq!(outcome.errors, outcome.losses.not_resumed);
}

#[test]
fn a_changed_byte_is_found_below_tls() {
    let server = Server::start(Answer::Changed, true);
    for work in [
        Work::NewConnections { size: 128 },
        Work::Saturate { size: 128 },
    ] {
        let outcome = server.run(server.tls(), 2, work);
        assert_eq!(outcome.completed, 0);
        assert!(outcome.losses.wrong_bytes > 0, "{:?}", outcome.losses);
        assert_eq!(outcome.errors, outcome.losses.wrong_bytes);
    }
}

#[test]
fn a_server_with_another_certificate_is_not_talked_to() {
    let server = Server::start(Answer::Echo, true);
    let other = Server::start(Answer::Echo, true);
    let outcome = server.run(other.tls(), 2, Work::NewConnections { size: 128 });
    assert_eq!(outcome.completed, 0);
    assert!(outcome.losses.tls_failed > 0, "{:?}", outcome.losses);
    assert_eq!(server.seen.closed.load(Ordering::Relaxed), 0);
}

#[test]
fn kept_connections_and_downloads_go_over_tls() {
    let server = Server::start(Answer::Echo, true);
    let outcome = server.run(server.tls(), 8, Work::Saturate { size: 30_000 });
    assert_eq!(
        (outcome.errors, server.seen.full.load(Ordering::Relaxed)),
        (0, 8)
    );
    assert!(outcome.completed > 10, "{}", outcome.completed);

    let server = Server::start(Answer::Download, true);
    let outcome = server.run(server.tls(), 2, Work::Download { bytes: 1_000_003 });
    assert_eq!(outcome.errors, 0, "{:?}", outcome.losses);
    assert!(outcome.completed > 0 && outcome.bytes >= outcome.completed * 1_000_003);
}

#[test]
fn idle_connections_are_held_with_tls() {
    let server = Server::start(Answer::Echo, true);
    let ring = local::ring().expect("io_uring is there");
    let target = Target {
        address: server.address,
        tls: Some(server.tls()),
    };
    let held = load::open(&ring, &target, 100, 64).expect("all can be had");
    assert_eq!(server.seen.full.load(Ordering::Relaxed), 100);
    drop(held);
}
