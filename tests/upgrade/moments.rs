//! Processes that are killed or told to end while they hand over.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use rustix::process::Signal;

use super::{QUIET, exchange, leave, plain, visit};
use crate::common::lineage::{Exit, Lineage};
use crate::common::load::{Load, quick_backend};
use crate::common::socket::{parse, set_patience, unconnected};
use crate::common::{Backend, PATIENCE, connect, ending, eventually, pass};

/// Moments of an upgrade, from its beginning to after its end.
const DELAYS: [u64; 9] = [0, 1, 3, 6, 10, 15, 25, 50, 100];

#[test]
fn the_new_process_serves_on_when_the_old_one_is_killed() {
    let backend = Backend::echo();
    let mut line = Lineage::start(&plain(&[&backend.address]));
    let address = line.proxy.address("web");
    for generation in 0..3 {
        let mut client = connect(&address);
        exchange(&mut client);
        line.upgrade();
        line.signal_to(generation, Signal::KILL);
        // With FIN or RST, as the kernel likes.
        ending(&mut client);
        visit(&address);
        eventually("the old one to be gone", || {
            (line.console.status().old_processes == 0).then_some(())
        });
        assert_eq!(line.wait_exit(generation), Exit::Killed);
    }
    line.signal(Signal::TERM);
    assert_eq!(line.wait_exit(3), Exit::Code(0));
}

#[test]
fn clients_of_the_new_process_do_not_notice_the_death_of_the_old_one() {
    let backend = quick_backend();
    let mut line = Lineage::start(&format!("{}{QUIET}", plain(&[&backend.address])));
    let address = line.proxy.address("web");
    for generation in 0..3 {
        line.upgrade();
        // Before: who had been taken in by the old one would be reset with it.
        eventually("the old one to serve nobody", || {
            (line.console.status().old_processes <= 1).then_some(())
        });
        let load = Load::fresh(2, &address);
        line.signal_to(generation, Signal::KILL);
        load.goes_on(50);
        load.stop();
    }
}

/// Whoever is left: nobody, or one process that serves.
fn who_is_left(line: &mut Lineage, address: &str) -> bool {
    let running = |line: &Lineage| {
        let family = line.family();
        let running = family.into_iter().filter(|seen| !seen.is_zombie);
        running.map(|seen| seen.pid).collect::<Vec<_>>()
    };
    let pid = eventually("one process or none", || match running(line)[..] {
        [] => Some(None),
        [pid] if line.console.run("status", &[]).1["pid"] == pid => Some(Some(pid)),
        _ => None,
    });
    if pid.is_some() {
        visit(address);
    }
    pid.is_some()
}

#[test]
fn whenever_the_old_process_is_killed_the_new_one_serves_or_is_gone() {
    let backend = Backend::echo();
    let mut served = 0;
    for delay in DELAYS {
        let mut line = Lineage::start(&plain(&[&backend.address]));
        let address = line.proxy.address("web");
        line.signal(Signal::USR2);
        pass(Duration::from_millis(delay));
        line.signal(Signal::KILL);
        served += usize::from(who_is_left(&mut line, &address));
    }
    println!("served on after {served} of {} deaths", DELAYS.len());
}

/// A client that comes at a bad time. It may be refused, or taken in by the one that dies, but not left
/// waiting: false.
fn is_answered(address: &str) -> bool {
    let mut client = unconnected(address);
    set_patience(&client, PATIENCE / 4);
    let asked = client.connect(&parse(address).1);
    let asked = asked.and_then(|()| client.write_all(b"x"));
    let answered = asked.and_then(|()| client.read(&mut [0]));
    !answered.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn nobody_is_left_waiting_in_a_queue_by_the_death_of_the_old_process() {
    let backend = Backend::echo();
    // What the log says last before it dies.
    for message in ["control socket", "listening", "started", "upgraded"].repeat(3) {
        let line = Lineage::start(&plain(&[&backend.address]));
        let address = line.proxy.address("web");
        let from = line.proxy.lines().len();
        line.signal(Signal::USR2);
        line.proxy.wait_message(from, message);
        line.signal(Signal::KILL);
        for number in 0..8 {
            assert!(is_answered(&address), "client {number}, after {message:?}");
        }
    }
}

#[test]
fn whenever_the_old_process_is_told_to_end_it_drains() {
    let backend = Backend::echo();
    let mut served = 0;
    for delay in DELAYS {
        let mut line = Lineage::start(&plain(&[&backend.address]));
        let address = line.proxy.address("web");
        let from = line.proxy.lines().len();
        line.signal(Signal::USR2);
        pass(Duration::from_millis(delay));
        line.signal(Signal::TERM);
        line.proxy.wait_message(from, "draining");
        assert_eq!(line.wait_exit(0), Exit::Code(0));
        served += usize::from(who_is_left(&mut line, &address));
    }
    println!("handed over before {served} of {} orders", DELAYS.len());
}

#[test]
fn a_session_of_a_process_that_gives_up_an_upgrade_goes_on() {
    let backend = Backend::echo();
    let mut line = Lineage::start(&plain(&[&backend.address]));
    let mut client = line.proxy.connect();
    exchange(&mut client);
    line.signal(Signal::USR2);
    line.signal(Signal::TERM);
    line.proxy.wait_message(0, "draining");
    exchange(&mut client);
    leave(client);
    assert_eq!(line.wait_exit(0), Exit::Code(0));
}
