//! What the subcommands have in common that talk to a running process: how it is found, and how what came
//! of it is printed.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use super::check::Format;
use super::{Error, print, report};
use crate::control::socket::client::{self, ClientError};
use crate::control::socket::path::{Folders, Place};
use crate::control::socket::protocol::{Command, Outcome, ProtocolError};

/// Which process.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Target {
    /// The configuration of the running process, by the path that it was started with
    #[arg(short, long, value_name = "FILE", required_unless_present = "socket")]
    config: Option<PathBuf>,
    /// The control socket itself, where the configuration doesn't lead to it
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    socket: Option<PathBuf>,
}

/// Which process, and how to print what it says.
#[derive(clap::Args, Debug)]
pub(super) struct Process {
    #[command(flatten)]
    target: Target,
    /// How to print the outcome
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

impl Target {
    /// Asks it. `expected` takes out of the outcome what such a command brings.
    pub(super) fn ask<T>(
        &self,
        command: &Command,
        timeout: Duration,
        expected: impl FnOnce(Outcome) -> Option<T>,
    ) -> Result<T, Error> {
        self.ask_along(command, timeout, &mut |_| (), expected)
    }

    /// The same, where `along` hears of each moment of a dump before.
    pub(super) fn ask_along<T>(
        &self,
        command: &Command,
        timeout: Duration,
        along: &mut dyn FnMut(&str),
        expected: impl FnOnce(Outcome) -> Option<T>,
    ) -> Result<T, Error> {
        let found = Found::new(self.socket.as_deref(), self.config.as_deref())?;
        found.ask_along(command, timeout, along, expected)
    }
}

impl Process {
    /// How to print what it says.
    pub(super) fn format(&self) -> Format {
        match self.json {
            true => Format::Json,
            false => self.format,
        }
    }

    /// As [`Target::ask`].
    pub(super) fn ask<T>(
        &self,
        command: &Command,
        timeout: Duration,
        expected: impl FnOnce(Outcome) -> Option<T>,
    ) -> Result<T, Error> {
        self.target.ask(command, timeout, expected)
    }
}

/// Where a process may be found.
pub(super) struct Found {
    paths: Vec<PathBuf>,
    /// A file that asks for no control socket.
    off: Option<PathBuf>,
}

impl Found {
    /// By its socket, or else by its configuration file.
    pub(super) fn new(socket: Option<&Path>, config: Option<&Path>) -> Result<Self, Error> {
        if let Some(socket) = socket {
            let paths = vec![socket.to_owned()];
            return Ok(Self { paths, off: None });
        }
        let config = config.unwrap_or(Path::new(""));
        let failed = |error: io::Error| Error::File(config.to_owned(), error);
        let folders = Folders::of_this_process();
        Ok(Self {
            paths: folders.of_process_with(config).map_err(failed)?,
            off: (Place::asked_for_by(config) == Place::Off).then(|| config.to_owned()),
        })
    }

    /// As [`Target::ask`].
    pub(super) fn ask<T>(
        self,
        command: &Command,
        timeout: Duration,
        expected: impl FnOnce(Outcome) -> Option<T>,
    ) -> Result<T, Error> {
        self.ask_along(command, timeout, &mut |_| (), expected)
    }

    /// As [`Target::ask_along`].
    fn ask_along<T>(
        self,
        command: &Command,
        timeout: Duration,
        along: &mut dyn FnMut(&str),
        expected: impl FnOnce(Outcome) -> Option<T>,
    ) -> Result<T, Error> {
        match client::ask_along(&self.paths, command, timeout, along) {
            Ok(outcome) => expected(outcome).ok_or(Error::Process(ClientError::NotUnderstood(
                ProtocolError::OtherOutcome,
            ))),
            Err(error) => Err(match (error, self.off) {
                (ClientError::NoProcess { .. }, Some(file)) => Error::NoSocket(file),
                (error, _) => Error::Process(error),
            }),
        }
    }
}

/// How long a process may take that only has to look at itself.
pub(super) const AT_ONCE: Duration = Duration::from_secs(10);
/// How long one may take that has names to resolve, which may take each name's timeout.
pub(super) const RESOLVING: Duration = Duration::from_secs(120);

/// Prints what came of a subcommand. JSON is one object on stdout in any case: the outcome, or `error`.
pub(super) fn conclude<T: Serialize>(
    format: Format,
    outcome: Result<T, Error>,
    text: impl FnOnce(&T) -> String,
) -> ExitCode {
    let printed = match (&outcome, format) {
        (Ok(outcome), Format::Text) => print(&text(outcome)),
        (Ok(outcome), Format::Json) => print(&format!("{}\n", json!(outcome))),
        (Err(error), Format::Text) => {
            report(error);
            Ok(())
        }
        (Err(error), Format::Json) => print(&format!("{}\n", json!({"error": error.to_string()}))),
    };
    match (outcome, printed) {
        (Ok(_), Ok(())) => ExitCode::SUCCESS,
        (_, Err(error)) => {
            report(&error);
            ExitCode::FAILURE
        }
        (Err(_), Ok(())) => ExitCode::FAILURE,
    }
}

/// The lines of what a reload changes, below `title`.
pub(super) fn changes(title: &str, changes: &[impl std::fmt::Display]) -> String {
    let lines = changes.iter().map(|change| format!("  {change}\n"));
    format!("{title}\n{}", lines.collect::<String>())
}

/// `1 session`, `2 sessions`.
pub(super) fn sessions(count: u64) -> String {
    format!("{count} session{}", if count == 1 { "" } else { "s" })
}
