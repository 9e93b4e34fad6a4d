//! The pulse: once a second, what the process has counted since the last one and how it stands. It reads what
//! workers count for themselves, on the control thread, and stops nobody.
//!
//! | file | owns |
//! |---|---|
//! | `mod` | taking one, and who hears of it |
//! | `marks` | what was counted up to the last one |
//! | `standing` | why a backend is not chosen, for all that tell it |
//! | `history` | the last five minutes |

mod history;
mod marks;
pub(super) mod standing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::{Interval, MissedTickBehavior, interval};

use self::history::History;
use self::marks::{BackendMark, ListenerMark, Marks, UpstreamMark};
use super::admin::Heard;
use super::process::Process;
use super::socket::{
    BackendPulse, ListenerPulse, ListenerState, NewsLine, Outcome, ProcessState, Pulse, Pulsed,
    Reply, UpstreamPulse, WorkerPulse,
};
use crate::proxy::{self, Shared};
use crate::ring::{self, Reading};
use crate::telemetry::calendar::unix_ms;
use crate::telemetry::news::{Line, news};
use crate::telemetry::{Dropped, Reason};
use crate::time::{Instant, millis};
use crate::upstream::{Backend, BackendState, Upstream, UpstreamState};

/// Between two pulses.
const PERIOD: Duration = Duration::from_secs(1);
/// For so long after somebody has asked, pulses have backends in them: ten thousand of them take the control
/// thread some milliseconds.
const INTEREST: Duration = Duration::from_secs(5);
/// Openings with a history that may be on their way at a time.
const OPENINGS_MAX: usize = 4;

/// What takes pulses.
pub(super) struct Pulses {
    ticks: Interval,
    taking: Taking,
    latest: Pulse,
    history: History,
    /// What whoever begins to look on before the next one hears, once somebody has.
    opening: Option<Bytes>,
    /// Those with a history that are still being read: each may be tens of MiB.
    openings: Vec<Bytes>,
    /// Somebody has asked for one.
    asked: Option<Instant>,
    /// The number of the last line that those who look on have heard.
    told: u64,
}

/// What is known of the process beside what workers count.
struct About {
    at_unix_ms: u64,
    state: ProcessState,
    started: Instant,
    /// Of listeners, the first of each.
    addresses: HashMap<Arc<str>, String>,
}

/// Up to where everything was told.
#[derive(Default)]
struct Taking {
    /// `None` = there was no pulse yet.
    last: Option<Instant>,
    workers: Vec<Reading>,
    listeners: Marks<proxy::ListenerState, ListenerMark>,
    upstreams: Marks<UpstreamState, UpstreamMark>,
    backends: Marks<BackendState, BackendMark>,
}

impl Pulses {
    /// The first one is due at once: what was counted up to then is in none. Within a runtime.
    pub(super) fn new() -> Self {
        let mut ticks = interval(PERIOD);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            ticks,
            taking: Taking::default(),
            latest: Pulse::default(),
            history: History::default(),
            opening: None,
            openings: Vec::new(),
            asked: None,
            told: 0,
        }
    }

    /// Waits until it is time. If it is dropped before that, nothing is lost.
    pub(super) async fn due(&mut self) {
        self.ticks.tick().await;
    }

    fn take(&mut self, shared: &Shared, about: &About, now: Instant, watched: bool) {
        self.opening = None;
        self.openings.retain(|opening| !opening.is_unique());
        let is_first = self.taking.last.is_none();
        self.latest = self.taking.take(shared, about, now);
        if !is_first {
            self.history.add(json(&self.latest));
        }
        let asked = self.asked.is_some_and(|asked| now - asked < INTEREST);
        match watched || asked {
            true => self.taking.detail(&mut self.latest, shared, now),
            false => self.taking.backends.clear(),
        }
    }

    /// Somebody wants to see the latest one, and probably the next ones.
    fn ask(&mut self, shared: &Shared, now: Instant) -> &Pulse {
        self.asked = Some(now);
        let known = self
            .latest
            .upstreams
            .iter()
            .any(|it| !it.backends.is_empty());
        if !known {
            // Counts come with the next but one: the next one is the first that has marks to begin with.
            Taking::default().detail(&mut self.latest, shared, now);
        }
        &self.latest
    }

    /// What whoever begins to look on hears first. All who do so before the next pulse share it. As long as
    /// [`OPENINGS_MAX`] are being read slowly it is without the history.
    fn opening(&mut self) -> Bytes {
        if let Some(opening) = &self.opening {
            return opening.clone();
        }
        let lines = news().after(0);
        let heard = lines.iter().filter(|line| line.number <= self.told);
        let lines = lines_event(heard);
        let opening = match self.openings.len() < OPENINGS_MAX {
            true => Bytes::from(self.history.event_before(&lines)),
            false => Bytes::from(History::default().event_before(&lines)),
        };
        if self.openings.len() < OPENINGS_MAX {
            self.openings.push(opening.clone());
        }
        self.opening.insert(opening).clone()
    }

    /// What those who look on hear of the latest one.
    fn event(&mut self) -> Bytes {
        let mut event = event("pulse", &json(&self.latest));
        let lines = news().after(self.told);
        if let Some(last) = lines.last() {
            self.told = last.number;
            event.push_str(&lines_event(lines.iter()));
        }
        Bytes::from(event)
    }
}

impl Taking {
    /// Everything but backends.
    fn take(&mut self, shared: &Shared, about: &About, now: Instant) -> Pulse {
        let snapshot = shared.snapshot.load();
        let period = now - self.last.unwrap_or(now);
        self.last = Some(now);
        let counts = self.listeners.begin();
        let listener = |listener: &Arc<proxy::ListenerState>| {
            listener_pulse(listener, self.listeners.of(listener), about, counts)
        };
        let listeners = snapshot.listeners.iter().map(listener).collect();
        let counts = self.upstreams.begin();
        let upstream = |upstream: &Arc<Upstream>| {
            upstream_pulse(upstream, self.upstreams.of(upstream.state()), counts)
        };
        Pulse {
            at_unix_ms: about.at_unix_ms,
            period_ms: millis(period).max(1),
            state: about.state,
            generation: snapshot.generation,
            uptime_ms: millis(now - about.started),
            sessions: shared.active.now() as u64,
            max_connections: shared.most_connections() as u64,
            listeners,
            upstreams: snapshot.upstreams.iter().map(upstream).collect(),
            workers: self.workers(shared, period),
        }
    }

    fn workers(&mut self, shared: &Shared, period: Duration) -> Vec<WorkerPulse> {
        let now: Vec<_> = shared.meters.iter().map(|it| it.reading()).collect();
        let before = std::mem::replace(&mut self.workers, now);
        // At first there is nothing before.
        let pairs = self.workers.iter().zip(before);
        pairs
            .map(|(now, before)| {
                let busy = now.busy_nanos.saturating_sub(before.busy_nanos);
                let whole = period.as_nanos().max(1);
                WorkerPulse {
                    // A ring tells what it did some 100 ms later.
                    busy: (busy as f64 / whole as f64).min(1.0),
                    turns: now.turns.saturating_sub(before.turns),
                    completions: now.completions.saturating_sub(before.completions),
                }
            })
            .collect()
    }

    /// Adds the backends, as of now and since the last time.
    fn detail(&mut self, pulse: &mut Pulse, shared: &Shared, now: Instant) {
        let snapshot = shared.snapshot.load();
        let counts = self.backends.begin();
        let upstreams = snapshot.upstreams.iter().map(|it| (&**it.name(), it));
        // A reload may have come after the pulse.
        let upstreams: HashMap<&str, _> = upstreams.collect();
        for pulse in &mut pulse.upstreams {
            let Some(upstream) = upstreams.get(&*pulse.name) else {
                continue;
            };
            let health_ignored = upstream.is_failing_open();
            let backend = |backend: &Arc<Backend>| {
                let mark = self.backends.of(&backend.state);
                let told = backend_pulse(backend, mark, counts);
                let standing = standing::of(backend, health_ignored, now);
                BackendPulse {
                    state: standing.state,
                    why: standing.why,
                    breaker: standing.breaker,
                    ..told
                }
            };
            pulse.backends = upstream.backends().iter().map(backend).collect();
        }
    }
}

fn listener_pulse(
    listener: &proxy::ListenerState,
    mark: &mut ListenerMark,
    about: &About,
    counts: bool,
) -> ListenerPulse {
    let since = Some(mark.advance(listener)).filter(|_| counts);
    let (totals, duration) = since.unwrap_or_default();
    let closed = Reason::ALL.map(|reason| (reason, totals.closed(reason)));
    let some = closed.iter().filter(|(_, count)| *count > 0);
    let reasons: BTreeMap<_, _> = some
        .map(|(reason, count)| (reason.as_str().to_owned(), *count))
        .collect();
    let address = about.addresses.get(&listener.name);
    ListenerPulse {
        name: listener.name.to_string(),
        state: match address {
            Some(_) => ListenerState::Accepting,
            None => ListenerState::Drained,
        },
        address: address.cloned().unwrap_or_default(),
        sessions: listener.active.now() as u64,
        accepted: totals.accepted,
        ended: totals.ended(),
        refused: totals.refused(),
        reasons,
        bytes_received: totals.bytes_received,
        bytes_sent: totals.bytes_sent,
        datagrams_received: totals.datagrams_received,
        datagrams_dropped: Dropped::ALL.map(|it| totals.dropped(it)).iter().sum(),
        duration,
    }
}

fn upstream_pulse(upstream: &Upstream, mark: &mut UpstreamMark, counts: bool) -> UpstreamPulse {
    let since = Some(mark.advance(upstream.counters())).filter(|_| counts);
    let since = since.unwrap_or_default();
    UpstreamPulse {
        name: upstream.name().to_string(),
        requests: since.requests,
        retries: since.retries,
        queued: upstream.waiting() as u64,
        connect: since.connect,
        first_byte: since.first_byte,
        duration: since.duration,
        backends: Vec::new(),
    }
}

/// Without its state.
fn backend_pulse(backend: &Backend, mark: &mut BackendMark, counts: bool) -> BackendPulse {
    let since = Some(mark.advance(&backend.state)).filter(|_| counts);
    let since = since.unwrap_or_default();
    BackendPulse {
        name: backend.name.to_string(),
        address: backend.address.to_string(),
        sessions: backend.state.load.active.now() as u64,
        weight: u32::from(backend.weight()),
        connections: since.connections,
        failed: since.failed,
        bytes_received: since.bytes_received,
        bytes_sent: since.bytes_sent,
        first_byte: since.first_byte,
        connect: since.connect,
        ..BackendPulse::default()
    }
}

impl Process {
    /// It is time for a pulse.
    pub(super) fn beat(&mut self) {
        let watched = self.admin.is_looked_at();
        let mut about = About {
            at_unix_ms: unix_ms(),
            state: self.state,
            started: self.started,
            addresses: HashMap::new(),
        };
        for (listener, address) in self.bindings.addresses() {
            let known = about.addresses.entry(listener.clone());
            known.or_insert_with(|| address.to_string());
        }
        let pulses = &mut self.pulses;
        pulses.take(&self.shared, &about, ring::now(), watched);
        match watched {
            true => self.admin.tell(&pulses.event()),
            // Who comes hears all that there is.
            false => pulses.told = news().last(),
        }
    }

    /// The latest pulse, and what has happened after line `news_after` of the log.
    pub(super) fn tell_pulse(&mut self, news_after: u64) -> Reply {
        let pulse = self.pulses.ask(&self.shared, ring::now()).clone();
        let lines = news().after(news_after);
        Reply::Done(Outcome::Pulse(Box::new(Pulsed {
            pulse,
            news: lines.iter().map(news_line).collect(),
        })))
    }

    /// One more looks on: where it hears; `None` = there are as many as there may be.
    pub(super) fn look_on(&mut self, cut: Rc<Notify>) -> Option<Heard> {
        self.admin.look_on(cut, || self.pulses.opening())
    }
}

fn lines_event<'a>(lines: impl Iterator<Item = &'a Line>) -> String {
    #[derive(Serialize)]
    struct Lines {
        lines: Vec<NewsLine>,
    }
    let lines = lines.map(news_line).collect();
    event("news", &json(&Lines { lines }))
}

fn news_line(line: &Line) -> NewsLine {
    NewsLine {
        number: line.number,
        at_unix_ms: line.at_unix_ms,
        level: line.level.as_str().to_ascii_lowercase(),
        message: line.message.clone(),
    }
}

/// A server-sent event. JSON has no newline in it.
fn event(name: &str, data: &str) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

fn json(value: &impl Serialize) -> String {
    // Nothing here has keys that are no text.
    serde_json::to_string(value).unwrap_or_default()
}
