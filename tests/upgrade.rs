//! Upgrades of the real binary: what is lost, what travels to the new process, and what becomes of those
//! that fail.

mod common;

#[path = "upgrade/datagrams.rs"]
mod datagrams;
#[path = "upgrade/failures.rs"]
mod failures;
#[path = "upgrade/listeners.rs"]
mod listeners;
#[path = "upgrade/moments.rs"]
mod moments;
#[path = "upgrade/queues.rs"]
mod queues;
#[path = "upgrade/rows.rs"]
mod rows;
#[path = "upgrade/sessions.rs"]
mod sessions;
#[path = "upgrade/state.rs"]
mod state;

use std::io::{Read, Write};

use common::backend::free_address as free;
use common::lineage::Console;
use common::socket::{finish, parse, unconnected};
use common::{by_hand, eventually};
use ringress::control::socket::status::{ListenerStatus, Status};
use socket2::Socket;

/// A listener of this name at this address, before the upstream `app`.
fn listener(name: &str, address: &str) -> String {
    format!("[listeners.{name}]\nbind = {address:?}\nupstream = \"app\"\n")
}

/// The upstream `app`, and so many workers. Old processes have all the time they need.
fn app(backends: &[&str], workers: usize) -> String {
    format!(
        "[upstreams.app]\nbackends = {backends:?}\n\
         [runtime]\nworkers = {workers}\ndrain_timeout = \"5m\"\n"
    )
}

/// One listener at a port that the kernel chooses, and two workers.
fn plain(backends: &[&str]) -> String {
    format!("{}{}", listener("web", "127.0.0.1:0"), app(backends, 2))
}

/// Sessions are not told.
const QUIET: &str = "[log]\nlevel = \"info\"\nformat = \"json\"\n";

/// A byte there and back.
fn exchange(client: &mut Socket) {
    client.write_all(b"x").expect("it is taken");
    client.read_exact(&mut [0]).expect("the echo comes");
}

/// FIN there and back.
fn leave(mut client: Socket) {
    finish(&client);
    assert_eq!(common::read_to_end(&mut client), b"");
}

/// A session from beginning to end.
fn visit(address: &str) {
    let mut client = common::connect(address);
    exchange(&mut client);
    leave(client);
}

fn refuses(address: &str) -> bool {
    unconnected(address).connect(&parse(address).1).is_err()
}

fn of_listener<'a>(status: &'a Status, name: &str) -> &'a ListenerStatus {
    let mut listeners = status.listeners.iter();
    listeners.find(|it| it.name == name).expect("it is there")
}

/// Waits until the process that serves is told to be after so many that still have sessions.
fn wait_old_processes(console: &Console, count: u32) -> Status {
    eventually("older processes", || {
        let status = console.status();
        (status.old_processes == count).then_some(status)
    })
}
