//! Accepting: one task per listening socket and worker.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::task::Poll;
use std::time::Duration;

use super::admission::Admission;
use super::state::ListenerState;
use super::tcp;
use super::udp::{Adopted, Left, Succession};
use super::worker::{Aborting, BindingId, Closed, ListenerSocket, WorkerState};
use crate::ring::listen::Transport;
use crate::ring::{Fd, Listener, Ring, Socket, Waker};
use crate::telemetry::counters::ListenerCounters;
use crate::telemetry::recorder::What;
use crate::time::Instant;
use crate::upstream::Lease;

/// How long accepting pauses when the system has no descriptor or memory: long enough not to spin,
/// short enough that a client in the queue hardly notices.
const PAUSE: Duration = Duration::from_millis(50);

/// How long an accept queue is looked into after another process has ended, and how often: the kernel takes
/// a killed process's ring apart some time after everybody has heard of the end.
const LOOKS_FOR: Duration = Duration::from_secs(1);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// A listener, as one worker serves it.
pub(super) struct LocalListener {
    pub(super) worker: Rc<WorkerState>,
    pub(super) state: Arc<ListenerState>,
}

impl LocalListener {
    pub(super) fn counters(&self) -> &ListenerCounters {
        &self.state.counters[self.worker.index]
    }

    /// A session of it is to end, which has a backend or not yet.
    pub(super) fn is_aborting(&self, lease: Option<&Lease>) -> bool {
        match self.worker.aborting.get() {
            Aborting::Nothing => false,
            Aborting::Parts => self.state.is_aborting() || lease.is_some_and(Lease::is_aborting),
            Aborting::Everything => true,
        }
    }
}

/// When an accept queue is looked into.
#[derive(Clone, Copy)]
struct Looks {
    next: Instant,
    until: Instant,
}

/// A listening socket of a worker, as those who give it orders know it.
pub(super) struct Acceptor {
    pub(super) binding: BindingId,
    pub(super) fd: Fd,
    shared: bool,
    transport: Transport,
    /// Let go of when the socket is closed.
    closed: Cell<Option<Closed>>,
    listener: RefCell<Rc<LocalListener>>,
    /// When to stop accepting.
    stop_at: Cell<Option<Instant>>,
    /// When to look into the accept queue unasked, if there is reason to.
    looks: Cell<Option<Looks>>,
    /// Where the socket is bound.
    pub(super) address: Option<SocketAddr>,
    /// Its number among the sockets of the binding.
    pub(super) number: usize,
    /// Of a socket for datagrams: what happens when another process takes over, or has handed over.
    pub(super) succession: Succession,
    task: RefCell<Option<Waker>>,
}

impl Acceptor {
    pub(super) fn new(
        worker: &Rc<WorkerState>,
        socket: ListenerSocket,
        succession: Succession,
    ) -> Self {
        let listener = LocalListener {
            worker: worker.clone(),
            state: socket.listener,
        };
        Self {
            binding: socket.binding,
            fd: socket.fd,
            shared: socket.shared,
            transport: socket.transport,
            closed: Cell::new(Some(socket.closed)),
            listener: RefCell::new(Rc::new(listener)),
            stop_at: Cell::new(None),
            looks: Cell::new(None),
            address: socket.address,
            number: socket.number,
            succession,
            task: RefCell::new(None),
        }
    }

    /// The socket, for another worker. Nothing of it is left here.
    pub(super) fn to_socket(&self) -> ListenerSocket {
        ListenerSocket {
            binding: self.binding,
            listener: self.listener().state.clone(),
            fd: self.fd,
            shared: self.shared,
            transport: self.transport,
            address: self.address,
            number: self.number,
            waits: self.succession.waits.get(),
            closed: self.closed.take().unwrap_or_else(|| Arc::new(())),
        }
    }

    /// The socket is closed.
    pub(super) fn tell_closed(&self) {
        drop(self.closed.take());
    }

    /// Connections that are accepted from now on belong to this listener.
    pub(super) fn assign(&self, listener: &Arc<ListenerState>) {
        let worker = self.listener().worker.clone();
        let state = listener.clone();
        self.listener
            .replace(Rc::new(LocalListener { worker, state }));
    }

    /// Stops accepting at `at`, or when that was to be earlier.
    pub(super) fn stop(&self, at: Instant) {
        let earlier = self.stop_at.get().filter(|earlier| *earlier < at);
        self.stop_at.set(earlier.or(Some(at)));
        self.wake();
    }

    /// Another process goes on with its datagrams; it gets the sessions by `to`.
    pub(super) fn leave(&self, to: Sender<Left>) {
        self.succession.leave_to.replace(Some(to));
        self.wake();
    }

    /// Sessions of another process.
    pub(super) fn adopt(&self, adopted: Adopted) {
        self.succession.adopted.borrow_mut().push(adopted);
        self.wake();
    }

    /// All of them have come.
    pub(super) fn begin_to_receive(&self) {
        self.succession.waits.set(false);
        self.wake();
    }

    /// Another process that accepted from the same socket has ended. A connection wakes one of those who
    /// wait for it; if that was the other, nobody has been told of what is in the queue.
    pub(super) fn look_again(&self, now: Instant) {
        self.looks.set(Some(Looks {
            next: now,
            until: now + LOOKS_FOR,
        }));
        self.wake();
    }

    /// It is time to look.
    fn is_to_look(&self, now: Instant) -> bool {
        let due = self.looks.get().filter(|looks| looks.next <= now);
        if let Some(Looks { until, .. }) = due {
            let next = now + LOOK_INTERVAL;
            self.looks
                .set((next <= until).then_some(Looks { next, until }));
        }
        due.is_some()
    }

    /// The next of these instants, if there is one.
    fn due(&self) -> Option<Instant> {
        let look = self.looks.get().map(|looks| looks.next);
        self.stop_at.get().into_iter().chain(look).min()
    }

    fn wake(&self) {
        if let Some(task) = &*self.task.borrow() {
            task.wake();
        }
    }

    /// The calling task is the one that orders wake.
    pub(super) fn begin(&self, ring: &Ring) {
        self.task.replace(Some(ring.waker()));
    }

    /// When to stop.
    pub(super) fn stop_at(&self) -> Option<Instant> {
        self.stop_at.get()
    }

    pub(super) fn listener(&self) -> Rc<LocalListener> {
        self.listener.borrow().clone()
    }
}

/// Accepts until it is told to stop; then serves what is queued and closes the socket.
pub(super) async fn accept_loop(ring: Ring, acceptor: Rc<Acceptor>, socket: Listener) {
    acceptor.begin(&ring);
    let worker = acceptor.listener().worker.clone();
    loop {
        match next(&ring, &worker, &acceptor, &socket).await {
            Next::Accepted(Ok(client)) => begin(&ring, &acceptor.listener(), client),
            Next::Accepted(Err(error)) if is_over(&error) => break,
            Next::Accepted(Err(error)) => {
                rest(&ring, &acceptor.listener(), &socket, &error).await;
            }
            // Whoever begins to accept is given what is queued.
            Next::Look => socket.stop().await,
            Next::Stop => break,
        }
    }
    socket.stop().await;
    serve_queued(&ring, &acceptor, &socket).await;
    worker.remove(&acceptor);
    drop(socket);
    acceptor.tell_closed();
    worker.end();
}

/// Takes what waits in the accept queue, in portions: others have their turns meanwhile.
async fn serve_queued(ring: &Ring, acceptor: &Acceptor, socket: &Listener) {
    const PORTION: usize = 64;
    let worker = acceptor.listener().worker.clone();
    let mut taken = 0;
    while worker.aborting.get() != Aborting::Everything {
        match socket.take_queued() {
            Ok(Some(client)) => begin(ring, &acceptor.listener(), client),
            Ok(None) => return,
            Err(error) if is_over(&error) => return,
            Err(error) => rest(ring, &acceptor.listener(), socket, &error).await,
        }
        taken += 1;
        if taken % PORTION == 0 {
            ring.sleep_until(ring.now() + Duration::from_nanos(1)).await;
        }
    }
}

/// The socket does not listen: nothing will ever come.
fn is_over(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINVAL)
}

/// What an accept loop waits for.
enum Next {
    /// While the system is short of descriptors that is an error, as it would be for accept(2).
    Accepted(io::Result<Socket>),
    Look,
    Stop,
}

async fn next(ring: &Ring, worker: &WorkerState, acceptor: &Acceptor, socket: &Listener) -> Next {
    let mut timer = None;
    poll_fn(|_| {
        let now = ring.now();
        if let Some(stop_at) = acceptor.stop_at.get()
            && (now >= stop_at || worker.aborting.get() == Aborting::Everything)
        {
            return Poll::Ready(Next::Stop);
        }
        if acceptor.is_to_look(now) {
            return Poll::Ready(Next::Look);
        }
        if let Some(due) = acceptor.due() {
            timer.get_or_insert_with(|| ring.timer()).set(due);
        }
        if now < worker.short_until.get() {
            let error = io::Error::from_raw_os_error(libc::EMFILE);
            return Poll::Ready(Next::Accepted(Err(error)));
        }
        socket.poll_accept().map(Next::Accepted)
    })
    .await
}

/// Waits where trying again at once would fail again. Meanwhile connections wait in the kernel.
async fn rest(ring: &Ring, listener: &LocalListener, socket: &Listener, error: &io::Error) {
    let errno = error.raw_os_error().unwrap_or(0);
    if is_about_one_connection(errno) {
        return;
    }
    socket.stop().await;
    listener.counters().accept_pauses.add(1);
    let now = ring.now();
    let events = &listener.worker.shared.around.events;
    events.accept_paused(now, &listener.state.name, errno);
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
fn begin(ring: &Ring, listener: &Rc<LocalListener>, client: Socket) {
    listener.counters().accepted.add(1);
    match Admission::new(ring, listener, &client) {
        Ok((admission, policy)) => {
            admission.note(ring.now(), What::Accept, listener.state.number, 0);
            ring.spawn(tcp::session(ring.clone(), admission, policy, client));
        }
        Err(reason) => tcp::refuse(ring, listener, client, reason),
    }
}
