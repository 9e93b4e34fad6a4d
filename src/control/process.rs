//! The running process as its control thread has it: what it does when it is asked to, and in which
//! order, so that a change takes effect as a whole or not at all.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::bindings::Bindings;
use super::health::{self, Probers};
use super::reload::Reload;
use super::signals::{Asked, Signals};
use super::workers::Workers;
use super::{Error, events, max_connections};
use crate::config::{Config, Diagnostics, diff};
use crate::proxy::{Message, Shared};
use crate::telemetry::log;

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
    /// Listeners that the operator has drained.
    pub(super) drained: BTreeSet<Arc<str>>,
    pub(super) reload: Reload,
}

impl Process {
    /// Serves until it is told to end. Returns the signal's name.
    pub(super) async fn serve(&mut self) -> Result<&'static str, Error> {
        loop {
            tokio::select! {
                asked = self.signals.next() => match asked {
                    Asked::End(name) => return Ok(name),
                    Asked::Reload => self.request_reload(),
                    Asked::Upgrade => {}
                },
                // An address that is being closed may be wanted again.
                () = async { self.reload.loaded().await; self.bindings.closed().await } => {
                    self.finish_reload();
                }
                ended = self.workers.next_end() => {
                    let unasked = Error::Worker("a worker ended by itself".to_owned());
                    return ended.unwrap_or(Ok(())).and(Err(unasked));
                }
            }
        }
    }

    fn request_reload(&mut self) {
        match &self.source {
            Some(source) => self.reload.request(source),
            None => tracing::warn!(
                "reload refused: this process was started without a configuration file"
            ),
        }
    }

    /// Applies what was read, or says why not.
    fn finish_reload(&mut self) {
        let Some(source) = &self.source else {
            return;
        };
        match self.reload.take(source) {
            Some(Ok(new)) => match self.apply(new) {
                Ok(()) => {}
                Err(refusals) => {
                    for refusal in refusals {
                        tracing::error!("reload refused: {refusal}");
                    }
                }
            },
            Some(Err(diagnostics)) => log_diagnostics(&diagnostics),
            None => tracing::error!("reload refused: reading the file failed"),
        }
    }

    /// Goes on with another configuration. Whatever can fail comes first, and leaves nothing behind.
    fn apply(&mut self, new: Config) -> Result<(), Vec<String>> {
        diff::reload(&self.config, &new)?;
        let refused = |error: Error| vec![error.to_string()];
        let most = max_connections(&new, self.shared.workers()).map_err(refused)?;
        let prepared = self
            .bindings
            .prepare(&new, &self.drained)
            .map_err(refused)?;
        let snapshot = self.shared.reload(&new);
        self.shared.max_connections.store(most, Ordering::Relaxed);
        self.bindings.commit(prepared, &snapshot, &self.workers);
        self.workers.post(|| Message::Reloaded);
        self.probers.reconcile(health::targets(&new, &self.shared));
        log::change(new.log);
        events::set_level(&self.shared.around.events, new.log.level);
        self.config = new;
        tracing::info!(
            generation = snapshot.generation,
            upstreams = snapshot.upstreams.len(),
            max_connections = most,
            "reloaded"
        );
        Ok(())
    }

    /// Stops accepting and waits for the sessions, until `drain_timeout` or a second signal.
    pub(super) async fn drain(&mut self, why: &str) -> Result<(), Error> {
        let timeout = self.config.runtime.drain_timeout;
        tracing::info!(
            signal = why,
            sessions = self.shared.active.now(),
            ?timeout,
            "draining"
        );
        self.bindings.drain(&self.workers);
        let mut deadline = std::pin::pin!(tokio::time::sleep(timeout));
        let mut aborted = false;
        loop {
            tokio::select! {
                ended = self.workers.next_end() => match ended {
                    Some(outcome) => outcome?,
                    None => return Ok(()),
                },
                () = &mut deadline => {
                    if aborted {
                        return Err(Error::Worker("sessions did not end".to_owned()));
                    }
                    aborted = true;
                    self.abort("drain_timeout is over");
                    deadline.as_mut().reset(tokio::time::Instant::now() + ABORT_TIMEOUT);
                }
                asked = self.signals.next() => match asked {
                    Asked::End(name) if !aborted => {
                        aborted = true;
                        self.abort(name);
                        deadline.as_mut().reset(tokio::time::Instant::now() + ABORT_TIMEOUT);
                    }
                    Asked::End(_) => {}
                    Asked::Reload => tracing::warn!("reload refused: the process is draining"),
                    Asked::Upgrade => tracing::warn!("upgrade refused: the process is draining"),
                },
            }
        }
    }

    fn abort(&self, why: &str) {
        tracing::warn!(
            sessions = self.shared.active.now(),
            why,
            "aborting what is left"
        );
        self.workers.post(|| Message::Abort);
    }
}

/// How long workers may take to abort their sessions: they need a turn or two.
const ABORT_TIMEOUT: Duration = Duration::from_secs(2);

fn log_diagnostics(diagnostics: &Diagnostics) {
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
