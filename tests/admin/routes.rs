//! What there is to read.

use std::io::Write;
use std::io::{BufRead, BufReader};

use ringress::config::{self, SystemResolver, diff};
use serde_json::Value;
use socket2::Socket;

use crate::common::http::{ask, get, request};
use crate::common::{connect, eventually, system};
use crate::{RIGHT, TOKEN, guarded, with_admin};

const HERE: &str = "listen = \"127.0.0.1:0\"";

#[test]
fn every_path_answers_with_its_kind_and_nothing_is_kept_by_caches() {
    let (proxy, _backend) = with_admin(HERE);
    let admin = proxy.admin();
    for (path, kind, part) in [
        ("/", "text/html; charset=utf-8", "<!doctype html>"),
        ("/healthz", "text/plain; charset=utf-8", "ok\n"),
        ("/readyz", "text/plain; charset=utf-8", "ready\n"),
        ("/status", "application/json", "\"state\":\"serving\""),
        ("/config", "application/toml", "[listeners.web]"),
        (
            "/metrics",
            "text/plain; version=0.0.4; charset=utf-8",
            "ringress_build_info",
        ),
        ("/hdr", "text/plain; charset=utf-8", "Tag=listener/web/"),
    ] {
        let answer = get(&admin, path);
        assert_eq!(
            (answer.status, answer.header("content-type")),
            (200, kind),
            "{path}"
        );
        assert!(answer.body.contains(part), "{path}: {answer:?}");
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff", "{path}");
        let head = ask(&admin, "HEAD", path, &[]);
        assert_eq!((head.status, &*head.body), (200, ""), "{path}");
        assert_eq!(head.header("content-type"), kind, "{path}");
        for method in ["PUT", "DELETE", "OPTIONS", "TRACE", "BREW"] {
            let refused = ask(&admin, method, path, &[]);
            assert_eq!(
                (refused.status, refused.header("allow")),
                (405, "GET, HEAD"),
                "{path}"
            );
        }
    }
    let page = get(&admin, "/");
    let policy = page.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
    proxy.end();
}

#[test]
fn what_is_not_there_says_what_is_in_the_form_that_is_asked_for() {
    let (proxy, _backend) = with_admin(HERE);
    let admin = proxy.admin();
    let lost = get(&admin, "/metric");
    assert_eq!(lost.status, 404);
    assert!(
        lost.body.contains("/metrics") && lost.body.lines().count() == 1,
        "{lost:?}"
    );
    let lost = ask(&admin, "GET", "/metric", &["Accept: application/json"]);
    let error = lost.json()["error"].as_str().map(str::to_owned);
    assert!(error.is_some_and(|it| it.contains("/metrics")), "{lost:?}");
    let post_only = get(&admin, "/reload");
    assert_eq!((post_only.status, post_only.header("allow")), (405, "POST"));
    proxy.end();
}

#[test]
fn status_is_what_the_command_says() {
    let (proxy, _backend) = with_admin(HERE);
    let mut told = get(&proxy.admin(), "/status").json();
    let mut known = proxy.status();
    for status in [&mut told, &mut known] {
        status["uptime_ms"] = Value::Null;
    }
    assert_eq!(told, known);
    proxy.end();
}

#[test]
fn the_effective_configuration_means_the_same_and_holds_no_secret() {
    let (proxy, _backend) = guarded();
    let admin = proxy.admin();
    let toml = ask(&admin, "GET", "/config", &[RIGHT]).body;
    let json = ask(
        &admin,
        "GET",
        "/config",
        &[RIGHT, "Accept: application/json"],
    );
    for shown in [&toml, &json.body] {
        assert!(!shown.contains(TOKEN), "{shown}");
    }
    assert_eq!(json.json()["runtime"]["drain_timeout"], "1m");
    let name = proxy.file().display().to_string();
    let read = config::parse(&toml, &name, &mut SystemResolver).expect("it is a configuration");
    let own = config::load(&proxy.file()).expect("it is in effect");
    let changes: Vec<_> = diff::between(&own, &read);
    let keys: Vec<_> = changes.iter().map(|change| &*change.key).collect();
    assert_eq!(keys, ["admin.token"]);
    let lines = serde_json::to_string(&proxy.lines()).expect("lines are JSON");
    assert!(!lines.contains(TOKEN));
    proxy.end();
}

#[test]
fn metrics_are_in_the_form_that_is_wanted_and_count() {
    let (proxy, _backend) = with_admin(HERE);
    let admin = proxy.admin();
    let _client = crate::common::socket::exchange(None, &proxy.address("web")).expect("served");
    let counted = "ringress_listener_connections_total{listener=\"web\"} 1\n";
    eventually("the session to be counted", || {
        get(&admin, "/metrics").body.contains(counted).then_some(())
    });
    let wanted = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5,*/*;q=0.1";
    let open = ask(&admin, "GET", "/metrics", &[wanted]);
    assert!(
        open.header("content-type")
            .starts_with("application/openmetrics-text; version=1.0.0")
    );
    assert!(
        open.body.ends_with("# EOF\n") && open.body.contains(counted),
        "{open:?}"
    );
    assert!(
        open.body
            .contains("# TYPE ringress_listener_connections counter\n"),
        "{open:?}"
    );
    proxy.end_now();
}

/// Looks on.
fn subscribe(admin: &str) -> BufReader<Socket> {
    let mut socket = connect(admin);
    let asked = request("GET", "/events", &[]);
    socket.write_all(asked.as_bytes()).expect("it is taken");
    BufReader::new(socket)
}

/// The next event: its name and its data.
fn next_event(stream: &mut impl BufRead) -> Option<(String, Value)> {
    let mut name = String::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).expect("it goes on") == 0 {
            return None;
        }
        if let Some(event) = line.trim_end().strip_prefix("event: ") {
            name = event.to_owned();
        }
        if let Some(data) = line.strip_prefix("data: ") {
            return Some((name, serde_json::from_str(data).expect("it is JSON")));
        }
    }
}

/// The data of the next pulse.
fn next_pulse(stream: &mut impl BufRead) -> Value {
    loop {
        let (name, data) = next_event(stream).expect("a pulse");
        if name == "pulse" {
            return data;
        }
    }
}

#[test]
fn a_pulse_comes_once_a_second_and_the_same_for_all_who_look_on() {
    let (proxy, _backend) = with_admin(HERE);
    let admin = proxy.admin();
    let mut streams: Vec<_> = (0..32).map(|_| subscribe(&admin)).collect();
    let first: Vec<_> = streams.iter_mut().map(next_pulse).collect();
    assert_eq!(first[0]["state"], "serving");
    let full = get(&admin, "/events");
    assert_eq!(full.status, 503, "{full:?}");
    let uptime = |event: &Value| event["uptime_ms"].as_u64().expect("a number");
    let second: Vec<_> = streams.iter_mut().map(next_pulse).collect();
    for (first, second) in first.iter().zip(&second) {
        assert!(uptime(second) > uptime(first));
    }
    // Some may have come a second later than others.
    let third: Vec<_> = streams.iter_mut().map(next_pulse).collect();
    let last: Vec<_> = third.iter().map(uptime).collect();
    let distinct: std::collections::BTreeSet<_> = last.iter().collect();
    assert!(distinct.len() <= 2, "{distinct:?}");
    let before = system::descriptors(proxy.pid());
    drop(streams);
    eventually("those who left to be let go", || {
        (system::descriptors(proxy.pid()) + 32 <= before).then_some(())
    });
    proxy.end();
}

#[test]
fn who_looks_on_hears_first_what_was_and_then_what_is() {
    let (proxy, _backend) = with_admin(HERE);
    let admin = proxy.admin();
    let mut early = subscribe(&admin);
    // The first one of a process is of no period, and not kept.
    (0..2).for_each(|_| drop(next_pulse(&mut early)));
    let mut stream = subscribe(&admin);
    let (name, history) = next_event(&mut stream).expect("an event");
    assert_eq!(name, "history");
    let pulses = history["pulses"].as_array().expect("a list");
    let brief = pulses.last().expect("one was taken");
    assert_eq!(brief["listeners"][0]["name"], "web");
    assert_eq!(brief["upstreams"][0]["backends"], serde_json::json!([]));
    let (name, news) = next_event(&mut stream).expect("an event");
    assert_eq!(name, "news");
    let started = |news: &Value| {
        let mut lines = news["lines"].as_array().expect("a list").iter();
        lines.any(|line| {
            let message = line["message"].as_str().expect("a text");
            line["level"] == "info" && message.starts_with("started workers=2")
        })
    };
    assert!(started(&news), "{news}");
    let _client = crate::common::socket::exchange(None, &proxy.address("web")).expect("served");
    let counted = eventually("the session to be in a pulse", || {
        let pulse = next_pulse(&mut stream);
        (pulse["listeners"][0]["accepted"] == 1).then_some(pulse)
    });
    let backend = &counted["upstreams"][0]["backends"][0];
    assert_eq!(
        (&backend["state"], &backend["connections"]),
        (&"up".into(), &1.into())
    );
    assert_eq!(next_pulse(&mut stream)["listeners"][0]["accepted"], 0);
    proxy.end_now();
}

#[test]
fn who_looks_on_is_told_the_end_by_the_end_of_the_stream() {
    let (mut proxy, _backend) = with_admin(HERE);
    let mut stream = subscribe(&proxy.admin());
    next_event(&mut stream).expect("an event");
    proxy.signal(rustix::process::Signal::TERM);
    while next_event(&mut stream).is_some() {}
    assert_eq!(proxy.wait_exit().code(), Some(0));
}
