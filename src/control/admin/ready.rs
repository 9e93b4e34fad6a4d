//! Whether the process is ready to be sent clients, and why not.

use std::sync::Arc;

use super::super::socket::ProcessState;
use crate::config::Config;
use crate::policy::health::State;
use crate::proxy::Snapshot;
use crate::time::Instant;
use crate::upstream::Upstream;

/// One line each; none = it is ready. `is_drained` says of a listener that it was ordered not to accept.
pub(super) fn reasons(
    state: ProcessState,
    (config, snapshot): (&Config, &Snapshot),
    is_drained: impl Fn(&str) -> bool,
    now: Instant,
) -> Vec<String> {
    match state {
        ProcessState::Delaying => return vec!["the process is about to drain".to_owned()],
        ProcessState::Draining => return vec!["the process is draining".to_owned()],
        ProcessState::Serving | ProcessState::Unknown => {}
    }
    let mut reasons = Vec::new();
    for (index, model) in config.upstreams.iter().enumerate() {
        let mut listeners = config.listeners.iter().filter(|listener| {
            let mut routes = listener.routes.iter();
            listener.upstream == index || routes.any(|route| route.upstream == index)
        });
        let needed_by = listeners.find(|listener| !is_drained(&listener.name));
        let upstream = snapshot.upstream(&model.name);
        if let (Some(listener), Some(upstream)) = (needed_by, upstream) {
            reasons.extend(reason(upstream, &listener.name, now));
        }
    }
    reasons
}

/// What is wrong with an upstream that `listener` needs.
fn reason(upstream: &Arc<Upstream>, listener: &str, now: Instant) -> Option<String> {
    let name = upstream.name();
    let backends = upstream.backends();
    let undecided = |state: State| state == State::Undecided;
    let unknown = backends
        .iter()
        .filter(|it| undecided(it.state.health.image().state));
    match unknown.count() {
        0 if upstream.has_ready(now) => None,
        0 => Some(format!(
            "upstream \"{name}\" has no ready backend, and listener \"{listener}\" needs it"
        )),
        unknown => Some(format!(
            "upstream \"{name}\": the first probes of {unknown} of {} backends have not ended",
            backends.len()
        )),
    }
}
