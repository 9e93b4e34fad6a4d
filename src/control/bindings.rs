//! Addresses that are listened on: from the configuration to sockets of the workers, and from one
//! configuration to the next. Sockets of an address that stays are never touched, whatever becomes of its
//! listener; one that goes is closed by the workers after what its accept queues held was served.
//!
//! ```text
//!   (not bound) ──prepare──▶ bound ──commit──▶ accepting ──commit of another──▶ stopping ──▶ closed
//!                              └─dropped: as if nothing had happened
//! ```

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::Error;
use super::workers::Workers;
use crate::address::Address;
use crate::config::{Config, Listener};
use crate::proxy::{BindingId, Closed, ListenerSocket, Message, Snapshot};
use crate::ring::net::{ListenOptions, into_fd, listen};

/// The bindings of a process.
pub(super) struct Bindings {
    workers: usize,
    list: Vec<Binding>,
    /// Those whose sockets the workers have not closed yet.
    closing: Vec<oneshot::Receiver<()>>,
    next_id: u64,
}

/// An address that is listened on.
struct Binding {
    id: BindingId,
    listener: Arc<str>,
    /// As the configuration has it.
    wanted: Address,
    /// With the port that the kernel chose.
    bound: Address,
    /// One per worker; of a unix socket just one. The workers have descriptors of their own.
    sockets: Vec<OwnedFd>,
    closed: Closed,
    is_closed: oneshot::Receiver<()>,
}

/// What is to become of the bindings; dropped, it was nothing.
pub(super) struct Prepared {
    new: Vec<(Binding, Outgoing)>,
    /// What stays, by its number in the list, and whose it is from now on.
    kept: Vec<(usize, Arc<str>)>,
}

/// What workers get, by worker.
type Outgoing = Vec<(usize, OwnedFd)>;

impl Bindings {
    /// None yet.
    pub(super) fn new(workers: usize) -> Self {
        Self {
            workers,
            list: Vec::new(),
            closing: Vec::new(),
            next_id: 0,
        }
    }

    /// Binds what `config` has and is not bound yet, but for the listeners that are `drained`. Nothing
    /// else happens before [`Bindings::commit`].
    pub(super) fn prepare(
        &mut self,
        config: &Config,
        drained: &BTreeSet<Arc<str>>,
    ) -> Result<Prepared, Error> {
        let mut prepared = Prepared {
            new: Vec::new(),
            kept: Vec::new(),
        };
        let mut listeners = config.listeners.iter();
        while let Some(listener) = listeners.find(|listener| !drained.contains(&listener.name)) {
            for address in &listener.bind {
                match self.find(&prepared, listener, address) {
                    Some(place) => prepared.kept.push((place, listener.name.clone())),
                    None => prepared.new.push(self.bind(listener, address)?),
                }
            }
        }
        Ok(prepared)
    }

    /// The binding that serves this address, unless it is taken already (each port 0 is another).
    fn find(&self, prepared: &Prepared, listener: &Listener, address: &Address) -> Option<usize> {
        let free = |place: usize| !prepared.kept.iter().any(|(kept, _)| *kept == place);
        self.list
            .iter()
            .enumerate()
            .position(|(place, binding)| binding.serves(listener, address) && free(place))
    }

    fn bind(
        &mut self,
        listener: &Listener,
        address: &Address,
    ) -> Result<(Binding, Outgoing), Error> {
        let failed = |error| Error::Bind {
            listener: listener.name.clone(),
            address: address.clone(),
            error,
        };
        let (mut sockets, bound) =
            listen(address, self.workers, &options(listener)).map_err(failed)?;
        if bound.as_ip().is_none() {
            sockets.truncate(1);
        }
        let outgoing = outgoing(&sockets, self.workers).map_err(failed)?;
        let (closed, is_closed) = oneshot::channel::<()>();
        let id = BindingId(self.next_id);
        self.next_id += 1;
        let binding = Binding {
            id,
            listener: listener.name.clone(),
            wanted: address.clone(),
            bound,
            sockets,
            closed: Arc::new(closed),
            is_closed,
        };
        Ok((binding, outgoing))
    }

    /// Accepts on what is new, and stops accepting on what is not in the configuration any more. The
    /// listeners of `snapshot` are those that `prepared` was made for.
    pub(super) fn commit(&mut self, prepared: Prepared, snapshot: &Snapshot, workers: &Workers) {
        let Prepared { new, kept } = prepared;
        for (place, binding) in std::mem::take(&mut self.list).into_iter().enumerate() {
            match kept.iter().find(|(kept, _)| *kept == place) {
                Some((_, listener)) => self.keep(binding, listener, snapshot, workers),
                None => self.stop(binding, workers),
            }
        }
        for (binding, outgoing) in new {
            binding.open(outgoing, snapshot, workers);
            self.list.push(binding);
        }
    }

    fn keep(
        &mut self,
        mut binding: Binding,
        listener: &Arc<str>,
        snapshot: &Snapshot,
        workers: &Workers,
    ) {
        if binding.listener != *listener {
            binding.listener = listener.clone();
            let state = snapshot.listener(listener).expect("it was prepared for");
            workers.post(|| Message::Assign(binding.id, state.clone()));
        }
        self.list.push(binding);
    }

    fn stop(&mut self, binding: Binding, workers: &Workers) {
        tracing::info!(listener = %binding.listener, address = %binding.bound, "stops listening");
        workers.post(|| Message::Stop(binding.id, Duration::ZERO));
        self.closing.push(binding.is_closed);
    }

    /// Stops accepting on all bindings; the workers end with their last session.
    pub(super) fn drain(&mut self, workers: &Workers) {
        self.list.clear();
        workers.post(|| Message::Drain(Duration::ZERO));
    }

    /// Waits until sockets that were stopped are closed, so that their addresses can be bound again; but
    /// not for ever, as workers without a free descriptor can't serve what is queued.
    pub(super) async fn closed(&mut self) {
        const PATIENCE: Duration = Duration::from_secs(5);
        let _ = tokio::time::timeout(PATIENCE, async {
            while let Some(closing) = self.closing.last_mut() {
                // Nobody sends: the sender goes with the last socket.
                let _ = closing.await;
                self.closing.pop();
            }
        })
        .await;
    }
}

impl Binding {
    /// It is what the configuration means with this address of `listener`.
    fn serves(&self, listener: &Listener, address: &Address) -> bool {
        match address.as_ip() {
            // Every listener has ports of its own that the kernel chose.
            Some(ip) if ip.port() == 0 => self.wanted == *address && self.listener == listener.name,
            _ => self.bound == *address,
        }
    }

    /// Hands the workers their descriptors.
    fn open(&self, outgoing: Outgoing, snapshot: &Snapshot, workers: &Workers) {
        tracing::info!(listener = %self.listener, address = %self.bound, "listening");
        let state = snapshot
            .listener(&self.listener)
            .expect("it was prepared for");
        let shared = self.sockets.len() < outgoing.len();
        for (worker, socket) in outgoing {
            workers.post_to(
                worker,
                Message::Listen(ListenerSocket {
                    binding: self.id,
                    listener: state.clone(),
                    fd: into_fd(socket),
                    shared,
                    closed: self.closed.clone(),
                }),
            );
        }
    }
}

/// Each socket for one worker; a unix socket for all of them.
fn outgoing(sockets: &[OwnedFd], workers: usize) -> io::Result<Outgoing> {
    let count = sockets.len().max(workers);
    let all = sockets.iter().cycle().take(count).enumerate();
    all.map(|(number, socket)| Ok((number % workers, socket.try_clone()?)))
        .collect()
}

fn options(listener: &Listener) -> ListenOptions<'_> {
    ListenOptions {
        backlog: listener.backlog.get(),
        keepalive: listener.tcp_keepalive,
        congestion: listener.congestion.as_deref(),
        ipv6_only: listener.ipv6_only,
        unix_mode: listener.unix_mode,
    }
}
