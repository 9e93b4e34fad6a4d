//! A configuration as a list of keys with values, and with the rule for each. The difference is made of
//! it, and so is what is shown of the configuration in effect. Structs are taken apart field by field, so
//! that a new field does not compile until it has its rule here.

use std::collections::BTreeMap;

use super::How;
use super::How::{Live, NeedsUpgrade, NewConnections, Rebind};
use super::tls;
use super::value::{Value, table};
use super::written;
use crate::config::{
    AccessLog, Admin, Announce, Backend, Config, ControlSocket, Exchange, HealthCheck, Listener,
    Log, Pool, Probe, Protocol, Queue, RateLimit, Route, Runtime, SessionKey, Timeouts, Udp,
    Upstream,
};
use crate::policy::{breaker, health, outlier, retry};

/// The parts of a key. Parts, since names may have dots in them.
pub(in crate::config) type Path = Vec<String>;

/// Sorted: a table is followed by what is in it.
pub(in crate::config) type Entries = BTreeMap<Path, Entry>;

/// A key, or a table that may be there or not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::config) struct Entry {
    pub(in crate::config) value: Value,
    pub(super) how: How,
}

/// Every key.
pub(in crate::config) fn flatten(config: &Config) -> Entries {
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
    let log = match access_log {
        AccessLog::File(path) => Value::path(path),
        word => Value::Word(word.to_string()),
    };
    section.key("access_log", log, Live);
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

    pub(super) fn key(&mut self, key: &str, value: impl Into<Value>, how: How) {
        let value = value.into();
        let Section { entries, path } = self.within(key);
        entries.insert(path, Entry { value, how });
    }

    fn number(&mut self, key: &str, number: impl TryInto<i64>, how: How) {
        self.key(key, Value::number(number), how);
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
    section.key("workers", Value::or("auto", *workers), NeedsUpgrade);
    section.key("pin_workers", *pin_workers, NeedsUpgrade);
    section.key(
        "max_connections",
        Value::or("auto", *max_connections),
        NewConnections,
    );
    section.key("drain_timeout", *drain_timeout, Live);
    section.key("drain_delay", *drain_delay, Live);
    let memory = Value::or("auto", buffer_memory.map(Value::Size));
    section.key("buffer_memory", memory, NeedsUpgrade);
    let user = user.as_ref().map(Value::text);
    section.key("user", Value::some(user), NeedsUpgrade);
    let group = group.as_ref().map(Value::text);
    section.key("group", Value::some(group), NeedsUpgrade);
    let socket = match control_socket {
        ControlSocket::Auto => "auto".into(),
        ControlSocket::Off => "off".into(),
        ControlSocket::Path(path) => Value::path(path),
    };
    section.key("control_socket", socket, NeedsUpgrade);
}

fn log_keys(section: &mut Section<'_>, log: &Log) {
    let Log { level, format } = log;
    section.key("level", level.as_str(), Live);
    section.key("format", format.as_str(), Live);
}

fn admin_keys(section: &mut Section<'_>, admin: &Admin) {
    let Admin {
        listen,
        token,
        max_series,
    } = admin;
    let listen = listen.as_ref().map(|it| Value::Text(it.to_string()));
    section.key("listen", Value::some(listen), Rebind);
    // Whoever reads it is to learn no more than that it is another one.
    let token = token.as_ref().map(|it| Value::Secret(it.mark()));
    section.key("token", Value::some(token), Live);
    section.number("max_series", max_series.get(), Live);
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
    let bind = Value::list(bind);
    let mut section = listeners.table(name, bind.shown(None), Rebind);
    section.key("bind", bind, Rebind);
    section.key("protocol", protocol_word(protocol), Rebind);
    section.key("upstream", Value::text(name_of(*upstream)), NewConnections);
    section.key("routes", routed(routes, name_of), NewConnections);
    let accepted = match trusted_proxies {
        Some(_) => "require",
        None => "off",
    };
    section.key("accept_proxy_protocol", accepted, NewConnections);
    let trusted = Value::set(trusted_proxies.as_deref().unwrap_or_default());
    section.key("trusted_proxies", trusted.unless_empty(), NewConnections);
    section.number("backlog", backlog.get(), Live);
    let most = Value::cap(max_connections.map(usize::from));
    section.key("max_connections", most, NewConnections);
    let keepalive = Value::or("off", *tcp_keepalive);
    section.key("tcp_keepalive", keepalive, NewConnections);
    let congestion = Value::or("system", congestion.as_ref().map(Value::text));
    section.key("congestion", congestion, NewConnections);
    section.key("ipv6_only", *ipv6_only, Rebind);
    section.key("unix_mode", &*format!("{unix_mode:04o}"), Live);
    section.key("allow", Value::set(allow), NewConnections);
    section.key("deny", Value::set(deny), NewConnections);
    let mut timeouts = section.within("timeouts");
    timeouts.key("idle", *idle, NewConnections);
    timeouts.key("half_close", *half_close, NewConnections);
    timeouts.key("handshake", *handshake, NewConnections);
    rate_limit_keys(&mut section.within("rate_limit"), rate_limit);
    if let Some(settings) = tls {
        tls::server_keys(&mut section, settings);
    }
    if let Protocol::Udp(udp) = protocol {
        udp_keys(&mut section.within("udp"), udp);
    }
}

/// Name by name, as which of them share a table means nothing.
fn routed<'a>(routes: &[Route], name_of: &dyn Fn(usize) -> &'a str) -> Value {
    let (mut names, mut tables) = (Vec::new(), Vec::new());
    for Route { sni, upstream } in routes {
        let to = Value::text(name_of(*upstream));
        let shown = to.shown(None);
        names.extend(sni.iter().map(|name| format!("{name} to {shown}")));
        tables.push(table([("sni", Value::sequence(sni)), ("upstream", to)]));
    }
    Value::Sequence(names, tables.into()).unless_empty()
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
    section.key("session_timeout", *session_timeout, how);
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
    section.key("max_sessions", Value::or("auto", *max_sessions), how);
    section.key("responses", Value::cap(responses.map(u32::from)), how);
    let rejects = *reject_privileged_sources;
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
        section.key(key, Value::some(rate.map(Value::Rate)), NewConnections);
    }
    let bandwidth = Value::some(bandwidth.map(Value::Bandwidth));
    section.key("bandwidth", bandwidth, NewConnections);
    section.number("ipv6_prefix", *ipv6_prefix, NewConnections);
    section.number("max_clients", max_clients.get(), NewConnections);
    section.key("dry_run", *dry_run, NewConnections);
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
    section.key("connect_timeout", *connect_timeout, how);
    section.key("source", Value::list(source).unless_empty(), how);
    section.key("tcp_keepalive", Value::or("off", *tcp_keepalive), how);
    section.key("tcp_user_timeout", *tcp_user_timeout, how);
    let (version, which) = match announce {
        Announce::Never => ("off", Value::Absent("every")),
        Announce::V1 => ("v1", Value::Absent("every")),
        Announce::V2First => ("v2", "first".into()),
        Announce::V2Every => ("v2", "every".into()),
    };
    section.key("send_proxy_protocol", version, how);
    section.key("proxy_protocol_datagrams", which, how);
    section.key("slow_start", *slow_start, how);
    section.key("fail_open_below", *fail_open_below, how);
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
    queue.number("max", *max, how);
    queue.key("timeout", *timeout, how);
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
    let address = address.to_string();
    let about = Value::text(&address).shown(None);
    let address = Value::Address(address, host.clone());
    let mut section = backends.table(name, about, NewConnections);
    section.key("address", address, NewConnections);
    section.number("weight", *weight, NewConnections);
    let most = Value::cap(max_connections.map(usize::from));
    section.key("max_connections", most, NewConnections);
    section.key("backup", *backup, NewConnections);
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
    probe_keys(&mut section, probe);
    section.key("interval", *interval, Live);
    section.key("jitter", *jitter, Live);
    section.key("timeout", *timeout, Live);
    section.number("rise", rise.get(), Live);
    section.number("fall", fall.get(), Live);
    let start = match start {
        health::Start::Up => "up",
        health::Start::Down => "down",
        health::Start::Checked => "checked",
    };
    section.key("start", start, Live);
}

/// Also those that the type does not have: they are absent.
fn probe_keys(section: &mut Section<'_>, probe: &Probe) {
    for key in ["path", "host", "send", "expect"] {
        section.key(key, Value::Absent("none"), Live);
    }
    section.key("expect_status", Value::Absent("[]"), Live);
    let mut exchange = |kind: &str, Exchange { send, expect }: &Exchange| {
        let bytes = |bytes: &Option<_>| Value::some(bytes.clone().map(Value::Bytes));
        section.key("type", kind, Live);
        section.key("send", bytes(send), Live);
        section.key("expect", bytes(expect), Live);
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
            section.key("type", "http", Live);
            section.key("path", Value::text(path), Live);
            let host = host.as_ref().map(Value::text);
            section.key("host", Value::some(host), Live);
            let ranges: Vec<_> = expect_status.iter().map(written::statuses).collect();
            section.key("expect_status", Value::set(&ranges), Live);
        }
    }
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
    section.number("consecutive_failures", consecutive_failures.get(), how);
    section.key("eject_for", *eject_for, how);
    section.key("max_eject_for", *max_eject_for, how);
    section.key("max_ejected", *max_ejected, how);
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
    section.key("failure_ratio", *failure_ratio, how);
    section.number("min_requests", min_requests.get(), how);
    section.key("window", *window, how);
    section.key("open_for", *open_for, how);
    section.number("half_open_requests", half_open_requests.get(), how);
}

fn retry_keys(section: &mut Section<'_>, settings: &retry::Settings) {
    let retry::Settings {
        attempts,
        backoff,
        max_backoff,
        budget,
    } = settings;
    section.number("attempts", *attempts, NewConnections);
    section.key("backoff", *backoff, NewConnections);
    section.key("max_backoff", *max_backoff, NewConnections);
    section.key("budget", *budget, NewConnections);
}

fn pool_keys(section: &mut Section<'_>, pool: &Pool) {
    let Pool {
        preconnect,
        idle_timeout,
        max_lifetime,
    } = pool;
    section.number("preconnect", *preconnect, Live);
    section.key("idle_timeout", *idle_timeout, Live);
    section.key("max_lifetime", *max_lifetime, Live);
}
