//! The running process as its control thread has it, and its life: it serves until it is told to end or
//! has handed over, then drains.
//!
//! ```text
//!   serving ──SIGTERM──▶ delaying ──drain_delay──▶ draining ──no session left──▶ ended
//!      │                    └──second signal──┐       ├──drain_timeout, second signal──▶ aborting ──▶ ended
//!      └──a new process serves────────────────┴──▶────┘
//! ```

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Interval;

use super::Error;
use super::access_log::AccessLog;
use super::admin::{Admin, Ask, Reloads};
use super::bindings::Bindings;
use super::certificates::{Certificates, Found};
use super::health::Probers;
use super::notify::Notifier;
use super::parts::Parts;
use super::pulse::Pulses;
use super::reload::{Answer, Reload};
use super::signals::{Asked, Signals};
use super::socket::{Part, ProcessState, ReloadReport, Request, Server};
use super::succession::{Ancestors, Heir, Outcome, Succession};
use super::workers::Workers;
use crate::config::{Config, LogLevel};
use crate::proxy::{Message, Shared};
use crate::time::Instant;

/// Everything that the control thread owns.
pub(super) struct Process {
    pub(super) config: Config,
    /// The file to read again.
    pub(super) source: Option<PathBuf>,
    pub(super) shared: Arc<Shared>,
    pub(super) workers: Workers,
    pub(super) bindings: Bindings,
    pub(super) probers: Probers,
    pub(super) signals: Signals,
    pub(super) socket: Option<Server>,
    pub(super) admin: Admin,
    pub(super) notifier: Notifier,
    /// When the service manager wants to hear that the process lives.
    pub(super) watchdog: Option<Interval>,
    pub(super) pulses: Pulses,
    pub(super) reload: Reload,
    pub(super) certificates: Certificates,
    pub(super) last_reload: Option<ReloadReport>,
    pub(super) access_log: Rc<AccessLog>,
    /// As ordered until the next reload; `None` = as configured.
    pub(super) ordered_level: Option<LogLevel>,
    /// How long sessions may go on when the process drains, as ordered; `None` = as configured.
    pub(super) ordered_timeout: Option<Duration>,
    pub(super) reloads: Reloads,
    pub(super) parts: Parts,
    /// Workers look at sessions one by one, as those of some parts are to end.
    pub(super) aborting_parts: bool,
    /// Parts that are resumed as soon as what they gave up is closed, and who asked for it.
    pub(super) resuming: Vec<(Part, Answer)>,
    pub(super) succession: Succession,
    pub(super) ancestors: Ancestors,
    pub(super) state: ProcessState,
    pub(super) started: Instant,
    /// The same in the system's time, since 1970.
    pub(super) started_unix: Duration,
}

/// Something that the control thread has to see to.
enum Event {
    Asked(Asked),
    Requested(Request),
    /// Somebody wants something of the admin endpoint.
    Visited(Ask),
    /// Addresses that were given up are closed, and somebody waits for that: a configuration that was
    /// read, or a part that is to be resumed.
    Closed,
    /// The last session of datagrams of a listener that was stopped has ended.
    Emptied,
    /// The deadline of a part that drains is over.
    PartDue,
    /// An upgrade has come to its end.
    Succeeded(Outcome),
    /// An older process has told what it has counted.
    Counted(usize, Option<Value>),
    /// Files of certificates were read again.
    Read(Found),
    /// The service manager wants to hear that the process lives.
    Watched,
    /// It is time for a pulse.
    Due,
    /// A worker has ended; `None` = the last one had before.
    Ended(Option<Result<(), Error>>),
}

/// Why the process stops serving.
enum End {
    Signal(&'static str),
    Succeeded(Box<Heir>),
}

/// When a process that drains aborts its sessions, at the latest at `drain_timeout`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Urgency {
    /// At once.
    Now,
    /// With the next signal.
    NextSignal,
    /// With the one after the next: nobody has sent it any yet, and one may be meant for the new process.
    SecondSignal,
}

impl Process {
    /// Lives. Returns when no session is left.
    pub(super) async fn run(mut self) -> Result<(), Error> {
        let ended = self.live().await;
        if let Some(socket) = self.socket.take() {
            socket.finish().await;
        }
        self.admin.finish().await;
        ended
    }

    async fn live(&mut self) -> Result<(), Error> {
        let end = self.serve().await?;
        self.give_up_reload();
        self.resuming.clear();
        match end {
            End::Signal(name) => {
                self.notify_stopping();
                let hurried = self.delay(name).await?;
                self.bindings.drain(&self.workers);
                let urgency = match hurried {
                    true => Urgency::Now,
                    false => Urgency::NextSignal,
                };
                self.drain(urgency).await
            }
            End::Succeeded(heir) => self.retire(*heir).await,
        }
    }

    /// The next thing to see to. Whatever is dropped here goes on the next time.
    async fn next(&mut self) -> Event {
        let behind_until = self.ancestors.behind_until();
        let requested = async {
            if let Some(until) = behind_until {
                tokio::time::sleep_until(until).await;
            }
            match &mut self.socket {
                Some(socket) => socket.next().await,
                None => std::future::pending().await,
            }
        };
        let visited = async {
            if let Some(until) = behind_until {
                tokio::time::sleep_until(until).await;
            }
            self.admin.next().await
        };
        let renewing = !self.reload.is_under_way() && self.state != ProcessState::Draining;
        // An address that is being closed may be wanted again.
        let closed = async {
            if self.resuming.is_empty() {
                self.reload.loaded().await;
            }
            self.bindings.closing.closed().await;
        };
        let emptied = self.bindings.lingering.emptied();
        let watched = async {
            match &mut self.watchdog {
                Some(interval) => drop(interval.tick().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            asked = self.signals.next() => Event::Asked(asked),
            request = requested => Event::Requested(request),
            ask = visited => Event::Visited(ask),
            () = closed => Event::Closed,
            () = self.parts.due() => Event::PartDue,
            () = emptied => Event::Emptied,
            outcome = self.succession.outcome() => Event::Succeeded(outcome),
            (ancestor, totals) = self.ancestors.next() => Event::Counted(ancestor, totals),
            // A reload that is under way reads the same files, and keeps what was in effect when it began.
            found = self.certificates.next(), if renewing => Event::Read(found),
            () = watched => Event::Watched,
            () = self.pulses.due() => Event::Due,
            ended = self.workers.next_end(), if self.workers.are_running() => Event::Ended(ended),
        }
    }

    /// Until it is told to end, or has handed over.
    async fn serve(&mut self) -> Result<End, Error> {
        loop {
            match self.next().await {
                Event::Asked(Asked::End(name)) => return Ok(self.told_to_end(name).await),
                Event::Visited(Ask::End { deadline, answer }) => {
                    self.accept_end(deadline, answer);
                    return Ok(self.told_to_end("POST /drain").await);
                }
                Event::Asked(Asked::Reload) => self.request_reload(None),
                Event::Asked(Asked::Upgrade) => self.begin_upgrade(None),
                Event::Requested(request) => self.obey(request),
                Event::Closed => {
                    self.resume_waiting();
                    if self.reload.is_loaded() {
                        self.finish_reload();
                    }
                }
                Event::Succeeded(outcome) => {
                    if let Some(heir) = self.end_upgrade(outcome) {
                        return Ok(End::Succeeded(Box::new(heir)));
                    }
                }
                Event::Ended(ended) => {
                    let unasked = Error::Worker("a worker ended by itself".to_owned());
                    return ended.unwrap_or(Ok(())).and(Err(unasked));
                }
                event => self.see_to(event),
            }
        }
    }

    async fn told_to_end(&mut self, by: &'static str) -> End {
        // An upgrade may have come to its end in this very moment.
        let outcome = self.give_up_upgrade().await;
        let heir = outcome.and_then(|outcome| self.end_upgrade(outcome));
        heir.map_or(End::Signal(by), |heir| End::Succeeded(Box::new(heir)))
    }

    /// What is the same in all states.
    fn see_to(&mut self, event: Event) {
        match event {
            Event::PartDue => self.abort_due_parts(),
            Event::Counted(ancestor, totals) => {
                if totals.is_none() {
                    self.workers.post(|| Message::LookAgain);
                }
                self.ancestors.counted(ancestor, totals, &self.shared);
            }
            Event::Read(found) => self.renew_certificates(&found),
            Event::Watched => self.notifier.alive(),
            Event::Due => self.beat(),
            Event::Asked(Asked::Reopen) => self.access_log.reopen(),
            Event::Asked(Asked::Reload) => tracing::warn!("reload refused: {ENDING}"),
            Event::Asked(Asked::Upgrade) => tracing::warn!("upgrade refused: {ENDING}"),
            Event::Requested(request) => self.refuse(request),
            Event::Visited(ask) => self.attend(ask),
            Event::Asked(Asked::End(_))
            | Event::Closed
            | Event::Emptied
            | Event::Succeeded(_)
            | Event::Ended(_) => {}
        }
    }

    /// Accepts for a while still, so that a balancer in front sees that the process is not ready. True if a
    /// second signal has ended that.
    async fn delay(&mut self, name: &str) -> Result<bool, Error> {
        let delay = self.config.runtime.drain_delay;
        if delay.is_zero() {
            return Ok(false);
        }
        tracing::info!(signal = name, ?delay, "not ready any more, still accepting");
        self.state = ProcessState::Delaying;
        let mut over = std::pin::pin!(tokio::time::sleep(delay));
        loop {
            let event = tokio::select! {
                () = &mut over => return Ok(false),
                event = self.next() => event,
            };
            match event {
                Event::Asked(Asked::End(_)) => return Ok(true),
                Event::Ended(ended) => {
                    let unasked = Error::Worker("a worker ended by itself".to_owned());
                    return ended.unwrap_or(Ok(())).and(Err(unasked));
                }
                event => self.see_to(event),
            }
        }
    }

    /// Waits for the sessions, until `drain_timeout` or as urgent as it is. Then for older processes: a
    /// service manager takes its main process's end for the service's, and kills the others.
    async fn drain(&mut self, mut urgency: Urgency) -> Result<(), Error> {
        let patience = self.begin_to_drain(urgency);
        let mut deadline = std::pin::pin!(tokio::time::sleep(patience));
        while self.workers.are_running() || (urgency != Urgency::Now && self.ancestors.count() > 0)
        {
            let event = tokio::select! {
                () = &mut deadline => None,
                event = self.next() => Some(event),
            };
            let why = match event {
                Some(Event::Ended(outcome)) => {
                    outcome.unwrap_or(Ok(()))?;
                    continue;
                }
                Some(Event::Asked(Asked::End(name))) if urgency == Urgency::SecondSignal => {
                    tracing::info!(signal = name, "draining already; another one aborts");
                    urgency = Urgency::NextSignal;
                    continue;
                }
                Some(Event::Asked(Asked::End(name))) => name,
                Some(event) => {
                    self.see_to(event);
                    continue;
                }
                None if !self.workers.are_running() => break,
                None if urgency == Urgency::Now => {
                    return Err(Error::Worker("sessions did not end".to_owned()));
                }
                None => "drain_timeout is over",
            };
            if urgency != Urgency::Now {
                urgency = Urgency::Now;
                self.abort(why);
                let latest = tokio::time::Instant::now() + ABORT_TIMEOUT;
                deadline.as_mut().reset(latest);
            }
        }
        Ok(())
    }

    /// Returns how long sessions may go on.
    fn begin_to_drain(&mut self, urgency: Urgency) -> Duration {
        let timeout = self.drain_timeout();
        let sessions = self.shared.active.now();
        self.state = ProcessState::Draining;
        // One that rests after a panic has a queue to serve.
        self.workers.go();
        tracing::info!(sessions, ?timeout, "draining");
        if urgency == Urgency::Now {
            self.abort("a second signal");
            return ABORT_TIMEOUT;
        }
        timeout
    }

    fn notify_stopping(&self) {
        let delay = self.config.runtime.drain_delay;
        let within = delay + self.drain_timeout() + ABORT_TIMEOUT * 2;
        self.notifier.stopping(within, "draining");
    }

    fn abort(&self, why: &str) {
        let sessions = self.shared.active.now();
        tracing::warn!(sessions, why, "aborting what is left");
        self.workers.post(|| Message::Abort);
        self.workers.go();
    }

    /// A new process serves: this one drains, and tells it what it counts.
    async fn retire(&mut self, heir: Heir) -> Result<(), Error> {
        let Heir {
            mut successor,
            base,
            giver,
            admin_kept,
        } = heir;
        self.admin.hand_over(admin_kept);
        // Its path is the new process's.
        drop(self.socket.take());
        let told = |shared: &Shared| {
            let since = shared.totals().since(&base);
            serde_json::to_value(since).unwrap_or_default()
        };
        let shared = self.shared.clone();
        let ended = {
            let mut tick = tokio::time::interval(COUNTING_INTERVAL);
            let mut draining = std::pin::pin!(self.drain(Urgency::SecondSignal));
            loop {
                tokio::select! {
                    ended = &mut draining => break ended,
                    _ = tick.tick() => {
                        // The new process may have ended, which is no reason to end sessions.
                        let _ = successor.counted(told(&shared));
                    }
                }
            }
        };
        if let Some(giver) = giver {
            // The workers have ended, and nobody leaves anything to it any more.
            let _ = giver.join();
        }
        if let Err(error) = successor.finish(told(&shared), FAREWELL).await {
            tracing::warn!(%error, "the last counts did not reach the new process");
        }
        ended
    }
}

/// Why nothing but ending is to be had.
pub(super) const ENDING: &str = "the process is draining";
/// How long workers may take to abort their sessions: they need a turn or two.
const ABORT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a new process hears what its predecessor counts.
const COUNTING_INTERVAL: Duration = Duration::from_secs(1);
/// How long the last counts may take to reach it.
const FAREWELL: Duration = Duration::from_secs(1);
