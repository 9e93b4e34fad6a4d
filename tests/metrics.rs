//! Metrics: that tools of Prometheus take them, and that they agree with what clients, backends and the access
//! log have counted.

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use common::backend::{BlackHole, Refusing, drain};
use common::datagrams::{DatagramBackend, ask as ask_datagram, client_at, udp_config};
use common::http::ask;
use common::scrape::Scrape;
use common::socket::{connect, ending_after, exchange, finish, read_to_end, reset};
use common::tools::fed;
use common::{Backend, Proxy, config, eventually};

const ADMIN: &str = "[admin]\nlisten = \"127.0.0.1:0\"\n";

#[test]
fn the_tools_of_prometheus_take_both_formats_without_a_complaint() {
    let (good, refusing) = (Backend::echo(), Refusing::new());
    let tables = format!(
        "[runtime]\nworkers = 2\n{ADMIN}\
         [listeners.dns]\nbind = \"127.0.0.1:0\"\nprotocol = \"udp\"\nupstream = \"app\"\n"
    );
    let probed = "[upstreams.app.health_check]\ninterval = \"100ms\"\n";
    let backends = [&*good.address, &refusing.address];
    let proxy = Proxy::start(&config(&backends, "", "", &format!("{probed}{tables}")));
    let address = proxy.address("web");
    (0..5).for_each(|_| drop(exchange(None, &address).expect("served")));
    let scrape = eventually("probes and sessions have been counted", || {
        let scrape = Scrape::of(&proxy);
        let backend = format!("{{upstream=\"app\",backend={:?}", refusing.address);
        let failed = format!("ringress_backend_probes_total{backend},result=\"failure\"}}");
        let probed = format!("ringress_backend_probe_duration_seconds_count{backend}}}");
        let ended = "ringress_listener_session_duration_seconds_count{listener=\"web\"}";
        (scrape.count(&failed) > 0 && scrape.count(&probed) > 0 && scrape.count(ended) == 5)
            .then_some(scrape)
    });
    let (well, said) = fed("promtool", &["check", "metrics"], &scrape.text);
    assert!(well && said.is_empty(), "{said}");

    let accept = "Accept: application/openmetrics-text; version=1.0.0";
    let open = ask(&proxy.admin(), "GET", "/metrics", &[accept]);
    assert!(
        open.header("Content-Type")
            .contains("openmetrics-text; version=1.0.0")
    );
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("metrics");
    std::fs::write(&file, at_a_time(&open.body)).expect("it can be written");
    let (file, blocks) = (
        file.display().to_string(),
        folder.path().display().to_string(),
    );
    let words = ["tsdb", "create-blocks-from", "openmetrics", &file, &blocks];
    let (well, said) = fed("promtool", &words, "");
    assert!(well, "{said}");
    proxy.end();
}

/// What the tool reads has a time with each sample.
fn at_a_time(text: &str) -> String {
    let lines = text.lines();
    lines
        .map(|line| match line.starts_with('#') {
            true => format!("{line}\n"),
            false => format!("{line} 1700000000\n"),
        })
        .collect()
}

/// A run with a bit of everything: what its clients and backends have counted.
struct Run {
    proxy: Proxy,
    folder: tempfile::TempDir,
    answering: Backend,
    resetting: Backend,
    _refusing: Refusing,
    _hole: BlackHole,
    /// Sessions by listener and reason, as clients have seen them end.
    ended: BTreeMap<(&'static str, &'static str), u64>,
    /// Bytes that the backend which answers has got.
    received: u64,
}

const ROUNDS: u64 = 20;

impl Run {
    fn start() -> Self {
        let (answering, refusing, hole) = (answering(), Refusing::new(), BlackHole::new());
        let resetting = Backend::start(|mut connection| {
            let _ = connection.read(&mut [0; 4]);
            reset(connection);
        });
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("access.log").display().to_string();
        let mut tables = format!(
            "[runtime]\nworkers = 2\n[log]\nformat = \"json\"\naccess_log = {log:?}\n{ADMIN}\
             [upstreams.app.retry]\nattempts = 1\nbudget = 1.0\n\
             [upstreams.far.retry]\nattempts = 0\n"
        );
        let far = format!(
            "backends = [{:?}]\nconnect_timeout = \"50ms\"\n",
            hole.address
        );
        let upstreams = [
            ("broken", format!("backends = [{:?}]\n", resetting.address)),
            ("nobody", format!("backends = [{:?}]\n", refusing.address)),
            ("far", far),
        ];
        for (name, lines) in upstreams {
            tables += &format!(
                "[upstreams.{name}]\n{lines}\
                 [listeners.{name}]\nbind = \"127.0.0.1:0\"\nupstream = {name:?}\n"
            );
        }
        tables += "[listeners.closed]\nbind = \"127.0.0.1:0\"\nupstream = \"app\"\ndeny = [\"127.0.0.0/8\"]\n";
        // Half of the first tries are in vain.
        let backends = [&*answering.address, &refusing.address];
        let proxy = Proxy::start(&config(&backends, "", "", &tables));
        Self {
            proxy,
            folder,
            answering,
            resetting,
            _refusing: refusing,
            _hole: hole,
            ended: BTreeMap::new(),
            received: 0,
        }
    }

    fn ended(&mut self, listener: &'static str, reason: &'static str) {
        *self.ended.entry((listener, reason)).or_default() += 1;
    }

    fn go(&mut self) {
        for round in 0..ROUNDS {
            let mut client = connect(&self.proxy.address("web"));
            client
                .write_all(&vec![7; 1000 + round as usize])
                .expect("it is open");
            finish(&client);
            assert_eq!(read_to_end(&mut client), b"answer");
            self.received += 1000 + round;
            self.ended("web", "client-closed");

            let mut client = connect(&self.proxy.address("web"));
            client.write_all(b"hurry").expect("it is open");
            assert_eq!(client.read(&mut [0; 6]).expect("an answer ahead"), 6);
            reset(client);
            self.received += 5;
            self.ended("web", "client-reset");

            let _ = ending_after(&mut connect(&self.proxy.address("broken")), b"work");
            self.ended("broken", "backend-reset");
            for (listener, reason) in [
                ("nobody", "no-backend"),
                ("closed", "denied"),
                ("far", "connect-timeout"),
            ] {
                let _ = ending_after(&mut connect(&self.proxy.address(listener)), b"");
                self.ended(listener, reason);
            }
        }
    }

    /// Lines of sessions, when there are all of them.
    fn lines(&self) -> Vec<Value> {
        let (path, all) = (
            self.folder.path().join("access.log"),
            self.ended.values().sum::<u64>(),
        );
        eventually("a line for each session", || {
            let lines = lines(&path);
            (lines.len() as u64 == all).then_some(lines)
        })
    }
}

/// Answers to five bytes at once, and to all others at their end.
fn answering() -> Backend {
    Backend::start(|mut connection| {
        let mut first = [0; 5];
        if connection.read_exact(&mut first).is_err() {
            return;
        }
        if first == *b"hurry" {
            let _ = connection.write_all(b"answer");
            let _ = drain(&mut connection);
            return;
        }
        let _ = drain(&mut connection);
        let _ = connection.write_all(b"answer");
    })
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line is JSON"));
    let lines: Vec<Value> = lines.collect();
    lines
        .into_iter()
        .filter(|it| it["reason"].is_string())
        .collect()
}

/// How many lines have something in all these fields.
fn with<'a>(lines: &'a [Value], fields: &'a [(&str, &str)]) -> impl Iterator<Item = &'a Value> {
    lines
        .iter()
        .filter(move |line| fields.iter().all(|(field, value)| line[*field] == **value))
}

fn sum<'a>(lines: impl Iterator<Item = &'a Value>, field: &str) -> u64 {
    lines
        .map(|line| line[field].as_u64().expect("a number"))
        .sum()
}

#[test]
fn counters_and_log_agree_exactly_with_clients_and_backends() {
    let mut run = Run::start();
    run.go();
    let lines = run.lines();
    let scrape = eventually("the last session's end is counted", || {
        let scrape = Scrape::of(&run.proxy);
        let ended = scrape.beginning("ringress_listener_sessions_closed_total{listener=");
        (ended.values().sum::<u64>() == lines.len() as u64).then_some(scrape)
    });
    for ((listener, reason), count) in &run.ended {
        let told = with(&lines, &[("listener", listener), ("reason", reason)]).count() as u64;
        let closed = format!(
            "ringress_listener_sessions_closed_total{{listener={listener:?},reason={reason:?}}}"
        );
        assert_eq!(
            (told, scrape.count(&closed)),
            (*count, *count),
            "{listener} {reason}"
        );
        let connections = format!("ringress_listener_connections_total{{listener={listener:?}}}");
        let of_listener = with(&lines, &[("listener", listener)]).count() as u64;
        assert_eq!(scrape.count(&connections), of_listener, "{listener}");
        let active = format!("ringress_listener_active_sessions{{listener={listener:?}}}");
        assert_eq!(scrape.present(&active), 0);
    }
    bytes_agree(&run, &scrape, &lines);
    tries_agree(&run, &scrape, &lines);
    times_agree(&run, &scrape, &lines);
    run.proxy.end();
}

fn bytes_agree(run: &Run, scrape: &Scrape, lines: &[Value]) {
    let web: Vec<_> = with(lines, &[("listener", "web")]).cloned().collect();
    let logged = (
        sum(web.iter(), "bytes_received"),
        sum(web.iter(), "bytes_sent"),
    );
    assert_eq!(logged, (run.received, 2 * 6 * ROUNDS));
    let backend = format!("upstream=\"app\",backend={:?}", run.answering.address);
    for of in [
        "listener_bytes_total{listener=\"web\"",
        &format!("backend_bytes_total{{{backend}"),
    ] {
        let bytes = |direction| scrape.count(&format!("ringress_{of},direction={direction:?}}}"));
        assert_eq!((bytes("received"), bytes("sent")), logged, "{of}");
    }
}

fn tries_agree(run: &Run, scrape: &Scrape, lines: &[Value]) {
    for (upstream, backend) in [("app", &run.answering), ("broken", &run.resetting)] {
        let labels = format!("{{upstream={upstream:?},backend={:?}", backend.address);
        let accepted = backend.accepted() as u64;
        let connections = format!("ringress_backend_connections_total{labels}}}");
        let sessions = format!("ringress_backend_sessions_total{labels}}}");
        assert_eq!(
            (scrape.count(&connections), scrape.count(&sessions)),
            (accepted, accepted)
        );
        let counted = scrape.beginning(&format!(
            "ringress_backend_sessions_closed_total{labels},reason="
        ));
        let mut told = BTreeMap::new();
        for line in with(lines, &[("backend", &backend.address)]) {
            let reason = format!("{}}}", line["reason"]);
            *told.entry(reason).or_insert(0_u64) += 1;
        }
        assert_eq!(counted, told, "{upstream}");
        assert_eq!(told.values().sum::<u64>(), accepted, "{upstream}");
    }
    let retries = sum(with(lines, &[("upstream", "app")]), "retries");
    assert_eq!(
        scrape.count("ringress_upstream_retries_total{upstream=\"app\"}"),
        retries
    );
    assert!(
        (ROUNDS / 2..=2 * ROUNDS).contains(&retries),
        "every second first try is in vain: {retries}"
    );
    let failures = scrape.beginning("ringress_backend_connect_failures_total");
    let by = |upstream: &str, reason: &str| {
        let of_upstream = failures
            .iter()
            .filter(|(labels, _)| labels.contains(upstream));
        of_upstream
            .filter(|(labels, _)| labels.contains(reason))
            .map(|(_, count)| count)
            .sum::<u64>()
    };
    assert_eq!(by("\"app\"", "refused"), retries);
    // There is no other backend to try.
    assert_eq!(by("\"nobody\"", "refused"), ROUNDS);
    assert_eq!(sum(with(lines, &[("upstream", "nobody")]), "retries"), 0);
    assert_eq!(by("\"far\"", "timeout"), ROUNDS);
    let failed = by("", "");
    let counted = scrape.beginning("ringress_listener_connect_failures_total");
    assert_eq!(counted.values().sum::<u64>(), failed);
    let requests = scrape.beginning("ringress_upstream_requests_total");
    assert_eq!(requests.values().sum::<u64>(), 5 * ROUNDS);
}

/// As many as have a field are in the histogram of what it says, and their sum is that of the lines.
fn times_agree(run: &Run, scrape: &Scrape, lines: &[Value]) {
    let upstream = "upstream=\"app\"".to_owned();
    let backend = format!("{upstream},backend={:?}", run.answering.address);
    let with_backend = [("backend", &*run.answering.address)];
    for (of, labels) in [("upstream", &upstream), ("backend", &backend)] {
        for (name, field) in [
            ("connect_duration_seconds", "connect"),
            ("first_byte_seconds", "first_byte"),
            ("session_duration_seconds", "duration"),
        ] {
            let times = with(lines, &with_backend).filter_map(|line| line[field].as_f64());
            let times: Vec<f64> = times.collect();
            let name = format!("ringress_{of}_{name}");
            let counted = scrape.count(&format!("{name}_count{{{labels}}}"));
            assert_eq!(counted, times.len() as u64, "{name}");
            let sum = scrape.value(&format!("{name}_sum{{{labels}}}"));
            // The log has whole microseconds.
            let precision = 1e-6 * times.len() as f64;
            let told: f64 = times.iter().sum();
            assert!((sum - told).abs() <= precision, "{name}: {sum} and {told}");
        }
    }
}

/// Of a busy kernel, too: what a worker does there is most of what it does.
#[test]
fn a_worker_is_busy_when_it_works_and_not_when_it_waits() {
    let backend = Backend::echo();
    let proxy = Proxy::start(&config(
        &[&backend.address],
        "",
        "",
        &format!("[runtime]\nworkers = 1\n{ADMIN}"),
    ));
    let busy = || Scrape::of(&proxy).value("ringress_worker_busy_seconds_total{worker=\"0\"}");
    let mut client = connect(&proxy.address("web"));
    let (before, since) = (busy(), common::now());
    // It takes a while until a worker tells.
    eventually("the worker was busy", || {
        let (words, mut echo) = (vec![7; 64 * 1024], vec![0; 64 * 1024]);
        client.write_all(&words).expect("it is open");
        client.read_exact(&mut echo).expect("it comes back");
        (busy() > before).then_some(())
    });
    // What it had used before it was looked at may be told late.
    let most = since.elapsed().as_secs_f64() + 0.1;
    let used = busy() - before;
    assert!(used <= most, "{used} of {most}");
    common::pass(Duration::from_millis(300));
    let told = busy();
    common::pass(Duration::from_millis(500));
    let later = busy();
    assert!(later - told < 0.25, "it waits: {told} and {later}");
    drop(client);
    proxy.end();
}

#[test]
fn a_client_that_is_turned_away_has_not_waited() {
    let backend = Backend::echo();
    let tables = format!("{ADMIN}[upstreams.app.queue]\nmax = 0\n");
    let backends = format!(
        "[{{ address = {:?}, max_connections = 1 }}]",
        backend.address
    );
    let text =
        config(&[], "", "", &tables).replace("backends = []", &format!("backends = {backends}"));
    let proxy = Proxy::start(&text);
    let address = proxy.address("web");
    let _held = exchange(None, &address).expect("served");
    assert!(exchange(None, &address).is_none());
    let closed = "ringress_listener_sessions_closed_total{listener=\"web\",reason=\"queue-full\"}";
    let scrape = eventually("it is counted", || {
        let scrape = Scrape::of(&proxy);
        (scrape.present(closed) == 1).then_some(scrape)
    });
    assert_eq!(
        scrape.present("ringress_upstream_queued_total{upstream=\"app\"}"),
        0
    );
    let waits = "ringress_upstream_queue_duration_seconds_count{upstream=\"app\"}";
    assert_eq!(scrape.present(waits), 0);
    proxy.end_now();
}

#[test]
fn bytes_of_datagrams_are_counted_while_their_session_lasts() {
    let backend = DatagramBackend::echo();
    let proxy = Proxy::start(&udp_config(&[&backend.address], "", "", ADMIN));
    let client = client_at("127.0.0.1:0");
    assert_eq!(
        ask_datagram(&client, &proxy.address("web"), b"some"),
        b"some"
    );
    eventually("both directions are counted", || {
        let scrape = Scrape::of(&proxy);
        let bytes = scrape.beginning("ringress_backend_bytes_total{upstream=\"app\"");
        (bytes.len() == 2 && bytes.values().all(|count| *count == 4)).then_some(())
    });
    proxy.end_now();
}

/// A breaker that no configuration has any more stayed open for whoever scraped.
#[test]
fn a_breaker_that_is_gone_is_closed() {
    let resetting = Backend::start(reset);
    let with = |breaker: &str| {
        let tables = format!("{breaker}{ADMIN}");
        config(&[&resetting.address], "", "", &tables)
    };
    let breaker = "[upstreams.app.circuit_breaker]\nmin_requests = 1\nopen_for = \"1h\"\n";
    let proxy = Proxy::start(&with(breaker));
    let state = || {
        let scrape = Scrape::of(&proxy);
        let backend = format!("{{upstream=\"app\",backend={:?}}}", resetting.address);
        scrape.present(&format!("ringress_backend_breaker_state{backend}"))
    };
    eventually("it is open", || {
        drop(exchange(None, &proxy.address("web")));
        (state() == 2).then_some(())
    });
    assert_eq!(proxy.reload(&with(""))["message"], "reloaded");
    // What was scraped just before is told once more.
    eventually("it is closed", || (state() == 0).then_some(()));
    proxy.end();
}
