//! Where it listens: from the start over reloads and upgrades to the end.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::common::backend::{free_address, listening};
use crate::common::http::{ask, get, is_closed, request, rest};
use crate::common::lineage::Lineage;
use crate::common::proxy::text as field;
use crate::common::{Backend, Proxy, connect, eventually};
use crate::{RIGHT, TOKEN, text, with_admin};

fn at(address: &str) -> String {
    format!("listen = {address:?}")
}

#[test]
fn a_taken_address_is_an_error_of_the_start() {
    let backend = Backend::echo();
    let taken = free_address();
    let _taken = listening(&taken, 1);
    let (code, said) = Proxy::fails(&text(&backend, &at(&taken)));
    assert_eq!(code, Some(1));
    assert!(
        said.contains("admin.listen") && said.contains("in use by another process"),
        "{said}"
    );
    assert!(!said.contains("\"started\""), "{said}");
}

#[test]
fn a_path_is_taken_from_the_dead_and_from_nobody_else() {
    let backend = Backend::echo();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.sock");
    let unix = at(&format!("unix:{}", path.display()));
    drop(UnixListener::bind(&path).expect("a socket"));
    let proxy = Proxy::start(&text(&backend, &unix));
    assert_eq!(get(&proxy.admin(), "/healthz").status, 200);
    let (code, said) = Proxy::fails(&text(&backend, &unix));
    assert_eq!(code, Some(1));
    assert!(said.contains("another process answers there"), "{said}");
    proxy.end();
    assert!(!path.exists());
    fs::write(&path, "precious").expect("the folder can be written to");
    let (_, said) = Proxy::fails(&text(&backend, &unix));
    assert!(said.contains("no socket"), "{said}");
    assert_eq!(fs::read_to_string(&path).expect("it is there"), "precious");
    let nowhere = at("unix:/nonexistent/folder/a.sock");
    let (_, said) = Proxy::fails(&text(&backend, &nowhere));
    assert!(said.contains("the folder has to be there"), "{said}");
}

#[test]
fn a_reload_moves_it_or_is_refused_as_a_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let (first, second) = (free_address(), free_address());
    let (proxy, backend) = with_admin(&at(&first));
    let occupied = free_address();
    let other = listening(&occupied, 1);
    let refused = proxy.reload(&text(&backend, &at(&occupied)));
    assert!(
        field(&refused, "message").starts_with("reload refused: admin.listen"),
        "{refused}"
    );
    let status = get(&first, "/status").json();
    assert_eq!(
        (&status["generation"], &status["last_reload"]["ok"]),
        (&1.into(), &false.into())
    );
    drop(other);
    // Who is being served when it moves is served.
    let mut visitor = connect(&first);
    // Who came after it was.
    assert_eq!(get(&first, "/healthz").status, 200);
    let moved = text(&backend, &at(&second));
    assert_eq!(proxy.reload(&moved)["message"], "reloaded");
    assert_eq!(get(&second, "/status").json()["generation"], 2);
    eventually("the old address to be closed", || {
        is_closed(&first).then_some(())
    });
    let asked = request("GET", "/healthz", &[]);
    visitor.write_all(asked.as_bytes()).expect("it is taken");
    assert_eq!(rest(&mut visitor).expect("an answer").status, 200);
    let path = format!("unix:{}/a.sock", folder.path().display());
    assert_eq!(
        proxy.reload(&text(&backend, &at(&path)))["message"],
        "reloaded"
    );
    assert_eq!(get(&path, "/healthz").status, 200);
    assert_eq!(proxy.reload(&text(&backend, ""))["message"], "reloaded");
    eventually("the path to go", || {
        (!folder.path().join("a.sock").exists()).then_some(())
    });
    proxy.end();
}

#[test]
fn the_token_changes_live_and_is_told_by_nobody() {
    let listen = at(&free_address());
    let (proxy, backend) = with_admin(&listen);
    let admin = proxy.admin();
    assert_eq!(get(&admin, "/status").status, 200);
    let guarded = format!("{listen}\ntoken = {TOKEN:?}");
    assert_eq!(
        proxy.reload(&text(&backend, &guarded))["message"],
        "reloaded"
    );
    assert_eq!(get(&admin, "/status").status, 401);
    let status = ask(&admin, "GET", "/status", &[RIGHT]);
    assert_eq!(status.status, 200);
    assert_eq!(
        status.json()["last_reload"]["changes"][0]["key"],
        "admin.token"
    );
    let lines = serde_json::to_string(&proxy.lines()).expect("lines are JSON");
    for told in [status.body, lines, proxy.done("status")] {
        assert!(!told.contains(TOKEN), "{told}");
    }
    proxy.end();
}

#[test]
fn scrapes_are_answered_throughout_an_upgrade_and_the_path_goes_with_the_last_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let unix = format!("unix:{}/a.sock", folder.path().display());
    for listen in [free_address(), unix] {
        let backend = Backend::echo();
        let config = text(&backend, &at(&listen));
        let mut line = Lineage::start(&config);
        let over = Arc::new(AtomicBool::new(false));
        let scraper = {
            let (listen, over) = (listen.clone(), over.clone());
            thread::spawn(move || {
                let mut scrapes = 0;
                while !over.load(Ordering::Relaxed) {
                    assert_eq!(get(&listen, "/metrics").status, 200);
                    scrapes += 1;
                }
                scrapes
            })
        };
        for _ in 0..2 {
            line.upgrade();
        }
        let pid = get(&listen, "/status").json()["pid"].as_u64();
        assert_eq!(pid, Some(line.pid().into()));
        over.store(true, Ordering::Relaxed);
        assert!(scraper.join().expect("every scrape is answered") > 10);
        line.wait_alone();
        assert_eq!(get(&listen, "/healthz").status, 200);
        line.end();
    }
    assert!(!folder.path().join("a.sock").exists());
}

#[test]
fn an_upgrade_moves_it_where_the_new_configuration_wants_it() {
    let backend = Backend::echo();
    let (first, second) = (free_address(), free_address());
    let mut line = Lineage::start(&text(&backend, &at(&first)));
    line.upgrade_to(&text(&backend, &at(&second)));
    assert_eq!(get(&second, "/status").json()["pid"], line.pid());
    eventually("the old address to be closed", || {
        is_closed(&first).then_some(())
    });
    // What fails leaves it where it is.
    let other = free_address();
    let taken = listening(&other, 1);
    line.proxy.write(&text(&backend, &at(&other)));
    let said = line.upgrade_fails();
    assert!(said.contains("admin.listen"), "{said}");
    drop(taken);
    assert_eq!(get(&second, "/status").json()["pid"], line.pid());
    line.wait_alone();
    line.end();
}
