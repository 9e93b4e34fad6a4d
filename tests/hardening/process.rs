//! A whole process that is started as root and becomes nobody.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::child::low_ports_are_free;
use crate::common::backend::free_address;
use crate::common::certificates::{Authority, terminates};
use crate::common::essentials::there_and_back;
use crate::common::load::{Load, quick_backend};
use crate::common::proxy::text;
use crate::common::successor::of_threads;
use crate::common::{Backend, Proxy, config, connect};
use crate::{BIND, copy, open_to};

/// User and group of `nobody`, as the system has them.
fn nobody() -> (u32, u32) {
    let users = fs::read_to_string("/etc/passwd").expect("it is readable");
    let line = users.lines().find(|line| line.starts_with("nobody:"));
    let fields: Vec<&str> = line.expect("every system has one").split(':').collect();
    let number = |field: &str| field.parse().expect("a number");
    (number(fields[2]), number(fields[3]))
}

fn binary() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ringress"))
}

/// Starts `command` with this configuration, in a folder where everybody may do anything.
fn launch(config: &str, command: Command) -> Proxy {
    let folder = tempfile::tempdir().expect("a folder");
    open_to(folder.path(), 0o777);
    Proxy::launch(folder, config, command)
}

fn start(config: &str) -> Proxy {
    let proxy = launch(config, binary());
    proxy.wait_message(0, "started");
    proxy
}

fn as_nobody(backend: &Backend, bind: &str, workers: usize) -> String {
    let tables = format!("[runtime]\nuser = \"nobody\"\nworkers = {workers}\n");
    let listener = format!("bind = {bind}\n");
    config(&[&backend.address], &listener, "", &tables)
}

/// Every thread is nobody's, gains nothing, and has these capabilities.
fn is_nobodys(pid: u32, capabilities: u64) {
    let (user, group) = nobody();
    let four = |id: u32| [id.to_string().as_str(); 4].join(" ");
    let shown = format!("{capabilities:016x}");
    for (key, value) in [
        ("Uid", &four(user)),
        ("Gid", &four(group)),
        ("NoNewPrivs", &"1".to_owned()),
        ("CapPrm", &shown),
        ("CapEff", &shown),
        ("CapInh", &shown),
        ("CapAmb", &shown),
    ] {
        let found = of_threads(pid, key);
        assert!(
            found.len() > 2,
            "workers have threads of their own: {found:?}"
        );
        assert!(found.iter().all(|found| found == value), "{key}: {found:?}");
    }
}

fn is_owned_by_nobody(path: &Path) {
    let file = fs::symlink_metadata(path).expect("it is there");
    assert_eq!((file.uid(), file.gid()), nobody(), "{}", path.display());
}

pub(crate) fn every_thread_is_nobodys_and_serves() {
    let backend = quick_backend();
    let unix = tempfile::tempdir().expect("a folder");
    open_to(unix.path(), 0o777);
    let path = unix.path().join("front.sock");
    let address = format!("unix:{}", path.display());
    let binds = format!("[\"127.0.0.1:0\", {address:?}]");
    let proxy = start(&as_nobody(&backend, &binds, 2));
    is_nobodys(proxy.pid(), 0);
    let load = Load::fresh(4, &proxy.address("web"));
    load.goes_on(100);
    load.stop();
    there_and_back(&connect(&address), 1000);
    is_owned_by_nobody(&path);
    let lines = proxy.lines();
    let socket = lines
        .iter()
        .find(|line| line["message"] == "control socket");
    let socket = PathBuf::from(text(socket.expect("it has one"), "path"));
    is_owned_by_nobody(&socket);
    assert_eq!(proxy.status()["pid"], proxy.pid(), "root may ask");
    // What it has bound as root it can give up, and bind again as nobody.
    for words in ["drain --listener web", "resume --listener web"] {
        proxy.done(words);
    }
    there_and_back(&connect(&address), 1000);
    proxy.end();
    assert!(!path.exists() && !socket.exists());
}

pub(crate) fn a_reload_adds_a_listener() {
    let backend = Backend::echo();
    let config = as_nobody(&backend, "\"127.0.0.1:0\"", 2);
    let proxy = start(&config);
    let second = free_address();
    let more = format!("[listeners.second]\nbind = {second:?}\nupstream = \"app\"\n{config}");
    assert_eq!(text(&proxy.reload(&more), "message"), "reloaded");
    there_and_back(&connect(&second), 1000);
    if !low_ports_are_free() {
        let low = format!("127.0.0.1:{}", low_port());
        let line = proxy.reload(&more.replace(&second, &low));
        let said = text(&line, "message");
        assert!(
            said.starts_with("reload refused") && said.contains(&low),
            "{line}"
        );
        there_and_back(&connect(&second), 1000);
    }
    is_nobodys(proxy.pid(), 0);
    proxy.end();
}

pub(crate) fn a_file_that_only_root_can_read_is_an_error_at_the_start() {
    let backend = Backend::echo();
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "chmod 600 \"$3\"; exec \"$BINARY\" \"$@\"", "sh"])
        .env("BINARY", env!("CARGO_BIN_EXE_ringress"));
    let mut proxy = launch(&as_nobody(&backend, "\"127.0.0.1:0\"", 1), shell);
    assert_eq!(proxy.wait_exit().code(), Some(1));
    let lines = proxy.last_lines();
    let said = lines.last().expect("it says why").to_string();
    for part in ["ringress.toml", "nobody", "Permission denied", "chgrp"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

pub(crate) fn a_key_that_only_root_can_read_is_an_error_at_the_start() {
    let backend = Backend::echo();
    let folder = tempfile::tempdir().expect("a folder");
    open_to(folder.path(), 0o755);
    let files = Authority::new("ca.example")
        .leaf(&["a.example"])
        .write(folder.path(), "a");
    open_to(&files[1], 0o600);
    let bind = format!("\"127.0.0.1:0\"\n{}", terminates(&files));
    let config = as_nobody(&backend, &bind, 1);
    let mut proxy = launch(&config, binary());
    assert_eq!(proxy.wait_exit().code(), Some(1));
    let lines = proxy.last_lines();
    let said = lines.last().expect("it says why").to_string();
    for part in ["a.key", "nobody", "Permission denied", "chgrp", "chmod"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    open_to(&files[1], 0o644);
    start(&config).end();
}

pub(crate) fn a_low_port_is_kept_over_an_upgrade_with_more_workers() {
    if low_ports_are_free() {
        eprintln!("skipped: anybody may bind ports below 1024 here");
        return;
    }
    let backend = quick_backend();
    let address = format!("127.0.0.1:{}", low_port());
    let bind = format!("{address:?}");
    let public = tempfile::tempdir().expect("a folder");
    open_to(public.path(), 0o755);
    // Nobody can't get into every folder that a binary is built in.
    let binary = public.path().join("ringress");
    copy(Path::new(env!("CARGO_BIN_EXE_ringress")), &binary);
    let mut proxy = launch(&as_nobody(&backend, &bind, 1), Command::new(&binary));
    proxy.wait_message(0, "started");
    is_nobodys(proxy.pid(), BIND);
    let load = Load::fresh(4, &address);
    load.goes_on(50);
    proxy.write(&as_nobody(&backend, &bind, 2));
    proxy.done("upgrade");
    let successor = proxy.successor();
    assert_eq!(proxy.wait_exit().code(), Some(0));
    load.goes_on(50);
    is_nobodys(successor.pid, BIND);
    assert_eq!(proxy.status()["workers"], 2);
    load.stop();
    // It could bind the port again, too.
    proxy.done("drain --listener web");
    proxy.done("resume --listener web");
    there_and_back(&connect(&address), 1000);
    successor.end();
}

/// One that nobody has at the moment. The tests beside this one look for theirs from the other end.
fn low_port() -> u16 {
    let mut ports = 512..1024;
    let free = ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok());
    free.expect("a port is free")
}

pub(crate) fn who_is_not_root_is_refused() {
    let backend = Backend::echo();
    // The tests may be run by nobody itself.
    let config = as_nobody(&backend, "\"127.0.0.1:0\"", 1).replace("nobody", "daemon");
    let (code, said) = Proxy::fails(&config);
    assert_eq!(code, Some(1), "{said}");
    for part in ["runtime.user", "start it as root"] {
        assert!(said.contains(part), "{said}");
    }
}
