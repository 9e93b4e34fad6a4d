//! What probes ask and take for an answer, seen from the backend, and that they are no sessions.

use crate::common::Proxy;
use crate::common::mortal::{Answer, Mortal, PING, PONG, SICK, ask, behind_two_workers, visit};
use crate::common::proxy::text;
use crate::{check, checked, comes_up, goes_down, visits};

#[test]
fn an_http_probe_asks_for_its_path_and_takes_the_status_that_is_expected() {
    let backends = Mortal::many::<1>();
    let [backend] = &backends;
    let says = |head| backend.answer_probes(Answer::Says(head));
    says("HTTP/1.1 204 No Content\r\n\r\n");
    let kind = "type = \"http\"\npath = \"/healthz?deep=1\"\nhost = \"app.internal\"\n\
                expect_status = [\"200-299\", \"401\"]";
    let proxy = checked(&backends, "", kind);
    let question = backend.question().to_lowercase();
    assert!(
        question.starts_with("get /healthz?deep=1 http/1.1\r\n"),
        "{question}"
    );
    assert!(
        question.contains("\r\nhost: app.internal\r\n"),
        "{question}"
    );
    let answers = [
        (
            "HTTP/1.1 503 Service Unavailable\r\n\r\n",
            "HTTP status 503",
        ),
        (
            "HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n",
            "HTTP status 302",
        ),
        ("HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP status 400"),
    ];
    for (answer, why) in answers {
        let from = proxy.lines().len();
        says(answer);
        assert_eq!(text(&goes_down(&proxy, from, backend), "why"), why);
        assert!(visit(&proxy.address("web")).is_err());
        let from = proxy.lines().len();
        says("HTTP/1.1 401 Unauthorized\r\n\r\n");
        comes_up(&proxy, from, backend);
        assert_eq!(visits(&proxy, &backends, 3), [3]);
    }
    proxy.end();
}

#[test]
fn a_tcp_probe_says_what_it_shall_and_takes_what_begins_as_expected() {
    let backends = Mortal::many::<1>();
    let [backend] = &backends;
    let proxy = checked(&backends, "", PING);
    assert_eq!(backend.question(), "PING\r\n");
    for (answer, why) in [
        ("PON", "closed after \"PON\""),
        ("", "closed without an answer"),
        ("BUSY", "answered \"BUSY\" instead of \"PONG\""),
    ] {
        let from = proxy.lines().len();
        backend.answer_probes(Answer::Says(answer));
        assert_eq!(text(&goes_down(&proxy, from, backend), "why"), why);
        let from = proxy.lines().len();
        backend.answer_probes(Answer::Says("PONG 3 clients\r\n"));
        comes_up(&proxy, from, backend);
    }
    proxy.end();
}

#[test]
fn a_probe_is_no_session() {
    let backends = Mortal::many::<2>();
    let cap = "max_connections = 1";
    let list = backends.each_ref().map(|backend| backend.with(cap));
    let tables = format!("{}[upstreams.app.queue]\nmax = 0\n", check(PING));
    let mut proxy = Proxy::start(&behind_two_workers(&list, "", &tables));
    let open = backends.each_ref().map(|backend| {
        let client = proxy.connect();
        ask(&client).expect("it is answered");
        let probes = backend.counts().probes;
        // At their caps they are probed still.
        backend.wait("more probes", |counts| counts.probes >= probes + 3);
        client
    });
    assert_eq!(
        backends.each_ref().map(|backend| backend.counts().sessions),
        [1, 1]
    );
    drop(open);
    for session in proxy.next_sessions(2) {
        assert_eq!(session.reason, "client-closed");
    }
    for backend in &backends {
        let probes = backend.counts().probes;
        backend.wait("more probes", |counts| counts.probes >= probes + 3);
    }
    let closed = proxy.lines();
    let closed = closed
        .iter()
        .filter(|line| line["message"] == "session closed");
    assert_eq!(closed.count(), 2);
    proxy.end();
}

#[test]
fn no_session_tries_a_backend_that_is_down() {
    let backends = Mortal::many::<2>();
    let [dead, living] = &backends;
    let proxy = checked(&backends, "", PING);
    let from = proxy.lines().len();
    dead.kill();
    goes_down(&proxy, from, dead);
    // It listens again, so that every attempt arrives; only its answers to probes are wrong.
    dead.answer_probes(SICK);
    dead.revive();
    let before = dead.counts();
    assert_eq!(visits(&proxy, &backends, 200), [0, 200]);
    dead.wait("more probes", |counts| counts.probes >= before.probes + 2);
    let after = dead.counts();
    assert_eq!(after.sessions, before.sessions);
    let by_probes = after.probes - before.probes;
    let connections = after.connections - before.connections;
    // One that has just been accepted hasn't said yet what it is.
    assert!(connections.abs_diff(by_probes) <= 1, "{connections}");
    assert!(living.counts().sessions >= 200);
    let from = proxy.lines().len();
    dead.answer_probes(PONG);
    comes_up(&proxy, from, dead);
    assert_eq!(visits(&proxy, &backends, 20), [10, 10]);
    proxy.end();
}
