//! From nothing, or from what another process hands over, to a process that serves. Everything that can
//! fail comes before the first connection is accepted.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use serde_json::Value;

use super::access_log::{self, AccessLog};
use super::activation;
use super::admin::{self, Admin, Bound, Reloads};
use super::bindings::{Bindings, Prepared};
use super::certificates::{self, Certificates, Material};
use super::health::{self, Probers};
use super::notify::Notifier;
use super::parts::Parts;
use super::privileges::{self, Identity};
use super::process::Process;
use super::pulse::Pulses;
use super::reload::Reload;
use super::signals::Signals;
use super::socket::path::{Folders, Place};
use super::socket::server::{Options, Server};
use super::socket::{Part, ProcessState, make_folder};
use super::sockets::Inherited;
use super::succession::{Ancestors, State, Succession};
use super::upgrade::sessions::{self, Came};
use super::upgrade::{Committed, Inheritance, Launch, OfferedBinding, Predecessor};
use super::workers::{Plan, Workers};
use super::writing::Writing;
use super::{
    Error, events, max_connections, plan, screen, seed, tell_max_sessions, with_max_sessions,
};
use crate::config::{Config, ControlSocket};
use crate::proxy::{Adopted, Message, Shared};
use crate::ring::net::into_fd;
use crate::ring::probe::{self, Feature};
use crate::ring::{self, limits};
use crate::telemetry::events::{Events, Told};

/// What a process begins with.
pub(super) struct Start {
    pub(super) source: Option<PathBuf>,
    seed: u64,
    inherited: Vec<Inherited>,
    /// Where the process that hands over listens to operators.
    admin: Option<Bound>,
    drained: Vec<Arc<str>>,
    /// The control socket of the process that hands over.
    control_socket: Option<PathBuf>,
    /// By which sessions of datagrams will come.
    sessions: Option<OwnedFd>,
}

/// A process that has what it needs, and does nothing yet.
pub(super) struct Ready {
    config: Config,
    /// The same, with caps of sessions that hold here.
    limited: Config,
    pub(super) source: Option<PathBuf>,
    seed: u64,
    /// What io_uring has here.
    pub(super) features: Vec<Feature>,
    plan: Plan,
    max_connections: usize,
    bindings: Bindings,
    prepared: Prepared,
    admin: Option<Bound>,
    drained: Vec<Arc<str>>,
    control_socket: Option<PathBuf>,
    sessions: Option<OwnedFd>,
}

impl Start {
    /// With nothing.
    pub(super) fn afresh() -> Self {
        Self {
            source: None,
            seed: seed(),
            inherited: Vec::new(),
            admin: None,
            drained: Vec::new(),
            control_socket: None,
            sessions: None,
        }
    }

    /// With what another process hands over.
    pub(super) fn after(inheritance: Inheritance) -> Result<(Self, Option<Predecessor>), Error> {
        let Inheritance {
            offer,
            sockets,
            sessions,
            predecessor,
        } = inheritance;
        let bindings = offer.bindings.iter().zip(sockets).enumerate();
        let inherited = inherit(bindings);
        let drained = offer.drained.iter().map(|name| Arc::from(name.as_str()));
        match inherited {
            Ok((inherited, admin)) => {
                let start = Self {
                    source: None,
                    seed: offer.seed,
                    inherited,
                    admin,
                    drained: drained.collect(),
                    control_socket: offer.control_socket,
                    sessions,
                };
                Ok((start, Some(predecessor)))
            }
            Err(error) => {
                predecessor.refuse(&error.to_string());
                Err(Error::Resources(error))
            }
        }
    }

    /// Binds every address.
    pub(super) fn prepare(self, config: Config) -> Result<Ready, Error> {
        let workers = config
            .runtime
            .workers
            .map_or_else(limits::worker_count, usize::from);
        let max_connections = max_connections(&config, workers)?;
        let limited = with_max_sessions(&config, max_connections)?;
        let plan = plan(&config, workers, max_connections)?;
        let mut inherited = self.inherited;
        let activated = activation::from_environment().map_err(Error::Activation)?;
        let activated = Inherited::activated(activated, &config.listeners);
        inherited.extend(activated.map_err(Error::Activation)?);
        let identity = identity(&config)?;
        let owner = identity.as_ref().map(Identity::ids);
        let awaits_sessions = self.sessions.is_some();
        let mut bindings = Bindings::new(plan.workers, owner, inherited, awaits_sessions);
        let drained = self.drained.iter().cloned().collect();
        let prepared = bindings.prepare(&config, &drained)?;
        let admin = admin::listen(config.admin.listen.as_ref(), self.admin, owner);
        let admin = admin.map_err(Error::Admin)?;
        if let Some(identity) = &identity {
            become_user(identity, &config, self.source.as_deref())?;
        }
        // As the user that it is now, whom io_uring may be forbidden; the control plane's runtime would
        // panic.
        let features = probe::probe().map_err(Error::Ring)?;
        let materials = certificates::materials(&config);
        let named = materials.iter().flat_map(Material::files);
        let read = self.source.as_deref().into_iter().chain(named);
        privileges::can_read(read).map_err(Error::Privileges)?;
        Ok(Ready {
            config,
            limited,
            source: self.source,
            seed: self.seed,
            features,
            plan,
            max_connections,
            bindings,
            prepared,
            admin,
            drained: self.drained,
            control_socket: self.control_socket,
            sessions: self.sessions,
        })
    }
}

/// Sockets of listeners, and the one for operators if there is one.
fn inherit<'a>(
    bindings: impl Iterator<Item = (usize, (&'a OfferedBinding, Vec<OwnedFd>))>,
) -> io::Result<(Vec<Inherited>, Option<Bound>)> {
    let (mut inherited, mut admin) = (Vec::new(), None);
    for (number, (offered, sockets)) in bindings {
        if !offered.admin {
            inherited.push(Inherited::offered(number, offered, sockets)?);
        } else if let Some(socket) = sockets.into_iter().next() {
            admin = Some(Bound::inherited(number, offered, socket)?);
        }
    }
    Ok((inherited, admin))
}

fn identity(config: &Config) -> Result<Option<Identity>, Error> {
    let runtime = &config.runtime;
    let (user, group) = (runtime.user.as_deref(), runtime.group.as_deref());
    Identity::resolve(user, group).map_err(Error::Privileges)
}

/// Stops being root, once everything is there that only root can have.
fn become_user(identity: &Identity, config: &Config, source: Option<&Path>) -> Result<(), Error> {
    if let Some(source) = source
        && config.runtime.control_socket == ControlSocket::Auto
        && let Ok(candidates) = Folders::of_this_process().candidates(source)
        && let Some(first) = candidates.first()
    {
        make_folder(first, identity.ids());
    }
    let binds = config.listeners.iter().flat_map(|listener| &listener.bind);
    let ports = binds.filter_map(|address| Some(address.as_ip()?.port()));
    let keep_bind = privileges::needs_bind_capability(ports.filter(|port| *port > 0));
    privileges::drop_to(identity, keep_bind).map_err(Error::Privileges)?;
    tracing::info!(user = %identity, keep_bind, "not root any more");
    Ok(())
}

impl Ready {
    pub(super) fn plan(&self) -> Plan {
        self.plan
    }

    /// Sessions at once at most.
    pub(super) fn max_connections(&self) -> usize {
        self.max_connections
    }

    /// Starts the workers, takes over from `predecessor`, and serves until it is told to end.
    pub(super) async fn serve(self, predecessor: Option<Predecessor>) -> Result<(), Error> {
        let mut kept = self.prepared.offered.clone();
        kept.extend(self.admin.as_ref().and_then(|admin| admin.offered));
        let (events, told) = Events::new();
        let told = self.begin_to_tell(&events, told);
        let (reporter, access_log) = match told {
            Ok(told) => told,
            Err(error) => return Err(refused(predecessor, error)),
        };
        screen::tell_machine(&self);
        tell_max_sessions(&self.limited);
        let started = Shared::new(
            &self.limited,
            self.plan.workers,
            self.max_connections,
            events,
            self.seed,
        );
        let outcome = match self.start(started, &access_log) {
            Ok(process) => match take_over(predecessor, kept) {
                Ok(taken) => process.live(taken).await,
                Err(error) => Err(error),
            },
            Err(error) => Err(refused(predecessor, error)),
        };
        // Whoever may tell something has let go of the queue, the probers when they are next looked at.
        tokio::task::yield_now().await;
        reporter.finish();
        access_log.finish();
        outcome?;
        tracing::info!("ended");
        Ok(())
    }

    /// Starts the threads that write down what is told.
    fn begin_to_tell(
        &self,
        events: &Arc<Events>,
        told: Told,
    ) -> Result<(Writing, Rc<AccessLog>), Error> {
        let reporter = events::report(told.events, events).map_err(Error::Resources)?;
        let settings = access_log::Settings::of(&self.config);
        let sink = access_log::prepare(settings)?;
        let written = AccessLog::start(told.records, events, sink).map_err(Error::Resources)?;
        Ok((reporter, Rc::new(written)))
    }

    fn start(self, shared: Arc<Shared>, access_log: &Rc<AccessLog>) -> Result<Started, Error> {
        let signals = Signals::new().map_err(Error::Resources)?;
        let workers = Workers::start(self.plan, &shared)?;
        let launch = self.source.as_ref().map(|_| Launch::of_this_process());
        let launch = launch.transpose().map_err(Error::Resources)?;
        let notifier = Notifier::from_environment();
        let watchdog = notifier.interval().map(tokio::time::interval);
        let process = Process {
            admin: Admin::new(self.admin, &self.config.admin),
            config: self.config,
            source: self.source,
            shared,
            workers,
            bindings: self.bindings,
            probers: Probers::default(),
            signals,
            socket: None,
            notifier,
            watchdog,
            pulses: Pulses::new(),
            reload: Reload::default(),
            certificates: Certificates::new(),
            last_reload: None,
            access_log: access_log.clone(),
            ordered_level: None,
            ordered_timeout: None,
            reloads: Reloads::default(),
            parts: Parts::default(),
            aborting_parts: false,
            resuming: Vec::new(),
            succession: Succession::new(launch),
            ancestors: Ancestors::default(),
            state: ProcessState::Serving,
            started: ring::now(),
            started_unix: UNIX_EPOCH.elapsed().unwrap_or_default(),
        };
        let predecessors_socket = self.control_socket;
        let options = Options {
            take_over: predecessors_socket.as_deref(),
        };
        Server::try_out(&process.place(), options).map_err(Error::ControlSocket)?;
        Ok(Started {
            process,
            plan: self.plan,
            max_connections: self.max_connections,
            prepared: self.prepared,
            drained: self.drained,
            predecessors_socket,
            sessions: self.sessions,
        })
    }
}

/// A process with workers that wait for the word to go.
struct Started {
    process: Process,
    plan: Plan,
    max_connections: usize,
    prepared: Prepared,
    drained: Vec<Arc<str>>,
    predecessors_socket: Option<PathBuf>,
    sessions: Option<OwnedFd>,
}

impl Started {
    /// Serves, with what was taken over. From here on the old process does not go on: nothing can fail
    /// that matters, and whoever connects meanwhile waits in an accept queue.
    async fn live(self, taken: Option<Taken>) -> Result<(), Error> {
        let Self {
            mut process,
            plan,
            max_connections,
            prepared,
            drained,
            predecessors_socket,
            sessions,
        } = self;
        let taken = taken.map(|Taken { state, committed }| {
            let known = process.restore(state, &drained);
            (committed, known)
        });
        // Whoever asks once the old process has told that it is over shall find this one.
        process.socket = process.control_socket(predecessors_socket.as_deref());
        if let Some((committed, known)) = taken {
            process.ancestors = serving(committed, known);
        }
        process.admin.open();
        process.workers.go();
        let snapshot = process.shared.snapshot.load_full();
        process
            .bindings
            .commit(prepared, &snapshot, &process.workers);
        if let Some(link) = sessions {
            process.take_sessions(link);
        }
        let targets = health::targets(&process.config, &process.shared);
        process.probers.reconcile(targets);
        process.certificates.follow(&process.config);
        certificates::warn_of_unverified(&process.config);
        screen::tell_upstreams(&process.config, &snapshot, ring::now());
        let socket = process.socket.as_ref().map(|it| it.path().display());
        tracing::info!(
            workers = plan.workers,
            max_connections,
            buffer_memory_per_worker = plan.buffer_memory,
            listeners = process.config.listeners.len(),
            control_socket = %socket.map_or_else(|| "none".to_owned(), |it| it.to_string()),
            "started"
        );
        process.notifier.ready(&process.summary());
        process.run().await
    }
}

impl Process {
    /// Where commands are taken.
    fn place(&self) -> Place {
        match (&self.config.runtime.control_socket, &self.source) {
            (ControlSocket::Path(path), _) => Place::At(path.to_path_buf()),
            (ControlSocket::Auto, Some(source)) => Place::Auto(source.clone()),
            (ControlSocket::Auto, None) | (ControlSocket::Off, _) => Place::Off,
        }
    }

    /// Listens for commands. It was tried out; if it can't be had now, that ends nobody's sessions.
    pub(super) fn control_socket(&self, take_over: Option<&Path>) -> Option<Server> {
        let folders = Folders::of_this_process();
        let bound = Server::bind(&self.place(), &folders, Options { take_over });
        bound.unwrap_or_else(|error| {
            tracing::error!(%error, "no control socket: commands can't reach this process");
            None
        })
    }

    /// Sessions of datagrams go to the workers that receive from their listening sockets.
    fn take_sessions(&self, link: OwnedFd) {
        let (awaiting, workers) = (self.bindings.awaiting(), self.workers.posts());
        let all = workers.clone();
        let came = move |came: Came| {
            let worker = came.socket % workers.len();
            if let Some(binding) = awaiting.get(&came.binding) {
                let sessions = came.sessions.into_iter();
                workers[worker].post(Message::Adopt(Adopted {
                    binding: *binding,
                    socket: came.socket,
                    lost: came.lost,
                    sessions: sessions.map(|(image, fd)| (image, into_fd(fd))).collect(),
                }));
            }
        };
        let end = move || all.iter().for_each(|worker| worker.post(Message::Begin));
        if let Err(error) = sessions::take(link, came, end) {
            tracing::error!(%error, "no thread to take over sessions of datagrams");
        }
    }

    /// Goes on where another process stands, as far as that is known; `drained` listeners are not bound in
    /// any case. Returns what is known of those before it.
    fn restore(&mut self, state: Option<State>, drained: &[Arc<str>]) -> Vec<crate::proxy::Totals> {
        let Some(state) = state else {
            for listener in drained {
                let listener = listener.to_string();
                self.parts.order(&Part::Listener { listener }, None);
            }
            self.enforce_parts();
            return Vec::new();
        };
        self.shared.restore(&state.shared, ring::now());
        self.parts.restore(state.parts);
        self.enforce_parts();
        state.ancestors
    }
}

/// What another process hands over.
struct Taken {
    /// `None` if it can't be told.
    state: Option<State>,
    committed: Committed,
}

/// Tells the old process that this one is ready, and hears what it knows.
fn take_over(predecessor: Option<Predecessor>, kept: Vec<usize>) -> Result<Option<Taken>, Error> {
    let Some(predecessor) = predecessor else {
        return Ok(None);
    };
    let (state, committed) = predecessor.ready(kept).map_err(Error::upgrade)?;
    let state = state.and_then(understood);
    Ok(Some(Taken { state, committed }))
}

/// What can't be read is not known: health is found out again.
fn understood(state: Value) -> Option<State> {
    let understood = serde_json::from_value(state);
    understood
        .inspect_err(|error| {
            tracing::warn!(%error, "the state of the old process can't be read, and is not taken over");
        })
        .ok()
}

/// Tells the old process that this one accepts.
fn serving(committed: Committed, known: Vec<crate::proxy::Totals>) -> Ancestors {
    match committed.serving() {
        Ok(links) => Ancestors::new(links, known),
        Err(error) => {
            tracing::warn!(%error, "the old process can't be heard");
            Ancestors::default()
        }
    }
}

/// Tells the old process, if there is one, why this one can't serve.
fn refused(predecessor: Option<Predecessor>, error: Error) -> Error {
    if let Some(predecessor) = predecessor {
        predecessor.refuse(&error.to_string());
    }
    error
}
