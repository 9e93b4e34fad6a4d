//! Connections that are open ahead of the sessions that will use them. A *keeper*, one task per
//! backend and worker, opens them, holds a receive on each so that the end of one is seen at once and a
//! greeting is kept, replaces those that end or get old, and lets go of all while a session waits for a
//! place.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::Upstream;
use super::backend::{Backend, Slot};
use super::connect::{Opened, Opener, classify};
use super::gate::Gate;
use super::handshake::absorb;
use crate::ring::{BUFFER_BYTES, Ring, Timer, Waker};
use crate::time::Instant;

/// What a backend may say before a session takes the connection.
const GREETING: u32 = BUFFER_BYTES;
/// How long to wait before opening again after a failure; doubles up to the most.
const FIRST_REST: Duration = Duration::from_millis(50);
const MOST_REST: Duration = Duration::from_secs(5);
/// How often to look whether a backend is ready again, where nobody tells.
const RECHECK: Duration = Duration::from_secs(1);
/// A backend that keeps a connection for so long does not turn all of them away.
const PROVEN: Duration = Duration::from_millis(250);

/// The pools of one worker.
pub struct Pools {
    worker: usize,
    gate: Rc<Gate>,
    list: RefCell<Vec<Rc<Pool>>>,
}

/// The connections that a worker has open ahead to one backend.
struct Pool {
    /// Where the backend is found; replaced by a reload.
    place: RefCell<(Arc<Upstream>, usize)>,
    at_work: (usize, Rc<Gate>),
    parked: RefCell<VecDeque<Parked>>,
    /// Opened, and not the keeper's yet.
    arrived: RefCell<Vec<Parked>>,
    opening: Cell<u32>,
    failures: Cell<u32>,
    rest_until: Cell<Instant>,
    keeper: RefCell<Option<Waker>>,
    closed: Cell<bool>,
}

/// An idle connection and its place under the backend's cap.
struct Parked {
    opened: Opened,
    slot: Slot,
    since: Instant,
    expires: Instant,
}

impl Pools {
    pub(super) fn new(worker: usize, gate: Rc<Gate>) -> Self {
        Self {
            worker,
            gate,
            list: RefCell::default(),
        }
    }

    /// A connection to `backend` that has not ended, the oldest first.
    pub(super) fn take(&self, backend: &Backend) -> Option<(Opened, Slot)> {
        let list = self.list.borrow();
        let pool = list.iter().find(|pool| pool.is_of(backend))?;
        pool.wake();
        let mut parked = pool.parked.borrow_mut();
        let mut oldest = std::iter::from_fn(|| parked.pop_front());
        let counters = backend.state.tallies.of(self.worker);
        let taken = oldest.find_map(|mut parked| {
            let ended = parked.has_ended();
            counters.pool_stale.add(u64::from(ended));
            (!ended).then_some(parked)
        })?;
        // It was of use.
        pool.failures.set(0);
        Some((taken.opened, taken.slot))
    }

    /// Every keeper looks after its connections.
    pub(super) fn wake_all(&self) {
        for pool in self.list.borrow().iter() {
            pool.wake();
        }
    }

    /// Connections ahead are kept for the backends of `upstreams` that want them, and for no others.
    pub fn keep_for(&self, ring: &Ring, upstreams: &[Arc<Upstream>]) {
        let before = self.list.take();
        let mut list = Vec::new();
        let wanting = upstreams
            .iter()
            .filter(|upstream| upstream.pool.preconnect > 0);
        for (upstream, index) in wanting
            .flat_map(|upstream| (0..upstream.backends.len()).map(move |index| (upstream, index)))
        {
            let backend = &upstream.backends[index];
            let place = (upstream.clone(), index);
            match before.iter().find(|pool| pool.is_of(backend)) {
                Some(pool) => {
                    pool.place.replace(place);
                    list.push(pool.clone());
                }
                None => {
                    let at_work = (self.worker, self.gate.clone());
                    let pool = Rc::new(Pool::new(place, at_work));
                    ring.spawn(keep(ring.clone(), pool.clone()));
                    list.push(pool);
                }
            }
        }
        for pool in before {
            if !list.iter().any(|kept| Rc::ptr_eq(kept, &pool)) {
                pool.closed.set(true);
            }
            pool.wake();
        }
        self.list.replace(list);
    }

    /// Nothing is kept open any more.
    pub fn close(&self) {
        for pool in self.list.take() {
            pool.closed.set(true);
            pool.wake();
        }
    }
}

impl Pool {
    fn new(place: (Arc<Upstream>, usize), at_work: (usize, Rc<Gate>)) -> Self {
        Self {
            place: RefCell::new(place),
            at_work,
            parked: RefCell::default(),
            arrived: RefCell::default(),
            opening: Cell::new(0),
            failures: Cell::new(0),
            rest_until: Cell::new(Instant::default()),
            keeper: RefCell::default(),
            closed: Cell::new(false),
        }
    }

    fn is_of(&self, backend: &Backend) -> bool {
        let (upstream, index) = &*self.place.borrow();
        Arc::ptr_eq(&upstream.backends[*index].state, &backend.state)
    }

    fn backend(&self) -> Arc<Backend> {
        let place = self.place.borrow();
        place.0.backends[place.1].clone()
    }

    fn wake(&self) {
        if let Some(keeper) = &*self.keeper.borrow() {
            keeper.wake();
        }
    }

    /// Takes in what was opened, and lets go of what has ended, is too old or too much.
    fn tend(&self, now: Instant, most: usize) {
        let mut parked = self.parked.borrow_mut();
        for arrived in self.arrived.take() {
            arrived.opened.socket.belongs_to_this_task();
            parked.push_back(arrived);
        }
        if parked
            .iter()
            .any(|parked| now.since(parked.since) >= PROVEN)
        {
            self.failures.set(0);
        }
        let mut stale = 0;
        parked.retain_mut(|parked| {
            let ended = parked.has_ended();
            if ended {
                stale += 1;
            }
            if ended && now.since(parked.since) < PROVEN {
                self.note_failure(now);
            }
            !ended && now < parked.expires
        });
        if stale > 0 {
            let backend = self.backend();
            backend
                .state
                .tallies
                .of(self.at_work.0)
                .pool_stale
                .add(stale);
        }
        parked.truncate(most);
        for parked in parked.iter() {
            let held = parked.held();
            if held < GREETING {
                parked.opened.socket.receive(GREETING - held);
            }
        }
    }

    /// How many connections there are to be at the moment, and when to look again for a reason of which
    /// nobody tells.
    fn wanted(&self, now: Instant) -> (usize, Option<Instant>) {
        let (upstream, index) = &*self.place.borrow();
        let needed_by_others =
            upstream.backends[*index].is_capped() && !upstream.state.line.is_empty();
        match needed_by_others || !upstream.is_ready(*index, now) {
            true => (0, Some(now + RECHECK)),
            false => (upstream.pool.preconnect as usize, None),
        }
    }

    /// Opens what is missing; when to go on.
    fn open_missing(self: &Rc<Self>, ring: &Ring, wanted: usize) -> Option<Instant> {
        let rest_until = self.rest_until.get();
        let there = self.parked.borrow().len() + self.opening.get() as usize;
        let troubled = self.failures.get() > 0;
        // One, until the backend has shown that it keeps it.
        let most = if troubled { 1 } else { wanted };
        for _ in there..wanted.min(most) {
            if ring.now() < rest_until {
                return Some(rest_until);
            }
            let Some(slot) = Slot::take(&self.backend()) else {
                return Some(ring.now() + RECHECK);
            };
            self.opening.set(self.opening.get() + 1);
            ring.spawn(open(ring.clone(), self.clone(), slot));
        }
        (troubled && there > 0).then(|| ring.now() + PROVEN)
    }

    /// A backend that refuses, or closes at once, is left alone for a while. Those that fail together
    /// have failed once.
    fn note_failure(&self, now: Instant) {
        if now < self.rest_until.get() {
            return;
        }
        let failures = self.failures.get();
        let rest = FIRST_REST.saturating_mul(1 << failures.min(16));
        self.failures.set(failures.saturating_add(1));
        self.rest_until.set(now + rest.min(MOST_REST));
    }

    fn next_expiry(&self) -> Option<Instant> {
        self.parked
            .borrow()
            .iter()
            .map(|parked| parked.expires)
            .min()
    }
}

impl Parked {
    /// Takes in what has arrived, where that may be more than a greeting.
    fn has_ended(&mut self) -> bool {
        let Opened { socket, tls, .. } = &mut self.opened;
        let finished = tls.as_mut().is_some_and(|tls| !absorb(socket, tls));
        finished || socket.has_ended()
    }

    /// Bytes that it has said.
    fn held(&self) -> u32 {
        let Opened { socket, tls, .. } = &self.opened;
        let early = tls.as_ref().map_or(0, |tls| tls.early().len());
        socket.held().saturating_add(early as u32)
    }
}

/// The keeper.
async fn keep(ring: Ring, pool: Rc<Pool>) {
    let timer: Timer = ring.timer();
    pool.keeper.replace(Some(ring.waker()));
    poll_fn(|_| {
        if pool.closed.get() {
            pool.tend(ring.now(), 0);
            return Poll::Ready(());
        }
        let (wanted, recheck) = pool.wanted(ring.now());
        pool.tend(ring.now(), wanted);
        let resume = pool.open_missing(&ring, wanted);
        let next = [recheck, resume, pool.next_expiry()];
        match next.into_iter().flatten().min() {
            Some(next) => timer.set(next),
            None => timer.clear(),
        }
        Poll::Pending
    })
    .await;
    pool.keeper.replace(None);
}

/// Opens one connection for the keeper.
async fn open(ring: Ring, pool: Rc<Pool>, slot: Slot) {
    let (upstream, index) = pool.place.borrow().clone();
    let backend = &upstream.backends[index];
    let (worker, gate) = &pool.at_work;
    let opener = Opener::new(&ring, &upstream, backend);
    let opened = opener.ahead((*worker, gate)).await;
    pool.opening.set(pool.opening.get() - 1);
    match opened {
        Ok(_) if pool.closed.get() => {}
        Ok(opened) => {
            let lifetime = upstream.pool.idle_timeout.min(upstream.pool.max_lifetime);
            pool.arrived.borrow_mut().push(Parked {
                opened,
                slot,
                since: ring.now(),
                expires: ring.now() + lifetime,
            });
        }
        Err(error) => {
            let fault = classify(&error).fault();
            backend.state.tallies.of(*worker).fail(fault);
            pool.note_failure(ring.now());
            let events = &upstream.events;
            events.connect_failed(ring.now(), upstream.name(), &backend.name, &error);
        }
    }
    pool.wake();
}
