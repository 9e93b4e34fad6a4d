//! Sockets that a service manager has bound and keeps. The test is the manager.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::common::essentials::there_and_back;
use crate::common::load::{Load, quick_backend};
use crate::common::proxy::text;
use crate::common::socket::exchange;
use crate::common::{Backend, PATIENCE, Proxy, connect, eventually};

/// A socket of the manager's.
struct Kept {
    socket: TcpListener,
    address: String,
}

impl Kept {
    fn new() -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = socket.local_addr().expect("it is bound").to_string();
        Self { socket, address }
    }

    /// Starts a service that has it as its descriptor 3, by this name.
    fn spawn(&self, name: &str, config: &str) -> Proxy {
        let socket = self.socket.try_clone().expect("a descriptor");
        spawn(socket.into(), name, config)
    }

    fn start(&self, config: &str) -> Proxy {
        let proxy = self.spawn("web", config);
        proxy.wait_message(0, "started");
        proxy
    }

    /// Nobody serves: a client gets into the queue, and the manager could hand it to the next one.
    fn takes_clients(&self) {
        let client = TcpStream::connect_timeout(&self.address.parse().expect("one"), PATIENCE);
        let mut client = client.expect("it listens");
        client.write_all(b"x").expect("the kernel takes it");
        let (mut accepted, peer) = self.socket.accept().expect("it is there");
        assert_eq!(peer, client.local_addr().expect("it is connected"));
        accepted
            .set_read_timeout(Some(PATIENCE))
            .expect("a timeout");
        accepted.read_exact(&mut [0]).expect("it is the client");
    }

    /// Sockets that listen at its port: proc(5), /proc/net/tcp.
    fn listening(&self) -> usize {
        let port = self.socket.local_addr().expect("it is bound").port();
        let table = fs::read_to_string("/proc/net/tcp").expect("it can be read");
        let rows = table.lines().filter(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields[1].ends_with(&format!(":{port:04X}")) && fields[3] == LISTEN
        });
        rows.count()
    }
}

/// Starts a service that has the socket as its descriptor 3, by this name.
fn spawn(socket: OwnedFd, name: &str, config: &str) -> Proxy {
    let script = "exec 3<&0 </dev/null; \
                      LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=$NAME exec \"$BINARY\" \"$@\"";
    let mut shell = Command::new("sh");
    shell
        .args(["-c", script, "sh"])
        .env("BINARY", env!("CARGO_BIN_EXE_ringress"))
        .env("NAME", name)
        .stdin(Stdio::from(socket));
    Proxy::launch(tempfile::tempdir().expect("a folder"), config, shell)
}

const LISTEN: &str = "0A";

fn config(backend: &Backend, bind: &str) -> String {
    let listener = format!("bind = {bind:?}\n");
    crate::common::config(
        &[&backend.address],
        &listener,
        "",
        "[runtime]\nworkers = 2\n",
    )
}

#[test]
fn two_workers_serve_from_one_socket() {
    let backend = quick_backend();
    let kept = Kept::new();
    let proxy = kept.start(&config(&backend, &kept.address));
    let load = Load::fresh(8, &kept.address);
    load.goes_on(500);
    assert_eq!(kept.listening(), 1, "no other was bound");
    load.stop();
    proxy.end();
}

#[test]
fn one_that_is_for_nobody_is_an_error() {
    let kept = Kept::new();
    let free = Kept::new().address;
    let backend = Backend::echo();
    for (name, part) in [("other", "is for no listener"), ("web", "binds")] {
        let mut proxy = kept.spawn(name, &config(&backend, &free));
        assert_eq!(proxy.wait_exit().code(), Some(1), "{name}");
        let lines = proxy.last_lines();
        let said = lines.last().expect("it says why").to_string();
        for part in [part, name, &kept.address, &free, "socket activation"] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }
    kept.takes_clients();
}

#[test]
fn a_reload_and_an_upgrade_keep_it() {
    let backend = quick_backend();
    let kept = Kept::new();
    let config = config(&backend, &kept.address);
    let mut proxy = kept.start(&config);
    let load = Load::fresh(4, &kept.address);
    load.goes_on(50);
    assert_eq!(text(&proxy.reload(&config), "message"), "reloaded");
    load.goes_on(50);
    proxy.write(&config.replace("workers = 2", "workers = 1"));
    proxy.signal(Signal::USR2);
    let successor = proxy.successor();
    assert_eq!(proxy.wait_exit().code(), Some(0));
    load.goes_on(50);
    assert_eq!(kept.listening(), 1, "no other was bound");
    load.stop();
    successor.end();
    // Whoever is started next has what it needs.
    kept.takes_clients();
}

/// The manager holds it while the service restarts: clients wait in its queue.
#[test]
fn it_takes_clients_while_the_process_drains_and_after_that() {
    let backend = Backend::echo();
    let kept = Kept::new();
    let config = config(&backend, &kept.address);
    let mut proxy = kept.start(&config);
    let session = exchange(None, &kept.address);
    assert!(session.is_some());
    proxy.signal(Signal::TERM);
    proxy.wait_message(0, "draining");
    eventually("it to be closed", || {
        (sockets(proxy.pid()).iter().all(|it| *it != inode(&kept))).then_some(())
    });
    kept.takes_clients();
    let waits = connect(&kept.address);
    drop(session);
    assert_eq!(proxy.wait_exit().code(), Some(0));
    let next = kept.start(&config);
    there_and_back(&waits, 1000);
    there_and_back(&connect(&kept.address), 1000);
    next.end();
}

/// What its descriptors are.
fn sockets(pid: u32) -> Vec<String> {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs");
    let targets = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    targets
        .map(|target| target.to_string_lossy().into_owned())
        .collect()
}

/// The same of the manager's socket.
fn inode(kept: &Kept) -> String {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", kept.socket.as_raw_fd());
    let target = fs::read_link(path).expect("it is open");
    target.to_string_lossy().into_owned()
}

#[test]
fn a_listener_that_is_drained_or_left_out_gets_it_again() {
    let backend = Backend::echo();
    let kept = Kept::new();
    let web = config(&backend, &kept.address);
    let proxy = kept.start(&web);
    for _ in 0..3 {
        proxy.done("drain --listener web");
        let waits = connect(&kept.address);
        proxy.done("resume --listener web");
        there_and_back(&waits, 1000);
    }
    let other = web
        .replace("listeners.web", "listeners.other")
        .replace(&kept.address, "127.0.0.1:0");
    assert_eq!(text(&proxy.reload(&other), "message"), "reloaded");
    let waits = connect(&kept.address);
    assert_eq!(text(&proxy.reload(&web), "message"), "reloaded");
    there_and_back(&waits, 1000);
    assert_eq!(kept.listening(), 1, "no other was bound");
    proxy.end();
    kept.takes_clients();
}

#[test]
fn a_listener_that_is_drained_over_an_upgrade_gets_it_again() {
    let backend = Backend::echo();
    let kept = Kept::new();
    let mut proxy = kept.start(&config(&backend, &kept.address));
    proxy.done("drain --listener web");
    proxy.done("upgrade");
    let successor = proxy.successor();
    assert_eq!(proxy.wait_exit().code(), Some(0));
    let waits = connect(&kept.address);
    proxy.done("resume --listener web");
    there_and_back(&waits, 1000);
    successor.end();
    kept.takes_clients();
}

#[test]
fn the_file_of_a_unix_socket_stays_the_managers() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("front.sock");
    let socket = UnixListener::bind(&path).expect("a short path");
    let backend = Backend::echo();
    let address = format!("unix:{}", path.display());
    let mut proxy = spawn(socket.into(), "web", &config(&backend, &address));
    proxy.wait_message(0, "started");
    there_and_back(&connect(&address), 1000);
    proxy.done("upgrade");
    let successor = proxy.successor();
    assert_eq!(proxy.wait_exit().code(), Some(0));
    there_and_back(&connect(&address), 1000);
    successor.end();
    assert!(path.exists());
}
