//! `ringress top`: a running process on the screen, once a second, until somebody quits. One thread asks the
//! process, one hears the keys, and what is drawn follows from what both have told.
//!
//! | file | owns |
//! |---|---|
//! | `mod` | the terminal, and who is listened to |
//! | `view` | what is shown and how, and what keys change of that |
//! | `rows` | listeners, upstreams and backends as rows |
//! | `columns` | which columns there is room for |
//! | `draw` | the screen |

mod columns;
mod draw;
mod rows;
mod view;

use std::io::{self, IsTerminal};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEvent, KeyEventKind};
use tokio::signal::unix::{SignalKind, signal};

use self::view::{Turn, View};
use super::Error;
use super::process::Target;
use crate::control::socket::protocol::{Command, Outcome, Pulsed};

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    process: Target,
}

/// Between two questions: as often as a process takes a pulse.
const PERIOD: Duration = Duration::from_secs(1);
/// How long it may think about one; longer is as good as gone.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the one who draws hears of.
enum Heard {
    Told(Result<Pulsed, Error>),
    Pressed(KeyEvent),
    /// The terminal has another size.
    Resized,
    /// There is nobody any more who looks.
    End,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Error> {
    if !io::stdout().is_terminal() {
        return Err(Error::NoTerminal);
    }
    // As long as nothing is drawn, an error is one as of any other command.
    let first = ask(&arguments.process, 0)?;
    let no_color = std::env::var_os("NO_COLOR");
    let mut view = View::new(no_color.is_none_or(|it| it.is_empty()));
    let known = last_line(&first).unwrap_or(0);
    view.tell(first);
    // Restores the terminal on a panic, too.
    let mut terminal = ratatui::try_init().map_err(Error::Output)?;
    let shown = show(&mut terminal, &mut view, &arguments.process, known);
    ratatui::restore();
    shown.map_err(Error::Output)
}

/// Draws until somebody quits.
fn show(
    terminal: &mut DefaultTerminal,
    view: &mut View,
    process: &Target,
    known: u64,
) -> io::Result<()> {
    let (sender, heard) = mpsc::channel();
    // Dropped with this function, which ends the thread that asks.
    let (_looking, looked_at) = mpsc::channel();
    hear_keys(sender.clone())?;
    hear_signals(sender.clone())?;
    keep_asking(process.clone(), known, sender, looked_at)?;
    loop {
        terminal.draw(|frame| draw::draw(view, frame.area(), frame.buffer_mut()))?;
        let turn = match heard.recv() {
            Ok(Heard::Told(Ok(pulsed))) => {
                view.tell(pulsed);
                Turn::Draw
            }
            Ok(Heard::Told(Err(error))) => {
                view.lose(&error.to_string());
                Turn::Draw
            }
            Ok(Heard::Pressed(key)) => view.press(key),
            Ok(Heard::Resized) => Turn::Draw,
            Ok(Heard::End) | Err(_) => Turn::Quit,
        };
        if turn == Turn::Quit {
            return Ok(());
        }
    }
}

/// The last second, and what has happened after a line of the log.
fn ask(process: &Target, news_after: u64) -> Result<Pulsed, Error> {
    process.ask(
        &Command::Pulse { news_after },
        PATIENCE,
        |outcome| match outcome {
            Outcome::Pulse(pulsed) => Some(*pulsed),
            _ => None,
        },
    )
}

fn last_line(pulsed: &Pulsed) -> Option<u64> {
    pulsed.news.last().map(|line| line.number)
}

/// Asks once a second, also a process that is gone: another one may come.
fn keep_asking(
    process: Target,
    mut known: u64,
    sender: Sender<Heard>,
    looked_at: Receiver<()>,
) -> io::Result<()> {
    let work = move || {
        while looked_at.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
            let told = ask(&process, known);
            if let Ok(pulsed) = &told {
                known = last_line(pulsed).unwrap_or(known);
            }
            if sender.send(Heard::Told(told)).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("ask".to_owned()).spawn(work)?;
    Ok(())
}

/// It waits for the next key when the process ends, and ends with it.
fn hear_keys(sender: Sender<Heard>) -> io::Result<()> {
    let work = move || {
        loop {
            let heard = match event::read() {
                Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => Heard::Pressed(key),
                Ok(Event::Resize(..)) => Heard::Resized,
                Ok(_) => continue,
                Err(_) => Heard::End,
            };
            let ended = matches!(heard, Heard::End);
            if sender.send(heard).is_err() || ended {
                return;
            }
        }
    };
    thread::Builder::new().name("keys".to_owned()).spawn(work)?;
    Ok(())
}

/// Who is told to end gives the terminal back first.
fn hear_signals(sender: Sender<Heard>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let (mut end, mut hang_up) = {
        let _within = runtime.enter();
        (
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        )
    };
    let work = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = end.recv() => {}
                _ = hang_up.recv() => {}
            }
        });
        // It may be on its way out already.
        let _ = sender.send(Heard::End);
    };
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(work)?;
    Ok(())
}

#[cfg(test)]
mod tests;
