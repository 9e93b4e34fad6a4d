//! `/readyz` in the states that a process can be in.

use crate::common::http::{Answer, get};
use crate::common::mortal::{self, Mortal, PING, PONG};
use crate::common::{Backend, Proxy, config, eventually};

const ADMIN: &str = "[admin]\nlisten = \"127.0.0.1:0\"\n";

fn becomes(admin: &str, what: &str, is: impl Fn(&Answer) -> bool) {
    eventually(what, || is(&get(admin, "/readyz")).then_some(()));
}

#[test]
fn a_process_is_not_ready_before_the_first_probes_nor_without_a_backend() {
    let backend = Mortal::new();
    backend.answer_probes(mortal::Answer::Nothing);
    let check = format!(
        "[upstreams.app.health_check]\n{PING}interval = \"50ms\"\ntimeout = \"20s\"\nfall = 1\n\
         start = \"checked\"\n{ADMIN}"
    );
    let proxy = Proxy::start(&mortal::behind_two_workers(
        &[backend.weighing(1)],
        "",
        &check,
    ));
    let admin = proxy.admin();
    let waiting = get(&admin, "/readyz");
    assert_eq!(waiting.status, 503);
    assert!(
        waiting.body.contains("the first probes of 1 of 1 backends"),
        "{waiting:?}"
    );
    assert_eq!(get(&admin, "/healthz").status, 200);
    backend.answer_probes(PONG);
    becomes(&admin, "the first probe to end", |it| it.status == 200);
    backend.kill();
    let lacks = "upstream \"app\" has no ready backend, and listener \"web\" needs it\n";
    becomes(&admin, "the backend to go down", |it| {
        it.body == lacks && it.status == 503
    });
    backend.revive();
    becomes(&admin, "the backend to come up", |it| it.status == 200);
    proxy.end();
}

#[test]
fn an_upstream_that_only_a_route_needs_counts_and_one_that_nobody_needs_does_not() {
    let backend = Backend::echo();
    let routed = "routes = [{ sni = \"a.example\", upstream = \"other\" }]";
    let others = format!(
        "[upstreams.other]\nbackends = [{{ address = {0:?}, name = \"b\" }}]\n\
         [upstreams.unused]\nbackends = [{{ address = {0:?}, name = \"b\" }}]\n{ADMIN}",
        backend.address
    );
    let proxy = Proxy::start(&config(&[&backend.address], routed, "", &others));
    let admin = proxy.admin();
    proxy.done("drain --backend unused/b");
    assert_eq!(get(&admin, "/readyz").status, 200);
    proxy.done("drain --backend other/b");
    let unready = get(&admin, "/readyz");
    assert_eq!((unready.status, unready.body.lines().count()), (503, 1));
    assert!(unready.body.contains("\"other\""), "{unready:?}");
    // Where nobody is accepted nothing is needed.
    proxy.done("drain --listener web");
    assert_eq!(get(&admin, "/readyz").status, 200);
    proxy.done("resume --listener web");
    assert_eq!(get(&admin, "/readyz").status, 503);
    proxy.done("resume --backend other/b");
    assert_eq!(get(&admin, "/readyz").status, 200);
    proxy.end();
}

#[test]
fn a_process_that_is_about_to_drain_says_so_while_it_still_accepts() {
    let backend = Backend::echo();
    let tables = format!("{ADMIN}[runtime]\ndrain_delay = \"1h\"\n");
    let mut proxy = Proxy::start(&config(&[&backend.address], "", "", &tables));
    let admin = proxy.admin();
    proxy.signal(rustix::process::Signal::TERM);
    let about = "the process is about to drain\n";
    becomes(&admin, "the delay to begin", |it| {
        it.status == 503 && it.body == about
    });
    let client = crate::common::socket::exchange(None, &proxy.address("web"));
    drop(client.expect("it still accepts"));
    proxy.signal(rustix::process::Signal::TERM);
    assert_eq!(proxy.wait_exit().code(), Some(0));
}
