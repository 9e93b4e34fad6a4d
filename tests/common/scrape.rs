//! What `/metrics` says, as numbers.

use std::collections::BTreeMap;

use super::Proxy;
use super::http::get;

/// Samples by name and labels, as written: `name{label="value"}`.
pub(crate) struct Scrape {
    pub(crate) text: String,
    samples: BTreeMap<String, f64>,
}

impl Scrape {
    /// Of the moment.
    pub(crate) fn of(proxy: &Proxy) -> Self {
        let answer = get(&proxy.admin(), "/metrics");
        assert_eq!(answer.status, 200, "{answer:?}");
        let lines = answer.body.lines().filter(|line| !line.starts_with('#'));
        let samples = lines.map(|line| {
            let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
            (series.to_owned(), value.parse().expect("a number"))
        });
        Self {
            samples: samples.collect(),
            text: answer.body,
        }
    }

    /// The sample, or 0 if it does not exist.
    pub(crate) fn value(&self, series: &str) -> f64 {
        self.samples.get(series).copied().unwrap_or_default()
    }

    /// The same, of a series that has to be there.
    pub(crate) fn present(&self, series: &str) -> u64 {
        let found = self.samples.get(series);
        *found.unwrap_or_else(|| panic!("{series} is not there")) as u64
    }

    /// The same of a counter.
    pub(crate) fn count(&self, series: &str) -> u64 {
        self.value(series) as u64
    }

    /// All that begin like this and are not 0, by what follows.
    pub(crate) fn beginning(&self, series: &str) -> BTreeMap<String, u64> {
        let found = self.samples.iter().filter(|(_, value)| **value > 0.0);
        let found = found.filter_map(|(name, value)| {
            let rest = name.strip_prefix(series)?;
            Some((rest.to_owned(), *value as u64))
        });
        found.collect()
    }
}
