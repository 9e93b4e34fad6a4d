//! Values and keys as a file would have them, each on one line. Text is without quotes where it can't be
//! taken for anything else.

use std::num::NonZeroU64;

use crate::config::{AccessLog, ControlSocket, Exchange, LogFormat, Probe, Route};
use crate::policy::bucket::Rate;
use crate::policy::health::Start;
use crate::policy::share::Share;

pub(in crate::config) use crate::config::duration::shown as duration;
pub(super) use crate::config::value::shown_size as size;

/// A key from its parts: `upstreams.app.backends."10.0.0.1:80"`.
pub(super) fn key(path: &[String]) -> String {
    let bare = |part: &str| {
        let plain = |c: u8| c.is_ascii_alphanumeric() || c == b'_' || c == b'-';
        !part.is_empty() && part.bytes().all(plain)
    };
    let parts: Vec<_> = path
        .iter()
        .map(|part| match bare(part) {
            true => part.clone(),
            false => format!("{part:?}"),
        })
        .collect();
    parts.join(".")
}

/// What somebody has chosen freely: an address, a path, a name.
pub(super) fn text(text: impl AsRef<str>) -> String {
    let text = text.as_ref();
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"_-.:/[]".contains(&c);
    let words = ["", "none", "auto", "off"];
    match text.bytes().all(plain) && !words.contains(&text) {
        true => text.to_owned(),
        false => format!("{text:?}"),
    }
}

/// The value, or the word that stands for none.
pub(super) fn or(word: &str, value: &Option<impl ToString>) -> String {
    match value {
        Some(value) => value.to_string(),
        None => word.to_owned(),
    }
}

/// Sorted.
pub(super) fn list(items: &[impl ToString]) -> Vec<String> {
    let mut list: Vec<_> = items.iter().map(|item| text(item.to_string())).collect();
    list.sort_unstable();
    list
}

/// Sorted, each once.
pub(super) fn set(items: &[impl ToString]) -> Vec<String> {
    let mut list = list(items);
    list.dedup();
    list
}

/// A sorted list. If it or the other one is long, it is only what the other one lacks, and not all of
/// that.
pub(super) fn items(list: &[String], other: &[String]) -> String {
    let long = list.len().max(other.len()) > MOST_SHOWN;
    let mut others = other.iter().peekable();
    let mut lacks = |item: &String| {
        while others.next_if(|it| *it < item).is_some() {}
        others.next_if_eq(&item).is_none()
    };
    let shown: Vec<_> = list
        .iter()
        .filter(|item| !long || lacks(item))
        .take(MOST_SHOWN)
        .map(String::as_str)
        .collect();
    match list.len() - shown.len() {
        0 => format!("[{}]", shown.join(", ")),
        more if shown.is_empty() => format!("[... {more} more]"),
        more => format!("[{}, ... {more} more]", shown.join(", ")),
    }
}

/// A list in its order. If it or the other one is long, it is only what follows their common beginning, and
/// not all of that.
pub(super) fn sequence(list: &[String], other: &[String]) -> String {
    let long = list.len().max(other.len()) > MOST_SHOWN;
    let same = list.iter().zip(other).take_while(|(a, b)| a == b).count();
    let skipped = if long { same } else { 0 };
    let shown = &list[skipped..list.len().min(skipped + MOST_SHOWN)];
    let rest = list.len() - skipped - shown.len();
    let more = |count: usize| (count > 0).then(|| format!("... {count} more"));
    let parts: Vec<_> = more(skipped)
        .into_iter()
        .chain(shown.iter().cloned())
        .chain(more(rest))
        .collect();
    format!("[{}]", parts.join(", "))
}

/// Name by name, as which of them share a table means nothing.
pub(super) fn routes<'a>(routes: &[Route], name_of: &dyn Fn(usize) -> &'a str) -> Vec<String> {
    let pairs = routes.iter().flat_map(|route| {
        let Route { sni, upstream } = route;
        let to = text(name_of(*upstream));
        sni.iter().map(move |name| format!("{name} to {to}"))
    });
    pairs.collect()
}

/// A line of a log should fit a screen or two.
const MOST_SHOWN: usize = 16;

pub(super) fn share(share: Share) -> String {
    (f64::from(share.ppm()) / 1e6).to_string()
}

/// `tokens` shows a number of them.
pub(super) fn rate(rate: Rate, tokens: impl Fn(NonZeroU64) -> String) -> String {
    let Rate { per_second, burst } = rate;
    let (per_second, burst) = (tokens(per_second), tokens(burst));
    format!("{{ rate = {per_second}, burst = {burst} }}")
}

pub(super) fn control_socket(socket: &ControlSocket) -> String {
    match socket {
        ControlSocket::Auto => "auto".to_owned(),
        ControlSocket::Off => "off".to_owned(),
        ControlSocket::Path(path) => text(path.to_string_lossy()),
    }
}

pub(super) fn access_log(log: &AccessLog) -> String {
    match log {
        AccessLog::Off => "off".to_owned(),
        AccessLog::Stdout => "stdout".to_owned(),
        AccessLog::File(path) => text(path.to_string_lossy()),
    }
}

pub(in crate::config) fn format(format: LogFormat) -> &'static str {
    match format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    }
}

pub(in crate::config) fn start(start: Start) -> &'static str {
    match start {
        Start::Up => "up",
        Start::Down => "down",
        Start::Checked => "checked",
    }
}

/// All keys that a probe may have; those that its type does not have are `None` and empty.
#[derive(Default)]
pub(super) struct ProbeKeys {
    pub(super) kind: &'static str,
    pub(super) path: Option<String>,
    pub(super) host: Option<String>,
    pub(super) expect_status: Vec<String>,
    pub(super) send: Option<String>,
    pub(super) expect: Option<String>,
}

pub(super) fn probe(probe: &Probe) -> ProbeKeys {
    let exchange = |kind, exchange: &Exchange| {
        let Exchange { send, expect } = exchange;
        ProbeKeys {
            kind,
            send: send.as_deref().map(bytes),
            expect: expect.as_deref().map(bytes),
            ..ProbeKeys::default()
        }
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
            let ranges = expect_status.iter().map(|range| {
                let (first, last) = (range.start(), range.end());
                match first == last {
                    true => first.to_string(),
                    false => format!("{first}-{last}"),
                }
            });
            ProbeKeys {
                kind: "http",
                path: Some(text(path)),
                host: host.as_deref().map(text),
                expect_status: set(&ranges.collect::<Vec<_>>()),
                ..ProbeKeys::default()
            }
        }
    }
}

/// Always in quotes: it may be a line, or the beginning of one.
fn bytes(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => format!("{text:?}"),
        Err(_) => format!("\"{}\"", bytes.escape_ascii()),
    }
}
