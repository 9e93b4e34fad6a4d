//! Listeners, upstreams and backends as rows: filtered, sorted, and written out.

use std::cmp::Ordering;

use super::view::{Section, Sort, View};
use crate::cli::numbers::{counted, per_second, short, time};
use crate::control::socket::pulse::{BackendPulse, ListenerPulse, Pulse, UpstreamPulse};
use crate::control::socket::status::{BackendState, ListenerState};

/// A row of a table.
pub(super) struct Row {
    /// In the order of the table's columns.
    pub(super) cells: Vec<String>,
    pub(super) tone: Tone,
    /// All there is to say of it, for when it is chosen.
    pub(super) detail: String,
    keys: Keys,
}

/// How it is doing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Tone {
    Good,
    /// It may come back by itself.
    Doubtful,
    Bad,
    /// Somebody wants it so.
    Still,
}

/// What it can be sorted by. Of numbers the highest come first.
struct Keys {
    name: String,
    state: BackendState,
    active: u64,
    rate: u64,
    failures: u64,
    p99: Option<u64>,
}

/// The rows of a table as they are to be seen.
pub(super) fn of(view: &View, section: Section) -> Vec<Row> {
    let pulse = &view.pulse;
    let mut rows: Vec<Row> = match section {
        Section::Listeners => {
            let listeners = pulse.listeners.iter();
            listeners.map(|it| listener(it, pulse.period_ms)).collect()
        }
        Section::Upstreams => {
            let upstreams = pulse.upstreams.iter();
            upstreams.map(|it| upstream(it, pulse.period_ms)).collect()
        }
        Section::Backends => backends(pulse),
    };
    if !view.filter.is_empty() {
        let wanted = view.filter.to_lowercase();
        rows.retain(|row| row.detail.to_lowercase().contains(&wanted));
    }
    // Equals stay as in the file.
    rows.sort_by(|one, other| one.keys.compare(&other.keys, view.sort));
    if view.reversed {
        rows.reverse();
    }
    rows
}

impl Keys {
    fn compare(&self, other: &Self, by: Sort) -> Ordering {
        match by {
            Sort::File => Ordering::Equal,
            Sort::Name => self.name.cmp(&other.name),
            Sort::State => other.state.cmp(&self.state),
            Sort::Active => other.active.cmp(&self.active),
            Sort::Rate => other.rate.cmp(&self.rate),
            Sort::Failures => other.failures.cmp(&self.failures),
            Sort::P99 => other.p99.cmp(&self.p99),
        }
    }
}

fn listener(listener: &ListenerPulse, period_ms: u64) -> Row {
    let rate = |count| short(per_second(count, period_ms));
    let (state, word, tone) = match listener.state {
        ListenerState::Accepting => (BackendState::Up, "accepting", Tone::Good),
        ListenerState::Drained => (BackendState::Disabled, "drained", Tone::Still),
        ListenerState::Unknown => (BackendState::Unknown, "unknown", Tone::Doubtful),
    };
    let reasons = counted(&listener.reasons);
    let place = match &*listener.address {
        "" => String::new(),
        address => format!(" at {address}"),
    };
    let told = match &*reasons {
        "" => String::new(),
        reasons => format!(": {reasons}"),
    };
    Row {
        cells: vec![
            listener.name.clone(),
            word.to_owned(),
            short(listener.sessions as f64),
            rate(listener.accepted),
            rate(listener.ended),
            rate(listener.refused),
            rate(listener.bytes_received),
            rate(listener.bytes_sent),
            rate(listener.datagrams_received),
            rate(listener.datagrams_dropped),
            time(listener.duration.p50_us),
            time(listener.duration.p99_us),
            reasons,
        ],
        tone,
        detail: format!("{}{place}, {word}{told}", listener.name),
        keys: Keys {
            name: listener.name.clone(),
            state,
            active: listener.sessions,
            rate: listener.accepted + listener.datagrams_received,
            failures: listener.refused + listener.datagrams_dropped,
            p99: listener.duration.p99_us,
        },
    }
}

fn upstream(upstream: &UpstreamPulse, period_ms: u64) -> Row {
    let rate = |count| short(per_second(count, period_ms));
    let all = upstream.backends.len();
    let up = upstream.backends.iter().filter(|it| is_used(it)).count();
    let active = upstream.backends.iter().map(|it| it.sessions).sum();
    let (state, tone) = match up {
        _ if up == all => (BackendState::Up, Tone::Good),
        0 => (BackendState::Down, Tone::Bad),
        _ => (BackendState::HalfOpen, Tone::Doubtful),
    };
    Row {
        cells: vec![
            upstream.name.clone(),
            format!("{up} of {all}"),
            short(active as f64),
            rate(upstream.requests),
            rate(upstream.retries),
            upstream.queued.to_string(),
            time(upstream.first_byte.p50_us),
            time(upstream.first_byte.p99_us),
            time(upstream.connect.p99_us),
            time(upstream.duration.p50_us),
            time(upstream.duration.p99_us),
        ],
        tone,
        detail: format!("{}: {up} of {all} backends are up", upstream.name),
        keys: Keys {
            name: upstream.name.clone(),
            state,
            active,
            rate: upstream.requests,
            failures: upstream.retries,
            p99: upstream.first_byte.p99_us,
        },
    }
}

fn is_used(backend: &BackendPulse) -> bool {
    matches!(backend.state, BackendState::Up | BackendState::HalfOpen)
}

fn backends(pulse: &Pulse) -> Vec<Row> {
    let pairs = pulse
        .upstreams
        .iter()
        .flat_map(|upstream| upstream.backends.iter().map(move |it| (upstream, it)));
    pairs
        .map(|(upstream, it)| backend(&upstream.name, it, pulse.period_ms))
        .collect()
}

fn backend(upstream: &str, backend: &BackendPulse, period_ms: u64) -> Row {
    let rate = |count| short(per_second(count, period_ms));
    let word = backend.state.as_str();
    let name = format!("{upstream}/{}", backend.name);
    let why = backend.why.clone().unwrap_or_default();
    let place = match backend.address == backend.name {
        true => String::new(),
        false => format!(" at {}", backend.address),
    };
    let told = match &*why {
        "" => String::new(),
        why => format!(": {why}"),
    };
    Row {
        detail: format!("{name}{place}, {word}{told}"),
        cells: vec![
            name.clone(),
            word.to_owned(),
            short(backend.sessions as f64),
            rate(backend.connections),
            rate(backend.failed),
            rate(backend.bytes_received),
            rate(backend.bytes_sent),
            time(backend.first_byte.p50_us),
            time(backend.first_byte.p99_us),
            time(backend.connect.p99_us),
            backend.weight.to_string(),
            backend.breaker.as_str().to_owned(),
            backend.address.clone(),
            why,
        ],
        tone: tone(backend.state),
        keys: Keys {
            name,
            state: backend.state,
            active: backend.sessions,
            rate: backend.connections,
            failures: backend.failed,
            p99: backend.first_byte.p99_us,
        },
    }
}

fn tone(state: BackendState) -> Tone {
    match state {
        BackendState::Up => Tone::Good,
        BackendState::HalfOpen | BackendState::Unknown => Tone::Doubtful,
        BackendState::Open | BackendState::Ejected | BackendState::Down => Tone::Bad,
        BackendState::Disabled => Tone::Still,
    }
}
