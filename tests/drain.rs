//! Draining: the whole process at its end, a listener and a backend by order. Who is served still, who
//! is not any more, and what becomes of those who stay too long.

mod common;

#[path = "drain/backends.rs"]
mod backends;
#[path = "drain/ending.rs"]
mod ending;
#[path = "drain/listeners.rs"]
mod listeners;
#[path = "drain/orders.rs"]
mod orders;

use std::io::{Read, Write};

use common::backend::free_address as free;
use common::socket::{finish, parse, unconnected};
use common::{connect, eventually, read_to_end};
use socket2::Socket;

/// A byte there and back.
fn exchange(client: &mut Socket) {
    client.write_all(b"x").expect("it is taken");
    client.read_exact(&mut [0]).expect("the echo comes");
}

/// A session that is up.
fn session(address: &str) -> Socket {
    let mut client = connect(address);
    exchange(&mut client);
    client
}

/// Ends a session, which must be well to the end.
fn ends_well(mut client: Socket) {
    exchange(&mut client);
    finish(&client);
    assert_eq!(read_to_end(&mut client), b"");
}

/// Waits until connections are refused, and not just left without an answer.
fn is_refused(address: &str) {
    eventually("connections to be refused", || {
        let answer = unconnected(address).connect(&parse(address).1);
        answer.is_err().then_some(())
    });
}
