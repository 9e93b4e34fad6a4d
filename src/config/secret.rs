//! The text of a file without its token, for the lines of it that a finding quotes.
//!
//! A file of which lines are quoted is wrong, so that the table the library makes of it may lack a token
//! that stands in the text, or have another one. It is looked for in the text as well, and rather too much
//! is hidden than too little.

use std::iter;
use std::ops::Range;

use toml::de::DeTable;

use super::diagnostics::nearest;
use super::keys;
use super::section::Value;

/// The text with stars in the place of every token, of the same length: places are counted in bytes and lines.
pub(super) fn without_token(text: &str, table: &DeTable<'_>) -> String {
    let mut hidden = vec![false; text.len()];
    let mut hide = |range: Range<usize>| {
        if let Some(bytes) = hidden.get_mut(range) {
            bytes.fill(true);
        }
    };
    value_in(table).into_iter().for_each(&mut hide);
    values_after_words(text).for_each(&mut hide);
    strange_lines(text).for_each(&mut hide);
    let shown = |(at, c): (usize, char)| match hidden[at] && !"\r\n\"'".contains(c) {
        true => iter::repeat_n('*', c.len_utf8()),
        false => iter::repeat_n(c, 1),
    };
    text.char_indices().flat_map(shown).collect()
}

/// Where the library found it: nothing else knows a key that is written with escapes.
fn value_in(table: &DeTable<'_>) -> Option<Range<usize>> {
    let admin = table.get("admin")?.get_ref().as_table()?;
    admin.get("token").map(Value::span)
}

/// What follows each word that may be meant for the key.
fn values_after_words(text: &str) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    iter::from_fn(move || {
        loop {
            let word = next_word(text, at)?;
            at = word.end;
            if is_meant(&text[word.clone()]) && may_be_key(text, &word) {
                let value = value_of(text, &word);
                at = value.end;
                return Some(value);
            }
        }
    })
}

/// The first word at or after `at`, which is between two words.
fn next_word(text: &str, at: usize) -> Option<Range<usize>> {
    let start = at + text[at..].find(in_word)?;
    let length = text[start..].find(|c| !in_word(c));
    Some(start..length.map_or(text.len(), |length| start + length))
}

fn in_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '-'
}

fn is_meant(word: &str) -> bool {
    word.to_ascii_lowercase().contains(KEY) || is_of(word, &[KEY])
}

const KEY: &str = "token";

/// It is neither a value, nor the beginning of one, nor a part of a header.
fn may_be_key(text: &str, word: &Range<usize>) -> bool {
    let (before, after) = (&text[..word.start], &text[word.end..]);
    let quoted = before.ends_with(QUOTES);
    let line = before.rsplit('\n').next().unwrap_or_default();
    if line.trim_start().starts_with('[') && after.starts_with(['.', ']']) {
        return false;
    }
    let value_begins = line.trim_end_matches(BLANKS_AND_QUOTES).ends_with('=');
    !value_begins && (!quoted || after.starts_with(QUOTES))
}

const QUOTES: [char; 2] = ['"', '\''];
const BLANKS_AND_QUOTES: [char; 4] = ['"', '\'', ' ', '\t'];

/// To the end of the line, unless the value goes on, or is followed by another one in a table on this line.
fn value_of(text: &str, key: &Range<usize>) -> Range<usize> {
    let mut end = end_of_line(text, key.end);
    let rest = &text[key.end..end];
    let value = match rest.trim_start_matches(BLANKS_AND_QUOTES) {
        value if value.starts_with(['=', ':']) => value[1..].trim_start(),
        _ => rest.trim_start(),
    };
    let mut start = end - value.len();
    let below = text[end..].trim_start();
    if value.is_empty() {
        let at = text.len() - below.len();
        let line = &text[at..end_of_line(text, at)];
        if below.starts_with(QUOTES) || !(below.starts_with('[') || line.contains('=')) {
            (start, end) = (at, at + line.len());
        }
    }
    let value = &text[start..end];
    for quotes in ["\"\"\"", "'''"] {
        if value.starts_with(quotes) {
            let inside = start + quotes.len();
            let closed = text[inside..].find(quotes);
            let last = closed.map_or(text.len(), |length| inside + length);
            return start..end_of_line(text, last);
        }
    }
    let before = text[..key.start].rsplit('\n').next();
    match before.is_some_and(|before| before.contains('{')) {
        true => start..end - after_string(value).map_or(0, str::len),
        false => start..end,
    }
}

/// What follows the string that a value in a table on one line is; `None` if it is none, or badly closed.
fn after_string(value: &str) -> Option<&str> {
    let quote = value.chars().next().filter(|c| QUOTES.contains(c))?;
    let (string, after) = value[1..].split_once(quote)?;
    let is_closed = !string.contains('\\') && after.trim_start().starts_with([',', '}']);
    is_closed.then_some(after)
}

fn end_of_line(text: &str, at: usize) -> usize {
    text[at..]
        .find('\n')
        .map_or(text.len(), |length| at + length)
}

/// Of the lines of `[admin]` those that don't begin with another of its keys: what is there may be the token
/// without its key, or go on from the line before. Of a line that opens the table it is what follows.
fn strange_lines(text: &str) -> impl Iterator<Item = Range<usize>> {
    let (mut inside, mut end) = (false, 0);
    let lines = text.split_inclusive('\n').map(move |line| {
        end += line.len();
        (end - line.len()..end, line)
    });
    let strange = move |(range, line): (Range<usize>, &str)| {
        let first = next_word(line, 0).unwrap_or_default();
        let opens = is_of(&line[first.clone()], &["admin"]);
        if line.trim_start().starts_with('[') {
            inside = opens || is_meant(&line[first]);
            let header = line.find(']')?;
            return inside.then_some(range.start + header + 1..range.end);
        }
        if opens {
            inside = line.contains('{') && !line.contains('}');
            let next = next_word(line, first.end).unwrap_or_default();
            let is_key = is_of(&line[next], keys::ADMIN.keys);
            return (!is_key).then_some(range.start + first.end..range.end);
        }
        inside &= !line.trim_start().starts_with('}');
        (inside && !is_of(&line[first], keys::ADMIN.keys)).then_some(range)
    };
    lines.filter_map(strange)
}

/// Or a slip for one of them.
fn is_of(word: &str, keys: &[&'static str]) -> bool {
    nearest(word, keys.iter().copied()).is_some()
}
