//! What is rendered of a process that has counted something of everything.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine};

use super::*;
use crate::config;
use crate::telemetry::events::Events;
use crate::telemetry::latency::histogram;
use crate::telemetry::tallies::{ConnectFault, Probed, Tally};
use crate::telemetry::{Dropped, Opening, Reason};

const CONFIG: &str = r#"
    [listeners.web]
    bind = "127.0.0.1:0"
    upstream = "app"
    [listeners.dns]
    bind = "127.0.0.1:0"
    protocol = "udp"
    upstream = "app"
    [upstreams.app]
    backends = ["127.0.0.1:1", "127.0.0.1:2"]
"#;

fn source(max_series: u32) -> Source {
    let config = config::parse(CONFIG, "a.toml", &mut config::SystemResolver).expect("it is valid");
    let (events, _) = Events::new();
    let shared = Shared::new(&config, 2, 100, events, 7);
    Source {
        shared,
        generation: 1,
        reloads: Reloads {
            done: 3,
            refused: 1,
        },
        worker_restarts: 0,
        uptime: Duration::from_millis(1500),
        started: Duration::from_secs(1_700_000_000),
        draining: false,
        old_processes: 0,
        certificates: vec![
            Certificate {
                owner: Owner::Listener("web".into()),
                file: "a \"b\".pem".to_owned(),
                not_after: 2_000_000_000,
            },
            Certificate {
                owner: Owner::Upstream("app".into()),
                file: "c.pem".to_owned(),
                not_after: 2_000_000_001,
            },
        ],
        max_series,
    }
}

/// One of everything, by both workers.
fn busy(source: &Source) {
    let snapshot = source.shared.snapshot.load();
    let third = Duration::from_millis(3);
    for worker in 0..2 {
        for listener in &snapshot.listeners {
            let counters = &listener.counters[worker];
            counters.accepted.add(1);
            Opening::ALL
                .into_iter()
                .for_each(|opening| counters.open(opening));
            Dropped::ALL
                .into_iter()
                .for_each(|dropped| counters.drop(dropped, 1));
            Reason::ALL
                .into_iter()
                .for_each(|reason| counters.close(reason));
            counters.duration.record(third);
        }
        let upstream = &snapshot.upstreams[0];
        let counters = &upstream.counters()[worker];
        for times in [
            &counters.queue,
            &counters.connect,
            &counters.first_byte,
            &counters.duration,
        ] {
            times.record(third);
        }
        let tallies = &upstream.backends()[1].state.tallies;
        let counters = tallies.of(worker);
        counters.connections.add(2);
        counters.close(Reason::Idle);
        ConnectFault::ALL
            .into_iter()
            .for_each(|fault| counters.fail(fault));
        for times in [&counters.connect, &counters.first_byte, &counters.duration] {
            times.record(third);
        }
        tallies.ejections.add();
        tallies.breaker.iter().for_each(Tally::add);
        tallies.probed(Probed::Failure, None, third);
    }
}

fn rendered(source: &Source, format: Format) -> String {
    String::from_utf8(render(source, format).to_vec()).expect("it is text")
}

/// Samples by name and labels, as written.
fn samples(text: &str) -> BTreeMap<&str, &str> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let pairs = lines.map(|line| line.rsplit_once(' ').expect("a sample has a value"));
    let samples: BTreeMap<_, _> = pairs.clone().collect();
    assert_eq!(samples.len(), pairs.count(), "no series stands twice");
    samples
}

/// Some of what is rendered then.
const SAMPLES: &[(&str, &str)] = &[
    (r#"ringress_reloads_total{result="refused"}"#, "1"),
    ("ringress_uptime_seconds", "1.500000000"),
    ("process_start_time_seconds", "1700000000.000000000"),
    (
        r#"ringress_listener_connections_total{listener="web"}"#,
        "2",
    ),
    (
        r#"ringress_listener_sessions_closed_total{listener="dns",reason="idle"}"#,
        "2",
    ),
    (
        r#"ringress_listener_tls_handshakes_total{listener="web",version="1.3",resumed="true"}"#,
        "2",
    ),
    (
        r#"ringress_listener_hellos_total{listener="web",found="not-tls"}"#,
        "2",
    ),
    (
        r#"ringress_listener_datagrams_dropped_total{listener="dns",reason="loop"}"#,
        "2",
    ),
    (
        r#"ringress_listener_session_duration_seconds_bucket{listener="web",le="0.0025"}"#,
        "0",
    ),
    (
        r#"ringress_listener_session_duration_seconds_bucket{listener="web",le="0.005"}"#,
        "2",
    ),
    (
        r#"ringress_upstream_queue_duration_seconds_sum{upstream="app"}"#,
        "0.006000000",
    ),
    (r#"ringress_upstream_ready_backends{upstream="app"}"#, "2"),
    (
        r#"ringress_backend_connections_total{upstream="app",backend="127.0.0.1:1"}"#,
        "0",
    ),
    (
        r#"ringress_backend_connections_total{upstream="app",backend="127.0.0.1:2"}"#,
        "4",
    ),
    (
        r#"ringress_backend_connect_failures_total{upstream="app",backend="127.0.0.1:2",reason="timeout"}"#,
        "2",
    ),
    (
        r#"ringress_backend_breaker_transitions_total{upstream="app",backend="127.0.0.1:2",to="half-open"}"#,
        "2",
    ),
    (
        r#"ringress_backend_probes_total{upstream="app",backend="127.0.0.1:2",result="failure"}"#,
        "2",
    ),
    (
        r#"ringress_backend_first_byte_seconds_count{upstream="app",backend="127.0.0.1:2"}"#,
        "2",
    ),
    (
        r#"ringress_certificate_not_after_timestamp_seconds{listener="web",file="a \"b\".pem"}"#,
        "2000000000",
    ),
    ("ringress_series_omitted", "0"),
];

#[test]
fn numbers_are_sums_of_all_workers() {
    let source = source(50_000);
    busy(&source);
    let text = rendered(&source, Format::Text);
    let samples = samples(&text);
    for (series, value) in SAMPLES {
        assert_eq!(samples.get(series), Some(value), "{series}\n{text}");
    }
    let idle = r#"backend="127.0.0.1:1",reason="#;
    assert!(
        !text.contains(idle),
        "what never happened there has no series"
    );
}

#[test]
fn both_formats_have_the_same_samples() {
    let source = source(50_000);
    busy(&source);
    let (text, open) = (
        rendered(&source, Format::Text),
        rendered(&source, Format::OpenMetrics),
    );
    let names = |text: &str| {
        samples(text)
            .keys()
            .map(|it| (*it).to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&text), names(&open));
    assert!(open.ends_with("\n# EOF\n") && !text.contains("# EOF"));
}

#[test]
fn samples_stand_with_their_family() {
    let source = source(50_000);
    busy(&source);
    let text = rendered(&source, Format::Text);
    let mut family = "";
    let mut seen = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split(' ').next().expect("a name");
            assert!(!seen.contains(&family), "{family} stands twice");
            seen.push(family);
        } else if !line.starts_with('#') {
            assert!(line.starts_with(family), "{line} below {family}");
        }
    }
}

#[test]
fn a_cap_leaves_out_from_the_end_and_says_how_many() {
    let all = source(50_000);
    busy(&all);
    let text = rendered(&all, Format::Text);
    let whole = samples(&text);
    let few = Source {
        max_series: 100,
        ..all
    };
    let text = rendered(&few, Format::Text);
    let part = samples(&text);
    assert!((78..=101).contains(&part.len()), "{}", part.len());
    let omitted: usize = part["ringress_series_omitted"].parse().expect("a number");
    assert_eq!(omitted + part.len(), whole.len());
    assert!(part.keys().all(|series| whole.contains_key(series)));
}

#[test]
fn raw_histograms_can_be_read_by_the_library_again() {
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    let source = source(1);
    busy(&source);
    let log = render(&source, Format::Histograms);
    let mut found = BTreeMap::new();
    for entry in IntervalLogIterator::new(&log) {
        let LogEntry::Interval(interval) = entry.expect("it is well-formed") else {
            continue;
        };
        let bytes = BASE64_STANDARD.decode(interval.encoded_histogram());
        let bytes = bytes.expect("it is base64");
        let read = Deserializer::new().deserialize::<u64, _>(&mut &*bytes);
        let name = interval.tag().expect("it has a name").as_str().to_owned();
        found.insert(name, read.expect("it is a histogram"));
    }
    let mut expected = histogram();
    expected.record_n(3000, 2).expect("within bounds");
    assert_eq!(found["listener/web/session-duration"], expected);
    assert_eq!(found["upstream/app/first-byte"], expected);
    assert_eq!(found.len(), 6);
}

/// The table in docs/metrics.md.
fn table(text: &str) -> String {
    let mut table = String::new();
    for (number, line) in text.lines().enumerate() {
        let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|it| it.split_once(' '))
        else {
            continue;
        };
        let help = text.lines().nth(number - 1).expect("its help is before it");
        let help = help
            .strip_prefix("# HELP ")
            .and_then(|it| it.split_once(' '));
        let samples = text.lines().skip(number + 1);
        let samples = samples.take_while(|line| !line.starts_with('#'));
        let mut labels = Vec::new();
        for sample in samples {
            let parts = sample.split(['{', ',']).skip(1);
            for (label, _) in parts.filter_map(|it| it.split_once('=')) {
                if label != "le" && !labels.contains(&label) {
                    labels.push(label);
                }
            }
        }
        let labels = labels.join(", ");
        let (_, help) = help.expect("it has a name and a meaning");
        writeln!(table, "| `{name}` | {kind} | {labels} | {help} |").expect("it is memory");
    }
    table
}

#[test]
fn every_metric_is_documented_as_it_describes_itself() {
    let source = source(50_000);
    busy(&source);
    let table = table(&rendered(&source, Format::Text));
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
    let docs = std::fs::read_to_string(path).expect("it is there");
    let rows = docs.lines().filter(|line| line.starts_with("| `"));
    let documented: String = rows.map(|row| format!("{row}\n")).collect();
    assert!(
        documented == table,
        "docs/metrics.md should have these rows:\n{table}"
    );
}
