//! What the process tells about itself.

use std::collections::BTreeMap;
use std::process;

use super::certificates::{Material, date, of_listener, of_upstream};
use super::lengths;
use super::process::Process;
use super::pulse::standing;
use super::socket::{
    BackendStatus, CertificateStatus, DatagramStatus, DrainStatus, LatencyStatus, ListenerState,
    ListenerStatus, LogStatus, Status, UpstreamStatus,
};
use crate::config::{Config, LogLevel};
use crate::policy::breaker;
use crate::proxy;
use crate::ring;
use crate::telemetry::counters::Counter;
use crate::telemetry::latency::{BinCounts, Times};
use crate::telemetry::tallies::UpstreamCounters;
use crate::telemetry::{Dropped, Opening, Reason};
use crate::time::{Instant, millis};
use crate::upstream::{Backend, Order, Upstream};

impl Process {
    /// Everything, as of now.
    pub(super) fn status(&self) -> Status {
        let snapshot = self.shared.snapshot.load();
        let source = self.source.as_ref();
        Status {
            pid: process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: millis(ring::now() - self.started),
            configuration: source.map(|source| source.display().to_string()),
            state: self.state,
            generation: snapshot.generation,
            last_reload: self.last_reload.clone(),
            workers: self.shared.workers() as u64,
            worker_restarts: self.workers.restarts(),
            sessions: self.shared.active.now() as u64,
            max_connections: self.shared.most_connections() as u64,
            listeners: snapshot
                .listeners
                .iter()
                .map(|listener| self.listener_status(listener))
                .collect(),
            upstreams: snapshot
                .upstreams
                .iter()
                .map(|it| self.upstream_status(it))
                .collect(),
            draining: self.drain_status(),
            old_processes: self.ancestors.count() as u32,
            log: Some(log(&self.config, self.ordered_level)),
        }
    }

    /// One line for the service manager.
    pub(super) fn summary(&self) -> String {
        let generation = self.shared.snapshot.load().generation;
        match &self.last_reload {
            Some(report) if !report.ok => {
                format!("generation {generation}; the last reload was refused")
            }
            _ => format!("generation {generation}"),
        }
    }

    fn listener_status(&self, listener: &proxy::ListenerState) -> ListenerStatus {
        let addresses = self.bindings.addresses();
        let own = addresses.filter(|(name, _)| **name == listener.name);
        let addresses: Vec<_> = own.map(|(_, address)| address.to_string()).collect();
        let totals = listener.totals();
        let policy = listener.policy.load();
        let closed = Reason::ALL.map(|reason| (reason.as_str(), totals.closed(reason)));
        let dropped = Dropped::ALL.map(|reason| (reason.as_str(), totals.dropped(reason)));
        let opened = Opening::ALL.map(|opening| (opening.as_str(), totals.opened(opening)));
        let mut models = self.config.listeners.iter();
        let model = models.find(|model| model.name == listener.name);
        let datagrams = listener.takes_datagrams(&totals).then(|| DatagramStatus {
            received: totals.datagrams_received,
            sent: totals.datagrams_sent,
            dropped: counted(&dropped),
        });
        ListenerStatus {
            name: listener.name.to_string(),
            state: match addresses.is_empty() {
                true => ListenerState::Drained,
                false => ListenerState::Accepting,
            },
            addresses,
            upstream: policy.upstream.name().to_string(),
            sessions: listener.active.now() as u64,
            accepted: totals.accepted,
            bytes_received: totals.bytes_received,
            bytes_sent: totals.bytes_sent,
            refused: totals.refused(),
            duration: latency(listener.counters.iter().map(|it| &it.duration)),
            closed: counted(&closed),
            opened: counted(&opened),
            certificates: self.certificates_status(model.map_or_else(Vec::new, of_listener)),
            datagrams,
        }
    }

    fn upstream_status(&self, upstream: &Upstream) -> UpstreamStatus {
        let now = ring::now();
        let mut models = self.config.upstreams.iter();
        let model = models.find(|model| model.name == *upstream.name());
        let counters = upstream.counters();
        let total = |of: fn(&UpstreamCounters) -> &Counter| {
            counters.iter().map(|counters| of(counters).value()).sum()
        };
        UpstreamStatus {
            name: upstream.name().to_string(),
            balance: model.map_or_else(String::new, |model| model.balance.name.to_owned()),
            failing_open: upstream.is_failing_open(),
            requests: total(|it| &it.requests),
            retries: total(|it| &it.retries),
            retries_denied: total(|it| &it.retries_denied),
            waiting: upstream.waiting() as u64,
            connect: latency(counters.iter().map(|it| &it.connect)),
            first_byte: latency(counters.iter().map(|it| &it.first_byte)),
            backends: upstream
                .backends()
                .iter()
                .map(|it| backend(it, upstream.is_failing_open(), now))
                .collect(),
            certificates: self.certificates_status(model.map_or_else(Vec::new, of_upstream)),
        }
    }

    fn certificates_status(&self, materials: Vec<Material>) -> Vec<CertificateStatus> {
        let status = |material: &Material| {
            let files = material.files();
            let fault = self.certificates.fault(&files);
            let pair = material.pair();
            let names = pair.into_iter().flat_map(|pair| &pair.names);
            CertificateStatus {
                file: files[0].display().to_string(),
                names: names.map(ToString::to_string).collect(),
                not_after: pair.map(|pair| date(pair.not_after)),
                error: fault.map(ToString::to_string),
            }
        };
        materials.iter().map(status).collect()
    }

    fn drain_status(&self) -> Vec<DrainStatus> {
        let drains = self.parts.list().iter();
        drains
            .map(|drain| DrainStatus {
                part: drain.part.clone(),
                sessions_left: self.sessions_of(&drain.part),
                deadline_in_ms: drain.left().map(millis),
            })
            .collect()
    }
}

/// Those of which there are any.
fn counted(counts: &[(&str, u64)]) -> BTreeMap<String, u64> {
    let some = counts.iter().filter(|(_, count)| *count > 0);
    some.map(|(name, count)| ((*name).to_owned(), *count))
        .collect()
}

fn log(config: &Config, ordered: Option<LogLevel>) -> LogStatus {
    let level = ordered.unwrap_or(config.log.level).as_str();
    LogStatus {
        level: level.to_owned(),
        format: config.log.format.as_str().to_owned(),
        access_log: config.access_log.to_string(),
    }
}

/// Of all workers.
fn latency<'a>(times: impl Iterator<Item = &'a Times>) -> LatencyStatus {
    lengths::latency(&BinCounts::sum(times.map(|times| &times.bins)))
}

/// As the configuration in effect has it: what a reload took away may stand where it stood.
fn backend(backend: &Backend, health_ignored: bool, now: Instant) -> BackendStatus {
    let state = &backend.state;
    let standing = standing::of(backend, health_ignored, now);
    let totals = state.tallies.totals();
    BackendStatus {
        name: backend.name.to_string(),
        address: backend.address.to_string(),
        state: standing.state,
        why: standing.why,
        healthy: state.health.is_healthy(),
        enabled: state.order() == Order::Enabled,
        ejected: backend.ejected_until() > Some(now),
        breaker: standing.breaker,
        weight: u32::from(backend.weight()),
        configured_weight: state
            .ordered_weight()
            .map(|_| u32::from(backend.configured_weight())),
        sessions: state.load.active.now() as u64,
        connections: state.open.now() as u64,
        sessions_total: totals.sessions,
        failed: totals.failed.iter().sum(),
        ejections: state.tallies.ejections.value(),
        breaker_opened: state.tallies.breaker[breaker::Transition::Opened as usize].value(),
        first_byte: lengths::latency(&totals.first_byte),
    }
}
