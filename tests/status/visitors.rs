//! Those who connect to the control socket and are no help.

use std::io::{Read, Write};
use std::time::Duration;

use crate::common::essentials::there_and_back;
use crate::common::{Backend, Proxy, eventually, now, plain};

/// What the process says to these bytes.
fn answer_to(proxy: &Proxy, bytes: &[u8]) -> String {
    let mut visitor = proxy.visitor();
    // It may not want to hear all of it.
    let _ = visitor.write_all(bytes);
    let _ = visitor.shutdown(std::net::Shutdown::Write);
    let mut said = Vec::new();
    // Closing with bytes that were not read resets.
    let _ = visitor.read_to_end(&mut said);
    String::from_utf8(said).expect("it is UTF-8")
}

#[test]
fn garbage_is_answered_or_ignored_and_changes_nothing() {
    let backend = Backend::echo();
    let proxy = Proxy::start(&plain(&[&backend.address]));
    let long = vec![b'x'; 9 << 20];
    for (bytes, answer) in [
        (&b"\n"[..], "failed"),
        (b"GET / HTTP/1.1\r\n\r\n", "failed"),
        (b"{\"command\":\"explode\"}\n", "explode"),
        (b"{\"command\":\"drain\"}\n", "part"),
        (
            b"{\"command\":\"drain\",\"part\":{\"listener\":7}}\n",
            "failed",
        ),
        (
            b"{\"command\":\"drain\",\"part\":{\"listener\":\"web\"},\"deadline_ms\":-1}\n",
            "failed",
        ),
        (b"\xff\xfe\0\0\n", "failed"),
        (b"[[[[[[[[[[[[[[[[\n", "failed"),
        (&long, "too long"),
        (b"", ""),
        (b"{\"command\":\"reload\"", ""),
    ] {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]);
        let said = answer_to(&proxy, bytes);
        assert!(said.contains(answer), "{shown}: {said}");
        assert_eq!(said.is_empty(), answer.is_empty(), "{shown}: {said}");
    }
    let nested = [vec![b'['; 1 << 20], b"\n".to_vec()].concat();
    assert!(answer_to(&proxy, &nested).contains("failed"));
    let status = proxy.status();
    assert_eq!(
        (&status["generation"], &status["last_reload"]),
        (&1.into(), &().into())
    );
    assert_eq!(status["draining"], serde_json::json!([]));
    there_and_back(&proxy.connect(), 1000);
    proxy.end();
}

#[test]
fn who_says_nothing_keeps_nobody_waiting_for_long() {
    let backend = Backend::echo();
    let proxy = Proxy::start(&plain(&[&backend.address]));
    let mut silent: Vec<_> = (0..40).map(|_| proxy.visitor()).collect();
    // All places are taken: those who came last are told so, as is a command.
    let mut said = String::new();
    silent[39]
        .read_to_string(&mut said)
        .expect("it is turned away");
    assert!(said.contains("too many requests at once"), "{said}");
    let said = proxy.refused("status");
    assert!(
        said.contains("too many requests at once: try again"),
        "{said}"
    );
    there_and_back(&proxy.connect(), 1000);
    let began = now();
    eventually("a place to be free", || {
        (proxy.ask("status").code == Some(0)).then_some(())
    });
    assert!(began.elapsed() < Duration::from_secs(15));
    // The signal way is never in anybody's hands.
    proxy.reload_file();
    proxy.end();
}

#[test]
fn who_asks_and_goes_away_does_no_harm() {
    let backend = Backend::echo();
    let proxy = Proxy::start(&plain(&[&backend.address]));
    for _ in 0..50 {
        let mut visitor = proxy.visitor();
        visitor
            .write_all(b"{\"command\":\"status\"}\n")
            .expect("it is taken");
        drop(visitor);
    }
    eventually("a command to be answered", || {
        (proxy.ask("status").code == Some(0)).then_some(())
    });
    proxy.end();
}
