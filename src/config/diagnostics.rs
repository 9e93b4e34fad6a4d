//! What is wrong with a configuration file, where, and what would be right: as text for people and as
//! JSON for editors and pipelines. Knows nothing of keys; it only places and prints findings.

use std::fmt;
use std::ops::Range;

use serde::Serialize;

/// Every finding of one file, in the order of their places.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Diagnostics {
    file: String,
    #[serde(skip)]
    source: String,
    #[serde(rename = "errors")]
    list: Vec<Diagnostic>,
}

/// One finding.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Diagnostic {
    /// Where it is; `None` when it concerns the file as a whole, which could not be read.
    #[serde(flatten)]
    pub place: Option<Place>,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub expected: Option<String>,
    /// What to do, often the word that was probably meant.
    pub hint: Option<String>,
}

/// A part of one line. All three count characters, a tab being one of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct Place {
    /// Starts at 1.
    pub line: usize,
    /// Starts at 1.
    pub column: usize,
    /// At least 1; a finding over several lines ends with the first of them.
    pub length: usize,
}

impl Diagnostics {
    /// The findings, at least one.
    pub fn list(&self) -> &[Diagnostic] {
        &self.list
    }

    /// The file's name as it was given.
    pub fn file(&self) -> &str {
        &self.file
    }

    /// `fault` concerns the file as a whole.
    pub(super) fn unreadable(file: String, fault: Fault) -> Self {
        Self {
            file,
            source: String::new(),
            list: vec![fault.at(None)],
        }
    }

    /// Places every fault by its byte range in `source`.
    pub(super) fn locate(file: String, source: String, faults: Vec<(Range<usize>, Fault)>) -> Self {
        debug_assert!(!faults.is_empty(), "a refused file has a finding");
        let lines = Lines::new(&source);
        let mut list: Vec<_> = faults
            .into_iter()
            .map(|(span, fault)| fault.at(Some(lines.place(span))))
            .collect();
        // Stable: findings of one place stay in the order in which they were made.
        list.sort_by_key(|diagnostic| diagnostic.place.map(|place| (place.line, place.column)));
        list.dedup();
        Self { file, source, list }
    }

    /// The line with carets under the place; of a very long line, the part around it.
    fn write_excerpt(f: &mut fmt::Formatter<'_>, line: &str, place: Place) -> fmt::Result {
        let before = place.column - 1;
        let skipped = if line.chars().count() > WIDEST_EXCERPT {
            before.saturating_sub(WIDEST_EXCERPT / 2)
        } else {
            0
        };
        let excerpt = || line.chars().skip(skipped).take(WIDEST_EXCERPT);
        let shown: String = excerpt().map(visible).collect();
        // Tabs stay tabs under tabs, so that the carets stand right whatever their width.
        let indent: String = excerpt()
            .take(before - skipped)
            .map(|c| if c == '\t' { '\t' } else { ' ' })
            .collect();
        let carets = "^".repeat(place.length.min(WIDEST_EXCERPT));
        let number = place.line.to_string();
        let gutter = " ".repeat(number.len());
        writeln!(f, " {number} | {shown}")?;
        writeln!(f, " {gutter} | {indent}{carets}")
    }
}

/// In characters; longer lines are shown in part.
const WIDEST_EXCERPT: usize = 240;

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = Lines::new(&self.source);
        for (index, diagnostic) in self.list.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{}", self.file)?;
            if let Some(place) = diagnostic.place {
                write!(f, ":{}:{}", place.line, place.column)?;
            }
            writeln!(f, ": error: {}", diagnostic.message)?;
            if let Some(place) = diagnostic.place {
                Self::write_excerpt(f, lines.text(place.line), place)?;
            }
            if let Some(expected) = &diagnostic.expected {
                writeln!(f, "expected: {expected}")?;
            }
            if let Some(hint) = &diagnostic.hint {
                writeln!(f, "help: {hint}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

/// A finding that does not know its place yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Fault {
    message: String,
    expected: Option<String>,
    hint: Option<String>,
}

impl Fault {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            expected: None,
            hint: None,
        }
    }

    pub(super) fn expected(self, expected: impl Into<String>) -> Self {
        Self {
            expected: Some(expected.into()),
            ..self
        }
    }

    pub(super) fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// Adds the candidate that `word` probably meant, if there is one.
    pub(super) fn suggest<'a>(
        self,
        word: &str,
        candidates: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        match nearest(word, candidates) {
            Some(meant) => self.hint(format!("did you mean {meant:?}?")),
            None => self,
        }
    }

    fn at(self, place: Option<Place>) -> Diagnostic {
        Diagnostic {
            place,
            message: self.message,
            expected: self.expected,
            hint: self.hint,
        }
    }
}

/// The candidate that differs from `word` by the fewest slips, if they are few for its length.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    // The distance is quadratic in the length, and no key is half as long.
    if word.len() > LONGEST_SUGGESTED {
        return None;
    }
    let word = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| {
            let distance = strsim::damerau_levenshtein(&word, &candidate.to_lowercase());
            (distance, candidate)
        })
        .filter(|(distance, candidate)| *distance <= (candidate.chars().count() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

const LONGEST_SUGGESTED: usize = 64;

/// Where the lines of a source begin.
struct Lines<'a> {
    source: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn new(source: &'a str) -> Self {
        let after_newlines = source.match_indices('\n').map(|(at, _)| at + 1);
        Self {
            source,
            starts: std::iter::once(0).chain(after_newlines).collect(),
        }
    }

    /// The line of that number without its end.
    fn text(&self, line: usize) -> &'a str {
        let rest = self
            .starts
            .get(line - 1)
            .map_or("", |begin| &self.source[*begin..]);
        let text = rest.split('\n').next().unwrap_or("");
        text.strip_suffix('\r').unwrap_or(text)
    }

    fn place(&self, span: Range<usize>) -> Place {
        // What is found at the end of the file belongs to its last line, not to the empty one after it.
        let last = self.source.strip_suffix('\n').unwrap_or(self.source).len();
        let start = self.source.floor_char_boundary(span.start.min(last));
        let line = self.starts.partition_point(|begin| *begin <= start);
        let begin = self.starts[line - 1];
        let rest = &self.source[start..];
        let end_of_line = start + rest.find(['\n', '\r']).unwrap_or(rest.len());
        let end = self.source.floor_char_boundary(span.end.min(end_of_line));
        let length = self
            .source
            .get(start..end)
            .map_or(0, |it| it.chars().count());
        Place {
            line,
            column: self.source[begin..start].chars().count() + 1,
            length: length.max(1),
        }
    }
}

/// Control characters of a file must not reach the terminal.
fn visible(c: char) -> char {
    if c.is_control() && c != '\t' {
        char::REPLACEMENT_CHARACTER
    } else {
        c
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(source: &str, span: Range<usize>) -> (usize, usize, usize) {
        let Place {
            line,
            column,
            length,
        } = Lines::new(source).place(span);
        (line, column, length)
    }

    #[test]
    fn columns_count_characters() {
        assert_eq!(place("a\nüx = 1\n", 2..5), (2, 1, 2));
        assert_eq!(place("a\nüx = 1\n", 4..5), (2, 2, 1));
    }

    #[test]
    fn the_end_of_the_file_belongs_to_its_last_line() {
        assert_eq!(place("a = 1\n", 6..6), (1, 6, 1));
        assert_eq!(place("", 0..0), (1, 1, 1));
        assert_eq!(place("a", 7..9), (1, 2, 1));
    }

    #[test]
    fn a_span_over_lines_ends_with_the_first() {
        assert_eq!(place("a = [\r\n1]\n", 4..9), (1, 5, 1));
    }

    #[test]
    fn carets_stand_under_the_span_after_tabs_and_escapes_are_not_printed() {
        let source = "\tx = \u{1b}[31m\n".to_owned();
        let shown = Diagnostics::locate("f".into(), source, vec![(1..2, Fault::new("m"))]);
        assert_eq!(
            shown.to_string(),
            "f:1:2: error: m\n 1 | \tx = \u{fffd}[31m\n   | \t^\n"
        );
    }

    #[test]
    fn only_near_words_are_suggested() {
        let candidates = ["upstream", "bind", "backlog"];
        assert_eq!(nearest("upstrem", candidates), Some("upstream"));
        assert_eq!(nearest("Bind", candidates), Some("bind"));
        assert_eq!(nearest("port", candidates), None);
    }
}
