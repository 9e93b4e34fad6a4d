//! How the control plane reaches a worker: a queue and a signal. The only lock a worker takes, and
//! only when it was signalled.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::op::Fd;
use super::runtime::Ring;
use super::socket::Event;

/// The sender's side; shared between threads.
pub struct Mailbox<M> {
    queue: Mutex<Vec<M>>,
    signal: Box<dyn Fn() + Send + Sync>,
}

impl<M: Send + 'static> Mailbox<M> {
    /// A mailbox with an eventfd of its own; the descriptor is for [`Receiver::new`].
    ///
    /// # Errors
    /// As eventfd(2).
    pub fn new() -> io::Result<(Arc<Self>, Fd)> {
        let (fd, signal) = super::net::event()?;
        Ok((Self::with_signal(Box::new(signal)), fd))
    }

    /// A mailbox whose receiver is told by `signal` (simulation).
    pub fn with_signal(signal: Box<dyn Fn() + Send + Sync>) -> Arc<Self> {
        Arc::new(Self {
            queue: Mutex::default(),
            signal,
        })
    }

    /// Leaves a message and signals the worker.
    pub fn post(&self, message: M) {
        self.queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(message);
        self.signal();
    }

    /// Signals the worker without a message.
    pub fn signal(&self) {
        (self.signal)();
    }

    fn take(&self) -> Vec<M> {
        std::mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The worker's side.
pub struct Receiver<M> {
    mailbox: Arc<Mailbox<M>>,
    event: Event,
}

impl<M: Send + 'static> Receiver<M> {
    /// Receives what is posted to `mailbox`; `fd` is the eventfd that its signal writes to, owned
    /// by the ring from here on.
    pub fn new(ring: &Ring, mailbox: Arc<Mailbox<M>>, fd: Fd) -> Self {
        Self {
            mailbox,
            event: ring.event(fd),
        }
    }

    /// The messages since the last time, without waiting for any.
    pub fn pending(&self) -> Vec<M> {
        self.mailbox.take()
    }

    /// The messages since the last time; at least one signal has come, so that it may be empty.
    ///
    /// # Errors
    /// As read(2) on the eventfd.
    pub async fn receive(&self) -> io::Result<Vec<M>> {
        self.event.signalled().await?;
        Ok(self.mailbox.take())
    }
}
