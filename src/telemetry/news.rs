//! News: the last lines of the log, kept for who looks on. They are what the log has, from info upwards, and
//! are numbered, so that a reader asks for those it has not seen.

use std::collections::VecDeque;
use std::fmt::{self, Write};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::calendar;

/// Lines that are kept.
pub const KEPT: usize = 200;
/// Bytes of a line; the rest of a longer one is in the log only.
pub const LINE_BYTES_MAX: usize = 1024;

/// One line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Line {
    /// Counts up from 1 with every line of the process.
    pub number: u64,
    /// Milliseconds since 1970.
    pub at_unix_ms: u64,
    /// How grave it is.
    pub level: Level,
    /// What happened, with the fields behind it, as in the log in text; nothing in it that a terminal obeys.
    pub message: String,
}

/// The last lines.
#[derive(Debug, Default)]
pub struct News(Mutex<Kept>);

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<Line>,
    last: u64,
}

/// Those of this process.
pub fn news() -> &'static Arc<News> {
    static NEWS: LazyLock<Arc<News>> = LazyLock::new(Arc::default);
    &NEWS
}

impl News {
    /// The number of the last line; 0 = there was none.
    pub fn last(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).last
    }

    /// The lines after this number that are still there. A number that there never was is one of another
    /// process: all of them.
    pub fn after(&self, number: u64) -> Vec<Line> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let from = if number > kept.last { 0 } else { number };
        let lines = kept.lines.iter().filter(|line| line.number > from);
        lines.cloned().collect()
    }

    fn add(&self, at_unix_ms: u64, level: Level, message: String) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.last += 1;
        let number = kept.last;
        if kept.lines.len() == KEPT {
            kept.lines.pop_front();
        }
        kept.lines.push_back(Line {
            number,
            at_unix_ms,
            level,
            message,
        });
    }
}

/// What keeps lines as they are logged.
pub(super) struct Keeper(pub(super) Arc<News>);

impl<S: Subscriber> Layer<S> for Keeper {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        if level > Level::INFO {
            return;
        }
        let mut written = Written::default();
        event.record(&mut written);
        self.0.add(calendar::unix_ms(), level, written.line());
    }
}

/// A line that is put together.
#[derive(Default)]
struct Written {
    message: String,
    fields: String,
}

impl Written {
    fn line(self) -> String {
        let line = self.message + &self.fields;
        let mut shown = String::with_capacity(line.len());
        for piece in line.split(char::is_control).map(str::trim) {
            if !shown.is_empty() && !piece.is_empty() {
                shown.push(' ');
            }
            shown.push_str(piece);
        }
        if shown.len() > LINE_BYTES_MAX {
            shown.truncate(shown.floor_char_boundary(LINE_BYTES_MAX - ELLIPSIS.len_utf8()));
            shown.push(ELLIPSIS);
        }
        shown
    }
}

const ELLIPSIS: char = '…';

impl Visit for Written {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::Registry;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn told(tell: impl FnOnce()) -> Arc<News> {
        let news = Arc::new(News::default());
        let subscriber = Registry::default().with(Keeper(news.clone()));
        tracing::subscriber::with_default(subscriber, tell);
        news
    }

    fn numbers(lines: &[Line]) -> Vec<u64> {
        lines.iter().map(|line| line.number).collect()
    }

    #[test]
    fn a_line_has_its_fields_behind_it_and_nothing_below_info_is_kept() {
        let news = told(|| {
            tracing::debug!("not this");
            tracing::warn!(listener = "web", sessions = 3, error = %"x y", "full");
        });
        let lines = news.after(0);
        assert_eq!(lines.len(), 1);
        assert_eq!((lines[0].number, lines[0].level), (1, Level::WARN));
        assert_eq!(
            lines[0].message,
            "full listener=\"web\" sessions=3 error=x y"
        );
        assert!(lines[0].at_unix_ms > 0);
    }

    #[test]
    fn a_line_is_one_line_that_no_terminal_obeys_and_not_too_long() {
        let news = told(|| {
            tracing::error!("a.toml:1: error\n  | x\u{1b}[2J");
            tracing::error!("{}", "ü".repeat(2000));
        });
        let lines = news.after(0);
        assert_eq!(lines[0].message, "a.toml:1: error | x [2J");
        let long = &lines[1].message;
        assert!(long.len() <= LINE_BYTES_MAX && long.ends_with('…'));
    }

    #[test]
    fn a_reader_gets_what_it_has_not_seen_as_long_as_it_is_there() {
        let news = told(|| (0..5).for_each(|it| tracing::info!(it, "x")));
        assert_eq!(news.last(), 5);
        assert_eq!(numbers(&news.after(0)), [1, 2, 3, 4, 5]);
        assert_eq!(numbers(&news.after(3)), [4, 5]);
        assert_eq!(numbers(&news.after(5)), [0; 0]);
        let of_another_process = news.after(6);
        assert_eq!(of_another_process.len(), 5);
    }

    #[test]
    fn the_oldest_go_first_and_numbers_go_on() {
        let news = told(|| (0..KEPT + 3).for_each(|it| tracing::info!(it, "x")));
        let lines = news.after(0);
        assert_eq!(lines.len(), KEPT);
        assert_eq!((lines[0].number, lines[KEPT - 1].number), (4, 203));
    }
}
