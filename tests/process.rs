//! The process: what it refuses to start with, what it does on signals, how it ends.

mod common;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::backend::{BlackHole, free_address, listening};
use common::essentials::there_and_back;
use common::proxy::text;
use common::socket::{finish, parse, unconnected};
use common::{
    Backend, Ending, PATIENCE, Proxy, config, connect, ending, eventually, now, pass, plain,
    read_to_end,
};
use rustix::process::Signal;

const TWO_WORKERS: &str = "[runtime]\nworkers = 2\n";

fn bound_to(address: &str) -> String {
    let listener = format!("bind = {address:?}\n");
    config(&["127.0.0.1:1"], &listener, "", TWO_WORKERS)
}

/// Starting fails with code 1 and one line, which contains all of `parts`.
fn fails_saying(config: &str, parts: &[&str]) {
    let (code, said) = Proxy::fails(config);
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    for part in parts {
        assert!(said.contains(part), "{part} is missing: {said}");
    }
}

#[test]
fn a_second_instance_on_the_same_address_is_refused() {
    let backend = Backend::echo();
    let first = Proxy::start(&config(&[&backend.address], "", "", TWO_WORKERS));
    let address = first.address("web");
    let in_use = ["\"web\"", &address, "in use"];
    fails_saying(&bound_to(&address), &in_use);
    there_and_back(&first.connect(), 1000);
    let everywhere = address.replace("127.0.0.1", "0.0.0.0");
    fails_saying(&bound_to(&everywhere), &["in use"]);
    there_and_back(&first.connect(), 1000);
    first.end();
    // And it is free again at once.
    Proxy::start(&bound_to(&address)).end();
}

#[test]
fn an_address_of_another_program_is_refused() {
    let other = Backend::named("other");
    fails_saying(&bound_to(&other.address), &[&other.address, "in use"]);
    assert_eq!(read_to_end(&mut connect(&other.address)), b"other");
}

#[test]
fn an_address_of_another_machine_is_refused() {
    // TEST-NET-1, RFC 5737.
    fails_saying(
        &bound_to("192.0.2.1:0"),
        &["192.0.2.1:0", "not one of this machine"],
    );
}

#[test]
fn one_wrong_bind_of_many_leaves_nothing_bound() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("front.sock");
    let other = Backend::named("other");
    let free = free_address();
    let listener = format!(
        "bind = [{free:?}, \"unix:{}\", {:?}]\n",
        path.display(),
        other.address
    );
    let text = config(&["127.0.0.1:1"], &listener, "", TWO_WORKERS);
    fails_saying(&text, &[&other.address, "in use"]);
    let left = unconnected(&free).connect(&parse(&free).1);
    assert!(left.is_err(), "somebody listens on {free}");
}

#[test]
fn a_stale_unix_socket_is_replaced_and_a_live_one_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("front.sock");
    let address = format!("unix:{}", path.display());
    drop(listening(&address, 16));
    assert!(path.exists(), "the stale socket's file");
    let backend = Backend::echo();
    let listener = format!("bind = {address:?}\nunix_mode = \"0600\"\n");
    let text = config(&[&backend.address], &listener, "", TWO_WORKERS);
    let first = Proxy::start(&text);
    let mode = std::fs::metadata(&path).expect("it is there").permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    fails_saying(&text, &[&address, "in use"]);
    there_and_back(&first.connect(), 1000);
    first.end();
    Proxy::start(&text).end();
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("precious");
    std::fs::write(&path, "data").expect("the folder can be written to");
    let address = format!("unix:{}", path.display());
    fails_saying(&bound_to(&address), &[&address, "not a socket"]);
    let kept = std::fs::read_to_string(&path).expect("it is there");
    assert_eq!(kept, "data");
}

#[test]
fn more_connections_than_descriptors_are_refused() {
    let tables = "[runtime]\nmax_connections = 4000000000\n";
    fails_saying(
        &config(&["127.0.0.1:1"], "", "", tables),
        &["max_connections = 4000000000", "RLIMIT_NOFILE"],
    );
}

#[test]
fn a_wrong_file_names_its_place_and_starts_nothing() {
    let (code, said) = Proxy::fails("[listeners.web]\nbnid = \"127.0.0.1:0\"\n");
    assert_eq!(code, Some(1));
    assert!(said.contains("ringress.toml:2:1: error:"), "{said}");
    assert!(said.contains("bind"), "{said}");
    assert!(!said.contains("listening"), "{said}");
}

/// A session that is open: one byte went there and back.
fn open(proxy: &Proxy) -> socket2::Socket {
    let mut client = proxy.connect();
    exchange(&mut client);
    client
}

fn exchange(client: &mut socket2::Socket) {
    client.write_all(b"x").expect("it is taken");
    client.read_exact(&mut [0]).expect("the echo comes");
}

/// Waits until nobody listens there any more.
fn refused(address: &str) {
    eventually("connections to be refused", || {
        let answer = unconnected(address).connect(&parse(address).1);
        let kind = answer.err()?.kind();
        (kind == std::io::ErrorKind::ConnectionRefused).then_some(())
    });
}

#[test]
fn sigterm_lets_sessions_finish_and_ends_with_0() {
    let backend = Backend::echo();
    let mut proxy = Proxy::start(&config(&[&backend.address], "", "", TWO_WORKERS));
    let mut clients: Vec<_> = (0..4).map(|_| open(&proxy)).collect();
    proxy.signal(Signal::TERM);
    proxy.wait_message(0, "draining");
    refused(&proxy.address("web"));
    for _ in 0..3 {
        clients.iter_mut().for_each(exchange);
    }
    for mut client in clients {
        finish(&client);
        assert_eq!(ending(&mut client), Ending::Fin);
    }
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn connections_in_the_accept_queue_are_served_when_the_process_drains() {
    let backend = Backend::echo();
    for _ in 0..5 {
        let mut proxy = Proxy::start(&config(&[&backend.address], "", "", TWO_WORKERS));
        let clients: Vec<_> = (0..50).map(|_| proxy.connect()).collect();
        proxy.signal(Signal::TERM);
        for client in clients {
            there_and_back(&client, 1000);
        }
        assert_eq!(proxy.wait_exit().code(), Some(0));
    }
}

#[test]
fn drain_timeout_resets_what_is_left() {
    let backend = Backend::echo();
    let tables = "[runtime]\nworkers = 2\ndrain_timeout = \"400ms\"\n";
    let mut proxy = Proxy::start(&config(&[&backend.address], "", "", tables));
    let mut clients: Vec<_> = (0..4).map(|_| open(&proxy)).collect();
    let began = now();
    proxy.signal(Signal::TERM);
    for client in &mut clients {
        assert_eq!(ending(client), Ending::Reset);
    }
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(380), "{took:?}");
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn a_second_signal_ends_at_once() {
    let backend = Backend::echo();
    for (first, second) in [(Signal::TERM, Signal::TERM), (Signal::INT, Signal::TERM)] {
        let mut proxy = Proxy::start(&plain(&[&backend.address]));
        let mut client = open(&proxy);
        proxy.signal(first);
        proxy.wait_message(0, "draining");
        proxy.signal(second);
        let began = now();
        assert_eq!(ending(&mut client), Ending::Reset);
        assert_eq!(proxy.wait_exit().code(), Some(0));
        assert!(began.elapsed() < Duration::from_secs(2));
    }
}

#[test]
fn a_session_that_is_still_connecting_ends_with_the_drain() {
    let hole = BlackHole::new();
    let tables = "[runtime]\ndrain_timeout = \"200ms\"\n";
    let mut proxy = Proxy::start(&config(&[&hole.address], "", "", tables));
    let mut client = proxy.connect();
    // It has been accepted once its connection attempt is on the wire.
    pass(Duration::from_millis(100));
    proxy.signal(Signal::TERM);
    assert_eq!(ending(&mut client), Ending::Reset);
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn a_reload_changes_backends_for_new_connections_only() {
    let backends = ["one", "two"].map(|name| {
        Backend::start(move |mut connection| {
            while let Ok(1) = connection.read(&mut [0]) {
                connection.write_all(name.as_bytes()).expect("it is taken");
            }
        })
    });
    let [one, two] = &backends;
    let ask = |client: &mut socket2::Socket| {
        let mut name = [0; 3];
        client.write_all(b"?").expect("it is taken");
        client.read_exact(&mut name).expect("the name comes");
        String::from_utf8(name.to_vec()).expect("a name")
    };
    let proxy = Proxy::start(&config(&[&one.address], "", "", TWO_WORKERS));
    let mut old = proxy.connect();
    assert_eq!(ask(&mut old), "one");
    let both = config(&[&one.address, &two.address], "", "", TWO_WORKERS);
    assert_eq!(text(&proxy.reload(&both), "message"), "reloaded");
    let mut clients: Vec<_> = (0..4).map(|_| proxy.connect()).collect();
    let mut names: Vec<_> = clients.iter_mut().map(ask).collect();
    names.sort();
    assert_eq!(names, ["one", "one", "two", "two"]);
    let other = config(&[&two.address], "", "", TWO_WORKERS);
    assert_eq!(text(&proxy.reload(&other), "message"), "reloaded");
    for _ in 0..4 {
        assert_eq!(ask(&mut proxy.connect()), "two");
    }
    assert_eq!(ask(&mut old), "one");
    let mut names: Vec<_> = clients.iter_mut().map(ask).collect();
    names.sort();
    assert_eq!(names, ["one", "one", "two", "two"]);
    drop((old, clients));
    proxy.end();
}

#[test]
fn reloads_under_load_lose_no_connection() {
    let backends = [Backend::named("one"), Backend::named("two")];
    let texts = backends
        .each_ref()
        .map(|backend| config(&[&backend.address], "", "", TWO_WORKERS));
    let proxy = Proxy::start(&texts[0]);
    let address = proxy.address("web");
    let (stop, stopped) = mpsc::channel::<()>();
    let load = thread::spawn(move || {
        let mut served = 0;
        while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
            let answer = read_to_end(&mut connect(&address));
            assert!(answer == b"one" || answer == b"two");
            served += 1;
        }
        served
    });
    for round in 1..=20 {
        let line = proxy.reload(&texts[round % 2]);
        assert_eq!(text(&line, "message"), "reloaded");
        assert_eq!(line["generation"], round as u64 + 1);
    }
    stop.send(()).expect("the load goes on");
    assert!(load.join().expect("every connection is served") > 0);
    proxy.end();
}

#[test]
fn a_reload_of_a_broken_file_changes_nothing_and_names_the_place() {
    let backend = Backend::named("one");
    let good = plain(&[&backend.address]);
    let proxy = Proxy::start(&good);
    let broken = good.replace("upstream = \"app\"", "upstrem = \"app\"");
    let line = proxy.reload(&broken);
    assert!(text(&line, "message").starts_with("reload refused"));
    assert!(text(&line, "message").contains("upstrem"), "{line}");
    assert_eq!(line["level"], "ERROR");
    assert_eq!((&line["line"], &line["column"]), (&3.into(), &1.into()));
    assert_eq!(read_to_end(&mut proxy.connect()), b"one");
    assert_eq!(text(&proxy.reload(&good), "message"), "reloaded");
    assert_eq!(read_to_end(&mut proxy.connect()), b"one");
    proxy.end();
}

#[test]
fn a_reload_that_needs_an_upgrade_is_refused_key_by_key() {
    let backend = Backend::named("one");
    let proxy = Proxy::start(&plain(&[&backend.address]));
    let listener = "bind = [\"127.0.0.1:0\", \"[::1]:0\"]\n";
    let tables = "[runtime]\nbuffer_memory = \"1MiB\"\npin_workers = false\n";
    let from = proxy.lines().len();
    proxy.reload(&config(&["127.0.0.1:1"], listener, "", tables));
    for key in ["runtime.pin_workers", "runtime.buffer_memory"] {
        proxy.wait_message(from, &format!("reload refused: {key}"));
    }
    assert_eq!(read_to_end(&mut proxy.connect()), b"one");
    proxy.end();
}

#[test]
fn a_reload_changes_timeouts_and_caps_of_a_listener() {
    let backend = Backend::echo();
    let proxy = Proxy::start(&plain(&[&backend.address]));
    let mut old = open(&proxy);
    let tables = "[listeners.web.timeouts]\nidle = \"300ms\"\n";
    let cap = "max_connections = 2";
    let line = proxy.reload(&config(&[&backend.address], cap, "", tables));
    assert_eq!(text(&line, "message"), "reloaded");
    let mut new = open(&proxy);
    assert_eq!(ending(&mut proxy.connect()), Ending::Reset);
    assert_eq!(ending(&mut new), Ending::Fin);
    exchange(&mut old);
    drop((old, new));
    proxy.end();
}

#[test]
fn a_reload_while_draining_is_refused() {
    let backend = Backend::echo();
    let text_of = plain(&[&backend.address]);
    let proxy = Proxy::start(&text_of);
    let client = open(&proxy);
    proxy.signal(Signal::TERM);
    proxy.wait_message(0, "draining");
    let line = proxy.reload(&text_of);
    assert!(text(&line, "message").contains("draining"), "{line}");
    drop(client);
}

#[test]
fn ending_is_quick_with_nothing_to_do() {
    let mut proxy = Proxy::start(&plain(&["127.0.0.1:1"]));
    let began = now();
    proxy.signal(Signal::INT);
    assert_eq!(proxy.wait_exit().code(), Some(0));
    let took = began.elapsed();
    assert!(took < PATIENCE / 10, "{took:?}");
}
