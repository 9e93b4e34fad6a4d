//! What is shown and how: the last pulse, and what the keys have made of it.

use std::cell::Cell;
use std::collections::VecDeque;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::control::socket::protocol::Pulsed;
use crate::control::socket::pulse::{NewsLine, Pulse};

/// What is on the screen.
pub(super) struct View {
    /// The last one that was told, or that was when it was paused.
    pub(super) pulse: Pulse,
    /// Paused, with what has been told since.
    pub(super) paused: Option<Pulse>,
    /// The last lines of the log.
    pub(super) news: VecDeque<NewsLine>,
    /// Why the process can't be reached, if it can't.
    pub(super) lost: Option<String>,
    pub(super) sort: Sort,
    pub(super) reversed: bool,
    /// What rows have to contain.
    pub(super) filter: String,
    /// Keys go to the filter.
    pub(super) typing: bool,
    /// The table that the arrows move in.
    pub(super) focus: Section,
    /// The chosen row of each table; it may lie behind the last one.
    pub(super) chosen: [usize; 3],
    /// How many rows each table had when it was drawn last; keys move among those.
    rows: [Cell<usize>; 3],
    /// Colours are wanted.
    pub(super) colours: bool,
}

/// A table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Section {
    Listeners,
    Upstreams,
    Backends,
}

impl Section {
    pub(super) const ALL: [Self; 3] = [Self::Listeners, Self::Upstreams, Self::Backends];
}

/// What rows are sorted by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sort {
    /// As in the file.
    File,
    Name,
    State,
    Active,
    Rate,
    Failures,
    P99,
}

impl Sort {
    const ALL: [Self; 7] = [
        Self::File,
        Self::Name,
        Self::State,
        Self::Active,
        Self::Rate,
        Self::Failures,
        Self::P99,
    ];

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Name => "name",
            Self::State => "state",
            Self::Active => "active",
            Self::Rate => "rate",
            Self::Failures => "failures",
            Self::P99 => "p99",
        }
    }

    fn next(self) -> Self {
        Self::ALL[(self as usize + 1) % Self::ALL.len()]
    }
}

/// What follows from a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Turn {
    Draw,
    Quit,
}

/// Lines of the log that are kept.
const NEWS_MAX: usize = 200;
/// Rows that page up and down move by.
const PAGE: usize = 10;

impl View {
    pub(super) fn new(colours: bool) -> Self {
        Self {
            pulse: Pulse::default(),
            paused: None,
            news: VecDeque::new(),
            lost: None,
            sort: Sort::File,
            reversed: false,
            filter: String::new(),
            typing: false,
            focus: Section::Backends,
            chosen: [0; 3],
            // Nobody has counted them yet.
            rows: [const { Cell::new(usize::MAX) }; 3],
            colours,
        }
    }

    /// The process has told.
    pub(super) fn tell(&mut self, pulsed: Pulsed) {
        self.lost = None;
        for line in pulsed.news {
            if self.news.len() == NEWS_MAX {
                self.news.pop_front();
            }
            self.news.push_back(line);
        }
        match &mut self.paused {
            Some(since) => *since = pulsed.pulse,
            None => self.pulse = pulsed.pulse,
        }
    }

    /// The process could not be asked.
    pub(super) fn lose(&mut self, error: &str) {
        let first = error.lines().next().unwrap_or_default();
        self.lost = Some(first.to_owned());
    }

    pub(super) fn press(&mut self, key: KeyEvent) -> Turn {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Turn::Quit,
                _ => Turn::Draw,
            };
        }
        if self.typing {
            self.type_in(key.code);
            return Turn::Draw;
        }
        match key.code {
            KeyCode::Char('q') => return Turn::Quit,
            KeyCode::Char(' ') => self.pause(),
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('r') => self.reversed = !self.reversed,
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Tab => self.turn_to(1),
            KeyCode::BackTab => self.turn_to(Section::ALL.len() - 1),
            code => self.choose(code),
        }
        Turn::Draw
    }

    /// A table is drawn with so many.
    pub(super) fn note_rows(&self, section: Section, rows: usize) {
        self.rows[section as usize].set(rows);
    }

    /// The row that is chosen in a table of so many.
    pub(super) fn chosen(&self, section: Section, rows: usize) -> usize {
        self.chosen[section as usize].min(rows.saturating_sub(1))
    }

    fn pause(&mut self) {
        match self.paused.take() {
            Some(since) => self.pulse = since,
            None => self.paused = Some(self.pulse.clone()),
        }
    }

    fn type_in(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(letter) => self.filter.push(letter),
            _ => {}
        }
        self.chosen = [0; 3];
    }

    fn turn_to(&mut self, by: usize) {
        let next = (self.focus as usize + by) % Section::ALL.len();
        self.focus = Section::ALL[next];
    }

    fn choose(&mut self, code: KeyCode) {
        let rows = self.rows[self.focus as usize].get();
        let now = self.chosen(self.focus, rows);
        self.chosen[self.focus as usize] = match code {
            KeyCode::Up | KeyCode::Char('k') => now.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => now.saturating_add(1),
            KeyCode::PageUp => now.saturating_sub(PAGE),
            KeyCode::PageDown => now.saturating_add(PAGE),
            KeyCode::Home => 0,
            KeyCode::End => rows,
            _ => now,
        };
    }
}
