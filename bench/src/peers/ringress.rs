//! ringress itself, the binary that was built: the bare relay, or with traffic policy on.

use std::path::Path;

use super::certificate::{CHAIN, KEY};
use super::{Launch, MOST_CONNECTIONS, Missing, Peer, Place, Protocol, first_line, output};
use crate::local::BACKLOG;

pub(super) const NAME: &str = "ringress";
pub(super) const NAME_WITH_POLICIES: &str = "ringress-policies";

/// In the listener's table; no generator is as fast.
const LISTENER_POLICIES: &str =
    "rate_limit = { connections_per_ip = { rate = 1_000_000, burst = 1_000_000 } }\n";
/// In the upstream's.
const UPSTREAM_POLICIES: &str = "balance = \"least-connections\"
health_check = {}
outlier = {}
circuit_breaker = {}
";

pub(super) fn find(binary: &Path, policies: bool) -> Result<Peer, Missing> {
    let name = if policies { NAME_WITH_POLICIES } else { NAME };
    let version = output(binary, &["--version"]).ok_or_else(|| Missing {
        name,
        why: format!(
            "{} can't be run: `make build` makes it, --ringress names another",
            binary.display()
        ),
    })?;
    Ok(Peer {
        name,
        program: binary.to_owned(),
        version: first_line(&version),
        launch,
        module: None,
    })
}

pub(super) fn launch(peer: &Peer, place: &Place<'_>) -> Launch {
    let backends: Vec<String> = place
        .backends
        .iter()
        .map(|backend| format!("\"{backend}\""))
        .collect();
    let (of_listener, of_upstream) = match peer.name == NAME_WITH_POLICIES {
        true => (LISTENER_POLICIES, UPSTREAM_POLICIES),
        false => ("", ""),
    };
    let also = place.change.and_then(|change| change.also);
    let also = also.map_or_else(String::new, |address| {
        format!("\n[listeners.also]\nbind = \"{address}\"\nupstream = \"backends\"\n")
    });
    let file = "ringress.toml";
    let workers = match place.change {
        Some(change) if change.second_worker => 2,
        _ => 1,
    };
    let runtime = match place.change {
        // Sessions outlive the process that began them, and `ringress upgrade` has to find it.
        Some(_) => format!(
            "drain_timeout = \"10m\"\ncontrol_socket = \"{}\"\n",
            place.folder.join("control.sock").display()
        ),
        None => "drain_timeout = \"100ms\"\n".to_owned(),
    };
    let (protocol, of_session, of_connection) = match place.protocol {
        Protocol::Tcp => (
            format!("backlog = {BACKLOG}\n"),
            String::new(),
            "connect_timeout = \"5s\"\n",
        ),
        Protocol::Tls => (
            format!("backlog = {BACKLOG}\n"),
            of_tls(place.folder),
            "connect_timeout = \"5s\"\n",
        ),
        Protocol::Udp => (
            "protocol = \"udp\"\n".to_owned(),
            "\n[listeners.bench.udp]\nsession_timeout = \"60s\"\n".to_owned(),
            "",
        ),
    };
    let text = format!(
        r#"[runtime]
workers = {workers}
max_connections = {MOST_CONNECTIONS}
{runtime}
[log]
level = "error"

[listeners.bench]
bind = "{listen}"
upstream = "backends"
{protocol}{of_listener}{of_session}
[upstreams.backends]
backends = [{backends}]
{of_connection}{of_upstream}{also}"#,
        listen = place.listen,
        backends = backends.join(", ")
    );
    Launch {
        file,
        text,
        arguments: vec!["run".into(), "-c".into(), place.folder.join(file).into()],
    }
}

/// Tickets are given out unless it is told otherwise.
fn of_tls(folder: &Path) -> String {
    let (chain, key) = (folder.join(CHAIN), folder.join(KEY));
    format!(
        r#"
[listeners.bench.tls]
certificates = [{{ cert = "{}", key = "{}" }}]
min_version = "1.3"
"#,
        chain.display(),
        key.display(),
    )
}
