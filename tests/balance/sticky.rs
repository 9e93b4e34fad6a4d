//! Clients that stay with their backend: over connections, workers and restarts, and who has to move
//! when a backend goes.

use std::iter::zip;

use crate::common::Proxy;
use crate::common::mortal::{Mortal, PING, PONG, SICK, behind_two_workers};
use crate::common::proxy::text;
use crate::visits_at_once;

const STICKY: [&str; 2] = ["ip-hash", "maglev"];

fn balanced(balance: &str, backends: &[Mortal], tables: &str) -> String {
    let list: Vec<_> = backends.iter().map(|backend| backend.weighing(1)).collect();
    behind_two_workers(&list, &format!("balance = {balance:?}"), tables)
}

/// Of those whose backend was another one than `gone`: how many there are, and how many moved.
fn others(gone: &Mortal, before: &[String], after: &[String]) -> (usize, usize) {
    assert!(before.contains(&gone.address), "it had clients");
    assert!(!after.contains(&gone.address), "it has clients");
    let others = zip(before, after).filter(|(before, _)| **before != gone.address);
    let moved = others.clone().filter(|(before, after)| before != after);
    (others.count(), moved.count())
}

#[test]
fn a_client_keeps_its_backend_over_connections_workers_and_restarts() {
    for balance in STICKY {
        let backends = Mortal::many::<5>();
        let config = balanced(balance, &backends, "");
        let clients: Vec<_> = (0..200).collect();
        let proxy = Proxy::start(&config);
        // The kernel gives a client's connections to either worker, by its port.
        let before = visits_at_once(&proxy.address("web"), &clients);
        for _ in 0..4 {
            assert_eq!(visits_at_once(&proxy.address("web"), &clients), before);
        }
        proxy.end();
        let proxy = Proxy::start(&config);
        let after = visits_at_once(&proxy.address("web"), &clients);
        assert_eq!(after, before, "{balance}");
        proxy.end();
    }
}

#[test]
fn a_backend_that_leaves_by_reload_moves_its_own_clients() {
    // One of many, as a table's disturbance is the smaller the more there are.
    let mut backends = Mortal::many::<100>().into_iter().collect::<Vec<_>>();
    let clients: Vec<_> = (0..1500).collect();
    let all = STICKY.map(|balance| balanced(balance, &backends, ""));
    let left = backends.remove(37);
    for (balance, all) in zip(STICKY, all) {
        let proxy = Proxy::start(&all);
        let before = visits_at_once(&proxy.address("web"), &clients);
        let line = proxy.reload(&balanced(balance, &backends, ""));
        assert_eq!(text(&line, "message"), "reloaded");
        let after = visits_at_once(&proxy.address("web"), &clients);
        let (others, moved) = others(&left, &before, &after);
        // 1 % of all clients is that of these, give or take three standard deviations.
        let most = match balance {
            "maglev" => others / 100 + 3 * (others / 100).isqrt(),
            _ => 0,
        };
        assert!(moved <= most, "{balance}: {moved} of {others}");
        proxy.end();
    }
}

#[test]
fn a_backend_that_is_down_moves_only_its_own_clients_and_gets_them_back() {
    let check = format!(
        "[upstreams.app.health_check]\n{PING}\
         interval = \"50ms\"\ntimeout = \"5s\"\nfall = 1\nrise = 1\n"
    );
    for balance in STICKY {
        let backends = Mortal::many::<5>();
        let proxy = Proxy::start(&balanced(balance, &backends, &check));
        let address = proxy.address("web");
        let clients: Vec<_> = (0..300).collect();
        let before = visits_at_once(&address, &clients);
        let ill = &backends[2];
        ill.answer_probes(SICK);
        proxy.wait_about(0, "backend is down", &ill.address);
        let meanwhile = visits_at_once(&address, &clients);
        let (_, moved) = others(ill, &before, &meanwhile);
        assert_eq!(moved, 0, "{balance}");
        for backend in backends
            .iter()
            .filter(|backend| !std::ptr::eq(*backend, ill))
        {
            let was = |names: &[String]| {
                names
                    .iter()
                    .filter(|name| **name == backend.address)
                    .count()
            };
            assert!(
                was(&meanwhile) > was(&before),
                "{balance}: its clients are spread"
            );
        }
        ill.answer_probes(PONG);
        proxy.wait_about(0, "backend is up", &ill.address);
        assert_eq!(visits_at_once(&address, &clients), before, "{balance}");
        proxy.end();
    }
}
