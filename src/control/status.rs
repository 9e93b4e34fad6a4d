//! What the process tells about itself.

use std::collections::BTreeMap;
use std::process;

use super::certificates::{Material, date, of_listener, of_upstream};
use super::process::Process;
use super::socket::{
    BackendStatus, BreakerState, CertificateStatus, DatagramStatus, DrainStatus, ListenerState,
    ListenerStatus, Status, UpstreamStatus,
};
use crate::policy::breaker;
use crate::proxy;
use crate::ring;
use crate::telemetry::{Dropped, Opening, Reason};
use crate::upstream::{Backend, BackendImage, Order, Upstream};

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
        let takes_datagrams = policy.udp.is_some() || totals.datagrams_received > 0;
        let datagrams = takes_datagrams.then(|| DatagramStatus {
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
            closed: counted(&closed),
            opened: counted(&opened),
            certificates: self.certificates_status(model.map_or_else(Vec::new, of_listener)),
            datagrams,
        }
    }

    fn upstream_status(&self, upstream: &Upstream) -> UpstreamStatus {
        let known = upstream.image();
        let backends = upstream.backends().iter().zip(&known.backends);
        let mut models = self.config.upstreams.iter();
        let model = models.find(|model| model.name == *upstream.name());
        UpstreamStatus {
            name: upstream.name().to_string(),
            backends: backends.map(|(it, known)| backend(it, known)).collect(),
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

fn backend(backend: &Backend, known: &BackendImage) -> BackendStatus {
    let (state, now) = (&backend.state, ring::now().as_nanos());
    BackendStatus {
        name: backend.name.to_string(),
        address: known.address.clone(),
        healthy: state.health.is_healthy(),
        enabled: known.order == Order::Enabled,
        ejected: known.outlier.ejected_until_nanos > Some(now),
        breaker: match known.breaker.kind {
            breaker::Kind::Closed => BreakerState::Closed,
            breaker::Kind::Open => BreakerState::Open,
            breaker::Kind::HalfOpen => BreakerState::HalfOpen,
        },
        weight: u32::from(backend.weight()),
        configured_weight: state
            .ordered_weight()
            .map(|_| u32::from(backend.configured_weight())),
        sessions: state.load.active.now() as u64,
        connections: state.open.now() as u64,
    }
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
