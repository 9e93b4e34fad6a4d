//! Listeners that stay, come and go with an upgrade.

use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use rustix::process::Signal;

use super::{app, exchange, free, leave, listener, plain, refuses, visit};
use crate::common::lineage::Lineage;
use crate::common::load::{Load, quick_backend};
use crate::common::socket::{parse, unconnected};
use crate::common::{Backend, connect, eventually};

#[test]
fn the_signal_does_what_the_command_does() {
    let backend = Backend::echo();
    let mut line = Lineage::start(&plain(&[&backend.address]));
    let address = line.proxy.address("web");
    let mut client = connect(&address);
    exchange(&mut client);
    line.signal(Signal::USR2);
    let upgraded = line.proxy.wait_message(0, "upgraded");
    line.adopt(&upgraded["pid"]);
    assert_eq!(line.console.status().pid, line.pid());
    visit(&address);
    exchange(&mut client);
    leave(client);
    line.wait_alone();
    line.end();
}

#[test]
fn a_unix_listener_serves_at_its_path_through_upgrades_and_goes_with_the_last_process() {
    let backend = quick_backend();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("front.sock");
    let unix = format!("unix:{}", path.display());
    let text = |workers| {
        format!(
            "{}{}",
            listener("unix", &unix),
            app(&[&backend.address], workers)
        )
    };
    let mut line = Lineage::start(&text(1));
    let load = Load::fresh(2, &unix);
    for workers in [2, 1, 2] {
        load.goes_on(50);
        line.upgrade_to(&text(workers));
        assert!(path.exists());
    }
    load.goes_on(50);
    load.stop();
    line.wait_alone();
    assert!(path.exists(), "the old ones have left it alone");
    visit(&unix);
    line.end();
    assert!(!path.exists());
}

#[test]
fn a_unix_listener_that_goes_takes_its_file_along() {
    let backend = Backend::echo();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("front.sock");
    let unix = listener("unix", &format!("unix:{}", path.display()));
    let text = plain(&[&backend.address]);
    let mut line = Lineage::start(&format!("{unix}{text}"));
    assert!(path.exists());
    line.upgrade_to(&text);
    line.wait_alone();
    assert!(!path.exists());
    line.upgrade_to(&format!("{unix}{text}"));
    visit(&format!("unix:{}", path.display()));
    line.end();
    assert!(!path.exists());
}

/// Until connections are refused, each that is made is served. How many were is counted.
fn knock_until_refused(address: &str, served: &AtomicU64) {
    loop {
        let mut client = unconnected(address);
        match client.connect(&parse(address).1) {
            Ok(()) => {}
            Err(error) => return assert_eq!(error.kind(), ErrorKind::ConnectionRefused),
        }
        let answer = client
            .write_all(b"x")
            .and_then(|()| client.read_exact(&mut [0]));
        answer.expect("who is taken in is served");
        leave(client);
        served.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_listener_that_goes_serves_whom_it_has_taken_and_its_sessions_live_on() {
    let backend = Backend::echo();
    let (stays, goes) = (free(), free());
    let app = app(&[&backend.address], 2);
    let small = format!("{}{app}", listener("stays", &stays));
    let mut line = Lineage::start(&format!("{}{small}", listener("goes", &goes)));
    let mut client = connect(&goes);
    exchange(&mut client);
    let served = AtomicU64::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| knock_until_refused(&goes, &served));
        }
        eventually("some to be served", || {
            (served.load(Ordering::Relaxed) > 50).then_some(())
        });
        line.upgrade_to(&small);
    });
    assert!(refuses(&goes));
    exchange(&mut client);
    visit(&stays);
    leave(client);
    line.wait_alone();
    line.end();
}

#[test]
fn a_listener_that_comes_is_served_and_the_others_are_not_interrupted() {
    let backend = quick_backend();
    let (stays, comes) = (free(), free());
    let app = app(&[&backend.address], 2);
    let small = format!("{}{app}", listener("stays", &stays));
    let mut line = Lineage::start(&small);
    let load = Load::knocking(1, &stays);
    load.goes_on(50);
    line.upgrade_to(&format!("{}{small}", listener("comes", &comes)));
    visit(&comes);
    load.goes_on(50);
    load.stop();
    line.end();
}

#[test]
fn a_listener_of_another_name_goes_on_with_the_sockets() {
    let backend = quick_backend();
    let address = free();
    let app = app(&[&backend.address], 2);
    let mut line = Lineage::start(&format!("{}{app}", listener("before", &address)));
    let load = Load::fresh(2, &address);
    load.goes_on(50);
    line.upgrade_to(&format!("{}{app}", listener("after", &address)));
    load.goes_on(50);
    load.stop();
    assert_eq!(line.console.status().listeners[0].name, "after");
    line.end();
}
