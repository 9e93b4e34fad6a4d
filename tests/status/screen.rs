//! What the log tells as a process starts.

use serde_json::Value;

use crate::common::proxy::text;
use crate::common::{Backend, Proxy, config};

/// The lines up to the one that says that it has started.
fn screen(proxy: &Proxy) -> Vec<Value> {
    let lines = proxy.lines();
    let end = lines.iter().position(|line| line["message"] == "started");
    lines[..=end.expect("it has started")].to_vec()
}

fn line<'a>(screen: &'a [Value], message: &str) -> &'a Value {
    let mut lines = screen.iter();
    let found = lines.find(|line| line["message"] == message);
    found.unwrap_or_else(|| panic!("no {message} in {screen:?}"))
}

#[test]
fn a_start_tells_in_a_screenful_what_it_is_and_has() {
    let backend = Backend::echo();
    let listener = "bind = [\"127.0.0.1:0\", \"127.0.0.1:0\"]\n";
    let tables = "[listeners.dns]\nbind = \"127.0.0.1:0\"\nprotocol = \"udp\"\nupstream = \"app\"\n\
        [runtime]\nworkers = 2\nmax_connections = 1000\n";
    let upstream = "balance = \"random\"\n";
    let backends = ["127.0.0.1:1", &backend.address];
    let proxy = Proxy::start_without(&config(&backends, listener, upstream, tables), "no_sqarray");
    let screen = screen(&proxy);
    let told: Vec<_> = screen.iter().filter(|it| it["level"] == "INFO").collect();
    assert!((9..=24).contains(&told.len()), "{}", told.len());
    let first = line(&screen, "ringress");
    assert_eq!(first["version"], env!("CARGO_PKG_VERSION"));
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("Linux has it");
    assert_eq!(text(first, "kernel"), release.trim());
    assert_eq!(first["pid"], proxy.pid());
    let ring = line(&screen, "io_uring");
    let features = text(ring, "obtained") + &text(ring, "missing");
    assert!(features.contains("SUBMIT_ALL") && features.contains("recv byte budget"));
    assert_eq!(ring["without"], "no_sqarray");
    let workers = line(&screen, "workers");
    assert_eq!(workers["workers"], 2);
    assert!(workers["cpus"].is_string());
    let limits = line(&screen, "limits");
    assert_eq!(limits["max_connections"], 1000);
    assert!(limits["descriptors"].is_u64() && limits["memlock"].is_string());
    let listening = screen.iter().filter(|it| it["message"] == "listening");
    let listening: Vec<_> = listening
        .map(|line| (text(line, "listener"), text(line, "transport")))
        .collect();
    let expected = [("web", "tcp"), ("web", "tcp"), ("dns", "udp")];
    let expected = expected.map(|(name, transport)| (name.to_owned(), transport.to_owned()));
    assert_eq!(listening, expected);
    let upstream = line(&screen, "upstream");
    assert_eq!(
        (&upstream["ready"], &upstream["backends"]),
        (&2.into(), &2.into())
    );
    assert_eq!(
        (&upstream["upstream"], &upstream["balance"]),
        (&"app".into(), &"random".into())
    );
    let started = line(&screen, "started");
    let socket = proxy.control_socket();
    assert_eq!(
        text(started, "control_socket"),
        socket.display().to_string()
    );
    proxy.end();
}

#[test]
fn of_many_listeners_and_upstreams_a_few_are_told_and_how_many_more_there_are() {
    let listener = |number: usize| {
        format!("[listeners.l{number}]\nbind = \"127.0.0.1:0\"\nupstream = \"u{number}\"\n")
    };
    let upstream = |number: usize| format!("[upstreams.u{number}]\nbackends = [\"127.0.0.1:1\"]\n");
    let tables = (0..25).map(|number| listener(number) + &upstream(number));
    let tables = tables.collect::<String>();
    let proxy = Proxy::start(&format!("{tables}[runtime]\nworkers = 1\n"));
    let screen = screen(&proxy);
    let told = |message: &str| {
        let lines = screen.iter().filter(|line| line["message"] == message);
        let plain = lines.filter(|line| line["level"] == "INFO");
        plain.count()
    };
    assert_eq!((told("listening"), told("upstream")), (10, 10));
    assert_eq!(told("and 15 more addresses"), 1);
    assert_eq!(line(&screen, "and 15 more upstreams")["ready"], 15);
    proxy.end();
}

#[test]
fn a_start_reads_as_text_too() {
    let backend = Backend::echo();
    let tables = "[runtime]\nworkers = 1\n[log]\nformat = \"text\"\n";
    let proxy = Proxy::spawn(&config(&[&backend.address], "", "", tables), "");
    proxy.wait_line("it to start", |line| {
        line.as_str()?.contains(" started ").then_some(())
    });
    let lines = proxy.lines();
    let lines: Vec<_> = lines.iter().filter_map(Value::as_str).collect();
    assert!(lines.len() <= 24, "{lines:?}");
    let has = |parts: &[&str]| {
        let mut lines = lines.iter();
        assert!(
            lines.any(|line| parts.iter().all(|part| line.contains(part))),
            "{parts:?} in {lines:?}"
        );
    };
    has(&["INFO ringress version=", "kernel="]);
    has(&["INFO io_uring obtained="]);
    has(&["INFO workers workers=1"]);
    has(&["INFO limits descriptors=", "max_connections="]);
    has(&[
        "INFO listening listener=web address=127.0.0.1:",
        "transport=\"tcp\"",
    ]);
    has(&["INFO upstream upstream=app ready=1 backends=1"]);
    has(&["INFO control socket path="]);
    proxy.end();
}
