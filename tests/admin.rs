//! The admin endpoint of a real process: what there is, who may, and that nobody who asks disturbs those
//! who are served.

mod common;

#[path = "admin/addresses.rs"]
mod addresses;
#[path = "admin/doors.rs"]
mod doors;
#[path = "admin/orders.rs"]
mod orders;
#[path = "admin/pressure.rs"]
mod pressure;
#[path = "admin/readiness.rs"]
mod readiness;
#[path = "admin/routes.rs"]
mod routes;

use common::{Backend, Proxy, config};

/// The token of the tests.
const TOKEN: &str = "right-token-of-the-tests";
const RIGHT: &str = "Authorization: Bearer right-token-of-the-tests";

/// A proxy in front of a backend that echoes, with these lines in `[admin]`.
fn with_admin(lines: &str) -> (Proxy, Backend) {
    let backend = Backend::echo();
    let proxy = Proxy::start(&text(&backend, lines));
    (proxy, backend)
}

fn text(backend: &Backend, lines: &str) -> String {
    let tables = format!("[runtime]\nworkers = 2\n[admin]\n{lines}\n");
    config(&[&backend.address], "", "", &tables)
}

/// At a port of the kernel's choice, with a token.
fn guarded() -> (Proxy, Backend) {
    with_admin(&format!("listen = \"127.0.0.1:0\"\ntoken = {TOKEN:?}"))
}

/// At a unix socket in a folder of its own.
fn at_a_path() -> (Proxy, Backend, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("admin.sock");
    let (proxy, backend) = with_admin(&format!("listen = \"unix:{}\"", path.display()));
    (proxy, backend, folder)
}
