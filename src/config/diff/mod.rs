//! What is different in another configuration, key by key, and what it takes to apply it to a running
//! process. Complete: two configurations without a difference mean the same. Applies nothing itself.
//!
//! Each configuration becomes a sorted list of keys with their values; two such lists are merged.

pub(super) mod flat;
mod laws;
#[cfg(test)]
pub(in crate::config) mod tests;
mod tls;
mod value;
mod written;

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use self::flat::{Path, flatten};
pub use self::laws::check_laws;
use super::Config;

/// What has become of a key, or of a table as a whole. `Display` is one line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Change {
    /// As TOML would write it: `upstreams.app.backends."10.0.0.1:80".weight`.
    pub key: String,
    /// The old value; `None` if the table was not there. Of a table that has gone it is what the table
    /// is about: the addresses of a listener, the address of a backend, or else `{ ... }`.
    pub from: Option<String>,
    /// The new value; `None` if the table is not there any more. As above.
    pub to: Option<String>,
    /// What it takes.
    pub how: How,
}

/// What it takes to apply a change. Displayed and serialized with the same words.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum How {
    /// It takes effect at once, for everything that there is.
    #[serde(rename = "live")]
    Live,
    /// It takes effect for connections that begin afterwards.
    #[serde(rename = "new connections only")]
    NewConnections,
    /// Addresses are bound or given up. Connections go on.
    #[serde(rename = "rebind")]
    Rebind,
    /// The process can't do it to itself: another one has to take its place.
    #[serde(rename = "needs upgrade")]
    NeedsUpgrade,
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Live => "live",
            Self::NewConnections => "new connections only",
            Self::Rebind => "rebind",
            Self::NeedsUpgrade => "needs upgrade",
        })
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, from, to, how } = self;
        match (from, to) {
            (Some(from), Some(to)) => write!(f, "{key}: {from} → {to} ({how})"),
            (None, _) => write!(f, "{key}: added ({how})"),
            (Some(_), None) => write!(f, "{key}: removed ({how})"),
        }
    }
}

/// Every difference, sorted by key. Listeners, upstreams and backends are the same if they have the
/// same name; their order means nothing, nor does that of the entries of a list, other than routes,
/// certificates and `alpn`. Files are the same if path and content are.
pub fn between(old: &Config, new: &Config) -> Vec<Change> {
    let (old, new) = (flatten(old), flatten(new));
    let paths: BTreeSet<&Path> = old.keys().chain(new.keys()).collect();
    let mut changes = Vec::new();
    let mut whole: Option<&Path> = None;
    for path in paths {
        // What is in a table that came or went is not told again.
        if whole.is_some_and(|table| path.starts_with(table)) {
            continue;
        }
        let (old, new) = (old.get(path), new.get(path));
        let Some(entry) = new.or(old) else { continue };
        let (old, new) = (old.map(|it| &it.value), new.map(|it| &it.value));
        if old.is_none() || new.is_none() {
            whole = Some(path);
        } else if old == new {
            continue;
        }
        changes.push(Change {
            key: written::key(path),
            from: old.map(|value| value.shown(new)),
            to: new.map(|value| value.shown(old)),
            how: entry.how,
        });
    }
    changes
}

/// Those that a running process can't apply.
pub fn needs_upgrade(changes: &[Change]) -> impl Iterator<Item = &Change> {
    changes.iter().filter(|it| it.how == How::NeedsUpgrade)
}
