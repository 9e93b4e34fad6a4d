//! A ring of the calling thread, and running one future on it.

use std::cell::Cell;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use ringress::address::Address;
use ringress::ring::listen::Transport;
use ringress::ring::net::{self, ListenOptions};
use ringress::ring::{Listener, Ring, Setup, Uring, limits};

use crate::error::Error;

/// Receive buffers at most: far more than a generator has in use, which reads at once.
const BUFFER_MEMORY: u64 = 64 << 20;

/// Connections that may wait to be accepted; the proxies are set to the same.
pub const BACKLOG: u32 = 4096;

/// A ring of this thread.
///
/// # Errors
/// io_uring is not to be had.
pub fn ring() -> Result<Ring, Error> {
    let driver = Uring::new(&Setup::default())
        .map_err(Error::while_doing("io_uring (`ringress doctor` says more)"))?;
    Ok(Ring::new(Box::new(driver), BUFFER_MEMORY))
}

/// Listens on `address`; returns the address with the port it got.
///
/// # Errors
/// As bind(2) and listen(2).
pub fn listen(ring: &Ring, address: SocketAddr) -> Result<(Listener, SocketAddr), Error> {
    let options = ListenOptions {
        backlog: BACKLOG,
        keepalive: None,
        congestion: None,
        ipv6_only: true,
        unix_mode: 0o600,
        transport: Transport::Stream,
    };
    let (sockets, bound) = net::listen(&Address::from(address), 1, &options)
        .map_err(Error::while_doing(format!("listening on {address}")))?;
    let socket = sockets.into_iter().next().expect("one was asked for");
    let bound = bound.as_ip().expect("an IP address was asked for");
    Ok((ring.listener(net::into_fd(socket), false), bound))
}

/// Turns until `future` has ended, and returns what it did.
///
/// # Errors
/// The ring can't be used any more.
pub fn run<T: 'static>(ring: &Ring, future: impl Future<Output = T> + 'static) -> Result<T, Error> {
    let done = Rc::new(Cell::new(None));
    let place = Rc::clone(&done);
    ring.spawn(async move { place.set(Some(future.await)) });
    loop {
        if let Some(outcome) = done.take() {
            return Ok(outcome);
        }
        turn(ring)?;
    }
}

/// Lets everything on the ring go on for `time`.
///
/// # Errors
/// The ring can't be used any more.
pub fn pass(ring: &Ring, time: Duration) -> Result<(), Error> {
    let sleeper = ring.clone();
    run(ring, async move {
        sleeper.sleep_until(sleeper.now() + time).await;
    })
}

/// One turn.
///
/// # Errors
/// The ring can't be used any more.
pub fn turn(ring: &Ring) -> Result<(), Error> {
    ring.turn().map_err(Error::while_doing("turning the ring"))
}

/// Raises the limit of descriptors and says how many connections fit under it when each needs
/// `descriptors`.
///
/// # Errors
/// As setrlimit(2).
pub fn room_for(descriptors: u64) -> Result<u64, Error> {
    /// For everything else a process has open.
    const RESERVE: u64 = 64;
    let limit =
        limits::raise_nofile().map_err(Error::while_doing("raising the limit of descriptors"))?;
    Ok(limit.saturating_sub(RESERVE) / descriptors.max(1))
}
