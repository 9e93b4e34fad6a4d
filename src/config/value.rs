//! Single values: sizes, counts, words. Each function takes a value as it stands in the file
//! and gives what it means or what is wrong with it; the place is added by the caller.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::ops::RangeInclusive;

use toml::de::DeValue;

use super::diagnostics::Fault;
use super::keys::Words;

/// What a value is taken for: the meaning, or the fault.
pub(super) type Read<T> = Result<T, Fault>;

/// A string.
pub(super) fn string<'a>(value: &'a DeValue<'_>) -> Read<&'a str> {
    match value {
        DeValue::String(text) => Ok(text),
        other => Err(wrong_type(other, "a string")),
    }
}

/// `true` or `false`.
pub(super) fn boolean(value: &DeValue<'_>) -> Read<bool> {
    let expected = "true or false";
    match value {
        DeValue::Boolean(flag) => Ok(*flag),
        DeValue::String(text) if ["true", "false"].contains(&&**text) => {
            Err(wrong_type(value, expected).hint("write it without quotes"))
        }
        other => Err(wrong_type(other, expected)),
    }
}

/// A whole number in `range`.
pub(super) fn count(value: &DeValue<'_>, range: RangeInclusive<u64>) -> Read<u64> {
    let expected = format!("a whole number from {} to {}", range.start(), range.end());
    let DeValue::Integer(integer) = value else {
        let fault = wrong_type(value, &expected);
        return Err(match value {
            DeValue::String(text) if text.parse::<u64>().is_ok() => {
                fault.hint("write it without quotes")
            }
            _ => fault,
        });
    };
    u64::from_str_radix(integer.as_str(), integer.radix())
        .ok()
        .filter(|number| range.contains(number))
        .ok_or_else(|| Fault::new(format!("{integer} is out of range")).expected(expected))
}

/// A whole number from 1 to `most`.
pub(super) fn at_least_one(value: &DeValue<'_>, most: u32) -> Read<NonZeroU32> {
    count(value, 1..=u64::from(most))
        .map(|number| NonZeroU32::new(number as u32).unwrap_or(NonZeroU32::MIN))
}

/// `"auto"` is `None`; else a number from 1 to `most`.
pub(super) fn auto_or_count(value: &DeValue<'_>, most: u64) -> Read<Option<NonZeroUsize>> {
    if let DeValue::String(text) = value {
        return auto(text, &format!("a whole number from 1 to {most}"));
    }
    count(value, 1..=most).map(|number| NonZeroUsize::new(number as usize))
}

/// A cap of connections; 0 = none of its own.
pub(super) fn cap(value: &DeValue<'_>) -> Read<Option<NonZeroUsize>> {
    count(value, 0..=MOST_CONNECTIONS).map(|number| NonZeroUsize::new(number as usize))
}

/// More than a machine's descriptors will ever be.
pub(super) const MOST_CONNECTIONS: u64 = u32::MAX as u64;

/// `"auto"` is `None`; else a size of at least `least` bytes.
pub(super) fn auto_or_size(value: &DeValue<'_>, least: u64) -> Read<Option<NonZeroU64>> {
    if let DeValue::String(text) = value
        && !text.starts_with(|c: char| c.is_ascii_digit())
    {
        return auto(text, "a size like \"64MiB\"");
    }
    let bytes = size(value)?;
    if bytes < least {
        return Err(Fault::new(format!("{bytes} bytes are too few"))
            .expected(format!("at least {}KiB", least / 1024)));
    }
    Ok(NonZeroU64::new(bytes))
}

fn auto<T>(text: &str, or: &str) -> Read<Option<T>> {
    if text == "auto" {
        return Ok(None);
    }
    let fault = Fault::new(format!("{text:?} is not a value of this key"))
        .expected(format!("\"auto\" or {or}"));
    Err(if text.parse::<u64>().is_ok() {
        fault.hint("write it without quotes")
    } else {
        fault.suggest(text, ["auto"])
    })
}

/// A size with a unit, or a plain number of bytes.
pub(super) fn size(value: &DeValue<'_>) -> Read<u64> {
    let text = match value {
        DeValue::String(text) => text.trim(),
        DeValue::Integer(_) => return count(value, 0..=i64::MAX as u64),
        other => return Err(wrong_type(other, SIZE_FORM)),
    };
    let malformed = || Fault::new(format!("{text:?} is not a size")).expected(SIZE_FORM);
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(malformed());
    }
    let Some((_, factor)) = SIZE_UNITS.iter().find(|(name, _)| *name == unit.trim()) else {
        let meant = SIZE_UNITS
            .iter()
            .find(|(name, _)| !unit.trim().is_empty() && same_unit(name, unit.trim()));
        return Err(match meant {
            Some((name, _)) => malformed().hint(format!("did you mean \"{number}{name}\"?")),
            None => malformed(),
        });
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(*factor))
        .filter(|bytes| *bytes <= i64::MAX as u64)
        .ok_or_else(|| Fault::new(format!("{text:?} is too much")).expected("less than 8 EiB"))
}

/// As it would be written, in the largest unit that it is a whole number of.
pub(super) fn shown_size(bytes: NonZeroU64) -> String {
    let bytes = bytes.get();
    let whole = SIZE_UNITS
        .iter()
        .filter(|(_, factor)| bytes.is_multiple_of(*factor));
    match whole.max_by_key(|(_, factor)| *factor) {
        Some((unit, factor)) => format!("{}{unit}", bytes / factor),
        None => bytes.to_string(),
    }
}

/// "64k", "64kib" and "64KB" written for "64KiB".
fn same_unit(name: &str, written: &str) -> bool {
    name.eq_ignore_ascii_case(written)
        || (written.len() == 1 && name.len() == 3 && name[..1].eq_ignore_ascii_case(written))
}

const SIZE_FORM: &str = "a size like \"64KiB\", \"10MiB\" or \"1GiB\", or a number of bytes";

const SIZE_UNITS: &[(&str, u64)] = &[
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// One of a set of words; `meanings` stand in the order of `words.words`.
pub(super) fn word<T: Copy>(value: &DeValue<'_>, words: &Words, meanings: &[T]) -> Read<T> {
    debug_assert_eq!(words.words.len(), meanings.len(), "{}", words.name);
    let expected = quoted_list(words.words);
    let DeValue::String(text) = value else {
        return Err(wrong_type(value, &expected));
    };
    if let Some(index) = words.words.iter().position(|word| word == text) {
        return Ok(meanings[index]);
    }
    if words.not_yet.contains(&&**text) {
        return Err(not_available_yet(text).expected(expected));
    }
    let known = words.words.iter().chain(words.not_yet);
    Err(Fault::new(format!("unknown value {text:?}"))
        .expected(expected)
        .suggest(text, known.copied()))
}

/// Permission bits in octal digits.
pub(super) fn mode(value: &DeValue<'_>) -> Read<u32> {
    let expected = "permission bits in octal as a string, like \"0660\"";
    let text = string(value).map_err(|_| wrong_type(value, expected))?;
    let octal = (3..=4).contains(&text.len()) && text.bytes().all(|c| (b'0'..=b'7').contains(&c));
    match u32::from_str_radix(text, 8) {
        Ok(mode) if octal && mode <= 0o777 => Ok(mode),
        _ => Err(Fault::new(format!("{text:?} is not a file mode")).expected(expected)),
    }
}

/// The fault of every key and word that a later version will know.
pub(super) fn not_available_yet(name: &str) -> Fault {
    Fault::new(format!("{name:?} is not available yet in this version"))
}

/// The fault of a value that is of another type than `expected`.
pub(super) fn wrong_type(value: &DeValue<'_>, expected: &str) -> Fault {
    let (article, name) = match value {
        DeValue::Integer(_) | DeValue::Array(_) => ("an", value.type_str()),
        _ => ("a", value.type_str()),
    };
    Fault::new(format!("wrong type: {article} {name}")).expected(expected)
}

/// `"a", "b" or "c"`
pub(super) fn quoted_list(words: &[&str]) -> String {
    let quoted: Vec<_> = words.iter().map(|word| format!("{word:?}")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}
