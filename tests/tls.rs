//! TLS through the real process, with peers of other makers on either side: openssl, curl, nginx, HAProxy,
//! and rustls where a peer has to do what those can't be told to.

mod common;

#[path = "tls/ahead.rs"]
mod ahead;
#[path = "tls/audit.rs"]
mod audit;
#[path = "tls/backends.rs"]
mod backends;
#[path = "tls/bulk.rs"]
mod bulk;
#[path = "tls/clients.rs"]
mod clients;
#[path = "tls/endings.rs"]
mod endings;
#[path = "tls/hellos.rs"]
mod hellos;
#[path = "tls/names.rs"]
mod names;
#[path = "tls/peers.rs"]
mod peers;
#[path = "tls/pki.rs"]
mod pki;
#[path = "tls/tickets.rs"]
mod tickets;
#[path = "tls/verification.rs"]
mod verification;
#[path = "tls/versions.rs"]
mod versions;

use common::{Backend, Proxy, config};
use pki::{Leaf, Pki};

/// A proxy that terminates TLS with a certificate for `a.test`; `more` are further keys of its table,
/// `lines` further lines of the listener.
fn terminating(backend: &Backend, more: &str, lines: &str) -> (Pki, Proxy) {
    let pki = Pki::new();
    let leaf = pki.leaf("a.test");
    let proxy = Proxy::start(&terminates(backend, &leaf, more, lines));
    (pki, proxy)
}

/// The configuration of it.
fn terminates(backend: &Backend, leaf: &Leaf, more: &str, lines: &str) -> String {
    let lines = pki::tls(&[leaf], more) + lines;
    config(&[&backend.address], &lines, "", "[runtime]\nworkers = 2\n")
}
