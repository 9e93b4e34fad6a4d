//! A session of datagrams: what a client and a backend say to each other, until nothing is said any more.
//!
//! ```text
//!             ┌─────────────── refused, for the first time since a reply ──────────────┐
//!             ▼                                                                        │
//!   begin ──▶ with a backend ──silence, replies used up, refused again, aborted──▶ ended
//! ```

mod ending;
mod handover;
mod unanswered;

use std::cell::{Cell, Ref, RefCell, RefMut};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use self::unanswered::{Kept, Unanswered};
use super::Flows;
use super::parcel::{self, Parcel};
use super::table::Key;
use crate::config::{Announce, Udp};
use crate::proto::datagram::Local;
use crate::proto::proxy_header;
use crate::proxy::admission::Admission;
use crate::proxy::listener::LocalListener;
use crate::proxy::snapshot::ListenerPolicy;
use crate::ring::{Arrival, Datagram, DatagramSocket, Ring, Timer, Waker};
use crate::telemetry::recorder::What;
use crate::telemetry::tallies::BackendCounters;
use crate::telemetry::{Dropped, Reason};
use crate::time::Instant;
use crate::upstream::datagrams::{self, Sender};
use crate::upstream::{Backend, Failure, Lease};

/// All that belongs to one client's datagrams.
pub(super) struct Session {
    pub(super) key: Key,
    /// Where the last datagram came from, in the socket's family: replies go there.
    client: Cell<SocketAddr>,
    /// The address that the client uses, where it may be one of several.
    local: Option<Local>,
    /// The same with the port.
    destination: SocketAddr,
    listener: Rc<LocalListener>,
    /// Until it ends.
    admission: Cell<Option<Admission>>,
    policy: Arc<ListenerPolicy>,
    /// `None` once it has left for another process.
    backend: RefCell<Option<Side>>,
    /// The last datagram in either direction.
    last: Cell<Instant>,
    unanswered: RefCell<Unanswered>,
    /// When the backend has said something.
    heard: Cell<Instant>,
    replies: Cell<u32>,
    /// The backend was changed, and the new one has not said anything.
    moved: Cell<bool>,
    /// It is over.
    over: Cell<Option<Reason>>,
    /// Datagrams to the client may be sent several at a time.
    pub(super) offload: Cell<bool>,
    bytes_received: Cell<u64>,
    bytes_sent: Cell<u64>,
    began: Instant,
    task: RefCell<Option<Waker>>,
}

const HAS_BACKEND: &str = "a session has a backend until it leaves";

/// The backend's side.
struct Side {
    socket: DatagramSocket,
    lease: Lease,
    /// Which datagrams say who the client is.
    announce: Announce,
    /// One has.
    announced: bool,
    /// Datagrams to it may be sent several at a time.
    offload: bool,
    /// Datagrams that its socket has lost.
    lost: u32,
}

/// Who a session is to be for.
pub(super) struct Caller {
    pub(super) key: Key,
    pub(super) client: SocketAddr,
    pub(super) local: Option<Local>,
    /// The backend that was chosen already, if one was.
    pub(super) lease: Option<Lease>,
}

impl Session {
    /// Begins a session, or says why not.
    pub(super) fn begin(
        flows: &Rc<Flows>,
        mut admission: Admission,
        policy: Arc<ListenerPolicy>,
        caller: Caller,
    ) -> Result<Rc<Self>, Dropped> {
        let ring = &flows.ring;
        let Caller {
            key,
            client,
            local,
            lease,
        } = caller;
        let listener = admission.listener.clone();
        let side = connect(ring, &listener, &policy, client.ip(), lease)?;
        listener.counters().accepted.add(1);
        admission.is_open = true;
        admission.note(ring.now(), What::Accept, listener.state.number, 0);
        admission.note(ring.now(), What::Pick, side.lease.backend().number, 0);
        let session = Rc::new(Self {
            key,
            client: Cell::new(client),
            local,
            destination: flows.destination(local),
            listener,
            admission: Cell::new(Some(admission)),
            policy,
            backend: RefCell::new(Some(side)),
            last: Cell::new(ring.now()),
            unanswered: RefCell::default(),
            heard: Cell::new(ring.now()),
            replies: Cell::new(0),
            moved: Cell::new(false),
            over: Cell::new(None),
            offload: Cell::new(true),
            bytes_received: Cell::new(0),
            bytes_sent: Cell::new(0),
            began: ring.now(),
            task: RefCell::new(None),
        });
        session.start(flows);
        Ok(session)
    }

    fn start(self: &Rc<Self>, flows: &Rc<Flows>) {
        flows.begin();
        flows.ring.spawn(Serving {
            timer: None,
            session: self.clone(),
            flows: flows.clone(),
        });
    }

    /// The backend's side.
    fn side(&self) -> Ref<'_, Side> {
        let side = self.backend.borrow();
        Ref::map(side, |side| side.as_ref().expect(HAS_BACKEND))
    }

    fn side_mut(&self) -> RefMut<'_, Side> {
        let side = self.backend.borrow_mut();
        RefMut::map(side, |side| side.as_mut().expect(HAS_BACKEND))
    }

    /// Where replies go, and from where.
    pub(super) fn client(&self) -> (SocketAddr, Option<Local>) {
        (self.client.get(), self.local)
    }

    /// It has ended, and its task has not seen to that yet.
    pub(super) fn is_over(&self) -> bool {
        self.over.get().is_some()
    }

    /// The client was sent something.
    pub(super) fn sent(&self, datagram: &Datagram<'_>) {
        let counters = self.listener.counters();
        counters.datagrams_sent.add(count(datagram));
        counters.bytes_sent.add(datagram.bytes.len() as u64);
    }

    /// The client could not be sent something.
    pub(super) fn lost(&self, datagram: &Datagram<'_>, error: &io::Error) {
        let dropped = parcel::dropped_for(error).unwrap_or(Dropped::Unroutable);
        let counters = self.listener.counters();
        counters.drop(dropped, count(datagram));
    }

    /// Hands datagrams of the client on.
    pub(super) fn forward(self: &Rc<Self>, flows: &Flows, from: SocketAddr, parcel: Parcel<'_>) {
        self.last.set(flows.ring.now());
        self.client.set(from);
        add(&self.bytes_received, parcel.bytes.len());
        let counters = self.listener.counters();
        counters.bytes_received.add(parcel.bytes.len() as u64);
        if !self.is_served(flows.ring.now()) {
            // Silence of the other side does not end a session that the client keeps alive.
            self.move_on(flows, Reason::BackendLost);
        }
        if let Err((error, count)) = self.send(parcel) {
            self.not_sent(flows, parcel, &error, count);
        } else {
            self.note_sent(parcel, flows.ring.now());
        }
        self.look(&flows.ring);
    }

    /// Its backend is worth being spoken to.
    fn is_served(&self, now: Instant) -> bool {
        let side = self.side();
        let backend = side.lease.backend();
        if backend.is_gone() {
            // Nobody checks it any more: it is believed in for as long as it says something.
            return now < self.heard.get() + self.udp().session_timeout;
        }
        backend.is_healthy() || self.policy.upstream.is_failing_open()
    }

    fn send(&self, parcel: Parcel<'_>) -> Result<(), (io::Error, u64)> {
        let side = &mut *self.side_mut();
        let announced = std::mem::replace(&mut side.announced, true);
        let every = match side.announce {
            Announce::V2Every => true,
            Announce::V2First if !announced => false,
            Announce::V1 | Announce::V2First | Announce::Never => {
                return parcel::send(&side.socket, parcel, &mut side.offload);
            }
        };
        let header = proxy_header::of_datagram(self.client.get(), self.destination);
        let (with, without) = parcel.announce(&header, every);
        let rest = without.map_or(0, |without| without.count());
        let sent = parcel::send(&side.socket, with.parcel(), &mut side.offload);
        sent.map_err(|(error, count)| (error, count + rest))?;
        without.map_or(Ok(()), |without| {
            parcel::send(&side.socket, without, &mut side.offload)
        })
    }

    fn note_sent(&self, parcel: Parcel<'_>, now: Instant) {
        let again =
            self.policy.upstream.backends().len() > 1 || self.side().lease.backend().is_gone();
        let bytes = parcel.bytes.len() as u64;
        self.for_backend(|counters| counters.bytes_received.add(bytes));
        self.unanswered.borrow_mut().sent(parcel, again, now);
    }

    /// Counts something for the backend of the moment.
    fn for_backend(&self, count: impl FnOnce(&BackendCounters)) {
        count(self.side().lease.counters(self.listener.worker.index));
    }

    fn note_dropped(&self, dropped: Dropped, count: u64) {
        self.listener.counters().drop(dropped, count);
    }

    fn not_sent(self: &Rc<Self>, flows: &Flows, parcel: Parcel<'_>, error: &io::Error, count: u64) {
        if let Some(dropped) = parcel::dropped_for(error) {
            return self.note_dropped(dropped, count);
        }
        // What was sent before met it, or this has: in either case the backend is not there.
        if !self.refused(flows, error) {
            return self.note_dropped(Dropped::NoBackend, count);
        }
        self.send_again(flows, parcel);
    }

    /// To another backend than before.
    fn send_again(&self, flows: &Flows, parcel: Parcel<'_>) {
        match self.send(parcel) {
            Ok(()) => self.note_sent(parcel, flows.ring.now()),
            Err((error, count)) => {
                let dropped = parcel::dropped_for(&error).unwrap_or(Dropped::NoBackend);
                self.note_dropped(dropped, count);
            }
        }
    }

    /// The backend takes no datagrams. Goes on with another one, or ends the session; false then.
    fn refused(self: &Rc<Self>, flows: &Flows, error: &io::Error) -> bool {
        let tell = self.tells(&flows.ring);
        tell(self.side().lease.backend(), error);
        let (kept, lost) = self.unanswered.take().take();
        self.note_dropped(Dropped::NoBackend, lost);
        if self.moved.get() || !self.move_on(flows, Reason::BackendRefused) {
            let kept: u64 = kept.iter().map(|kept| kept.parcel().count()).sum();
            self.note_dropped(Dropped::NoBackend, kept);
            self.end(Reason::BackendRefused);
            return false;
        }
        self.moved.set(true);
        for parcel in kept.iter().map(Kept::parcel) {
            self.send_again(flows, parcel);
        }
        true
    }

    /// Takes another backend, if there is one, as the one it has is of no use for this reason.
    fn move_on(self: &Rc<Self>, flows: &Flows, reason: Reason) -> bool {
        let ring = &flows.ring;
        let tell = self.tells(ring);
        let opened = {
            let side = self.side();
            let sender = Sender {
                address: self.client.get().ip().to_canonical(),
                not: Some(side.lease.backend()),
                failed: &tell,
            };
            let local = &self.listener.worker.local;
            // Of the configuration of the moment, as for a new client.
            let policy = self.listener.state.policy.load();
            let upstream = match policy.udp {
                Some(_) => &policy.upstream,
                None => &self.policy.upstream,
            };
            let opened = datagrams::open(ring, local, upstream, sender);
            opened.map(|(socket, lease)| Side::new(socket, lease, upstream.announce()))
        };
        let Ok(side) = opened else {
            return false;
        };
        // What the old one has said before is still of use.
        if self.take_replies(flows) {
            self.end(Reason::Answered);
        }
        let before = self.backend.replace(Some(side));
        if let Some(mut before) = before {
            before.lease.ended(reason, ring.now());
            let worker = self.listener.worker.index;
            before
                .lease
                .count_end(worker, reason, ring.now() - self.began);
        }
        if self.udp().per_packet {
            // It is not the session with that backend any more.
            flows.forget(self);
        }
        self.wake();
        true
    }

    fn tells<'a>(&'a self, ring: &'a Ring) -> impl Fn(&Backend, &io::Error) + use<'a> {
        tells(ring, &self.listener, &self.policy)
    }

    fn look(&self, ring: &Ring) {
        let lease = &mut self.side_mut().lease;
        if lease.is_watched() {
            lease.look(ring, self.bytes_received.get(), self.bytes_sent.get());
        }
    }

    /// The session is over as soon as its task is polled.
    fn end(&self, reason: Reason) {
        self.over.set(self.over.get().or(Some(reason)));
        self.wake();
    }

    fn wake(&self) {
        if let Some(task) = &*self.task.borrow() {
            task.wake();
        }
    }

    /// Takes what the backend has said; true when it was the last reply.
    fn take_replies(self: &Rc<Self>, flows: &Flows) -> bool {
        while let Some(arrival) = self.next() {
            let count = Parcel::of(&arrival).count();
            self.note_reply(flows, &arrival);
            flows.reply(self, arrival);
            let replies = self.replies.get().saturating_add(count as u32);
            self.replies.set(replies);
            if self
                .udp()
                .responses
                .is_some_and(|most| replies >= most.get())
            {
                return true;
            }
        }
        false
    }

    fn next(&self) -> Option<Arrival> {
        self.side().socket.take()
    }

    fn note_reply(&self, flows: &Flows, arrival: &Arrival) {
        self.last.set(flows.ring.now());
        self.moved.set(false);
        self.heard.set(flows.ring.now());
        self.unanswered.borrow_mut().answered();
        add(&self.bytes_sent, arrival.bytes().len());
        let bytes = arrival.bytes().len() as u64;
        self.for_backend(|counters| counters.bytes_sent.add(bytes));
        let counters = self.listener.counters();
        if let Some(lost) = arrival.header.lost {
            let before = std::mem::replace(&mut self.side_mut().lost, lost);
            counters.drop(Dropped::Overflow, u64::from(lost.wrapping_sub(before)));
        }
        if arrival.header.truncated {
            counters.drop(Dropped::Truncated, 1);
        }
    }

    /// What an earlier datagram has met.
    fn take_error(self: &Rc<Self>, flows: &Flows) {
        let errno = self.side().socket.take_error();
        let Some(errno) = errno.filter(|errno| is_refusal(*errno)) else {
            return;
        };
        self.refused(flows, &io::Error::from_raw_os_error(errno));
    }

    /// As its listener was configured when it began.
    fn udp(&self) -> Udp {
        self.policy.udp.unwrap_or_default()
    }

    fn is_aborting(&self) -> bool {
        let lease = &self.side().lease;
        self.listener.is_aborting(Some(lease))
    }

    /// Why it is over, or until when it goes on.
    fn verdict(&self, now: Instant) -> Result<Instant, Reason> {
        if let Some(reason) = self.over.get() {
            return Err(reason);
        }
        if self.is_aborting() {
            return Err(Reason::Drained);
        }
        let deadline = self.last.get() + self.udp().session_timeout;
        if now >= deadline {
            return Err(Reason::Idle);
        }
        let mut unanswered = self.unanswered.borrow_mut();
        unanswered.forget_old(now);
        Ok(deadline.min(unanswered.until().unwrap_or(deadline)))
    }
}

impl Side {
    fn new(socket: DatagramSocket, lease: Lease, announce: Announce) -> Self {
        Self {
            announce,
            announced: false,
            socket,
            lease,
            offload: true,
            lost: 0,
        }
    }
}

fn connect(
    ring: &Ring,
    listener: &LocalListener,
    policy: &Arc<ListenerPolicy>,
    client: IpAddr,
    chosen: Option<Lease>,
) -> Result<Side, Dropped> {
    let tell = tells(ring, listener, policy);
    let sender = Sender {
        address: client.to_canonical(),
        not: None,
        failed: &tell,
    };
    let (local, upstream) = (&listener.worker.local, &policy.upstream);
    let opened = match chosen {
        Some(lease) => datagrams::open_chosen(ring, local, upstream, (lease, sender)),
        None => datagrams::open(ring, local, upstream, sender),
    };
    let (socket, lease) = opened.map_err(dropped)?;
    Ok(Side::new(socket, lease, upstream.announce()))
}

/// Counts a failed try to reach a backend, and tells it.
fn tells<'a>(
    ring: &'a Ring,
    listener: &'a LocalListener,
    policy: &'a ListenerPolicy,
) -> impl Fn(&Backend, &io::Error) + use<'a> {
    move |backend, error| {
        listener.counters().connect_failures.add(1);
        let events = &listener.worker.shared.around.events;
        let upstream = policy.upstream.name();
        events.connect_failed(ring.now(), upstream, &backend.name, error);
    }
}

pub(super) fn dropped(failure: Failure) -> Dropped {
    match failure {
        Failure::QueueFull | Failure::QueueTimeout => Dropped::BackendsFull,
        Failure::NoResources => Dropped::NoResources,
        Failure::Refused | Failure::TimedOut | Failure::Unsecured | Failure::ClientGone => {
            Dropped::NoBackend
        }
    }
}

/// ICMP says that the datagram can't get there; that it was too long for the way is no fault of the
/// backend's.
fn is_refusal(errno: i32) -> bool {
    errno != libc::EMSGSIZE
}

fn count(datagram: &Datagram<'_>) -> u64 {
    Parcel::in_send(datagram).count()
}

fn add(sum: &Cell<u64>, bytes: usize) {
    sum.set(sum.get() + bytes as u64);
}

/// The task of a session: takes what the backend says, and knows when it is over.
struct Serving {
    session: Rc<Session>,
    flows: Rc<Flows>,
    timer: Option<Timer>,
}

impl Future for Serving {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let (session, ring) = (&this.session, &this.flows.ring);
        session
            .task
            .borrow_mut()
            .get_or_insert_with(|| ring.waker());
        session.side().socket.belongs_to_this_task();
        if session.take_replies(&this.flows) {
            session.end(Reason::Answered);
        }
        if this.flows.leaving.get() && !session.is_over() {
            return match session.leave(&this.flows) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            };
        }
        session.take_error(&this.flows);
        session.look(ring);
        match session.verdict(ring.now()) {
            Ok(deadline) => {
                let timer = this.timer.get_or_insert_with(|| ring.timer());
                timer.set(deadline);
                let side = session.side();
                side.socket.belongs_to_this_task();
                side.socket.receive();
                Poll::Pending
            }
            Err(reason) => {
                session.finish(&this.flows, reason);
                Poll::Ready(())
            }
        }
    }
}
