//! Balancing through the real binary, on two workers: who gets how many sessions, who keeps whom, who
//! waits when backends are full, and what a death costs.

mod common;

#[path = "balance/caps.rs"]
mod caps;
#[path = "balance/deaths.rs"]
mod deaths;
#[path = "balance/shares.rs"]
mod shares;
#[path = "balance/sticky.rs"]
mod sticky;

use std::net::{IpAddr, Ipv4Addr};
use std::thread;

use common::mortal::visit_from;

/// Threads of clients.
const THREADS: usize = 8;

/// A client's address, one of many on the loopback.
fn client(number: usize) -> IpAddr {
    let [_, a, b, c] = u32::try_from(number).expect("a small number").to_be_bytes();
    Ipv4Addr::new(127, 1 + a, b, c).into()
}

/// A short session of the client of this number; who served it.
fn visit_as(number: usize, address: &str) -> String {
    let visited = visit_from(Some(client(number)), address);
    visited.unwrap_or_else(|error| panic!("client {number}: {error}"))
}

/// Short sessions of the clients of these numbers, from several threads at once; who served each.
fn visits_at_once(address: &str, clients: &[usize]) -> Vec<String> {
    let visits = |part: &[usize]| {
        let visits = part.iter().map(|number| visit_as(*number, address));
        visits.collect::<Vec<_>>()
    };
    let visits = &visits;
    thread::scope(|scope| {
        let part = clients.len().div_ceil(THREADS).max(1);
        let tasks: Vec<_> = clients
            .chunks(part)
            .map(|part| scope.spawn(move || visits(part)))
            .collect();
        let parts = tasks.into_iter().map(|task| task.join().expect("served"));
        parts.flatten().collect()
    })
}
