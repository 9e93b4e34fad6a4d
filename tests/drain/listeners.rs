//! A listener that is drained by order, beside others.

use std::time::Duration;

use crate::common::commands::named;
use crate::common::load::{Load, quick_backend};
use crate::common::proxy::text;
use crate::common::{Backend, Ending, Proxy, ending, eventually, now};
use crate::{ends_well, exchange, free, is_refused, session};

fn listener(name: &str, address: &str) -> String {
    format!("[listeners.{name}]\nbind = {address:?}\nupstream = \"app\"\n")
}

fn app(backend: &Backend) -> String {
    let backend = &backend.address;
    format!("[upstreams.app]\nbackends = [{backend:?}]\n[runtime]\nworkers = 2\n")
}

/// The listeners `a` and `b` at these addresses.
fn started(backend: &Backend, a: &str, b: &str) -> Proxy {
    let listeners = [listener("a", a), listener("b", b)].concat();
    Proxy::start(&format!("{listeners}{}", app(backend)))
}

#[test]
fn it_refuses_while_its_sessions_go_on_and_comes_back_where_it_was() {
    let backend = Backend::echo();
    let (a, b) = (free(), free());
    let mut proxy = started(&backend, &a, &b);
    let mut old = session(&a);
    let said = proxy.done("drain --listener a");
    assert_eq!(said, "listener \"a\" is draining: 1 session left\n");
    is_refused(&a);
    exchange(&mut old);
    ends_well(session(&b));
    let status = proxy.status();
    let listeners = &status["listeners"];
    assert_eq!(named(listeners, "a")["state"], "drained");
    assert_eq!(named(listeners, "a")["sessions"], 1);
    assert_eq!(named(listeners, "b")["state"], "accepting");
    assert_eq!(status["draining"][0]["part"]["listener"], "a");
    assert_eq!(status["draining"][0]["sessions_left"], 1);
    assert_eq!(status["state"], "serving");
    assert_eq!(
        proxy.done("resume --listener a"),
        "listener \"a\" is resumed\n"
    );
    ends_well(session(&a));
    ends_well(old);
    assert_eq!(proxy.status()["draining"], serde_json::json!([]));
    for session in proxy.next_sessions(3) {
        assert_eq!(session.reason, "client-closed");
    }
    proxy.end();
}

#[test]
fn a_resume_that_comes_at_once_binds_again() {
    let backend = quick_backend();
    let (a, b) = (free(), free());
    let proxy = started(&backend, &a, &b);
    let load = Load::fresh(2, &b);
    let kept = Load::kept(2, &a);
    kept.goes_on(10);
    for _ in 0..20 {
        proxy.done("drain --listener a");
        proxy.done("resume --listener a");
    }
    ends_well(session(&a));
    load.goes_on(20);
    kept.goes_on(20);
    load.stop();
    kept.stop();
    proxy.end();
}

#[test]
fn who_stays_too_long_is_aborted_and_nobody_else_is() {
    let backend = Backend::echo();
    let (a, b) = (free(), free());
    let mut proxy = started(&backend, &a, &b);
    let mut left = [(); 3].map(|()| session(&a));
    let mut others = [(); 3].map(|()| session(&b));
    let began = now();
    proxy.done("drain --listener a --deadline 300ms");
    for client in &mut left {
        assert_eq!(ending(client), Ending::Reset);
    }
    assert!(began.elapsed() >= Duration::from_millis(300));
    for session in proxy.next_sessions(3) {
        assert_eq!((&*session.listener, &*session.reason), ("a", "drained"));
    }
    let line = proxy.wait_message(0, "its deadline is over");
    assert_eq!(
        (text(&line, "part"), &line["sessions"]),
        ("listener \"a\"".to_owned(), &3.into())
    );
    others.iter_mut().for_each(exchange);
    let status = proxy.status();
    assert_eq!(named(&status["listeners"], "a")["closed"]["drained"], 3);
    assert_eq!(
        named(&status["listeners"], "b")["closed"],
        serde_json::json!({})
    );
    // What was ordered before is not held against those who come now.
    proxy.done("resume --listener a");
    let mut new = session(&a);
    exchange(&mut new);
    ends_well(new);
    others.into_iter().for_each(ends_well);
    proxy.end();
}

#[test]
fn a_unix_listener_gives_its_file_up_and_takes_it_again() {
    let backend = Backend::echo();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("front.sock");
    let a = format!("unix:{}", path.display());
    let proxy = started(&backend, &a, &free());
    let old = session(&a);
    for _ in 0..3 {
        proxy.done("drain --listener a");
        eventually("the file to go", || (!path.exists()).then_some(()));
        proxy.done("resume --listener a");
        ends_well(session(&a));
    }
    ends_well(old);
    proxy.end();
}

#[test]
fn an_address_that_somebody_has_taken_meanwhile_can_not_be_resumed() {
    let backend = Backend::echo();
    let (a, b) = (free(), free());
    let proxy = started(&backend, &a, &b);
    proxy.done("drain --listener a");
    is_refused(&a);
    let other = Backend::at(&a, drop);
    let said = proxy.refused("resume --listener a");
    assert!(said.contains(&a) && said.contains("in use"), "{said}");
    assert_eq!(other.accepted(), 0);
    assert_eq!(proxy.status()["draining"][0]["part"]["listener"], "a");
    ends_well(session(&b));
    proxy.end();
}

#[test]
fn an_order_holds_over_reloads_until_the_listener_leaves_the_file() {
    let backend = Backend::echo();
    let (a, b) = (free(), free());
    let both = [listener("a", &a), listener("b", &b), app(&backend)].concat();
    let proxy = Proxy::start(&both);
    proxy.done("drain --listener a");
    is_refused(&a);
    let changed = both.replace("workers = 2", "workers = 2\ndrain_timeout = \"3s\"");
    for text_of_file in [&both, &changed] {
        assert_eq!(text(&proxy.reload(text_of_file), "message"), "reloaded");
        is_refused(&a);
    }
    assert_eq!(named(&proxy.status()["listeners"], "a")["state"], "drained");
    proxy.done("resume --listener a");
    ends_well(session(&a));
    proxy.done("drain --listener a");
    is_refused(&a);
    proxy.reload(&[listener("b", &b), app(&backend)].concat());
    assert_eq!(text(&proxy.reload(&both), "message"), "reloaded");
    ends_well(session(&a));
    assert_eq!(proxy.status()["draining"], serde_json::json!([]));
    proxy.end();
}
