//! What is scraped: the process as numbers. It is rendered beside the control thread, which hands it what
//! nobody else knows.

use std::fmt::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::proxy::Shared;

/// What is rendered, as of one moment.
pub(in crate::control) struct Source {
    /// Everything that workers count.
    pub(super) shared: Arc<Shared>,
    /// Number of the configuration in effect.
    pub(super) generation: u64,
    /// Reloads so far.
    pub(super) reloads: Reloads,
    /// Since the process started.
    pub(super) uptime: Duration,
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
            Self::Histograms => "application/json",
        }
    }
}

/// All of it. Takes as long as it takes: it runs on a thread for that.
pub(super) fn render(source: &Source, format: Format) -> Bytes {
    if format == Format::Histograms {
        return Bytes::from_static(b"{}\n");
    }
    let mut page = Page {
        text: String::new(),
        open: format == Format::OpenMetrics,
        left: source.max_series,
        omitted: 0,
    };
    write_process(&mut page, source);
    write_listeners(&mut page, source);
    write_certificates(&mut page, source);
    let omitted = f64::from(page.omitted);
    page.left = 1;
    page.family(
        "ringress_series_omitted",
        "gauge",
        "Series beyond admin.max_series.",
    );
    page.sample("ringress_series_omitted", &[], omitted);
    if page.open {
        page.text.push_str("# EOF\n");
    }
    page.text.into()
}

/// What is written so far.
struct Page {
    text: String,
    open: bool,
    /// Series that there may still be.
    left: u32,
    omitted: u32,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // OpenMetrics names a counter's family without the suffix that its samples have.
        let name = match self.open {
            true => name.strip_suffix("_total").unwrap_or(name),
            false => name,
        };
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        if self.left == 0 {
            self.omitted += 1;
            return;
        }
        self.left -= 1;
        let labels: Vec<_> = labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
            .collect();
        let labels = match labels.is_empty() {
            true => String::new(),
            false => format!("{{{}}}", labels.join(",")),
        };
        self.line(format_args!("{name}{labels} {value}\n"));
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        // Writing to a string doesn't fail.
        let _ = self.text.write_fmt(line);
    }
}

fn escaped(value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"");
    value.replace('\n', "\\n")
}

fn write_process(page: &mut Page, source: &Source) {
    page.family("ringress_build_info", "gauge", "What runs.");
    let version = env!("CARGO_PKG_VERSION");
    page.sample("ringress_build_info", &[("version", version)], 1.0);
    page.family(
        "ringress_generation",
        "gauge",
        "Number of the configuration in effect.",
    );
    page.sample("ringress_generation", &[], source.generation as f64);
    page.family(
        "ringress_reloads_total",
        "counter",
        "Reloads of this process.",
    );
    let Reloads { done, refused } = source.reloads;
    for (outcome, count) in [("done", done), ("refused", refused)] {
        page.sample(
            "ringress_reloads_total",
            &[("outcome", outcome)],
            count as f64,
        );
    }
    page.family(
        "ringress_uptime_seconds",
        "gauge",
        "Since the process started.",
    );
    page.sample("ringress_uptime_seconds", &[], source.uptime.as_secs_f64());
    let help = "Processes before this one that still have sessions.";
    page.family("ringress_old_processes", "gauge", help);
    page.sample("ringress_old_processes", &[], source.old_processes as f64);
}

fn write_listeners(page: &mut Page, source: &Source) {
    let name = "ringress_listener_accepted_total";
    page.family(name, "counter", "Connections taken in.");
    for listener in &source.shared.snapshot.load().listeners {
        let labels = [("listener", &*listener.name)];
        page.sample(name, &labels, listener.accepted() as f64);
    }
}

fn write_certificates(page: &mut Page, source: &Source) {
    let name = "ringress_certificate_not_after_seconds";
    page.family(name, "gauge", "When it expires, in seconds since 1970.");
    for certificate in &source.certificates {
        let owner = match &certificate.owner {
            Owner::Listener(name) => ("listener", &**name),
            Owner::Upstream(name) => ("upstream", &**name),
        };
        let labels = [owner, ("file", &*certificate.file)];
        page.sample(name, &labels, certificate.not_after as f64);
    }
}
