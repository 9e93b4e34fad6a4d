//! A worker that panics, through the real binary: its own sessions are reset, nobody else's are touched, and its
//! successor goes on with the same sockets. Only a debug build can be asked to panic.
#![cfg(debug_assertions)]

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::time::Duration;

use common::datagrams::{DatagramBackend, ask_text, client, udp_config};
use common::proxy::text;
use common::socket::{connect, exchange};
use common::system::descriptors;
use common::{Backend, Ending, Proxy, config, ending, eventually, now, plain, told};
use rustix::process::Signal;
use serde_json::Value;
use socket2::Socket;

const SPOTS: [&str; 3] = ["order", "session", "ring"];

fn workers(count: usize) -> String {
    format!("[runtime]\nworkers = {count}\n")
}

/// Lets a worker panic. Returns the line that says so.
fn panics(proxy: &Proxy, worker: usize, spot: &str) -> Value {
    let from = proxy.lines().len();
    let mut socket = UnixStream::connect(proxy.control_socket()).expect("it listens");
    let request = format!("{{\"command\":\"panic\",\"worker\":{worker},\"spot\":{spot:?}}}\n");
    socket.write_all(request.as_bytes()).expect("it is read");
    let mut reply = String::new();
    BufReader::new(socket)
        .read_line(&mut reply)
        .expect("it answers");
    assert!(reply.contains("\"done\""), "{reply}");
    proxy.wait_message(from, &format!("worker {worker} panicked"))
}

/// The same, and waits until there is another.
fn panics_and_returns(proxy: &Proxy, worker: usize, spot: &str) -> Value {
    let from = proxy.lines().len();
    let line = panics(proxy, worker, spot);
    proxy.wait_message(from, "worker restarted");
    line
}

fn says_and_hears(client: &mut Socket) -> bool {
    let said = client
        .write_all(b"x")
        .and_then(|()| client.read_exact(&mut [0]));
    said.is_ok()
}

/// Sessions that ended for this reason, and all that did.
fn closed(proxy: &Proxy, reason: &str) -> (u64, u64) {
    let status = proxy.status();
    let closed = &status["listeners"][0]["closed"];
    let all = closed.as_object().expect("an object").values();
    let sum = all.map(|count| count.as_u64().expect("a number")).sum();
    (closed[reason].as_u64().unwrap_or(0), sum)
}

#[test]
fn a_panic_ends_the_sessions_of_its_worker_and_nothing_else() {
    let backend = Backend::echo();
    let tables = workers(2);
    let proxy = Proxy::start(&config(&[&backend.address], "", "", &tables));
    for (number, spot) in (1..).zip(SPOTS) {
        let before = closed(&proxy, "worker-panicked").0;
        let mut clients: Vec<_> = (0..30).map(|_| proxy.connect()).collect();
        assert!(clients.iter_mut().all(says_and_hears));
        let line = panics_and_returns(&proxy, 0, spot);
        let message = text(&line, "message");
        assert!(
            message.contains("asked to") && message.contains(".rs:"),
            "{message}"
        );
        let (live, lost): (Vec<_>, Vec<_>) = clients
            .into_iter()
            .map(|mut client| (says_and_hears(&mut client), client))
            .partition(|(lives, _)| *lives);
        assert!(
            !live.is_empty() && !lost.is_empty(),
            "{spot}: {}",
            lost.len()
        );
        let (panicked, all) = closed(&proxy, "worker-panicked");
        assert_eq!(panicked - before, lost.len() as u64, "{spot}");
        let status = proxy.status();
        assert_eq!(status["sessions"], live.len(), "{spot}");
        assert_eq!(status["worker_restarts"], number);
        let accepted = status["listeners"][0]["accepted"].as_u64();
        assert_eq!(accepted, Some(all + live.len() as u64), "{spot}");
        drop(live);
        eventually("the others to end", || {
            (proxy.status()["sessions"] == 0).then_some(())
        });
        // Both workers accept.
        (0..20).for_each(|_| assert!(exchange(None, &proxy.address("web")).is_some()));
    }
    assert!(proxy.done("status").contains("restarted 3 times"));
    proxy.end();
}

#[test]
fn the_log_tells_what_the_worker_did_last_and_a_dump_all_of_it() {
    let backend = Backend::echo();
    let proxy = Proxy::start(&config(&[&backend.address], "", "", &workers(1)));
    // More than the log tells, and the last one still lives.
    for _ in 0..20 {
        drop(exchange(None, &proxy.address("web")).expect("it is served"));
    }
    eventually("them to end", || {
        (closed(&proxy, "client-closed").0 == 20).then_some(())
    });
    let mut client = proxy.connect();
    assert!(says_and_hears(&mut client));
    let from = proxy.lines().len();
    panics_and_returns(&proxy, 0, "session");
    let lines = proxy.lines();
    let tail = lines[from..].iter();
    let tail: Vec<_> = tail
        .filter(|line| line["message"] == "before the panic")
        .map(|line| text(line, "moment"))
        .collect();
    assert_eq!(tail.len(), 64);
    let told: Vec<Value> = tail
        .iter()
        .map(|line| serde_json::from_str(line).expect("it is JSON"))
        .collect();
    let last = |field: &str| told[60..].iter().map(|it| &it[field]).collect::<Vec<_>>();
    assert_eq!(last("what"), ["accept", "pick", "connect", "first-byte"]);
    assert_eq!(last("session"), [&told[63]["session"]; 4]);
    assert_eq!(told[60]["listener"], "web");
    assert_eq!(told[63]["backend"], format!("app/{}", backend.address));
    // The recorder outlives its worker.
    let dumped = proxy.done("dump --worker 0");
    let of = |moment: &str| {
        let moment: Value = serde_json::from_str(moment).expect("it is JSON");
        (moment["monotonic_ns"].clone(), moment["what"].clone())
    };
    let dumped: Vec<_> = dumped.lines().map(of).collect();
    assert!(dumped.len() > 64);
    let tail: Vec<_> = tail.iter().map(|moment| of(moment)).collect();
    assert!(dumped.windows(64).any(|window| window == tail));
    proxy.end();
}

#[test]
fn clients_and_backends_see_a_reset_and_no_end() {
    for spot in SPOTS {
        let (sender, endings) = mpsc::channel();
        let backend = Backend::start(move |mut connection| {
            connection.read_exact(&mut [0]).expect("a byte comes");
            connection.write_all(b"x").expect("it is taken");
            let _ = sender.send(ending(&mut connection));
        });
        let proxy = Proxy::start(&config(&[&backend.address], "", "", &workers(1)));
        let mut clients = [proxy.connect(), proxy.connect()];
        assert!(clients.iter_mut().all(says_and_hears));
        panics_and_returns(&proxy, 0, spot);
        for client in &mut clients {
            assert_eq!(ending(client), Ending::Reset, "{spot}");
            assert_eq!(told(&endings), Ending::Reset, "{spot}");
        }
        proxy.end();
    }
}

#[test]
fn panics_leave_no_descriptor_behind() {
    let backend = Backend::echo();
    let tables = workers(1);
    let proxy = Proxy::start(&config(&[&backend.address], "", "", &tables));
    assert!(exchange(None, &proxy.address("web")).is_some());
    let idle = || {
        eventually("all to be closed", || {
            (proxy.status()["sessions"] == 0).then(|| descriptors(proxy.pid()))
        })
    };
    let before = idle();
    for spot in SPOTS {
        let mut clients: Vec<_> = (0..5).map(|_| proxy.connect()).collect();
        assert!(clients.iter_mut().all(says_and_hears));
        panics_and_returns(&proxy, 0, spot);
    }
    eventually("no more than before to be open", || {
        (idle() <= before).then_some(())
    });
    proxy.end();
}

#[test]
fn who_connects_while_the_worker_rests_is_served() {
    let backend = Backend::echo();
    for listener in ["", "bind = \"unix:FOLDER/web\""] {
        let folder = tempfile::tempdir().expect("a folder");
        let listener = listener.replace("FOLDER", &folder.path().display().to_string());
        let proxy = Proxy::start(&config(&[&backend.address], &listener, "", &workers(1)));
        let address = proxy.address("web");
        for spot in ["order", "ring", "order"] {
            panics_and_returns(&proxy, 0, spot);
        }
        let from = proxy.lines().len();
        assert_eq!(text(&panics(&proxy, 0, "ring"), "rest"), "400ms");
        let mut waiting: Vec<_> = (0..10).map(|_| connect(&address)).collect();
        assert!(waiting.iter_mut().all(says_and_hears));
        proxy.wait_message(from, "worker restarted");
        drop(waiting);
        proxy.end();
    }
}

#[test]
fn every_place_is_free_again() {
    let backend = Backend::echo();
    let upstream = "backends = [{ address = \"ADDRESS\", max_connections = 1 }]\n\
        queue = { max = 1, timeout = \"1m\" }";
    let upstream = upstream.replace("ADDRESS", &backend.address);
    let text = format!(
        "[listeners.web]\nbind = \"127.0.0.1:0\"\nupstream = \"app\"\nmax_connections = 2\n\
         [upstreams.app]\n{upstream}\n{}",
        workers(1)
    );
    let proxy = Proxy::start(&text);
    for spot in SPOTS {
        let mut served = proxy.connect();
        assert!(says_and_hears(&mut served));
        let mut waits = proxy.connect();
        waits.write_all(b"x").expect("it is taken");
        eventually("both to be there", || {
            (proxy.status()["sessions"] == 2).then_some(())
        });
        assert!(exchange(None, &proxy.address("web")).is_none());
        panics_and_returns(&proxy, 0, spot);
        assert_eq!(proxy.status()["sessions"], 0);
        for lost in [&mut served, &mut waits] {
            assert_eq!(ending(lost), Ending::Reset);
        }
        let status = proxy.status();
        assert_eq!(status["upstreams"][0]["backends"][0]["connections"], 0);
    }
    assert!(exchange(None, &proxy.address("web")).is_some());
    assert_eq!(closed(&proxy, "worker-panicked").0, 6);
    proxy.end();
}

#[test]
fn datagrams_go_on() {
    let backend = DatagramBackend::named("a");
    let proxy = Proxy::start(&udp_config(&[&backend.address], "", "", &workers(2)));
    let address = proxy.address("web");
    let clients: Vec<_> = (0..20).map(|_| client()).collect();
    let all = || {
        clients
            .iter()
            .all(|client| ask_text(client, &address) == "a")
    };
    for spot in ["order", "ring"] {
        assert!(all());
        panics_and_returns(&proxy, 0, spot);
        // What is said meanwhile waits in the socket.
        assert!(all());
    }
    let (lost, ended) = closed(&proxy, "worker-panicked");
    assert!(lost > 0 && lost < 40);
    assert_eq!(lost, ended);
    let status = proxy.status();
    assert_eq!(status["sessions"], 20);
    assert_eq!(status["listeners"][0]["accepted"], 20 + lost);
    proxy.end_now();
}

#[test]
fn a_reload_during_a_rest_holds_for_the_successor() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let bind = format!("bind = {:?}", common::backend::free_address());
    let with = |backend: &Backend| config(&[&backend.address], &bind, "", &workers(1));
    let proxy = Proxy::start(&with(&a));
    let address = proxy.address("web");
    let hears = || String::from_utf8(common::read_to_end(&mut connect(&address)));
    assert_eq!(hears().as_deref(), Ok("a"));
    for spot in ["order", "order", "ring", "order"] {
        panics(&proxy, 0, spot);
    }
    assert_eq!(proxy.reload(&with(&b))["message"], "reloaded");
    assert_eq!(hears().as_deref(), Ok("b"));
    // A listener that goes, and whose socket is closed by the successor; one that comes.
    panics(&proxy, 0, "ring");
    let other = config(&[&a.address], "", "", &workers(1));
    assert_eq!(proxy.reload(&other)["message"], "reloaded");
    let lines = proxy.lines();
    let listening = lines.iter().rfind(|line| line["message"] == "listening");
    let new = text(listening.expect("it listens"), "address");
    let heard = String::from_utf8(common::read_to_end(&mut connect(&new)));
    assert_eq!(heard.as_deref(), Ok("a"));
    assert_eq!(proxy.reload(&with(&b))["message"], "reloaded");
    assert_eq!(hears().as_deref(), Ok("b"));
    proxy.end();
}

#[test]
fn a_process_that_ends_does_not_wait_for_a_rest() {
    let backend = Backend::echo();
    let mut proxy = Proxy::start(&plain(&[&backend.address]));
    for _ in 0..7 {
        panics_and_returns(&proxy, 0, "order");
    }
    let line = panics(&proxy, 0, "order");
    assert_eq!(text(&line, "rest"), "5s");
    let began = now();
    proxy.signal(Signal::TERM);
    assert_eq!(proxy.wait_exit().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(4));
}

#[test]
fn a_worker_that_panics_while_it_drains_drains_on() {
    let backend = Backend::echo();
    let mut proxy = Proxy::start(&config(&[&backend.address], "", "", &workers(2)));
    let mut clients: Vec<_> = (0..20).map(|_| proxy.connect()).collect();
    assert!(clients.iter_mut().all(says_and_hears));
    proxy.signal(Signal::TERM);
    proxy.wait_message(0, "draining");
    panics_and_returns(&proxy, 0, "session");
    let live = clients
        .iter_mut()
        .filter_map(|client| says_and_hears(client).then_some(()));
    let live = live.count();
    assert!(live > 0 && live < 20, "{live}");
    drop(clients);
    assert_eq!(proxy.wait_exit().code(), Some(0));
}
