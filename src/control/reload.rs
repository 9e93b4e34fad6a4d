//! SIGHUP: the file is read again, and what changed of the upstreams takes effect for new
//! connections. A file that is wrong, or that changes what this version can't change while
//! running, changes nothing.

use std::path::Path;
use std::sync::Arc;

use super::events;
use crate::config::{self, Config};
use crate::proxy::{Shared, Snapshot};
use crate::telemetry::log;

/// Reloads `source` and says how that went.
pub(super) async fn reload(current: &mut Config, shared: &Arc<Shared>, source: Option<&Path>) {
    let Some(source) = source else {
        tracing::warn!("reload refused: this process was started without a configuration file");
        return;
    };
    let path = source.to_owned();
    // Reading and resolving names may block.
    let loaded = tokio::task::spawn_blocking(move || config::load(&path)).await;
    let new = match loaded {
        Ok(Ok(new)) => new,
        Ok(Err(diagnostics)) => {
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
            return;
        }
        Err(failed) => {
            tracing::error!("reload refused: {failed}");
            return;
        }
    };
    if let Err(refusals) = config::diff::reload(current, &new) {
        for refusal in refusals {
            tracing::error!("reload refused: {refusal}");
        }
        return;
    }
    apply(current, shared, new);
}

fn apply(current: &mut Config, shared: &Shared, new: Config) {
    let snapshot = Snapshot::new(&new, Some(&shared.snapshot.load()));
    let (generation, upstreams) = (snapshot.generation, snapshot.upstreams.len());
    shared.snapshot.store(Arc::new(snapshot));
    log::set_level(new.log.level);
    events::set_level(&shared.events, new.log.level);
    *current = new;
    tracing::info!(generation, upstreams, "reloaded");
}
