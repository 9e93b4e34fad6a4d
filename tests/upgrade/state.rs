//! What a process knows goes along: the new one finds out nothing anew, and no order is forgotten.

use std::time::Duration;

use ringress::control::socket::status::{BackendStatus, BreakerState, ListenerState};

use super::{app, exchange, free, leave, listener, of_listener, plain, refuses, visit};
use crate::common::lineage::{Exit, Lineage};
use crate::common::mortal::{self, Answer, Mortal, PING, SICK};
use crate::common::socket::exchange as visit_from;
use crate::common::switched::{Manner, Switched};
use crate::common::{Backend, Ending, config, connect, ending, eventually, now};

/// What the process that serves knows of the backend at this address.
fn known(line: &Lineage, address: &str) -> BackendStatus {
    let status = line.console.status();
    let mut backends = status.upstreams.into_iter().flat_map(|it| it.backends);
    let found = backends.find(|backend| backend.address == address);
    found.expect("it is there")
}

#[test]
fn a_dead_backend_is_down_in_the_new_process_at_once() {
    let backends: [Mortal; 2] = Mortal::many();
    backends[0].answer_probes(SICK);
    let text = |check: &str| {
        let check = format!("[upstreams.app.health_check]\n{PING}fall = 1\njitter = 0\n{check}");
        config(
            &[&backends[0].address, &backends[1].address],
            "",
            "",
            &check,
        )
    };
    let mut line = Lineage::start(&text("interval = \"100ms\"\n"));
    eventually("the sick one to go down", || {
        (!known(&line, &backends[0].address).healthy).then_some(())
    });
    // Nothing is found out any more.
    for backend in &backends {
        backend.answer_probes(Answer::Nothing);
    }
    line.proxy
        .reload(&text("interval = \"1h\"\ntimeout = \"1h\"\n"));
    line.upgrade();
    let before = backends[0].counts().sessions;
    assert!(!known(&line, &backends[0].address).healthy);
    assert!(known(&line, &backends[1].address).healthy);
    for _ in 0..20 {
        let who = mortal::visit(&line.proxy.address("web")).expect("it is served");
        assert_eq!(who, backends[1].address);
    }
    assert_eq!(backends[0].counts().sessions, before);
    line.end();
}

#[test]
fn an_ejected_backend_stays_ejected() {
    let (bad, good) = (Switched::new(Manner::Reset), Backend::echo());
    let outlier = "[upstreams.app.outlier]\nconsecutive_failures = 2\neject_for = \"1h\"\n\
        max_eject_for = \"1h\"\n";
    let text = config(&[&bad.address, &good.address], "", "", outlier);
    let mut line = Lineage::start(&text);
    let address = line.proxy.address("web");
    eventually("the bad one to be ejected", || {
        drop(visit_from(None, &address));
        known(&line, &bad.address).ejected.then_some(())
    });
    line.upgrade();
    let before = bad.accepted();
    assert!(known(&line, &bad.address).ejected);
    (0..20).for_each(|_| visit(&address));
    assert_eq!(bad.accepted(), before);
    line.end();
}

#[test]
fn an_open_breaker_stays_open() {
    let backend = Switched::new(Manner::Reset);
    let breaker = "[upstreams.app.circuit_breaker]\nmin_requests = 3\nopen_for = \"1h\"\n";
    let mut line = Lineage::start(&config(&[&backend.address], "", "", breaker));
    let address = line.proxy.address("web");
    let state = |line: &Lineage| known(line, &backend.address).breaker;
    eventually("it to open", || {
        assert!(visit_from(None, &address).is_none());
        (state(&line) == BreakerState::Open).then_some(())
    });
    backend.switch(Manner::Echo);
    line.upgrade();
    let before = backend.accepted();
    assert_eq!(state(&line), BreakerState::Open);
    assert!(visit_from(None, &address).is_none());
    assert_eq!(backend.accepted(), before);
    line.end();
}

/// Takes all that a bucket of 50 has, upgrades, and tries to take as much again. `limit` adds one in a second.
fn stays_empty(limit: &str) {
    let backend = Backend::echo();
    let limit = format!("rate_limit = {{ {limit} = {{ rate = 1, burst = 50 }} }}");
    let mut line = Lineage::start(&config(&[&backend.address], &limit, "", ""));
    let address = line.proxy.address("web");
    let served = || (0..60).filter(|_| visit_from(Some("127.0.0.2"), &address).is_some());
    let began = now();
    assert!(served().count() >= 50);
    line.upgrade();
    let more = served().count();
    let earned = began.elapsed().as_secs() as usize;
    assert!(more <= earned && earned < 40, "{more} of {earned}");
    line.end();
}

#[test]
fn a_client_that_used_up_its_rate_is_refused_by_the_new_process() {
    stays_empty("connections_per_ip");
}

#[test]
fn a_listener_that_used_up_its_rate_refuses_in_the_new_process() {
    stays_empty("connections");
}

#[test]
fn a_drained_listener_stays_drained_until_it_is_resumed() {
    let backend = Backend::echo();
    let (web, other) = (free(), free());
    let text = [listener("web", &web), listener("other", &other)].concat();
    let mut line = Lineage::start(&format!("{text}{}", app(&[&backend.address], 2)));
    line.console.does("drain", &["--listener", "web"]);
    eventually("it to refuse", || refuses(&web).then_some(()));
    for _ in 0..2 {
        line.upgrade();
        let status = line.console.status();
        assert_eq!(of_listener(&status, "web").state, ListenerState::Drained);
        assert!(refuses(&web));
        visit(&other);
    }
    line.console.does("resume", &["--listener", "web"]);
    visit(&web);
    line.upgrade();
    visit(&web);
    line.end();
}

#[test]
fn a_drained_backend_stays_drained_until_it_is_resumed() {
    let (drained, other) = (Backend::echo(), Backend::echo());
    let mut line = Lineage::start(&plain(&[&drained.address, &other.address]));
    let part = format!("app/{}", drained.address);
    line.console.does("drain", &["--backend", &part]);
    line.upgrade();
    assert!(!known(&line, &drained.address).enabled);
    let address = line.proxy.address("web");
    (0..10).for_each(|_| visit(&address));
    assert_eq!(drained.accepted(), 0);
    line.console.does("resume", &["--backend", &part]);
    line.upgrade();
    (0..10).for_each(|_| visit(&address));
    assert!(drained.accepted() > 0);
    line.end();
}

#[test]
fn the_deadline_of_an_order_holds_in_both_processes() {
    const DEADLINE: Duration = Duration::from_secs(4);
    let backends = [Backend::echo(), Backend::echo()];
    let addresses = backends.each_ref().map(|backend| &*backend.address);
    // In turn, as one worker does it: one at each backend.
    let text = plain(&addresses).replace("workers = 2", "workers = 1");
    let mut line = Lineage::start(&text);
    let mut clients = [line.proxy.connect(), line.proxy.connect()];
    clients.iter_mut().for_each(exchange);
    let (began, part) = (now(), format!("app/{}", addresses[0]));
    line.console
        .does("drain", &["--backend", &part, "--deadline", "4s"]);
    line.upgrade();
    let left = line.console.status().draining[0].deadline_in_ms;
    assert!(left.is_some_and(|left| left <= 4000), "{left:?}");
    clients.iter_mut().for_each(exchange);
    let [mut aborted, mut goes_on] = clients;
    assert_eq!(ending(&mut aborted), Ending::Reset);
    assert!(began.elapsed() >= DEADLINE);
    exchange(&mut goes_on);
    leave(goes_on);
    let mut new = connect(&line.proxy.address("web"));
    exchange(&mut new);
    leave(new);
    assert_eq!(line.wait_exit(0), Exit::Code(0));
    eventually("the new process's deadline", || {
        let left = line.console.status().draining[0].deadline_in_ms;
        (left == Some(0)).then_some(())
    });
    line.end();
}

#[test]
fn generations_go_on_counting() {
    let backend = Backend::echo();
    let text = plain(&[&backend.address]);
    let mut line = Lineage::start(&text);
    line.proxy.reload(&text);
    line.upgrade();
    assert_eq!(line.console.status().generation, 3);
    line.console.does("reload", &[]);
    line.upgrade();
    assert_eq!(line.console.status().generation, 5);
    line.end();
}
