//! The configuration in effect as a file would have it, with every default filled in and without secrets:
//! the token is left out, and of keys only where they are. Structs are taken apart field by field, so that a
//! new field does not compile until it has its place here.
//!
//! What comes out can be read again and means the same, but for a token, and for host names: they stand
//! beside the addresses that they had.

mod tls;

use std::fmt::Display;
use std::path::Path;
use std::time::Duration;

use toml::{Table, Value};

use super::diff::written;
use super::{
    AccessLog, Admin, Announce, Backend, Config, ControlSocket, Exchange, HealthCheck, Listener,
    Log, Pool, Probe, Protocol, Queue, RateLimit, Route, Runtime, SessionKey, Timeouts, Udp,
    Upstream, value,
};
use crate::policy::bucket::Rate;
use crate::policy::share::Share;
use crate::policy::{breaker, health, outlier, retry};

/// Every table and key.
pub fn table(config: &Config) -> Table {
    let Config {
        runtime: process,
        log: lines,
        access_log,
        admin: endpoint,
        listeners,
        upstreams,
    } = config;
    let name = |index: usize| upstreams.get(index).map_or("", |it| &it.name);
    let mut table = Table::new();
    put(&mut table, "runtime", runtime(process));
    put(&mut table, "log", log(lines, access_log));
    put(&mut table, "admin", admin(endpoint));
    let own = listeners.iter();
    let own = own.map(|it| (it.name.to_string(), Value::Table(listener(it, &name))));
    put(&mut table, "listeners", own.collect::<Table>());
    let own = upstreams.iter();
    let own = own.map(|it| (it.name.to_string(), Value::Table(upstream(it))));
    put(&mut table, "upstreams", own.collect::<Table>());
    table
}

fn put(table: &mut Table, key: &str, value: impl Into<Value>) {
    table.insert(key.to_owned(), value.into());
}

/// What is there.
fn put_some(table: &mut Table, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        put(table, key, value);
    }
}

fn number(number: impl TryInto<i64>) -> Value {
    // Counts of the model are far below.
    Value::Integer(number.try_into().unwrap_or(i64::MAX))
}

/// A number, or the word that stands for none.
fn number_or(word: &str, value: Option<impl TryInto<i64>>) -> Value {
    value.map_or_else(|| word.into(), number)
}

/// A number, or 0 for none.
fn cap(value: Option<impl TryInto<i64>>) -> Value {
    value.map_or(Value::Integer(0), number)
}

fn time(time: Duration) -> Value {
    written::duration(time).into()
}

fn time_or_off(value: Option<Duration>) -> Value {
    value.map_or_else(|| "off".into(), time)
}

fn share(share: Share) -> Value {
    Value::Float(f64::from(share.ppm()) / 1e6)
}

fn list(items: impl IntoIterator<Item = impl Display>) -> Value {
    let items = items.into_iter();
    Value::Array(items.map(|it| it.to_string().into()).collect())
}

fn file(path: &Path) -> Value {
    path.to_string_lossy().into_owned().into()
}

fn runtime(runtime: &Runtime) -> Table {
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
    } = runtime;
    let mut table = Table::new();
    put(
        &mut table,
        "workers",
        number_or("auto", workers.map(usize::from)),
    );
    put(&mut table, "pin_workers", *pin_workers);
    let most = max_connections.map(usize::from);
    put(&mut table, "max_connections", number_or("auto", most));
    put(&mut table, "drain_timeout", time(*drain_timeout));
    put(&mut table, "drain_delay", time(*drain_delay));
    let memory = buffer_memory.map(value::shown_size);
    put(
        &mut table,
        "buffer_memory",
        memory.unwrap_or_else(|| "auto".to_owned()),
    );
    put_some(&mut table, "user", user.as_deref());
    put_some(&mut table, "group", group.as_deref());
    let socket = match control_socket {
        ControlSocket::Auto => "auto".into(),
        ControlSocket::Off => "off".into(),
        ControlSocket::Path(path) => file(path),
    };
    put(&mut table, "control_socket", socket);
    table
}

fn log(log: &Log, access_log: &AccessLog) -> Table {
    let Log { level, format } = log;
    let mut table = Table::new();
    put(&mut table, "level", level.as_str());
    put(&mut table, "format", written::format(*format));
    let access_log = match access_log {
        AccessLog::Off => "off".into(),
        AccessLog::Stdout => "stdout".into(),
        AccessLog::File(path) => file(path),
    };
    put(&mut table, "access_log", access_log);
    table
}

fn admin(admin: &Admin) -> Table {
    let Admin {
        listen,
        token: _,
        max_series,
    } = admin;
    let mut table = Table::new();
    put_some(
        &mut table,
        "listen",
        listen.as_ref().map(ToString::to_string),
    );
    put(&mut table, "max_series", number(max_series.get()));
    table
}

fn listener<'a>(listener: &Listener, name_of: &dyn Fn(usize) -> &'a str) -> Table {
    let Listener {
        name: _,
        bind,
        protocol,
        upstream,
        trusted_proxies,
        tls,
        routes: routed,
        backlog,
        max_connections,
        tcp_keepalive,
        congestion,
        ipv6_only,
        unix_mode,
        timeouts: of_sessions,
        allow,
        deny,
        rate_limit: limits,
    } = listener;
    let mut table = Table::new();
    put(&mut table, "bind", list(bind));
    put(&mut table, "upstream", name_of(*upstream));
    put(
        &mut table,
        "max_connections",
        cap(max_connections.map(usize::from)),
    );
    put(&mut table, "ipv6_only", *ipv6_only);
    put(&mut table, "allow", list(allow));
    put(&mut table, "deny", list(deny));
    put(&mut table, "rate_limit", rate_limit(limits));
    if let Protocol::Udp(settings) = protocol {
        put(&mut table, "protocol", "udp");
        put(&mut table, "udp", udp(settings));
        // What follows is about connections.
        return table;
    }
    put(&mut table, "protocol", "tcp");
    put(&mut table, "backlog", number(backlog.get()));
    put(&mut table, "tcp_keepalive", time_or_off(*tcp_keepalive));
    put(
        &mut table,
        "congestion",
        congestion.as_deref().unwrap_or("system"),
    );
    put(&mut table, "unix_mode", format!("{unix_mode:04o}"));
    put(&mut table, "timeouts", timeouts(of_sessions));
    let accepts = match trusted_proxies {
        Some(_) => "require",
        None => "off",
    };
    put(&mut table, "accept_proxy_protocol", accepts);
    put_some(
        &mut table,
        "trusted_proxies",
        trusted_proxies.as_ref().map(list),
    );
    put_some(&mut table, "tls", tls.as_ref().map(tls::server_tls));
    if !routed.is_empty() {
        put(&mut table, "routes", routes(routed, name_of));
    }
    table
}

fn timeouts(timeouts: &Timeouts) -> Table {
    let Timeouts {
        idle,
        half_close,
        handshake,
    } = timeouts;
    let mut table = Table::new();
    put(&mut table, "idle", time(*idle));
    put(&mut table, "half_close", time(*half_close));
    put(&mut table, "handshake", time(*handshake));
    table
}

fn routes<'a>(routes: &[Route], name_of: &dyn Fn(usize) -> &'a str) -> Value {
    let tables = routes.iter().map(|route| {
        let Route { sni, upstream } = route;
        let mut table = Table::new();
        put(&mut table, "sni", list(sni));
        put(&mut table, "upstream", name_of(*upstream));
        Value::Table(table)
    });
    Value::Array(tables.collect())
}

fn udp(udp: &Udp) -> Table {
    let Udp {
        session_timeout,
        session_key,
        per_packet,
        max_sessions,
        responses,
        reject_privileged_sources,
    } = udp;
    let mut table = Table::new();
    put(&mut table, "session_timeout", time(*session_timeout));
    let key = match session_key {
        SessionKey::SourceIpPort => "source-ip-port",
        SessionKey::SourceIp => "source-ip",
    };
    put(&mut table, "session_key", key);
    let mode = match per_packet {
        true => "per-packet",
        false => "session",
    };
    put(&mut table, "mode", mode);
    put(
        &mut table,
        "max_sessions",
        number_or("auto", max_sessions.map(usize::from)),
    );
    put(&mut table, "responses", cap(responses.map(u32::from)));
    put(
        &mut table,
        "reject_privileged_sources",
        *reject_privileged_sources,
    );
    table
}

fn rate_limit(limits: &RateLimit) -> Table {
    let RateLimit {
        connections,
        connections_per_ip,
        datagrams_per_ip,
        bandwidth,
        ipv6_prefix,
        max_clients,
        dry_run,
    } = limits;
    let mut table = Table::new();
    put_some(&mut table, "connections", connections.map(rate));
    put_some(
        &mut table,
        "connections_per_ip",
        connections_per_ip.map(rate),
    );
    put_some(&mut table, "datagrams_per_ip", datagrams_per_ip.map(rate));
    put_some(&mut table, "bandwidth", bandwidth.map(rate));
    put(&mut table, "ipv6_prefix", number(*ipv6_prefix));
    put(&mut table, "max_clients", number(max_clients.get()));
    put(&mut table, "dry_run", *dry_run);
    table
}

fn rate(rate: Rate) -> Table {
    let Rate { per_second, burst } = rate;
    let mut table = Table::new();
    put(&mut table, "rate", number(per_second.get()));
    put(&mut table, "burst", number(burst.get()));
    table
}

fn upstream(upstream: &Upstream) -> Table {
    let Upstream {
        name: _,
        backends,
        balance,
        connect_timeout,
        source,
        tcp_keepalive,
        tcp_user_timeout,
        announce,
        tls,
        slow_start,
        fail_open_below,
        health_check: check,
        outlier,
        circuit_breaker,
        retry: retries,
        queue,
        pool,
    } = upstream;
    let mut table = Table::new();
    let own = backends.iter().map(|it| Value::Table(backend(it)));
    put(&mut table, "backends", Value::Array(own.collect()));
    put(&mut table, "balance", balance.name);
    put(&mut table, "connect_timeout", time(*connect_timeout));
    if !source.is_empty() {
        put(&mut table, "source", list(source));
    }
    put(&mut table, "tcp_keepalive", time_or_off(*tcp_keepalive));
    put(&mut table, "tcp_user_timeout", time(*tcp_user_timeout));
    let (version, which) = match announce {
        Announce::Never => ("off", None),
        Announce::V1 => ("v1", None),
        Announce::V2First => ("v2", Some("first")),
        Announce::V2Every => ("v2", Some("every")),
    };
    put(&mut table, "send_proxy_protocol", version);
    put_some(&mut table, "proxy_protocol_datagrams", which);
    put(&mut table, "slow_start", time(*slow_start));
    put(&mut table, "fail_open_below", share(*fail_open_below));
    put_some(&mut table, "health_check", check.as_ref().map(health_check));
    put_some(&mut table, "outlier", outlier.as_ref().map(ejections));
    put_some(
        &mut table,
        "circuit_breaker",
        circuit_breaker.as_ref().map(breaks),
    );
    put(&mut table, "retry", retry(retries));
    let Queue { max, timeout } = queue;
    let mut waiting = Table::new();
    put(&mut waiting, "max", number(*max));
    put(&mut waiting, "timeout", time(*timeout));
    put(&mut table, "queue", waiting);
    let Pool {
        preconnect,
        idle_timeout,
        max_lifetime,
    } = pool;
    let mut ahead = Table::new();
    put(&mut ahead, "preconnect", number(*preconnect));
    put(&mut ahead, "idle_timeout", time(*idle_timeout));
    put(&mut ahead, "max_lifetime", time(*max_lifetime));
    put(&mut table, "pool", ahead);
    put_some(&mut table, "tls", tls.as_ref().map(tls::client_tls));
    table
}

fn backend(backend: &Backend) -> Table {
    let Backend {
        name,
        address,
        host,
        weight,
        max_connections,
        backup,
    } = backend;
    let address = address.to_string();
    let mut table = Table::new();
    if **name != *address {
        put(&mut table, "name", &**name);
    }
    put(&mut table, "address", address);
    put_some(&mut table, "host", host.as_deref());
    put(&mut table, "weight", number(*weight));
    put(
        &mut table,
        "max_connections",
        cap(max_connections.map(usize::from)),
    );
    put(&mut table, "backup", *backup);
    table
}

fn health_check(check: &HealthCheck) -> Table {
    let HealthCheck {
        probe,
        interval,
        jitter,
        timeout,
        settings: health::Settings { rise, fall, start },
    } = check;
    let mut table = Table::new();
    let mut exchange = |kind: &str, exchange: &Exchange| {
        let Exchange { send, expect } = exchange;
        put(&mut table, "type", kind);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        put_some(&mut table, "send", send.as_deref().map(text));
        put_some(&mut table, "expect", expect.as_deref().map(text));
    };
    match probe {
        Probe::Tcp(it) => exchange("tcp", it),
        Probe::Tls(it) => exchange("tls", it),
        Probe::Udp(it) => exchange("udp", it),
        Probe::Http {
            path,
            host,
            expect_status,
        } => {
            put(&mut table, "type", "http");
            put(&mut table, "path", &**path);
            put_some(&mut table, "host", host.as_deref());
            let ranges = expect_status.iter();
            let ranges = ranges.map(|it| format!("{}-{}", it.start(), it.end()));
            put(&mut table, "expect_status", list(ranges));
        }
    }
    put(&mut table, "interval", time(*interval));
    put(&mut table, "jitter", share(*jitter));
    put(&mut table, "timeout", time(*timeout));
    put(&mut table, "rise", number(rise.get()));
    put(&mut table, "fall", number(fall.get()));
    put(&mut table, "start", written::start(*start));
    table
}

fn ejections(settings: &outlier::Settings) -> Table {
    let outlier::Settings {
        consecutive_failures,
        eject_for,
        max_eject_for,
        max_ejected,
    } = settings;
    let mut table = Table::new();
    put(
        &mut table,
        "consecutive_failures",
        number(consecutive_failures.get()),
    );
    put(&mut table, "eject_for", time(*eject_for));
    put(&mut table, "max_eject_for", time(*max_eject_for));
    put(&mut table, "max_ejected", share(*max_ejected));
    table
}

fn breaks(settings: &breaker::Settings) -> Table {
    let breaker::Settings {
        failure_ratio,
        min_requests,
        window,
        open_for,
        half_open_requests,
    } = settings;
    let mut table = Table::new();
    put(&mut table, "failure_ratio", share(*failure_ratio));
    put(&mut table, "min_requests", number(min_requests.get()));
    put(&mut table, "window", time(*window));
    put(&mut table, "open_for", time(*open_for));
    put(
        &mut table,
        "half_open_requests",
        number(half_open_requests.get()),
    );
    table
}

fn retry(settings: &retry::Settings) -> Table {
    let retry::Settings {
        attempts,
        backoff,
        max_backoff,
        budget,
    } = settings;
    let mut table = Table::new();
    put(&mut table, "attempts", number(*attempts));
    put(&mut table, "backoff", time(*backoff));
    put(&mut table, "max_backoff", time(*max_backoff));
    put(&mut table, "budget", share(*budget));
    table
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
