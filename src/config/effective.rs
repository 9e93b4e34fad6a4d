//! The configuration in effect as a file would have it, with every default filled in and without secrets:
//! the token is left out, and of keys only where they are. It has the keys that the difference is made of
//! (`diff/flat.rs`); here they become tables.
//!
//! What comes out can be read again and means the same, but for a token, and for host names: they stand
//! beside the addresses that they had.

use toml::{Table, Value};

use super::diff::flat::flatten;
use super::udp::KEYS_OF_CONNECTIONS;
use super::{Backend, Config};

/// Every table and key. Lists are sorted if their order means nothing.
pub fn table(config: &Config) -> Table {
    let mut table = Table::new();
    for (path, entry) in flatten(config) {
        if let (Some(value), Some((key, tables))) = (entry.value.toml(), path.split_last())
            && let Some(table) = within(&mut table, tables)
        {
            table.insert(key.clone(), value);
        }
    }
    for listener in &config.listeners {
        if listener.protocol.udp().is_some()
            && let Some(table) = within(&mut table, &["listeners", &listener.name])
        {
            table.retain(|key, _| !KEYS_OF_CONNECTIONS.contains(&key));
        }
    }
    for upstream in &config.upstreams {
        if let Some(table) = within(&mut table, &["upstreams", &upstream.name]) {
            let named = table.remove("backends");
            let list = named.map(|named| backends(named, &upstream.backends));
            table.extend(list.map(|list| ("backends".to_owned(), list)));
        }
    }
    table
}

/// The table at `path`, which is made if it isn't there.
fn within<'a>(root: &'a mut Table, path: &[impl AsRef<str>]) -> Option<&'a mut Table> {
    path.iter().try_fold(root, |table, name| {
        let made = table
            .entry(name.as_ref())
            .or_insert_with(|| Table::new().into());
        made.as_table_mut()
    })
}

/// Tables by name become a list in the order of the file, with the name where it isn't the address.
fn backends(mut named: Value, backends: &[Backend]) -> Value {
    let list = backends.iter().filter_map(|backend| {
        let mut table = named.as_table_mut()?.remove(&*backend.name)?;
        let keys = table.as_table_mut()?;
        if *backend.name != *backend.address.to_string() {
            keys.insert("name".to_owned(), (*backend.name).into());
        }
        let host = backend.host.as_deref();
        keys.extend(host.map(|host| ("host".to_owned(), host.into())));
        Some(table)
    });
    Value::Array(list.collect())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;
    use crate::config::diff::{self, tests::made::Made};
    use crate::config::parse;

    /// Read as it stands, and as it is in effect.
    fn both(text: &str) -> (Config, Config) {
        let config = parse(text, "/a.toml", &mut Made(0)).unwrap_or_else(|it| panic!("{it}"));
        let written = table(&config).to_string();
        let again = parse(&written, "/a.toml", &mut Made(0));
        (config, again.unwrap_or_else(|it| panic!("{it}")))
    }

    #[test]
    fn what_is_in_effect_can_be_read_and_means_the_same() {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("conf");
        let files = fs::read_dir(folder).unwrap().map(|it| it.unwrap().path());
        let files = files.filter(|it| it.extension().is_some_and(|it| it == "toml"));
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            // Host names stand beside their addresses.
            let text = text.replace("localhost:", "127.0.0.9:");
            let (config, again) = both(&text);
            let changes = diff::between(&config, &again);
            let shown: Vec<_> = changes.iter().map(ToString::to_string).collect();
            let secret = |it: &&String| it.starts_with("admin.token: ");
            assert!(shown.iter().all(|it| secret(&it)), "{file:?}: {shown:?}");
        }
    }

    #[test]
    fn the_access_log_is_shown_with_its_whole_path() {
        let rest = "listeners.web = { bind = '127.0.0.1:80', upstream = 'app' }
            upstreams.app.backends = ['127.0.0.1:81']";
        for (written, shown) in [("stdout", "stdout"), ("a.log", "/a.log")] {
            let (config, again) = both(&format!("log.access_log = '{written}'\n{rest}"));
            let log = &table(&config)["log"];
            assert_eq!(log["access_log"].as_str(), Some(shown));
            assert_eq!(config.access_log, again.access_log);
        }
    }
}
