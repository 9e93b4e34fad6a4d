//! Sessions of an old process: they go on as long as they like, and the new one knows of them.

use std::thread;

use socket2::Socket;

use super::{QUIET, by_hand, exchange, leave, of_listener, plain, wait_old_processes};
use crate::common::essentials::there_and_back;
use crate::common::lineage::{Exit, Lineage};
use crate::common::pattern::Pattern;
use crate::common::{Backend, connect, eventually};

/// Sends the next bytes on every connection, does something, and reads what has come back.
fn across(pattern: &mut Pattern, clients: &mut [Socket], what: impl FnOnce()) {
    const BYTES: u64 = 3000;
    let place = pattern.place;
    for client in &mut *clients {
        pattern.place = place;
        pattern.write(client, BYTES).expect("it is taken");
    }
    what();
    for client in clients {
        pattern.place = place;
        pattern.check(client, BYTES).expect("it comes back");
    }
}

#[test]
fn long_connections_get_every_byte_across_reloads_and_an_upgrade() {
    let count = by_hand("RINGRESS_TEST_CONNECTIONS", 200);
    let backend = Backend::echo();
    let text = |idle: usize| {
        let timeouts = format!("[listeners.web.timeouts]\nidle = \"{idle}m\"\n");
        format!("{}{timeouts}{QUIET}", plain(&[&backend.address]))
    };
    let mut line = Lineage::start(&text(10));
    let address = line.proxy.address("web");
    // One after the other, so that a busy machine has no crowd of them at the backend.
    let served = |_| {
        let mut client = connect(&address);
        exchange(&mut client);
        client
    };
    let mut clients: Vec<_> = (0..count).map(served).collect();
    let mut pattern = Pattern::new();
    for number in 1..=10 {
        across(&mut pattern, &mut clients, || {
            let line = line.proxy.reload(&text(10 + number));
            assert_eq!(line["message"], "reloaded", "{line}");
        });
    }
    let stream = connect(&address);
    let streaming = thread::spawn(move || there_and_back(&stream, 200 << 20));
    across(&mut pattern, &mut clients, || line.upgrade());
    let status = wait_old_processes(&line.console, 1);
    assert_eq!((status.generation, status.sessions), (12, 0));
    across(&mut pattern, &mut clients, || {
        there_and_back(&connect(&address), 1000);
    });
    streaming.join().expect("every byte is right");
    let last = clients.pop().expect("there are some");
    clients.into_iter().for_each(leave);
    let mut last = [last];
    across(&mut pattern, &mut last, || ());
    assert_eq!(line.console.status().old_processes, 1);
    last.into_iter().for_each(leave);
    assert_eq!(line.wait_exit(0), Exit::Code(0));
    let status = wait_old_processes(&line.console, 0);
    let web = of_listener(&status, "web");
    assert_eq!(web.accepted, count as u64 + 2);
    assert_eq!(web.closed["client-closed"], count as u64 + 2);
    line.end();
}

/// A session of the newest process: the one before may accept for a moment still.
fn connect_to_newest(line: &Lineage, address: &str) -> Socket {
    loop {
        let mut client = connect(address);
        exchange(&mut client);
        if line.console.status().sessions > 0 {
            return client;
        }
        leave(client);
    }
}

#[test]
fn what_three_generations_count_comes_to_the_newest() {
    let backend = Backend::echo();
    let mut line = Lineage::start(&plain(&[&backend.address]));
    let address = line.proxy.address("web");
    let mut clients = Vec::new();
    for generation in 0..3 {
        clients.push(connect_to_newest(&line, &address));
        if generation < 2 {
            line.upgrade();
        }
    }
    let console = line.console.clone();
    // Three are open, whoever else has come and gone.
    let counted = |ended: u64| {
        eventually("counts", || {
            let status = console.status();
            let web = of_listener(&status, "web");
            let closed = web.closed.get("client-closed").copied();
            let open = web.accepted - closed.unwrap_or_default();
            (open == 3 - ended).then_some(status)
        })
    };
    assert_eq!(counted(0).old_processes, 2);
    for generation in [0, 1] {
        clients.iter_mut().for_each(exchange);
        leave(clients.remove(0));
        assert_eq!(line.wait_exit(generation), Exit::Code(0));
        let ended = generation as u64 + 1;
        counted(ended);
        wait_old_processes(&line.console, 1 - generation as u32);
    }
    clients.into_iter().for_each(leave);
    counted(3);
    line.end();
}

#[test]
fn the_newest_process_ends_after_the_old_ones_with_their_sessions() {
    let backend = Backend::echo();
    let text = plain(&[&backend.address]);
    let mut line = Lineage::start(&text);
    let mut client = line.proxy.connect();
    exchange(&mut client);
    line.upgrade();
    line.signal(rustix::process::Signal::TERM);
    line.proxy.wait_message(0, "draining");
    exchange(&mut client);
    leave(client);
    assert_eq!(line.wait_exit(0), Exit::Code(0));
    assert_eq!(line.wait_exit(1), Exit::Code(0));
}

#[test]
fn an_old_process_aborts_what_is_left_at_its_deadline() {
    let backend = Backend::echo();
    let text = plain(&[&backend.address]).replace("\"5m\"", "\"1s\"");
    let mut line = Lineage::start(&text);
    let mut client = line.proxy.connect();
    exchange(&mut client);
    line.upgrade();
    assert_eq!(
        crate::common::ending(&mut client),
        crate::common::Ending::Reset
    );
    assert_eq!(line.wait_exit(0), Exit::Code(0));
    let status = wait_old_processes(&line.console, 0);
    assert_eq!(of_listener(&status, "web").closed["drained"], 1);
    line.end();
}
