//! A worker: one ring, the listeners' sockets that are its own, and the sessions it accepted.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use super::listener;
use super::snapshot::{ListenerState, Shared};
use crate::ring::{Fd, Mailbox, Receiver, Ring};
use crate::telemetry::counters::ListenerCounters;
use crate::time::Instant;
use crate::upstream::Local;

/// What the control plane asks of a worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message {
    /// Stop accepting, after serving what the accept queues hold; the sessions go on.
    Drain,
    /// End all sessions.
    Abort,
    /// The configuration has changed.
    Reloaded,
}

/// A listening socket that a worker gets.
#[derive(Clone, Copy, Debug)]
pub struct ListenerSocket {
    /// The listener's index in the configuration.
    pub listener: usize,
    /// The socket.
    pub fd: Fd,
    /// Other workers accept from the same socket (unix).
    pub shared: bool,
}

/// A worker on its own thread, or in a simulation.
pub struct Worker {
    ring: Ring,
    state: Rc<WorkerState>,
}

/// What the tasks of a worker share.
pub(super) struct WorkerState {
    pub(super) shared: Arc<Shared>,
    pub(super) index: usize,
    /// This worker's part of the upstreams.
    pub(super) local: Local,
    pub(super) draining: Cell<bool>,
    pub(super) aborting: Cell<bool>,
    /// Accept loops and sessions that have not ended.
    pub(super) busy: Cell<usize>,
    /// A session has found the system short of descriptors or memory: until then accepting rests,
    /// since it would take what sessions need.
    pub(super) short_until: Cell<Instant>,
}

impl WorkerState {
    pub(super) fn listener(&self, listener: usize) -> &ListenerState {
        &self.shared.listeners[listener]
    }

    pub(super) fn counters(&self, listener: usize) -> &ListenerCounters {
        &self.listener(listener).counters[self.index]
    }

    /// A task has begun that a draining worker waits for.
    pub(super) fn begin(&self) {
        self.busy.set(self.busy.get() + 1);
    }

    /// It has ended.
    pub(super) fn end(&self) {
        self.busy.set(self.busy.get() - 1);
    }
}

impl Worker {
    /// Starts accepting on `listeners`. `index` is this worker's place among the process's.
    pub fn new(
        ring: Ring,
        shared: Arc<Shared>,
        index: usize,
        listeners: &[ListenerSocket],
        mailbox: (Arc<Mailbox<Message>>, Fd),
    ) -> Self {
        let local = Local::new(index, shared.seed);
        local
            .pools
            .keep_for(&ring, &shared.snapshot.load().upstreams);
        let state = Rc::new(WorkerState {
            shared,
            index,
            local,
            draining: Cell::new(false),
            aborting: Cell::new(false),
            busy: Cell::new(0),
            short_until: Cell::new(Instant::default()),
        });
        let receiver = Receiver::new(&ring, mailbox.0, mailbox.1);
        ring.spawn(obey(ring.clone(), state.clone(), receiver));
        for socket in listeners {
            let listener = ring.listener(socket.fd, socket.shared);
            ring.spawn(listener::accept_loop(
                ring.clone(),
                state.clone(),
                socket.listener,
                listener,
            ));
        }
        Self { ring, state }
    }

    /// One turn of the ring.
    ///
    /// # Errors
    /// The ring can't be used any more.
    pub fn turn(&self) -> io::Result<()> {
        self.ring.turn()
    }

    /// It was told to drain, and nothing is left to do.
    pub fn is_done(&self) -> bool {
        self.state.draining.get() && self.state.busy.get() == 0
    }

    /// Turns until the worker is done, then lets go of everything.
    ///
    /// # Errors
    /// The ring can't be used any more.
    pub fn run(&self) -> io::Result<()> {
        while !self.is_done() {
            self.turn()?;
        }
        self.shutdown()
    }

    /// Ends every task and waits for the kernel's last completions.
    ///
    /// # Errors
    /// The ring can't be used any more.
    pub fn shutdown(&self) -> io::Result<()> {
        /// Far more than the last completions need; a bound, so that an exit can't hang.
        const MOST_TURNS: usize = 1000;
        self.ring.shutdown(MOST_TURNS)
    }

    /// The worker's ring.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }
}

/// Carries out what the control plane asks, and answers the bell: a signal without a message.
async fn obey(ring: Ring, state: Rc<WorkerState>, receiver: Receiver<Message>) {
    // An eventfd that can't be read any more is a broken invariant: without it the worker could
    // neither drain nor end.
    loop {
        for message in receiver.receive().await.expect("an eventfd can be read") {
            match message {
                Message::Drain => {
                    state.draining.set(true);
                    state.local.pools.close();
                    ring.wake_all();
                }
                Message::Abort => {
                    state.aborting.set(true);
                    ring.wake_all();
                }
                Message::Reloaded if !state.draining.get() => {
                    let snapshot = state.shared.snapshot.load();
                    state.local.pools.keep_for(&ring, &snapshot.upstreams);
                }
                Message::Reloaded => {}
            }
        }
        state.local.answer_bell();
    }
}
