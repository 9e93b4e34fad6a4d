//! `ringress plan NEW.toml`: what a reload with this file would change, of the running process or of
//! another file. Changes nothing itself.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::check::Format;
use super::process::{Found, RESOLVING, changes, conclude};
use super::{Error, load_file};
use crate::config::diff;
use crate::control::socket::protocol::{Command, Outcome, Planned, REQUEST_BYTES_MAX};

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// The configuration to be
    #[arg(value_name = "NEW")]
    new: PathBuf,
    /// The configuration of the running process, by the path that it was started with, if it is another file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The control socket itself, where the configuration doesn't lead to it
    #[arg(long, value_name = "PATH", conflicts_with = "config")]
    socket: Option<PathBuf>,
    /// Compare with this file instead of asking a process
    #[arg(long, value_name = "OLD", conflicts_with_all = ["config", "socket"])]
    from: Option<PathBuf>,
    /// How to print the changes
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    conclude(arguments.format, plan(arguments), text)
}

fn plan(arguments: &Arguments) -> Result<Planned, Error> {
    let Arguments {
        new,
        config,
        socket,
        from,
        ..
    } = arguments;
    if let Some(old) = from {
        let changes = diff::between(&load_file(old)?, &load_file(new)?);
        return Ok(Planned { changes });
    }
    let command = Command::Plan {
        // The process may be in another folder, and finds the files it names from there.
        file: std::path::absolute(new)
            .unwrap_or_else(|_| new.clone())
            .display()
            .to_string(),
        text: read(new).map_err(|error| Error::File(new.clone(), error))?,
    };
    let found = Found::new(socket.as_deref(), Some(config.as_ref().unwrap_or(new)))?;
    found.ask(&command, RESOLVING, |outcome| match outcome {
        Outcome::Planned(planned) => Some(planned),
        _ => None,
    })
}

/// More than a request may have is as bad as far more.
fn read(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(file)?
        .take(REQUEST_BYTES_MAX as u64)
        .read_to_string(&mut text)?;
    Ok(text)
}

fn text(planned: &Planned) -> String {
    match &planned.changes[..] {
        [] => "a reload would change nothing\n".to_owned(),
        list => changes("a reload would change", list),
    }
}
