//! What the operator orders over the control socket: parts of the process drain and come back.

use std::time::Duration;

use super::parts::is_in;
use super::process::{ENDING, Process};
use super::socket::{Command, Drained, Dumped, Outcome, Part, Reply, Request, Resumed, Wanted};
use super::{Error, moments};
use crate::proxy::Message;
use crate::ring;
use crate::upstream::Order;

/// Why nothing can be ordered for a while.
pub(super) const ORDERS_WAIT: &str = "an upgrade is under way: try again when it has ended";

impl Process {
    /// Does what is asked for. What takes a while is begun, and answered when it has ended.
    pub(super) fn obey(&mut self, Request { command, answer }: Request) {
        let reply = match command {
            Command::Status => self.tell_status(),
            Command::Pulse { news_after } => self.tell_pulse(news_after),
            Command::Drain { part, deadline } => self.drain_part(part, deadline),
            Command::Resume { part } => return self.resuming.push((part, answer)),
            Command::Plan { file, text } => return self.plan(file, text, answer),
            Command::Reload => return self.request_reload(Some(answer)),
            Command::Upgrade => return self.begin_upgrade(Some(answer)),
            Command::Explain(question) => self.explain(&question),
            Command::Dump(wanted) => self.dump(&wanted),
            #[cfg(debug_assertions)]
            Command::Panic { worker, spot } => {
                self.workers.post_to(worker, Message::Panic(spot));
                self.tell_status()
            }
        };
        // Whoever asked may have gone.
        let _ = answer.send(reply);
    }

    /// Answers while the process drains.
    pub(super) fn refuse(&mut self, Request { command, answer }: Request) {
        let reply = match command {
            Command::Status => self.tell_status(),
            Command::Pulse { news_after } => self.tell_pulse(news_after),
            Command::Explain(question) => self.explain(&question),
            Command::Dump(wanted) => self.dump(&wanted),
            #[cfg(debug_assertions)]
            Command::Panic { worker, spot } => {
                self.workers.post_to(worker, Message::Panic(spot));
                self.tell_status()
            }
            _ => Reply::failed(ENDING),
        };
        let _ = answer.send(reply);
    }

    fn tell_status(&self) -> Reply {
        Reply::Done(Outcome::Status(Box::new(self.status())))
    }

    fn dump(&self, wanted: &Wanted) -> Reply {
        match moments::dump(&self.shared, wanted) {
            Ok(noted) => Reply::Done(Outcome::Dumped(Dumped {
                count: noted.moments.len() as u64,
                noted,
            })),
            Err(error) => Reply::failed(error),
        }
    }

    fn drain_part(&mut self, part: Part, deadline: Option<Duration>) -> Reply {
        if let Some(reply) = self.refuses_orders() {
            return reply;
        }
        if !is_in(&self.config, &part) {
            let there_is = "`ringress status` shows what there is";
            return Reply::failed(format!("there is no {part}: {there_is}"));
        }
        let before = self.parts.clone();
        self.parts.order(&part, deadline);
        if let Err(error) = self.carry_out() {
            self.parts = before;
            self.enforce_parts();
            return Reply::failed(error);
        }
        let sessions_left = self.sessions_of(&part);
        let deadline = deadline.map(|it| humantime::format_duration(it).to_string());
        tracing::info!(%part, sessions_left, deadline, "drains by order");
        Reply::Done(Outcome::Drained(Drained {
            part,
            sessions_left,
        }))
    }

    /// The addresses that it may need are closed by now, or won't be.
    fn resume_part(&mut self, part: Part) -> Reply {
        if let Some(reply) = self.refuses_orders() {
            return reply;
        }
        let before = self.parts.clone();
        if !self.parts.remove(&part) {
            return Reply::failed(format!("{part} was not ordered to drain"));
        }
        if let Err(error) = self.carry_out() {
            self.parts = before;
            self.enforce_parts();
            return Reply::failed(error);
        }
        tracing::info!(%part, "resumed by order");
        Reply::Done(Outcome::Resumed(Resumed { part }))
    }

    /// Parts that were to be resumed as soon as their addresses are closed.
    pub(super) fn resume_waiting(&mut self) {
        for (part, answer) in std::mem::take(&mut self.resuming) {
            // Whoever asked may have gone.
            let _ = answer.send(self.resume_part(part));
        }
    }

    /// Another process is about to go on with what is there now.
    fn refuses_orders(&self) -> Option<Reply> {
        let under_way = self.succession.is_under_way();
        under_way.then(|| Reply::failed(ORDERS_WAIT))
    }

    /// Makes so what is ordered.
    fn carry_out(&mut self) -> Result<(), Error> {
        // Before a socket is opened: who is let in then shall stay.
        self.enforce_parts();
        let drained = self.parts.listeners();
        let prepared = self.bindings.prepare(&self.config, &drained)?;
        let snapshot = self.shared.snapshot.load();
        self.bindings.commit(prepared, &snapshot, &self.workers);
        Ok(())
    }

    /// Deadlines are over.
    pub(super) fn abort_due_parts(&mut self) {
        for part in self.parts.take_due() {
            let sessions = self.sessions_of(&part);
            tracing::warn!(%part, sessions, "its deadline is over: aborting what is left");
        }
        self.enforce_parts();
    }

    /// What is ordered holds for whatever has the name now, and for nothing else. State goes by address,
    /// orders go by name: a reload or an upgrade may have parted them.
    pub(super) fn enforce_parts(&mut self) {
        self.parts.forget_unknown(&self.config);
        let snapshot = self.shared.snapshot.load();
        for listener in &snapshot.listeners {
            let part = Part::Listener {
                listener: listener.name.to_string(),
            };
            listener.abort(self.parts.of(&part) == Order::Aborting);
        }
        for upstream in &snapshot.upstreams {
            for backend in upstream.backends() {
                let part = Part::Backend {
                    upstream: upstream.name().to_string(),
                    backend: backend.name.to_string(),
                };
                let order = self.parts.of(&part);
                if backend.state.order() != order {
                    upstream.order(&backend.name, order, ring::now());
                }
            }
        }
        let any = self.parts.any_aborting();
        let before = std::mem::replace(&mut self.aborting_parts, any);
        if any || before {
            self.workers.post(|| Message::AbortParts(any));
        }
    }

    /// Sessions that the part has.
    pub(super) fn sessions_of(&self, part: &Part) -> u64 {
        let snapshot = self.shared.snapshot.load();
        let sessions = match part {
            Part::Listener { listener } => {
                let listener = snapshot.listener(listener);
                listener.map(|listener| listener.active.now())
            }
            Part::Backend { upstream, backend } => {
                let upstream = snapshot.upstream(upstream);
                let mut backends = upstream.into_iter().flat_map(|it| it.backends());
                let backend = backends.find(|it| *it.name == **backend);
                backend.map(|backend| backend.state.load.active.now())
            }
        };
        sessions.unwrap_or_default() as u64
    }
}
