//! The files and pages that show the configuration: they keep up with what is read.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use ringress::config::keys::{TABLES, WORDS};
use ringress::config::{self, HealthCheck, RateLimit, Resolver, Runtime, SystemResolver, defaults};
use ringress::tls::{Authorities, LoadError, Pair};
use toml::{Table, Value};

#[test]
fn every_file_in_conf_is_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf");
    let mut loaded = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            // Units and the like.
            continue;
        }
        if let Err(errors) = config::load_with(&path, &mut Elsewhere::new()) {
            panic!("{errors}");
        }
        loaded.push(path.file_name().unwrap().to_owned());
    }
    assert!(loaded.iter().any(|name| name == "tcp.toml"), "{loaded:?}");
}

/// Has a certificate for whatever file is named: those of the examples are not part of the project.
struct Elsewhere {
    chain: String,
    key: String,
}

impl Elsewhere {
    fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["any.example".to_owned()]).unwrap();
        Self {
            chain: made.cert.pem(),
            key: made.signing_key.serialize_pem(),
        }
    }
}

impl Resolver for Elsewhere {
    fn resolve(&mut self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        SystemResolver.resolve(host, port)
    }

    fn pair(&mut self, certificate: &Path, key: &Path) -> Result<Arc<Pair>, LoadError> {
        let (chain, secret) = (self.chain.as_bytes(), self.key.as_bytes());
        Pair::from_pem(certificate, chain, key, secret).map(Arc::new)
    }

    fn authorities(&mut self, file: Option<&Path>) -> Result<Arc<Authorities>, LoadError> {
        let file = file.unwrap_or(Path::new("the system's"));
        Authorities::from_pem(file, self.chain.as_bytes()).map(Arc::new)
    }
}

#[test]
fn conf_tcp_udp_and_observability_have_every_key() {
    let files = [
        include_str!("../../conf/tcp.toml"),
        include_str!("../../conf/udp.toml"),
        include_str!("../../conf/observability.toml"),
    ];
    let files = files.map(|text| Value::Table(uncommented(text).parse().unwrap()));
    for table in TABLES {
        let path: Vec<_> = table.name.split('.').filter(|it| !it.is_empty()).collect();
        let found: Vec<_> = files.iter().flat_map(|file| at(file, &path)).collect();
        for key in table.keys {
            let has = found.iter().any(|table| table.contains_key(*key));
            assert!(has, "[{}] {key}", table.name);
        }
    }
}

/// Keys that would not suit every machine are commented out.
fn uncommented(text: &str) -> String {
    let lines = text.lines().map(|line| match line.strip_prefix("# ") {
        Some(key) if key.contains(" = ") => key,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn conf_tcp_shows_the_defaults_of_the_policies() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/tcp.toml");
    let config = config::load(&path).unwrap();
    assert_eq!(config.runtime, Runtime::default());
    let app = &config.upstreams[0];
    assert_eq!(app.outlier, Some(defaults::OUTLIER));
    assert_eq!(app.circuit_breaker, Some(defaults::CIRCUIT_BREAKER));
    assert_eq!(app.retry, defaults::RETRY);
    assert_eq!((app.queue, app.pool), (defaults::QUEUE, defaults::POOL));
    let check = app.health_check.clone().unwrap();
    let probe = check.probe.clone();
    assert_eq!(
        check,
        HealthCheck {
            probe,
            ..HealthCheck::default()
        }
    );
    let limits = config.listeners[0].rate_limit;
    let none = RateLimit {
        connections: None,
        connections_per_ip: None,
        bandwidth: None,
        ..limits
    };
    assert_eq!(none, RateLimit::default());
}

/// Every table of that path; a name in capitals stands for any.
fn at(value: &Value, path: &[&str]) -> Vec<Table> {
    match (value, path) {
        (Value::Array(list), _) => list.iter().flat_map(|it| at(it, path)).collect(),
        (Value::Table(table), []) => vec![table.clone()],
        (Value::Table(table), [first, rest @ ..]) => table
            .iter()
            .filter(|(key, _)| key == first || first.chars().all(|c| c.is_ascii_uppercase()))
            .flat_map(|(_, value)| at(value, rest))
            .collect(),
        _ => Vec::new(),
    }
}

#[test]
fn every_key_is_in_the_document() {
    let document = include_str!("../../docs/configuration.md");
    let (known, not_yet) = document.split_once("## Not available yet").unwrap();
    for table in TABLES.iter().filter(|table| !table.name.is_empty()) {
        let heading = format!("## [{}]", table.name);
        let (_, section) = known
            .split_once(&heading)
            .unwrap_or_else(|| panic!("{heading}"));
        let section = section.split("\n## ").next().unwrap();
        for key in table.keys {
            assert!(
                section.contains(&format!("| `{key}` |")),
                "{heading}: {key}"
            );
        }
    }
    for table in TABLES {
        for key in table.not_yet {
            assert!(
                not_yet.contains(&format!("`{key}`")),
                "[{}] {key}",
                table.name
            );
        }
    }
    for words in WORDS {
        for word in words.words.iter().chain(words.not_yet) {
            assert!(
                document.contains(&format!("`{word}`")),
                "{}: {word}",
                words.name
            );
        }
    }
}
