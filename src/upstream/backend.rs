//! A backend as one generation of the configuration has it, and a session's hold on it.

use std::sync::Arc;
use std::time::Duration;

use super::image::BackendImage;
use super::order::Order;
use super::state::{BackendState, UpstreamState};
use crate::address::Address;
use crate::config;
use crate::policy::breaker::{self, Permit, Transition, Verdict};
use crate::policy::outlier;
use crate::policy::roster::Standing;
use crate::ring::{Ring, Timer};
use crate::telemetry::events::{BackendNews, Events};
use crate::telemetry::tallies::{BackendCounters, UpstreamCounters};
use crate::telemetry::{Names, Reason};
use crate::time::Instant;

/// A failed try counts as an answer that took so long, so that the fastest to refuse is not taken
/// for the fastest.
const FAILURE_LATENCY: Duration = Duration::from_secs(1);

/// One address of an upstream.
#[derive(Debug)]
pub struct Backend {
    /// Its name in logs.
    pub name: Arc<str>,
    /// Where it is.
    pub address: Address,
    /// The number of its name, its upstream's included, in the flight recorder.
    pub number: u32,
    /// Its place in the configuration's list.
    pub(super) index: usize,
    /// The host name that it was written as, if it was.
    pub(super) host: Option<Arc<str>>,
    /// What all workers know of it, over reloads.
    pub state: Arc<BackendState>,
    weight: u16,
    backup: bool,
    most_connections: usize,
    upstream_name: Arc<str>,
    upstream: Arc<UpstreamState>,
    outlier: Option<outlier::Settings>,
    most_ejected: usize,
    breaker: Option<breaker::Settings>,
    measured: bool,
    events: Arc<Events>,
}

/// Why a backend can't be used at the moment.
pub(super) enum Refusal {
    /// It has as many connections as it may have.
    Full,
    /// Its breaker is open, or half-open and busy.
    Broken,
}

impl Backend {
    /// As ordered or else configured, 0..=256.
    pub fn weight(&self) -> u16 {
        self.state.ordered_weight().unwrap_or(self.weight)
    }

    /// As configured, 0..=256.
    pub fn configured_weight(&self) -> u16 {
        self.weight
    }

    pub(super) fn new(
        index: usize,
        model: &config::Backend,
        state: Arc<BackendState>,
        (upstream_model, upstream): (&config::Upstream, &Arc<UpstreamState>),
        (events, names): (&Arc<Events>, &Names),
    ) -> Self {
        let of = upstream_model.backends.len() as u64;
        let outlier = upstream_model.outlier;
        let most_ejected = outlier.map_or(0, |outlier| outlier.max_ejected.of(of));
        Self {
            number: names.number(&format!("{}/{}", upstream_model.name, model.name)),
            index,
            name: model.name.clone(),
            address: model.address.clone(),
            host: model.host.clone(),
            state,
            weight: model.weight,
            backup: model.backup,
            most_connections: model.max_connections.map_or(usize::MAX, usize::from),
            upstream_name: upstream_model.name.clone(),
            upstream: upstream.clone(),
            outlier,
            most_ejected: most_ejected as usize,
            breaker: upstream_model.circuit_breaker,
            measured: upstream_model.balance.needs_latency,
            events: events.clone(),
        }
    }

    /// The name of its upstream.
    pub fn upstream_name(&self) -> &Arc<str> {
        &self.upstream_name
    }

    /// No configuration in effect has it.
    pub fn is_gone(&self) -> bool {
        self.state.is_retired()
    }

    /// Its health checks say so.
    pub fn is_healthy(&self) -> bool {
        self.state.health.is_healthy()
    }

    /// Until when it is ejected, if it is. It may be over already.
    pub fn ejected_until(&self) -> Option<Instant> {
        self.outlier
            .and_then(|_| self.state.outlier.ejected_until())
    }

    /// Until when its breaker is open, if it is. It may be over already, if no session has come since.
    pub fn broken_until(&self) -> Option<Instant> {
        self.breaker.and_then(|_| self.state.breaker.open_until())
    }

    /// Its breaker is half-open.
    pub fn is_half_open(&self) -> bool {
        self.breaker
            .is_some_and(|_| self.state.breaker.is_half_open())
    }

    /// Connections at once at most; `usize::MAX` = it has no cap of its own.
    pub(super) fn most_connections(&self) -> usize {
        self.most_connections
    }

    /// It has a cap of its own.
    pub(super) fn is_capped(&self) -> bool {
        self.most_connections != usize::MAX
    }

    /// What the roster goes by.
    pub(super) fn standing(&self) -> Standing {
        let state = &*self.state;
        let outlier = self.outlier.map(|_| &state.outlier);
        let came_back = outlier.and_then(outlier::Outlier::came_back);
        Standing {
            weight: self.weight(),
            backup: self.backup,
            enabled: state.order() == Order::Enabled,
            healthy: state.health.is_healthy(),
            ejected_until: outlier.and_then(outlier::Outlier::ejected_until),
            open_until: self.breaker.and_then(|_| state.breaker.open_until()),
            came_back: state.health.came_up().max(came_back),
        }
    }

    /// Its breaker would let a session use it. Asked before anything is taken: a place that is taken and
    /// given back wakes those that wait, who would look in vain and do the same, for ever.
    pub(super) fn admits(&self, now: Instant) -> bool {
        let breaker = &self.state.breaker;
        self.breaker
            .is_none_or(|settings| breaker.admits(&settings, now))
    }

    /// An ejection whose time is over ends.
    pub(super) fn release(&self, now: Instant) {
        if self.outlier.is_some() {
            self.state.outlier.release(&self.upstream.ejected, now);
        }
    }

    /// What is known of it.
    pub(super) fn image(&self) -> BackendImage {
        let state = &*self.state;
        BackendImage {
            address: self.address.to_string(),
            order: state.order(),
            weight: state.ordered_weight(),
            health: state.health.image(),
            outlier: state.outlier.image(),
            breaker: state.breaker.image(),
            latency: state.load.latency.image(),
        }
    }

    /// Goes on where `image` stands, as far as its upstream wants it.
    pub(super) fn restore(&self, image: &BackendImage, now: Instant) {
        let state = &*self.state;
        state.set_order(image.order);
        state.set_weight(image.weight);
        state.health.restore(image.health, now);
        if let Some(settings) = &self.outlier {
            let bound = (&self.upstream.ejected, self.most_ejected);
            state.outlier.restore(image.outlier, settings, bound, now);
        }
        if let Some(settings) = &self.breaker {
            state.breaker.restore(image.breaker, settings, now);
        }
        if self.measured {
            state.load.latency.restore(image.latency, now);
        }
    }

    /// What a live session says of it. `ejects`: a failure counts towards ejection, too.
    fn report(&self, permit: Option<Permit>, verdict: Verdict, ejects: bool, now: Instant) {
        let retired = self.state.is_retired();
        if let (Some(settings), Some(permit)) = (&self.breaker, permit) {
            let state = &self.state.breaker;
            // Also for one that is gone: should it come back, it waits for what its permits came to.
            let transition = state.report(settings, permit, verdict, now);
            if let Some(transition) = transition.filter(|_| !retired) {
                self.tell_transition(transition, settings);
            }
        }
        if retired {
            return;
        }
        let Some(settings) = &self.outlier else {
            return;
        };
        match verdict {
            Verdict::Success => self.state.outlier.success(),
            Verdict::Failure if ejects => self.note_failure(settings, now),
            Verdict::Failure | Verdict::Abandoned => {}
        }
    }

    fn note_failure(&self, settings: &outlier::Settings, now: Instant) {
        let ejected = &self.upstream.ejected;
        let outlier = &self.state.outlier;
        if let Some(time) = outlier.failure(settings, ejected, self.most_ejected, now) {
            self.state.tallies.ejections.add();
            self.tell(BackendNews::Ejected(time));
        }
    }

    fn tell_transition(&self, transition: Transition, settings: &breaker::Settings) {
        self.state.tallies.breaker[transition as usize].add();
        self.tell(match transition {
            Transition::Opened => BackendNews::BreakerOpened(settings.open_for),
            Transition::HalfOpened => BackendNews::BreakerHalfOpened,
            Transition::Closed => BackendNews::BreakerClosed,
        });
        if transition == Transition::Closed {
            // Its places were free all along, but not to be had.
            self.upstream.line.note_free();
        }
    }

    fn tell(&self, news: BackendNews) {
        self.upstream.change();
        self.events
            .backend(self.upstream_name.clone(), self.name.clone(), news);
    }
}

/// A connection's place under a backend's cap, for as long as this lives.
pub(super) struct Slot(Arc<Backend>);

impl Slot {
    /// None when the backend is full.
    pub(super) fn take(backend: &Arc<Backend>) -> Option<Self> {
        let free = backend.state.open.enter(backend.most_connections);
        free.then(|| Self(backend.clone()))
    }

    /// The same place, for a session that goes by another generation of the backend.
    fn under(mut self, backend: &Arc<Backend>) -> Self {
        debug_assert!(Arc::ptr_eq(&self.0.state, &backend.state));
        if !Arc::ptr_eq(&self.0, backend) {
            self.0 = backend.clone();
        }
        self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.state.open.leave();
        self.0.upstream.line.note_free();
    }
}

/// A session's hold on a backend: counted as long as this lives. It says what became of the session
/// where somebody wants to know.
pub struct Lease {
    slot: Slot,
    /// The backend has not shown yet whether it is any good.
    watch: Option<Box<Watch>>,
}

/// What a verdict needs.
struct Watch {
    permit: Option<Permit>,
    /// When connecting began.
    begun: Instant,
    connecting: Duration,
    /// When the backend was sent its first byte, or connected if it speaks first.
    asked: Option<Instant>,
    /// Of a session that keeps others waiting: when nothing has gone wrong until then, nothing is.
    trial: Option<Trial>,
}

/// A half-open breaker waits for the verdict of each session that it has admitted, and a client may be
/// silent for as long as it likes.
struct Trial {
    until: Instant,
    timer: Option<Timer>,
}

impl Lease {
    /// Takes a place, or the one that `slot` has, and the breaker's permission.
    pub(super) fn take(
        backend: &Arc<Backend>,
        slot: Option<Slot>,
        now: Instant,
    ) -> Result<Self, Refusal> {
        let slot = slot.map(|slot| slot.under(backend));
        let slot = slot.or_else(|| Slot::take(backend));
        let slot = slot.ok_or(Refusal::Full)?;
        let permit = match &backend.breaker {
            None => None,
            Some(settings) => {
                let permit = backend.state.breaker.admit(settings, now);
                let permit = permit.ok_or(Refusal::Broken)?;
                if let Some(transition) = permit.transition() {
                    backend.tell_transition(transition, settings);
                }
                Some(permit)
            }
        };
        backend.state.load.active.enter(usize::MAX);
        let wanted = permit.is_some() || backend.outlier.is_some() || backend.measured;
        let watch = wanted.then(|| {
            Box::new(Watch {
                permit,
                begun: now,
                connecting: Duration::ZERO,
                asked: None,
                trial: None,
            })
        });
        Ok(Self { slot, watch })
    }

    /// Of a session that another process has begun: counted, whatever the cap.
    pub fn adopt(backend: &Arc<Backend>) -> Self {
        backend.state.open.enter(usize::MAX);
        backend.state.load.active.enter(usize::MAX);
        Self {
            slot: Slot(backend.clone()),
            watch: None,
        }
    }

    /// The backend.
    pub fn backend(&self) -> &Backend {
        &self.slot.0
    }

    /// Where `worker` counts what its sessions meet at the backend.
    pub fn counters(&self, worker: usize) -> &BackendCounters {
        self.backend().state.tallies.of(worker)
    }

    /// The backend has said something, so long after it was asked.
    pub fn answered(&self, worker: usize, after: Duration) {
        self.counters(worker).first_byte.record(after);
        self.upstream_counters(worker).first_byte.record(after);
    }

    /// The session has ended, so long after it began.
    pub fn count_end(&self, worker: usize, reason: Reason, duration: Duration) {
        let counters = self.counters(worker);
        counters.close(reason);
        counters.duration.record(duration);
        self.upstream_counters(worker).duration.record(duration);
    }

    fn upstream_counters(&self, worker: usize) -> &UpstreamCounters {
        self.backend().upstream.counters(worker)
    }

    /// The operator wants the backend's sessions to end.
    pub fn is_aborting(&self) -> bool {
        self.backend().state.order() == Order::Aborting
    }

    /// It was connected to.
    pub(super) fn connected(&mut self, now: Instant) {
        let backend = &self.slot.0;
        let half_open = backend.state.breaker.is_half_open();
        let patience = backend.breaker.filter(|_| half_open);
        if let Some(watch) = &mut self.watch {
            watch.connecting = now - watch.begun;
            watch.trial = patience.map(|settings| Trial {
                until: now + settings.open_for,
                timer: None,
            });
        }
    }

    /// It could not be connected to.
    pub(super) fn connect_failed(mut self, timed_out: bool, now: Instant) {
        self.conclude(Verdict::Failure, !timed_out, now);
    }

    /// Looks whether the backend has said something, while that is of interest; called by the session's
    /// task whenever it is woken. `received` from the client, `sent` to it: bytes so far.
    pub fn look(&mut self, ring: &Ring, received: u64, sent: u64) {
        let now = ring.now();
        let Some(watch) = &mut self.watch else {
            return;
        };
        let proven = match &mut watch.trial {
            Some(trial) if now < trial.until => {
                let timer = trial.timer.get_or_insert_with(|| ring.timer());
                timer.set(trial.until);
                false
            }
            Some(_) => true,
            None => false,
        };
        if sent > 0 || proven {
            self.conclude(Verdict::Success, false, now);
        } else if received > 0 && watch.asked.is_none() {
            watch.asked = Some(now);
        }
    }

    /// It has not been seen yet whether the backend is any good, and that is of interest.
    pub fn is_watched(&self) -> bool {
        self.watch.is_some()
    }

    /// The session has ended.
    pub fn ended(&mut self, reason: Reason, now: Instant) {
        let verdict = match reason {
            Reason::ClientClosed | Reason::BackendClosed | Reason::Answered => Verdict::Success,
            Reason::BackendReset | Reason::BackendLost | Reason::BackendRefused => Verdict::Failure,
            _ => Verdict::Abandoned,
        };
        self.conclude(verdict, true, now);
    }

    fn conclude(&mut self, verdict: Verdict, ejects: bool, now: Instant) {
        let Some(watch) = self.watch.take() else {
            return;
        };
        let backend = self.backend();
        let answered = watch.asked.map_or(watch.connecting, |asked| {
            watch.connecting + now.since(asked)
        });
        if backend.measured {
            let latency = &backend.state.load.latency;
            match verdict {
                Verdict::Success => latency.observe(answered, now),
                Verdict::Failure => latency.observe(answered.max(FAILURE_LATENCY), now),
                Verdict::Abandoned => {}
            }
        }
        backend.report(watch.permit, verdict, ejects, now);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            let begun = watch.begun;
            self.conclude(Verdict::Abandoned, false, begun);
        }
        self.backend().state.load.active.leave();
    }
}
