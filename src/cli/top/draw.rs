//! The screen, from what is to be shown and nothing else.
//!
//! ```text
//! the process ─ two lines, one on a low screen
//! listeners ┐
//! upstreams ├ tables; on a low screen the one that is in focus
//! backends  ┘
//! news      ─ where there is room left
//! what the chosen row is about, or the filter, or why the process is not reached
//! keys
//! ```

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};

use super::columns::{self, Column, Kind};
use super::rows::{self, Row, Tone};
use super::view::{Section, View};
use crate::cli::numbers::{per_second, percent, short, span};
use crate::control::socket::pulse::Pulse;
use crate::control::socket::status::ProcessState;

/// Lines for tables from which all three are shown.
const ALL_TABLES: usize = 14;
/// News are shown where there is room for so many.
const NEWS_MIN: usize = 2;

/// Draws `view` on `area`.
pub(super) fn draw(view: &View, area: Rect, buffer: &mut Buffer) {
    let mut canvas = Canvas {
        area,
        buffer,
        colours: view.colours,
    };
    let height = usize::from(area.height);
    let head = if height < ALL_TABLES + 4 { 1 } else { 2 };
    let Some(room) = height.checked_sub(head + 2) else {
        return canvas.line(0, "too low", Style::new());
    };
    let tables = tables(view, room);
    canvas.head(view, head);
    let used = canvas.tables(view, &tables, head, room);
    canvas.news(view, head + used, room.saturating_sub(used));
    canvas.foot(view, &tables, height);
}

/// A table with all of its rows.
type Table = (Section, Vec<Row>);

/// Those that there is room for, the one in focus among them.
fn tables(view: &View, room: usize) -> Vec<Table> {
    let sections: &[Section] = match room < ALL_TABLES {
        true => &[view.focus],
        false => &Section::ALL,
    };
    let tables = sections.iter().map(|section| {
        let rows = rows::of(view, *section);
        view.note_rows(*section, rows.len());
        (*section, rows)
    });
    tables.collect()
}

/// Where it is drawn. Lines and columns count from 0, and what does not fit is cut off.
struct Canvas<'a> {
    area: Rect,
    buffer: &'a mut Buffer,
    colours: bool,
}

impl Canvas<'_> {
    fn width(&self) -> usize {
        self.area.width.into()
    }

    fn line(&mut self, line: usize, text: &str, style: Style) {
        self.text((0, line), text, self.width(), style);
    }

    fn text(&mut self, (column, line): (usize, usize), text: &str, width: usize, style: Style) {
        if line >= self.area.height.into() || column >= self.width() {
            return;
        }
        let (x, y) = (self.area.x + column as u16, self.area.y + line as u16);
        let width = width.min(self.width() - column);
        self.buffer
            .set_stringn(x, y, cut(text, width), width, style);
    }

    /// A style for a line over its whole width.
    fn dye(&mut self, line: usize, style: Style) {
        let y = self.area.y + line as u16;
        let line = Rect::new(self.area.x, y, self.area.width, 1);
        self.buffer.set_style(line.intersection(self.area), style);
    }

    fn colour(&self, style: Style, colour: Color) -> Style {
        match self.colours {
            true => style.fg(colour),
            false => style,
        }
    }

    fn head(&mut self, view: &View, lines: usize) {
        let said = process(&view.pulse);
        let notice = match (&view.lost, &view.paused) {
            (Some(_), _) => " GONE ",
            (None, Some(_)) => " PAUSED ",
            (None, None) => "",
        };
        self.line(0, &said, bold());
        let column = self.width().saturating_sub(notice.len());
        let style = self.colour(bold().add_modifier(Modifier::REVERSED), Color::Red);
        self.text((column, 0), notice, notice.len(), style);
        if lines > 1 {
            self.line(1, &traffic(&view.pulse), Style::new());
        }
    }

    /// Returns how many lines they take.
    fn tables(&mut self, view: &View, tables: &[Table], from: usize, room: usize) -> usize {
        // Each has a line of titles, and one between it and the next.
        let titles = tables.len() * 2 - 1;
        let wanted: Vec<_> = tables
            .iter()
            .map(|(section, rows)| (rows.len(), *section == view.focus))
            .collect();
        let granted = share(&wanted, room.saturating_sub(titles));
        let mut line = from;
        for ((section, rows), granted) in tables.iter().zip(granted) {
            if line > from {
                line += 1;
            }
            self.table(view, *section, rows, (line, granted));
            line += 1 + granted;
        }
        line - from
    }

    /// From `line` on, with so many rows beside its titles.
    fn table(
        &mut self,
        view: &View,
        section: Section,
        rows: &[Row],
        (line, granted): (usize, usize),
    ) {
        let columns = columns::of(section);
        let names = rows.iter().map(|row| row.cells[0].chars().count());
        let fitting = columns::fit(columns, names.max().unwrap_or(0), self.width());
        let in_focus = section == view.focus;
        let titles: Vec<_> = columns.iter().map(|it| it.title.to_owned()).collect();
        let style = match in_focus {
            true => bold().add_modifier(Modifier::UNDERLINED),
            false => bold(),
        };
        self.row(line, (columns, &fitting), &titles, |_| style);
        let chosen = view.chosen(section, rows.len());
        let first = (chosen + 1).saturating_sub(granted);
        for (offset, row) in rows.iter().skip(first).take(granted).enumerate() {
            let line = line + 1 + offset;
            let tone = self.tone(row.tone);
            let style = |column: &Column| match column.title {
                "STATE" | "UP" => tone,
                _ => Style::new(),
            };
            self.row(line, (columns, &fitting), &row.cells, style);
            if in_focus && first + offset == chosen {
                self.dye(line, Style::new().add_modifier(Modifier::REVERSED));
            }
        }
    }

    fn row(
        &mut self,
        line: usize,
        (columns, fitting): (&[Column], &[(usize, usize)]),
        cells: &[String],
        style: impl Fn(&Column) -> Style,
    ) {
        let mut at = 0;
        for (place, width) in fitting {
            let (column, cell) = (&columns[*place], &cells[*place]);
            let shift = match column.kind {
                Kind::Right(_) => width.saturating_sub(cell.chars().count()),
                _ => 0,
            };
            self.text((at + shift, line), cell, width - shift, style(column));
            at += width + 1;
        }
    }

    fn tone(&self, tone: Tone) -> Style {
        match tone {
            Tone::Good => self.colour(Style::new(), Color::Green),
            Tone::Doubtful => self.colour(Style::new(), Color::Yellow),
            Tone::Bad => self.colour(bold(), Color::Red),
            Tone::Still => Style::new().add_modifier(Modifier::DIM),
        }
    }

    fn news(&mut self, view: &View, from: usize, room: usize) {
        // A free line and the title come before them.
        let Some(shown) = room.checked_sub(2).filter(|it| *it >= NEWS_MIN) else {
            return;
        };
        if view.news.is_empty() {
            return;
        }
        self.line(from + 1, "NEWS", bold());
        let skipped = view.news.len().saturating_sub(shown);
        for (offset, line) in view.news.iter().skip(skipped).enumerate() {
            let at = from + 2 + offset;
            let style = match &*line.level {
                "error" => self.tone(Tone::Bad),
                "warn" => self.tone(Tone::Doubtful),
                _ => Style::new(),
            };
            let level = line.level.to_uppercase();
            let text = format!("{} {level:<5} {}", clock(line.at_unix_ms), line.message);
            self.line(at, &text, style);
        }
    }

    fn foot(&mut self, view: &View, tables: &[Table], height: usize) {
        let (line, style) = match &view.lost {
            Some(why) => (
                format!("{why}; trying again every second"),
                self.tone(Tone::Bad),
            ),
            None => (about(view, tables), Style::new()),
        };
        self.line(height - 2, &line, style);
        self.line(height - 1, &keys(view, self.width()), bold());
    }
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

/// How many rows each table gets: those that it wants, as far as there is room; the one in focus is first.
fn share(wanted: &[(usize, bool)], mut room: usize) -> Vec<usize> {
    let mut granted = vec![0; wanted.len()];
    loop {
        let before = room;
        for (granted, (wanted, in_focus)) in granted.iter_mut().zip(wanted) {
            let turn = if *in_focus { 3 } else { 1 };
            let more = turn.min(wanted - *granted).min(room);
            *granted += more;
            room -= more;
        }
        if room == before {
            return granted;
        }
    }
}

/// With an ellipsis where it is cut.
fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept = text.chars().take(width.saturating_sub(1));
    kept.chain(std::iter::once('…')).collect()
}

fn process(pulse: &Pulse) -> String {
    let state = match pulse.state {
        ProcessState::Serving => "serving",
        ProcessState::Delaying => "delaying",
        ProcessState::Draining => "draining",
        ProcessState::Unknown => "in an unknown state",
    };
    format!(
        "ringress {state}  {} of {} sessions  generation {}  up for {}",
        short(pulse.sessions as f64),
        short(pulse.max_connections as f64),
        pulse.generation,
        span(pulse.uptime_ms),
    )
}

fn traffic(pulse: &Pulse) -> String {
    let busy = pulse.workers.iter().map(|worker| worker.busy);
    let most = busy.clone().fold(0.0, f64::max);
    let mean = busy.sum::<f64>() / pulse.workers.len().max(1) as f64;
    let sum = |count: fn(&crate::control::socket::pulse::ListenerPulse) -> u64| {
        let counts = pulse.listeners.iter().map(count);
        short(per_second(counts.sum(), pulse.period_ms))
    };
    format!(
        "busy {}, most {}  new {}/s  refused {}/s  in {} B/s  out {} B/s",
        percent(mean),
        percent(most),
        sum(|it| it.accepted),
        sum(|it| it.refused),
        sum(|it| it.bytes_received),
        sum(|it| it.bytes_sent),
    )
}

/// How it is sorted and filtered, and what there is to say of the chosen row.
fn about(view: &View, tables: &[Table]) -> String {
    if view.typing {
        return format!("filter: {}█", view.filter);
    }
    let arrow = if view.reversed { "↑" } else { "↓" };
    let filter = match &*view.filter {
        "" => String::new(),
        filter => format!(" with {filter:?}"),
    };
    let in_focus = tables.iter().find(|(section, _)| *section == view.focus);
    let rows = in_focus.map_or(&[][..], |(_, rows)| rows);
    let chosen = view.chosen(view.focus, rows.len());
    let place = match rows.len() {
        0 => "none".to_owned(),
        count => format!("{} of {count}", chosen + 1),
    };
    let detail = rows.get(chosen).map_or("", |row| &row.detail);
    format!(
        "by {}{arrow}{filter}, {place}  {detail}",
        view.sort.as_str()
    )
}

/// The keys, as far as there is room.
fn keys(view: &View, width: usize) -> String {
    let pause = match view.paused {
        Some(_) => "space go on",
        None => "space pause",
    };
    let known: &[&str] = match view.typing {
        true => &["enter done", "esc no filter", "^C quit"],
        false => &[
            "q quit",
            "s sort",
            "/ filter",
            pause,
            "r reverse",
            "tab table",
            "↑↓ row",
            "esc no filter",
        ],
    };
    let mut line = String::new();
    for key in known {
        let gap = if line.is_empty() { 0 } else { 2 };
        if line.chars().count() + gap + key.chars().count() > width {
            break;
        }
        line.push_str(&"  "[..gap]);
        line.push_str(key);
    }
    line
}

/// The time of the day, in UTC.
fn clock(at_unix_ms: u64) -> String {
    let seconds = at_unix_ms / 1000;
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}", seconds % 60)
}
