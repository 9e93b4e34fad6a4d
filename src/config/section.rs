//! Reading one table of the file: which keys it may have, where they stand, and the list of what was
//! found wrong.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::diagnostics::{Fault, nearest};
use super::keys::{TABLES, Table};
use super::value::{Read, not_available_yet, wrong_type};

/// A key with its place.
pub(super) type Key<'a> = Spanned<DeString<'a>>;
/// A value with its place.
pub(super) type Value<'a> = Spanned<DeValue<'a>>;

/// Everything found wrong so far, by byte range.
#[derive(Debug, Default)]
pub(super) struct Findings {
    list: Vec<(Range<usize>, Fault)>,
    /// A syntax error may have hidden a key: what is missing may be there.
    pub(super) keys_hidden: bool,
    /// A syntax error may have hidden a whole table.
    pub(super) tables_hidden: bool,
}

impl Findings {
    pub(super) fn push(&mut self, span: Range<usize>, fault: Fault) {
        self.list.push((span, fault));
    }

    /// A key that should be in the file is not there.
    pub(super) fn push_missing_key(&mut self, span: Range<usize>, fault: Fault) {
        if !self.keys_hidden {
            self.push(span, fault);
        }
    }

    /// A table that should be in the file is not there.
    pub(super) fn push_missing_table(&mut self, span: Range<usize>, fault: Fault) {
        if !self.tables_hidden {
            self.push(span, fault);
        }
    }

    /// How many there are: who compares two counts knows whether something was found in between.
    pub(super) fn count(&self) -> usize {
        self.list.len()
    }

    pub(super) fn into_list(self) -> Vec<(Range<usize>, Fault)> {
        self.list
    }

    /// The value, or a finding at `span`.
    pub(super) fn keep<T>(&mut self, span: Range<usize>, read: Read<T>) -> Option<T> {
        read.map_err(|fault| self.push(span, fault)).ok()
    }
}

/// One table of the file. A table that is not there is an empty one, so that defaults are in one place.
#[derive(Clone, Debug)]
pub(super) struct Section<'a> {
    keys: Table,
    /// Where the table is announced: what it lacks is reported there.
    pub(super) header: Range<usize>,
    table: Option<&'a DeTable<'a>>,
}

impl<'a> Section<'a> {
    /// The file itself.
    pub(super) fn root(table: &'a DeTable<'a>, keys: Table, findings: &mut Findings) -> Self {
        check_keys(table, keys, findings);
        Self {
            keys,
            header: 0..0,
            table: Some(table),
        }
    }

    /// `value` as a table, or an empty one with a finding.
    pub(super) fn open(value: &'a Value<'a>, keys: Table, findings: &mut Findings) -> Self {
        let table = value.get_ref().as_table();
        match table {
            Some(table) => check_keys(table, keys, findings),
            None => findings.push(value.span(), wrong_type(value.get_ref(), "a table")),
        }
        Self {
            keys,
            header: value.span(),
            table,
        }
    }

    /// The table `key` of this one.
    pub(super) fn child(&self, key: &str, keys: Table, findings: &mut Findings) -> Self {
        match self.value(key) {
            Some(value) => Self::open(value, keys, findings),
            None => Self {
                keys,
                header: self.header.clone(),
                table: None,
            },
        }
    }

    /// The table `key` of this one, if it is there: being there is what it says.
    pub(super) fn optional(&self, key: &str, keys: Table, findings: &mut Findings) -> Option<Self> {
        self.value(key)
            .map(|value| Self::open(value, keys, findings))
    }

    /// The tables in `key`, each with its name, in the order of the file.
    pub(super) fn named(
        &self,
        key: &str,
        findings: &mut Findings,
    ) -> Vec<(&'a Key<'a>, &'a Value<'a>)> {
        let Some(value) = self.value(key) else {
            return Vec::new();
        };
        let Some(table) = value.get_ref().as_table() else {
            let fault = wrong_type(
                value.get_ref(),
                &format!("tables with a name: [{key}.NAME]"),
            );
            findings.push(value.span(), fault);
            return Vec::new();
        };
        for (name, _) in table {
            findings.keep(name.span(), check_name(name.get_ref()));
        }
        in_order(table)
    }

    /// The value of `key` where the file has it.
    pub(super) fn value(&self, key: &str) -> Option<&'a Value<'a>> {
        debug_assert!(self.keys.keys.contains(&key), "{key} is missing in keys.rs");
        self.table?.get(key)
    }

    /// Where `key` itself stands, if the file has it.
    pub(super) fn place_of(&self, key: &str) -> Option<Range<usize>> {
        let (key, _) = self.table?.get_key_value(key)?;
        Some(key.span())
    }

    /// The value of `key`, or a finding that it must be there.
    pub(super) fn required(
        &self,
        key: &str,
        expected: &str,
        findings: &mut Findings,
    ) -> Option<&'a Value<'a>> {
        let value = self.value(key);
        // A misspelt key has been reported under its own name, and what is no table at all as such.
        if value.is_none() && self.table.is_some() && !self.is_misspelt(key) {
            let fault = Fault::new(format!("missing key {key:?}")).expected(expected);
            findings.push_missing_key(self.header.clone(), fault);
        }
        value
    }

    fn is_misspelt(&self, key: &str) -> bool {
        self.table.into_iter().flatten().any(|(written, _)| {
            let known = self.keys.keys.contains(&&**written.get_ref());
            !known && nearest(written.get_ref(), self.keys.keys.iter().copied()) == Some(key)
        })
    }

    /// What `read` makes of `key`, or `default`: if it is not there, and if it is wrong, because then
    /// the file is refused anyway.
    pub(super) fn read<T>(
        &self,
        key: &str,
        default: T,
        findings: &mut Findings,
        read: impl FnOnce(&'a DeValue<'a>) -> Read<T>,
    ) -> T {
        self.value(key)
            .and_then(|value| findings.keep(value.span(), read(value.get_ref())))
            .unwrap_or(default)
    }
}

/// The entries of a table by their place; the TOML library sorts them by name.
fn in_order<'a>(table: &'a DeTable<'a>) -> Vec<(&'a Key<'a>, &'a Value<'a>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// A value, or the values of a list that is not empty.
pub(super) fn one_or_many<'a>(
    value: &'a Value<'a>,
    expected: &str,
    findings: &mut Findings,
) -> Vec<&'a Value<'a>> {
    match value.get_ref() {
        DeValue::Array(list) if list.is_empty() => {
            findings.push(
                value.span(),
                Fault::new("the list is empty").expected(expected),
            );
            Vec::new()
        }
        DeValue::Array(list) => list.iter().collect(),
        _ => vec![value],
    }
}

fn check_keys(table: &DeTable<'_>, keys: Table, findings: &mut Findings) {
    for (key, _) in in_order(table) {
        let name = key.get_ref();
        if keys.keys.contains(&&**name) {
            continue;
        }
        let fault = if keys.not_yet.contains(&&**name) {
            not_available_yet(name)
        } else {
            unknown_key(name, keys)
        };
        findings.push(key.span(), fault);
    }
}

fn unknown_key(name: &str, keys: Table) -> Fault {
    let (what, place) = match keys.name {
        "" => ("table", String::new()),
        table => ("key", format!(" in [{table}]")),
    };
    let fault = Fault::new(format!("unknown {what} {name:?}{place}"));
    // A table below this one was probably left out of the path. Else a slip is likelier than a key of
    // quite another table.
    let below = tables_with(name, |table| is_below(table, keys.name));
    if !below.is_empty() {
        return fault.hint(is_a_key_of(name, &below));
    }
    if let Some(meant) = nearest(name, keys.keys.iter().chain(keys.not_yet).copied()) {
        return fault.hint(format!("did you mean {meant:?}?"));
    }
    let elsewhere = tables_with(name, |table| !table.is_empty());
    match elsewhere.as_slice() {
        [] => fault,
        tables => fault.hint(is_a_key_of(name, tables)),
    }
}

fn tables_with(key: &str, wanted: impl Fn(&str) -> bool) -> Vec<&'static str> {
    TABLES
        .iter()
        .filter(|table| table.keys.contains(&key) && wanted(table.name))
        .map(|table| table.name)
        .collect()
}

fn is_below(table: &str, other: &str) -> bool {
    let rest = table.strip_prefix(other);
    !other.is_empty() && rest.is_some_and(|rest| rest.starts_with('.'))
}

/// `"weight" is a key of [a] and [b]`
fn is_a_key_of(key: &str, tables: &[&str]) -> String {
    let tables: Vec<_> = tables.iter().map(|table| format!("[{table}]")).collect();
    format!("{key:?} is a key of {}", tables.join(" and "))
}

/// Names appear in logs and as labels of metrics: they need no quoting anywhere.
pub(super) fn check_name(name: &str) -> Read<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    if (1..=64).contains(&name.len()) && name.chars().all(plain) {
        return Ok(());
    }
    Err(Fault::new(format!("{name:?} is not a name"))
        .expected("1 to 64 characters out of A-Z a-z 0-9 _ . -"))
}
