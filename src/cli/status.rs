//! `ringress status`: what a running process says about itself, as tables or as JSON.

mod traffic;

use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use super::Error;
use super::numbers::{counted, span};
use super::process::{AT_ONCE, Process, conclude};
use super::table::{row, write_table};
use crate::control::socket::protocol::{Command, Outcome};
use crate::control::socket::status::{
    BackendState, BackendStatus, BreakerState, CertificateStatus, DatagramStatus, DrainStatus,
    ListenerState, ListenerStatus, ProcessState, ReloadReport, Status, UpstreamStatus,
};

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    process: Process,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let process = &arguments.process;
    conclude(process.format(), ask(process), text)
}

/// Asks a process how it is.
pub(super) fn ask(process: &Process) -> Result<Status, Error> {
    process.ask(&Command::Status, AT_ONCE, |outcome| match outcome {
        Outcome::Status(status) => Some(*status),
        _ => None,
    })
}

fn text(status: &Status) -> String {
    let mut out = String::new();
    write_process(&mut out, status);
    let tables = [
        listeners(&status.listeners),
        traffic::listeners(&status.listeners),
        traffic::endings(&status.listeners),
        datagrams(&status.listeners),
        openings(&status.listeners),
        upstreams(&status.upstreams),
        traffic::upstreams(&status.upstreams),
        traffic::backends(&status.upstreams),
        certificates(status),
        draining(&status.draining),
    ];
    for rows in tables.iter().filter(|rows| rows.len() > 1) {
        out.push('\n');
        write_table(&mut out, rows);
    }
    out
}

fn write_process(out: &mut String, status: &Status) {
    let state = match status.state {
        ProcessState::Serving => "serving",
        ProcessState::Delaying => "serving until drain_delay is over",
        ProcessState::Draining => "draining",
        ProcessState::Unknown => "in an unknown state",
    };
    let mut line = |name: &str, value: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(out, "{name:<14} {value}");
    };
    let (version, pid) = (&status.version, status.pid);
    line("process", &format!("{pid}, ringress {version}, {state}"));
    line("up for", &span(status.uptime_ms));
    let none = "none".to_owned();
    line(
        "configuration",
        status.configuration.as_ref().unwrap_or(&none),
    );
    line("generation", &status.generation.to_string());
    if let Some(reload) = &status.last_reload {
        line("last reload", &last_reload(reload));
    }
    line("workers", &workers(status));
    let (now, most) = (status.sessions, status.max_connections);
    line("sessions", &format!("{now} of {most} at most"));
    if let Some(log) = &status.log {
        let (level, format, access) = (&log.level, &log.format, &log.access_log);
        line("log", &format!("{level}, {format}; access log: {access}"));
    }
    if status.old_processes > 0 {
        line("old processes", &status.old_processes.to_string());
    }
}

fn workers(status: &Status) -> String {
    match status.worker_restarts {
        0 => status.workers.to_string(),
        1 => format!("{}, restarted once after a panic", status.workers),
        times => format!("{}, restarted {times} times after panics", status.workers),
    }
}

fn last_reload(reload: &ReloadReport) -> String {
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(reload.at_unix_ms));
    // Beyond the year 9999 there is no such form.
    let at = at.filter(|_| reload.at_unix_ms < YEAR_10000_MS);
    let at = at.map_or_else(
        || "at an unknown time".to_owned(),
        |at| humantime::format_rfc3339_seconds(at).to_string(),
    );
    let count = reload.changes.len();
    let plural = if count == 1 { "" } else { "s" };
    match &reload.error {
        None if reload.ok => format!("{at}, {count} change{plural}"),
        None => format!("{at}, failed"),
        Some(error) => format!(
            "{at}, failed:\n  {}",
            error.trim_end().replace('\n', "\n  ")
        ),
    }
}

const YEAR_10000_MS: u64 = 253_402_300_800_000;

fn listeners(listeners: &[ListenerStatus]) -> Vec<Vec<String>> {
    let head = row([
        "LISTENER",
        "STATE",
        "SESSIONS",
        "ACCEPTED",
        "UPSTREAM",
        "ADDRESSES",
    ]);
    let rows = listeners.iter().map(|listener| {
        let state = match listener.state {
            ListenerState::Accepting => "accepting",
            ListenerState::Drained => "drained",
            ListenerState::Unknown => "unknown",
        };
        row([
            &listener.name,
            state,
            &listener.sessions.to_string(),
            &listener.accepted.to_string(),
            &listener.upstream,
            &listener.addresses.join(", "),
        ])
    });
    std::iter::once(head).chain(rows).collect()
}

/// Of the listeners that take them.
fn datagrams(listeners: &[ListenerStatus]) -> Vec<Vec<String>> {
    let head = row(["DATAGRAMS", "RECEIVED", "SENT", "DROPPED"]);
    let rows = listeners.iter().filter_map(|listener| {
        let DatagramStatus {
            received,
            sent,
            dropped,
        } = listener.datagrams.as_ref()?;
        let dropped = match dropped.is_empty() {
            true => "0".to_owned(),
            false => counted(dropped),
        };
        let (received, sent) = (received.to_string(), sent.to_string());
        Some(row([&listener.name, &received, &sent, &dropped]))
    });
    std::iter::once(head).chain(rows).collect()
}

/// Of the listeners whose sessions begin in several ways.
fn openings(listeners: &[ListenerStatus]) -> Vec<Vec<String>> {
    let head = row(["OPENED", "HOW"]);
    let opened = listeners.iter().filter(|it| !it.opened.is_empty());
    let rows = opened.map(|listener| row([&listener.name, &counted(&listener.opened)]));
    std::iter::once(head).chain(rows).collect()
}

/// What is in use of files, listeners' first.
fn certificates(status: &Status) -> Vec<Vec<String>> {
    let head = row(["CERTIFICATE", "USED BY", "EXPIRES", "NAMES", "STATE"]);
    let listeners = status.listeners.iter().flat_map(|listener| {
        let user = format!("listener {:?}", listener.name);
        listener
            .certificates
            .iter()
            .map(move |it| certificate(it, &user))
    });
    let upstreams = status.upstreams.iter().flat_map(|upstream| {
        let user = format!("upstream {:?}", upstream.name);
        upstream
            .certificates
            .iter()
            .map(move |it| certificate(it, &user))
    });
    let rows = listeners.chain(upstreams);
    std::iter::once(head).chain(rows).collect()
}

fn certificate(certificate: &CertificateStatus, user: &str) -> Vec<String> {
    let names = match (&certificate.not_after, certificate.names.is_empty()) {
        (None, true) => "authorities".to_owned(),
        (Some(_), true) => "none".to_owned(),
        (_, false) => certificate.names.join(", "),
    };
    let state = match &certificate.error {
        None => "in use".to_owned(),
        Some(error) => format!("the old one is in use: {error}"),
    };
    let expires = certificate.not_after.as_deref().unwrap_or("-");
    row([&certificate.file, user, expires, &names, &state])
}

fn upstreams(upstreams: &[UpstreamStatus]) -> Vec<Vec<String>> {
    let mut head = row([
        "UPSTREAM",
        "BACKEND",
        "STATE",
        "WEIGHT",
        "SESSIONS",
        "CONNECTIONS",
        "ADDRESS",
    ]);
    let mut backends = upstreams.iter().flat_map(|upstream| &upstream.backends);
    if backends.any(|backend| backend.why.is_some()) {
        head.push("WHY".to_owned());
    }
    let pairs = upstreams
        .iter()
        .flat_map(|upstream| upstream.backends.iter().map(move |it| (upstream, it)));
    let rows = pairs.map(|(upstream, backend)| {
        let mut row = row([
            &upstream.name,
            &backend.name,
            &backend_state(backend),
            &backend.weight.to_string(),
            &backend.sessions.to_string(),
            &backend.connections.to_string(),
            &backend.address,
        ]);
        row.extend(backend.why.clone());
        row
    });
    std::iter::once(head).chain(rows).collect()
}

/// As it is told; of an older process that tells none, everything that keeps it from being chosen, or `ready`.
fn backend_state(backend: &BackendStatus) -> String {
    if backend.state != BackendState::Unknown {
        return backend.state.as_str().to_owned();
    }
    let breaker = match backend.breaker {
        BreakerState::Closed | BreakerState::Unknown => None,
        BreakerState::Open => Some("breaker open"),
        BreakerState::HalfOpen => Some("breaker half-open"),
    };
    let reasons = [
        (!backend.enabled).then_some("drained"),
        (!backend.healthy).then_some("unhealthy"),
        backend.ejected.then_some("ejected"),
        breaker,
    ];
    let reasons: Vec<_> = reasons.into_iter().flatten().collect();
    if reasons.is_empty() {
        "ready".to_owned()
    } else {
        reasons.join(", ")
    }
}

fn draining(draining: &[DrainStatus]) -> Vec<Vec<String>> {
    let head = row(["DRAINING", "SESSIONS LEFT", "ABORTED IN"]);
    let rows = draining.iter().map(|draining| {
        row([
            &draining.part.to_string(),
            &draining.sessions_left.to_string(),
            &draining.deadline_in_ms.map_or_else(|| "-".to_owned(), span),
        ])
    });
    std::iter::once(head).chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::diff::{Change, How};
    use crate::control::socket::protocol::Part;
    use crate::control::socket::status::LogStatus;

    fn status() -> Status {
        let healthy = BackendStatus {
            name: "b1".to_owned(),
            address: "10.0.0.1:80".to_owned(),
            healthy: true,
            enabled: true,
            breaker: BreakerState::Closed,
            weight: 10,
            sessions: 3,
            connections: 5,
            ..BackendStatus::default()
        };
        let dead = BackendStatus {
            name: "b2".to_owned(),
            address: "10.0.0.2:80".to_owned(),
            enabled: true,
            ejected: true,
            breaker: BreakerState::HalfOpen,
            weight: 1,
            ..BackendStatus::default()
        };
        Status {
            pid: 4711,
            version: "0.1.0".to_owned(),
            uptime_ms: 3_725_999,
            configuration: Some("/etc/a.toml".to_owned()),
            state: ProcessState::Serving,
            generation: 4,
            workers: 2,
            sessions: 3,
            max_connections: 1000,
            log: Some(LogStatus {
                level: "info".to_owned(),
                format: "text".to_owned(),
                access_log: "off".to_owned(),
            }),
            listeners: vec![ListenerStatus {
                name: "web".to_owned(),
                state: ListenerState::Accepting,
                addresses: vec!["0.0.0.0:80".to_owned(), "[::]:80".to_owned()],
                upstream: "app".to_owned(),
                sessions: 3,
                accepted: 12_345_678,
                ..ListenerStatus::default()
            }],
            upstreams: vec![UpstreamStatus {
                name: "app".to_owned(),
                backends: vec![healthy, dead],
                ..UpstreamStatus::default()
            }],
            ..Status::default()
        }
    }

    #[test]
    fn restarts_of_workers_are_shown_where_there_were_any() {
        let mut status = status();
        for (restarts, shown) in [
            (0, "workers        2\n"),
            (1, "workers        2, restarted once after a panic\n"),
            (3, "workers        2, restarted 3 times after panics\n"),
        ] {
            status.worker_restarts = restarts;
            assert!(text(&status).contains(shown), "{}", text(&status));
        }
    }

    #[test]
    fn a_state_is_printed_as_it_is_told_and_why() {
        let mut status = status();
        let backends = &mut status.upstreams[0].backends;
        backends[0].state = BackendState::Up;
        backends[1].state = BackendState::Ejected;
        backends[1].why = Some("failures in a row, back in 3.2 s".to_owned());
        let expected = "
UPSTREAM  BACKEND  STATE    WEIGHT  SESSIONS  CONNECTIONS  ADDRESS      WHY
app       b1       up       10      3         5            10.0.0.1:80
app       b2       ejected  1       0         0            10.0.0.2:80  failures in a row, back in 3.2 s
";
        let text = text(&status);
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn the_status_of_an_older_process_reads_as_tables() {
        let expected = "\
process        4711, ringress 0.1.0, serving
up for         1h 2m 5s
configuration  /etc/a.toml
generation     4
workers        2
sessions       3 of 1000 at most
log            info, text; access log: off

LISTENER  STATE      SESSIONS  ACCEPTED  UPSTREAM  ADDRESSES
web       accepting  3         12345678  app       0.0.0.0:80, [::]:80

UPSTREAM  BACKEND  STATE                                  WEIGHT  SESSIONS  CONNECTIONS  ADDRESS
app       b1       ready                                  10      3         5            10.0.0.1:80
app       b2       unhealthy, ejected, breaker half-open  1       0         0            10.0.0.2:80
";
        assert_eq!(text(&status()), expected);
    }

    #[test]
    fn datagrams_have_a_table_of_their_own() {
        let mut status = status();
        status.listeners[0].datagrams = Some(DatagramStatus {
            received: 10,
            sent: 7,
            dropped: [("denied".to_owned(), 1), ("no-backend".to_owned(), 2)].into(),
        });
        let text = text(&status);
        let expected = "
DATAGRAMS  RECEIVED  SENT  DROPPED
web        10        7     2 no-backend, 1 denied
";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn what_tls_is_and_does_is_told() {
        let mut status = status();
        status.listeners[0].opened = [("tls1.3".to_owned(), 9), ("tls1.2".to_owned(), 1)].into();
        let mut own = CertificateStatus {
            file: "/etc/a.pem".to_owned(),
            names: vec!["a.example".to_owned(), "*.b.example".to_owned()],
            not_after: Some("2026-03-01T12:00:00Z".to_owned()),
            error: None,
        };
        status.listeners[0].certificates.push(own.clone());
        own.error = Some("/etc/a.key: there is no key in it".to_owned());
        own.names.clear();
        status.listeners[0].certificates.push(own);
        status.upstreams[0].certificates.push(CertificateStatus {
            file: "/etc/ca.pem".to_owned(),
            ..CertificateStatus::default()
        });
        let text = text(&status);
        let expected = "
OPENED  HOW
web     9 tls1.3, 1 tls1.2
";
        assert!(text.contains(expected), "{text}");
        let expected = "
CERTIFICATE  USED BY         EXPIRES               NAMES                   STATE
/etc/a.pem   listener \"web\"  2026-03-01T12:00:00Z  a.example, *.b.example  in use
/etc/a.pem   listener \"web\"  2026-03-01T12:00:00Z  none                    the old one is in use: /etc/a.key: \
there is no key in it
/etc/ca.pem  upstream \"app\"  -                     authorities             in use
";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn a_reload_that_failed_is_told_with_every_line_of_its_error() {
        let error = "a.toml:3:5: error: x\n  | y\n".to_owned();
        let mut status = status();
        status.last_reload = Some(ReloadReport {
            at_unix_ms: 1_700_000_000_999,
            error: Some(error),
            ..ReloadReport::default()
        });
        let text = text(&status);
        let expected =
            "last reload    2023-11-14T22:13:20Z, failed:\n  a.toml:3:5: error: x\n    | y\n";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn the_last_reload_that_took_effect_is_told_with_its_time() {
        let mut reload = ReloadReport {
            at_unix_ms: 1_700_000_000_999,
            ok: true,
            changes: vec![Change {
                key: "x".to_owned(),
                from: None,
                to: None,
                how: How::Live,
            }],
            ..ReloadReport::default()
        };
        assert_eq!(last_reload(&reload), "2023-11-14T22:13:20Z, 1 change");
        reload.at_unix_ms = u64::MAX;
        assert_eq!(last_reload(&reload), "at an unknown time, 1 change");
        reload.at_unix_ms = YEAR_10000_MS - 1;
        assert_eq!(last_reload(&reload), "9999-12-31T23:59:59Z, 1 change");
    }

    #[test]
    fn what_is_draining_and_who_is_left_over_is_told() {
        let mut status = status();
        let listener = "web".to_owned();
        status.draining.push(DrainStatus {
            part: Part::Listener { listener },
            sessions_left: 7,
            deadline_in_ms: Some(25_300),
        });
        status.state = ProcessState::Draining;
        status.old_processes = 1;
        let text = text(&status);
        for expected in [
            "0.1.0, draining\n",
            "old processes  1\n",
            "DRAINING        SESSIONS LEFT  ABORTED IN\nlistener \"web\"  7              25s\n",
        ] {
            assert!(text.contains(expected), "{expected} is missing in:\n{text}");
        }
    }

    #[test]
    fn a_status_of_another_version_can_be_shown() {
        assert!(text(&Status::default()).contains("in an unknown state"));
    }
}
