//! The control socket of a real process: what it tells of itself, who finds it where, and that nobody
//! can hold it up.

mod common;

#[path = "status/dump.rs"]
mod dump;
#[path = "status/explain.rs"]
mod explain;
#[path = "status/instances.rs"]
mod instances;
#[path = "status/screen.rs"]
mod screen;
#[path = "status/visitors.rs"]
mod visitors;

use std::fs;

use common::commands::named;
use common::mortal::{Mortal, PING, SICK, visit};
use common::proxy::text;
use common::switched::{Manner, Switched};
use common::{Backend, Proxy, connect, eventually, plain};
use rustix::process::Signal;
use serde_json::{Value, json};

#[test]
fn a_new_process_tells_what_it_is_and_has() {
    let backend = Backend::echo();
    let proxy = Proxy::start(&common::config(
        &[&backend.address],
        "",
        "",
        "[runtime]\nworkers = 2\nmax_connections = 1000\n",
    ));
    let status = proxy.status();
    assert_eq!(status["pid"], proxy.pid());
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(
        status["configuration"],
        proxy.file().to_str().expect("UTF-8")
    );
    assert_eq!(
        (&status["generation"], &status["last_reload"]),
        (&json!(1), &Value::Null)
    );
    assert_eq!(
        (&status["workers"], &status["max_connections"]),
        (&json!(2), &json!(1000))
    );
    assert_eq!(
        status["listeners"],
        json!([{
            "name": "web", "state": "accepting", "addresses": [proxy.address("web")],
            "upstream": "app", "sessions": 0, "accepted": 0, "closed": {},
            "bytes_received": 0, "bytes_sent": 0, "refused": 0,
        }])
    );
    assert_eq!(
        status["upstreams"],
        json!([{ "name": "app", "balance": "round-robin", "failing_open": false, "requests": 0,
            "retries": 0, "retries_denied": 0, "waiting": 0, "backends": [{
            "name": backend.address, "address": backend.address, "state": "up", "healthy": true,
            "enabled": true, "ejected": false, "breaker": "closed", "weight": 1, "sessions": 0, "connections": 0,
            "sessions_total": 0, "failed": 0, "ejections": 0, "breaker_opened": 0,
        }]}])
    );
    let session = common::socket::exchange(None, &proxy.address("web")).expect("it is served");
    let status = proxy.status();
    let listener = named(&status["listeners"], "web");
    assert_eq!(
        (&listener["sessions"], &listener["accepted"]),
        (&json!(1), &json!(1))
    );
    let known = &status["upstreams"][0]["backends"][0];
    assert_eq!(
        (&known["sessions"], &known["connections"]),
        (&json!(1), &json!(1))
    );
    drop(session);
    eventually("the session to be counted", || {
        let status = proxy.status();
        (status["listeners"][0]["closed"] == json!({"client-closed": 1})).then_some(())
    });
    let log = json!({"level": "debug", "format": "json", "access_log": "off"});
    assert_eq!(proxy.status()["log"], log);
    let told = proxy.done("status");
    for part in [
        &proxy.pid().to_string(),
        &proxy.address("web"),
        &backend.address,
    ] {
        assert!(told.contains(part.as_str()), "{part}: {told}");
    }
    proxy.end();
}

#[test]
fn what_has_gone_through_is_told_with_how_long_it_took() {
    let backend = Backend::echo();
    let gone = common::backend::free_address();
    let listener = "deny = [\"127.0.0.9/32\"]";
    let proxy = Proxy::start(&common::config(
        &[&gone, &backend.address],
        listener,
        "retry = { attempts = 1, budget = 1.0 }",
        "[runtime]\nworkers = 1\n",
    ));
    let address = proxy.address("web");
    for _ in 0..10 {
        drop(common::socket::exchange(None, &address).expect("it is served"));
    }
    assert!(common::socket::exchange(Some("127.0.0.9"), &address).is_none());
    let status = eventually("all to have ended", || {
        let status = proxy.status();
        (status["listeners"][0]["closed"]["client-closed"] == 10).then_some(status)
    });
    let listener = &status["listeners"][0];
    let of = |value: &Value, fields: &[&str]| {
        let fields = fields.iter().map(|field| value[field].as_u64());
        fields.map(|it| it.expect("a number")).collect::<Vec<_>>()
    };
    let bytes = of(listener, &["bytes_received", "bytes_sent", "refused"]);
    assert_eq!(bytes, [10, 10, 1]);
    let upstream = &status["upstreams"][0];
    assert_eq!(
        of(upstream, &["requests", "retries", "waiting"]),
        [10, 5, 0]
    );
    let served = named(&upstream["backends"], &backend.address);
    assert_eq!(of(served, &["sessions_total", "failed"]), [10, 0]);
    let failing = named(&upstream["backends"], &gone);
    assert_eq!(of(failing, &["sessions_total", "failed"]), [0, 5]);
    for latency in [
        &listener["duration"],
        &upstream["connect"],
        &upstream["first_byte"],
        &served["first_byte"],
    ] {
        let [count, p50, p99] = of(latency, &["count", "p50_us", "p99_us"])[..] else {
            panic!("three of them");
        };
        assert!(count == 10 && 0 < p50 && p50 <= p99, "{latency}");
        assert!(p99 < 20_000_000, "{latency}");
    }
    let told = proxy.done("status");
    for part in ["TRAFFIC", "1         denied", "REQUESTS", "FIRST BYTE P50"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(told.lines().all(|line| line.len() <= 100), "{told}");
    proxy.end();
}

#[test]
fn the_last_reloads_error_is_told_with_its_place_until_one_succeeds() {
    let backend = Backend::echo();
    let config = plain(&[&backend.address]);
    let proxy = Proxy::start(&config);
    proxy.write(&config.replace("upstream = \"app\"", "upstream = \"ap\""));
    let place = format!(
        "{}:3:12: error: there is no upstream",
        proxy.file().display()
    );
    let said = proxy.refused("reload");
    assert!(said.contains(&place), "{said}");
    for _ in 0..2 {
        let status = proxy.status();
        assert_eq!(status["generation"], 1);
        let last = &status["last_reload"];
        assert_eq!(
            (&last["ok"], &last["generation"]),
            (&json!(false), &json!(1))
        );
        assert!(text(last, "error").contains(&place), "{last}");
        let told = proxy.done("status");
        assert!(told.contains(":3:12:"), "{told}");
        // Nothing but a reload takes it away.
        proxy.done("drain --listener web");
        proxy.done("resume --listener web");
    }
    let status = proxy.status();
    let address = status["listeners"][0]["addresses"][0].as_str();
    common::essentials::there_and_back(&connect(address.expect("it is bound")), 1000);
    proxy.write(&config);
    let said = proxy.done("reload");
    assert_eq!(said, "reloaded: nothing has changed, generation 2\n");
    let status = proxy.status();
    let last = &status["last_reload"];
    assert_eq!(
        (&last["ok"], &last["generation"]),
        (&json!(true), &json!(2))
    );
    assert_eq!(last["error"], Value::Null);
    proxy.end();
}

#[test]
fn a_reload_by_signal_is_told_in_the_same_way() {
    let backend = Backend::echo();
    let config = plain(&[&backend.address]);
    let proxy = Proxy::start(&config);
    proxy.reload("[listeners.web\n");
    assert_eq!(proxy.status()["last_reload"]["ok"], false);
    proxy.reload(&config.replace("[upstreams.app]", "[upstreams.app]\nbalance = \"random\""));
    let status = proxy.status();
    assert_eq!(
        (&status["generation"], &status["last_reload"]["ok"]),
        (&json!(2), &json!(true))
    );
    let change = &status["last_reload"]["changes"][0];
    assert_eq!(change["key"], "upstreams.app.balance");
    assert_eq!(
        (&change["from"], &change["to"]),
        (&json!("round-robin"), &json!("random"))
    );
    proxy.end();
}

#[test]
fn health_ejections_breakers_and_orders_are_told() {
    let sick = Mortal::new();
    let well = Mortal::new();
    let failing = Switched::new(Manner::Reset);
    let config = format!(
        "[listeners.web]\nbind = \"127.0.0.1:0\"\nupstream = \"checked\"\n\
         [listeners.two]\nbind = \"127.0.0.1:0\"\nupstream = \"ejects\"\n\
         [listeners.three]\nbind = \"127.0.0.1:0\"\nupstream = \"breaks\"\n\
         [upstreams.checked]\nbackends = [{:?}, {:?}]\n\
         [upstreams.checked.health_check]\n{PING}interval = \"50ms\"\nfall = 1\njitter = 0\n\
         [upstreams.ejects]\nbackends = [{:?}, {:?}]\n\
         [upstreams.ejects.outlier]\nconsecutive_failures = 1\n\
         [upstreams.breaks]\nbackends = [{:?}]\n\
         [upstreams.breaks.circuit_breaker]\nmin_requests = 1\n\
         [runtime]\nworkers = 1\n",
        sick.address, well.address, failing.address, well.address, failing.address,
    );
    sick.answer_probes(SICK);
    let proxy = Proxy::start(&config);
    proxy.wait_about(0, "backend is down", &sick.address);
    // Resets count only for who has not served.
    for listener in ["two", "three"] {
        for _ in 0..4 {
            let _ = visit(&proxy.address(listener));
        }
    }
    proxy.done(&format!(
        "drain --backend checked/{} --deadline 1h",
        well.address
    ));
    let status = proxy.status();
    let of = |upstream: &str, backend: &str| {
        let backends = &named(&status["upstreams"], upstream)["backends"];
        named(backends, backend).clone()
    };
    let down = of("checked", &sick.address);
    assert_eq!(
        (&down["healthy"], &down["state"]),
        (&json!(false), &json!("down"))
    );
    let why = text(&down, "why");
    assert!(why.contains("no disk"), "{why}");
    let drained = of("checked", &well.address);
    assert_eq!(
        (&drained["healthy"], &drained["enabled"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(text(&drained, "state"), "disabled");
    assert_eq!(text(&drained, "why"), "drained by order");
    assert_eq!(of("ejects", &failing.address)["ejected"], true);
    assert_eq!(of("ejects", &failing.address)["state"], "ejected");
    assert_eq!(of("ejects", &well.address)["ejected"], false);
    let well = of("ejects", &well.address);
    assert_eq!((&well["state"], &well["why"]), (&json!("up"), &json!(null)));
    assert_eq!(of("breaks", &failing.address)["breaker"], "open");
    assert_eq!(of("breaks", &failing.address)["state"], "open");
    let left = status["draining"][0]["deadline_in_ms"]
        .as_u64()
        .expect("a number");
    assert!((3_500_000..=3_600_000).contains(&left), "{left}");
    let told = proxy.done("status");
    for word in [&why, "ejected", "breaker open", "drained by order"] {
        assert!(told.contains(word), "{word}: {told}");
    }
    proxy.end();
}

#[test]
fn requests_are_logged_with_who_made_them() {
    let backend = Backend::echo();
    let proxy = Proxy::start(&plain(&[&backend.address]));
    let command = proxy.command("reload");
    let asked = command_pid(command);
    let line = proxy.wait_message(0, "control request");
    assert_eq!(text(&line, "command"), "reload");
    assert_eq!(line["uid"], rustix::process::getuid().as_raw());
    assert_eq!(line["pid"], asked);
    proxy.end();
}

fn command_pid(mut command: std::process::Command) -> u32 {
    let child = command.stdout(std::process::Stdio::null()).spawn();
    let mut child = child.expect("the binary was built");
    assert!(child.wait().expect("it is ours").success());
    child.id()
}

#[test]
fn the_sockets_file_is_gone_after_every_end() {
    for (signals, tables) in [
        (vec![Signal::TERM], ""),
        (
            vec![Signal::TERM, Signal::INT],
            "[runtime]\ndrain_delay = \"1h\"\n",
        ),
    ] {
        let backend = Backend::echo();
        let config = common::config(&[&backend.address], "", "", tables);
        let mut proxy = Proxy::start(&config);
        let path = proxy.control_socket();
        assert!(path.exists());
        for signal in signals {
            proxy.signal(signal);
            proxy.wait_line("it to begin to end", |line| {
                let message = text(line, "message");
                (message == "draining" || message.starts_with("not ready")).then_some(())
            });
        }
        assert_eq!(proxy.wait_exit().code(), Some(0));
        assert!(!path.exists(), "{}", path.display());
        let folder = fs::read_dir(proxy.runtime_folder()).expect("it is ours");
        let names: Vec<_> = folder
            .map(|entry| entry.expect("it is ours").file_name())
            .collect();
        assert_eq!(names, ["ringress.toml"]);
    }
}
