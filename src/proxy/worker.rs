//! A worker: one ring, the listeners' sockets that are its own, and the sessions it accepted.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::listener::{self, Acceptor};
use super::snapshot::Shared;
use super::state::ListenerState;
use super::udp::{self, Adopted, Left};
use crate::ring::listen::Transport;
use crate::ring::{Fd, Mailbox, Receiver, Ring};
use crate::time::Instant;
use crate::upstream::Local;

/// What the control plane asks of a worker.
#[derive(Debug)]
pub enum Message {
    /// Accept on this socket, too.
    Listen(ListenerSocket),
    /// Connections of this binding belong to another listener from now on.
    Assign(BindingId, Arc<ListenerState>),
    /// Stop accepting on this binding after so long, then serve what its accept queue holds and close it.
    Stop(BindingId, Duration),
    /// The same for all bindings; the sessions go on, and the worker ends with the last of them.
    Drain(Duration),
    /// Another process goes on with the datagrams of this binding: hand its sessions over.
    Leave(BindingId, Sender<Left>),
    /// Sessions that another process has begun, for a socket that waits for them.
    Adopt(Adopted),
    /// No more of them will come.
    Begin,
    /// Another process that accepted from the same sockets has ended: look whether it has left somebody.
    LookAgain,
    /// End all sessions.
    Abort,
    /// End the sessions of the listeners and backends that say so, as long as any does.
    AbortParts(bool),
    /// The configuration has changed.
    Reloaded,
}

/// Names an address that is listened on, with its sockets on all workers, for the life of the process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BindingId(pub u64);

/// Something that is dropped once a socket is closed.
pub type Closed = Arc<dyn Any + Send + Sync>;

/// A listening socket that a worker gets.
pub struct ListenerSocket {
    /// What it belongs to.
    pub binding: BindingId,
    /// Whose connections it accepts.
    pub listener: Arc<ListenerState>,
    /// The socket; the worker's own from here on.
    pub fd: Fd,
    /// Other workers accept from the same socket (unix).
    pub shared: bool,
    /// What comes in there.
    pub transport: Transport,
    /// Where it is bound; `None` = at a path.
    pub address: Option<SocketAddr>,
    /// Its number among the sockets of the binding.
    pub number: usize,
    /// Another process hands its sessions over first.
    pub waits: bool,
    /// Let go of when the socket is closed.
    pub closed: Closed,
}

impl fmt::Debug for ListenerSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            binding,
            listener,
            fd,
            ..
        } = self;
        write!(f, "{binding:?} of {} ({fd:?})", listener.name)
    }
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
    /// Sockets that are accepted on.
    acceptors: RefCell<Vec<Rc<Acceptor>>>,
    draining: Cell<bool>,
    pub(super) aborting: Cell<Aborting>,
    /// The number of the next session.
    next_session: Cell<u32>,
    /// Accept loops and sessions that have not ended.
    pub(super) busy: Cell<usize>,
    /// A session has found the system short of descriptors or memory: until then accepting rests,
    /// since it would take what sessions need.
    pub(super) short_until: Cell<Instant>,
}

/// Which sessions are to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Aborting {
    /// None.
    Nothing,
    /// Those of listeners and backends that say so.
    Parts,
    /// All.
    Everything,
}

impl WorkerState {
    /// A number for a session, unlike those of the four billion before it.
    pub(super) fn number_session(&self) -> u32 {
        let number = self.next_session.get();
        self.next_session.set(number.wrapping_add(1));
        number
    }

    /// A task has begun that a draining worker waits for.
    pub(super) fn begin(&self) {
        self.busy.set(self.busy.get() + 1);
    }

    /// It has ended.
    pub(super) fn end(&self) {
        self.busy.set(self.busy.get() - 1);
    }

    /// The socket is closed.
    pub(super) fn remove(&self, acceptor: &Rc<Acceptor>) {
        let mut acceptors = self.acceptors.borrow_mut();
        acceptors.retain(|kept| !Rc::ptr_eq(kept, acceptor));
    }

    fn listen(self: &Rc<Self>, ring: &Ring, socket: ListenerSocket) {
        let acceptor = Rc::new(Acceptor::new(self, &socket));
        if self.draining.get() {
            acceptor.stop(ring.now());
        }
        self.acceptors.borrow_mut().push(acceptor.clone());
        // Counted at once: a drain that comes before the task's first poll waits for it.
        self.begin();
        if socket.transport == Transport::Datagrams {
            let datagrams = ring.datagrams(socket.fd);
            ring.spawn(udp::serve(ring.clone(), acceptor, datagrams, socket.closed));
            return;
        }
        let listener = ring.listener(socket.fd, socket.shared);
        ring.spawn(listener::accept_loop(
            ring.clone(),
            acceptor,
            listener,
            socket.closed,
        ));
    }

    /// Stops accepting at `at`, on all bindings or on one.
    fn stop(&self, binding: Option<BindingId>, at: Instant) {
        for acceptor in self.of(binding) {
            acceptor.stop(at);
        }
    }

    fn of(&self, binding: Option<BindingId>) -> Vec<Rc<Acceptor>> {
        let acceptors = self.acceptors.borrow();
        let wanted = |acceptor: &&Rc<Acceptor>| binding.is_none_or(|id| acceptor.binding == id);
        acceptors.iter().filter(wanted).cloned().collect()
    }
}

impl Worker {
    /// A worker that listens nowhere yet. `index` is its place among the process's.
    pub fn new(
        ring: Ring,
        shared: Arc<Shared>,
        index: usize,
        mailbox: (Arc<Mailbox<Message>>, Fd),
    ) -> Self {
        let local = Local::new(index, shared.seed, shared.recorders[index].clone());
        ring.tell(shared.meters[index].clone());
        local
            .pools
            .keep_for(&ring, &shared.snapshot.load().upstreams);
        let state = Rc::new(WorkerState {
            shared,
            index,
            local,
            acceptors: RefCell::default(),
            draining: Cell::new(false),
            aborting: Cell::new(Aborting::Nothing),
            next_session: Cell::new(0),
            busy: Cell::new(0),
            short_until: Cell::new(Instant::default()),
        });
        let receiver = Receiver::new(&ring, mailbox.0, mailbox.1);
        ring.spawn(obey(ring.clone(), state.clone(), receiver));
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
            state.obey(&ring, message);
        }
        state.local.answer_bell();
    }
}

impl WorkerState {
    fn obey(self: &Rc<Self>, ring: &Ring, message: Message) {
        match message {
            Message::Listen(socket) => self.listen(ring, socket),
            Message::Assign(binding, listener) => {
                for acceptor in self.of(Some(binding)) {
                    acceptor.assign(&listener);
                }
            }
            Message::Stop(binding, after) => self.stop(Some(binding), ring.now() + after),
            Message::Drain(after) => {
                self.draining.set(true);
                self.local.pools.close();
                self.stop(None, ring.now() + after);
            }
            Message::Leave(binding, to) => {
                for acceptor in self.of(Some(binding)) {
                    acceptor.leave(to.clone());
                }
            }
            Message::Adopt(adopted) => {
                let place = (adopted.binding, adopted.socket);
                let mut acceptors = self.of(Some(place.0)).into_iter();
                match acceptors.find(|it| (it.binding, it.number) == place) {
                    Some(acceptor) => acceptor.adopt(adopted),
                    // It has stopped meanwhile: what comes is closed.
                    None => adopted
                        .sessions
                        .into_iter()
                        .for_each(|(_, fd)| drop(ring.connected_datagrams(fd))),
                }
            }
            Message::Begin => {
                for acceptor in self.of(None) {
                    acceptor.begin_to_receive();
                }
            }
            Message::LookAgain => {
                for acceptor in self.of(None) {
                    acceptor.look_again(ring.now());
                }
            }
            Message::Abort => {
                self.aborting.set(Aborting::Everything);
                ring.wake_all();
            }
            Message::AbortParts(any) => {
                match (self.aborting.get(), any) {
                    (Aborting::Everything, _) => {}
                    (_, true) => self.aborting.set(Aborting::Parts),
                    (_, false) => self.aborting.set(Aborting::Nothing),
                }
                ring.wake_all();
            }
            Message::Reloaded if !self.draining.get() => {
                let snapshot = self.shared.snapshot.load();
                self.local.pools.keep_for(ring, &snapshot.upstreams);
            }
            Message::Reloaded => {}
        }
    }
}
