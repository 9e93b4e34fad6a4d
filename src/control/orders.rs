//! What the operator orders over the control socket: parts of the process drain and come back.

use super::Error;
use super::parts::is_in;
use super::process::Process;
use super::socket::{Command, Drained, Outcome, Part, Reply, Resumed};
use crate::proxy::Message;
use crate::ring;
use crate::upstream::Order;

impl Process {
    /// Does what can be done at once.
    pub(super) fn answer(&mut self, command: Command) -> Reply {
        match command {
            Command::Status => Reply::Done(Outcome::Status(Box::new(self.status()))),
            Command::Plan { file, text } => self.plan(&file, &text),
            Command::Drain { part, deadline } => self.drain_part(part, deadline),
            Command::Resume { part } => self.resume_part(part),
            Command::Reload | Command::Upgrade => Reply::failed("this takes a while"),
        }
    }

    fn drain_part(&mut self, part: Part, deadline: Option<std::time::Duration>) -> Reply {
        if !is_in(&self.config, &part) {
            return Reply::failed(format!(
                "there is no {part}: `ringress status` shows what there is"
            ));
        }
        self.parts.order(&part, deadline);
        self.set_order(&part, Order::Draining);
        if matches!(part, Part::Listener { .. })
            && let Err(error) = self.rebind()
        {
            self.parts.remove(&part);
            return Reply::failed(error);
        }
        let sessions_left = self.sessions_of(&part);
        tracing::info!(%part, sessions_left, ?deadline, "drains by order");
        Reply::Done(Outcome::Drained(Drained {
            part,
            sessions_left,
        }))
    }

    pub(super) fn resume_part(&mut self, part: Part) -> Reply {
        let deadline = self.parts.deadline(&part);
        if !self.parts.remove(&part) {
            return Reply::failed(format!("{part} was not ordered to drain"));
        }
        if matches!(part, Part::Listener { .. })
            && let Err(error) = self.rebind()
        {
            self.parts.order(&part, deadline);
            return Reply::failed(error);
        }
        self.set_order(&part, Order::Enabled);
        tracing::info!(%part, "resumed by order");
        Reply::Done(Outcome::Resumed(Resumed { part }))
    }

    /// Parts that the configuration does not have any more: should they come back, no order holds.
    pub(super) fn forget_unknown_parts(&mut self) {
        for part in self.parts.forget_unknown(&self.config) {
            self.set_order(&part, Order::Enabled);
        }
    }

    /// Deadlines are over.
    pub(super) fn abort_due_parts(&mut self) {
        for part in self.parts.take_due() {
            let sessions = self.sessions_of(&part);
            tracing::warn!(%part, sessions, "its deadline is over: aborting what is left");
            self.set_order(&part, Order::Aborting);
            self.workers.post(|| Message::AbortParts);
        }
    }

    /// Listens where the configuration says, but for what is drained.
    fn rebind(&mut self) -> Result<(), Error> {
        let drained = self.parts.listeners();
        let prepared = self.bindings.prepare(&self.config, &drained)?;
        let snapshot = self.shared.snapshot.load();
        self.bindings.commit(prepared, &snapshot, &self.workers);
        Ok(())
    }

    fn set_order(&self, part: &Part, order: Order) {
        let snapshot = self.shared.snapshot.load();
        match part {
            Part::Listener { listener } => {
                if let Some(listener) = snapshot.listener(listener) {
                    listener.abort(order == Order::Aborting);
                }
            }
            Part::Backend { upstream, backend } => {
                if let Some(upstream) = snapshot.upstream(upstream) {
                    upstream.order(backend, order, ring::now());
                    self.shared.around.bells.ring_all();
                }
            }
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
