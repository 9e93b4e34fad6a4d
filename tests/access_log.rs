//! The access log: a line per session that agrees with what clients and backends have counted, and that a
//! flood, a full disk or a client's words can't spoil.

mod common;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use rustix::process::Signal;
use serde_json::Value;

use common::socket::{connect, exchange, finish, read_to_end, reset};
use common::{Backend, Proxy, config, eventually};

/// Tables that turn the log on, in JSON, at the level that users have.
fn logged(to: &str) -> String {
    format!(
        "[runtime]\nworkers = 2\n[log]\nlevel = \"info\"\nformat = \"json\"\naccess_log = {to:?}\n"
    )
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).expect("a line is JSON"))
        .collect()
}

/// Waits for so many lines of sessions.
fn sessions(path: &Path, count: usize) -> Vec<Value> {
    eventually("lines of the access log", || {
        let lines = lines(path);
        let sessions: Vec<_> = lines
            .into_iter()
            .filter(|it| it["reason"].is_string())
            .collect();
        (sessions.len() >= count).then_some(sessions)
    })
}

fn number(line: &Value, field: &str) -> u64 {
    line[field].as_u64().expect("a number")
}

#[test]
fn lines_and_counters_agree_with_clients_and_backends() {
    let (good, heard) = Backend::recording("answer");
    let broken = Backend::start(|mut connection| {
        let mut some = [0; 4];
        let _ = connection.read(&mut some);
        reset(connection);
    });
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("access.log");
    let upstream = format!(
        "[upstreams.broken]\nbackends = [{:?}]\n\
         [upstreams.nobody]\nbackends = [\"127.0.0.1:1\"]\n\
         [listeners.broken]\nbind = \"127.0.0.1:0\"\nupstream = \"broken\"\n\
         [listeners.nobody]\nbind = \"127.0.0.1:0\"\nupstream = \"nobody\"\n\
         [listeners.closed]\nbind = \"127.0.0.1:0\"\nupstream = \"app\"\ndeny = [\"127.0.0.0/8\"]\n",
        broken.address
    );
    let tables = format!("{upstream}{}", logged(&path.display().to_string()));
    let proxy = Proxy::start(&config(&[&good.address], "", "", &tables));
    let mut expected = BTreeMap::new();
    for round in 0..10 {
        let mut client = connect(&proxy.address("web"));
        client
            .write_all(&vec![7; 1000 + round])
            .expect("it is open");
        finish(&client);
        assert_eq!(read_to_end(&mut client), b"answer");
        assert_eq!(common::told(&heard).len(), 1000 + round);
        for (listener, reason) in [
            ("web", "client-closed"),
            ("broken", "backend-reset"),
            ("nobody", "no-backend"),
            ("closed", "denied"),
        ] {
            *expected
                .entry((listener.to_owned(), reason.to_owned()))
                .or_insert(0_usize) += 1;
        }
        let mut client = connect(&proxy.address("broken"));
        client.write_all(b"work").expect("it is open");
        let _ = client.read(&mut [0; 1]);
        for listener in ["nobody", "closed"] {
            assert!(exchange(None, &proxy.address(listener)).is_none());
        }
    }
    let lines = sessions(&path, 40);
    let mut seen = BTreeMap::new();
    for line in &lines {
        let key = (
            common::proxy::text(line, "listener"),
            common::proxy::text(line, "reason"),
        );
        *seen.entry(key).or_insert(0) += 1;
    }
    assert_eq!(seen, expected);
    let web: Vec<_> = lines
        .iter()
        .filter(|line| line["listener"] == "web")
        .collect();
    let bytes: u64 = web.iter().map(|line| number(line, "bytes_received")).sum();
    assert_eq!(bytes, (0..10).map(|round| 1000 + round).sum::<u64>());
    for line in web {
        assert_eq!(
            (number(line, "bytes_sent"), &line["backend"]),
            (6, &Value::from(&*good.address))
        );
        let time = |field: &str| line[field].as_f64().expect("seconds");
        assert!(time("connect") <= time("duration") && time("first_byte") <= time("duration"));
    }
    proxy.end();
}

#[test]
fn a_flood_of_refusals_is_a_number_in_the_log() {
    let backend = Backend::echo();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("access.log");
    let closed = "deny = [\"127.0.0.0/8\"]\n";
    let tables = logged(&path.display().to_string());
    let proxy = Proxy::start(&config(&[&backend.address], closed, "", &tables));
    let address = proxy.address("web");
    for _ in 0..1000 {
        assert!(exchange(None, &address).is_none());
    }
    let written = eventually("all are told in one way or the other", || {
        let lines = lines(&path);
        let skipped: u64 = lines
            .iter()
            .filter_map(|line| line["skipped"].as_u64())
            .sum();
        let denied = lines
            .iter()
            .filter(|line| line["reason"] == "denied")
            .count();
        (denied as u64 + skipped == 1000).then_some(denied)
    });
    // A hundred a second, on a machine that needs some seconds at most.
    assert!((100..1000).contains(&written), "{written}");
    proxy.end();
}

#[test]
fn what_was_not_written_is_told_at_the_end_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("access.log");
    let closed = "deny = [\"127.0.0.0/8\"]\n";
    let tables = logged(&path.display().to_string());
    let proxy = Proxy::start(&config(&["127.0.0.1:1"], closed, "", &tables));
    let address = proxy.address("web");
    for _ in 0..1000 {
        assert!(exchange(None, &address).is_none());
    }
    proxy.end();
    let lines = lines(&path);
    let skipped: u64 = lines
        .iter()
        .filter_map(|line| line["skipped"].as_u64())
        .sum();
    let denied = lines
        .iter()
        .filter(|line| line["reason"] == "denied")
        .count();
    assert_eq!(denied as u64 + skipped, 1000);
}

/// With the log in a file.
fn logging_to(path: &Path, backend: &Backend) -> String {
    let tables = logged(&path.display().to_string());
    config(&[&backend.address], "", "", &tables)
}

#[test]
fn a_file_that_was_moved_away_is_opened_again_by_signal_and_another_one_by_reload() {
    let backend = Backend::echo();
    let folder = tempfile::tempdir().expect("a folder");
    let [first, moved, second] = ["a.log", "a.log.1", "b.log"].map(|name| folder.path().join(name));
    let with = |path: &Path| logging_to(path, &backend);
    let proxy = Proxy::start(&with(&first));
    let address = proxy.address("web");
    drop(exchange(None, &address).expect("served"));
    sessions(&first, 1);
    std::fs::rename(&first, &moved).expect("it is there");
    proxy.signal(Signal::USR1);
    proxy.wait_line("opened again", |line| {
        (line["message"] == "access log opened again").then_some(())
    });
    drop(exchange(None, &address).expect("served"));
    assert_eq!((sessions(&first, 1).len(), lines(&moved).len()), (1, 1));
    assert_eq!(proxy.reload(&with(&second))["message"], "reloaded");
    drop(exchange(None, &address).expect("served"));
    assert_eq!((sessions(&second, 1).len(), lines(&first).len()), (1, 1));
    let refused = proxy.reload(&with(&folder.path().join("none/a.log")));
    let error = refused.to_string();
    assert!(
        error.contains("can't open the access log") && error.contains("none/a.log"),
        "{error}"
    );
    drop(exchange(None, &address).expect("served"));
    sessions(&second, 2);
    proxy.end();
}

#[test]
fn a_full_disk_stops_nobody() {
    let backend = Backend::echo();
    let tables = logged("/dev/full");
    let proxy = Proxy::start(&config(&[&backend.address], "", "", &tables));
    let address = proxy.address("web");
    for _ in 0..3 {
        drop(exchange(None, &address).expect("served"));
    }
    proxy.wait_line("a complaint", |line| {
        let message = line["message"].as_str().unwrap_or_default();
        message
            .starts_with("the access log can't be written")
            .then_some(())
    });
    drop(exchange(None, &address).expect("served"));
    proxy.end();
}

#[test]
fn a_log_that_cant_be_opened_is_an_error_at_start() {
    let tables = logged("/none/such/access.log");
    let (code, said) = Proxy::fails(&config(&["127.0.0.1:1"], "", "", &tables));
    assert_eq!(code, Some(1));
    assert!(
        said.contains("can't open the access log /none/such/access.log"),
        "{said}"
    );
}

#[test]
fn a_fifo_that_nobody_reads_refuses_the_reload_and_one_with_a_reader_gets_its_lines() {
    let backend = Backend::echo();
    let folder = tempfile::tempdir().expect("a folder");
    let [file, fifo] = ["a.log", "a.fifo"].map(|name| folder.path().join(name));
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a FIFO");
    let with = |path: &Path| logging_to(path, &backend);
    let proxy = Proxy::start(&with(&file));
    let refused = proxy.reload(&with(&fifo)).to_string();
    assert!(
        refused.contains("a.fifo: it is a FIFO that nobody reads"),
        "{refused}"
    );
    // Its control thread goes on.
    assert_eq!(proxy.status()["generation"], 1);
    let nonblocking = OFlags::RDONLY | OFlags::NONBLOCK;
    let reader = rustix::fs::open(&fifo, nonblocking, Mode::empty()).expect("it is there");
    assert_eq!(proxy.reload(&with(&fifo))["message"], "reloaded");
    drop(exchange(None, &proxy.address("web")).expect("served"));
    let mut reader = std::fs::File::from(reader);
    let mut read = Vec::new();
    eventually("a line in the FIFO", || {
        // Until it has come there is none.
        let _ = reader.read_to_end(&mut read);
        read.ends_with(b"\n").then_some(())
    });
    let line: Value = serde_json::from_slice(&read).expect("one line of JSON");
    assert_eq!(line["listener"], "web");
    proxy.end();
}
