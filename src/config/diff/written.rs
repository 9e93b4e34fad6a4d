//! Values and keys as a file would have them, each on one line. Text is without quotes where it can't be
//! taken for anything else.

use std::num::NonZeroU64;
use std::ops::RangeInclusive;

use crate::policy::bucket::Rate;

pub(super) use crate::config::duration::shown as duration;
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
        .map(text)
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

/// A line of a log should fit a screen or two.
const MOST_SHOWN: usize = 16;

/// `tokens` shows a number of them.
pub(super) fn rate(rate: Rate, tokens: impl Fn(NonZeroU64) -> String) -> String {
    let Rate { per_second, burst } = rate;
    let (per_second, burst) = (tokens(per_second), tokens(burst));
    format!("{{ rate = {per_second}, burst = {burst} }}")
}

/// `404`, or `200-399`.
pub(super) fn statuses(range: &RangeInclusive<u16>) -> String {
    let (first, last) = (range.start(), range.end());
    match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    }
}

/// Always in quotes: it may be a line, or the beginning of one.
pub(super) fn bytes(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => format!("{text:?}"),
        Err(_) => format!("\"{}\"", bytes.escape_ascii()),
    }
}
