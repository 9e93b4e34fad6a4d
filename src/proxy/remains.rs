//! What a worker that has panicked leaves to its successor: its listening sockets with all that is in their
//! queues, its mailbox, and what it was told. Its sessions end.
//!
//! ```text
//!   turning ──panic──▶ falling ──turns──▶ fallen ──Remains──▶ its successor
//! ```

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;

use super::listener::Acceptor;
use super::snapshot::Shared;
use super::udp::Succession;
use super::worker::{Aborting, ListenerSocket, Message, Worker, WorkerState};
use crate::ring::listen::Transport;
use crate::ring::{Fd, Mailbox, Ring};
use crate::time::Instant;

/// What is left of a worker. If it is dropped, its listening sockets stay open and nobody accepts.
pub struct Remains {
    mailbox: (Arc<Mailbox<Message>>, Fd),
    sockets: Vec<Remaining>,
    /// Messages that it has taken and not carried out.
    untold: VecDeque<Message>,
    draining: bool,
    aborting: Aborting,
    next_session: u32,
}

/// A listening socket.
pub(super) struct Remaining {
    pub(super) socket: ListenerSocket,
    /// Connections that were accepted, and that nobody has taken.
    pub(super) accepted: Vec<Fd>,
    pub(super) stop_at: Option<Instant>,
    pub(super) succession: Succession,
}

impl Remaining {
    /// That of a worker that has just begun.
    pub(super) fn fresh(socket: ListenerSocket) -> Self {
        Self {
            succession: Succession::new(socket.waits),
            socket,
            accepted: Vec::new(),
            stop_at: None,
        }
    }

    fn of(acceptor: &Acceptor, accepted: &[(Fd, Fd)]) -> Self {
        let own = accepted.iter().filter(|(at, _)| *at == acceptor.fd);
        Self {
            accepted: own.map(|(_, accepted)| *accepted).collect(),
            stop_at: acceptor.stop_at(),
            succession: acceptor.succession.take(),
            socket: acceptor.to_socket(),
        }
    }
}

impl Worker {
    /// Ends all sessions after a panic, each with the reason that is for this, and gives back what they have.
    /// The worker is to be turned until it [has fallen](Worker::has_fallen).
    pub fn fall(&self) {
        let (state, ring) = (self.state(), self.ring());
        state.falling.set(true);
        let close = || state.local.pools.close();
        // What can't be closed is swept up with the ring.
        let _ = catch_unwind(AssertUnwindSafe(close));
        let mut keep = vec![state.mailbox.1];
        keep.extend(state.acceptors().iter().map(|acceptor| acceptor.fd));
        ring.dismantle(keep);
    }

    /// Nothing of it is with the kernel any more, or turning is of no use.
    pub fn has_fallen(&self) -> bool {
        self.ring().is_dismantled()
    }

    /// What is for its successor.
    pub fn into_remains(self) -> Remains {
        let accepted = self.ring().wreck();
        let state = self.state();
        let acceptors = state.take_acceptors();
        let sockets = acceptors.iter();
        Remains {
            mailbox: state.mailbox.clone(),
            sockets: sockets.map(|it| Remaining::of(it, &accepted)).collect(),
            untold: state.inbox.take(),
            draining: state.draining.get(),
            aborting: state.aborting.get(),
            next_session: state.next_session.get(),
        }
    }

    /// Goes on where another worker of the same number has fallen.
    pub fn after(remains: Remains, ring: Ring, shared: Arc<Shared>, index: usize) -> Self {
        let Remains {
            mailbox,
            sockets,
            untold,
            draining,
            aborting,
            next_session,
        } = remains;
        let worker = Self::build(ring, shared, index, mailbox, draining);
        let state: &Rc<WorkerState> = worker.state();
        state.aborting.set(aborting);
        state.next_session.set(next_session);
        state.inbox.replace(untold);
        for remaining in sockets {
            let streams = remaining.socket.transport == Transport::Stream;
            let acceptor = state.listen(worker.ring(), remaining);
            if streams {
                // An op of the old ring may still have been woken for what is in the queue.
                acceptor.look_again(worker.ring().now());
            }
        }
        worker
    }
}
