//! `[runtime]`: from the file's table to the model. Whether users and paths exist is found out where
//! they are used.

use std::path::Path;
use std::sync::Arc;

use toml::de::DeValue;

use super::diagnostics::Fault;
use super::section::{Findings, Section};
use super::value::{self, Read};
use super::{ControlSocket, Listener, Runtime, duration, endpoint, keys};
use crate::address::Address;

/// Settings of the process. `listeners` bind paths that commands can't be taken at.
pub(super) fn read(root: &Section<'_>, listeners: &[Listener], findings: &mut Findings) -> Runtime {
    let section = root.child("runtime", keys::RUNTIME, findings);
    let default = Runtime::default();
    if let (Some(group), None) = (section.value("group"), section.value("user")) {
        let fault = Fault::new("a group without a user")
            .expected("\"user\" as well: whoever gives up root becomes somebody else");
        findings.push(group.span(), fault);
    }
    Runtime {
        workers: section.read("workers", default.workers, findings, |value| {
            value::auto_or_count(value, MOST_WORKERS)
        }),
        pin_workers: section.read("pin_workers", default.pin_workers, findings, value::boolean),
        max_connections: section.read("max_connections", None, findings, |value| {
            value::auto_or_count(value, value::MOST_CONNECTIONS)
        }),
        drain_timeout: section.read(
            "drain_timeout",
            default.drain_timeout,
            findings,
            duration::duration,
        ),
        drain_delay: section.read(
            "drain_delay",
            default.drain_delay,
            findings,
            duration::duration,
        ),
        buffer_memory: section.read("buffer_memory", None, findings, |value| {
            value::auto_or_size(value, LEAST_BUFFER_MEMORY)
        }),
        user: section.read("user", None, findings, |value| account(value, "user")),
        group: section.read("group", None, findings, |value| account(value, "group")),
        control_socket: section.read(
            "control_socket",
            default.control_socket,
            findings,
            |value| control_socket(value, listeners),
        ),
    }
}

/// More than a machine has CPUs.
const MOST_WORKERS: u64 = 1024;
/// A worker needs a few buffers to do anything.
const LEAST_BUFFER_MEMORY: u64 = 64 << 10;

/// The name of a user or a group, as `what` says.
fn account(value: &DeValue<'_>, what: &str) -> Read<Option<Arc<str>>> {
    let expected = format!("the name of a {what}");
    let name = value::string(value).map_err(|_| value::wrong_type(value, &expected))?;
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"_.-".contains(&c);
    let fits = (1..=LONGEST_ACCOUNT).contains(&name.len()) && name.bytes().all(plain);
    // A name of digits only would be taken for a number by half of the tools.
    if fits && !name.starts_with(['-', '.']) && !name.bytes().all(|c| c.is_ascii_digit()) {
        return Ok(Some(name.into()));
    }
    Err(
        Fault::new(format!("{name:?} can't be the name of a {what}")).expected(format!(
            "{expected}: 1 to {LONGEST_ACCOUNT} characters out of A-Z a-z 0-9 _ . -, not only digits"
        )),
    )
}

/// useradd(8) and groupadd(8) take no longer ones.
const LONGEST_ACCOUNT: usize = 32;

fn control_socket(value: &DeValue<'_>, listeners: &[Listener]) -> Read<ControlSocket> {
    let text = value::string(value).map_err(|_| value::wrong_type(value, CONTROL_SOCKET_FORM))?;
    match text {
        "auto" => Ok(ControlSocket::Auto),
        "off" => Ok(ControlSocket::Off),
        text => {
            let path = endpoint::unix_path(text).map_err(|fault| meant(fault, text))?;
            not_bound(&path, listeners)?;
            Ok(ControlSocket::Path(path))
        }
    }
}

const CONTROL_SOCKET_FORM: &str =
    "\"auto\", \"off\" or the absolute path of a file, at most 107 bytes";

/// With what was probably meant by `text`.
fn meant(fault: Fault, text: &str) -> Fault {
    let fault = fault.expected(CONTROL_SOCKET_FORM);
    match text.strip_prefix("unix:") {
        Some(path) => fault.hint(format!("did you mean {path:?}?")),
        None => fault.suggest(text, ["auto", "off"]),
    }
}

/// Commands and sessions can't come in at the same path.
fn not_bound(path: &Arc<Path>, listeners: &[Listener]) -> Read<()> {
    let socket = Address::Unix(path.clone());
    match listeners.iter().find(|it| it.bind.contains(&socket)) {
        Some(listener) => Err(Fault::new(format!(
            "{} is already bound by listener {:?}",
            path.display(),
            listener.name
        ))
        .expected("a path of its own")),
        None => Ok(()),
    }
}
