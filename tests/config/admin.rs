//! `[admin]` and `log.access_log`.

use std::path::Path;

use ringress::config::{AccessLog, Admin};

use crate::support::{Wrong, parse, says_where_and_what, with};

fn file(line: &str) -> String {
    format!("{line}\n{}", with("", ""))
}

#[test]
fn there_is_no_endpoint_unless_one_is_wanted() {
    let config = parse(&file("")).unwrap();
    assert_eq!(config.admin, Admin::default());
    assert_eq!((config.admin.listen, config.admin.token), (None, None));
    assert_eq!(config.admin.max_series.get(), 50_000);
    assert_eq!(config.access_log, AccessLog::Off);
}

#[test]
fn every_key_is_read() {
    let config = parse(&file(
        "admin = { listen = '0.0.0.0:9900', token = 'secret', max_series = 7 }",
    ));
    let admin = config.unwrap().admin;
    assert_eq!(admin.listen.unwrap().to_string(), "0.0.0.0:9900");
    assert_eq!(admin.token.unwrap().secret(), "secret");
    assert_eq!(admin.max_series.get(), 7);
    for (written, expected) in [
        ("off", AccessLog::Off),
        ("stdout", AccessLog::Stdout),
        ("/var/log/a.log", AccessLog::File("/var/log/a.log".into())),
    ] {
        let config = parse(&file(&format!("log.access_log = '{written}'"))).unwrap();
        assert_eq!(config.access_log, expected);
    }
    let config = parse(&file("log.access_log = './stdout'")).unwrap();
    let AccessLog::File(path) = config.access_log else {
        panic!("it is a file");
    };
    assert!(
        path.is_absolute() && path.ends_with(Path::new("stdout")),
        "{path:?}"
    );
}

#[test]
fn what_is_wrong_is_shown_at_its_place() {
    says_where_and_what(file, LINES);
    let taken = format!("admin.listen = '127.0.0.1:80'\n{}", with("", ""));
    let said = parse(&taken).unwrap_err().to_string();
    assert!(said.contains("already bound by listener \"web\""), "{said}");
    let udp = with("protocol = 'udp'", "");
    parse(&format!("admin.listen = '127.0.0.1:80'\n{udp}"))
        .expect("each protocol has ports of its own");
    let both = "runtime.control_socket = '/run/a.sock'\nadmin.listen = 'unix:/run/a.sock'";
    let said = parse(&file(both)).unwrap_err().to_string();
    assert!(
        said.contains("already bound by runtime.control_socket"),
        "{said}"
    );
}

const LINES: &[Wrong] = &[
    (
        "admin.listen = '0.0.0.0:9900'",
        "'0.0.0.0:9900'",
        "can be reached from other machines, and there is no admin.token",
    ),
    (
        "admin.listen = '10.0.0.1:9900'",
        "'10.0.0.1:9900'",
        "openssl rand -hex 32",
    ),
    ("admin.listen = 9900", "9900", "\"ip:port\""),
    (
        "admin.listen = ':9900'",
        "':9900'",
        "did you mean \"0.0.0.0:9900\"?",
    ),
    ("admin.listen = 'unix:a'", "'unix:a'", "the absolute path"),
    ("admin.token = 5", "5", "visible characters"),
    ("admin.token = ''", "''", "this can't be a token"),
    ("admin.max_series = 0", "0", "a whole number from 1"),
    (
        "admin.max_serie = 5",
        "max_serie",
        "did you mean \"max_series\"?",
    ),
    (
        "log.access_log = 'stdot'",
        "'stdot'",
        "did you mean \"stdout\"?",
    ),
    (
        "log.access_log = 'on'",
        "'on'",
        "with a slash or a dot in it",
    ),
    (
        "log.access_log = '/var/log/'",
        "'/var/log/'",
        "can't be the path of a file",
    ),
    ("log.access_log = true", "true", "\"stdout\""),
];
