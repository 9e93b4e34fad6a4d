//! Many bytes, slow readers, bandwidth, and what else goes on in the midst of a session.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use crate::common::essentials::MIB;
use crate::common::pattern::Pattern;
use crate::common::socket::connect_with_small_window;
use crate::common::system::anonymous_kib;
use crate::common::{Backend, Proxy, config, now, pass};
use crate::peers::{self, client, finish, openssl, secure, there_and_back, visit};
use crate::pki::{Pki, VERSIONS, tls};
use crate::{terminates, terminating};

#[test]
fn every_byte_passes_both_ways_with_tls_on_the_clients_side() {
    let backend = Backend::echo();
    let (pki, mut proxy) = terminating(&backend, "", "");
    for version in VERSIONS {
        let config = Arc::new(pki.client_of(&[version]));
        let mut stream = client(&config, "a.test", &proxy.address("web")).expect("a handshake");
        there_and_back(&mut stream, 64 * MIB);
        finish(&mut stream);
        assert_eq!(stream.read(&mut [0]).expect("close_notify"), 0);
        let session = proxy.next_session();
        assert_eq!(session.reason, "client-closed");
        assert_eq!(
            (session.bytes_received, session.bytes_sent),
            (64 * MIB, 64 * MIB)
        );
    }
    proxy.end();
}

#[test]
fn every_byte_passes_both_ways_with_tls_on_both_sides_or_the_backends_alone() {
    let (pki, theirs) = (Pki::new(), Pki::new());
    let leaf = theirs.leaf("127.0.0.1");
    for version in VERSIONS {
        let backend = peers::backend(theirs.server_of(&leaf, version), peers::echo);
        let upstream = format!("tls = {{ ca = {:?} }}", theirs.ca());
        let tables = "[listeners.plain]\nbind = \"127.0.0.1:0\"\nupstream = \"app\"\n\
                      [runtime]\nworkers = 2\n";
        let listener = tls(&[&pki.leaf("a.test")], "");
        let mut proxy = Proxy::start(&config(&[&backend.address], &listener, &upstream, tables));
        let config = Arc::new(pki.client());
        let mut stream = client(&config, "a.test", &proxy.address("web")).expect("a handshake");
        there_and_back(&mut stream, 16 * MIB);
        finish(&mut stream);
        assert_eq!(stream.read(&mut [0]).expect("close_notify"), 0);
        assert_eq!(proxy.next_session().reason, "client-closed");
        let plain = crate::common::connect(&proxy.address("plain"));
        crate::common::essentials::there_and_back(&plain, 16 * MIB);
        let session = proxy.next_session();
        assert_eq!(session.reason, "client-closed");
        assert_eq!(
            (session.bytes_received, session.bytes_sent),
            (16 * MIB, 16 * MIB)
        );
        proxy.end();
    }
}

#[test]
fn a_slow_reader_holds_a_window_and_nobody_up() {
    const COUNT: u64 = 16 * MIB;
    let flood = Backend::start(|mut connection| {
        if connection.read(&mut [0]).is_ok_and(|read| read == 1) {
            let written = Pattern::new().write(&mut connection, COUNT);
            written.expect("all is taken in the end");
        }
    });
    let quick = Backend::echo();
    let (pki, others) = (Pki::new(), Pki::new());
    let tables = format!(
        "[listeners.quick]\nbind = \"127.0.0.1:0\"\nupstream = \"quick\"\n{}\
         [upstreams.quick]\nbackends = [{:?}]\n[runtime]\nworkers = 1\n",
        tls(&[&others.leaf("q.test")], ""),
        quick.address
    );
    let listener = tls(&[&pki.leaf("a.test")], "");
    let mut proxy = Proxy::start(&config(&[&flood.address], &listener, "", &tables));
    // What a handshake takes once is taken before.
    let others = Arc::new(others.client());
    visit(&others, "q.test", &proxy.address("quick")).expect("an echo");
    proxy.next_session();
    let before = anonymous_kib(proxy.pid());
    let socket = connect_with_small_window(&proxy.address("web"), 64 * 1024);
    let mut slow = secure(&Arc::new(pki.client()), "a.test", socket).expect("a handshake");
    slow.write_all(b"!").expect("it is taken");
    // Let the flood come to its stop, then see that others are served at the usual pace.
    pass(Duration::from_millis(300));
    let began = now();
    let mut quick = client(&others, "q.test", &proxy.address("quick")).expect("a handshake");
    there_and_back(&mut quick, MIB);
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    let grown = anonymous_kib(proxy.pid()).saturating_sub(before);
    assert!(grown < 2048, "{grown} KiB for one stalled session");
    let mut pattern = Pattern::new();
    pattern
        .check_to_end(&mut slow)
        .expect("close_notify at the end");
    assert_eq!(pattern.place, COUNT);
    drop((slow, quick));
    proxy.next_sessions(2);
    proxy.end();
}

#[test]
fn bandwidth_is_that_of_the_plaintext() {
    let backend = Backend::start(|mut connection| {
        let _ = Pattern::new().write(&mut connection, 5 * MIB / 4);
    });
    let limit = "rate_limit = { bandwidth = { rate = \"1MiB\", burst = \"256KiB\" } }";
    let (pki, mut proxy) = terminating(&backend, "", limit);
    let config = Arc::new(pki.client());
    let mut stream = client(&config, "a.test", &proxy.address("web")).expect("a handshake");
    let began = now();
    let mut pattern = Pattern::new();
    pattern
        .check_to_end(&mut stream)
        .expect("close_notify at the end");
    let took = began.elapsed().as_secs_f64();
    assert_eq!(pattern.place, 5 * MIB / 4);
    assert!((0.9..=1.2).contains(&took), "{took} instead of 1");
    drop(stream);
    assert_eq!(proxy.next_session().bytes_sent, 5 * MIB / 4);
    proxy.end();
}

/// Hands on what is written to it byte by byte, each in a segment of its own if the kernel likes.
struct Trickle<'a>(&'a socket2::Socket);

impl Write for Trickle<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut socket = self.0;
        bytes
            .iter()
            .try_for_each(|byte| socket.write_all(&[*byte]))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn records_that_come_byte_by_byte_are_put_together() {
    let backend = Backend::echo();
    let (pki, mut proxy) = terminating(&backend, "", "");
    for version in VERSIONS {
        let config = Arc::new(pki.client_of(&[version]));
        let (mut connection, bytes) = peers::hello(&config, "a.test");
        let mut socket = proxy.connect();
        socket.set_tcp_nodelay(true).expect("it can be set");
        Trickle(&socket).write_all(&bytes).expect("it is taken");
        while connection.is_handshaking() {
            while connection.wants_write() {
                connection
                    .write_tls(&mut Trickle(&socket))
                    .expect("it is taken");
            }
            if connection.is_handshaking() {
                connection.read_tls(&mut socket).expect("it comes");
                connection.process_new_packets().expect("it is right");
            }
        }
        let mut there = Pattern::new();
        there
            .write(&mut connection.writer(), 20_000)
            .expect("it fits");
        while connection.wants_write() {
            connection
                .write_tls(&mut Trickle(&socket))
                .expect("it is taken");
        }
        let mut back = Pattern::new();
        let mut stream = rustls::StreamOwned::new(connection, socket);
        back.check(&mut stream, 20_000).expect("it comes back");
        finish(&mut stream);
        drop(stream);
        assert_eq!(proxy.next_session().reason, "client-closed");
    }
    proxy.end();
}

#[test]
fn keys_are_updated_by_either_side() {
    let backend = Backend::echo();
    let (_pki, mut proxy) = terminating(&backend, "", "");
    let mut client = openssl(&proxy.address("web"), &["-tls1_3"]);
    client.say("word 0\n");
    client.hears("word 0", 1);
    // `K` asks for an update of the other side's keys, too.
    for (at, command) in ["K\n", "k\n", "K\n", "K\n"].iter().enumerate() {
        client.say(command);
        client.hears("KEYUPDATE", at + 1);
        let word = format!("word {}", at + 1);
        client.say(&format!("{word}\n"));
        client.hears(&word, 1);
    }
    let (succeeded, said) = client.end();
    assert!(succeeded, "{said}");
    assert_eq!(proxy.next_session().reason, "client-closed");

    // Those of both sides, where the proxy is the client.
    let pki = Pki::new();
    let backend = peers::backend(pki.server(&pki.leaf("127.0.0.1")), |mut stream| {
        let mut word = [0; 4];
        while stream.read_exact(&mut word).is_ok() {
            stream
                .conn
                .refresh_traffic_keys()
                .expect("TLS 1.3 has that");
            let answered = stream.write_all(&word).and_then(|()| stream.flush());
            answered.expect("it is taken");
        }
    });
    let upstream = format!("tls = {{ ca = {:?} }}", pki.ca());
    proxy.end();
    let mut proxy = Proxy::start(&config(&[&backend.address], "", &upstream, ""));
    let mut client = proxy.connect();
    for word in [b"word", b"more", b"last"] {
        let mut answer = [0; 4];
        client.write_all(word).expect("it is taken");
        client.read_exact(&mut answer).expect("it comes back");
        assert_eq!(&answer, word);
    }
    drop(client);
    proxy.next_session();
    proxy.end();
}

#[test]
fn an_attempt_to_renegotiate_harms_nobody() {
    let (pki, backend) = (Pki::new(), Backend::echo());
    let mut proxy = Proxy::start(&terminates(&backend, &pki.leaf("a.test"), "", ""));
    let address = proxy.address("web");
    let config = Arc::new(pki.client());
    let mut other = client(&config, "a.test", &address).expect("a handshake");
    let mut asking = openssl(&address, &["-tls1_2"]);
    asking.say("word 0\n");
    asking.hears("word 0", 1);
    asking.say("R\n");
    asking.hears("RENEGOTIATING", 1);
    let (_, said) = asking.end();
    assert!(said.contains("no renegotiation"), "{said}");
    let reason = proxy.next_session().reason;
    assert!(
        ["client-tls", "client-closed"].contains(&reason.as_str()),
        "{reason}"
    );
    peers::exchange(&mut other).expect("an echo");
    visit(&config, "a.test", &address).expect("it is served");
    drop(other);
    proxy.next_sessions(2);
    proxy.end();
}
