//! What a key has, with its two spellings: on a line of the difference, and in a file.

use std::fmt::Display;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::written::{self, duration, size, text};
use crate::policy::bucket::Rate;
use crate::policy::share::Share;

/// Two are equal if they mean the same.
#[derive(Clone, Debug)]
pub(in crate::config) enum Value {
    /// One of the words of a key, or what can't be taken for one.
    Word(String),
    /// What somebody has chosen freely.
    Text(String),
    /// What somebody has chosen freely, and may be a line or the beginning of one.
    Bytes(Arc<[u8]>),
    Flag(bool),
    Number(i64),
    Time(Duration),
    Share(Share),
    Size(NonZeroU64),
    /// Of connections or datagrams.
    Rate(Rate),
    /// Of bytes.
    Bandwidth(Rate),
    /// Of a backend, and the host name it had; its certificate may have to be for that.
    Address(String, Option<Arc<str>>),
    /// With a fingerprint of what is in it. Authorities of the system have no path.
    File(Option<String>, String),
    /// A list, sorted, as its order means nothing.
    List(Vec<String>),
    /// A list in an order that means something: each item as it is told, and the whole as it is written.
    Sequence(Vec<String>, toml::Value),
    /// By which a secret is told from another one. A file that is shown does not have it.
    Secret(String),
    /// No value, and how that is told. A file does without the key.
    Absent(&'static str),
    /// A table: what it is about. What is in it has entries of its own.
    Table(String),
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::List(a), Self::List(b)) | (Self::Sequence(a, _), Self::Sequence(b, _)) => a == b,
            (Self::Table(_), Self::Table(_)) => true,
            // Different values have different texts.
            _ => self.shown(None) == other.shown(None),
        }
    }
}

impl Eq for Value {}

impl Value {
    /// A value, or the word that stands for none.
    pub(super) fn or(word: &str, value: Option<impl Into<Self>>) -> Self {
        value.map_or_else(|| word.into(), Into::into)
    }

    /// A value, or no key.
    pub(super) fn some(value: Option<impl Into<Self>>) -> Self {
        value.map_or(Self::Absent("none"), Into::into)
    }

    pub(super) fn text(text: impl AsRef<str>) -> Self {
        Self::Text(text.as_ref().to_owned())
    }

    pub(super) fn path(path: &Path) -> Self {
        Self::text(path.to_string_lossy())
    }

    pub(super) fn number(number: impl TryInto<i64>) -> Self {
        // Counts of the model are far below.
        Self::Number(number.try_into().unwrap_or(i64::MAX))
    }

    /// 0 is none.
    pub(super) fn cap(most: Option<impl TryInto<i64>>) -> Self {
        most.map_or(Self::Number(0), Self::number)
    }

    pub(super) fn list(items: &[impl Display]) -> Self {
        Self::List(sorted(items))
    }

    /// A list in which a second one of the same means nothing.
    pub(super) fn set(items: &[impl Display]) -> Self {
        let mut items = sorted(items);
        items.dedup();
        Self::List(items)
    }

    pub(super) fn sequence(items: &[impl Display]) -> Self {
        let items: Vec<_> = items.iter().map(ToString::to_string).collect();
        Self::Sequence(items.iter().map(text).collect(), items.into())
    }

    /// No key if the list is empty.
    pub(super) fn unless_empty(self) -> Self {
        match self {
            Self::List(items) | Self::Sequence(items, _) if items.is_empty() => Self::Absent("[]"),
            other => other,
        }
    }

    /// As it is told to somebody who is told `other` beside it.
    pub(super) fn shown(&self, other: Option<&Self>) -> String {
        match self {
            Self::Word(word) | Self::Table(word) => word.clone(),
            Self::Absent(word) => (*word).to_owned(),
            Self::Text(chosen) => text(chosen),
            Self::Bytes(bytes) => written::bytes(bytes),
            Self::Flag(flag) => flag.to_string(),
            Self::Number(number) => number.to_string(),
            Self::Time(time) => duration(*time),
            Self::Share(share) => ratio(*share).to_string(),
            Self::Size(bytes) => size(*bytes),
            Self::Rate(rate) => written::rate(*rate, |tokens| tokens.to_string()),
            Self::Bandwidth(rate) => written::rate(*rate, size),
            Self::Address(address, None) => text(address),
            Self::Address(address, Some(host)) => format!("{} of {}", text(address), text(host)),
            Self::File(Some(path), fingerprint) => format!("{} ({fingerprint})", text(path)),
            Self::File(None, fingerprint) => format!("the system's ({fingerprint})"),
            Self::Secret(mark) => format!("secret {mark}"),
            Self::List(items) => match other {
                Some(Self::List(others)) => written::items(items, others),
                _ => written::items(items, &[]),
            },
            Self::Sequence(items, _) => match other {
                Some(Self::Sequence(others, _)) => written::sequence(items, others),
                _ => written::sequence(items, &[]),
            },
        }
    }

    /// As a file has it; `None` of what a file does not have, and of tables.
    pub(in crate::config) fn toml(self) -> Option<toml::Value> {
        Some(match self {
            Self::Word(text) | Self::Text(text) | Self::Address(text, _) => text.into(),
            Self::Bytes(bytes) => (*String::from_utf8_lossy(&bytes)).into(),
            Self::Flag(flag) => flag.into(),
            Self::Number(number) => number.into(),
            Self::Time(time) => duration(time).into(),
            Self::Share(share) => ratio(share).into(),
            Self::Size(bytes) => size(bytes).into(),
            Self::Rate(Rate { per_second, burst })
            | Self::Bandwidth(Rate { per_second, burst }) => {
                let (rate, burst) = (per_second.get(), burst.get());
                table([("rate", Self::number(rate)), ("burst", Self::number(burst))])
            }
            Self::List(items) => items.into(),
            Self::Sequence(_, toml) => toml,
            Self::File(path, _) => path?.into(),
            Self::Secret(_) | Self::Absent(_) | Self::Table(_) => return None,
        })
    }
}

fn sorted(items: &[impl Display]) -> Vec<String> {
    let mut items: Vec<_> = items.iter().map(ToString::to_string).collect();
    items.sort_unstable();
    items
}

/// What a file has of these.
pub(super) fn table<const N: usize>(keys: [(&str, Value); N]) -> toml::Value {
    let written = keys
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value.toml()?)));
    toml::Value::Table(written.collect())
}

fn ratio(share: Share) -> f64 {
    f64::from(share.ppm()) / 1e6
}

impl From<&str> for Value {
    fn from(word: &str) -> Self {
        Self::Word(word.to_owned())
    }
}

impl From<NonZeroUsize> for Value {
    fn from(number: NonZeroUsize) -> Self {
        Self::number(number.get())
    }
}

impl From<bool> for Value {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<Duration> for Value {
    fn from(time: Duration) -> Self {
        Self::Time(time)
    }
}

impl From<Share> for Value {
    fn from(share: Share) -> Self {
        Self::Share(share)
    }
}
