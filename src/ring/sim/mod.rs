//! A simulated kernel: a [`World`] with its own clock and a seed, in which whole workers run on a
//! [`SimDriver`] each, in one thread, against simulated clients and backends. The same seed gives
//! the same run, to the byte. It checks the contract of [`crate::ring::Driver`] and what peers hear; what
//! sessions decide is not its business, and it never waits for real time.
//!
//! ```text
//! let world = World::new(seed, Faults::from_seed(seed));
//! let listeners = world.listen(&front, 2);              // one SO_REUSEPORT member per worker
//! world.backend(&back, BackendScript::Echo);
//! for _ in 0..100 {
//!     world.client(Instant::default(), &front, ClientScript::exchange(100 << 10));
//! }
//! let mut workers = listeners.iter().map(|fd| Worker::new(world.driver(), *fd)).collect();
//! loop {
//!     workers.iter_mut().for_each(Worker::turn);         // push, Driver::turn, run sessions
//!     if !world.progressed() && world.advance() == Advance::Quiet {
//!         break;                                         // nothing will ever happen again
//!     }
//! }
//! assert_eq!(world.violations(), [""; 0]);
//! assert!(world.clients().iter().all(|client| client.ending == Ending::Fin));
//! ```
//!
//! Peers say a counted pattern. What goes around it (TLS, a header) is a [`Layer`] of the test's own:
//! [`World::client_with_layer`], [`World::set_layers`].
//!
//! With datagrams it is the same: [`World::listen_datagrams`], [`World::datagram_backend`] and
//! [`World::datagram_client`] say who is there, and afterwards [`World::misdelivered`] says what came to
//! the wrong one, and [`World::traffic`] where all of them went.
//!
//! Descriptors are never used twice, so that every use after close is found. Time moves in
//! [`World::advance`] only; a turn takes none.

mod buffers;
mod datagrams;
mod distance;
mod driver;
mod faults;
mod hosts;
mod kernel;
mod layer;
mod listen;
mod ops;
mod pattern;
mod peers;
mod random;
mod script;
mod tcp;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

pub use self::datagrams::{
    DatagramBackendRecord, DatagramClientRecord, DatagramClientScript, DatagramScript,
    DatagramSession, Traffic,
};
pub use self::driver::SimDriver;
pub use self::faults::Faults;
pub use self::layer::{Layer, Wire};
pub use self::script::{BackendScript, ClientScript, Ending, PeerRecord, Step};

use self::kernel::{Kernel, Object, Signal, Worker};
use super::{Capabilities, Fd};
use crate::address::Address;
use crate::time::Instant;

/// A machine with its network and its peers. Cloning gives another handle to the same one.
#[derive(Clone)]
pub struct World {
    kernel: Rc<RefCell<Kernel>>,
}

/// What [`World::advance`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Advance {
    /// It is now this time, and workers should turn.
    Moved(Instant),
    /// No event is to come and no worker waits with a deadline.
    Quiet,
}

impl World {
    /// An empty world at time 0.
    pub fn new(seed: u64, faults: Faults) -> Self {
        let kernel = Rc::new(RefCell::new(Kernel::new(seed, faults)));
        Self { kernel }
    }

    /// From now on the kernel can do just this (at first: everything).
    pub fn set_capabilities(&self, capabilities: Capabilities) {
        self.kernel.borrow_mut().capabilities = capabilities;
    }

    /// From now on these faults; connections keep their latency.
    pub fn set_faults(&self, faults: Faults) {
        self.kernel.borrow_mut().faults = faults;
    }

    /// The kernel of one more worker.
    pub fn driver(&self) -> SimDriver {
        SimDriver::new(Rc::clone(&self.kernel))
    }

    /// Listens on `address` with so many sockets of one SO_REUSEPORT group, added to those that
    /// are there. The only socket of one call may be used by all drivers; of several, each by one.
    pub fn listen(&self, address: &Address, members: usize) -> Vec<Fd> {
        let mut kernel = self.kernel.borrow_mut();
        let shared = members == 1;
        (0..members)
            .map(|_| kernel.listen(address, shared))
            .collect()
    }

    /// An eventfd, and the hand that signals it.
    pub fn event(&self) -> (Fd, EventHandle) {
        let mut kernel = self.kernel.borrow_mut();
        kernel.signals.push(Signal::default());
        let signal = kernel.signals.len() - 1;
        let fd = kernel.new_fd(Object::Signal(signal), None, false);
        let kernel = Rc::clone(&self.kernel);
        (fd, EventHandle { kernel, signal })
    }

    /// A client that connects to `address` at `start_at`. Returns its index in
    /// [`World::clients`], which is its stream's number too.
    pub fn client(&self, start_at: Instant, address: &Address, script: ClientScript) -> usize {
        let mut kernel = self.kernel.borrow_mut();
        kernel.add_client(start_at.as_nanos(), address.clone(), script) as usize
    }

    /// As [`World::client`], with a layer between the script and the wire.
    pub fn client_with_layer(
        &self,
        start_at: Instant,
        address: &Address,
        script: ClientScript,
        layer: Box<dyn Layer>,
    ) -> usize {
        let stream = self.client(start_at, address, script);
        self.kernel.borrow_mut().speak_by(stream as u64, layer);
        stream
    }

    /// Connections to a backend from now on have a layer each between the script and the wire.
    pub fn set_layers(&self, backend: &Address, make: impl Fn() -> Box<dyn Layer> + 'static) {
        let mut kernel = self.kernel.borrow_mut();
        kernel.layers.insert(backend.clone(), Rc::new(make));
    }

    /// As [`World::client`], but it says `opening` before its stream's number, such as a ClientHello. The
    /// steps' bytes count it. Backends have to know of it: [`World::expect_opening`].
    pub fn client_with_opening(
        &self,
        start_at: Instant,
        address: &Address,
        script: ClientScript,
        opening: &[u8],
    ) -> usize {
        let stream = self.client(start_at, address, script);
        let mut kernel = self.kernel.borrow_mut();
        kernel.open_with(stream as u64, opening.into());
        stream
    }

    /// Connections to a backend from now on begin with `opening`, before the stream's number.
    pub fn expect_opening(&self, backend: &Address, opening: &[u8]) {
        let mut kernel = self.kernel.borrow_mut();
        kernel.expect_opening(backend, opening.into());
    }

    /// What connections to `address` meet from now on; those that are there keep their script.
    /// Also brings a backend back that was killed.
    pub fn backend(&self, address: &Address, script: BackendScript) {
        self.kernel.borrow_mut().set_host(address, script);
    }

    /// Ends the backend's process as a signal does: connections with bytes that it has not read,
    /// or that it has not accepted, are reset; the others get what was sent and then a FIN, and
    /// an RST for whatever they still say. Who connects is refused until [`World::backend`].
    pub fn kill_backend(&self, address: &Address) {
        self.kernel.borrow_mut().kill_host(address);
    }

    /// Connections to the listening or backend `address` that start from now on take exactly
    /// `one_way` (at least 1 ns) for all that goes either way, acknowledgements included, instead
    /// of [`Faults::latency`]. Without a distance acknowledgements take no time. The other faults
    /// come on top. Datagrams to the address, and back from it, do so from now on. Unix sockets have no
    /// distance: nothing changes for them.
    pub fn set_distance(&self, address: &Address, one_way: Duration) {
        self.kernel.borrow_mut().set_distance(address, one_way);
    }

    /// Jumps to the next event or worker's deadline and lets happen what happens then. Stays
    /// where it is while a worker has completions or ops to fetch. To be called when no worker
    /// had anything to do.
    pub fn advance(&self) -> Advance {
        let mut kernel = self.kernel.borrow_mut();
        match kernel.advance() {
            true => Advance::Moved(Instant::from_nanos(kernel.now)),
            false => Advance::Quiet,
        }
    }

    /// Lets time go by while workers have something to do, as what they do takes time on a real machine.
    pub fn pass(&self, time: Duration) {
        self.kernel.borrow_mut().pass(time.as_nanos() as u64);
    }

    /// The time.
    pub fn now(&self) -> Instant {
        Instant::from_nanos(self.kernel.borrow().now)
    }

    /// Whether an op was pushed or a completion returned since the last call.
    pub fn progressed(&self) -> bool {
        std::mem::take(&mut self.kernel.borrow_mut().progressed)
    }

    /// What was done against the contract of the driver, and what peers heard wrong.
    pub fn violations(&self) -> Vec<String> {
        self.kernel.borrow().violations.clone()
    }

    /// The proxy's open descriptors: listeners, connections, events.
    pub fn open_fds(&self) -> Vec<Fd> {
        self.kernel.borrow().descriptors.keys().copied().collect()
    }

    /// Ops whose last completion was not returned yet, of all drivers; without cancels.
    pub fn pending_ops(&self) -> usize {
        let kernel = self.kernel.borrow();
        let workers = kernel.workers.iter();
        workers.map(|worker| worker.in_flight.len()).sum()
    }

    /// Pipes that were ever opened.
    pub fn pipes(&self) -> usize {
        self.kernel.borrow().pipes.len()
    }

    /// For each driver, the buffers of both groups that came back filled and were not provided again.
    pub fn buffers_held(&self) -> Vec<usize> {
        let kernel = self.kernel.borrow();
        let workers = kernel.workers.iter();
        let held = |worker: &Worker| worker.buffers.held() + worker.datagram_buffers.held();
        workers.map(held).collect()
    }

    /// A hash of every completion returned and everything peers heard, with the times.
    pub fn trace_hash(&self) -> u64 {
        self.kernel.borrow().trace
    }

    /// What became of the clients, in the order in which they were added.
    pub fn clients(&self) -> Vec<PeerRecord> {
        let kernel = self.kernel.borrow();
        let clients = kernel.peers.iter().filter(|peer| peer.is_client);
        clients.map(|peer| peer.record.clone()).collect()
    }

    /// The connections that reached a backend, in the order in which they came.
    pub fn backend_sessions(&self, address: &Address) -> Vec<PeerRecord> {
        let kernel = self.kernel.borrow();
        let sessions = kernel.hosts.get(address).map_or(&[][..], |h| &h.sessions);
        let record = |peer: &usize| kernel.peers[*peer].record.clone();
        sessions.iter().map(record).collect()
    }

    /// The most connections that a backend had at once, each from [`PeerRecord::began_at`] to
    /// [`PeerRecord::ended_at`]. Where latencies differ, a SYN overtakes the end of an older
    /// connection, and without a distance a connection counts from its SYN on, though the worker
    /// may have given it up: to prove a cap, give all its backends a [`World::set_distance`].
    pub fn most_connections(&self, address: &Address) -> usize {
        let kernel = self.kernel.borrow();
        kernel.hosts.get(address).map_or(0, |host| host.most_open)
    }

    /// Connects that reached `address`: accepted, refused and unanswered ones, and those that
    /// nobody listened for. A SYN that is sent again, the queue being full, counts once.
    pub fn attempts(&self, address: &Address) -> usize {
        let kernel = self.kernel.borrow();
        kernel.attempts.get(address).copied().unwrap_or(0)
    }
}

/// Signals an event from outside its worker, as a write to an eventfd does.
#[derive(Clone)]
pub struct EventHandle {
    kernel: Rc<RefCell<Kernel>>,
    signal: usize,
}

impl EventHandle {
    /// Adds one to the counter.
    pub fn signal(&self) {
        let mut kernel = self.kernel.borrow_mut();
        let signal = &mut kernel.signals[self.signal];
        signal.count += 1;
        let reader = signal.reader;
        kernel.wake(None, reader);
    }
}
