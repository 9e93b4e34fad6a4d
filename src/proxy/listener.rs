//! Accepting: one task per listening socket and worker.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use super::tcp::{self, Admission};
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
    while let Some(accepted) = next(&worker, &socket).await {
        match accepted {
            Ok(client) => begin(&ring, &worker, listener, client),
            Err(error) => rest(&ring, &worker, listener, &error).await,
        }
    }
    socket.stop().await;
    while !worker.aborting.get() {
        match socket.take_queued() {
            Ok(Some(client)) => begin(&ring, &worker, listener, client),
            Ok(None) => break,
            Err(error) => rest(&ring, &worker, listener, &error).await,
        }
    }
    worker.end();
}

async fn next(worker: &WorkerState, socket: &Listener) -> Option<io::Result<Socket>> {
    poll_fn(|_| {
        if worker.draining.get() {
            return Poll::Ready(None);
        }
        socket.poll_accept().map(Some)
    })
    .await
}

/// Waits where trying again at once would fail again.
async fn rest(ring: &Ring, worker: &WorkerState, listener: usize, error: &io::Error) {
    let errno = error.raw_os_error().unwrap_or(0);
    if is_about_one_connection(errno) {
        return;
    }
    worker.counters(listener).accept_pauses.add(1);
    let now = ring.now();
    worker
        .shared
        .events
        .accept_paused(now, &worker.listener(listener).name, errno);
    ring.sleep_until(now + PAUSE).await;
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
    match Admission::new(worker, listener) {
        Ok((admission, policy)) => {
            ring.spawn(tcp::session(ring.clone(), admission, policy, client));
        }
        Err(reason) => tcp::refuse(ring, worker, listener, client, reason),
    }
}
