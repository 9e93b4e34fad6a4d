//! A backend that is drained by order.

use std::io::{BufRead, BufReader, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};

use crate::common::commands::named;
use crate::common::mortal::{Mortal, ask, behind_two_workers, shares, visit_from};
use crate::common::switched::{Manner, Switched};
use crate::common::{Backend, Ending, Proxy, config, connect, ending, eventually, reset};
use crate::{ends_well, exchange, session};
use socket2::Socket;

/// Who serves short sessions of so many clients, each from an address of its own.
fn visits(address: &str) -> Vec<String> {
    let client = |number| IpAddr::from(Ipv4Addr::new(127, 0, 1, number));
    let visit = |number| visit_from(Some(client(number)), address).expect("it is served");
    (1..=60).map(visit).collect()
}

fn balanced(backends: &[Mortal; 2], balance: &str) -> Proxy {
    let names = [("b1", &backends[0]), ("b2", &backends[1])];
    let list = names.map(|(name, backend)| backend.with(&format!("name = {name:?}")));
    Proxy::start(&behind_two_workers(
        &list,
        &format!("balance = {balance:?}"),
        "",
    ))
}

/// Sessions that stay, at least one on the first backend.
fn sessions_on_both(address: &str, backends: &[Mortal; 2]) -> Vec<Socket> {
    let client = || {
        let client = connect(address);
        ask(&client).expect("it is served");
        client
    };
    let mut clients = Vec::new();
    for backend in backends {
        eventually("a session on each", || {
            clients.push(client());
            (backend.counts().open > 0).then_some(())
        });
    }
    clients
}

#[test]
fn no_algorithm_gives_it_sessions_and_those_it_has_go_on() {
    for balance in ALGORITHMS {
        let backends = Mortal::many::<2>();
        let proxy = balanced(&backends, balance);
        let address = proxy.address("web");
        let sticky = matches!(balance, "ip-hash" | "maglev");
        let before = visits(&address);
        // This one may find either quicker, and leave the other alone.
        let shares_out = balance != "peak-ewma";
        let has_some = |visits: &[String]| !shares_out || shares(&backends, visits)[0] > 0;
        assert!(has_some(&before), "{balance}: {before:?}");
        let old = match sticky || !shares_out {
            // All clients of one address, or of one moment, would be on one.
            true => Vec::new(),
            false => sessions_on_both(&address, &backends),
        };
        let open = backends[0].counts().open;
        proxy.done("drain --backend app/b1");
        assert_eq!(shares(&backends, &visits(&address)), [0, 60], "{balance}");
        for client in &old {
            ask(client).expect("it goes on");
        }
        assert_eq!(backends[0].counts().open, open, "{balance}");
        // Some go by load: from here on it is the same again.
        drop(old);
        eventually("the last session to end", || {
            (proxy.status()["sessions"] == 0).then_some(())
        });
        proxy.done("resume --backend app/b1");
        let after = visits(&address);
        assert!(has_some(&after), "{balance}: {after:?}");
        assert!(!sticky || after == before, "{balance}: {after:?}");
        proxy.end();
    }
}

const ALGORITHMS: [&str; 7] = [
    "round-robin",
    "least-connections",
    "ip-hash",
    "maglev",
    "random",
    "power-of-two",
    "peak-ewma",
];

/// Two backends with the names `b1` and `b2`, round-robin on one worker.
fn pair(backends: [&str; 2], upstream: &str) -> String {
    let entry = |name: &str, address: &str| format!("{{ address = {address:?}, name = {name:?} }}");
    let list = [entry("b1", backends[0]), entry("b2", backends[1])].join(", ");
    let text = config(&[], "", upstream, "[runtime]\nworkers = 1\n");
    text.replace("backends = []", &format!("backends = [{list}]"))
}

#[test]
fn who_stays_too_long_is_aborted_and_counted_and_nobody_else_is() {
    let (one, two) = (Backend::echo(), Backend::echo());
    let mut proxy = Proxy::start(&pair([&one.address, &two.address], ""));
    let clients: Vec<_> = (0..6).map(|_| session(&proxy.address("web"))).collect();
    let said = proxy.done("drain --backend app/b1 --deadline 300ms");
    assert_eq!(said, "backend \"app/b1\" is draining: 3 sessions left\n");
    for session in proxy.next_sessions(3) {
        assert_eq!((&*session.backend, &*session.reason), ("b1", "drained"));
    }
    // One after the other was given to either in turn.
    let (mut left, mut gone) = (Vec::new(), 0);
    for mut client in clients {
        let local = client.local_addr().expect("it is bound");
        let local = local.as_socket().expect("an IP address").to_string();
        let lines = proxy.lines();
        match lines.iter().any(|line| line["client"] == local) {
            true => {
                assert_eq!(ending(&mut client), Ending::Reset);
                gone += 1;
            }
            false => left.push(client),
        }
    }
    assert_eq!((left.len(), gone), (3, 3));
    let status = proxy.status();
    let closed = &named(&status["listeners"], "web")["closed"];
    assert_eq!(*closed, serde_json::json!({"drained": 3}));
    proxy.done("resume --backend app/b1");
    left.into_iter().for_each(ends_well);
    for _ in 0..2 {
        ends_well(session(&proxy.address("web")));
    }
    assert_eq!(one.accepted(), 4, "it is in turn again");
    proxy.end();
}

#[test]
fn waiting_ends_with_the_last_session() {
    let (one, two) = (Backend::echo(), Backend::echo());
    let proxy = Proxy::start(&pair([&one.address, &two.address], ""));
    let clients = [(); 4].map(|()| session(&proxy.address("web")));
    let mut command: Command = proxy.command("drain --backend app/b1 --wait");
    let mut waiting = command
        .stdout(Stdio::piped())
        .spawn()
        .expect("it was built");
    let mut said = BufReader::new(waiting.stdout.take().expect("it is piped"));
    let mut line = String::new();
    said.read_line(&mut line).expect("it says something");
    assert_eq!(line, "backend \"app/b1\" is draining: 2 sessions left\n");
    assert_eq!(waiting.try_wait().expect("it is ours"), None);
    clients.into_iter().for_each(ends_well);
    let mut rest = String::new();
    said.read_to_string(&mut rest).expect("it ends");
    assert!(rest.ends_with("backend \"app/b1\" is drained\n"), "{rest}");
    assert!(waiting.wait().expect("it is ours").success());
    proxy.end();
}

#[test]
fn connections_that_are_open_ahead_are_closed_and_opened_again() {
    let backend = Switched::new(Manner::Echo);
    let other = Backend::echo();
    let pool = "pool = { preconnect = 3 }";
    let proxy = Proxy::start(&pair([&backend.address, &other.address], pool));
    eventually("connections ahead", || (backend.open() == 3).then_some(()));
    proxy.done("drain --backend app/b1");
    eventually("none any more", || (backend.open() == 0).then_some(()));
    for _ in 0..4 {
        ends_well(session(&proxy.address("web")));
    }
    assert_eq!(backend.accepted(), 3, "none was opened since");
    proxy.done("resume --backend app/b1");
    eventually("connections ahead", || (backend.open() == 3).then_some(()));
    proxy.end();
}

#[test]
fn without_any_other_backend_clients_are_refused_at_once() {
    for queue in ["", "queue = { max = 10, timeout = \"1h\" }"] {
        let backend = Backend::echo();
        let text = config(&[&backend.address], "", queue, "");
        let mut proxy = Proxy::start(&text);
        let address = &backend.address;
        let mut old = session(&proxy.address("web"));
        proxy.done(&format!("drain --backend app/{address}"));
        let mut client = connect(&proxy.address("web"));
        assert_eq!(ending(&mut client), Ending::Reset);
        assert_eq!(proxy.next_session().reason, "no-backend");
        exchange(&mut old);
        proxy.done(&format!("resume --backend app/{address}"));
        ends_well(session(&proxy.address("web")));
        ends_well(old);
        proxy.end();
    }
}

#[test]
fn who_waits_for_a_place_at_it_is_refused_when_there_is_no_other() {
    let backend = Backend::echo();
    let entry = format!(
        "{{ address = {:?}, name = \"b1\", max_connections = 1 }}",
        backend.address
    );
    let text = config(&[], "", "queue = { max = 10, timeout = \"1h\" }", "");
    let text = text.replace("backends = []", &format!("backends = [{entry}]"));
    let mut proxy = Proxy::start(&text);
    let mut old = session(&proxy.address("web"));
    let mut waits = connect(&proxy.address("web"));
    eventually("both to be there", || {
        (proxy.status()["sessions"] == 2).then_some(())
    });
    proxy.done("drain --backend app/b1");
    assert_eq!(ending(&mut waits), Ending::Reset);
    assert_eq!(proxy.next_session().reason, "no-backend");
    exchange(&mut old);
    reset(old);
    proxy.end();
}
