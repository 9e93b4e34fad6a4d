//! ringress itself, the binary that was built.

use std::path::Path;

use super::{Launch, MOST_CONNECTIONS, Missing, Peer, Place, first_line, output};
use crate::local::BACKLOG;

pub(super) const NAME: &str = "ringress";

pub(super) fn find(binary: &Path) -> Result<Peer, Missing> {
    let version = output(binary, &["--version"]).ok_or_else(|| Missing {
        name: NAME,
        why: format!(
            "{} can't be run: `make build` makes it, --ringress names another",
            binary.display()
        ),
    })?;
    Ok(Peer {
        name: NAME,
        program: binary.to_owned(),
        version: first_line(&version),
        launch,
        module: None,
    })
}

pub(super) fn launch(_: &Peer, place: &Place<'_>) -> Launch {
    let backends: Vec<String> = place
        .backends
        .iter()
        .map(|backend| format!("\"{backend}\""))
        .collect();
    let file = "ringress.toml";
    let text = format!(
        r#"[runtime]
workers = 1
max_connections = {MOST_CONNECTIONS}
drain_timeout = "100ms"

[log]
level = "error"

[listeners.bench]
bind = "{listen}"
upstream = "backends"
backlog = {BACKLOG}

[upstreams.backends]
backends = [{backends}]
connect_timeout = "5s"
"#,
        listen = place.listen,
        backends = backends.join(", ")
    );
    Launch {
        file,
        text,
        arguments: vec!["run".into(), "-c".into(), place.folder.join(file).into()],
    }
}
