//! What is scraped: the process as numbers. It is rendered on a thread beside the control thread, which hands
//! it what nobody else knows; what workers count is read where it is counted, and no worker waits for that.
//!
//! | file | owns |
//! |---|---|
//! | `text` | the two text formats, and the cap on series |
//! | `process`, `listeners`, `upstreams`, `backends` | what there is of each |
//! | `usage` | what the process takes of the machine |
//! | `histograms` | the raw histograms |
//!
//! Backends come last, and their histograms at the very end: it is these that a cap cuts.

mod backends;
mod histograms;
mod listeners;
mod process;
mod text;
mod upstreams;
mod usage;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use self::text::Text;
use crate::proxy::{Shared, Snapshot};

/// What is rendered, as of one moment.
pub(in crate::control) struct Source {
    /// Everything that workers count.
    pub(super) shared: Arc<Shared>,
    /// Number of the configuration in effect.
    pub(super) generation: u64,
    /// Reloads so far.
    pub(super) reloads: Reloads,
    /// Workers that have begun again after a panic.
    pub(super) worker_restarts: u64,
    /// Since the process started.
    pub(super) uptime: Duration,
    /// When that was, since 1970.
    pub(super) started: Duration,
    /// It takes no new connections any more, or is about to.
    pub(super) draining: bool,
    /// Processes before this one that still have sessions.
    pub(super) old_processes: usize,
    /// Certificates in use.
    pub(super) certificates: Vec<Certificate>,
    /// `admin.max_series`
    pub(super) max_series: u32,
}

/// Reloads of this process.
#[derive(Clone, Copy, Default, Debug)]
pub(in crate::control) struct Reloads {
    /// Those that took effect.
    pub(in crate::control) done: u64,
    /// Those that were refused.
    pub(in crate::control) refused: u64,
}

/// A certificate with its key.
pub(super) struct Certificate {
    /// Whose it is.
    pub(super) owner: Owner,
    /// The file it was read from.
    pub(super) file: String,
    /// When it expires: seconds since 1970.
    pub(super) not_after: i64,
}

/// Whose certificate it is.
pub(super) enum Owner {
    /// Of the listener of this name.
    Listener(Arc<str>),
    /// Of the upstream of this name.
    Upstream(Arc<str>),
}

/// In which form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Format {
    /// Prometheus text, 0.0.4.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Raw histograms.
    Histograms,
}

impl Format {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Text, Self::OpenMetrics, Self::Histograms];

    /// The header of the answer.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Histograms => "text/plain; charset=utf-8",
        }
    }
}

/// All of it. Takes as long as it takes: it runs on a thread for that.
pub(super) fn render(source: &Source, format: Format) -> Bytes {
    let snapshot = source.shared.snapshot.load_full();
    if format == Format::Histograms {
        return histograms::log(source, &snapshot).into();
    }
    let open = format == Format::OpenMetrics;
    let mut text = Text::new(open, source.max_series);
    write(&mut text, source, &snapshot);
    text.finish().into()
}

fn write(text: &mut Text, source: &Source, snapshot: &Snapshot) {
    process::write(text, source);
    process::write_workers(text, &source.shared);
    listeners::write(text, snapshot);
    process::write_certificates(text, source);
    upstreams::write(text, snapshot);
    backends::write(text, snapshot);
}

#[cfg(test)]
mod tests;
