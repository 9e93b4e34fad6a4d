//! What a reload may change. Everything that can't be applied while running is named: a reload never
//! ignores a part of the file.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use super::{Config, ControlSocket, Listener, Log, LogFormat, Runtime};
use crate::address::Address;

/// Whether a running process can go from `old` to `new`; if not, one sentence per key that needs a
/// restart.
///
/// Reloaded are upstreams with all they hold, new and removed ones included, and of listeners
/// `upstream`, `timeouts`, `max_connections`, `allow`, `deny` and `rate_limit`, and `log.level`; they hold
/// for the sessions that begin afterwards. Listeners are the same if they have the same name; their order,
/// and that of upstreams, may change.
pub fn reload(old: &Config, new: &Config) -> Result<(), Vec<String>> {
    // Named one by one, here and below, so that a new field does not compile until it has its rule.
    let Config {
        runtime,
        log,
        listeners,
        upstreams: _,
    } = old;
    let mut refused = Refused::default();
    refused.runtime(runtime, &new.runtime);
    refused.log(log, &new.log);
    for listener in listeners {
        match named(&new.listeners, &listener.name) {
            Some(same) => refused.listener(listener, same),
            None => refused.push(format!("listeners.{}: removed", listener.name)),
        }
    }
    for listener in &new.listeners {
        if named(listeners, &listener.name).is_none() {
            refused.push(format!("listeners.{}: added", listener.name));
        }
    }
    match refused.list {
        list if list.is_empty() => Ok(()),
        list => Err(list),
    }
}

fn named<'a>(listeners: &'a [Listener], name: &str) -> Option<&'a Listener> {
    listeners.iter().find(|listener| *listener.name == *name)
}

#[derive(Default)]
struct Refused {
    list: Vec<String>,
}

impl Refused {
    fn runtime(&mut self, old: &Runtime, new: &Runtime) {
        let Runtime {
            workers,
            pin_workers,
            max_connections,
            drain_timeout,
            drain_delay,
            buffer_memory,
            user,
            group,
            control_socket,
        } = old;
        self.compare("runtime.workers", workers, &new.workers, auto);
        self.compare("runtime.pin_workers", pin_workers, &new.pin_workers, plain);
        self.compare(
            "runtime.max_connections",
            max_connections,
            &new.max_connections,
            auto,
        );
        self.compare(
            "runtime.drain_timeout",
            drain_timeout,
            &new.drain_timeout,
            duration,
        );
        self.compare(
            "runtime.buffer_memory",
            buffer_memory,
            &new.buffer_memory,
            auto,
        );
        self.compare(
            "runtime.drain_delay",
            drain_delay,
            &new.drain_delay,
            duration,
        );
        let name = |name: &Option<Arc<str>>| name.as_deref().unwrap_or("none").to_owned();
        self.compare("runtime.user", user, &new.user, name);
        self.compare("runtime.group", group, &new.group, name);
        self.compare(
            "runtime.control_socket",
            control_socket,
            &new.control_socket,
            |socket| match socket {
                ControlSocket::Auto => "auto".to_owned(),
                ControlSocket::Off => "off".to_owned(),
                ControlSocket::Path(path) => path.display().to_string(),
            },
        );
    }

    fn log(&mut self, old: &Log, new: &Log) {
        let Log { level: _, format } = old;
        self.compare("log.format", format, &new.format, |format| match format {
            LogFormat::Text => "text".to_owned(),
            LogFormat::Json => "json".to_owned(),
        });
    }

    fn listener(&mut self, old: &Listener, new: &Listener) {
        let Listener {
            name,
            bind,
            upstream: _,
            backlog,
            max_connections: _,
            tcp_keepalive,
            congestion,
            ipv6_only,
            unix_mode,
            timeouts: _,
            allow: _,
            deny: _,
            rate_limit: _,
        } = old;
        let key = |key: &str| format!("listeners.{name}.{key}");
        self.compare(&key("bind"), bind, &new.bind, |binds| addresses(binds));
        self.compare(&key("backlog"), backlog, &new.backlog, plain);
        self.compare(
            &key("tcp_keepalive"),
            tcp_keepalive,
            &new.tcp_keepalive,
            |keepalive| {
                keepalive
                    .as_ref()
                    .map_or_else(|| "off".to_owned(), duration)
            },
        );
        self.compare(
            &key("congestion"),
            congestion,
            &new.congestion,
            |congestion| congestion.as_deref().unwrap_or("system").to_owned(),
        );
        self.compare(&key("ipv6_only"), ipv6_only, &new.ipv6_only, plain);
        self.compare(&key("unix_mode"), unix_mode, &new.unix_mode, |mode| {
            format!("{mode:04o}")
        });
    }

    fn compare<T: PartialEq>(&mut self, key: &str, old: &T, new: &T, show: impl Fn(&T) -> String) {
        if old != new {
            self.push(format!(
                "{key}: changed from {} to {}",
                show(old),
                show(new)
            ));
        }
    }

    fn push(&mut self, what: String) {
        self.list.push(format!("{what}; this needs a restart"));
    }
}

fn plain(value: &impl Display) -> String {
    value.to_string()
}

fn auto<T: Display>(value: &Option<T>) -> String {
    value
        .as_ref()
        .map_or_else(|| "auto".to_owned(), T::to_string)
}

fn duration(value: &Duration) -> String {
    humantime::format_duration(*value).to_string()
}

fn addresses(binds: &[Address]) -> String {
    let binds: Vec<_> = binds.iter().map(Address::to_string).collect();
    binds.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{SystemResolver, parse};

    const OLD: &str = "
[runtime]
workers = 2
[log]
level = 'info'
[listeners.web]
bind = '127.0.0.1:80'
upstream = 'app'
timeouts.idle = '1m'
[upstreams.app]
backends = ['10.0.0.1:80']
[upstreams.other]
backends = ['10.0.0.2:80']
";

    /// The difference that a change of text makes.
    fn change(from: &str, to: &str) -> Result<(), Vec<String>> {
        assert!(OLD.contains(from), "{from}");
        let read = |text: &str| match parse(text, "diff.toml", &mut SystemResolver) {
            Ok(config) => config,
            Err(errors) => panic!("{errors}"),
        };
        reload(&read(OLD), &read(&OLD.replacen(from, to, 1)))
    }

    #[test]
    fn what_new_sessions_go_by_is_reloaded() {
        for (from, to) in [
            ("'info'", "'debug'"),
            ("upstream = 'app'", "upstream = 'other'"),
            ("upstream = 'app'", "upstream = 'app'\nmax_connections = 5"),
            ("'1m'", "'2m'"),
            (
                "['10.0.0.1:80']",
                "[{ address = '10.0.0.3:80', weight = 2 }]",
            ),
            ("[upstreams.other]", "[upstreams.another]"),
        ] {
            assert_eq!(change(from, to), Ok(()), "{to}");
        }
    }

    #[test]
    fn every_key_of_whom_a_listener_takes_and_of_an_upstream_is_reloaded() {
        for line in [
            "allow = '::/0'",
            "deny = ['10.0.0.0/8']",
            "rate_limit.connections.rate = 1",
            "rate_limit.connections_per_ip.rate = 1",
            "rate_limit.bandwidth.rate = '1MiB'",
            "rate_limit.ipv6_prefix = 56",
            "rate_limit.max_clients = 1",
            "rate_limit.dry_run = true",
        ] {
            let to = format!("upstream = 'app'\n{line}");
            assert_eq!(change("upstream = 'app'", &to), Ok(()), "{line}");
        }
        for line in [
            "connect_timeout = '1s'",
            "slow_start = '1s'",
            "fail_open_below = 0.5",
            "health_check = {}",
            "outlier = {}",
            "circuit_breaker = {}",
            "retry.budget = 0.5",
            "queue.max = 0",
            "pool.preconnect = 1",
        ] {
            let to = format!("{line}\n[upstreams.other]");
            assert_eq!(change("[upstreams.other]", &to), Ok(()), "{line}");
        }
    }

    #[test]
    fn everything_else_names_its_key() {
        for (from, to, said) in [
            (
                "workers = 2",
                "workers = 'auto'",
                "runtime.workers: changed from 2 to auto",
            ),
            (
                "workers = 2",
                "workers = 2\npin_workers = false",
                "runtime.pin_workers: changed from true to false",
            ),
            (
                "workers = 2",
                "workers = 2\nmax_connections = 9",
                "runtime.max_connections: changed from auto to 9",
            ),
            (
                "workers = 2",
                "workers = 2\ndrain_timeout = '90s'",
                "runtime.drain_timeout: changed from 1m to 1m 30s",
            ),
            (
                "workers = 2",
                "workers = 2\nbuffer_memory = '64KiB'",
                "runtime.buffer_memory: changed from auto to 65536",
            ),
            (
                "'info'",
                "'info'\nformat = 'json'",
                "log.format: changed from text to json",
            ),
            (
                "'127.0.0.1:80'",
                "['[::]:80', '[::]:81']",
                "listeners.web.bind: changed from 127.0.0.1:80 to [::]:80, [::]:81",
            ),
            (
                "'127.0.0.1:80'",
                "'127.0.0.1:80'\nbacklog = 1",
                "listeners.web.backlog: changed from 4096 to 1",
            ),
            (
                "'127.0.0.1:80'",
                "'127.0.0.1:80'\ntcp_keepalive = 'off'",
                "listeners.web.tcp_keepalive: changed from 1m to off",
            ),
            (
                "'127.0.0.1:80'",
                "'127.0.0.1:80'\ncongestion = 'bbr'",
                "listeners.web.congestion: changed from system to bbr",
            ),
            (
                "'127.0.0.1:80'",
                "'127.0.0.1:80'\nipv6_only = false",
                "listeners.web.ipv6_only: changed from true to false",
            ),
            (
                "'127.0.0.1:80'",
                "'127.0.0.1:80'\nunix_mode = '0600'",
                "listeners.web.unix_mode: changed from 0660 to 0600",
            ),
        ] {
            assert_eq!(
                change(from, to),
                Err(vec![format!("{said}; this needs a restart")])
            );
        }
    }

    #[test]
    fn another_name_is_another_listener() {
        let expected = ["listeners.web: removed", "listeners.api: added"];
        let expected = expected.map(|what| format!("{what}; this needs a restart"));
        assert_eq!(
            change("[listeners.web]", "[listeners.api]"),
            Err(expected.to_vec())
        );
    }

    #[test]
    fn the_order_of_upstreams_is_no_change() {
        let swapped = "[upstreams.other]\nbackends = ['10.0.0.2:80']\n[upstreams.app]";
        let text = OLD.replace("[upstreams.other]\nbackends = ['10.0.0.2:80']\n", "");
        let read = |text: &str| parse(text, "diff.toml", &mut SystemResolver).unwrap();
        assert_eq!(
            reload(&read(OLD), &read(&text.replace("[upstreams.app]", swapped))),
            Ok(())
        );
    }
}
