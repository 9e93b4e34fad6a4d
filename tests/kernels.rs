//! The essentials of TCP with kernel features left unused, as older kernels would have it.

mod common;

use common::Proxy;
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
