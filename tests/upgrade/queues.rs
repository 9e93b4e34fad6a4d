//! The accept queues of a listener's sockets: who gets connections, and who must not lose any.

use std::fs;

use rustix::process::Signal;

use super::{app, exchange, leave, listener};
use crate::common::lineage::Lineage;
use crate::common::{Backend, connect, eventually};

/// Stops the process for a moment and connects to it. On how many of its sockets connections wait; more than
/// one on each.
pub(super) fn used(line: &Lineage, address: &str) -> usize {
    line.signal(Signal::STOP);
    // Not before every thread has stopped.
    eventually("it to stop", || is_stopped(line.pid()).then_some(()));
    let clients: Vec<_> = (0..40).map(|_| connect(address)).collect();
    let long = accept_queues(address)
        .into_iter()
        .filter(|length| *length > 2);
    let used = long.count();
    line.signal(Signal::CONT);
    for mut client in clients {
        exchange(&mut client);
        leave(client);
    }
    used
}

fn is_stopped(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let stats = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok());
    let mut states = stats.filter_map(|stat| Some(stat.rsplit_once(") ")?.1.starts_with('T')));
    states.all(|stopped| stopped)
}

/// proc(5), /proc/net/tcp: `sl local remote st tx:rx`, where rx is what waits on a listening socket.
fn accept_queues(address: &str) -> Vec<u64> {
    let (_, port) = address.rsplit_once(':').expect("it has a port");
    let port = format!(":{:04X}", port.parse::<u16>().expect("a port"));
    let table = fs::read_to_string("/proc/net/tcp").expect("it can be read");
    let rows = table.lines().map(|line| line.split_whitespace().collect());
    let listening = rows.filter(|row: &Vec<_>| row[1].ends_with(&port) && row[3] == "0A");
    let lengths = listening.map(|row| row[4].rsplit(':').next().unwrap_or_default().to_owned());
    lengths
        .map(|length| u64::from_str_radix(&length, 16).expect("a number"))
        .collect()
}

#[test]
fn connections_go_to_as_many_sockets_as_there_are_workers() {
    let backend = Backend::echo();
    let text = |workers| {
        let listener = listener("web", "127.0.0.1:0");
        format!("{listener}{}", app(&[&backend.address], workers))
    };
    let mut line = Lineage::start(&text(2));
    let address = line.proxy.address("web");
    assert_eq!(used(&line, &address), 2);
    for workers in [1, 3, 2] {
        line.upgrade_to(&text(workers));
        line.wait_alone();
        assert_eq!(used(&line, &address), workers);
    }
    line.end();
}
