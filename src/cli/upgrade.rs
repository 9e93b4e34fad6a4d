//! `ringress upgrade`: a new process of the binary that is installed now takes over.

use std::process::ExitCode;
use std::time::Duration;

use super::process::{Process, conclude};
use crate::control::socket::protocol::{Command, Outcome};

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    process: Process,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let process = &arguments.process;
    let outcome = process.ask(&Command::Upgrade, TIMEOUT, |outcome| match outcome {
        Outcome::Upgraded(upgraded) => Some(upgraded),
        _ => None,
    });
    conclude(process.format(), outcome, |upgraded| {
        format!("upgraded: the new process is {}\n", upgraded.pid)
    })
}

/// The new process has 10 s to be ready; until then the old one knows more than we do.
const TIMEOUT: Duration = Duration::from_secs(30);
