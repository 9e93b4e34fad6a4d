//! HAProxy in tcp mode with one thread, copying or with splice.

use std::path::Path;

use super::certificate::BOTH;
use super::{
    Launch, MOST_CONNECTIONS, Missing, Peer, Place, Protocol, first_line, in_path, output,
};
use crate::local::BACKLOG;

pub(super) const NAME: &str = "haproxy";
pub(super) const NAME_WITH_SPLICE: &str = "haproxy-splice";

pub(super) fn find(splice: bool) -> Result<Peer, Missing> {
    let name = if splice { NAME_WITH_SPLICE } else { NAME };
    let missing = |why: &str| Missing {
        name,
        why: why.to_owned(),
    };
    let program = in_path("haproxy").ok_or_else(|| missing("not installed (Debian: haproxy)"))?;
    let version = output(&program, &["-v"]).ok_or_else(|| missing("`haproxy -v` fails"))?;
    Ok(Peer {
        name,
        program,
        version: first_line(&version),
        launch,
        module: None,
    })
}

pub(super) fn launch(peer: &Peer, place: &Place<'_>) -> Launch {
    let servers: String = place
        .backends
        .iter()
        .enumerate()
        .map(|(number, backend)| format!("    server backend{number} {backend}\n"))
        .collect();
    // splice-auto decides against it under such a load (strace shows no splice(2)); the peer to beat is
    // the one that does.
    let splice = if peer.name == NAME_WITH_SPLICE {
        "    option splice-response\n"
    } else {
        ""
    };
    let tls = match place.protocol {
        Protocol::Tls => of_tls(place.folder),
        _ => String::new(),
    };
    let binds: String = place
        .listens()
        .map(|address| format!("    bind {address} backlog {BACKLOG}{tls}\n"))
        .collect();
    // Tickets alone resume sessions: the cache would take each of them as well.
    let cache = match place.protocol {
        Protocol::Tls => "    tune.ssl.cachesize 0\n",
        _ => "",
    };
    let text = format!(
        "global
    nbthread 1
    maxconn {MOST_CONNECTIONS}
{cache}defaults
    mode tcp
    timeout connect 5s
    timeout client 10m
    timeout server 10m
{splice}listen bench
{binds}    balance roundrobin
{servers}"
    );
    let file = "haproxy.cfg";
    let mut arguments = vec!["-db".into(), "-f".into(), place.folder.join(file).into()];
    if place.change.is_some() {
        // A master, which reloads without losing the listening sockets (management.txt, -x).
        arguments.insert(0, "-W".into());
    }
    Launch {
        file,
        text,
        arguments,
    }
}

/// What makes an address to bind one for TLS. HAProxy leaves out early data unless it is told otherwise.
fn of_tls(folder: &Path) -> String {
    let file = folder.join(BOTH);
    format!(" ssl crt {} ssl-min-ver TLSv1.3", file.display())
}
