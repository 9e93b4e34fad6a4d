//! A configuration as a list of keys with values, and with the rule for each. Structs are taken apart
//! field by field, so that a new field does not compile until it has its rule here.

use std::collections::BTreeMap;

use super::How;
use super::How::{Live, NeedsUpgrade, NewConnections, Rebind};
use super::tls;
use super::written::{self, duration, list, or, text};
use crate::config::{
    Admin, Announce, Backend, Config, HealthCheck, Listener, Log, Pool, Protocol, Queue, RateLimit,
    Runtime, SessionKey, Timeouts, Udp, Upstream,
};
use crate::policy::{breaker, health, outlier, retry};

/// The parts of a key. Parts, since names may have dots in them.
pub(super) type Path = Vec<String>;

/// Sorted: a table is followed by what is in it.
pub(super) type Entries = BTreeMap<Path, Entry>;

/// A key, or a table that may be there or not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub(super) value: Value,
    pub(super) how: How,
}

/// Two are equal if they mean the same.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Of a key. Different values have different texts.
    Text(String),
    /// Of a key whose value is a list; sorted, as its order means nothing.
    List(Vec<String>),
    /// Of a key whose value is a list in an order that means something.
    Sequence(Vec<String>),
    /// Of a table: what it is about. What is in it has entries of its own.
    Table(String),
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::List(a), Self::List(b)) | (Self::Sequence(a), Self::Sequence(b)) => a == b,
            (Self::Table(_), Self::Table(_)) => true,
            _ => false,
        }
    }
}

impl Eq for Value {}

impl Value {
    /// As it is told to somebody who is told `other` beside it.
    pub(super) fn shown(&self, other: Option<&Self>) -> String {
        match (self, other) {
            (Self::List(items), Some(Self::List(others))) => written::items(items, others),
            (Self::List(items), _) => written::items(items, &[]),
            (Self::Sequence(items), Some(Self::Sequence(others))) => {
                written::sequence(items, others)
            }
            (Self::Sequence(items), _) => written::sequence(items, &[]),
            (Self::Text(text) | Self::Table(text), _) => text.clone(),
        }
    }
}

pub(super) fn flatten(config: &Config) -> Entries {
    let Config {
        runtime,
        log,
        access_log,
        admin,
        listeners,
        upstreams,
    } = config;
    let mut entries = Entries::new();
    let mut root = Section {
        entries: &mut entries,
        path: Path::new(),
    };
    runtime_keys(&mut root.within("runtime"), runtime);
    let mut section = root.within("log");
    log_keys(&mut section, log);
    section.key("access_log", written::access_log(access_log), Live);
    admin_keys(&mut root.within("admin"), admin);
    // An upstream is the same if it has the same name, whatever its index.
    let name = |upstream: usize| upstreams.get(upstream).map_or("", |it| &it.name);
    for listener in listeners {
        listener_keys(&mut root.within("listeners"), listener, &name);
    }
    for upstream in upstreams {
        upstream_keys(&mut root.within("upstreams"), upstream);
    }
    entries
}

/// Where entries are put.
pub(super) struct Section<'a> {
    entries: &'a mut Entries,
    path: Path,
}

impl Section<'_> {
    /// The table `name` of this one.
    fn within(&mut self, name: &str) -> Section<'_> {
        let mut path = self.path.clone();
        path.push(name.to_owned());
        Section {
            entries: self.entries,
            path,
        }
    }

    /// The table `name` of this one, which may be there or not.
    pub(super) fn table(&mut self, name: &str, about: String, how: How) -> Section<'_> {
        let section = self.within(name);
        let value = Value::Table(about);
        let entry = Entry { value, how };
        section.entries.insert(section.path.clone(), entry);
        section
    }

    pub(super) fn key(&mut self, key: &str, value: impl ToString, how: How) {
        self.put(key, Value::Text(value.to_string()), how);
    }

    fn list(&mut self, key: &str, items: Vec<String>, how: How) {
        self.put(key, Value::List(items), how);
    }

    pub(super) fn sequence(&mut self, key: &str, items: Vec<String>, how: How) {
        self.put(key, Value::Sequence(items), how);
    }

    fn put(&mut self, key: &str, value: Value, how: How) {
        let Section { entries, path } = self.within(key);
        entries.insert(path, Entry { value, how });
    }
}

fn runtime_keys(section: &mut Section<'_>, runtime: &Runtime) {
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
    section.key("workers", or("auto", workers), NeedsUpgrade);
    section.key("pin_workers", pin_workers, NeedsUpgrade);
    section.key(
        "max_connections",
        or("auto", max_connections),
        NewConnections,
    );
    section.key("drain_timeout", duration(*drain_timeout), Live);
    section.key("drain_delay", duration(*drain_delay), Live);
    let memory = buffer_memory.map(written::size);
    section.key("buffer_memory", or("auto", &memory), NeedsUpgrade);
    let name = |name: &Option<_>| or("none", &name.as_deref().map(text));
    section.key("user", name(user), NeedsUpgrade);
    section.key("group", name(group), NeedsUpgrade);
    let socket = written::control_socket(control_socket);
    section.key("control_socket", socket, NeedsUpgrade);
}

fn log_keys(section: &mut Section<'_>, log: &Log) {
    let Log { level, format } = log;
    section.key("level", level.as_str(), Live);
    section.key("format", written::format(*format), Live);
}

fn admin_keys(section: &mut Section<'_>, admin: &Admin) {
    let Admin {
        listen,
        token,
        max_series,
    } = admin;
    let listen = listen.as_ref().map(|it| text(it.to_string()));
    section.key("listen", or("none", &listen), Rebind);
    // Whoever reads it is to learn no more than that it is another one.
    let token = token.as_ref().map(|it| format!("secret {}", it.mark()));
    section.key("token", or("none", &token), Live);
    section.key("max_series", max_series, Live);
}

fn listener_keys<'a>(
    listeners: &mut Section<'_>,
    listener: &Listener,
    name_of: &dyn Fn(usize) -> &'a str,
) {
    let Listener {
        name,
        bind,
        protocol,
        upstream,
        trusted_proxies,
        tls,
        routes,
        backlog,
        max_connections,
        tcp_keepalive,
        congestion,
        ipv6_only,
        unix_mode,
        timeouts:
            Timeouts {
                idle,
                half_close,
                handshake,
            },
        allow,
        deny,
        rate_limit,
    } = listener;
    let bind = list(bind);
    let about = written::items(&bind, &[]);
    let mut section = listeners.table(name, about, Rebind);
    section.list("bind", bind, Rebind);
    section.key("protocol", protocol_word(protocol), Rebind);
    section.key("upstream", text(name_of(*upstream)), NewConnections);
    section.sequence("routes", written::routes(routes, name_of), NewConnections);
    let accepted = match trusted_proxies {
        Some(_) => "require",
        None => "off",
    };
    section.key("accept_proxy_protocol", accepted, NewConnections);
    let trusted = written::set(trusted_proxies.as_deref().unwrap_or_default());
    section.list("trusted_proxies", trusted, NewConnections);
    section.key("backlog", backlog, Live);
    section.key("max_connections", or("0", max_connections), NewConnections);
    let keepalive = tcp_keepalive.map(duration);
    section.key("tcp_keepalive", or("off", &keepalive), NewConnections);
    section.key("congestion", or("system", congestion), NewConnections);
    section.key("ipv6_only", ipv6_only, Rebind);
    section.key("unix_mode", format!("{unix_mode:04o}"), Live);
    section.list("allow", written::set(allow), NewConnections);
    section.list("deny", written::set(deny), NewConnections);
    let mut timeouts = section.within("timeouts");
    timeouts.key("idle", duration(*idle), NewConnections);
    timeouts.key("half_close", duration(*half_close), NewConnections);
    timeouts.key("handshake", duration(*handshake), NewConnections);
    rate_limit_keys(&mut section.within("rate_limit"), rate_limit);
    if let Some(settings) = tls {
        tls::server_keys(&mut section, settings);
    }
    if let Protocol::Udp(udp) = protocol {
        udp_keys(&mut section.within("udp"), udp);
    }
}

fn protocol_word(protocol: &Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp(_) => "udp",
    }
}

fn udp_keys(section: &mut Section<'_>, udp: &Udp) {
    let Udp {
        session_timeout,
        session_key,
        per_packet,
        max_sessions,
        responses,
        reject_privileged_sources,
    } = udp;
    let how = NewConnections;
    section.key("session_timeout", duration(*session_timeout), how);
    let key = match session_key {
        SessionKey::SourceIpPort => "source-ip-port",
        SessionKey::SourceIp => "source-ip",
    };
    section.key("session_key", key, how);
    let mode = match per_packet {
        true => "per-packet",
        false => "session",
    };
    section.key("mode", mode, how);
    section.key("max_sessions", or("auto", max_sessions), how);
    section.key("responses", or("0", responses), how);
    let rejects = reject_privileged_sources;
    section.key("reject_privileged_sources", rejects, how);
}

fn rate_limit_keys(section: &mut Section<'_>, limits: &RateLimit) {
    let RateLimit {
        connections,
        connections_per_ip,
        datagrams_per_ip,
        bandwidth,
        ipv6_prefix,
        max_clients,
        dry_run,
    } = limits;
    for (key, rate) in [
        ("connections", connections),
        ("connections_per_ip", connections_per_ip),
        ("datagrams_per_ip", datagrams_per_ip),
    ] {
        let rate = rate.map(|rate| written::rate(rate, |tokens| tokens.to_string()));
        section.key(key, or("none", &rate), NewConnections);
    }
    let bandwidth = bandwidth.map(|rate| written::rate(rate, written::size));
    section.key("bandwidth", or("none", &bandwidth), NewConnections);
    section.key("ipv6_prefix", ipv6_prefix, NewConnections);
    section.key("max_clients", max_clients, NewConnections);
    section.key("dry_run", dry_run, NewConnections);
}

fn upstream_keys(upstreams: &mut Section<'_>, upstream: &Upstream) {
    let Upstream {
        name,
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
        health_check,
        outlier,
        circuit_breaker,
        retry,
        queue,
        pool,
    } = upstream;
    let how = NewConnections;
    let mut section = upstreams.table(name, WHOLE.to_owned(), how);
    for backend in backends {
        backend_keys(&mut section.within("backends"), backend);
    }
    section.key("balance", balance.name, how);
    section.key("connect_timeout", duration(*connect_timeout), how);
    section.list("source", list(source), how);
    let keepalive = tcp_keepalive.map(duration);
    section.key("tcp_keepalive", or("off", &keepalive), how);
    section.key("tcp_user_timeout", duration(*tcp_user_timeout), how);
    let (version, which) = match announce {
        Announce::Never => ("off", "every"),
        Announce::V1 => ("v1", "every"),
        Announce::V2First => ("v2", "first"),
        Announce::V2Every => ("v2", "every"),
    };
    section.key("send_proxy_protocol", version, how);
    section.key("proxy_protocol_datagrams", which, how);
    section.key("slow_start", duration(*slow_start), how);
    section.key("fail_open_below", written::share(*fail_open_below), how);
    if let Some(check) = health_check {
        health_check_keys(&mut section, check);
    }
    if let Some(settings) = outlier {
        outlier_keys(&mut section, settings);
    }
    if let Some(settings) = circuit_breaker {
        circuit_breaker_keys(&mut section, settings);
    }
    retry_keys(&mut section.within("retry"), retry);
    let Queue { max, timeout } = queue;
    let mut queue = section.within("queue");
    queue.key("max", max, how);
    queue.key("timeout", duration(*timeout), how);
    pool_keys(&mut section.within("pool"), pool);
    if let Some(settings) = tls {
        tls::client_keys(&mut section, settings);
    }
}

/// What there is to say of a table that is not about addresses.
pub(super) const WHOLE: &str = "{ ... }";

fn backend_keys(backends: &mut Section<'_>, backend: &Backend) {
    let Backend {
        name,
        address,
        host,
        weight,
        max_connections,
        backup,
    } = backend;
    let address = text(address.to_string());
    let mut section = backends.table(name, address.clone(), NewConnections);
    // Its certificate may have to be for that.
    let written = match host {
        Some(host) => format!("{address} of {}", text(host)),
        None => address,
    };
    section.key("address", written, NewConnections);
    section.key("weight", weight, NewConnections);
    section.key("max_connections", or("0", max_connections), NewConnections);
    section.key("backup", backup, NewConnections);
}

fn health_check_keys(upstream: &mut Section<'_>, check: &HealthCheck) {
    let HealthCheck {
        probe,
        interval,
        jitter,
        timeout,
        settings: health::Settings { rise, fall, start },
    } = check;
    let mut section = upstream.table("health_check", WHOLE.to_owned(), Live);
    let probe = written::probe(probe);
    section.key("type", probe.kind, Live);
    section.key("path", or("none", &probe.path), Live);
    section.key("host", or("none", &probe.host), Live);
    section.list("expect_status", probe.expect_status, Live);
    section.key("send", or("none", &probe.send), Live);
    section.key("expect", or("none", &probe.expect), Live);
    section.key("interval", duration(*interval), Live);
    section.key("jitter", written::share(*jitter), Live);
    section.key("timeout", duration(*timeout), Live);
    section.key("rise", rise, Live);
    section.key("fall", fall, Live);
    section.key("start", written::start(*start), Live);
}

fn outlier_keys(upstream: &mut Section<'_>, settings: &outlier::Settings) {
    let outlier::Settings {
        consecutive_failures,
        eject_for,
        max_eject_for,
        max_ejected,
    } = settings;
    let how = NewConnections;
    let mut section = upstream.table("outlier", WHOLE.to_owned(), how);
    section.key("consecutive_failures", consecutive_failures, how);
    section.key("eject_for", duration(*eject_for), how);
    section.key("max_eject_for", duration(*max_eject_for), how);
    section.key("max_ejected", written::share(*max_ejected), how);
}

fn circuit_breaker_keys(upstream: &mut Section<'_>, settings: &breaker::Settings) {
    let breaker::Settings {
        failure_ratio,
        min_requests,
        window,
        open_for,
        half_open_requests,
    } = settings;
    let how = NewConnections;
    let mut section = upstream.table("circuit_breaker", WHOLE.to_owned(), how);
    section.key("failure_ratio", written::share(*failure_ratio), how);
    section.key("min_requests", min_requests, how);
    section.key("window", duration(*window), how);
    section.key("open_for", duration(*open_for), how);
    section.key("half_open_requests", half_open_requests, how);
}

fn retry_keys(section: &mut Section<'_>, settings: &retry::Settings) {
    let retry::Settings {
        attempts,
        backoff,
        max_backoff,
        budget,
    } = settings;
    section.key("attempts", attempts, NewConnections);
    section.key("backoff", duration(*backoff), NewConnections);
    section.key("max_backoff", duration(*max_backoff), NewConnections);
    section.key("budget", written::share(*budget), NewConnections);
}

fn pool_keys(section: &mut Section<'_>, pool: &Pool) {
    let Pool {
        preconnect,
        idle_timeout,
        max_lifetime,
    } = pool;
    section.key("preconnect", preconnect, Live);
    section.key("idle_timeout", duration(*idle_timeout), Live);
    section.key("max_lifetime", duration(*max_lifetime), Live);
}
