//! Every file of conf/ is run: with its addresses and certificates replaced, its log made readable for the
//! test, and a backend behind each address that answers as the file's health check wants it to, with TLS and
//! headers of the PROXY protocol where the file has them.

mod common;

#[path = "conf/certificates.rs"]
mod certificates;
#[path = "tls/peers.rs"]
#[allow(dead_code, reason = "other files of tests use the rest of it")]
mod peers;
#[path = "tls/pki.rs"]
#[allow(dead_code, reason = "other files of tests use the rest of it")]
mod pki;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use certificates::{Layers, Wire, settle_listener, settle_upstream};
use common::socket::{parse, unconnected};
use common::{Backend, Proxy, eventually, http};
use pki::Pki;
use toml::{Table, Value};

/// What a backend says, so that probes like it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Speech {
    /// Echoes.
    Nothing,
    /// This before anything is asked.
    Greeting(String),
    /// This to who begins so.
    Answer { to: String, with: String },
}

impl Speech {
    fn of(upstream: &Table) -> Self {
        let Some(check) = upstream.get("health_check").and_then(Value::as_table) else {
            return Self::Nothing;
        };
        let word = |key| check.get(key).and_then(Value::as_str).map(str::to_owned);
        match (word("type").as_deref(), word("send"), word("expect")) {
            (Some("http"), ..) => Self::Answer {
                to: "GET ".into(),
                with: "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n".into(),
            },
            (_, Some(to), Some(with)) => Self::Answer { to, with },
            (_, None, Some(greeting)) => Self::Greeting(greeting),
            (..) => Self::Nothing,
        }
    }

    /// Speaks on a connection, then echoes.
    fn serve(&self, mut connection: Box<dyn Wire>) -> io::Result<()> {
        if let Self::Greeting(greeting) = self {
            connection.write_all(greeting.as_bytes())?;
        }
        let mut heard = vec![0; 4096];
        while let count @ 1.. = connection.read(&mut heard)? {
            let answer = match self {
                Self::Answer { to, with } if heard.starts_with(to.as_bytes()) => with.as_bytes(),
                _ => &heard[..count],
            };
            connection.write_all(answer)?;
        }
        connection.finish()
    }

    /// Answers datagrams, where those are probes.
    fn serve_datagrams(&self, at: SocketAddr) {
        let socket = UdpSocket::bind(at).expect("nobody else has the port");
        let answer = match self {
            Self::Answer { with, .. } | Self::Greeting(with) => with.clone(),
            Self::Nothing => "anything".to_owned(),
        };
        thread::spawn(move || {
            while let Ok((_, from)) = socket.recv_from(&mut [0; 4096]) {
                // Who asked may be gone.
                let _ = socket.send_to(answer.as_bytes(), from);
            }
        });
    }

    fn greeting(&self) -> &str {
        match self {
            Self::Greeting(greeting) => greeting,
            _ => "",
        }
    }
}

/// The free addresses that take the place of those in a file.
struct Places {
    folder: tempfile::TempDir,
    pki: Pki,
    backends: Mutex<Vec<Backend>>,
    by_address: Mutex<HashMap<String, String>>,
}

impl Places {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().expect("a folder"),
            pki: Pki::new(),
            backends: Mutex::default(),
            by_address: Mutex::default(),
        }
    }

    /// What a listener is bound to instead of `address`.
    fn bind(&self, address: &str) -> String {
        if address.starts_with("unix:") {
            return self.unix(address);
        }
        let (host, _) = address.rsplit_once(':').expect("a port");
        format!("{host}:0")
    }

    /// Where a backend is that was started in the place of `address`; the same one each time.
    fn backend(&self, address: &str, speech: &Speech, layers: &Layers) -> String {
        let mut by_address = self.by_address.lock().expect("nobody panicked");
        if let Some(there) = by_address.get(address) {
            return there.clone();
        }
        let host = address.rsplit_once(':').expect("a port").0;
        let at = match address.starts_with("unix:") {
            true => self.unix(address),
            false if host.starts_with('[') => "[::1]:0".to_owned(),
            false => "127.0.0.1:0".to_owned(),
        };
        let (says, layers) = (speech.clone(), layers.clone());
        let backend = Backend::at(&at, move |connection| {
            // The client may be gone.
            let _ = layers.accept(connection).and_then(|it| says.serve(it));
        });
        if let Some(address) = parse(&backend.address).1.as_socket() {
            speech.serve_datagrams(address);
        }
        let port = backend.address.rsplit_once(':').expect("a port").1;
        let there = match host {
            "localhost" => format!("localhost:{port}"),
            _ => backend.address.clone(),
        };
        self.backends.lock().expect("nobody panicked").push(backend);
        by_address.insert(address.to_owned(), there.clone());
        there
    }

    fn unix(&self, address: &str) -> String {
        let name = Path::new(address).file_name().expect("a file");
        format!("unix:{}", self.folder.path().join(name).display())
    }
}

/// Applies `change` to a string or to each string of a list.
fn change_each(value: &mut Value, change: &impl Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = change(text),
        Value::Array(list) => list.iter_mut().for_each(|value| change_each(value, change)),
        Value::Table(table) => change_each(&mut table["address"], change),
        other => panic!("{other} instead of an address"),
    }
}

fn tables<'a>(
    file: &'a mut Table,
    name: &str,
) -> impl Iterator<Item = (&'a String, &'a mut Table)> {
    let tables = file.get_mut(name).and_then(Value::as_table_mut);
    let each = tables.into_iter().flat_map(Table::iter_mut);
    each.filter_map(|(name, value)| Some((name, value.as_table_mut()?)))
}

/// A listener of a file.
struct Listener {
    name: String,
    /// What its backends say.
    speech: Speech,
    /// It takes datagrams.
    udp: bool,
    /// What its clients speak before that.
    layers: Layers,
    /// What clients may ask for.
    names: Vec<String>,
}

/// Rewrites `file` to run here. Returns its listeners.
fn settle(file: &mut Table, places: &Places) -> Vec<Listener> {
    let mut speeches = HashMap::new();
    for (name, upstream) in tables(file, "upstreams") {
        let speech = Speech::of(upstream);
        let layers = settle_upstream(upstream, &places.pki);
        change_each(&mut upstream["backends"], &|address| {
            places.backend(address, &speech, &layers)
        });
        speeches.insert(name.clone(), speech);
    }
    let mut listeners = Vec::new();
    for (name, listener) in tables(file, "listeners") {
        change_each(&mut listener["bind"], &|address| places.bind(address));
        // The client is on this machine.
        if let Some(Value::Array(allow)) = listener.get_mut("allow")
            && !allow.is_empty()
        {
            allow.extend(["127.0.0.0/8".into(), "::1".into()]);
        }
        let (layers, names) = settle_listener(listener, &places.pki);
        let upstream = listener["upstream"].as_str().expect("a name");
        let udp = listener.get("protocol") == Some(&"udp".into());
        listeners.push(Listener {
            name: name.clone(),
            speech: speeches[upstream].clone(),
            udp,
            layers,
            names,
        });
    }
    if let Some(admin) = file.get_mut("admin") {
        change_each(&mut admin["listen"], &|address| places.bind(address));
    }
    let log = "level = \"debug\"\nformat = \"json\""
        .parse()
        .expect("TOML");
    file.insert("log".to_owned(), Value::Table(log));
    let runtime = file.entry("runtime").or_insert(Value::Table(Table::new()));
    let runtime = runtime.as_table_mut().expect("a table");
    // Sessions of datagrams end with silence.
    runtime.insert("drain_timeout".to_owned(), "1s".into());
    listeners
}

/// A whole session of a client that asks for this name, if it speaks TLS; an error if it was refused.
fn session(address: &str, listener: &Listener, name: &str) -> io::Result<()> {
    let socket = unconnected(address);
    socket.connect(&parse(address).1)?;
    let mut client = listener.layers.connect(socket, name)?;
    let greeting = listener.speech.greeting();
    let mut heard = vec![0; greeting.len()];
    client.read_exact(&mut heard)?;
    assert_eq!(heard, greeting.as_bytes());
    // Where the name is looked for in what is passed on, it has to be there.
    let said = match listener.layers.tls.is_none() && !name.is_empty() {
        true => peers::hello(&Arc::new(peers::anyone()), name).1,
        false => b"a session".to_vec(),
    };
    client.write_all(&said)?;
    client.finish()?;
    let mut answer = Vec::new();
    client.read_to_end(&mut answer)?;
    match answer == said {
        true => Ok(()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// A datagram, and its answer; an error if there was none.
fn exchange(address: &str) -> io::Result<()> {
    let address: SocketAddr = address.parse().expect("an address");
    let socket = UdpSocket::bind((address.ip(), 0))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    socket.send_to(b"a datagram", address)?;
    let (count, from) = socket.recv_from(&mut [0; 64])?;
    assert!(count > 0 && from == address);
    Ok(())
}

/// Starts the proxy with the file and has a session through every address of every listener.
fn runs(path: &Path) {
    let text = fs::read_to_string(path).expect("it can be read");
    let mut file: Table = text.parse().expect("TOML");
    let places = Places::new();
    let listeners = settle(&mut file, &places);
    let mut proxy = Proxy::start(&file.to_string());
    if file.contains_key("admin") {
        let admin = proxy.admin();
        eventually("the process to be ready", || {
            (http::get(&admin, "/readyz").status == 200).then_some(())
        });
    }
    let mut sessions = 0;
    let mut exchanges = 0;
    for listener in &listeners {
        for address in proxy.addresses(&listener.name) {
            let what = format!("{}: a session at {}", path.display(), listener.name);
            // Before the first probes have ended nobody may be ready.
            if listener.udp {
                eventually(&what, || exchange(&address).ok());
                exchanges += 1;
                continue;
            }
            for name in &listener.names {
                eventually(&format!("{what} {name}"), || {
                    session(&address, listener, name).ok()
                });
                sessions += 1;
            }
        }
    }
    assert!(
        sessions + exchanges >= listeners.len(),
        "{}",
        path.display()
    );
    let mut served = 0;
    while served < sessions {
        let reason = proxy.next_session().reason;
        assert!(
            ["client-closed", "no-backend", "answered"].contains(&reason.as_str()),
            "{reason}"
        );
        served += usize::from(reason == "client-closed");
    }
    proxy.end();
}

fn conf() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf");
    let entries = fs::read_dir(folder).expect("a folder of the repository");
    let paths = entries.map(|entry| entry.expect("it can be read").path());
    let mut paths: Vec<_> = paths
        .filter(|path| path.extension() == Some("toml".as_ref()))
        .collect();
    paths.sort();
    paths
}

#[test]
fn every_file_in_conf_runs_and_serves_at_every_address() {
    let files = conf();
    assert!(files.len() >= 3, "{files:?}");
    files.iter().for_each(|path| runs(path));
}
