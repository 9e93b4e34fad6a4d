//! A worker: one ring, the listeners' sockets that are its own, and the sessions it accepted.

use std::any::Any;
use std::cell::{Cell, Ref, RefCell};
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::listener::{self, Acceptor};
use super::remains::Remaining;
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
    /// Panic, for tests.
    #[cfg(debug_assertions)]
    Panic(Spot),
}

/// Where a worker is to panic.
#[cfg(debug_assertions)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Spot {
    /// While it carries out an order.
    Order,
    /// In a session that has a backend.
    Session,
    /// In its ring.
    Ring,
    /// In its ring, when it books what the kernel has done.
    Completion,
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
    /// By which it is told, and the eventfd of that.
    pub(super) mailbox: (Arc<Mailbox<Message>>, Fd),
    /// Messages that were taken out of it, and that are still to be carried out.
    pub(super) inbox: RefCell<VecDeque<Message>>,
    /// Sockets that are accepted on.
    acceptors: RefCell<Vec<Rc<Acceptor>>>,
    pub(super) draining: Cell<bool>,
    /// It has panicked, and its sessions are being ended.
    pub(super) falling: Cell<bool>,
    /// What it runs on.
    pub(super) ring: Ring,
    /// The next session that is polled panics.
    #[cfg(debug_assertions)]
    pub(super) trapped: Cell<bool>,
    pub(super) aborting: Cell<Aborting>,
    /// The number of the next session.
    pub(super) next_session: Cell<u32>,
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

    /// What is dropped now is so because of a panic.
    pub(super) fn is_falling(&self) -> bool {
        self.falling.get() || std::thread::panicking()
    }

    pub(super) fn acceptors(&self) -> Ref<'_, Vec<Rc<Acceptor>>> {
        self.acceptors.borrow()
    }

    pub(super) fn take_acceptors(&self) -> Vec<Rc<Acceptor>> {
        self.acceptors.take()
    }

    /// The socket is about to be closed.
    pub(super) fn remove(&self, acceptor: &Rc<Acceptor>) {
        let mut acceptors = self.acceptors.borrow_mut();
        acceptors.retain(|kept| !Rc::ptr_eq(kept, acceptor));
    }

    pub(super) fn listen(self: &Rc<Self>, ring: &Ring, remaining: Remaining) -> Rc<Acceptor> {
        let Remaining {
            socket,
            accepted,
            stop_at,
            succession,
        } = remaining;
        let (fd, shared, transport) = (socket.fd, socket.shared, socket.transport);
        let acceptor = Rc::new(Acceptor::new(self, socket, succession));
        if let Some(at) = stop_at.or(self.draining.get().then(|| ring.now())) {
            acceptor.stop(at);
        }
        self.acceptors.borrow_mut().push(acceptor.clone());
        // Counted at once: a drain that comes before the task's first poll waits for it.
        self.begin();
        if transport == Transport::Datagrams {
            let datagrams = ring.datagrams(fd);
            ring.spawn(udp::serve(ring.clone(), acceptor.clone(), datagrams));
        } else {
            let listener = ring.listener_with(fd, shared, accepted);
            let serving = listener::accept_loop(ring.clone(), acceptor.clone(), listener);
            ring.spawn(serving);
        }
        acceptor
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
        Self::build(ring, shared, index, mailbox, false)
    }

    pub(super) fn build(
        ring: Ring,
        shared: Arc<Shared>,
        index: usize,
        mailbox: (Arc<Mailbox<Message>>, Fd),
        draining: bool,
    ) -> Self {
        let local = Local::new(index, shared.seed, shared.recorders[index].clone());
        ring.tell(shared.meters[index].clone());
        if !draining {
            let snapshot = shared.snapshot.load();
            local.pools.keep_for(&ring, &snapshot.upstreams);
        }
        let receiver = Receiver::new(&ring, mailbox.0.clone(), mailbox.1);
        let state = Rc::new(WorkerState {
            shared,
            index,
            local,
            mailbox,
            inbox: RefCell::default(),
            acceptors: RefCell::default(),
            draining: Cell::new(draining),
            falling: Cell::new(false),
            ring: ring.clone(),
            #[cfg(debug_assertions)]
            trapped: Cell::new(false),
            aborting: Cell::new(Aborting::Nothing),
            next_session: Cell::new(0),
            busy: Cell::new(0),
            short_until: Cell::new(Instant::default()),
        });
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

    /// The same, but it waits no longer than until `latest`.
    ///
    /// # Errors
    /// The ring can't be used any more.
    pub fn turn_until(&self, latest: Instant) -> io::Result<()> {
        self.ring.turn_until(Some(latest))
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

    pub(super) fn state(&self) -> &Rc<WorkerState> {
        &self.state
    }
}

/// Carries out what the control plane asks, and answers the bell: a signal without a message.
async fn obey(ring: Ring, state: Rc<WorkerState>, receiver: Receiver<Message>) {
    // An eventfd that can't be read any more is a broken invariant: without it the worker could
    // neither drain nor end.
    let mut messages = receiver.pending();
    loop {
        state.inbox.borrow_mut().extend(messages);
        while let Some(message) = state.next_message() {
            state.obey(&ring, message);
        }
        state.local.answer_bell();
        messages = receiver.receive().await.expect("an eventfd can be read");
    }
}

impl WorkerState {
    /// It is not there any more while it is carried out: should that panic, it won't be tried again.
    fn next_message(&self) -> Option<Message> {
        self.inbox.borrow_mut().pop_front()
    }

    fn obey(self: &Rc<Self>, ring: &Ring, message: Message) {
        match message {
            Message::Listen(socket) => drop(self.listen(ring, Remaining::fresh(socket))),
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
            #[cfg(debug_assertions)]
            Message::Panic(spot) => self.panic(ring, spot),
        }
    }

    #[cfg(debug_assertions)]
    fn panic(&self, ring: &Ring, spot: Spot) {
        match spot {
            Spot::Order => panic!("asked to, by an order"),
            Spot::Session => {
                self.trapped.set(true);
                ring.wake_all();
            }
            Spot::Ring => ring.break_down(),
            Spot::Completion => ring.break_down_booking(),
        }
    }
}
