//! What `ringress explain` says beside what then happens.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;

use crate::common::commands::named;
use crate::common::mortal::{Mortal, PING, SICK, visit_from};
use crate::common::socket::exchange;
use crate::common::{Backend, Proxy, config, eventually};

fn explain(proxy: &Proxy, words: &str) -> Value {
    let said = proxy.done(&format!("explain --json {words}"));
    serde_json::from_str(&said).expect("it is JSON")
}

fn client(number: u8) -> IpAddr {
    [127, 9, number, 1].into()
}

fn explain_client(proxy: &Proxy, number: u8) -> Value {
    let client = client(number);
    explain(proxy, &format!("--listener web --client {client}"))
}

/// Who serves this client.
fn visit_as(number: u8, address: &str) -> String {
    visit_from(Some(client(number)), address).expect("it is served")
}

fn check<'a>(explained: &'a Value, name: &str) -> &'a Value {
    named(&explained["checks"], name)
}

fn balanced(balance: &str, backends: &[Mortal], tables: &str) -> String {
    let weighted = backends.iter().zip(1..);
    let list: Vec<_> = weighted
        .map(|(backend, weight)| backend.weighing(weight))
        .collect();
    format!(
        "[listeners.web]\nbind = \"127.0.0.1:0\"\nupstream = \"app\"\n\
         [upstreams.app]\nbalance = {balance:?}\nbackends = [{}]\n{tables}\n\
         [runtime]\nworkers = 2\n",
        list.join(", ")
    )
}

#[test]
fn who_has_no_say_in_it_goes_where_it_was_said() {
    for balance in ["ip-hash", "maglev"] {
        let backends = Mortal::many::<4>();
        let check = format!(
            "[upstreams.app.health_check]\n{PING}interval = \"50ms\"\nfall = 1\nrise = 1\njitter = 0\n"
        );
        let proxy = Proxy::start(&balanced(balance, &backends, &check));
        let mut seen = BTreeSet::new();
        for round in 0..2 {
            for number in 0..60 {
                let said = explain_client(&proxy, number);
                assert_eq!(
                    (&said["verdict"], &said["foresight"]),
                    (&"served".into(), &"certain".into())
                );
                let went = visit_as(number, &proxy.address("web"));
                assert_eq!(said["backend"], *went, "{balance}: client {number}");
                assert_eq!(named(&said["backends"], &went)["chosen"], true);
                seen.insert((round, went));
            }
            // Once more without the heaviest one.
            backends[3].answer_probes(SICK);
            proxy.wait_about(0, "backend is down", &backends[3].address);
        }
        assert_eq!(seen.len(), 7, "{balance}");
        let said = explain_client(&proxy, 1);
        let down = named(&said["backends"], &backends[3].address);
        let why = down["why"].as_str().expect("a text");
        assert!(
            why.starts_with("unhealthy: ") && why.contains("no disk"),
            "{why}"
        );
        proxy.end();
    }
}

#[test]
fn whose_turn_it_is_gets_the_next_session_and_looking_takes_no_turn() {
    for balance in ["round-robin", "least-connections"] {
        let backends = Mortal::many::<3>();
        let proxy = Proxy::start(&balanced(balance, &backends, ""));
        let address = proxy.address("web");
        for number in 0..18 {
            let idle = || proxy.status()["sessions"] == 0;
            eventually("the last one to be gone", || idle().then_some(()));
            let said = explain_client(&proxy, number);
            assert_eq!(explain_client(&proxy, number), said);
            assert_eq!(said["foresight"], "next");
            assert_eq!(said["backend"], *visit_as(number, &address), "{balance}");
        }
        proxy.end();
    }
}

#[test]
fn what_is_drawn_is_said_to_be() {
    let backends = Mortal::many::<3>();
    let proxy = Proxy::start(&balanced("random", &backends, ""));
    let said = explain_client(&proxy, 1);
    assert_eq!(
        (&said["foresight"], &said["backend"]),
        (&"chance".into(), &Value::Null)
    );
    let drawn = named(&said["backends"], &backends[2].address);
    assert_eq!(drawn["why"], "ready: random may draw it, weight 3 of 6");
    let told = proxy.done("explain --listener web --client 127.0.0.1");
    assert!(
        told.contains("goes to a backend of upstream \"app\" that is drawn"),
        "{told}"
    );
    proxy.end();
}

#[test]
fn networks_and_rates_are_told_and_no_token_is_taken() {
    let backend = Backend::echo();
    let listener = "deny = [\"127.0.0.9/32\", \"10.0.0.0/8\"]\n\
        rate_limit.connections_per_ip = { rate = 1, burst = 3 }\n\
        rate_limit.connections = { rate = 1000, burst = 500 }\n";
    let proxy = Proxy::start(&config(&[&backend.address], listener, "", ""));
    let address = proxy.address("web");
    let said = |client: &str| explain(&proxy, &format!("--listener web --client {client}"));
    let denied = said("127.0.0.9");
    assert_eq!(
        (&denied["verdict"], &denied["reason"]),
        (&"refused".into(), &"denied".into())
    );
    assert_eq!(
        check(&denied, "allow, deny")["why"],
        "in 127.0.0.9/32 of deny"
    );
    // Where it would go is told all the same.
    assert_eq!(denied["backend"], backend.address);
    assert!(exchange(Some("127.0.0.9"), &address).is_none());
    for _ in 0..10 {
        said("127.0.0.5");
    }
    let fresh = said("127.0.0.5");
    let bucket = check(&fresh, "rate_limit.connections_per_ip");
    assert_eq!(bucket["why"], "3 of 3 tokens, which come back at 1/s");
    let all = check(&fresh, "rate_limit.connections");
    assert_eq!(all["why"], "500 of 500 tokens, which come back at 1000/s");
    assert_eq!(fresh["verdict"], "served");
    eventually("its bucket to be empty", || {
        exchange(Some("127.0.0.5"), &address)
            .is_none()
            .then_some(())
    });
    // A token may have come back by now, and then the next one is let in.
    let empty = eventually("an empty bucket to be told", || {
        let _ = exchange(Some("127.0.0.5"), &address);
        let said = said("127.0.0.5");
        (said["verdict"] == "refused").then_some(said)
    });
    assert_eq!(empty["reason"], "client-rate-limit");
    assert_eq!(said("127.0.0.6")["verdict"], "served");
    proxy.end();
}

#[test]
fn routes_are_told_with_why_they_are_not_taken() {
    let config = "[listeners.web]\nbind = \"127.0.0.1:0\"\nupstream = \"app\"\n\
         [[listeners.web.routes]]\nsni = [\"b.example\"]\nupstream = \"b\"\n\
         [[listeners.web.routes]]\nsni = [\"x.example\", \"*.a.example\"]\nupstream = \"a\"\n\
         [[listeners.web.routes]]\nsni = [\"*.example\"]\nupstream = \"b\"\n\
         [upstreams.app]\nbackends = [\"127.0.0.1:1\"]\n\
         [upstreams.a]\nbackends = [\"127.0.0.1:2\"]\n\
         [upstreams.b]\nbackends = [\"127.0.0.1:3\"]\n";
    let proxy = Proxy::start(config);
    let of = |sni: &str| {
        let said = explain(&proxy, &format!("--listener web --client ::1{sni}"));
        let routes = said["routes"].as_array().expect("a list");
        let whys: Vec<_> = routes.iter().map(|it| it["why"].clone()).collect();
        let taken = routes.iter().position(|it| it["taken"] == true);
        (said["upstream"].clone(), taken, whys)
    };
    let (upstream, taken, whys) = of(" --sni Q.A.Example");
    assert_eq!((upstream, taken), ("a".into(), Some(1)));
    let expected = [
        "none of its names matches",
        "it is the first that matches",
        "it matches, but route 1 comes before",
        "a route matches",
    ];
    assert_eq!(whys, expected);
    let (upstream, taken, whys) = of("");
    assert_eq!((upstream, taken), ("app".into(), Some(3)));
    assert_eq!(
        whys,
        [
            "there is no name",
            "there is no name",
            "there is no name",
            "no route matches"
        ]
    );
    assert_eq!(of(" --sni org").1, Some(3));
    proxy.end();
}

#[test]
fn what_keeps_a_client_from_everything_is_told() {
    let backend = Backend::echo();
    let capped = format!(
        "[{{ address = {:?}, max_connections = 1 }}]",
        backend.address
    );
    let config = format!(
        "[listeners.web]\nbind = \"127.0.0.1:0\"\nupstream = \"app\"\nmax_connections = 2\n\
         [upstreams.app]\nbackends = {capped}\nqueue = {{ max = 1, timeout = \"1m\" }}\n"
    );
    let proxy = Proxy::start(&config);
    let said = || explain(&proxy, "--listener web --client 127.0.0.1");
    let first = exchange(None, &proxy.address("web")).expect("it is served");
    let waits = said();
    assert_eq!(
        (&waits["verdict"], &waits["backend"]),
        (&"waits".into(), &Value::Null)
    );
    let why = &named(&waits["backends"], &backend.address)["why"];
    assert_eq!(*why, "full: 1 open, which is its max_connections");
    let second = proxy.connect();
    eventually("it to wait", || {
        (proxy.status()["sessions"] == 2).then_some(())
    });
    let full = said();
    assert_eq!(
        (&full["verdict"], &full["reason"]),
        (&"refused".into(), &"listener-full".into())
    );
    drop((first, second));
    proxy.done("drain --listener web");
    let drained = said();
    assert_eq!(
        (&drained["verdict"], &drained["reason"]),
        (&"refused".into(), &Value::Null)
    );
    assert_eq!(
        check(&drained, "listener")["why"],
        "it was drained by order"
    );
    let unknown = proxy.refused("explain --listener wep --client 127.0.0.1");
    assert_eq!(unknown, "there is no listener \"wep\": there is web\n");
    proxy.end();
}
