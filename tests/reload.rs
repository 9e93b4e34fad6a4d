//! Reloads: what changes while traffic goes on, what is refused, and what outlives it.

mod common;

use std::fs;
use std::io::{Read, Write};

use common::backend::free_address as free;
use common::essentials::there_and_back;
use common::load::{Load, quick_backend};
use common::mortal::{Mortal, PING, SICK, visit};
use common::proxy::text;
use common::socket::{finish, parse, unconnected};
use common::{Backend, Proxy, connect, eventually, read_to_end, system};
use rustix::process::Signal;
use serde_json::Value;
use socket2::Socket;

/// A listener of this name at this address, before the upstream `app`.
fn listener(name: &str, address: &str) -> String {
    format!("[listeners.{name}]\nbind = {address:?}\nupstream = \"app\"\n")
}

/// The upstream `app`, and two workers.
fn app(backends: &[&str]) -> String {
    format!("[upstreams.app]\nbackends = {backends:?}\n[runtime]\nworkers = 2\n")
}

fn applied(line: &Value) -> u64 {
    assert_eq!(line["message"], "reloaded", "{line}");
    line["generation"].as_u64().expect("a number")
}

/// The message of a refusal, which has to contain all of `parts`.
fn refused(line: &Value, parts: &[&str]) {
    let message = text(line, "message");
    assert!(message.starts_with("reload refused"), "{line}");
    for part in parts {
        assert!(message.contains(part), "{part} is missing: {line}");
    }
}

fn exchange(client: &mut Socket) {
    client.write_all(b"x").expect("it is taken");
    client.read_exact(&mut [0]).expect("the echo comes");
}

fn is_refused(address: &str) {
    eventually("connections to be refused", || {
        let answer = unconnected(address).connect(&parse(address).1);
        answer.is_err().then_some(())
    });
}

#[test]
fn listeners_are_added_and_removed_and_the_others_keep_their_connections() {
    let backend = Backend::echo();
    let (first, second) = (free(), free());
    let app = app(&[&backend.address]);
    let proxy = Proxy::start(&format!("{}{app}", listener("first", &first)));
    let mut old = connect(&first);
    exchange(&mut old);
    let both = format!(
        "{}{}{app}",
        listener("second", &second),
        listener("first", &first)
    );
    assert_eq!(applied(&proxy.reload(&both)), 2);
    there_and_back(&connect(&second), 1000);
    exchange(&mut old);
    let line = proxy.reload(&format!("{}{app}", listener("second", &second)));
    assert_eq!(applied(&line), 3);
    is_refused(&first);
    exchange(&mut old);
    there_and_back(&connect(&second), 1000);
    finish(&old);
    assert_eq!(read_to_end(&mut old), b"");
    proxy.end();
}

#[test]
fn a_listener_that_is_renamed_keeps_its_sockets() {
    let backend = quick_backend();
    let address = free();
    let app = app(&[&backend.address]);
    let mut proxy = Proxy::start(&format!("{}{app}", listener("before", &address)));
    let load = Load::fresh(4, &address);
    load.goes_on(200);
    let line = proxy.reload(&format!("{}{app}", listener("after", &address)));
    assert_eq!(applied(&line), 2);
    load.goes_on(200);
    load.stop();
    eventually("a session of the new name", || {
        (proxy.next_session().listener == "after").then_some(())
    });
    proxy.end();
}

#[test]
fn an_address_that_comes_back_at_once_is_listened_on_again() {
    let backend = Backend::echo();
    let (stays, goes) = (free(), free());
    let app = app(&[&backend.address]);
    let without = format!("{}{app}", listener("stays", &stays));
    let with = format!("{}{without}", listener("goes", &goes));
    let proxy = Proxy::start(&with);
    for _ in 0..5 {
        applied(&proxy.reload(&without));
        applied(&proxy.reload(&with));
        there_and_back(&connect(&goes), 1000);
    }
    proxy.end();
}

#[test]
fn unix_listeners_come_and_go_with_their_files() {
    let backend = Backend::echo();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("front.sock");
    let unix = format!("unix:{}", path.display());
    let tcp = free();
    let app = app(&[&backend.address]);
    let without = format!("{}{app}", listener("tcp", &tcp));
    let proxy = Proxy::start(&without);
    for _ in 0..2 {
        applied(&proxy.reload(&format!("{}{without}", listener("unix", &unix))));
        there_and_back(&connect(&unix), 1000);
        applied(&proxy.reload(&without));
        eventually("the file to go", || (!path.exists()).then_some(()));
    }
    proxy.end();
}

#[test]
fn a_port_in_use_refuses_the_whole_reload() {
    let backend = Backend::echo();
    let other = Backend::named("other");
    let (first, second) = (free(), free());
    let app = app(&[&backend.address]);
    let proxy = Proxy::start(&format!("{}{app}", listener("first", &first)));
    let wanted = [
        listener("first", &second),
        listener("taken", &other.address),
    ];
    let line = proxy.reload(&format!("{}{app}", wanted.concat()));
    refused(&line, &["taken", &other.address, "in use"]);
    there_and_back(&connect(&first), 1000);
    is_refused(&second);
    assert_eq!(read_to_end(&mut connect(&other.address)), b"other");
    let line = proxy.reload(&format!("{}{app}", wanted[0]));
    assert_eq!(applied(&line), 2, "nothing had changed");
    there_and_back(&connect(&second), 1000);
    is_refused(&first);
    proxy.end();
}

#[test]
fn nothing_that_is_wrong_with_the_file_changes_anything() {
    let backend = Backend::echo();
    let config = common::plain(&[&backend.address]);
    let proxy = Proxy::start(&config);
    refused(&proxy.reload("[listeners.web\n"), &[]);
    let line = proxy.reload(&config.replace("upstream = \"app\"", "upstream = \"ap\""));
    refused(&line, &["no upstream"]);
    assert_eq!((&line["line"], &line["column"]), (&3.into(), &12.into()));
    refused(
        &proxy.reload("[upstreams.app]\nbackends = [\"127.0.0.1:1\"]\n"),
        &["no listener"],
    );
    refused(&proxy.reload(""), &["no listener"]);
    fs::remove_file(proxy.file()).expect("it was there");
    refused(&proxy.reload_file(), &["no such file"]);
    fs::create_dir(proxy.file()).expect("nothing is there");
    refused(&proxy.reload_file(), &["directory"]);
    fs::remove_dir(proxy.file()).expect("it is empty");
    there_and_back(&proxy.connect(), 1000);
    assert_eq!(applied(&proxy.reload(&config)), 2);
    proxy.end();
}

#[test]
fn what_needs_an_upgrade_is_refused_by_name() {
    let backend = Backend::echo();
    let config = common::config(&[&backend.address], "", "", "[runtime]\nworkers = 1\n");
    let proxy = Proxy::start(&config);
    let line = proxy.reload(&config.replace("workers = 1", "workers = 2"));
    refused(&line, &["runtime.workers", "1", "2", "upgrade"]);
    there_and_back(&proxy.connect(), 1000);
    proxy.end();
}

#[test]
fn a_dead_backend_stays_down_over_a_reload_that_turns_the_file_round() {
    let backends: [Mortal; 2] = Mortal::many();
    backends[0].answer_probes(SICK);
    let text = |order: [usize; 2], more: &str| {
        let list: Vec<_> = order.map(|index| backends[index].address.clone()).into();
        let check = format!(
            "[upstreams.app.health_check]\n{PING}interval = \"100ms\"\nfall = 1\njitter = 0\n{more}"
        );
        common::config(&[&list[0], &list[1]], "", "", &check)
    };
    let proxy = Proxy::start(&text([0, 1], ""));
    let down = |line: &Value| text_is(line, "backend is down", &backends[0].address);
    proxy.wait_line("the sick one to go down", |line| down(line).then_some(()));
    let before = backends[0].counts().sessions;
    // The next probe comes in an hour: whatever is known now is what was known before.
    applied(&proxy.reload(&text([1, 0], "").replace("100ms", "1h")));
    for _ in 0..20 {
        let who = visit(&proxy.address("web")).expect("it is served");
        assert_eq!(who, backends[1].address);
    }
    assert_eq!(backends[0].counts().sessions, before);
    proxy.end();
}

fn text_is(line: &Value, message: &str, backend: &str) -> bool {
    text(line, "message") == message && text(line, "backend") == backend
}

#[test]
fn a_storm_of_signals_is_few_reloads() {
    let backend = Backend::echo();
    let proxy = Proxy::start(&common::plain(&[&backend.address]));
    for _ in 0..100 {
        proxy.signal(Signal::HUP);
    }
    let reloads = || {
        let lines = proxy.lines();
        let reloaded = lines.iter().filter(|line| line["message"] == "reloaded");
        reloaded.count()
    };
    eventually("the last reload", || (reloads() >= 1).then_some(()));
    applied(&proxy.reload_file());
    assert!(reloads() < 50, "{} reloads", reloads());
    proxy.end();
}

#[test]
fn a_signal_to_end_drains_while_a_reload_is_under_way() {
    let backend = Backend::echo();
    let mut proxy = Proxy::start(&common::plain(&[&backend.address]));
    let mut client = proxy.connect();
    exchange(&mut client);
    for _ in 0..10 {
        proxy.signal(Signal::HUP);
    }
    proxy.signal(Signal::TERM);
    proxy.wait_message(0, "draining");
    exchange(&mut client);
    finish(&client);
    assert_eq!(read_to_end(&mut client), b"");
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

/// Reloads that each add or remove a listener and a backend, under both kinds of load.
#[test]
fn hundreds_of_reloads_lose_nothing_and_leak_nothing() {
    const RELOADS: u64 = 100;
    let (one, two) = (quick_backend(), quick_backend());
    let (stays, comes) = (free(), free());
    let small = format!("{}{}", listener("stays", &stays), app(&[&one.address]));
    let large = format!(
        "{}{}{}",
        listener("comes", &comes),
        listener("stays", &stays),
        app(&[&one.address, &two.address])
    );
    // Sessions are not told: the log would be what grows.
    let quiet = "[log]\nlevel = \"info\"\nformat = \"json\"\n";
    let (small, large) = (format!("{small}{quiet}"), format!("{large}{quiet}"));
    let proxy = Proxy::start(&small);
    let kept = Load::kept(4, &stays);
    let fresh = Load::fresh(4, &stays);
    let round = |count: u64| {
        for _ in 0..count {
            applied(&proxy.reload(&large));
            there_and_back(&connect(&comes), 100);
            applied(&proxy.reload(&small));
        }
    };
    round(RELOADS / 10);
    let memory = system::anonymous_kib(proxy.pid());
    round(RELOADS / 2);
    kept.goes_on(100);
    fresh.goes_on(100);
    kept.stop();
    fresh.stop();
    let grown = system::anonymous_kib(proxy.pid()).saturating_sub(memory);
    assert!(
        grown * 20 < memory + 20 * 256,
        "{grown} KiB more than {memory}"
    );
    proxy.end();
}
