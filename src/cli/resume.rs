//! `ringress resume`: undoes `ringress drain`.

use std::process::ExitCode;

use super::drain::PartArguments;
use super::process::{AT_ONCE, Process, conclude};
use crate::control::socket::protocol::{Command, Outcome};

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    part: PartArguments,
    #[command(flatten)]
    process: Process,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let part = arguments.part.part();
    let process = &arguments.process;
    let outcome = process.ask(
        &Command::Resume { part },
        AT_ONCE,
        |outcome| match outcome {
            Outcome::Resumed(resumed) => Some(resumed),
            _ => None,
        },
    );
    conclude(process.format(), outcome, |resumed| {
        format!("{} is resumed\n", resumed.part)
    })
}
