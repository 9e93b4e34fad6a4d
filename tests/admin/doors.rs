//! Who may, through real sockets; `guard` has the whole table.

use std::os::unix::fs::MetadataExt;

use crate::common::http::{ask, get, post, request, says};
use crate::common::proxy::text;
use crate::{RIGHT, at_a_path, guarded, with_admin};

const WRONG: &str = "Authorization: Bearer wrong";

#[test]
fn with_a_token_only_the_page_and_the_two_probes_are_for_all() {
    let (proxy, _backend) = guarded();
    let admin = proxy.admin();
    for path in ["/", "/healthz", "/readyz"] {
        assert_eq!(get(&admin, path).status, 200, "{path}");
    }
    for path in [
        "/metrics", "/status", "/config", "/hdr", "/events", "/nothing",
    ] {
        for headers in [&[][..], &[WRONG]] {
            let answer = ask(&admin, "GET", path, headers);
            assert_eq!(answer.status, 401, "{path}");
            assert!(
                answer.header("www-authenticate").starts_with("Bearer"),
                "{answer:?}"
            );
        }
    }
    for target in [
        "/reload",
        "/drain",
        "/log-level?level=debug",
        "/backends/app/b/disable",
        "/",
    ] {
        assert_eq!(post(&admin, target).status, 401, "{target}");
    }
    for path in ["/metrics", "/status", "/config", "/hdr"] {
        assert_eq!(ask(&admin, "GET", path, &[RIGHT]).status, 200, "{path}");
    }
    let done = ask(&admin, "POST", "/reload", &[RIGHT]);
    assert_eq!(
        (done.status, &done.json()["reloaded"]["generation"]),
        (200, &2.into())
    );
    proxy.end();
}

#[test]
fn without_a_token_nothing_is_changed_over_tcp() {
    let (proxy, _backend) = with_admin("listen = \"[::1]:0\"");
    let admin = proxy.admin();
    for headers in [&[][..], &[RIGHT]] {
        let answer = ask(&admin, "POST", "/reload", headers);
        assert_eq!(answer.status, 403);
        assert!(answer.body.contains("admin.token"), "{answer:?}");
    }
    assert_eq!(get(&admin, "/status").json()["generation"], 1);
    let denied = proxy.wait_message(0, "admin request denied");
    assert_eq!(text(&denied, "request"), "POST /reload");
    proxy.end();
}

#[test]
fn whoever_may_use_the_socket_may_do_all() {
    let (proxy, _backend, folder) = at_a_path();
    let admin = proxy.admin();
    let file = folder.path().join("admin.sock");
    let found = std::fs::metadata(&file).expect("it is there");
    assert_eq!(found.mode() & 0o7777, 0o660);
    let done = ask(&admin, "POST", "/reload", &["Host: anything.example"]);
    assert_eq!(done.status, 200, "{done:?}");
    let logged = proxy.wait_message(0, "admin request");
    assert_eq!(
        (text(&logged, "request"), &logged["status"]),
        ("POST /reload".into(), &200.into())
    );
    let uid = rustix::process::geteuid().as_raw();
    assert!(
        text(&logged, "from").starts_with(&format!("uid {uid}, pid ")),
        "{logged}"
    );
    proxy.end();
    assert!(!file.exists());
}

#[test]
fn a_web_page_from_elsewhere_can_neither_see_nor_order() {
    let (proxy, _backend) = with_admin("listen = \"127.0.0.1:0\"");
    let admin = proxy.admin();
    let rebound = ask(&admin, "GET", "/status", &["Host: evil.example"]);
    assert_eq!(rebound.status, 421);
    for foreign in [
        "Origin: http://evil.example",
        "Origin: null",
        "Sec-Fetch-Site: cross-site",
    ] {
        for (method, path) in [("GET", "/status"), ("GET", "/healthz"), ("POST", "/drain")] {
            let answer = ask(&admin, method, path, &[foreign]);
            assert_eq!(answer.status, 403, "{foreign} {path}");
        }
    }
    let own = [
        &*format!("Host: {admin}"),
        &format!("Origin: http://{admin}"),
    ];
    assert_eq!(ask(&admin, "GET", "/status", &own).status, 200);
    proxy.end();
    let (proxy, _backend) = guarded();
    let admin = proxy.admin();
    let named = ["Host: proxy.example", RIGHT];
    assert_eq!(ask(&admin, "GET", "/status", &named).status, 200);
    let foreign = [&named[..], &["Origin: http://evil.example"]].concat();
    assert_eq!(ask(&admin, "POST", "/drain", &foreign).status, 403);
    proxy.end();
}

#[test]
fn a_long_body_is_refused_in_words_that_arrive() {
    let (proxy, _backend, _folder) = at_a_path();
    let admin = proxy.admin();
    let sent = |bytes: usize| {
        let length = format!("Content-Length: {bytes}");
        let mut said = request("POST", "/reload", &[&length]).into_bytes();
        said.extend(vec![b'x'; bytes]);
        says(&admin, &said).expect("an answer")
    };
    assert_eq!(sent(64 << 10).status, 200);
    let refused = sent((64 << 10) + 1);
    assert_eq!(refused.status, 413, "{refused:?}");
    assert!(refused.body.contains("at most 64 KiB"), "{refused:?}");
    proxy.wait_line("the refusal in the log", |line| {
        (line["message"] == "admin request" && line["status"] == 413).then_some(())
    });
    proxy.end();
}
