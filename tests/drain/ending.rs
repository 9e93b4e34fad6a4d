//! The end of the whole process.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;
use socket2::Socket;

use crate::common::load::quick_backend;
use crate::common::proxy::text;
use crate::common::socket::{finish, parse, unconnected};
use crate::common::{
    Backend, Ending, Proxy, config, connect, ending, eventually, now, pass, read_to_end, system,
};
use crate::{ends_well, exchange, is_refused, session};

fn started(backend: &Backend, runtime: &str) -> Proxy {
    let tables = format!("[runtime]\nworkers = 2\n{runtime}\n");
    Proxy::start(&config(&[&backend.address], "", "", &tables))
}

#[test]
fn during_the_delay_it_accepts_and_a_second_signal_aborts() {
    let backend = Backend::echo();
    let mut proxy = started(&backend, "drain_delay = \"1h\"");
    let mut before = session(&proxy.address("web"));
    proxy.signal(Signal::TERM);
    let line = proxy.wait_message(0, "not ready any more");
    assert_eq!(text(&line, "signal"), "SIGTERM");
    assert_eq!(proxy.status()["state"], "delaying");
    let told = proxy.done("status");
    assert!(told.contains("serving until drain_delay is over"), "{told}");
    let mut during = session(&proxy.address("web"));
    exchange(&mut before);
    let said = proxy.refused("drain --listener web");
    assert!(said.contains("draining"), "{said}");
    proxy.signal(Signal::INT);
    assert_eq!(ending(&mut before), Ending::Reset);
    assert_eq!(ending(&mut during), Ending::Reset);
    for session in proxy.next_sessions(2) {
        assert_eq!(session.reason, "drained");
    }
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn after_the_delay_it_refuses_and_lets_sessions_go_on() {
    let backend = Backend::echo();
    let mut proxy = started(&backend, "drain_delay = \"200ms\"");
    let client = session(&proxy.address("web"));
    let began = now();
    proxy.signal(Signal::TERM);
    proxy.wait_message(0, "draining");
    assert!(began.elapsed() >= Duration::from_millis(200));
    is_refused(&proxy.address("web"));
    assert_eq!(proxy.status()["state"], "draining");
    ends_well(client);
    assert_eq!(proxy.next_session().reason, "client-closed");
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn a_second_signal_aborts_what_drains() {
    let backend = Backend::echo();
    let mut proxy = started(&backend, "drain_timeout = \"1h\"");
    let mut client = session(&proxy.address("web"));
    proxy.signal(Signal::TERM);
    proxy.wait_message(0, "draining");
    exchange(&mut client);
    proxy.signal(Signal::TERM);
    assert_eq!(ending(&mut client), Ending::Reset);
    assert_eq!(proxy.next_session().reason, "drained");
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn what_is_left_when_the_time_is_over_is_aborted_and_told_as_drained() {
    let backend = Backend::echo();
    let mut proxy = started(&backend, "drain_timeout = \"300ms\"");
    let mut clients = [(); 5].map(|()| session(&proxy.address("web")));
    proxy.signal(Signal::TERM);
    for client in &mut clients {
        assert_eq!(ending(client), Ending::Reset);
    }
    for session in proxy.next_sessions(5) {
        assert_eq!((&*session.reason, session.bytes_sent), ("drained", 1));
    }
    let line = proxy.wait_message(0, "aborting what is left");
    assert_eq!(line["sessions"], 5);
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

/// The process is stopped while clients come, and is told to end before it can have accepted them.
#[test]
fn who_waits_in_the_accept_queue_is_served() {
    let folder = tempfile::tempdir().expect("a folder");
    let unix = format!("unix:{}", folder.path().join("front.sock").display());
    for bind in ["127.0.0.1:0", &unix] {
        let backend = Backend::echo();
        let listener = format!("bind = {bind:?}\n");
        let tables = "[runtime]\nworkers = 2\n";
        let mut proxy = Proxy::start(&config(&[&backend.address], &listener, "", tables));
        let address = proxy.address("web");
        proxy.signal(Signal::STOP);
        eventually("the process to stop", || {
            is_stopped(proxy.pid()).then_some(())
        });
        let clients: Vec<_> = (0..200).map(|_| connect(&address)).collect();
        for mut client in &clients {
            client.write_all(b"x").expect("the kernel takes it");
        }
        proxy.signal(Signal::TERM);
        proxy.signal(Signal::CONT);
        proxy.wait_message(0, "draining");
        for mut client in clients {
            client.read_exact(&mut [0]).expect("it is served");
            ends_well(client);
        }
        for session in proxy.next_sessions(200) {
            assert_eq!(session.reason, "client-closed");
        }
        assert_eq!(proxy.wait_exit().code(), Some(0));
    }
}

fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let (_, state) = stat.rsplit_once(") ").expect("the name is in brackets");
    state.starts_with('T')
}

#[test]
fn a_connection_that_is_made_is_served_whenever_the_end_comes() {
    for _ in 0..3 {
        let backend = quick_backend();
        let mut proxy = started(&backend, "");
        let address = proxy.address("web");
        let served = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| until_it_is_refused(&address, &served));
            }
            eventually("clients to be served", || {
                (served.load(Ordering::Relaxed) > 500).then_some(())
            });
            proxy.signal(Signal::TERM);
        });
        assert_eq!(proxy.wait_exit().code(), Some(0));
    }
}

/// Clients, one after the other. Each is served if it is connected.
fn until_it_is_refused(address: &str, served: &AtomicUsize) {
    loop {
        let mut client: Socket = unconnected(address);
        match client.connect(&parse(address).1) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return,
            Err(error) => panic!("neither served nor refused: {error}"),
        }
        exchange(&mut client);
        finish(&client);
        assert_eq!(read_to_end(&mut client), b"");
        served.fetch_add(1, Ordering::Relaxed);
    }
}

/// What nobody would take any more must not be looked at again and again.
#[test]
fn a_file_that_is_read_when_the_process_is_ending_is_of_no_interest() {
    let backend = Backend::echo();
    let mut proxy = started(&backend, "");
    let client = session(&proxy.address("web"));
    // Reading it does not end before the test has written.
    fs::remove_file(proxy.file()).expect("it was there");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, proxy.file(), mode).expect("nothing is there");
    proxy.signal(Signal::HUP);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .open(proxy.file())
        .expect("it is being read");
    proxy.signal(Signal::TERM);
    proxy.wait_message(0, "reload given up");
    proxy.wait_message(0, "draining");
    file.write_all(b"nonsense").expect("it is read");
    drop(file);
    let is_reading = || system::threads(proxy.pid()).contains(&"reload".to_owned());
    eventually("the reading to end", || (!is_reading()).then_some(()));
    let ticks = system::cpu_ticks(proxy.pid());
    pass(Duration::from_millis(500));
    let ticks = system::cpu_ticks(proxy.pid()) - ticks;
    assert!(ticks <= 5, "{ticks} ticks in half a second of silence");
    ends_well(client);
    assert_eq!(proxy.wait_exit().code(), Some(0));
}
