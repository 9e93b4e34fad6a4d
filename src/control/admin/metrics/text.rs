//! The text formats of Prometheus (0.0.4) and OpenMetrics (1.0.0), from the same calls. No library writes both,
//! nor keeps to a cap on series.
//!
//! <https://prometheus.io/docs/instrumenting/exposition_formats>, <https://prometheus.io/docs/specs/om/open_metrics_spec>

use std::fmt::Write;

use crate::telemetry::latency::{BOUNDS, BUCKETS, BucketCounts};

/// What is written so far.
pub(super) struct Text {
    out: String,
    open: bool,
    /// Series that there may still be.
    left: u32,
    omitted: u64,
    /// Length at which others are let in front.
    breath_at: usize,
    /// Of what comes next.
    family: Family,
    /// It has no sample yet.
    fresh: bool,
}

/// What its samples mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
    /// A gauge that is always 1, for its labels.
    Info,
}

/// A metric's name, kind and meaning.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) help: &'static str,
}

/// Labels as they stand in a line, without braces.
#[derive(Clone, Default, Debug)]
pub(super) struct Labels(String);

impl Labels {
    pub(super) fn of(pairs: &[(&str, &str)]) -> Self {
        let mut text = String::new();
        for (name, value) in pairs {
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(name);
            text.push_str("=\"");
            for character in value.chars() {
                match character {
                    '\\' => text.push_str("\\\\"),
                    '"' => text.push_str("\\\""),
                    '\n' => text.push_str("\\n"),
                    character => text.push(character),
                }
            }
            text.push('"');
        }
        Self(text)
    }
}

/// A label more, whose value needs no escaping.
pub(super) type More<'a> = Option<(&'static str, &'a str)>;

/// A number of a sample.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    Count(u64),
    /// Nanoseconds, written as seconds.
    Nanos(u64),
    Number(f64),
}

impl From<u64> for Value {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<usize> for Value {
    fn from(count: usize) -> Self {
        Self::Count(count as u64)
    }
}

impl From<bool> for Value {
    fn from(yes: bool) -> Self {
        Self::Count(yes.into())
    }
}

/// Bytes after which others are let in front: some 100 µs of writing.
const BREATH: usize = 32 * 1024;

impl Text {
    /// Nothing yet; `most` series.
    pub(super) fn new(open: bool, most: u32) -> Self {
        Self {
            out: String::new(),
            open,
            left: most,
            omitted: 0,
            breath_at: BREATH,
            family: OMITTED,
            fresh: true,
        }
    }

    /// What comes next are samples of this, if any.
    pub(super) fn family(&mut self, family: &Family) {
        (self.family, self.fresh) = (*family, true);
    }

    fn head(&mut self) {
        let Family { name, kind, help } = self.family;
        // OpenMetrics names a family without the suffix that its samples have.
        let (name, kind) = match (self.open, kind) {
            (true, Kind::Counter) => (name.strip_suffix("_total").unwrap_or(name), "counter"),
            (true, Kind::Info) => (name.strip_suffix("_info").unwrap_or(name), "info"),
            (false, Kind::Counter) => (name, "counter"),
            (_, Kind::Gauge | Kind::Info) => (name, "gauge"),
            (_, Kind::Histogram) => (name, "histogram"),
        };
        let unit = ["seconds", "bytes"].into_iter();
        let unit = unit.filter(|unit| name.ends_with(unit)).find(|_| self.open);
        // Writing to a string doesn't fail.
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        if let Some(unit) = unit {
            let _ = writeln!(self.out, "# UNIT {name} {unit}");
        }
    }

    /// The one sample of a family that has one.
    pub(super) fn single(&mut self, family: &Family, value: impl Into<Value>) {
        self.family(family);
        self.sample(&Labels::default(), None, value);
    }

    /// A sample of the family that was begun last.
    pub(super) fn sample(&mut self, labels: &Labels, more: More<'_>, value: impl Into<Value>) {
        if self.takes(1) {
            self.line("", labels, more, value.into());
        }
    }

    /// The samples of a histogram of times, of the family that was begun last.
    pub(super) fn histogram(&mut self, labels: &Labels, counts: &BucketCounts) {
        if !self.takes(BUCKETS as u32 + 2) {
            return;
        }
        let mut sum = 0;
        for (count, bound) in counts.counts.iter().zip(BOUNDS_TEXT) {
            sum += count;
            let more = Some(("le", bound));
            self.line("_bucket", labels, more, Value::Count(sum));
        }
        let seconds = Value::Nanos(counts.sum_nanos);
        self.line("_sum", labels, None, seconds);
        self.line("_count", labels, None, Value::Count(sum));
    }

    /// All of it, with what was left out.
    pub(super) fn finish(mut self) -> String {
        let omitted = std::mem::take(&mut self.omitted);
        self.left = 1;
        self.single(&OMITTED, omitted);
        if self.open {
            self.out.push_str("# EOF\n");
        }
        self.out
    }

    fn takes(&mut self, series: u32) -> bool {
        match self.left.checked_sub(series) {
            // What is smaller shall not slip in after what was too large.
            Some(left) if self.omitted == 0 => self.left = left,
            _ => self.omitted += u64::from(series),
        }
        if self.out.len() >= self.breath_at {
            self.breath_at = self.out.len() + BREATH;
            // Workers have the same cores.
            std::thread::yield_now();
        }
        let takes = self.omitted == 0;
        if takes && std::mem::take(&mut self.fresh) {
            self.head();
        }
        takes
    }

    fn line(&mut self, suffix: &str, labels: &Labels, more: More<'_>, value: Value) {
        let out = &mut self.out;
        out.push_str(self.family.name);
        out.push_str(suffix);
        if !labels.0.is_empty() || more.is_some() {
            out.push('{');
            out.push_str(&labels.0);
            if let Some((name, value)) = more {
                if !labels.0.is_empty() {
                    out.push(',');
                }
                out.push_str(name);
                out.push_str("=\"");
                out.push_str(value);
                out.push('"');
            }
            out.push('}');
        }
        out.push(' ');
        let _ = match value {
            Value::Count(count) => {
                out.push_str(itoa::Buffer::new().format(count));
                Ok(())
            }
            Value::Nanos(nanos) => {
                let (seconds, rest) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
                write!(out, "{seconds}.{rest:09}")
            }
            Value::Number(number) => write!(out, "{number}"),
        };
        out.push('\n');
    }
}

const OMITTED: Family = Family {
    name: "ringress_series_omitted",
    kind: Kind::Gauge,
    help: "Series that are left out of this answer, because there are more than admin.max_series.",
};

/// [`BOUNDS`] in seconds, and that of the rest.
const BOUNDS_TEXT: [&str; BUCKETS] = [
    "0.0001", "0.00025", "0.0005", "0.001", "0.0025", "0.005", "0.01", "0.025", "0.05", "0.1",
    "0.25", "0.5", "1.0", "2.5", "5.0", "10.0", "30.0", "60.0", "300.0", "3600.0", "+Inf",
];

const _: () = assert!(BOUNDS.len() + 1 == BOUNDS_TEXT.len());

#[cfg(test)]
mod tests {
    use super::*;

    const HITS: Family = Family {
        name: "hits_total",
        kind: Kind::Counter,
        help: "Hits.",
    };
    const WAIT: Family = Family {
        name: "wait_seconds",
        kind: Kind::Histogram,
        help: "Waits.",
    };

    #[test]
    fn bounds_are_written_as_they_are() {
        for (bound, text) in BOUNDS.iter().zip(BOUNDS_TEXT) {
            let seconds: f64 = text.parse().unwrap();
            assert_eq!((seconds * 1e9).round() as u64, *bound, "{text}");
        }
    }

    #[test]
    fn names_differ_between_the_formats_as_their_papers_say() {
        let of = |open| {
            let mut text = Text::new(open, 10);
            text.single(&HITS, 3_u64);
            text.finish()
        };
        let rest = "# HELP ringress_series_omitted Series that are left out of this answer, because there are \
                    more than admin.max_series.\n# TYPE ringress_series_omitted gauge\nringress_series_omitted 0\n";
        assert_eq!(
            of(false),
            format!("# HELP hits_total Hits.\n# TYPE hits_total counter\nhits_total 3\n{rest}")
        );
        assert_eq!(
            of(true),
            format!("# HELP hits Hits.\n# TYPE hits counter\nhits_total 3\n{rest}# EOF\n")
        );
    }

    #[test]
    fn histograms_are_cumulative_in_seconds() {
        let mut counts = BucketCounts {
            sum_nanos: 3_000_250_000,
            ..BucketCounts::default()
        };
        (counts.counts[0], counts.counts[13], counts.counts[20]) = (1, 2, 4);
        let mut text = Text::new(true, 100);
        text.family(&WAIT);
        text.histogram(&Labels::of(&[("a", "b")]), &counts);
        let written = text.finish();
        for line in [
            "# UNIT wait_seconds seconds",
            "wait_seconds_bucket{a=\"b\",le=\"0.0001\"} 1",
            "wait_seconds_bucket{a=\"b\",le=\"1.0\"} 1",
            "wait_seconds_bucket{a=\"b\",le=\"2.5\"} 3",
            "wait_seconds_bucket{a=\"b\",le=\"3600.0\"} 3",
            "wait_seconds_bucket{a=\"b\",le=\"+Inf\"} 7",
            "wait_seconds_sum{a=\"b\"} 3.000250000",
            "wait_seconds_count{a=\"b\"} 7",
        ] {
            assert!(written.lines().any(|it| it == line), "{line}\n{written}");
        }
    }

    #[test]
    fn what_is_beyond_the_cap_is_left_out_and_counted_and_nothing_after_it_gets_in() {
        let mut text = Text::new(false, 2);
        text.family(&HITS);
        text.sample(&Labels::default(), None, 1_u64);
        text.family(&WAIT);
        text.histogram(&Labels::default(), &BucketCounts::default());
        text.family(&HITS);
        text.sample(&Labels::of(&[("late", "1")]), None, 2_u64);
        let written = text.finish();
        assert!(!written.contains("wait_seconds_") && !written.contains("late"));
        assert!(
            written.contains("\nringress_series_omitted 24\n"),
            "{written}"
        );
    }

    #[test]
    fn labels_are_escaped() {
        let labels = Labels::of(&[("a", "x\\y\"z\n"), ("b", "ü")]);
        assert_eq!(labels.0, r#"a="x\\y\"z\n",b="ü""#);
    }
}
