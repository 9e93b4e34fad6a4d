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
    let to = if listener.contains("upstream =") {
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
