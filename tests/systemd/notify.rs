//! What a service manager hears of a real process. The test is the manager.

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::common::socket::exchange;
use crate::common::{Backend, PATIENCE, Proxy, now, plain};

/// The manager's end.
struct Manager {
    socket: UnixDatagram,
    proxy: Proxy,
}

impl Manager {
    /// Starts a service with these variables.
    fn start(config: &str, variables: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).expect("a short path");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringress"));
        command
            .env("NOTIFY_SOCKET", &path)
            .envs(variables.iter().copied());
        let proxy = Proxy::launch(folder, config, command);
        Self { socket, proxy }
    }

    fn next(&self) -> String {
        let mut words = [0; 1024];
        let length = self
            .socket
            .recv(&mut words)
            .expect("the service says something");
        let words = str::from_utf8(&words[..length]).expect("it is UTF-8");
        words.to_owned()
    }

    /// The next that begins so; others, but for those of the watchdog, must not come before it.
    fn hears(&self, beginning: &str) -> String {
        loop {
            let words = self.next();
            if words.starts_with(beginning) {
                return words;
            }
            assert_eq!(words, "WATCHDOG=1\n", "instead of {beginning}");
        }
    }

    /// The time that a reload has begun by its words.
    fn hears_reloading(&self) -> u64 {
        let words = self.hears("RELOADING=1\n");
        let time = words.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
        time.expect("the time comes along")
            .trim()
            .parse()
            .expect("a number")
    }
}

fn monotonic_micros() -> u64 {
    ringress::ring::now().as_nanos() / 1_000
}

#[test]
fn start_reload_and_end_are_told_in_their_order() {
    let backend = Backend::echo();
    let config = plain(&[&backend.address]);
    let mut manager = Manager::start(&config, &[]);
    assert_eq!(manager.hears("READY=1"), "READY=1\nSTATUS=generation 1\n");
    let asked = monotonic_micros();
    manager.proxy.signal(Signal::HUP);
    let began = manager.hears_reloading();
    assert!(
        (asked..=monotonic_micros()).contains(&began),
        "{began}, asked at {asked}"
    );
    assert_eq!(manager.hears("READY=1"), "READY=1\nSTATUS=generation 2\n");
    // One that is refused ends, too, or the manager would wait for it.
    manager.proxy.write("[listeners.web\n");
    manager.proxy.signal(Signal::HUP);
    assert!(manager.hears_reloading() > began);
    let refused = "READY=1\nSTATUS=generation 2; the last reload was refused\n";
    assert_eq!(manager.hears("READY=1"), refused);
    manager.proxy.signal(Signal::TERM);
    let words = manager.hears("STOPPING=1\n");
    // drain_timeout is 60 s by default, and aborting takes a moment.
    assert_eq!(
        words,
        "STOPPING=1\nEXTEND_TIMEOUT_USEC=64000000\nSTATUS=draining\n"
    );
    assert_eq!(manager.proxy.wait_exit().code(), Some(0));
}

#[test]
fn the_watchdog_hears_twice_in_its_time_even_while_the_process_drains() {
    const LIMIT: Duration = Duration::from_secs(1);
    let backend = Backend::echo();
    let limit = LIMIT.as_micros().to_string();
    let config = plain(&[&backend.address]);
    let mut manager = Manager::start(&config, &[("WATCHDOG_USEC", &limit)]);
    manager.hears("READY=1");
    manager.hears("WATCHDOG=1\n");
    let began = now();
    for _ in 0..3 {
        let before = now();
        manager.hears("WATCHDOG=1\n");
        assert!(before.elapsed() < LIMIT, "{:?}", before.elapsed());
    }
    let took = began.elapsed();
    assert!(took > LIMIT, "three times in {took:?}");
    let client = exchange(None, &manager.proxy.address("web"));
    manager.proxy.signal(Signal::TERM);
    manager.hears("STOPPING=1\n");
    assert_eq!(manager.next(), "WATCHDOG=1\n");
    drop(client);
    assert_eq!(manager.proxy.wait_exit().code(), Some(0));
}

#[test]
fn an_upgrade_names_the_new_process_as_the_main_one() {
    let backend = Backend::echo();
    let mut manager = Manager::start(&plain(&[&backend.address]), &[]);
    manager.hears("READY=1");
    manager.proxy.signal(Signal::USR2);
    manager.hears_reloading();
    let successor = manager.proxy.successor();
    // The new one says that it is ready, too. The manager listens to the main process only.
    let named = loop {
        let words = manager.next();
        if words.starts_with("MAINPID=") {
            break words;
        }
        assert!(words.starts_with("READY=1\n"), "{words}");
    };
    let expected = format!("MAINPID={}\nREADY=1\n", successor.pid);
    assert!(named.starts_with(&expected), "{named}");
    // The old one says nothing of its end: it isn't the service any more.
    assert_eq!(manager.proxy.wait_exit().code(), Some(0));
    manager.socket.set_nonblocking(true).expect("it can be");
    while let Ok(length) = manager.socket.recv(&mut [0; 1024]) {
        assert_eq!(length, "READY=1\nSTATUS=generation 1\n".len());
    }
    manager.socket.set_nonblocking(false).expect("it can be");
    successor.end();
    manager.hears("STOPPING=1\n");
}

#[test]
fn an_upgrade_that_fails_ends_as_a_reload_does() {
    let backend = Backend::echo();
    let manager = Manager::start(&plain(&[&backend.address]), &[]);
    manager.hears("READY=1");
    manager.proxy.write("[listeners.web\n");
    manager.proxy.signal(Signal::USR2);
    manager.hears_reloading();
    assert_eq!(manager.hears("READY=1"), "READY=1\nSTATUS=generation 1\n");
    manager.proxy.end();
}
