//! SIGHUP: the file is read again, and what changed of the upstreams takes effect for new
//! connections. A file that is wrong, or that changes what this version can't change while
//! running, changes nothing.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;

use tokio::sync::oneshot;

use super::events;
use crate::config::{self, Config, Diagnostics};
use crate::proxy::Shared;
use crate::telemetry::log;

/// A reload that was asked for: the file is being read on a thread of its own, since reading and
/// resolving names may block for as long as they like without holding up a signal.
#[derive(Default)]
pub(super) struct Reload {
    loading: Option<oneshot::Receiver<Result<Config, Diagnostics>>>,
    /// It was asked for again while the file was being read.
    again: bool,
}

impl Reload {
    /// Begins to read `source`, or to read it again after the present reading.
    pub(super) fn request(&mut self, source: Option<&Path>) {
        let Some(source) = source else {
            tracing::warn!("reload refused: this process was started without a configuration file");
            return;
        };
        if self.loading.is_some() {
            self.again = true;
            return;
        }
        let path = source.to_owned();
        let (sender, receiver) = oneshot::channel();
        // The receiver is gone when the process ends meanwhile.
        let load = move || drop(sender.send(config::load(&path)));
        match thread::Builder::new().name("reload".to_owned()).spawn(load) {
            Ok(_) => self.loading = Some(receiver),
            Err(error) => tracing::error!(%error, "reload refused"),
        }
    }

    /// Waits until the file has been read; for ever when nothing was asked for.
    pub(super) async fn loaded(&mut self) -> Option<Result<Config, Diagnostics>> {
        match &mut self.loading {
            Some(loading) => loading.await.ok(),
            None => std::future::pending().await,
        }
    }

    /// Applies what was read, or says why not; then reads again if that was asked for. True when
    /// another generation has taken effect.
    pub(super) fn finish(
        &mut self,
        loaded: Option<Result<Config, Diagnostics>>,
        current: &mut Config,
        shared: &Shared,
        source: Option<&Path>,
    ) -> bool {
        self.loading = None;
        let applied = match loaded {
            Some(Ok(new)) => accept(current, shared, new),
            Some(Err(diagnostics)) => {
                refuse(&diagnostics);
                false
            }
            None => {
                tracing::error!("reload refused: reading the file failed");
                false
            }
        };
        if std::mem::take(&mut self.again) {
            self.request(source);
        }
        applied
    }
}

fn refuse(diagnostics: &Diagnostics) {
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

fn accept(current: &mut Config, shared: &Shared, new: Config) -> bool {
    if let Err(refusals) = config::diff::reload(current, &new) {
        for refusal in refusals {
            tracing::error!("reload refused: {refusal}");
        }
        return false;
    }
    match super::max_connections(&new, shared.workers()) {
        Ok(max_connections) => apply(current, shared, new, max_connections),
        Err(error) => {
            tracing::error!("reload refused: {error}");
            return false;
        }
    }
    true
}

/// Connections ahead take descriptors from sessions, so that `max_connections` may be another.
fn apply(current: &mut Config, shared: &Shared, new: Config, max_connections: usize) {
    let snapshot = shared.reload(&new);
    shared
        .max_connections
        .store(max_connections, Ordering::Relaxed);
    let (generation, upstreams) = (snapshot.generation, snapshot.upstreams.len());
    log::set_level(new.log.level);
    events::set_level(&shared.around.events, new.log.level);
    *current = new;
    tracing::info!(generation, upstreams, max_connections, "reloaded");
}
