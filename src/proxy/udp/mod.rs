//! Datagrams: one task per listening socket, which finds the session of what arrives and hands it on; one
//! per session, which takes the replies; and one send per turn for the replies of all sessions.
//!
//! ```text
//!   client ──▶ listening socket ──▶ Flows ──▶ Session ──▶ its own socket ──▶ backend
//!   client ◀── listening socket ◀── outbox ◀── Session ◀── its own socket ◀── backend
//! ```
//!
//! Everything that is received is sent or counted within the same turn: no buffer is held longer.

mod parcel;
mod session;
mod succession;
mod table;

use std::cell::{Cell, RefCell};
use std::collections::hash_map::Entry;
use std::future::poll_fn;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use self::parcel::Parcel;
use self::session::{Caller, Session};
pub(super) use self::succession::Succession;
pub use self::succession::{Adopted, Left, SessionImage};
use self::table::{Key, Table};
use super::admission::Admission;
use super::listener::{Acceptor, LocalListener};
use super::snapshot::ListenerPolicy;
use super::worker::Aborting;
use crate::config::Udp;
use crate::proto::datagram::Local;
use crate::ring::limits;
use crate::ring::{Arrival, Datagram, DatagramSocket, Ring, Timer, Waker};
use crate::telemetry::{Dropped, Reason};
use crate::time::Instant;
use crate::upstream::datagrams::{self, Sender};

/// A listening socket with its sessions.
struct Flows {
    ring: Ring,
    socket: DatagramSocket,
    /// Where it is bound.
    address: SocketAddr,
    sessions: RefCell<Table>,
    /// A crowd has left, and what it took can be given back.
    trims: Cell<bool>,
    /// Sessions that have not ended; one that has moved per packet is not in the table any more.
    live: Cell<usize>,
    /// Replies of this turn.
    outbox: RefCell<Vec<Reply>>,
    /// The last one that was about datagrams.
    policy: RefCell<Arc<ListenerPolicy>>,
    /// Sessions pack up for another process.
    leaving: Cell<bool>,
    /// Those that have.
    left: RefCell<Vec<(SessionImage, OwnedFd)>>,
    task: Waker,
}

/// From so many sessions on the memory of those that have left is given back.
const CROWD: usize = 2_000;

const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// What a backend has said.
struct Reply {
    session: Rc<Session>,
    arrival: Arrival,
}

/// Sessions know their table and the table knows them: it is emptied when the task goes.
struct Emptied {
    flows: Rc<Flows>,
    acceptor: Rc<Acceptor>,
}

impl Drop for Emptied {
    fn drop(&mut self) {
        self.flows.outbox.take();
        self.flows.sessions.take();
        // They had packed up, and nobody gets them.
        for (image, _) in self.flows.left.take() {
            image.end(&self.acceptor.listener(), Reason::WorkerPanicked);
        }
    }
}

/// Receives until it is told to stop, and then until the last session has ended.
pub(super) async fn serve(ring: Ring, acceptor: Rc<Acceptor>, socket: DatagramSocket) {
    acceptor.begin(&ring);
    let worker = acceptor.listener().worker.clone();
    socket.belongs_to_this_task();
    let flows = Rc::new(Flows {
        task: ring.waker(),
        ring,
        socket,
        // A path has no datagrams.
        address: acceptor.address.unwrap_or(ANY),
        sessions: RefCell::default(),
        trims: Cell::new(false),
        live: Cell::new(0),
        outbox: RefCell::default(),
        policy: RefCell::new(acceptor.listener().state.policy.load_full()),
        leaving: Cell::new(false),
        left: RefCell::default(),
    });
    let emptied = Emptied {
        flows: flows.clone(),
        acceptor: acceptor.clone(),
    };
    let mut timer = None;
    let waits_until = flows.ring.now() + succession::PATIENCE;
    poll_fn(|_| flows.poll_adopted(&acceptor, waits_until, &mut timer)).await;
    poll_fn(|_| flows.poll(&acceptor, &mut timer)).await;
    worker.remove(&acceptor);
    drop(emptied);
    drop(flows);
    acceptor.tell_closed();
    worker.end();
}

impl Flows {
    fn poll(self: &Rc<Self>, acceptor: &Acceptor, timer: &mut Option<Timer>) -> Poll<()> {
        self.send_replies();
        if self.leaving.get() {
            return self.poll_left(acceptor);
        }
        if !acceptor.succession.adopted.borrow().is_empty() {
            // They come late.
            self.adopt(acceptor);
        }
        let listener = acceptor.listener();
        let policy = listener.state.policy.load_full();
        if policy.udp.is_some() {
            // Should the listener change to another protocol, its sessions go on by this.
            self.policy.replace(policy);
        }
        let policy = self.policy.borrow().clone();
        let now = self.ring.now();
        let leaves = acceptor.succession.leave_to.borrow().is_some();
        let stops = acceptor.stop_at().is_some_and(|at| now >= at) && !leaves;
        let stopping = stops || listener.worker.aborting.get() == Aborting::Everything;
        let incoming = Incoming {
            flows: self,
            listener: &listener,
            policy: &policy,
            lost: &acceptor.succession.lost,
            stopping,
        };
        while let Some(arrival) = self.socket.take() {
            incoming.receive(&arrival);
        }
        if self.trims.take() {
            limits::trim_heap();
        }
        if leaves {
            return self.begin_to_leave();
        }
        // Nobody's in particular: a socket that is not connected hears of no ICMP.
        let _ = self.socket.take_error();
        if stopping && self.live.get() == 0 {
            return Poll::Ready(());
        }
        if let Some(at) = acceptor.stop_at().filter(|at| now < *at) {
            timer.get_or_insert_with(|| self.ring.timer()).set(at);
        }
        self.socket.receive();
        Poll::Pending
    }

    /// Takes in what another process hands over, before anything is received.
    fn poll_adopted(
        self: &Rc<Self>,
        acceptor: &Acceptor,
        until: Instant,
        timer: &mut Option<Timer>,
    ) -> Poll<()> {
        self.send_replies();
        self.adopt(acceptor);
        let waits = acceptor.succession.waits.get() && acceptor.stop_at().is_none();
        if !waits || self.ring.now() >= until {
            return Poll::Ready(());
        }
        timer.get_or_insert_with(|| self.ring.timer()).set(until);
        Poll::Pending
    }

    fn adopt(self: &Rc<Self>, acceptor: &Acceptor) {
        let listener = acceptor.listener();
        let policy = listener.state.policy.load_full();
        for adopted in acceptor.succession.adopted.take() {
            acceptor.succession.lost.set(adopted.lost);
            for (image, fd) in adopted.sessions {
                let socket = self.ring.connected_datagrams(fd);
                match Session::adopt(self, &listener, &policy, &image, socket) {
                    Some(session) => {
                        self.sessions.borrow_mut().insert(session.key, session);
                    }
                    // Its backend is not in this configuration.
                    None => image.end(&listener, Reason::Drained),
                }
            }
        }
    }

    /// Nothing more is received here; once all that has arrived is on its way, the sessions pack up.
    fn begin_to_leave(self: &Rc<Self>) -> Poll<()> {
        if self.socket.stop() {
            self.leaving.set(true);
            self.ring.wake_all();
        }
        Poll::Pending
    }

    /// Hands the sessions over when the last one has packed up.
    fn poll_left(&self, acceptor: &Acceptor) -> Poll<()> {
        if self.live.get() > 0 {
            return Poll::Pending;
        }
        if let Some(to) = acceptor.succession.leave_to.take() {
            // Whoever wanted them may have gone: they end.
            let _ = to.send(Left {
                binding: acceptor.binding,
                socket: acceptor.number,
                lost: acceptor.succession.lost.get(),
                sessions: self.left.take(),
            });
        }
        Poll::Ready(())
    }

    /// What `arrival` holds goes to the session's client at the end of the turn.
    fn reply(&self, session: &Rc<Session>, arrival: Arrival) {
        let mut outbox = self.outbox.borrow_mut();
        if outbox.is_empty() {
            self.task.wake();
        }
        outbox.push(Reply {
            session: session.clone(),
            arrival,
        });
    }

    /// Sends everything that backends have said in this turn, in order.
    fn send_replies(&self) {
        let replies = self.outbox.take();
        if replies.is_empty() {
            return;
        }
        let mut owners = Vec::with_capacity(replies.len());
        let mut datagrams = Vec::with_capacity(replies.len());
        for reply in &replies {
            for piece in Parcel::of(&reply.arrival).pieces(reply.session.offload.get()) {
                let (to, from) = reply.session.client();
                owners.push(&reply.session);
                datagrams.push(piece.datagram(Some(to), from));
            }
        }
        let mut next = 0;
        while next < datagrams.len() {
            match self.socket.send(&datagrams[next..]) {
                Ok(count) => {
                    for at in next..next + count {
                        owners[at].sent(&datagrams[at]);
                    }
                    next += count;
                }
                Err(error) => {
                    self.not_sent(owners[next], &datagrams[next], &error);
                    next += 1;
                }
            }
        }
        drop((owners, datagrams));
        // Their allocation is of use again.
        let mut replies = replies;
        replies.clear();
        let mut outbox = self.outbox.borrow_mut();
        if outbox.is_empty() {
            *outbox = replies;
        }
    }

    fn not_sent(&self, session: &Session, datagram: &Datagram<'_>, error: &std::io::Error) {
        let parcel = Parcel::in_send(datagram);
        if datagram.segment.is_some() && parcel::is_about_offload(error) {
            session.offload.set(false);
            for piece in parcel.pieces(false) {
                let one = piece.datagram(datagram.to, datagram.from);
                match self.socket.send(&[one]) {
                    Ok(_) => session.sent(&one),
                    Err(error) => session.lost(&one, &error),
                }
            }
        } else {
            session.lost(datagram, error);
        }
    }

    /// The address that a client has used, which the kernel tells where there are several.
    fn destination(&self, local: Option<Local>) -> SocketAddr {
        let ip = local.map_or(self.address.ip(), |local| local.ip);
        SocketAddr::new(ip, self.address.port())
    }

    /// A session has begun.
    fn begin(&self) {
        self.live.set(self.live.get() + 1);
    }

    /// A session is over.
    fn end(&self, session: &Rc<Session>) {
        self.forget(session);
        self.live.set(self.live.get() - 1);
        if self.live.get() == 0 {
            self.task.wake();
        }
    }

    /// Datagrams with its key belong to it no longer.
    fn forget(&self, session: &Rc<Session>) {
        let mut sessions = self.sessions.borrow_mut();
        if let Entry::Occupied(entry) = sessions.entry(session.key)
            && Rc::ptr_eq(entry.get(), session)
        {
            entry.remove();
        }
        if sessions.is_empty() && sessions.capacity() > CROWD {
            sessions.shrink_to_fit();
            self.trims.set(true);
        }
    }
}

/// What a listening socket's datagrams meet in this turn.
struct Incoming<'a> {
    flows: &'a Rc<Flows>,
    listener: &'a Rc<LocalListener>,
    policy: &'a Arc<ListenerPolicy>,
    /// As in [`Succession`].
    lost: &'a Cell<u32>,
    stopping: bool,
}

impl Incoming<'_> {
    fn receive(&self, arrival: &Arrival) {
        let counters = self.listener.counters();
        let header = &arrival.header;
        let parcel = Parcel::of(arrival);
        if let Some(lost) = header.lost {
            let before = self.lost.replace(lost);
            counters.drop(Dropped::Overflow, u64::from(lost.wrapping_sub(before)));
        }
        counters.datagrams_received.add(parcel.count());
        let admitted = match (header.sender, self.policy.udp) {
            (Some(sender), Some(udp)) => self
                .admit(arrival, sender, &udp)
                .map(|it| (sender, udp, it)),
            _ => Err(Dropped::Draining),
        };
        match admitted {
            Err(dropped) => counters.drop(dropped, parcel.count()),
            Ok((sender, udp, count)) => {
                if count < parcel.count() {
                    counters.drop(Dropped::DatagramRateLimit, parcel.count() - count);
                }
                let parcel = parcel.first(count);
                match udp.per_packet {
                    true => parcel
                        .pieces(false)
                        .for_each(|one| self.pass(&udp, (sender, header.local), one)),
                    false => self.pass(&udp, (sender, header.local), parcel),
                }
            }
        }
    }

    /// How many of the datagrams may pass.
    fn admit(&self, arrival: &Arrival, sender: SocketAddr, udp: &Udp) -> Result<u64, Dropped> {
        /// Only root can send from one below.
        const FIRST_UNPRIVILEGED: u16 = 1024;
        if arrival.header.truncated {
            return Err(Dropped::Truncated);
        }
        if self.is_own(sender, arrival.header.local) {
            return Err(Dropped::Loop);
        }
        if udp.reject_privileged_sources && sender.port() < FIRST_UNPRIVILEGED {
            return Err(Dropped::PrivilegedSource);
        }
        let count = Parcel::of(arrival).count();
        let limits = &self.policy.rate_limit;
        let rate = limits.datagrams_per_ip;
        let (Some(rate), Some(clients)) = (rate, &self.policy.datagram_clients) else {
            return Ok(count);
        };
        let (client, now) = (sender.ip().to_canonical(), self.flows.ring.now());
        let take = |_: &u64| clients.take(client, limits.ipv6_prefix, rate, now);
        let within = (0..count).take_while(take).count() as u64;
        match within {
            _ if limits.dry_run => {
                let counters = self.listener.counters();
                counters.rate_limit_dry_run.add(count - within);
                Ok(count)
            }
            0 => Err(Dropped::DatagramRateLimit),
            within => Ok(within),
        }
    }

    /// It is the address that the datagram was sent to.
    fn is_own(&self, sender: SocketAddr, local: Option<Local>) -> bool {
        let own = self.flows.destination(local);
        (sender.ip(), sender.port()) == (own.ip(), own.port())
    }

    /// To the session that they belong to, or to a new one.
    fn pass(&self, udp: &Udp, (sender, local): (SocketAddr, Option<Local>), parcel: Parcel<'_>) {
        let session = match udp.per_packet {
            true => self.session_of_one(udp, sender, local),
            false => self.session(Caller {
                key: Key::new(udp, sender, local),
                client: sender,
                local,
                lease: None,
            }),
        };
        match session {
            Ok(session) => session.forward(self.flows, sender, parcel),
            Err(dropped) => self.listener.counters().drop(dropped, parcel.count()),
        }
    }

    /// The session with a backend that is chosen for one datagram.
    fn session_of_one(
        &self,
        udp: &Udp,
        client: SocketAddr,
        local: Option<Local>,
    ) -> Result<Rc<Session>, Dropped> {
        let sender = Sender {
            address: client.ip().to_canonical(),
            not: None,
            failed: &|_, _| (),
        };
        let (ring, upstream) = (&self.flows.ring, &self.policy.upstream);
        let lease = datagrams::choose(ring, &self.listener.worker.local, upstream, sender);
        let lease = lease.map_err(session::dropped)?;
        self.session(Caller {
            key: Key::new(udp, client, local).with(lease.backend()),
            client,
            local,
            lease: Some(lease),
        })
    }

    fn session(&self, caller: Caller) -> Result<Rc<Session>, Dropped> {
        if let Some(session) = self.flows.sessions.borrow().get(&caller.key)
            && !session.is_over()
        {
            return Ok(session.clone());
        }
        if self.stopping {
            return Err(Dropped::Draining);
        }
        let (admission, policy) = Admission::enter(self.listener).map_err(refused)?;
        let client = caller.client.ip().to_canonical();
        policy
            .screen(self.listener, Some(client), self.flows.ring.now())
            .map_err(refused)?;
        let key = caller.key;
        let session = Session::begin(self.flows, admission, policy, caller)?;
        self.flows
            .sessions
            .borrow_mut()
            .insert(key, session.clone());
        Ok(session)
    }
}

/// Why a session was not let in, as a reason for its first datagram.
fn refused(reason: Reason) -> Dropped {
    match reason {
        Reason::ProcessFull => Dropped::ProcessFull,
        Reason::ListenerFull => Dropped::ListenerFull,
        Reason::RateLimit => Dropped::RateLimit,
        Reason::ClientRateLimit => Dropped::ClientRateLimit,
        _ => Dropped::Denied,
    }
}
