//! What the control thread makes of what visitors ask. This is where the process is touched, between two
//! other events, like everything else.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::spawn_local;

use super::super::access_log::Settings;
use super::super::certificates::{Material, of_listener, of_upstream};
use super::super::orders::ORDERS_WAIT;
use super::super::parts::is_in;
use super::super::process::Process;
use super::super::socket::{Command, Part, ProcessState, Reply, Request};
use super::ask::{Ask, Order, Ordered, Refusal};
use super::metrics::{Certificate, Owner, Source};
use super::ready;
use crate::config::{Log, LogLevel};
use crate::ring;
use crate::telemetry::log;

impl Process {
    /// Tells or does what a visitor wants. To end is not for here: whoever serves sees to it.
    pub(in crate::control) fn attend(&mut self, ask: Ask) {
        // Whoever asked may have gone.
        match ask {
            Ask::Status(answer) => drop(answer.send(Box::new(self.status()))),
            Ask::Readiness(answer) => drop(answer.send(self.readiness())),
            Ask::Config(answer) => drop(answer.send(Box::new(self.config.clone()))),
            Ask::Source(answer) => drop(answer.send(self.metrics_source())),
            Ask::LookOn { cut, answer } => drop(answer.send(self.look_on(cut))),
            Ask::End { answer, .. } => drop(answer.send(Err(Refusal::Ending))),
            Ask::Order(order, answer) => self.carry_out_for(order, answer),
        }
    }

    /// The process is to end: `deadline` is how long its sessions may go on, if that was said.
    pub(in crate::control) fn accept_end(
        &mut self,
        deadline: Option<Duration>,
        answer: oneshot::Sender<Ordered>,
    ) {
        self.ordered_timeout = deadline;
        let sessions = self.shared.active.now();
        let _ = answer.send(Ok(json!({ "draining": { "sessions_left": sessions } })));
    }

    /// How long sessions may go on when the process drains.
    pub(in crate::control) fn drain_timeout(&self) -> Duration {
        let configured = self.config.runtime.drain_timeout;
        self.ordered_timeout.unwrap_or(configured)
    }

    fn readiness(&self) -> Vec<String> {
        let snapshot = self.shared.snapshot.load();
        let drained = self.parts.listeners();
        let is_drained = |name: &str| drained.contains(name);
        ready::reasons(
            self.state,
            (&self.config, &snapshot),
            is_drained,
            ring::now(),
        )
    }

    fn metrics_source(&self) -> Source {
        let listeners = self.config.listeners.iter().flat_map(|it| {
            let owner = || Owner::Listener(it.name.clone());
            certificates(of_listener(it), owner)
        });
        let upstreams = self.config.upstreams.iter().flat_map(|it| {
            let owner = || Owner::Upstream(it.name.clone());
            certificates(of_upstream(it), owner)
        });
        Source {
            certificates: listeners.chain(upstreams).collect(),
            shared: self.shared.clone(),
            generation: self.shared.snapshot.load().generation,
            reloads: self.reloads,
            worker_restarts: self.workers.restarts(),
            draining: self.state != ProcessState::Serving,
            uptime: ring::now() - self.started,
            started: self.started_unix,
            old_processes: self.ancestors.count(),
            max_series: self.config.admin.max_series.get(),
        }
    }

    fn carry_out_for(&mut self, order: Order, answer: oneshot::Sender<Ordered>) {
        let refusal = match order.part() {
            _ if self.state != ProcessState::Serving => Some(Refusal::Ending),
            Some(part) if !is_in(&self.config, part) => Some(Refusal::Unknown(part.clone())),
            _ => None,
        };
        if let Some(refusal) = refusal {
            let _ = answer.send(Err(refusal));
            return;
        }
        let command = match order {
            Order::Reload => Command::Reload,
            Order::Drain(part, deadline) => Command::Drain { part, deadline },
            Order::Resume(part) => Command::Resume { part },
            Order::Weight(part, weight) => {
                let _ = answer.send(self.order_weight(&part, weight));
                return;
            }
            Order::LogLevel(level) => {
                let _ = answer.send(Ok(self.set_log_level(level)));
                return;
            }
        };
        let (reply, replied) = oneshot::channel();
        // It may take a while, and others have questions meanwhile.
        spawn_local(async move {
            let _ = answer.send(ordered(replied.await));
        });
        self.obey(Request {
            command,
            answer: reply,
        });
    }

    /// A backend has this weight from now on, until another one is ordered or the configured one.
    fn order_weight(&self, part: &Part, weight: Option<u16>) -> Ordered {
        if self.succession.is_under_way() {
            return Err(Refusal::Because(ORDERS_WAIT.to_owned()));
        }
        let snapshot = self.shared.snapshot.load();
        let found = match part {
            Part::Backend { upstream, backend } => {
                let upstream = snapshot.upstream(upstream);
                upstream.and_then(|it| it.order_weight(backend, weight, ring::now()))
            }
            Part::Listener { .. } => None,
        };
        let Some(backend) = found else {
            return Err(Refusal::Unknown(part.clone()));
        };
        let (weight, configured) = (backend.weight(), backend.configured_weight());
        tracing::info!(%part, weight, configured, "weighs by order");
        Ok(json!({ "weighted": { "part": part, "weight": weight, "configured": configured } }))
    }

    /// Until the next reload.
    fn set_log_level(&mut self, level: LogLevel) -> Value {
        self.ordered_level = Some(level);
        log::change(&Log {
            level,
            ..self.config.log
        });
        let settings = Settings::of(&self.config).at(level);
        let events = &self.shared.around.events;
        self.access_log.show_in_log(events, &settings);
        json!({ "log_level": level.as_str() })
    }
}

fn ordered(replied: Result<Reply, oneshot::error::RecvError>) -> Ordered {
    match replied {
        // Outcomes have no keys that are no text.
        Ok(Reply::Done(outcome)) => Ok(serde_json::to_value(outcome).unwrap_or_default()),
        Ok(Reply::Failed { error }) => Err(Refusal::Because(error)),
        Err(_) => Err(Refusal::Ending),
    }
}

fn certificates(materials: Vec<Material>, owner: impl Fn() -> Owner) -> Vec<Certificate> {
    let pairs = materials.iter().filter_map(Material::pair);
    let certificate = |pair: &Arc<crate::tls::Pair>| Certificate {
        owner: owner(),
        file: pair.certificate.display().to_string(),
        not_after: pair.not_after,
    };
    pairs.map(certificate).collect()
}
