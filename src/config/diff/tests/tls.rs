//! What is said of TLS, routes and the PROXY protocol.

use super::made::Made;
use super::*;

const A: &str = "{ cert = 'a.pem', key = 'a.key' }";
const B: &str = "{ cert = 'b.pem', key = 'b.key' }";

/// [`OLD`], with TLS on both sides.
pub(super) fn with_tls() -> String {
    let tls = format!("[listeners.web.tls]\ncertificates = [{A}]\n[listeners.local]");
    let old = OLD.replace("[listeners.local]", &tls);
    format!("{old}[upstreams.app.tls]\n")
}

/// Numbers that differ from run to run are `#`.
fn shown(change: &Change) -> String {
    let line = change.to_string();
    let mut parts = line.split('(');
    let mut shown = parts.next().unwrap().to_owned();
    for part in parts {
        let hexadecimal = |text: &str| text.bytes().all(|c| c.is_ascii_hexdigit());
        shown += "(";
        shown += &match part.get(..16) {
            Some(number) if hexadecimal(number) => part.replacen(number, "#", 1),
            _ => part.to_owned(),
        };
    }
    shown
}

fn changes(from: &str, to: &str) -> Vec<String> {
    let old = with_tls();
    assert!(old.contains(from), "{from}");
    let (old, new) = (read(&old), read(&old.replacen(from, to, 1)));
    check_laws(&old, &new);
    between(&old, &new).iter().map(shown).collect()
}

#[test]
fn keys_of_termination_say_what_they_take() {
    let place = &format!("[{A}]");
    let key = "listeners.web.tls";
    for (line, said) in [
        ("client_auth = 'off'", &[][..]),
        (
            "client_auth = 'optional'\nclient_ca = 'b.pem'",
            &[
                "client_auth: off → optional",
                "client_ca: none → /b.pem (#)",
            ],
        ),
        ("min_version = '1.3'", &["min_version: 1.2 → 1.3"]),
        ("alpn = ['h2', 'a b']", &["alpn: [] → [h2, \"a b\"]"]),
        ("tickets = false", &["tickets: true → false"]),
    ] {
        let said: Vec<_> = said
            .iter()
            .map(|said| format!("{key}.{said} (new connections only)"))
            .collect();
        assert_eq!(changes(place, &format!("{place}\n{line}")), said, "{line}");
    }
    let two = changes(place, &format!("[{B}, {A}]"));
    let [a, b] = ["a", "b"].map(|it| format!("{{ cert = /{it}.pem (#), key = /{it}.key }}"));
    let said = format!("{key}.certificates: [{a}] → [{b}, {a}] (new connections only)");
    assert_eq!(two, [said]);
    let gone = changes(&format!("[listeners.web.tls]\ncertificates = {place}"), "");
    assert_eq!(gone, [format!("{key}: removed (new connections only)")]);
}

#[test]
fn keys_of_tls_to_backends_say_what_they_take() {
    let place = "[upstreams.app.tls]";
    let key = "upstreams.app.tls";
    for (line, said) in [
        ("verify = true", &[][..]),
        ("server_name = 'none'", &["server_name: none → \"none\""]),
        ("ca = 'b.pem'", &["ca: the system's (#) → /b.pem (#)"]),
        (
            "verify = false",
            &["ca: the system's (#) → none", "verify: true → false"],
        ),
        (
            "client_cert = 'a.pem'\nclient_key = 'a.key'",
            &[
                "client_cert: none → /a.pem (#)",
                "client_key: none → /a.key",
            ],
        ),
    ] {
        let said: Vec<_> = said
            .iter()
            .map(|said| format!("{key}.{said} (new connections only)"))
            .collect();
        assert_eq!(changes(place, &format!("{place}\n{line}")), said, "{line}");
    }
}

#[test]
fn a_file_with_other_content_is_a_change() {
    let text = with_tls();
    let new = parse(&text, "/diff.toml", &mut Made(1)).unwrap();
    let old = read(&text);
    check_laws(&old, &new);
    let lines: Vec<_> = between(&old, &new).iter().map(shown).collect();
    let a = "[{ cert = /a.pem (#), key = /a.key }]";
    let expected = [
        format!("listeners.web.tls.certificates: {a} → {a} (new connections only)"),
        "upstreams.app.tls.ca: the system's (#) → the system's (#) (new connections only)"
            .to_owned(),
    ];
    assert_eq!(lines, expected);
}

#[test]
fn routes_are_told_name_by_name_in_their_order() {
    let place = "[listeners.local]";
    let routes = |routes: &str| OLD.replace(place, &format!("routes = [{routes}]\n{place}"));
    let said = |old: &str, new: &str| {
        let (old, new) = (read(&routes(old)), read(&routes(new)));
        check_laws(&old, &new);
        let changes = between(&old, &new);
        changes.iter().map(Change::to_string).collect::<Vec<_>>()
    };
    let one = "{ sni = ['a.b', '*.c'], upstream = 'app' }";
    let two = "{ sni = 'a.b', upstream = 'app' }, { sni = '*.c', upstream = 'app' }";
    assert_eq!(said(one, two), [""; 0], "the same with other tables");
    let other = "{ sni = '*.c', upstream = 'other' }, { sni = 'a.b', upstream = 'app' }";
    assert_eq!(
        said(one, other),
        [
            "listeners.web.routes: [a.b to app, *.c to app] → [*.c to other, a.b to app] \
          (new connections only)"
        ]
    );
    let long = |last: &str| {
        let names: Vec<_> = (0..40).map(|it| format!("'n{it}'")).collect();
        format!(
            "{{ sni = [{}, '{last}'], upstream = 'app' }}",
            names.join(",")
        )
    };
    assert_eq!(
        said(&long("x"), &long("y")),
        [
            "listeners.web.routes: [... 40 more, x to app] → [... 40 more, y to app] \
          (new connections only)"
        ]
    );
    let first = said("{ sni = 'x', upstream = 'app' }", &long("x"));
    assert!(first[0].contains("[x to app] → [n0 to app, "), "{first:?}");
    assert!(first[0].contains("n15 to app, ... 25 more]"), "{first:?}");
}

#[test]
fn whose_headers_are_believed_is_a_set() {
    let place = "bind = '127.0.0.1:80'";
    let require = |networks: &str| {
        format!("{place}\naccept_proxy_protocol = 'require'\ntrusted_proxies = [{networks}]")
    };
    assert_eq!(
        lines(OLD, place, &require("'::1', '10.0.0.0/8'")),
        [
            "listeners.web.accept_proxy_protocol: off → require (new connections only)",
            "listeners.web.trusted_proxies: [] → [10.0.0.0/8, ::1/128] (new connections only)",
        ]
    );
    let old = OLD.replace(place, &require("'::1', '10.0.0.0/8'"));
    let new = read(&OLD.replace(place, &require("'10.0.0.0/8', '::1', '::1'")));
    assert_eq!(between(&read(&old), &new), []);
}

#[test]
fn the_host_of_a_backend_belongs_to_its_address() {
    let backend = "address = '10.0.0.2:80', name = 'b2'";
    let moved = backend.replace("10.0.0.2", "host.example");
    assert_eq!(
        lines(
            OLD,
            backend,
            &moved.replace("host.example:80", "host.example:81")
        ),
        [
            "upstreams.app.backends.b2.address: 10.0.0.2:80 → 10.0.0.1:81 of host.example \
          (new connections only)"
        ]
    );
}

#[test]
fn an_announcement_of_the_first_version_is_told() {
    let line = lines(
        OLD,
        "outlier = {}",
        "outlier = {}\nsend_proxy_protocol = 'v1'",
    );
    let key = "upstreams.app.send_proxy_protocol";
    assert_eq!(line, [format!("{key}: off → v1 (new connections only)")]);
}
