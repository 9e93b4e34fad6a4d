//! Pulses of a process that is played: its counters are raised by hand and its time is stepped.

use std::sync::Arc;

use super::*;
use crate::config::{self, Config, SystemResolver};
use crate::control::socket::Quantiles;
use crate::telemetry::events::{Events, Told};
use crate::telemetry::tallies::ConnectFault;

const ONE: &str = "[listeners.web]\nbind = \"127.0.0.1:0\"\nupstream = \"app\"\n\
                   [upstreams.app]\nbackends = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\n";
const OTHER: &str = "[listeners.mail]\nbind = \"127.0.0.1:0\"\nupstream = \"app\"\n\
                     [upstreams.app]\nbackends = [\"127.0.0.1:2\", \"127.0.0.1:3\"]\n";

fn parsed(text: &str) -> Config {
    config::parse(text, "a.toml", &mut SystemResolver).expect("it is a configuration")
}

fn at(second: u64) -> Instant {
    Instant::from_nanos(second * 1_000_000_000)
}

fn about(second: u64) -> About {
    About {
        at_unix_ms: second * 1000,
        state: ProcessState::Serving,
        started: Instant::from_nanos(0),
        addresses: HashMap::from([("web".into(), "127.0.0.1:80".to_owned())]),
    }
}

struct Played {
    shared: Arc<Shared>,
    taking: Taking,
    seconds: u64,
    _told: Told,
}

impl Played {
    /// With a pulse, which begins the counting.
    fn new(text: &str) -> Self {
        let mut played = Self::untouched(text);
        played.pulse();
        played
    }

    fn untouched(text: &str) -> Self {
        let (events, told) = Events::new();
        Self {
            shared: Shared::new(&parsed(text), 2, 1000, events, 7),
            taking: Taking::default(),
            seconds: 0,
            _told: told,
        }
    }

    /// One that comes a second later.
    fn pulse(&mut self) -> Pulse {
        self.seconds += 1;
        let (now, about) = (at(self.seconds), about(self.seconds));
        let mut pulse = self.taking.take(&self.shared, &about, now);
        self.taking.detail(&mut pulse, &self.shared, now);
        pulse
    }

    fn reload(&self, text: &str) {
        self.shared.reload(&parsed(text));
    }

    fn listener(&self, name: &str) -> Arc<proxy::ListenerState> {
        let snapshot = self.shared.snapshot.load();
        snapshot.listener(name).expect("there is one").clone()
    }

    /// Of the upstream, by its port.
    fn backend(&self, port: u16) -> Arc<BackendState> {
        let snapshot = self.shared.snapshot.load();
        let address = format!("127.0.0.1:{port}");
        let mut backends = snapshot.upstreams[0].backends().iter();
        let found = backends.find(|it| it.address.to_string() == address);
        found.expect("there is one").state.clone()
    }

    fn app(&self) -> Arc<Upstream> {
        self.shared.snapshot.load().upstreams[0].clone()
    }
}

#[test]
fn a_pulse_tells_what_was_counted_since_the_one_before() {
    let mut played = Played::new(ONE);
    let web = played.listener("web");
    for (worker, accepted) in [(0, 3), (1, 4)] {
        web.counters[worker].accepted.add(accepted);
        web.counters[worker].bytes_sent.add(100);
        web.counters[worker].close(Reason::Denied);
        web.counters[worker].close(Reason::ClientClosed);
        web.counters[worker].drop(Dropped::NoBackend, 2);
        web.counters[worker]
            .duration
            .record(Duration::from_millis(8));
    }
    let app = played.app();
    app.counters()[1].requests.add(5);
    app.counters()[0].retries.add(1);
    app.counters()[0]
        .first_byte
        .record(Duration::from_millis(2));
    let pulse = played.pulse();
    assert_eq!((pulse.period_ms, pulse.uptime_ms), (1000, 2000));
    let told = &pulse.listeners[0];
    assert_eq!((told.accepted, told.bytes_sent), (7, 200));
    assert_eq!(
        (told.ended, told.refused, told.datagrams_dropped),
        (2, 2, 4)
    );
    let reasons: Vec<_> = told.reasons.iter().map(|(it, n)| (&**it, *n)).collect();
    assert_eq!(reasons, [("client-closed", 2), ("denied", 2)]);
    assert_eq!(told.duration.count, 2);
    assert_eq!(
        (told.state, &*told.address),
        (ListenerState::Accepting, "127.0.0.1:80")
    );
    let told = &pulse.upstreams[0];
    assert_eq!(
        (told.requests, told.retries, told.first_byte.count),
        (5, 1, 1)
    );
    let pulse = played.pulse();
    let (listener, upstream) = (&pulse.listeners[0], &pulse.upstreams[0]);
    assert_eq!(
        (listener.accepted, listener.ended, upstream.requests),
        (0, 0, 0)
    );
    assert_eq!(listener.reasons.len(), 0);
    assert_eq!(listener.duration, Quantiles::default());
}

#[test]
fn what_was_counted_before_the_first_pulse_is_in_none() {
    let mut played = Played::untouched(ONE);
    played.listener("web").counters[0].accepted.add(1_000_000);
    played.app().counters()[0].requests.add(1_000_000);
    played.backend(1).tallies.of(0).connections.add(1_000_000);
    for _ in 0..2 {
        let pulse = played.pulse();
        assert_eq!(pulse.listeners[0].accepted, 0);
        assert_eq!(pulse.upstreams[0].requests, 0);
        assert_eq!(pulse.upstreams[0].backends[0].connections, 0);
        assert!(pulse.period_ms > 0);
    }
}

#[test]
fn backends_tell_what_they_have_met() {
    let mut played = Played::new(ONE);
    let tallies = &played.backend(2).tallies;
    tallies.of(0).connections.add(2);
    tallies.of(1).fail(ConnectFault::Refused);
    tallies.of(1).fail(ConnectFault::Timeout);
    tallies.of(1).bytes_sent.add(9);
    tallies.of(1).first_byte.record(Duration::from_millis(3));
    let pulse = played.pulse();
    let told = &pulse.upstreams[0].backends[1];
    assert_eq!((told.connections, told.failed, told.bytes_sent), (2, 2, 9));
    assert_eq!(told.first_byte.count, 1);
    assert_eq!((&*told.address, told.weight), ("127.0.0.1:2", 1));
    let again = played.pulse();
    let told = &again.upstreams[0].backends[1];
    assert_eq!(
        (told.connections, told.failed, told.first_byte.count),
        (0, 0, 0)
    );
}

#[test]
fn a_backend_that_comes_with_a_reload_begins_at_nothing_and_the_others_go_on() {
    let mut played = Played::new(ONE);
    let (gone, kept) = (played.backend(1), played.backend(2));
    gone.tallies.of(0).connections.add(10);
    kept.tallies.of(0).connections.add(20);
    played.pulse();
    played.reload(OTHER);
    kept.tallies.of(0).connections.add(1);
    played.backend(3).tallies.of(0).connections.add(5);
    let counted = |pulse: &Pulse| {
        let backends = pulse.upstreams[0].backends.iter();
        backends.map(|it| it.connections).collect::<Vec<_>>()
    };
    assert_eq!(counted(&played.pulse()), [1, 5]);
    // Sessions are still on the one that went: it is known when it comes back.
    played.reload(ONE);
    gone.tallies.of(0).connections.add(2);
    assert_eq!(counted(&played.pulse()), [2, 0]);
}

#[test]
fn a_backend_that_was_forgotten_meanwhile_counts_from_nothing_and_never_below() {
    let mut played = Played::new(ONE);
    played.backend(1).tallies.of(0).connections.add(10);
    played.pulse();
    played.reload(OTHER);
    played.pulse();
    played.reload(ONE);
    played.backend(1).tallies.of(0).connections.add(3);
    assert_eq!(played.pulse().upstreams[0].backends[0].connections, 3);
}

#[test]
fn listeners_come_and_go_between_two_pulses() {
    let mut played = Played::new(ONE);
    let web = played.listener("web");
    web.counters[0].accepted.add(10);
    played.pulse();
    played.reload(OTHER);
    played.listener("mail").counters[0].accepted.add(4);
    let pulse = played.pulse();
    let (names, accepted): (Vec<_>, Vec<_>) = pulse
        .listeners
        .iter()
        .map(|it| (&*it.name, it.accepted))
        .unzip();
    assert_eq!((names, accepted), (vec!["mail"], vec![4]));
    assert_eq!(pulse.generation, 2);
    // Old sessions have kept it.
    web.counters[0].accepted.add(1);
    played.reload(ONE);
    assert_eq!(played.pulse().listeners[0].accepted, 1);
    drop(web);
    played.reload(OTHER);
    played.pulse();
    played.reload(ONE);
    played.listener("web").counters[0].accepted.add(2);
    assert_eq!(played.pulse().listeners[0].accepted, 2);
}

#[test]
fn without_marks_backends_tell_how_they_stand_and_count_nothing() {
    let mut played = Played::new(ONE);
    played.backend(1).tallies.of(0).connections.add(10);
    played.pulse();
    played.taking.backends.clear();
    played.backend(1).tallies.of(0).connections.add(10);
    let pulse = played.pulse();
    let told = &pulse.upstreams[0].backends[0];
    assert_eq!(
        (told.connections, told.state),
        (0, crate::control::socket::BackendState::Up)
    );
    played.backend(1).tallies.of(0).connections.add(10);
    assert_eq!(played.pulse().upstreams[0].backends[0].connections, 10);
}

fn has_backends(pulse: &Pulse) -> bool {
    !pulse.upstreams[0].backends.is_empty()
}

#[tokio::test]
async fn backends_are_told_while_somebody_looks_and_for_some_seconds_after_a_question() {
    let played = Played::untouched(ONE);
    let mut pulses = Pulses::new();
    let take = |pulses: &mut Pulses, second, watched| {
        pulses.take(&played.shared, &about(second), at(second), watched);
        has_backends(&pulses.latest)
    };
    assert!(!take(&mut pulses, 1, false));
    assert!(has_backends(pulses.ask(&played.shared, at(1))), "at once");
    let told: Vec<_> = (2..8).map(|it| take(&mut pulses, it, false)).collect();
    assert_eq!(told, [true, true, true, true, false, false]);
    assert!(take(&mut pulses, 8, true));
    assert!(!take(&mut pulses, 9, false));
}

#[tokio::test]
async fn who_begins_to_look_on_between_two_pulses_shares_the_history() {
    let played = Played::untouched(ONE);
    let mut pulses = Pulses::new();
    let opened = |pulses: &mut Pulses, second| {
        pulses.take(&played.shared, &about(second), at(second), true);
        let [opening, again] = [(); 2].map(|()| pulses.opening());
        assert_eq!(opening.as_ptr(), again.as_ptr(), "it is the same");
        String::from_utf8_lossy(&opening)
            .matches("period_ms")
            .count()
    };
    let counts = [1, 2, 3].map(|second| opened(&mut pulses, second));
    assert_eq!(counts, [0, 1, 2]);
}

#[tokio::test]
async fn who_begins_while_four_read_slowly_hears_no_history() {
    let played = Played::untouched(ONE);
    let mut pulses = Pulses::new();
    let mut opened = |second| {
        pulses.take(&played.shared, &about(second), at(second), true);
        pulses.opening()
    };
    let counts = |opening: &Bytes| {
        let text = String::from_utf8_lossy(opening);
        text.matches("period_ms").count()
    };
    let mut held: Vec<_> = (1..=6).map(&mut opened).collect();
    let heard: Vec<_> = held.iter().map(counts).collect();
    assert_eq!(heard, [0, 1, 2, 3, 0, 0]);
    held.remove(0);
    assert_eq!(counts(&opened(7)), 6);
}

#[tokio::test]
async fn the_history_is_brief_and_has_no_pulse_without_a_period() {
    let played = Played::untouched(ONE);
    let mut pulses = Pulses::new();
    for second in 1..=3 {
        pulses.take(&played.shared, &about(second), at(second), true);
    }
    let opening = String::from_utf8(pulses.opening().to_vec()).expect("it is JSON");
    assert_eq!(opening.matches("\"period_ms\":1000").count(), 2);
    assert!(!opening.contains("127.0.0.1:2"), "{opening}");
    assert!(
        opening.contains("\n\nevent: news\ndata: {\"lines\":["),
        "{opening}"
    );
    let event = String::from_utf8(pulses.event().to_vec()).expect("it is JSON");
    assert!(
        event.starts_with("event: pulse\ndata: {\"at_unix_ms\":3000,"),
        "{event}"
    );
    assert!(event.contains("127.0.0.1:2"), "{event}");
}
