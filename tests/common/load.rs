//! Clients that keep asking until they are told to stop, while something is done to the proxy. Not one
//! of them may fail.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::Socket;

use super::backend::listening;
use super::socket::{finish, parse, set_patience, unconnected};
use super::{Backend, PATIENCE, eventually, pass};

/// Clients on threads of their own.
pub(crate) struct Load {
    clients: Vec<JoinHandle<Result<(), String>>>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    done: AtomicU64,
    connections: AtomicU64,
}

impl Load {
    /// `clients` at once, each with a new connection for every question, ended in order.
    pub(crate) fn fresh(clients: usize, address: &str) -> Self {
        Self::start(clients, address, |address, shared| {
            while !shared.stop.load(Ordering::Relaxed) {
                let mut socket = connected(address, shared)?;
                ask(&mut socket, shared)?;
                finish(&socket);
                at_end(&mut socket)?;
            }
            Ok(())
        })
    }

    /// `clients` at once, each with a new connection after so many questions.
    pub(crate) fn renewed(clients: usize, address: &str, questions: usize) -> Self {
        Self::start(clients, address, move |address, shared| {
            while !shared.stop.load(Ordering::Relaxed) {
                let mut socket = connected(address, shared)?;
                for _ in 0..questions {
                    ask(&mut socket, shared)?;
                }
                finish(&socket);
                at_end(&mut socket)?;
            }
            Ok(())
        })
    }

    /// `clients` at once, each of which connects and leaves without a word; not so fast that ports run out.
    pub(crate) fn knocking(clients: usize, address: &str) -> Self {
        Self::start(clients, address, |address, shared| {
            while !shared.stop.load(Ordering::Relaxed) {
                drop(connected(address, shared)?);
                pass(Duration::from_millis(1));
                shared.done.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        })
    }

    /// `clients` at once, each with one connection for all its questions.
    pub(crate) fn kept(clients: usize, address: &str) -> Self {
        Self::start(clients, address, |address, shared| {
            let mut socket = connected(address, shared)?;
            while !shared.stop.load(Ordering::Relaxed) {
                ask(&mut socket, shared)?;
            }
            finish(&socket);
            at_end(&mut socket)
        })
    }

    fn start(
        clients: usize,
        address: &str,
        life: impl Fn(&str, &Shared) -> io::Result<()> + Copy + Send + 'static,
    ) -> Self {
        let shared = Arc::new(Shared::default());
        let client = || {
            let (address, shared) = (address.to_owned(), shared.clone());
            thread::spawn(move || {
                life(&address, &shared).map_err(|error| format!("{address}: {error}"))
            })
        };
        Self {
            clients: std::iter::repeat_with(client).take(clients).collect(),
            shared,
        }
    }

    /// Questions that were answered so far.
    pub(crate) fn done(&self) -> u64 {
        self.shared.done.load(Ordering::Relaxed)
    }

    /// Waits until so many more were answered; fails if a client has.
    pub(crate) fn goes_on(&self, more: u64) {
        let from = self.done();
        eventually("answers", || {
            let failed = self.clients.iter().any(JoinHandle::is_finished);
            assert!(!failed || self.done() == 0, "a client has failed");
            (self.done() >= from + more).then_some(())
        });
    }

    /// Ends all clients. Every one of them must have got every answer. Returns how often they connected.
    pub(crate) fn stop(self) -> u64 {
        self.shared.stop.store(true, Ordering::Relaxed);
        let outcomes = self.clients.into_iter();
        let failures: Vec<String> = outcomes
            .filter_map(|client| client.join().expect("it ran").err())
            .collect();
        assert!(failures.is_empty(), "{failures:?}");
        self.shared.connections.load(Ordering::Relaxed)
    }
}

/// A backend for clients that keep their connections and for those that do not: one connection is a
/// thread's business, and a few threads live as long as the test.
pub(crate) fn quick_backend() -> Backend {
    /// More connections at once than this wait for one to end.
    const THREADS: usize = 24;
    let listener = Arc::new(listening("127.0.0.1:0", 4096));
    let address = super::backend::written(&listener, "");
    for _ in 0..THREADS {
        let listener = listener.clone();
        thread::spawn(move || {
            while let Ok((connection, _)) = listener.accept() {
                set_patience(&connection, PATIENCE);
                super::backend::echo_on(&connection);
            }
        });
    }
    Backend::elsewhere(address)
}

fn connected(address: &str, shared: &Shared) -> io::Result<Socket> {
    let socket = unconnected(address);
    socket.connect(&parse(address).1)?;
    shared.connections.fetch_add(1, Ordering::Relaxed);
    Ok(socket)
}

fn ask(socket: &mut Socket, shared: &Shared) -> io::Result<()> {
    let question = shared.done.fetch_add(1, Ordering::Relaxed).to_ne_bytes();
    let mut answer = [0; 8];
    socket.write_all(&question)?;
    socket.read_exact(&mut answer)?;
    match answer == question {
        true => Ok(()),
        false => Err(io::Error::other("another answer")),
    }
}

fn at_end(socket: &mut Socket) -> io::Result<()> {
    match socket.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(io::Error::other("more than was asked for")),
    }
}
