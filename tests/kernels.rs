//! The essentials of TCP and of datagrams with kernel features left unused, as older kernels would have it.

mod common;

use common::Proxy;
use common::datagrams::{DatagramBackend, ask, client, hear, udp_config};
use common::essentials::{self, MIB};

fn essentials_hold_without(features: &str) {
    let start = |config: &str| Proxy::start_without(config, features);
    essentials::echoes_at_once(&start);
    essentials::client_fin_first(&start);
    essentials::backend_fin_first(&start);
    essentials::ends_without_bytes(&start);
    for count in [1, 100_000, 4 * MIB] {
        essentials::reset_comes_after_every_byte(&start, count, false);
        essentials::client_reset_reaches_the_backend(&start, count);
    }
    essentials::reset_comes_after_every_byte(&start, MIB, true);
    essentials::slow_reader(&start, 32 * MIB);
    datagrams_pass(&start);
}

/// Of all sizes, from many clients, and more at once than there are buffers.
fn datagrams_pass(start: &impl Fn(&str) -> Proxy) {
    let backend = DatagramBackend::echo();
    let proxy = start(&udp_config(&[&backend.address], "", "", ""));
    let address = proxy.address("web");
    let clients: Vec<_> = (0..100).map(|_| client()).collect();
    for len in [0, 1, 1_472, 65_507] {
        let bytes = vec![7; len];
        assert!(ask(&clients[0], &address, &bytes) == bytes, "{len}");
    }
    for client in &clients {
        client.send_to(b"at once", &address).expect("it is sent");
    }
    for client in &clients {
        assert_eq!(hear(client, &address), b"at once");
    }
    proxy.end_now();
}

#[test]
fn without_a_budget_for_receiving() {
    essentials_hold_without("recv_budget");
}

#[test]
fn without_multishot_accept() {
    essentials_hold_without("multishot_accept");
}

#[test]
fn without_what_came_after_linux_6_1() {
    essentials_hold_without("recv_budget,multishot_accept,no_sqarray,no_iowait");
}

#[test]
fn without_deferred_task_work() {
    essentials_hold_without("defer_taskrun");
}

#[test]
fn without_restrictions() {
    essentials_hold_without("restrictions");
}

#[test]
fn without_any_of_them() {
    essentials_hold_without(
        "recv_budget,multishot_accept,defer_taskrun,no_sqarray,no_iowait,restrictions",
    );
}

#[test]
fn a_feature_there_is_not_is_refused() {
    let config = common::plain(&["127.0.0.1:1"]);
    let mut proxy = Proxy::spawn(&config, "recv_budget,magic");
    assert_eq!(proxy.wait_exit().code(), Some(1));
    let line = proxy.wait_line("a message", |line| line.as_str().map(str::to_owned));
    assert!(line.contains("\"magic\""), "{line}");
}
