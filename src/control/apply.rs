//! What a process makes of a configuration that was read again: all of it takes effect, or none.

use std::sync::atomic::Ordering;
use std::thread;

use super::process::Process;
use super::reload::{Answer, Read};
use super::socket::{Outcome, Planned, ReloadReport, Reloaded, Reply};
use super::{Error, access_log, certificates, health, max_connections, with_max_sessions};
use crate::config::diff::{self, Change};
use crate::config::{self, Diagnostics, KeepingResolver};
use crate::proxy::Message;
use crate::telemetry::calendar::unix_ms;
use crate::telemetry::log;

/// Why a reload is refused: what is logged, line by line, and what whoever asked is told.
struct Refusal(Vec<String>);

impl Process {
    /// Reads the configuration again.
    pub(super) fn request_reload(&mut self, answer: Option<Answer>) {
        let refused = match &self.source {
            None => "this process was started without a configuration file",
            Some(_) if self.succession.is_under_way() => "an upgrade is under way",
            Some(source) => {
                self.notifier.reloading();
                return self.reload.request(source, &self.config, answer);
            }
        };
        tracing::warn!("reload refused: {refused}");
        // The service manager waits for the end of a reload, whatever it was.
        self.notifier.reloading();
        self.notifier.ready(&self.summary());
        if let Some(answer) = answer {
            let _ = answer.send(Reply::failed(refused));
        }
    }

    /// Applies what was read, or says why not.
    pub(super) fn finish_reload(&mut self) {
        let (loaded, asking) = self.reload.take();
        let outcome = match loaded {
            Some(Ok(read)) => self.apply(*read),
            Some(Err(diagnostics)) => {
                log_findings(&diagnostics);
                Err(Refusal(vec![diagnostics.to_string()]))
            }
            None => Err(Refusal::told("reading the file failed")),
        };
        let reply = self.note_reload(outcome);
        for answer in asking {
            let _ = answer.send(reply.clone());
        }
        self.certificates.follow(&self.config);
        if let Some(source) = &self.source {
            self.reload.go_on(source, &self.config);
        }
        self.notifier.ready(&self.summary());
    }

    /// Forgets what was asked for: the process is about to end.
    pub(super) fn give_up_reload(&mut self) {
        if self.reload.is_under_way() {
            tracing::warn!("reload given up: this process is to end");
        }
        // Whoever asked is told by the lack of an answer.
        self.reload = Default::default();
    }

    /// Keeps the outcome for those who ask later.
    fn note_reload(&mut self, outcome: Result<Vec<Change>, Refusal>) -> Reply {
        let generation = self.shared.snapshot.load().generation;
        let mut report = ReloadReport {
            at_unix_ms: unix_ms(),
            ok: outcome.is_ok(),
            generation,
            ..ReloadReport::default()
        };
        let reply = match outcome {
            Ok(changes) => {
                self.reloads.done += 1;
                report.changes.clone_from(&changes);
                Reply::Done(Outcome::Reloaded(Reloaded {
                    generation,
                    changes,
                }))
            }
            Err(Refusal(lines)) => {
                self.reloads.refused += 1;
                let error = lines.join("\n");
                report.error = Some(error.clone());
                Reply::Failed { error }
            }
        };
        self.last_reload = Some(report);
        reply
    }

    /// Goes on with another configuration. Whatever can fail comes first, and leaves nothing behind.
    fn apply(&mut self, read: Read) -> Result<Vec<Change>, Refusal> {
        let Read { config: new, kept } = read;
        let changes = diff::between(&self.config, &new);
        let refused: Vec<_> = diff::needs_upgrade(&changes)
            .map(|change| format!("{change}: `ringress upgrade` can do it"))
            .collect();
        if !refused.is_empty() {
            return Err(Refusal::logged(refused));
        }
        let refused = |error: Error| Refusal::told(&error.to_string());
        let most = max_connections(&new, self.shared.workers()).map_err(refused)?;
        let limited = with_max_sessions(&new, most).map_err(refused)?;
        let drained = self.parts.listeners();
        let log = access_log::Settings::of(&new);
        let log = access_log::prepare(log).map_err(refused)?;
        let prepared = self.bindings.prepare(&new, &drained).map_err(refused)?;
        let admin = self.admin.prepare(&new.admin).map_err(Error::Admin);
        let admin = admin.map_err(refused)?;
        for change in &changes {
            tracing::info!("change: {change}");
        }
        kept.iter().for_each(certificates::log_wrong);
        self.certificates.told(&kept);
        certificates::warn_of_unverified(&new);
        let snapshot = self.shared.reload(&limited);
        self.shared.max_connections.store(most, Ordering::Relaxed);
        self.bindings.commit(prepared, &snapshot, &self.workers);
        self.workers.post(|| Message::Reloaded);
        self.probers.reconcile(health::targets(&new, &self.shared));
        self.admin.commit(admin, &new.admin);
        log::change(&new.log);
        self.ordered_level = None;
        self.access_log.change(&self.shared.around.events, log);
        self.config = new;
        self.enforce_parts();
        tracing::info!(
            generation = snapshot.generation,
            upstreams = snapshot.upstreams.len(),
            max_connections = most,
            "reloaded"
        );
        Ok(changes)
    }

    /// Tells what a reload with this text would change, from a thread of its own: resolving names may
    /// block.
    pub(super) fn plan(&self, file: String, text: String, answer: Answer) {
        let present = self.config.clone();
        let plan = move || {
            let mut resolver = KeepingResolver::new(&present);
            let reply = match config::parse(&text, &file, &mut resolver) {
                Ok(new) => {
                    let changes = diff::between(&present, &new);
                    Reply::Done(Outcome::Planned(Planned { changes }))
                }
                Err(diagnostics) => Reply::failed(diagnostics),
            };
            // Whoever asked may have gone.
            let _ = answer.send(reply);
        };
        let thread = thread::Builder::new().name("plan".to_owned());
        if let Err(error) = thread.spawn(plan) {
            // The answer went with what was to be run: whoever asked hears that it won't come.
            tracing::error!(%error, "no thread to read a configuration");
        }
    }
}

impl Refusal {
    fn told(what: &str) -> Self {
        Self::logged(vec![what.to_owned()])
    }

    fn logged(lines: Vec<String>) -> Self {
        for line in &lines {
            tracing::error!("reload refused: {line}");
        }
        Self(lines)
    }
}

fn log_findings(diagnostics: &Diagnostics) {
    for finding in diagnostics.list() {
        let (line, column) = finding
            .place
            .map_or((0, 0), |place| (place.line, place.column));
        tracing::error!(
            file = diagnostics.file(),
            line,
            column,
            "reload refused: {}",
            finding.message
        );
    }
}
