//! Accepting: one task per listening socket and worker.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::admission::Admission;
use super::tcp;
use super::worker::WorkerState;
use crate::ring::{Listener, Ring, Socket};

/// How long accepting pauses when the system has no descriptor or memory: long enough not to spin,
/// short enough that a client in the queue hardly notices.
const PAUSE: Duration = Duration::from_millis(50);

/// Accepts until the worker drains; then serves what is queued and closes the socket.
pub(super) async fn accept_loop(
    ring: Ring,
    worker: Rc<WorkerState>,
    listener: usize,
    socket: Listener,
) {
    worker.begin();
    while let Some(accepted) = next(&ring, &worker, &socket).await {
        match accepted {
            Ok(client) => begin(&ring, &worker, listener, client),
            Err(error) => rest(&ring, &worker, listener, &socket, &error).await,
        }
    }
    socket.stop().await;
    while !worker.aborting.get() {
        match socket.take_queued() {
            Ok(Some(client)) => begin(&ring, &worker, listener, client),
            Ok(None) => break,
            Err(error) => rest(&ring, &worker, listener, &socket, &error).await,
        }
    }
    worker.end();
}

/// The next connection; `None` when the worker drains. While the system is short of descriptors
/// that is an error, as it would be for accept(2).
async fn next(ring: &Ring, worker: &WorkerState, socket: &Listener) -> Option<io::Result<Socket>> {
    poll_fn(|_| {
        if worker.draining.get() {
            return Poll::Ready(None);
        }
        if ring.now() < worker.short_until.get() {
            return Poll::Ready(Some(Err(io::Error::from_raw_os_error(libc::EMFILE))));
        }
        socket.poll_accept().map(Some)
    })
    .await
}

/// Waits where trying again at once would fail again. Meanwhile connections wait in the kernel.
async fn rest(
    ring: &Ring,
    worker: &WorkerState,
    listener: usize,
    socket: &Listener,
    error: &io::Error,
) {
    let errno = error.raw_os_error().unwrap_or(0);
    if is_about_one_connection(errno) {
        return;
    }
    socket.stop().await;
    worker.counters(listener).accept_pauses.add(1);
    let now = ring.now();
    worker
        .shared
        .around
        .events
        .accept_paused(now, &worker.listener(listener).name, errno);
    ring.sleep_until(now + PAUSE).await;
}

/// A session could not get a descriptor: accept loops rest, too.
pub(super) fn rest_all(ring: &Ring, worker: &WorkerState) {
    let now = ring.now();
    if now >= worker.short_until.replace(now + PAUSE) {
        ring.wake_all();
    }
}

/// Errors that accept(2) passes on from a connection that is gone already; the next one may do.
fn is_about_one_connection(errno: i32) -> bool {
    matches!(
        errno,
        libc::ECONNABORTED
            | libc::EPROTO
            | libc::ENETDOWN
            | libc::ENOPROTOOPT
            | libc::EHOSTDOWN
            | libc::ENONET
            | libc::EHOSTUNREACH
            | libc::ENETUNREACH
            | libc::EINTR
    )
}

/// Admits the client and starts its session, or refuses it with RST.
fn begin(ring: &Ring, worker: &Rc<WorkerState>, listener: usize, client: Socket) {
    worker.counters(listener).accepted.add(1);
    match Admission::new(ring, worker, listener, &client) {
        Ok((admission, policy)) => {
            ring.spawn(tcp::session(ring.clone(), admission, policy, client));
        }
        Err(reason) => tcp::refuse(ring, worker, listener, client, reason),
    }
}
