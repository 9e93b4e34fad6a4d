//! How sessions end that have TLS on a side.

use std::io::{ErrorKind, Read, Write};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::common::essentials::MIB;
use crate::common::pattern::Pattern;
use crate::common::socket::{ending_of, finish as fin};
use crate::common::{Backend, Ending, Proxy, config, connect, now, pass, reset, told};
use crate::peers::{Client, client, exchange, finish, hello, secure};
use crate::pki::Pki;
use crate::{peers, terminating};

/// A client of the proxy's.
fn connected(pki: &Pki, proxy: &Proxy) -> Client {
    client(&Arc::new(pki.client()), "a.test", &proxy.address("web")).expect("a handshake")
}

#[test]
fn a_client_that_finishes_first_gets_the_whole_answer_and_close_notify() {
    let backend = Backend::start(|mut connection| {
        let (received, end) = crate::common::backend::drain(&mut connection);
        end.expect("the end is passed on");
        assert_eq!(received, 11);
        Pattern::new()
            .write(&mut connection, 4 * MIB)
            .expect("it is taken");
    });
    let (pki, mut proxy) = terminating(&backend, "", "");
    let mut stream = connected(&pki, &proxy);
    stream.write_all(b"a question?").expect("it is taken");
    finish(&mut stream);
    let mut pattern = Pattern::new();
    pattern
        .check_to_end(&mut stream)
        .expect("close_notify at the end");
    assert_eq!(pattern.place, 4 * MIB);
    assert_eq!(stream.sock.read(&mut [0]).expect("then FIN"), 0);
    let session = proxy.next_session();
    assert_eq!(session.reason, "client-closed");
    assert_eq!((session.bytes_received, session.bytes_sent), (11, 4 * MIB));
    proxy.end();
}

#[test]
fn a_backend_that_finishes_first_gets_all_that_the_client_still_sends() {
    let (tell, uploaded) = mpsc::channel();
    let backend = Backend::start(move |mut connection| {
        connection.write_all(b"go on").expect("it is taken");
        fin(&connection);
        let mut pattern = Pattern::new();
        pattern
            .check_to_end(&mut connection)
            .expect("FIN at the end");
        tell.send(pattern.place).expect("the test waits");
    });
    let (pki, mut proxy) = terminating(&backend, "", "");
    let mut stream = connected(&pki, &proxy);
    let mut words = Vec::new();
    stream
        .read_to_end(&mut words)
        .expect("close_notify at the end");
    assert_eq!(words, b"go on");
    Pattern::new()
        .write(&mut stream, 4 * MIB)
        .expect("it is taken");
    finish(&mut stream);
    assert_eq!(told(&uploaded), 4 * MIB);
    let session = proxy.next_session();
    assert_eq!(session.reason, "backend-closed");
    assert_eq!((session.bytes_received, session.bytes_sent), (4 * MIB, 5));
    proxy.end();
}

/// A backend that tells how many bytes of the pattern it got, and how that ended.
fn listening() -> (Backend, mpsc::Receiver<(u64, Ending)>) {
    let (tell, heard) = mpsc::channel();
    let backend = Backend::start(move |mut connection| {
        let mut pattern = Pattern::new();
        let end = match pattern.check_to_end(&mut connection) {
            Ok(()) => Ending::Fin,
            Err(error) => ending_of(&error),
        };
        tell.send((pattern.place, end)).expect("the test waits");
    });
    (backend, heard)
}

#[test]
fn a_client_that_leaves_without_close_notify_is_a_truncation_to_the_backend() {
    let (backend, heard) = listening();
    let (pki, mut proxy) = terminating(&backend, "", "");
    let mut stream = connected(&pki, &proxy);
    Pattern::new().write(&mut stream, MIB).expect("it is taken");
    stream.flush().expect("it is taken");
    fin(&stream.sock);
    assert_eq!(told(&heard), (MIB, Ending::Reset));
    assert_eq!(proxy.next_session().reason, "client-truncated");

    let mut stream = connected(&pki, &proxy);
    Pattern::new()
        .write(&mut stream, 1000)
        .expect("it is taken");
    finish(&mut stream);
    assert_eq!(told(&heard), (1000, Ending::Fin));
    // To the end: with something unread, closing is a reset.
    assert_eq!(stream.read(&mut [0]).expect("close_notify"), 0);
    drop(stream);
    assert_eq!(proxy.next_session().reason, "client-closed");

    // In the midst of a record.
    let mut stream = connected(&pki, &proxy);
    stream.conn.writer().write_all(&[0; 1000]).expect("it fits");
    let mut record = Vec::new();
    stream.conn.write_tls(&mut record).expect("memory takes it");
    stream.sock.write_all(&record[..500]).expect("it is taken");
    fin(&stream.sock);
    assert_eq!(told(&heard), (0, Ending::Reset));
    assert_eq!(proxy.next_session().reason, "client-truncated");
    proxy.end();
}

#[test]
fn resets_go_through_tls() {
    let (backend, heard) = listening();
    let (pki, mut proxy) = terminating(&backend, "", "");
    let stream = connected(&pki, &proxy);
    let (_, socket) = stream.into_parts();
    reset(socket);
    assert_eq!(told(&heard), (0, Ending::Reset));
    assert_eq!(proxy.next_session().reason, "client-reset");
    proxy.end();

    let backend = Backend::start(|mut connection| {
        let _ = connection.read(&mut [0; 16]);
        reset(connection);
    });
    let (pki, mut proxy) = terminating(&backend, "", "");
    let mut stream = connected(&pki, &proxy);
    stream.write_all(b"a word").expect("it is taken");
    let error = stream.read(&mut [0; 16]).expect_err("no end in order");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(proxy.next_session().reason, "backend-reset");
    proxy.end();
}

#[test]
fn a_backend_that_leaves_without_close_notify_is_a_truncation_to_the_client() {
    let pki = Pki::new();
    let backend = peers::backend(pki.server(&pki.leaf("127.0.0.1")), |mut stream| {
        let mut first = [0];
        if stream.read(&mut first).is_ok() {
            let written = Pattern::new().write(&mut stream, MIB);
            written.and_then(|()| stream.flush()).expect("it is taken");
            if &first == b"+" {
                finish(&mut stream);
            }
        }
    });
    let upstream = format!("tls = {{ ca = {:?} }}", pki.ca());
    let mut proxy = Proxy::start(&config(&[&backend.address], "", &upstream, ""));
    for (word, expected, reason) in [
        (b"+", Ending::Fin, "backend-closed"),
        (b"-", Ending::Reset, "backend-truncated"),
    ] {
        let mut client = proxy.connect();
        client.write_all(word).expect("it is taken");
        let mut pattern = Pattern::new();
        let end = match pattern.check_to_end(&mut client) {
            Ok(()) => Ending::Fin,
            Err(error) => ending_of(&error),
        };
        assert_eq!((pattern.place, end), (MIB, expected));
        drop(client);
        assert_eq!(proxy.next_session().reason, reason);
    }
    proxy.end();
}

#[test]
fn idleness_ends_with_close_notify_on_both_sides() {
    let (tell, ended) = mpsc::channel();
    let theirs = Pki::new();
    let backend = peers::backend(
        theirs.server(&theirs.leaf("127.0.0.1")),
        move |mut stream| {
            let mut word = [0; 6];
            stream.read_exact(&mut word).expect("a word");
            stream.write_all(&word).expect("it is taken");
            tell.send(stream.read(&mut [0]).ok())
                .expect("the test waits");
        },
    );
    let pki = Pki::new();
    let lines = crate::pki::tls(&[&pki.leaf("a.test")], "") + "timeouts = { idle = \"300ms\" }";
    let upstream = format!("tls = {{ ca = {:?} }}", theirs.ca());
    let mut proxy = Proxy::start(&config(&[&backend.address], &lines, &upstream, ""));
    let mut stream = connected(&pki, &proxy);
    exchange(&mut stream).expect("an echo");
    assert_eq!(stream.read(&mut [0]).expect("close_notify"), 0);
    assert_eq!(stream.sock.read(&mut [0]).expect("then FIN"), 0);
    assert_eq!(told(&ended), Some(0));
    assert_eq!(proxy.next_session().reason, "idle");
    proxy.end();
}

/// Reads whatever comes until it has ended in some way.
fn outlasts(socket: &mut socket2::Socket) {
    while let Ok(1..) = socket.read(&mut [0; 4096]) {}
}

#[test]
fn a_handshake_that_is_not_over_in_time_ends_the_session() {
    let backend = Backend::echo();
    let (pki, mut proxy) = terminating(&backend, "", "timeouts = { handshake = \"300ms\" }");
    let config = Arc::new(pki.client());
    let (_, bytes) = hello(&config, "a.test");
    for sent in [0, 1, 5, bytes.len() / 2, bytes.len()] {
        let began = now();
        let mut socket = proxy.connect();
        socket.write_all(&bytes[..sent]).expect("it is taken");
        outlasts(&mut socket);
        let took = began.elapsed();
        assert_eq!(proxy.next_session().reason, "handshake-timeout", "{sent}");
        assert!((250..3000).contains(&took.as_millis()), "{took:?}");
    }
    // However busy it looks.
    let mut socket = proxy.connect();
    let trickled = bytes.iter().try_for_each(|byte| {
        pass(Duration::from_millis(20));
        socket.write_all(&[*byte])
    });
    trickled.expect_err("it is too slow");
    assert_eq!(proxy.next_session().reason, "handshake-timeout");
    assert_eq!(backend.accepted(), 0);
    // The time is over once the handshake is.
    let mut stream = connected(&pki, &proxy);
    pass(Duration::from_millis(500));
    exchange(&mut stream).expect("an echo");
    drop(stream);
    proxy.end();
}

#[test]
fn what_is_no_tls_is_told_so_by_an_alert_and_the_log_says_it() {
    let backend = Backend::echo();
    let (pki, mut proxy) = terminating(&backend, "", "");
    let much = vec![b'x'; 300_000];
    for words in [
        &b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"[..],
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        &[0; 64],
        &much,
    ] {
        let mut socket = proxy.connect();
        // It may not be heard to the end.
        let _ = socket.write_all(words);
        let mut answer = [0; 7];
        socket.read_exact(&mut answer).expect("an alert");
        assert_eq!(answer[..2], [21, 3], "a record of alerts: {answer:?}");
        assert_eq!(answer[3..6], [0, 2, 2], "one that is fatal: {answer:?}");
        outlasts(&mut socket);
        drop(socket);
        let session = proxy.next_session();
        assert_eq!(session.reason, "client-tls");
        assert_eq!(session.detail, "TLS: what it says is not TLS");
    }
    assert_eq!(backend.accepted(), 0);
    let mut stream = connected(&pki, &proxy);
    exchange(&mut stream).expect("others are served");
    drop(stream);
    proxy.end();
}

#[test]
fn a_client_that_leaves_during_the_handshake_is_told_apart() {
    let backend = Backend::echo();
    let (pki, mut proxy) = terminating(&backend, "", "");
    let config = Arc::new(pki.client());
    let (_, bytes) = hello(&config, "a.test");
    for sent in [0, 3, bytes.len() - 1] {
        let mut socket = proxy.connect();
        socket.write_all(&bytes[..sent]).expect("it is taken");
        fin(&socket);
        outlasts(&mut socket);
        assert_eq!(proxy.next_session().reason, "client-left", "{sent}");
    }
    let socket = connect(&proxy.address("web"));
    reset(socket);
    assert_eq!(proxy.next_session().reason, "client-reset");
    let mut stream = secure(&config, "a.test", proxy.connect()).expect("others are served");
    exchange(&mut stream).expect("an echo");
    drop(stream);
    proxy.end();
}
