//! The harness of the end-to-end tests: the real binary on real sockets of the loopback, with ports
//! that the kernel chooses. Every wait is for an event and has an end.

#![allow(
    dead_code,
    reason = "each file of tests includes the harness and uses a part of it"
)]

pub(crate) mod backend;
pub(crate) mod browser;
pub(crate) mod certificates;
pub(crate) mod commands;
pub(crate) mod crowd;
pub(crate) mod datagrams;
pub(crate) mod essentials;
pub(crate) mod http;
pub(crate) mod lineage;
pub(crate) mod load;
pub(crate) mod mortal;
pub(crate) mod pattern;
pub(crate) mod proxy;
pub(crate) mod scrape;
pub(crate) mod socket;
pub(crate) mod successor;
pub(crate) mod switched;
pub(crate) mod system;
pub(crate) mod tools;

use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

pub(crate) use backend::Backend;
pub(crate) use proxy::Proxy;
pub(crate) use socket::{Ending, connect, ending, read_to_end, reset};

/// How long anything may take before a test fails: far more than a busy machine needs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The time now. A test measures what a user would.
pub(crate) fn now() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "a test of the whole process lives in real time"
    )]
    Instant::now()
}

/// Lets time pass, where the passing of time itself is what is tested, or where there is no event.
pub(crate) fn pass(time: Duration) {
    #[expect(
        clippy::disallowed_methods,
        reason = "/proc and a silent connection have no event to wait for"
    )]
    std::thread::sleep(time);
}

/// Asks until there is an answer.
pub(crate) fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let until = now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(now() < until, "waited in vain: {what}");
        pass(Duration::from_millis(5));
    }
}

/// The number that a run by hand may set this variable to.
pub(crate) fn by_hand(variable: &str, usual: usize) -> usize {
    let wanted = std::env::var(variable).ok();
    wanted.map_or(usual, |wanted| wanted.parse().expect("a number"))
}

/// What a script has to tell; it may have failed.
pub(crate) fn told<T>(by: &Receiver<T>) -> T {
    // Longer than the script's own patience, so that it is the script that says what failed.
    by.recv_timeout(PATIENCE * 2).expect("the script ran")
}

/// A configuration with one listener, `web`, and one upstream, `app`. `listener` and `upstream` are
/// further lines of those tables, `tables` whole tables.
pub(crate) fn config(backends: &[&str], listener: &str, upstream: &str, tables: &str) -> String {
    format!(
        "[listeners.web]\n{bind}upstream = \"app\"\n{listener}\n\
         [upstreams.app]\nbackends = {backends:?}\n{upstream}\n{tables}\n",
        bind = if listener.contains("bind =") {
            ""
        } else {
            "bind = \"127.0.0.1:0\"\n"
        },
    )
}

/// The configuration that most tests need: these backends and nothing else.
pub(crate) fn plain(backends: &[&str]) -> String {
    config(backends, "", "", "")
}
