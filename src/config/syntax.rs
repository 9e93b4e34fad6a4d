//! Syntax errors: all of them, without losing the part of the file that follows one.

use std::ops::Range;

use toml::de::{DeTable, Error};

use super::diagnostics::Fault;
use super::section::Findings;

/// The syntax errors of a text, and the text as far as it can be read: nothing in it has moved, so that
/// byte ranges of one hold for the other.
///
/// The TOML library ends where a key has no value. That line is blanked and the text read again, so that
/// the rest of the file is checked too. Reads the text once per such line.
pub(super) fn check(text: &str) -> (String, Findings) {
    let mut findings = Findings::default();
    let mut readable = text.to_owned();
    for reread in 0.. {
        let (_, errors) = DeTable::parse_recoverable(&readable);
        let end = errors
            .iter()
            .filter(|error| error.message().starts_with(END_OF_READING))
            .find_map(|error| error.span())
            .map(|span| line_around(&readable, span.start))
            .filter(|line| reread < MOST_REREADS && !readable[line.clone()].trim().is_empty());
        let Some(line) = end else {
            let end = push_all(text, &errors, &mut findings);
            readable.truncate(text.floor_char_boundary(end));
            break;
        };
        let key = trimmed(text, line.clone());
        findings.tables_hidden |= text[key.clone()].starts_with('[');
        findings.keys_hidden = true;
        let fault = Fault::new("no value for this key").expected("KEY = VALUE");
        findings.push(key, fault);
        readable.replace_range(line.clone(), &" ".repeat(line.len()));
    }
    (readable, findings)
}

/// Of one slip the library often says several things: one finding a line, the first being the cause.
/// Returns where what can be read ends.
fn push_all(text: &str, errors: &[Error], findings: &mut Findings) -> usize {
    let mut errors: Vec<_> = errors
        .iter()
        .map(|error| (error.span().unwrap_or_default(), error.message()))
        .collect();
    errors.sort_by_key(|(span, _)| span.start);
    let end = push_unclosed_array(&mut errors, findings);
    errors.dedup_by_key(|(span, _)| line_around(text, span.start).start);
    for (span, message) in errors {
        push(text, span, message, findings);
    }
    end.unwrap_or(text.len())
}

/// An array that is not closed swallows the rest of the file, with several errors for each of its lines.
/// They become one, at the first thing that is no element; that is where what can be read ends.
fn push_unclosed_array(
    errors: &mut Vec<(Range<usize>, &str)>,
    findings: &mut Findings,
) -> Option<usize> {
    let unclosed = errors
        .iter()
        .any(|(_, message)| message.starts_with("unclosed array"));
    let first = errors
        .iter()
        .position(|(_, message)| message.starts_with("missing comma between array elements"));
    let at = errors[first.filter(|_| unclosed)?].0.start;
    errors.retain(|(span, _)| span.start < at);
    findings.keys_hidden = true;
    findings.tables_hidden = true;
    let fault = Fault::new("the array before this is not closed")
        .expected("`]` at its end, or `,` between its elements");
    findings.push(at..at, fault);
    Some(at)
}

/// How the message begins; a test notices when the library words it otherwise.
const END_OF_READING: &str = "key with no value";
/// Bounds the time for a file that is no TOML at all.
const MOST_REREADS: usize = 32;

/// Without the findings in lines that have a syntax error: what is said of half a value is no help.
/// The first `syntax_errors` findings are those of [`check`].
pub(super) fn without_echoes(
    text: &str,
    findings: Findings,
    syntax_errors: usize,
) -> Vec<(Range<usize>, Fault)> {
    let mut list = findings.into_list();
    let broken: Vec<_> = list[..syntax_errors]
        .iter()
        .map(|(span, _)| line_around(text, span.start))
        .collect();
    let mut index = 0;
    list.retain(|(span, _)| {
        index += 1;
        index <= syntax_errors || !broken.contains(&line_around(text, span.start))
    });
    list
}

/// The library's message has what was expected at its end.
fn push(text: &str, span: Range<usize>, message: &str, findings: &mut Findings) {
    if message == DUPLICATE {
        let key = text.get(span.clone()).unwrap_or("");
        let fault =
            Fault::new(format!("duplicate key {key:?}")).expected("every key once in a table");
        return findings.push(span, fault);
    }
    findings.keys_hidden = true;
    findings.tables_hidden = true;
    let fault = match message.split_once(", expected ") {
        Some((message, expected)) => Fault::new(message).expected(expected),
        None => Fault::new(message),
    };
    findings.push(span, fault);
}

const DUPLICATE: &str = "duplicate key";

/// The line that `at` is in, without its end.
fn line_around(text: &str, at: usize) -> Range<usize> {
    let at = text.floor_char_boundary(at.min(text.len()));
    let begin = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
    let end = text[at..]
        .find('\n')
        .map_or(text.len(), |length| at + length);
    begin..end
}

fn trimmed(text: &str, range: Range<usize>) -> Range<usize> {
    let line = &text[range.clone()];
    let begin = range.start + line.len() - line.trim_start().len();
    begin..begin + line.trim().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_without_a_value_does_not_hide_the_rest() {
        let text = "a = 1\n  b c\nd\ne = 2\n";
        let (readable, findings) = check(text);
        assert_eq!(readable, "a = 1\n     \n \ne = 2\n");
        let spans: Vec<_> = findings
            .into_list()
            .into_iter()
            .map(|(span, _)| span)
            .collect();
        assert_eq!(spans, [8..11, 12..13]);
    }

    #[test]
    fn an_array_that_is_not_closed_is_one_finding() {
        let (_, findings) = check("a = [\"x\", 1\nb = \"y\"\n[c]\nd = 4\n");
        assert!(findings.keys_hidden && findings.tables_hidden);
        let list = findings.into_list();
        assert_eq!(list.len(), 1, "{list:?}");
        assert_eq!(list[0].0, 12..12);
    }

    #[test]
    fn a_duplicate_key_hides_nothing() {
        let (_, findings) = check("a = 1\na = 2\n");
        assert!(!findings.keys_hidden);
        assert_eq!(findings.count(), 1);
    }

    #[test]
    fn a_file_that_is_no_toml_ends() {
        let (readable, findings) = check(&"no toml\n".repeat(100));
        assert!(readable.contains("no toml"));
        assert!(findings.count() > MOST_REREADS);
    }
}
