//! The screen of a process that is played, on terminals of several sizes.

use std::collections::BTreeMap;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyModifiers};
use ratatui::style::{Color, Modifier};

use super::view::Section;
use super::*;
use crate::control::socket::pulse::{
    BackendPulse, ListenerPulse, NewsLine, Pulse, Quantiles, UpstreamPulse, WorkerPulse,
};
use crate::control::socket::status::{BackendState, BreakerState, ListenerState, ProcessState};

fn times(count: u64, p50_us: u64, p99_us: u64) -> Quantiles {
    Quantiles {
        count,
        p50_us: Some(p50_us),
        p90_us: Some(p99_us),
        p99_us: Some(p99_us),
        max_us: Some(p99_us),
    }
}

fn backend(number: u64, state: BackendState, why: Option<&str>) -> BackendPulse {
    let up = state == BackendState::Up;
    BackendPulse {
        name: format!("b{number}"),
        address: format!("10.0.0.{number}:80"),
        state,
        why: why.map(str::to_owned),
        breaker: match state {
            BackendState::Open => BreakerState::Open,
            _ => BreakerState::Closed,
        },
        sessions: if up { 100 - number } else { 0 },
        weight: 1,
        connections: if up { 40 * number } else { 0 },
        failed: if up { 0 } else { number },
        bytes_received: number * 1200,
        bytes_sent: number * 340_000,
        first_byte: if up {
            times(9, 1200 * number, 34_000 / number)
        } else {
            Quantiles::default()
        },
        connect: if up {
            times(9, 210, 900)
        } else {
            Quantiles::default()
        },
    }
}

fn listener(name: &str, state: ListenerState) -> ListenerPulse {
    ListenerPulse {
        name: name.to_owned(),
        state,
        address: "0.0.0.0:443".to_owned(),
        sessions: 277,
        accepted: 1234,
        ended: 1200,
        refused: 34,
        reasons: BTreeMap::from([
            ("client-closed".to_owned(), 1200),
            ("denied".to_owned(), 34),
        ]),
        bytes_received: 345_678,
        bytes_sent: 98_765_432,
        duration: times(1200, 45_000, 12_000_000),
        ..ListenerPulse::default()
    }
}

fn pulse() -> Pulse {
    let app = UpstreamPulse {
        name: "app".to_owned(),
        requests: 1200,
        retries: 3,
        queued: 2,
        connect: times(1200, 210, 900),
        first_byte: times(1200, 2400, 34_000),
        duration: times(1200, 45_000, 12_000_000),
        backends: vec![
            backend(1, BackendState::Up, None),
            backend(2, BackendState::Down, Some("connection refused")),
            backend(3, BackendState::Open, Some("breaker open, 3.2 s left")),
            backend(4, BackendState::Up, None),
            backend(5, BackendState::Disabled, Some("drained by order")),
        ],
    };
    Pulse {
        at_unix_ms: 1_700_000_000_000,
        period_ms: 1000,
        state: ProcessState::Serving,
        generation: 4,
        uptime_ms: 3_725_000,
        sessions: 277,
        max_connections: 65_000,
        workers: [0.35, 0.12]
            .map(|busy| WorkerPulse {
                busy,
                ..WorkerPulse::default()
            })
            .into(),
        listeners: vec![
            listener("web", ListenerState::Accepting),
            ListenerPulse {
                name: "mail".to_owned(),
                state: ListenerState::Drained,
                ..ListenerPulse::default()
            },
        ],
        upstreams: vec![
            app,
            UpstreamPulse {
                name: "resolvers".to_owned(),
                ..UpstreamPulse::default()
            },
        ],
    }
}

fn pulsed() -> Pulsed {
    let line = |number, level: &str, message: &str| NewsLine {
        number,
        at_unix_ms: 1_700_000_000_000 + number * 1000,
        level: level.to_owned(),
        message: message.to_owned(),
    };
    Pulsed {
        pulse: pulse(),
        news: vec![
            line(1, "info", "started workers=2"),
            line(
                2,
                "warn",
                "backend is down upstream=app backend=b2 why=connection refused",
            ),
        ],
    }
}

fn view() -> View {
    let mut view = View::new(true);
    view.tell(pulsed());
    view
}

fn drawn(view: &View, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("it needs nothing");
    let draw = |frame: &mut ratatui::Frame<'_>| draw::draw(view, frame.area(), frame.buffer_mut());
    terminal.draw(draw).expect("it needs nothing");
    terminal.backend().buffer().clone()
}

fn text(buffer: &Buffer) -> String {
    let cells = buffer.content.chunks(buffer.area.width.into());
    let line = |cells: &[ratatui::buffer::Cell]| {
        let line: String = cells.iter().map(|cell| cell.symbol()).collect();
        format!("{}\n", line.trim_end())
    };
    cells.map(line).collect()
}

fn screen(view: &View, width: u16, height: u16) -> String {
    text(&drawn(view, width, height))
}

fn press(view: &mut View, keys: &str) {
    for key in keys.chars() {
        let code = match key {
            '\n' => KeyCode::Enter,
            '\t' => KeyCode::Tab,
            '\u{1b}' => KeyCode::Esc,
            '\u{8}' => KeyCode::Backspace,
            letter => KeyCode::Char(letter),
        };
        assert_eq!(view.press(code.into()), Turn::Draw);
    }
}

/// The first cells of the backends' table.
fn backends(view: &View) -> Vec<String> {
    let rows = rows::of(view, Section::Backends);
    rows.into_iter().map(|row| row.cells[0].clone()).collect()
}

#[test]
fn everything_has_its_place_at_80_by_24() {
    assert_eq!(screen(&view(), 80, 24), include_str!("golden/80x24.txt"));
}

#[test]
fn a_small_screen_shows_the_table_in_focus() {
    let mut view = view();
    assert_eq!(screen(&view, 40, 10), include_str!("golden/40x10.txt"));
    press(&mut view, "\t");
    assert!(screen(&view, 40, 10).contains("LISTENER"));
    press(&mut view, "\t");
    assert!(screen(&view, 40, 10).contains("UPSTREAM"));
}

#[test]
fn a_large_screen_shows_every_column_and_the_news() {
    assert_eq!(screen(&view(), 200, 60), include_str!("golden/200x60.txt"));
}

#[test]
fn no_size_is_too_small_to_draw_on() {
    let mut view = view();
    for (width, height) in [(1, 1), (1, 3), (3, 4), (80, 1), (80, 3), (10, 60), (500, 5)] {
        for _ in 0..3 {
            screen(&view, width, height);
            press(&mut view, "\t");
        }
    }
    screen(&View::new(false), 80, 24);
}

#[test]
fn who_has_more_rows_than_there_is_room_is_followed_by_the_chosen_one() {
    let mut view = view();
    let up = |it| backend(it, BackendState::Up, None);
    view.pulse.upstreams[0].backends = (1..=100).map(up).collect();
    for _ in 0..49 {
        press(&mut view, "j");
    }
    let shown = screen(&view, 80, 24);
    assert!(
        shown.contains("app/b50 ") && !shown.contains("app/b1 "),
        "{shown}"
    );
    assert!(
        shown.contains("50 of 100  app/b50 at 10.0.0.50:80, up"),
        "{shown}"
    );
    view.press(KeyCode::End.into());
    assert!(screen(&view, 80, 24).contains("100 of 100"));
    view.press(KeyCode::PageUp.into());
    view.press(KeyCode::Down.into());
    assert!(screen(&view, 80, 24).contains("91 of 100"));
}

#[test]
fn sorting_goes_through_what_there_is_and_says_by_what() {
    let mut view = view();
    for (by, expected) in [
        ("file↓", ["app/b1", "app/b2", "app/b3", "app/b4", "app/b5"]),
        ("name↓", ["app/b1", "app/b2", "app/b3", "app/b4", "app/b5"]),
        ("state↓", ["app/b5", "app/b2", "app/b3", "app/b1", "app/b4"]),
        (
            "active↓",
            ["app/b1", "app/b4", "app/b2", "app/b3", "app/b5"],
        ),
        ("rate↓", ["app/b4", "app/b1", "app/b2", "app/b3", "app/b5"]),
        (
            "failures↓",
            ["app/b5", "app/b3", "app/b2", "app/b1", "app/b4"],
        ),
        ("p99↓", ["app/b1", "app/b4", "app/b2", "app/b3", "app/b5"]),
    ] {
        assert_eq!(backends(&view), expected, "{by}");
        assert!(
            screen(&view, 80, 24).contains(&format!("by {by}, ")),
            "{by}"
        );
        press(&mut view, "r");
        let mut reversed = expected;
        reversed.reverse();
        assert_eq!(backends(&view), reversed, "{by}");
        press(&mut view, "rs");
    }
    assert!(screen(&view, 80, 24).contains("by file↓"));
}

#[test]
fn a_filter_looks_at_names_addresses_and_reasons_in_all_tables() {
    let mut view = view();
    press(&mut view, "/REFUS");
    assert!(screen(&view, 80, 24).contains("filter: REFUS█"));
    assert_eq!(backends(&view), ["app/b2"]);
    press(&mut view, "\u{8}\u{8}\u{8}\u{8}\u{8}0.0.4:\n");
    assert_eq!(backends(&view), ["app/b4"]);
    assert!(screen(&view, 80, 24).contains("by file↓ with \"0.0.4:\", 1 of 1"));
    assert_eq!(rows::of(&view, Section::Listeners).len(), 0);
    press(&mut view, "\u{1b}");
    assert_eq!(backends(&view).len(), 5);
    // While it is typed, letters are letters.
    press(&mut view, "/q s");
    assert_eq!((&*view.filter, view.sort.as_str()), ("q s", "file"));
    press(&mut view, "\u{1b}");
    assert_eq!((&*view.filter, view.typing), ("", false));
}

#[test]
fn a_pause_holds_what_is_shown_until_it_ends() {
    let mut view = view();
    press(&mut view, " ");
    let mut later = pulsed();
    later.pulse.generation = 5;
    view.tell(later);
    let shown = screen(&view, 80, 24);
    assert!(
        shown.contains("generation 4") && shown.contains("PAUSED"),
        "{shown}"
    );
    assert!(shown.contains("space go on"), "{shown}");
    press(&mut view, " ");
    let shown = screen(&view, 80, 24);
    assert!(
        shown.contains("generation 5") && !shown.contains("PAUSED"),
        "{shown}"
    );
}

#[test]
fn a_process_that_is_gone_is_told_and_so_is_its_return() {
    let mut view = view();
    view.lose("no process answers\n  /run/x.sock: nobody listens on it");
    let shown = screen(&view, 80, 24);
    assert!(shown.contains("GONE"), "{shown}");
    assert!(
        shown.contains("no process answers; trying again every second\n"),
        "{shown}"
    );
    assert!(shown.contains("app/b1"), "what was known stays");
    view.tell(pulsed());
    assert!(!screen(&view, 80, 24).contains("GONE"));
}

#[test]
fn colours_tell_states_apart_and_are_left_out_where_nobody_wants_them() {
    let mut view = view();
    let cell_of = |buffer: &Buffer, word: &str| {
        let text = text(buffer);
        let lines = text.lines().enumerate();
        let found = lines.filter_map(|(y, line)| {
            let at = line.find(word).filter(|_| line.starts_with("app/b"))?;
            Some((line[..at].chars().count() as u16, y as u16))
        });
        let place = found.last().expect("it is there");
        buffer.cell(place).expect("within").clone()
    };
    let buffer = drawn(&view, 80, 24);
    assert_eq!(cell_of(&buffer, "down").fg, Color::Red);
    assert_eq!(cell_of(&buffer, "up").fg, Color::Green);
    view.colours = false;
    let buffer = drawn(&view, 80, 24);
    assert!(
        buffer
            .content
            .iter()
            .all(|it| (it.fg, it.bg) == (Color::Reset, Color::Reset))
    );
    assert!(cell_of(&buffer, "down").modifier.contains(Modifier::BOLD));
}

#[test]
fn q_and_control_c_quit() {
    let mut view = view();
    assert_eq!(view.press(KeyCode::Char('q').into()), Turn::Quit);
    let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    press(&mut view, "/");
    assert_eq!(view.press(control_c), Turn::Quit);
}
