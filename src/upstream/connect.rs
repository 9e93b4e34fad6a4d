//! From an upstream to a connection: pick, connect, and on failure the next candidate.

use std::io;
use std::sync::Arc;

use super::{Backend, Upstream};
use crate::policy::balance::{Candidates, Passed, Request};
use crate::ring::{Ring, Socket};

/// A connection to a backend; the backend's count goes down when it goes.
pub struct Connection {
    /// The backend's side of the session.
    pub socket: Socket,
    /// Which one it is.
    pub backend: Leased,
}

/// A backend with one more session on it, for as long as this lives.
pub struct Leased(Arc<Backend>);

impl Leased {
    fn new(backend: &Arc<Backend>) -> Self {
        backend.load.active.enter(usize::MAX);
        Self(backend.clone())
    }
}

impl std::ops::Deref for Leased {
    type Target = Arc<Backend>;

    fn deref(&self) -> &Arc<Backend> {
        &self.0
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        self.0.load.active.leave();
    }
}

/// Why no backend could be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// All that were tried refused, or there was none to try.
    Refused,
    /// The last one tried did not answer in time.
    TimedOut,
    /// This machine had no descriptor, port or memory: another backend would not help.
    NoResources,
}

/// Connects to the balancer's choice, or to the next candidates when it can't be had. `failed` is
/// told of each try that failed.
///
/// # Errors
/// The last failure, when the tries are used up or no candidate is left.
pub async fn connect(
    ring: &Ring,
    upstream: &Upstream,
    failed: impl Fn(&Backend, &io::Error),
) -> Result<Connection, Failure> {
    let draw = upstream.balancer.draw(Request {
        client: None,
        random: 0,
        now: ring.now(),
    });
    let mut tried = 0;
    let mut passed = Passed::default();
    let mut failure = Failure::Refused;
    while let Some(candidate) = upstream.balancer.choose(
        &draw,
        &Candidates {
            weights: &upstream.weights,
            arrangement: &upstream.arrangement,
            passed: &passed,
        },
    ) {
        let backend = Leased::new(&upstream.backends[candidate]);
        let deadline = ring.now() + upstream.connect_timeout;
        let source = upstream.source(&backend.address);
        match ring
            .connect(&backend.address, source, &upstream.options, deadline)
            .await
        {
            Ok(socket) => return Ok(Connection { socket, backend }),
            Err(error) => {
                failed(&backend, &error);
                failure = classify(&error);
                if is_hopeless(&error) {
                    return Err(failure);
                }
            }
        }
        passed.insert(candidate);
        tried += 1;
        if tried >= upstream.tries {
            break;
        }
    }
    Err(failure)
}

fn classify(error: &io::Error) -> Failure {
    match error.raw_os_error() {
        // No local port is left for this backend, or `source` is not one of this machine's.
        Some(libc::EADDRNOTAVAIL) => Failure::NoResources,
        Some(libc::ETIMEDOUT) => Failure::TimedOut,
        _ if is_hopeless(error) => Failure::NoResources,
        _ => Failure::Refused,
    }
}

/// Trying another backend would fail in the same way.
fn is_hopeless(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    matches!(
        errno,
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS)
    )
}
