//! Bugs of reloads and of what comes in between.

use std::io::{Read, Write};
use std::time::Duration;

use crate::common::proxy::text;
use crate::common::socket::{exchange, finish};
use crate::common::switched::{Manner, Switched};
use crate::common::{Backend, Ending, Proxy, config, ending, eventually, now, pass};
use rustix::process::Signal;

/// The configuration was read while the process drained, and nobody took it: the control thread looked at
/// it for ever, and at nothing else.
#[test]
fn a_file_that_is_read_while_the_process_drains_holds_nothing_up() {
    let backend = Backend::echo();
    let tables = "[runtime]\ndrain_timeout = \"500ms\"\n";
    let text = config(&[&backend.address], "", "", tables);
    let mut proxy = Proxy::start(&text);
    let mut client = proxy.connect();
    client.write_all(b"x").expect("it is taken");
    client.read_exact(&mut [0]).expect("the echo comes");
    // A file that has just changed is looked at twice, which takes longer than the signals.
    proxy.write(&text);
    proxy.signal(Signal::HUP);
    pass(Duration::from_millis(5));
    proxy.signal(Signal::TERM);
    let began = now();
    assert_eq!(ending(&mut client), Ending::Reset);
    assert_eq!(proxy.wait_exit().code(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(10));
    drop(client);
}

/// An address that is a part of one that the process has was said to be in use by another process.
#[test]
fn a_listener_can_move_between_one_address_and_all_of_them() {
    let backend = Backend::echo();
    let port = crate::common::backend::free_address();
    let port = port.rsplit_once(':').expect("a port").1.to_owned();
    let at = |host: &str| {
        let bind = format!("bind = \"{host}:{port}\"\n");
        config(&[&backend.address], &bind, "", "[runtime]\nworkers = 2\n")
    };
    let proxy = Proxy::start(&at("0.0.0.0"));
    for host in ["127.0.0.1", "0.0.0.0"] {
        assert_eq!(proxy.reload(&at(host))["message"], "reloaded");
        for _ in 0..20 {
            let mut client = crate::common::connect(&format!("127.0.0.1:{port}"));
            client.write_all(b"x").expect("it is taken");
            client.read_exact(&mut [0]).expect("the echo comes");
            finish(&client);
        }
    }
    proxy.end();
}

/// An IPv4 address was bound without asking for it alone, as the process had all of IPv6 at its port: what
/// another instance serves there was shared with it in silence.
#[test]
fn an_ipv4_address_of_another_instance_is_refused_beside_ipv6_of_our_own() {
    let backend = Backend::echo();
    let address = crate::common::backend::free_address();
    let port = address.rsplit_once(':').expect("a port").1;
    let at = |binds: &str| {
        let bind = format!("bind = [{binds}]\n");
        config(&[&backend.address], &bind, "", "[runtime]\nworkers = 2\n")
    };
    let (everywhere, here) = (format!("\"[::]:{port}\""), format!("\"{address}\""));
    let other = Proxy::start(&at(&here));
    let proxy = Proxy::start(&at(&everywhere));
    let line = proxy.reload(&at(&format!("{everywhere}, {here}")));
    let message = text(&line, "message");
    assert!(message.contains("in use"), "{line}");
    other.end();
    let line = proxy.reload(&at(&format!("{everywhere}, {here}")));
    assert_eq!(line["message"], "reloaded");
    proxy.end();
}

/// A breaker that was open when a reload took it away was told to be open for ever: what it stood at was
/// kept, and sessions went by it no more.
#[test]
fn a_breaker_that_a_reload_takes_away_is_not_told_to_be_open() {
    let backend = Switched::new(Manner::Reset);
    let with = |tables: &str| config(&[&backend.address], "", tables, "");
    let proxy = Proxy::start(&with(
        "circuit_breaker = { min_requests = 1, open_for = \"1h\" }\n",
    ));
    let told = || proxy.status()["upstreams"][0]["backends"][0]["breaker"].clone();
    eventually("it to open", || {
        drop(exchange(None, &proxy.address("web")));
        (told() == "open").then_some(())
    });
    assert_eq!(proxy.reload(&with(""))["message"], "reloaded");
    assert_eq!(told(), "closed");
    let before = backend.accepted();
    drop(exchange(None, &proxy.address("web")));
    eventually("a session to go there", || {
        (backend.accepted() > before).then_some(())
    });
    proxy.end();
}
