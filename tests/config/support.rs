//! A resolver without a network, and small files to try.

use std::io;
use std::net::SocketAddr;

use ringress::config::{self, Config, Diagnostics};

/// Knows "one.example" with one address, "two.example" with two (out of order and one of them twice),
/// "none.example" with none, and nothing else.
pub(crate) fn stub(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let address = |last| SocketAddr::from(([10, 0, 0, last], port));
    match host {
        "one.example" => Ok(vec![address(1)]),
        "two.example" => Ok(vec![address(3), address(2), address(3)]),
        "none.example" => Ok(vec![]),
        _ => Err(io::Error::other("no such name")),
    }
}

pub(crate) fn parse(text: &str) -> Result<Config, Diagnostics> {
    config::parse(text, "test.toml", &mut stub)
}

/// A valid file with `listener` and `upstream` as further lines of the two tables.
pub(crate) fn with(listener: &str, upstream: &str) -> String {
    let bind = if listener.contains("bind") {
        ""
    } else {
        "bind = '127.0.0.1:80'"
    };
    // What comes after the line of another table is not of this one.
    let mut own = listener.lines().take_while(|line| !line.starts_with('['));
    let to = if own.any(|line| line.starts_with("upstream =")) {
        ""
    } else {
        "upstream = 'app'"
    };
    let backends = if upstream.starts_with("backends") {
        ""
    } else {
        "backends = ['10.0.0.9:80']"
    };
    format!("[listeners.web]\n{bind}\n{to}\n{listener}\n[upstreams.app]\n{backends}\n{upstream}\n")
}

/// One line of a table, the word that the finding points at, and a part of what is said.
pub(crate) type Wrong = (&'static str, &'static str, &'static str);

pub(crate) fn says_where_and_what(file: impl Fn(&str) -> String, cases: &[Wrong]) {
    says_of(parse, file, cases);
}

/// The same where `parse` has files to read.
pub(crate) fn says_of(
    parse: impl Fn(&str) -> Result<Config, Diagnostics>,
    file: impl Fn(&str) -> String,
    cases: &[Wrong],
) {
    for (line, word, said) in cases {
        let text = file(line);
        let errors = parse(&text).expect_err(line);
        assert_eq!(errors.list().len(), 1, "{line}\n{errors}");
        let place = errors.list()[0].place.unwrap();
        let at = text.lines().nth(place.line - 1).unwrap();
        let found: String = at
            .chars()
            .skip(place.column - 1)
            .take(place.length)
            .collect();
        assert_eq!(found, *word, "{line}\n{errors}");
        assert!(errors.to_string().contains(said), "{line}\n{errors}");
    }
}
