//! What can be ordered, and what comes of it.

use serde_json::json;

use crate::at_a_path;
use crate::common::commands::named;
use crate::common::http::{ask, get, is_closed, post};
use crate::common::lineage::Lineage;
use crate::common::mortal::{self, Mortal, behind_two_workers};
use crate::common::proxy::text;
use crate::common::socket::exchange;
use crate::common::{Backend, Proxy, eventually};

/// Two backends, `b1` and `b2`, and an endpoint that takes orders.
fn two() -> (Proxy, [Mortal; 2], tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let backends = Mortal::many::<2>();
    let entries: Vec<_> = (backends.iter().zip(["b1", "b2"]))
        .map(|(backend, name)| backend.with(&format!("name = {name:?}")))
        .collect();
    let tables = format!(
        "[admin]\nlisten = \"unix:{}/a.sock\"\n",
        folder.path().display()
    );
    let proxy = Proxy::start(&behind_two_workers(&entries, "", &tables));
    (proxy, backends, folder)
}

fn shares(proxy: &Proxy, backends: &[Mortal; 2], visits: usize) -> [usize; 2] {
    let web = proxy.address("web");
    let names: Vec<_> = (0..visits)
        .map(|_| mortal::visit(&web).expect("it is served"))
        .collect();
    mortal::shares(backends, &names)
}

#[test]
fn a_backend_is_disabled_and_enabled() {
    let (proxy, backends, _folder) = two();
    let admin = proxy.admin();
    let done = post(&admin, "/backends/app/b1/disable?deadline=1h");
    assert_eq!(done.status, 200, "{done:?}");
    assert_eq!(done.json()["drained"]["sessions_left"], 0);
    assert_eq!(shares(&proxy, &backends, 6), [0, 6]);
    assert_eq!(proxy.status()["draining"][0]["part"]["backend"], "b1");
    assert_eq!(post(&admin, "/backends/app/b1/enable").status, 200);
    assert_eq!(shares(&proxy, &backends, 6), [3, 3]);
    let again = post(&admin, "/backends/app/b1/enable");
    assert_eq!(again.status, 409);
    assert!(again.body.contains("was not ordered to drain"), "{again:?}");
    for target in [
        "/backends/app/b9/disable",
        "/backends/no/b1/enable",
        "/drain?listener=no",
    ] {
        let unknown = post(&admin, target);
        assert_eq!(unknown.status, 404, "{target}");
        assert!(unknown.body.starts_with("there is no "), "{unknown:?}");
    }
    assert_eq!(post(&admin, "/backends/app/b9/weight?value=1").status, 404);
    assert_eq!(
        post(&admin, "/backends/app/b1/weight?value=257").status,
        400
    );
    proxy.end();
}

#[test]
fn a_weight_holds_over_reloads_until_the_configured_one_is_wanted_back() {
    let (proxy, backends, _folder) = two();
    let admin = proxy.admin();
    let done = post(&admin, "/backends/app/b1/weight?value=3");
    let part = json!({ "upstream": "app", "backend": "b1" });
    let expected = json!({ "weighted": { "part": part, "weight": 3, "configured": 1 } });
    assert_eq!((done.status, done.json()), (200, expected));
    assert_eq!(shares(&proxy, &backends, 8), [6, 2]);
    proxy.reload_file();
    assert_eq!(shares(&proxy, &backends, 8), [6, 2]);
    let known = |name: &str| {
        let status = get(&admin, "/status").json();
        let backend = named(&status["upstreams"][0]["backends"], name).clone();
        (
            backend["weight"].as_u64(),
            backend["configured_weight"].as_u64(),
        )
    };
    assert_eq!(
        (known("b1"), known("b2")),
        ((Some(3), Some(1)), (Some(1), None))
    );
    assert_eq!(post(&admin, "/backends/app/b1/weight?value=0").status, 200);
    assert_eq!(shares(&proxy, &backends, 4), [0, 4]);
    assert_eq!(
        post(&admin, "/backends/app/b1/weight?value=configured").status,
        200
    );
    assert_eq!(known("b1"), (Some(1), None));
    assert_eq!(shares(&proxy, &backends, 8), [4, 4]);
    proxy.end();
}

#[test]
fn a_weight_goes_to_the_next_process() {
    let backend = Backend::echo();
    let folder = tempfile::tempdir().expect("a folder");
    let tables = format!(
        "[admin]\nlisten = \"unix:{}/a.sock\"\n",
        folder.path().display()
    );
    let text = crate::common::config(&[&backend.address], "", "", &tables);
    let mut line = Lineage::start(&text);
    let admin = line.proxy.admin();
    let target = format!("/backends/app/{}/weight?value=7", backend.address);
    assert_eq!(post(&admin, &target).status, 200);
    line.upgrade();
    let status = line.console.status();
    assert_eq!(status.upstreams[0].backends[0].weight, 7);
    line.wait_alone();
    line.end();
}

#[test]
fn a_listener_is_drained_and_the_rest_goes_on() {
    let (proxy, _backend, _folder) = at_a_path();
    let (admin, web) = (proxy.admin(), proxy.address("web"));
    let client = exchange(None, &web).expect("it is served");
    let done = post(&admin, "/drain?listener=web&deadline=1h");
    assert_eq!(
        (done.status, &done.json()["drained"]["sessions_left"]),
        (200, &json!(1))
    );
    eventually("the address to be given up", || {
        is_closed(&web).then_some(())
    });
    assert_eq!(
        get(&admin, "/status").json()["listeners"][0]["state"],
        "drained"
    );
    drop(client);
    proxy.end();
}

#[test]
fn the_process_drains_as_it_does_by_signal_and_is_heard_until_its_end() {
    let (mut proxy, _backend, _folder) = at_a_path();
    let admin = proxy.admin();
    let client = exchange(None, &proxy.address("web")).expect("it is served");
    let done = post(&admin, "/drain?deadline=1h");
    assert_eq!(
        (done.status, &done.json()["draining"]["sessions_left"]),
        (200, &json!(1))
    );
    proxy.wait_message(0, "draining");
    assert_eq!(get(&admin, "/healthz").status, 200);
    let unready = get(&admin, "/readyz");
    assert_eq!(
        (unready.status, &*unready.body),
        (503, "the process is draining\n")
    );
    assert_eq!(get(&admin, "/status").json()["state"], "draining");
    assert_eq!(get(&admin, "/metrics").status, 200);
    for target in ["/drain", "/reload", "/log-level?level=info"] {
        assert_eq!(post(&admin, target).status, 503, "{target}");
    }
    drop(client);
    assert_eq!(proxy.wait_exit().code(), Some(0));
}

#[test]
fn a_reload_that_is_refused_says_why_and_changes_nothing() {
    let (proxy, _backend, _folder) = at_a_path();
    let admin = proxy.admin();
    proxy.write("nonsense");
    let refused = post(&admin, "/reload");
    assert_eq!(refused.status, 409);
    assert!(refused.body.contains("ringress.toml:"), "{refused:?}");
    let metrics = get(&admin, "/metrics").body;
    assert!(
        metrics.contains("ringress_reloads_total{result=\"refused\"} 1\n"),
        "{metrics}"
    );
    proxy.end();
}

#[test]
fn the_level_of_the_log_holds_until_the_next_reload() {
    let backend = Backend::echo();
    let folder = tempfile::tempdir().expect("a folder");
    let tables = format!(
        "[admin]\nlisten = \"unix:{}/a.sock\"\n[log]\nformat = \"json\"\n",
        folder.path().display()
    );
    let mut proxy = Proxy::start(&crate::common::config(&[&backend.address], "", "", &tables));
    let admin = proxy.admin();
    let visit = |proxy: &Proxy| drop(exchange(None, &proxy.address("web")).expect("served"));
    assert_eq!(
        post(&admin, "/log-level?level=debug").json(),
        json!({ "log_level": "debug" })
    );
    let level = |proxy: &Proxy| get(&proxy.admin(), "/status").json()["log"]["level"].clone();
    assert_eq!(level(&proxy), "debug");
    visit(&proxy);
    assert_eq!(proxy.next_session().listener, "web");
    assert_eq!(post(&admin, "/reload").status, 200);
    assert_eq!(level(&proxy), "info");
    visit(&proxy);
    eventually("the second session to end", || {
        let closed = &get(&admin, "/status").json()["listeners"][0]["closed"];
        (closed["client-closed"] == 2).then_some(())
    });
    proxy.signal(rustix::process::Signal::TERM);
    let lines = proxy.last_lines();
    let told = lines
        .iter()
        .filter(|line| text(line, "message") == "session closed");
    assert_eq!(told.count(), 1);
}

#[test]
fn each_post_is_logged_also_one_that_comes_to_nothing() {
    let (proxy, _backend, _folder) = at_a_path();
    let admin = proxy.admin();
    for (target, status) in [
        ("/log-level?level=info", 200),
        ("/log-level?level=loud", 400),
        ("/nothing", 404),
        ("/drain?listener=no", 404),
        ("/status", 405),
        ("/backends/app/b9/enable", 404),
    ] {
        assert_eq!(post(&admin, target).status, status, "{target}");
        let request = format!("POST {target}");
        let logged = proxy.wait_line(target, |line| {
            (line["message"] == "admin request" && line["request"] == *request)
                .then(|| line.clone())
        });
        assert_eq!(logged["status"], status, "{logged}");
        assert!(text(&logged, "from").starts_with("uid "), "{logged}");
    }
    assert_eq!(get(&admin, "/status").json()["generation"], 1);
    proxy.end();
}

#[test]
fn a_deadline_that_is_ordered_is_not_configured() {
    let (mut proxy, _backend, _folder) = at_a_path();
    let admin = proxy.admin();
    let configured = |admin: &str| {
        let config = ask(admin, "GET", "/config", &["Accept: application/json"]);
        config.json()["runtime"]["drain_timeout"].clone()
    };
    let before = configured(&admin);
    let client = exchange(None, &proxy.address("web")).expect("it is served");
    assert_eq!(post(&admin, "/drain?deadline=1h").status, 200);
    let draining = proxy.wait_message(0, "draining");
    assert_eq!(text(&draining, "timeout"), "3600s");
    assert_eq!(configured(&admin), before);
    drop(client);
    assert_eq!(proxy.wait_exit().code(), Some(0));
}
