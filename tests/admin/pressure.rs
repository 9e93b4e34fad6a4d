//! Visitors who send nonsense, nothing, or come all at once, while sessions go on.

use std::io::Write;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use socket2::Socket;

use crate::common::http::{get, request, rest, says};
use crate::common::load::{Load, quick_backend};
use crate::common::socket::connect_with_small_window;
use crate::common::{Proxy, connect, eventually, now, system};
use crate::text;

const HERE: &str = "listen = \"127.0.0.1:0\"";

/// A proxy with traffic that goes on meanwhile.
fn busy() -> (Proxy, crate::common::Backend, Load) {
    let backend = quick_backend();
    let proxy = Proxy::start(&text(&backend, HERE));
    let load = Load::kept(2, &proxy.address("web"));
    load.goes_on(10);
    (proxy, backend, load)
}

/// Nobody was disturbed.
fn ends_well(proxy: Proxy, load: Load) {
    load.goes_on(100);
    load.stop();
    assert_eq!(get(&proxy.admin(), "/healthz").status, 200);
    proxy.end();
}

#[test]
fn nonsense_is_refused_and_disturbs_nobody() {
    let (proxy, _backend, load) = busy();
    let admin = proxy.admin();
    let long = "a".repeat(100_000);
    let many: String = (0..500).map(|it| format!("X-{it}: 1\r\n")).collect();
    for (said, statuses) in [
        ("\r\n\r\n\r\n", &[][..]),
        ("nonsense\r\n\r\n", &[400]),
        ("GET / HTTP/9.9\r\n\r\n", &[400, 505]),
        ("GET /status HTTP/1.1\r\n\r\n", &[400]),
        ("GET /status HTTP/1.1\r\nHost: a b\r\n\r\n", &[400]),
        (
            "GET /status HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
            &[400],
        ),
        (
            "GET http://evil.example/status HTTP/1.1\r\nHost: localhost\r\n\r\n",
            &[421],
        ),
        (
            "CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
            &[404, 405],
        ),
        (
            "GET /%00%ff/../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
            &[404],
        ),
        ("GET \0 HTTP/1.1\r\nHost: localhost\r\n\r\n", &[400]),
        (
            "GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
            &[400],
        ),
        (
            "GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            &[400],
        ),
        (
            "POST /reload HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
            &[400],
        ),
        ("\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}", &[400]),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[]),
        (
            &format!("GET /{long} HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            &[414, 431],
        ),
        (
            &format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {long}\r\n\r\n"),
            &[431],
        ),
        (
            &format!("GET / HTTP/1.1\r\nHost: localhost\r\n{many}\r\n"),
            &[431],
        ),
    ] {
        let mut socket = connect(&admin);
        // It may be refused before all is said.
        let _ = socket.write_all(said.as_bytes());
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let start: String = said.chars().take(60).collect();
        match rest(&mut socket) {
            Some(answer) => assert!(statuses.contains(&answer.status), "{start:?}: {answer:?}"),
            // What is too long is reset with what it has not read.
            None => assert!(statuses.is_empty() || said.len() > 1000, "{start:?}"),
        }
    }
    ends_well(proxy, load);
}

#[test]
fn what_comes_byte_by_byte_is_understood() {
    let (proxy, _backend, load) = busy();
    let mut socket = connect(&proxy.admin());
    socket.set_tcp_nodelay(true).expect("it is TCP");
    for byte in request("GET", "/healthz", &[]).as_bytes() {
        socket.write_all(&[*byte]).expect("it is taken");
    }
    assert_eq!(rest(&mut socket).expect("an answer").body, "ok\n");
    let one_dot_zero = says(&proxy.admin(), b"GET /healthz HTTP/1.0\r\n\r\n");
    assert_eq!(one_dot_zero.expect("an answer").body, "ok\n");
    ends_well(proxy, load);
}

#[test]
fn who_says_nothing_is_let_go_and_keeps_nobody_from_coming_in_then() {
    let (proxy, _backend, load) = busy();
    let admin = proxy.admin();
    let begun = now();
    let mut silent: Vec<Socket> = (0..300).map(|_| connect(&admin)).collect();
    for socket in &mut silent[100..200] {
        socket
            .write_all(b"GET /status HTTP/1.1\r\nHost: lo")
            .expect("it is taken");
    }
    let answer = get(&admin, "/healthz");
    assert_eq!(answer.status, 200);
    // The first ones had to give their places up for that.
    let waited = begun.elapsed();
    assert!(
        (Duration::from_secs(9)..Duration::from_secs(15)).contains(&waited),
        "{waited:?}"
    );
    for socket in &mut silent[..256] {
        rest(socket);
    }
    load.goes_on(100);
    drop(silent);
    ends_well(proxy, load);
}

#[test]
fn a_thousand_scrapes_at_once_are_all_answered() {
    let (proxy, _backend, load) = busy();
    let admin = proxy.admin();
    let before = system::descriptors(proxy.pid());
    let threads = 20;
    let start = Arc::new(Barrier::new(threads));
    let scrape = || {
        let (admin, start) = (admin.clone(), start.clone());
        thread::spawn(move || {
            start.wait();
            let mut sockets: Vec<_> = (0..50).map(|_| connect(&admin)).collect();
            for socket in &mut sockets {
                let asked = request("GET", "/metrics", &[]);
                socket.write_all(asked.as_bytes()).expect("it is taken");
            }
            let answers = sockets.iter_mut().filter_map(rest);
            answers
                .filter(|it| it.status == 200 && it.body.contains("ringress_build_info"))
                .count()
        })
    };
    let scrapers: Vec<_> = (0..threads).map(|_| scrape()).collect();
    let answered: usize = scrapers
        .into_iter()
        .map(|it| it.join().expect("no failure"))
        .sum();
    assert_eq!(answered, 1000);
    eventually("every connection to be let go", || {
        (system::descriptors(proxy.pid()) <= before).then_some(())
    });
    ends_well(proxy, load);
}

#[test]
fn who_looks_on_without_reading_is_cut_off() {
    let backend = quick_backend();
    // A long pulse soon fills what the kernel holds.
    let others: Vec<_> = (1..2000).map(|port| format!("127.1.0.1:{port}")).collect();
    let others = format!("[upstreams.others]\nbackends = {others:?}\n");
    let proxy = Proxy::start(&format!("{}{others}", text(&backend, HERE)));
    let admin = proxy.admin();
    let before = system::descriptors(proxy.pid());
    let mut blind = connect_with_small_window(&admin, 1024);
    let asked = request("GET", "/events", &[]);
    blind.write_all(asked.as_bytes()).expect("it is taken");
    let mut sighted = connect(&admin);
    sighted.write_all(asked.as_bytes()).expect("it is taken");
    let reading = thread::spawn(move || rest(&mut sighted));
    eventually("both to be there", || {
        (system::descriptors(proxy.pid()) == before + 2).then_some(())
    });
    eventually("the one that doesn't read to be cut off", || {
        (system::descriptors(proxy.pid()) == before + 1).then_some(())
    });
    proxy.end();
    let heard = reading.join().expect("no failure").expect("an answer");
    assert!(heard.body.matches("event: pulse").count() > 2);
}
