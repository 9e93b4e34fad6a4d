//! Addresses that are listened on: from the configuration to sockets of the workers, and from one
//! configuration to the next. Sockets of an address that stays are never touched, whatever becomes of its
//! listener; one that goes is closed by the workers after what its accept queues held was served.
//!
//! ```text
//!   (not bound) ──prepare──▶ bound ──commit──▶ accepting ──commit of another──▶ stopping ──▶ closed
//!                              └─dropped: as if nothing had happened
//! ```

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use tokio::sync::oneshot;

use super::sockets::{self, Extent, Inherited, Sockets};
use super::stopped::{Closings, IsClosed, Lingering};
use super::upgrade::OfferedBinding;
use super::workers::Workers;
use super::{Error, screen};
use crate::address::Address;
use crate::config::{Config, Listener, SessionKey};
use crate::proxy::{BindingId, Closed, Left, ListenerSocket, Message, Snapshot};
use crate::ring::listen::{self, AdjustError, ListenOptions, Transport};
use crate::ring::net::into_fd;

/// How long a socket that is to be closed goes on accepting while it takes no SYN any more: handshakes that
/// have begun take a round trip to end, and a connection that is established must not be reset.
const GRACE: Duration = Duration::from_millis(100);

/// The bindings of a process.
pub(super) struct Bindings {
    workers: usize,
    /// Who unix sockets and groups of sockets belong to, where the process becomes another user.
    owner: Option<(u32, u32)>,
    list: Vec<Binding>,
    /// Sockets that were there before the process.
    inherited: Vec<Inherited>,
    /// Another process hands the sessions of datagrams over.
    awaits_sessions: bool,
    /// Those whose sockets the workers have not closed yet.
    pub(super) closing: Closings,
    /// Those for datagrams whose sessions live on.
    pub(super) lingering: Lingering,
    next_id: u64,
}

/// An address that is listened on.
pub(super) struct Binding {
    id: BindingId,
    pub(super) listener: Arc<str>,
    /// As the configuration has it.
    wanted: Address,
    /// What the sockets are set to, but for keys that other sockets of the process may differ in.
    options: Options,
    pub(super) sockets: Sockets,
    closed: Closed,
    is_closed: IsClosed,
    /// Its number in the offer of another process, which hands the sessions of its datagrams over.
    offered: Option<usize>,
    /// Another one of this process, which does the same.
    heir_of: Option<BindingId>,
}

/// The keys of a listener that its sockets are made with.
#[derive(Clone, PartialEq, Eq)]
struct Options {
    backlog: u32,
    keepalive: Option<Duration>,
    congestion: Option<Arc<str>>,
    ipv6_only: bool,
    unix_mode: u32,
    transport: Transport,
    /// A client's datagrams go to one worker whatever its port.
    by_source: bool,
}

/// What is to become of the bindings; dropped, it was nothing.
pub(super) struct Prepared {
    new: Vec<New>,
    /// What stays, by its place in the list, and what it is from now on.
    kept: Vec<(usize, Kept)>,
    /// What was set otherwise for it, to be set back.
    adjusted: Vec<Adjusted>,
    /// Places of what was inherited and is used.
    used: Vec<usize>,
    /// Numbers of what another process offered and is used.
    pub(super) offered: Vec<usize>,
}

/// What a binding belongs to.
struct Kept {
    listener: Arc<str>,
    wanted: Address,
}

struct New {
    /// Its place in the configuration.
    order: usize,
    binding: Binding,
    /// What workers get, by worker.
    outgoing: Vec<(usize, OwnedFd)>,
}

/// What a new process is offered, in one order.
#[derive(Default)]
pub(super) struct Offered {
    /// Of what is listened on; there may be more to offer.
    pub(super) ids: Vec<BindingId>,
    pub(super) bindings: Vec<OfferedBinding>,
    /// All those of the first binding, then of the next one.
    pub(super) sockets: Vec<OwnedFd>,
}

/// A socket and what it was set to.
struct Adjusted {
    place: usize,
    socket: OwnedFd,
    before: Options,
    after: Options,
    done: bool,
}

impl Bindings {
    /// None yet. `inherited` are listening sockets that are used where the configuration wants them.
    pub(super) fn new(
        workers: usize,
        owner: Option<(u32, u32)>,
        inherited: Vec<Inherited>,
        awaits_sessions: bool,
    ) -> Self {
        Self {
            awaits_sessions,
            workers,
            owner,
            list: Vec::new(),
            inherited,
            closing: Closings::default(),
            lingering: Lingering::default(),
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
            adjusted: Vec::new(),
            used: Vec::new(),
            offered: Vec::new(),
        };
        let wanted = |listener: &&Listener| !drained.contains(&listener.name);
        let listeners = config.listeners.iter().filter(wanted);
        let pairs = listeners.flat_map(|listener| {
            let binds = listener.bind.iter();
            binds.map(move |address| (listener, address))
        });
        // A port that is named may be one that the kernel had chosen: it is found before another one takes
        // its place.
        let pairs = pairs.enumerate();
        let (any, named): (Vec<_>, Vec<_>) = pairs.partition(|(_, (_, bind))| is_any_port(bind));
        for (order, (listener, address)) in named.into_iter().chain(any) {
            let provided = self.provide(&mut prepared, listener, address);
            let new = provided.map_err(|error| Error::Bind {
                listener: listener.name.clone(),
                address: address.clone(),
                error,
            })?;
            prepared.new.extend(new.map(|new| New { order, ..new }));
        }
        prepared.new.sort_by_key(|new| new.order);
        Ok(prepared)
    }

    /// Sees to it that `listener` can listen on `address`; with something new, unless that is there.
    fn provide(
        &mut self,
        prepared: &mut Prepared,
        listener: &Listener,
        address: &Address,
    ) -> io::Result<Option<New>> {
        let options = Options::of(listener);
        let free = |place: usize| !prepared.kept.iter().any(|(kept, _)| *kept == place);
        let mut places = self.list.iter().enumerate();
        let serving = places.find(|(place, it)| it.serves(listener, address) && free(*place));
        let Some((place, binding)) = serving else {
            if let Some(new) = self.revive(prepared, listener, address)? {
                return Ok(Some(new));
            }
            let (sockets, offered) = self.sockets(prepared, listener, address)?;
            let mut new = self.bind(listener, address, sockets)?;
            new.binding.offered = offered.filter(|_| self.awaits_sessions);
            return Ok(Some(new));
        };
        if binding.options.ipv6_only != options.ipv6_only
            && sockets::is_any_ipv6(&binding.sockets.address)
        {
            // It stays until the new one is there, and is stopped as one that nobody wants.
            let old = binding.id;
            let sockets = Sockets::beside(address, self.workers, &options.as_listen())?;
            let mut new = self.bind(listener, address, sockets)?;
            new.binding.heir_of = Some(old);
            return Ok(Some(new));
        }
        let kept = Kept {
            listener: listener.name.clone(),
            wanted: address.clone(),
        };
        prepared.kept.push((place, kept));
        if binding.options != options {
            prepared.adjust(place, binding, &options)?;
        }
        Ok(None)
    }

    /// The sockets of a binding whose sessions live on, if one is what is wanted now.
    fn revive(
        &mut self,
        prepared: &Prepared,
        listener: &Listener,
        address: &Address,
    ) -> io::Result<Option<New>> {
        let taken = |id: BindingId| {
            let mut new = prepared.new.iter();
            new.any(|new| new.binding.heir_of == Some(id))
        };
        let Some((id, sockets)) = self.lingering.find(listener, address, taken) else {
            return Ok(None);
        };
        let sockets = sockets.duplicate()?;
        let mut new = self.bind(listener, address, sockets)?;
        new.binding.heir_of = Some(id);
        Ok(Some(new))
    }

    /// Sockets for an address that this process does not listen on yet, with their number in what another
    /// process offers if they take its datagrams.
    fn sockets(
        &mut self,
        prepared: &mut Prepared,
        listener: &Listener,
        address: &Address,
    ) -> io::Result<(Sockets, Option<usize>)> {
        let options = Options::of(listener);
        let options = options.as_listen();
        let mut offered = None;
        let mut inherited = self.inherited.iter().enumerate();
        let free = |place: &usize| !prepared.used.contains(place);
        let found = inherited.find(|(place, it)| it.serves(listener, address) && free(place));
        let sockets = match found {
            Some((place, inherited)) => {
                prepared.used.push(place);
                prepared.offered.extend(inherited.number);
                offered = inherited
                    .number
                    .filter(|_| inherited.transport == Transport::Datagrams);
                inherited.sockets(self.workers, &options)?
            }
            None if self.overlaps(address, listener) => {
                Sockets::beside(address, self.workers, &options)?
            }
            None => Sockets::bind(address, self.workers, &options)?,
        };
        if let Some(owner) = self.owner {
            sockets.give_to(owner)?;
        }
        Ok((sockets, offered))
    }

    /// Sockets of this process have a part of the address, so that it can't be asked for alone.
    fn overlaps(&self, address: &Address, listener: &Listener) -> bool {
        let wanted = Extent {
            address,
            both_families: !listener.ipv6_only && sockets::is_any_ipv6(address),
            transport: sockets::transport(listener),
        };
        let own = self.list.iter().map(|binding| binding.sockets.extent());
        let own = own.chain(self.lingering.extents());
        let mut all = own.chain(self.inherited.iter().map(Inherited::extent));
        all.any(|own| own.overlaps(&wanted))
    }

    fn bind(
        &mut self,
        listener: &Listener,
        address: &Address,
        sockets: Sockets,
    ) -> io::Result<New> {
        let outgoing = sockets.for_workers(self.workers)?;
        let (closed, is_closed) = oneshot::channel::<()>();
        self.next_id += 1;
        let binding = Binding {
            id: BindingId(self.next_id),
            listener: listener.name.clone(),
            wanted: address.clone(),
            options: Options::of(listener),
            sockets,
            closed: Arc::new(closed),
            is_closed,
            offered: None,
            heir_of: None,
        };
        Ok(New {
            order: 0,
            binding,
            outgoing,
        })
    }

    /// Accepts on what is new, and stops accepting on what is not in the configuration any more. The
    /// listeners of `snapshot` are those that `prepared` was made for.
    pub(super) fn commit(
        &mut self,
        mut prepared: Prepared,
        snapshot: &Snapshot,
        workers: &Workers,
    ) {
        self.forget_inherited(&prepared.used);
        let new = std::mem::take(&mut prepared.new);
        let mut kept = std::mem::take(&mut prepared.kept);
        for (place, mut binding) in std::mem::take(&mut self.list).into_iter().enumerate() {
            if let Some(options) = prepared.settle(place) {
                binding.options = options;
                binding.steer();
            }
            match kept.iter().position(|(kept, _)| *kept == place) {
                Some(index) => {
                    let (_, kept) = kept.swap_remove(index);
                    self.keep(binding, kept, snapshot, workers);
                }
                None => self.stop(binding, workers),
            }
        }
        screen::tell_listening(new.iter().map(|new| &new.binding));
        for New {
            mut binding,
            outgoing,
            ..
        } in new
        {
            let options = binding.options.as_listen();
            binding.sockets.settle(self.workers, &options);
            binding.steer();
            binding.open(outgoing, snapshot, workers);
            if let Some(old) = binding.heir_of
                && binding.sockets.transport == Transport::Datagrams
            {
                self.lingering.remove(old);
                workers.hand_on(old, binding.id);
            }
            self.list.push(binding);
        }
    }

    /// What is used now is not inherited any more, nor what nobody wanted at the start. Sockets that
    /// somebody else keeps open may be wanted later.
    fn forget_inherited(&mut self, used: &[usize]) {
        let mut place = 0;
        self.inherited.retain(|inherited| {
            place += 1;
            !used.contains(&(place - 1)) && inherited.held
        });
    }

    fn keep(&mut self, mut binding: Binding, kept: Kept, snapshot: &Snapshot, workers: &Workers) {
        let Kept { listener, wanted } = kept;
        binding.wanted = wanted;
        if binding.listener != listener {
            let state = snapshot.listener(&listener).expect("it was prepared for");
            workers.post(|| Message::Assign(binding.id, state.clone()));
            binding.listener = listener;
        }
        self.list.push(binding);
    }

    fn stop(&mut self, binding: Binding, workers: &Workers) {
        let (listener, address) = (&binding.listener, &binding.sockets.address);
        tracing::info!(%listener, %address, "stops listening");
        let grace = binding.refuse_new();
        workers.post(|| Message::Stop(binding.id, grace));
        if binding.sockets.transport == Transport::Datagrams && !binding.sockets.held {
            let (id, sockets) = (binding.id, binding.sockets);
            return self.lingering.push(id, sockets, binding.is_closed);
        }
        self.closing.push(binding.is_closed);
        self.inherited
            .extend(binding.sockets.leave(binding.listener, binding.wanted));
    }

    /// Stops accepting on all bindings; the workers end with their last session.
    pub(super) fn drain(&mut self, workers: &Workers) {
        self.hand_over(&[], None, workers);
    }

    /// The same, while another process goes on with the bindings `kept`: sessions of datagrams go to it.
    pub(super) fn hand_over(
        &mut self,
        kept: &[BindingId],
        sessions: Option<&Sender<Left>>,
        workers: &Workers,
    ) {
        let mut grace = Duration::ZERO;
        for mut binding in std::mem::take(&mut self.list) {
            let leaves = binding.sockets.transport == Transport::Datagrams;
            match kept.contains(&binding.id) {
                true if leaves => {
                    if let Some(to) = sessions {
                        workers.post(|| Message::Leave(binding.id, to.clone()));
                    }
                }
                true => binding.sockets.leave_path(),
                false => grace = grace.max(binding.refuse_new()),
            }
        }
        workers.post(|| Message::Drain(grace));
    }

    /// Who waits for sessions of another process, by its number in the offer.
    pub(super) fn awaiting(&self) -> HashMap<usize, BindingId> {
        let list = self.list.iter();
        list.filter_map(|binding| Some((binding.offered?, binding.id)))
            .collect()
    }

    /// Every address that is listened on, with its listener.
    pub(super) fn addresses(&self) -> impl Iterator<Item = (&Arc<str>, &Address)> {
        let list = self.list.iter();
        list.map(|binding| (&binding.listener, &binding.sockets.address))
    }

    /// What a new process is offered; also sockets that somebody else keeps open and that no listener is
    /// served from.
    pub(super) fn offer(&self) -> io::Result<Offered> {
        let mut offered = Offered::default();
        for binding in &self.list {
            let identity = binding.sockets.identity();
            offered.ids.push(binding.id);
            offered.bindings.push(OfferedBinding {
                listener: binding.listener.to_string(),
                configured: binding.wanted.to_string(),
                address: binding.sockets.address.to_string(),
                sockets: binding.sockets.count(),
                unix: identity.map(|identity| (identity.device, identity.inode)),
                held: binding.sockets.held,
                datagrams: binding.sockets.transport == Transport::Datagrams,
                admin: false,
            });
            for socket in binding.sockets.handles() {
                offered.sockets.push(socket.try_clone()?);
            }
        }
        for inherited in &self.inherited {
            offered.bindings.push(inherited.to_offer());
            for socket in &inherited.sockets {
                offered.sockets.push(socket.try_clone()?);
            }
        }
        Ok(offered)
    }
}

impl Binding {
    /// It is what the configuration means with this address of `listener`.
    fn serves(&self, listener: &Listener, address: &Address) -> bool {
        let same = match address.as_ip() {
            // Every listener has ports of its own that the kernel chose.
            Some(ip) if ip.port() == 0 => self.wanted == *address && self.listener == listener.name,
            _ => self.sockets.address == *address,
        };
        same && self.sockets.transport == sockets::transport(listener)
    }

    /// Hands the workers their descriptors.
    fn open(&self, outgoing: Vec<(usize, OwnedFd)>, snapshot: &Snapshot, workers: &Workers) {
        let state = snapshot
            .listener(&self.listener)
            .expect("it was prepared for");
        let shared = self.sockets.count() < outgoing.len();
        let transport = self.sockets.transport;
        for (number, (worker, socket)) in outgoing.into_iter().enumerate() {
            workers.post_to(
                worker,
                Message::Listen(ListenerSocket {
                    binding: self.id,
                    listener: state.clone(),
                    fd: into_fd(socket),
                    shared,
                    transport,
                    address: self.sockets.address.as_ip(),
                    number,
                    waits: self.offered.is_some() || self.heir_of.is_some(),
                    closed: self.closed.clone(),
                }),
            );
        }
    }

    /// Sees to it that datagrams go to the workers that are meant to have them.
    fn steer(&self) {
        if self.options.transport == Transport::Datagrams {
            self.sockets.steer_by_source(self.options.by_source);
        }
    }

    /// Takes no connection that is begun from now on. Returns how long handshakes may still take.
    fn refuse_new(&self) -> Duration {
        match self.sockets.refuse_new() {
            true => GRACE,
            false => Duration::ZERO,
        }
    }
}

impl Options {
    fn of(listener: &Listener) -> Self {
        Self {
            backlog: listener.backlog.get(),
            keepalive: listener.tcp_keepalive,
            congestion: listener.congestion.clone(),
            ipv6_only: listener.ipv6_only,
            unix_mode: listener.unix_mode,
            transport: sockets::transport(listener),
            by_source: listener
                .protocol
                .udp()
                .is_some_and(|udp| udp.session_key == SessionKey::SourceIp),
        }
    }

    fn as_listen(&self) -> ListenOptions<'_> {
        ListenOptions {
            backlog: self.backlog,
            keepalive: self.keepalive,
            congestion: self.congestion.as_deref(),
            ipv6_only: self.ipv6_only,
            unix_mode: self.unix_mode,
            transport: self.transport,
        }
    }
}

impl Prepared {
    /// Sets the sockets of a binding that stays otherwise.
    fn adjust(&mut self, place: usize, binding: &Binding, options: &Options) -> io::Result<()> {
        for socket in binding.sockets.handles() {
            let socket = socket.try_clone()?;
            let adjusted = Adjusted {
                place,
                socket,
                before: binding.options.clone(),
                after: options.clone(),
                done: false,
            };
            // A part of it may have been set: it is set back with the rest.
            let set = adjusted.set(options);
            self.adjusted.push(adjusted);
            set.map_err(|error| io::Error::other(error.to_string()))?;
        }
        Ok(())
    }

    /// What was set for this binding stays so.
    fn settle(&mut self, place: usize) -> Option<Options> {
        let mut options = None;
        for adjusted in self.adjusted.iter_mut().filter(|it| it.place == place) {
            adjusted.done = true;
            options = Some(adjusted.after.clone());
        }
        options
    }
}

impl Adjusted {
    fn set(&self, options: &Options) -> Result<(), AdjustError> {
        listen::adjust(self.socket.as_fd(), &options.as_listen())
    }
}

impl Drop for Adjusted {
    fn drop(&mut self) {
        if !self.done {
            // It was so before, and can be so again.
            let _ = self.set(&self.before);
        }
    }
}

fn is_any_port(address: &Address) -> bool {
    address.as_ip().is_some_and(|address| address.port() == 0)
}
