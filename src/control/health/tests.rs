//! Probes against real sockets of this machine, one test per verdict.

use std::future::Future;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket, UnixListener};
use tokio::sync::oneshot;
use tokio::task::yield_now;
use tokio::time::Instant;

use super::Target;
use super::failure::Failure;
use super::probe::{probe, unless_itself};
use crate::address::Address;
use crate::config::{Announce, Exchange, HealthCheck, Probe};
use crate::policy::health::{Settings, Start};
use crate::policy::share::Share;

mod tls;

/// Nothing here takes so long, unless it waits for what never comes.
const PLENTY: Duration = Duration::from_secs(10);
/// For what never comes.
const SHORT: Duration = Duration::from_millis(80);

pub(super) fn check(probe: Probe, interval: Duration, timeout: Duration) -> HealthCheck {
    HealthCheck {
        probe,
        interval,
        jitter: Share::from_ppm(200_000),
        timeout,
        settings: Settings {
            rise: NonZeroU32::new(2).unwrap(),
            fall: NonZeroU32::new(3).unwrap(),
            start: Start::Up,
        },
    }
}

fn exchange(send: Option<&str>, expect: Option<&str>) -> Exchange {
    let bytes = |text: &str| text.as_bytes().into();
    Exchange {
        send: send.map(bytes),
        expect: expect.map(bytes),
    }
}

pub(super) fn tcp(send: Option<&str>, expect: Option<&str>) -> Probe {
    Probe::Tcp(exchange(send, expect))
}

fn udp(send: Option<&str>, expect: Option<&str>) -> Probe {
    Probe::Udp(exchange(send, expect))
}

fn http() -> Probe {
    Probe::Http {
        path: "/up".into(),
        host: None,
        expect_status: vec![200..=399],
    }
}

fn target(address: &Address, probe: Probe, timeout: Duration) -> Target {
    Target {
        upstream: "app".into(),
        backend: "b1".into(),
        address: address.clone(),
        source: None,
        check: check(probe, PLENTY, timeout),
        announce: Announce::Never,
        tls: None,
        record: Box::new(|_, _, _| None),
    }
}

/// The outcome in words; "ok" for a success.
async fn outcome(address: &Address, probe: Probe, timeout: Duration) -> String {
    outcome_of(&target(address, probe, timeout)).await
}

async fn outcome_of(target: &Target) -> String {
    match probe(target).await {
        Ok(()) => "ok".to_owned(),
        Err(failure) => failure.to_string(),
    }
}

/// A backend for one connection.
async fn backend<F>(serve: impl FnOnce(TcpStream) -> F + Send + 'static) -> Address
where
    F: Future<Output = ()> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        serve(stream).await;
    });
    address.into()
}

/// What a backend does after it has said its piece.
#[derive(Clone, Copy)]
enum Then {
    Close,
    /// For the other side to close.
    Wait,
}

/// A backend that hears `request` and says `answer` in pieces of `size` bytes.
async fn speaker(request: &'static str, answer: Vec<u8>, size: usize, then: Then) -> Address {
    backend(async move |mut stream| {
        let mut heard = vec![0; request.len()];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&heard), request);
        for piece in answer.chunks(size) {
            if stream.write_all(piece).await.is_err() {
                return;
            }
            yield_now().await;
        }
        if matches!(then, Then::Close) {
            let _ = stream.shutdown().await;
        }
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await
}

/// An address of this machine where nobody listens.
async fn nobody() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

#[tokio::test]
async fn tcp_alone_needs_a_connection_and_ends_it_in_order() {
    let (sender, seen) = oneshot::channel();
    let address = backend(async move |mut stream| {
        sender.send(stream.read(&mut [0]).await.ok()).unwrap();
    })
    .await;
    assert_eq!(outcome(&address, tcp(None, None), PLENTY).await, "ok");
    assert_eq!(seen.await, Ok(Some(0)), "an end, not a reset");
}

#[tokio::test]
async fn nobody_listening_is_refused_at_once() {
    let address = nobody().await.into();
    let refused = "connection refused";
    assert_eq!(outcome(&address, tcp(None, None), PLENTY).await, refused);
    assert_eq!(outcome(&address, http(), PLENTY).await, refused);
}

/// A listener whose queue is full, so that the next connection stays without an answer.
fn black_hole(domain: Domain, address: &socket2::SockAddr) -> (Socket, Vec<Socket>) {
    let listener = Socket::new(domain, Type::STREAM, None).unwrap();
    listener.bind(address).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let knock = || {
        let socket = Socket::new(domain, Type::STREAM.nonblocking(), None).unwrap();
        // EINPROGRESS while there is room, then EAGAIN for unix sockets.
        let _ = socket.connect(&address);
        socket
    };
    let knocks = (0..2).map(|_| knock()).collect();
    (listener, knocks)
}

#[tokio::test]
async fn a_black_hole_is_given_up_within_the_timeout() {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let (listener, _knocks) = black_hole(Domain::IPV4, &any.into());
    let address = listener.local_addr().unwrap().as_socket().unwrap().into();
    let started = Instant::now();
    assert_eq!(
        outcome(&address, tcp(None, None), SHORT).await,
        "no connection within 80ms"
    );
    assert!((SHORT..PLENTY).contains(&started.elapsed()));
}

#[tokio::test]
async fn an_answer_has_to_start_with_what_is_expected() {
    let ping = || tcp(Some("PING\r\n"), Some("PONG"));
    for (answer, size, then, said) in [
        ("PONG\r\n", 9, Then::Wait, "ok"),
        ("PONG", 1, Then::Wait, "ok"),
        (
            "-ERR\r\n",
            9,
            Then::Wait,
            "answered \"-ERR\\r\\n\" instead of \"PONG\"",
        ),
        ("PU", 9, Then::Wait, "answered \"PU\" instead of \"PONG\""),
        ("", 9, Then::Close, "closed without an answer"),
        ("PO", 9, Then::Close, "closed after \"PO\""),
    ] {
        let address = speaker("PING\r\n", answer.into(), size, then).await;
        assert_eq!(outcome(&address, ping(), PLENTY).await, said, "{answer}");
    }
    let greeter = speaker("", "220 mail\r\n".into(), 3, Then::Wait).await;
    assert_eq!(
        outcome(&greeter, tcp(None, Some("220 ")), PLENTY).await,
        "ok"
    );
}

#[tokio::test]
async fn silence_ends_with_the_timeout() {
    let ping = || tcp(Some("PING"), Some("PONG"));
    let silent = speaker("PING", Vec::new(), 1, Then::Wait).await;
    assert_eq!(
        outcome(&silent, ping(), SHORT).await,
        "no answer within 80ms"
    );
    let half = speaker("PING", "PO".into(), 1, Then::Wait).await;
    assert_eq!(
        outcome(&half, ping(), SHORT).await,
        "only \"PO\" within 80ms"
    );
}

#[tokio::test]
async fn a_trickle_does_not_stretch_the_timeout() {
    let address = backend(async move |mut stream| {
        let mut beat = tokio::time::interval(SHORT / 20);
        stream.write_all(b"HTTP/1.1 200 OK\r\nX: ").await.unwrap();
        while stream.write_all(b"x").await.is_ok() {
            beat.tick().await;
        }
    })
    .await;
    let started = Instant::now();
    let said = outcome(&address, http(), SHORT).await;
    assert!(said.starts_with("only \"HTTP/1.1 200 OK"), "{said}");
    assert!((SHORT..PLENTY).contains(&started.elapsed()));
}

#[tokio::test]
async fn without_an_expectation_any_answer_will_do_but_none_will_not() {
    let ping = || tcp(Some("PING"), None);
    let any = speaker("PING", "?".into(), 1, Then::Wait).await;
    assert_eq!(outcome(&any, ping(), PLENTY).await, "ok");
    let none = speaker("PING", Vec::new(), 1, Then::Close).await;
    assert_eq!(
        outcome(&none, ping(), PLENTY).await,
        "closed without an answer"
    );
}

#[tokio::test]
async fn a_reset_is_a_failure() {
    let address = backend(async move |stream| {
        socket2::SockRef::from(&stream)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
    })
    .await;
    let said = outcome(&address, tcp(None, Some("220")), PLENTY).await;
    assert_eq!(said, "connection reset");
}

#[tokio::test]
async fn a_socket_that_met_itself_is_nobody() {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket.connect(&socket.local_addr().unwrap()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let stream = TcpStream::from_std(socket.into()).unwrap();
    assert!(unless_itself(stream).is_err());
}

#[tokio::test]
async fn the_source_address_is_that_of_the_probe() {
    let (sender, seen) = oneshot::channel();
    let address = backend(async move |stream| {
        sender.send(stream.peer_addr().unwrap().ip()).unwrap();
    })
    .await;
    let mut target = target(&address, tcp(None, None), PLENTY);
    let own = "127.0.0.9".parse().unwrap();
    target.source = Some(own);
    assert!(probe(&target).await.is_ok());
    assert_eq!(seen.await, Ok(own));
    target.source = Some("192.0.2.1".parse().unwrap());
    let failed = probe(&target).await;
    assert!(matches!(failed, Err(Failure::NoResources(_))), "{failed:?}");
}

const REQUEST: &str = "GET /up HTTP/1.1\r\nHost: ";

#[tokio::test]
async fn an_http_status_decides_once_its_head_is_whole() {
    let moved = "HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n";
    let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n";
    let broken = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 3\r\n\r\nno\n";
    let late = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 404 Not Found\r\n\r\n";
    for (answer, said) in [
        (moved, "ok"),
        (interim, "ok"),
        (broken, "HTTP status 503"),
        (late, "HTTP status 404"),
        (
            "HTTP/1.1 200 OK\r\nA:",
            "closed after \"HTTP/1.1 200 OK\\r\\nA:\"",
        ),
    ] {
        for size in [1, 4096] {
            let address = speaker(REQUEST, answer.into(), size, Then::Close).await;
            assert_eq!(outcome(&address, http(), PLENTY).await, said, "{answer}");
        }
    }
}

#[tokio::test]
async fn the_expected_statuses_are_those_given() {
    let locked = || Probe::Http {
        path: "/up".into(),
        host: Some("app.internal".into()),
        expect_status: vec![401..=401, 500..=599],
    };
    let request = "GET /up HTTP/1.1\r\nHost: app.internal\r\n";
    for (status, said) in [(200, "HTTP status 200"), (401, "ok"), (599, "ok")] {
        let answer = format!("HTTP/1.1 {status} \r\n\r\n");
        let address = speaker(request, answer.into(), 4096, Then::Wait).await;
        assert_eq!(outcome(&address, locked(), PLENTY).await, said);
    }
}

#[tokio::test]
async fn what_is_not_http_is_told_at_once() {
    let address = speaker("", "SSH-2.0-OpenSSH_9.6\r\n".into(), 99, Then::Wait).await;
    assert_eq!(
        outcome(&address, http(), PLENTY).await,
        "not HTTP: invalid HTTP version in \"SSH-2.0-OpenSSH_9.6\\r\\n\""
    );
}

#[tokio::test]
async fn a_head_without_an_end_is_given_up() {
    let line = format!("X: {}\r\n", "x".repeat(1020));
    let head = format!("HTTP/1.1 200 OK\r\n{}", line.repeat(20));
    let address = speaker(REQUEST, head.into(), 4096, Then::Wait).await;
    assert_eq!(
        outcome(&address, http(), PLENTY).await,
        "the head of the answer is over 16384 bytes"
    );
    let interim = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(1000);
    let address = speaker(REQUEST, interim.into(), 4096, Then::Wait).await;
    let said = outcome(&address, http(), PLENTY).await;
    assert!(said.starts_with("the head"), "{said}");
}

#[tokio::test]
async fn unix_sockets_are_probed_like_tcp() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.sock");
    let address = Address::Unix(path.as_path().into());
    let absent = outcome(&address, tcp(None, None), PLENTY).await;
    assert_eq!(absent, "no such socket");

    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut heard = vec![0; REQUEST.len()];
        stream.read_exact(&mut heard).await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    });
    assert_eq!(outcome(&address, http(), PLENTY).await, "ok");
    assert_eq!(
        outcome(&address, tcp(None, None), PLENTY).await,
        "connection refused"
    );
    assert_eq!(
        outcome(&address, udp(None, None), PLENTY).await,
        "udp can't be checked over a unix socket"
    );
}

#[tokio::test]
async fn a_full_unix_queue_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("app.sock");
    let (listener, knocks) = black_hole(Domain::UNIX, &socket2::SockAddr::unix(&path).unwrap());
    let address = Address::Unix(path.as_path().into());
    assert_eq!(
        outcome(&address, tcp(None, None), SHORT).await,
        "no connection within 80ms"
    );
    let (said, _room) = tokio::join!(outcome(&address, tcp(None, None), PLENTY), async {
        yield_now().await;
        knocks.iter().map(|_| listener.accept()).next()
    });
    assert_eq!(said, "ok");
}

/// A UDP backend that answers the first datagram.
async fn responder(answer: Option<&'static str>) -> Address {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut heard = [0; 64];
        let (length, from) = socket.recv_from(&mut heard).await.unwrap();
        assert_eq!(&heard[..length], b"PING");
        match answer {
            Some(answer) => drop(socket.send_to(answer.as_bytes(), from).await),
            None => std::future::pending().await,
        }
    });
    address.into()
}

#[tokio::test]
async fn the_first_datagram_decides() {
    let ping = |expect| udp(Some("PING"), expect);
    for (answer, expect, said) in [
        ("PONG\n", Some("PONG"), "ok"),
        ("anything", None, "ok"),
        ("", None, "ok"),
        ("PO", Some("PONG"), "answered \"PO\" instead of \"PONG\""),
        (
            "-ERR",
            Some("PONG"),
            "answered \"-ERR\" instead of \"PONG\"",
        ),
    ] {
        let address = responder(Some(answer)).await;
        assert_eq!(
            outcome(&address, ping(expect), PLENTY).await,
            said,
            "{answer}"
        );
    }
    let silent = responder(None).await;
    let said = outcome(&silent, ping(None), SHORT).await;
    assert_eq!(said, "no answer within 80ms");
}

#[tokio::test]
async fn a_closed_udp_port_is_refused_at_once() {
    let address = UdpSocket::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let said = outcome(&address.into(), udp(Some("PING"), None), PLENTY).await;
    assert_eq!(said, "connection refused");
}

const LOCAL: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

#[tokio::test]
async fn a_header_says_that_nobody_is_behind_a_probe() {
    for (announce, header) in [
        (Announce::V1, &b"PROXY UNKNOWN\r\n"[..]),
        (Announce::V2First, LOCAL),
        (Announce::V2Every, LOCAL),
    ] {
        let address = backend(async move |mut stream| {
            let mut heard = vec![0; header.len() + 4];
            stream.read_exact(&mut heard).await.unwrap();
            assert_eq!(heard, [header, b"PING"].concat());
            stream.write_all(b"PONG").await.unwrap();
        })
        .await;
        let ping = tcp(Some("PING"), Some("PONG"));
        let mut target = target(&address, ping, PLENTY);
        target.announce = announce;
        assert_eq!(outcome_of(&target).await, "ok");
    }
}

#[tokio::test]
async fn a_datagram_says_the_same() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap().into();
    let backend = tokio::spawn(async move {
        let mut heard = [0; 64];
        let (length, from) = socket.recv_from(&mut heard).await.unwrap();
        assert_eq!(heard[..length], [LOCAL, b"PING"].concat());
        socket.send_to(b"PONG", from).await.unwrap();
    });
    let mut target = target(&address, udp(Some("PING"), Some("PONG")), PLENTY);
    target.announce = Announce::V2First;
    assert_eq!(outcome_of(&target).await, "ok");
    backend.await.unwrap();
}
