//! nginx with its stream module: a master and one worker.

use std::path::{Path, PathBuf};

use super::certificate::{CHAIN, KEY};
use super::{
    Launch, MOST_CONNECTIONS, Missing, Peer, Place, Protocol, first_line, in_path, output,
};
use crate::local::BACKLOG;

pub(super) const NAME: &str = "nginx";

pub(super) fn find() -> Result<Peer, Missing> {
    let missing = |why: &str| Missing {
        name: NAME,
        why: why.to_owned(),
    };
    let program = in_path("nginx").ok_or_else(|| missing("not installed (Debian: nginx)"))?;
    let facts = output(&program, &["-V"]).ok_or_else(|| missing("`nginx -V` fails"))?;
    let module = stream_module(&facts).ok_or_else(|| missing("built without stream"))?;
    if module.as_ref().is_some_and(|module| !module.is_file()) {
        let why = "its stream module is not installed (Debian: libnginx-mod-stream)";
        return Err(missing(why));
    }
    Ok(Peer {
        name: NAME,
        program,
        version: first_line(&facts),
        launch,
        module,
    })
}

/// What `nginx -V` says about stream: `None` = it has none, `Some(None)` = it is built in, else the
/// file to load.
fn stream_module(facts: &str) -> Option<Option<PathBuf>> {
    let mut words = facts.split_ascii_whitespace();
    if words.clone().any(|word| word == "--with-stream") {
        return Some(None);
    }
    if !words.clone().any(|word| word == "--with-stream=dynamic") {
        return None;
    }
    let folder = words.find_map(|word| word.strip_prefix("--modules-path="))?;
    Some(Some(PathBuf::from(folder).join("ngx_stream_module.so")))
}

pub(super) fn launch(peer: &Peer, place: &Place<'_>) -> Launch {
    let load = peer.module.as_ref().map_or_else(String::new, |module| {
        format!("load_module {};\n", module.display())
    });
    let servers: String = place
        .backends
        .iter()
        .map(|backend| format!("        server {backend};\n"))
        .collect();
    let listens: String = place
        .listens()
        .map(|address| match place.protocol {
            Protocol::Tcp => format!("        listen {address} backlog={BACKLOG};\n"),
            Protocol::Tls => format!("        listen {address} ssl backlog={BACKLOG};\n"),
            Protocol::Udp => format!("        listen {address} udp reuseport;\n"),
        })
        .collect();
    let timeouts = match place.protocol {
        Protocol::Tcp | Protocol::Tls => "proxy_connect_timeout 5s;\n        proxy_timeout 10m;",
        Protocol::Udp => "proxy_timeout 60s;",
    };
    let tls = match place.protocol {
        Protocol::Tls => of_tls(place.folder),
        _ => String::new(),
    };
    let text = format!(
        "{load}daemon off;
worker_processes 1;
pid nginx.pid;
error_log error.log crit;
events {{
    worker_connections {connections};
}}
stream {{
    upstream backends {{
{servers}    }}
    server {{
{listens}        proxy_pass backends;
        {timeouts}
{tls}    }}
}}
",
        // A proxied connection takes two of them.
        connections = 2 * MOST_CONNECTIONS,
    );
    let file = "nginx.conf";
    let arguments = vec![
        "-p".into(),
        place.folder.into(),
        "-e".into(),
        "error.log".into(),
        "-c".into(),
        file.into(),
    ];
    Launch {
        file,
        text,
        arguments,
    }
}

/// Tickets alone resume sessions, as everywhere else: a cache would take each of them as well.
fn of_tls(folder: &Path) -> String {
    format!(
        "        ssl_certificate {};
        ssl_certificate_key {};
        ssl_protocols TLSv1.3;
        ssl_session_tickets on;
        ssl_session_cache none;
        ssl_handshake_timeout 10s;
",
        folder.join(CHAIN).display(),
        folder.join(KEY).display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_is_found_built_in_or_as_a_module() {
        let built_in = "nginx version: nginx/1.27\nconfigure arguments: --with-stream --x";
        assert_eq!(stream_module(built_in), Some(None));
        let dynamic = "configure arguments: --modules-path=/m --with-stream=dynamic";
        let file = PathBuf::from("/m/ngx_stream_module.so");
        assert_eq!(stream_module(dynamic), Some(Some(file)));
        let none = "configure arguments: --with-stream_ssl_module";
        assert_eq!(stream_module(none), None);
    }
}
