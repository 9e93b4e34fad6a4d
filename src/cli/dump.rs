//! `ringress dump`: what the workers of a running process did last, a line of JSON per moment.

use std::process::ExitCode;

use super::process::{AT_ONCE, Target};
use super::{Error, print, report};
use crate::control::socket::protocol::{Command, Outcome, Wanted};

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Moments of this worker only
    #[arg(long, value_name = "NUMBER")]
    worker: Option<usize>,
    /// Only the last ones, so many
    #[arg(long, value_name = "NUMBER")]
    last: Option<usize>,
    /// Moments of one session: its worker's number and its own, as the access log has them
    #[arg(long, value_name = "WORKER:NUMBER", value_parser = session, conflicts_with = "worker")]
    session: Option<Session>,
    #[command(flatten)]
    process: Target,
}

/// Which session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Session {
    worker: usize,
    number: u32,
}

/// The access log has a dot between the two.
fn session(text: &str) -> Result<Session, String> {
    let parts = text.split_once([':', '.']);
    let parts = parts.and_then(|(worker, number)| {
        Some(Session {
            worker: worker.parse().ok()?,
            number: number.parse().ok()?,
        })
    });
    let expected = || "expected the worker's number, a colon and the session's, like 1:77";
    parts.ok_or_else(|| expected().to_owned())
}

impl Arguments {
    fn wanted(&self) -> Wanted {
        Wanted {
            worker: self.session.map(|it| it.worker).or(self.worker),
            session: self.session.map(|it| it.number),
            last: self.last,
        }
    }
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    match dump(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

/// Prints moments as they come, some at a time.
fn dump(arguments: &Arguments) -> Result<(), Error> {
    let mut lines = String::new();
    let mut printed = Ok(());
    let mut write = |lines: &mut String| {
        let outcome = print(lines);
        lines.clear();
        if printed.is_ok() {
            printed = outcome;
        }
    };
    let command = Command::Dump(arguments.wanted());
    let asked = arguments.process.ask_along(
        &command,
        AT_ONCE,
        &mut |moment| {
            lines.push_str(moment);
            lines.push('\n');
            if lines.len() > PORTION {
                write(&mut lines);
            }
        },
        |outcome| match outcome {
            Outcome::Dumped(dumped) => Some(dumped),
            _ => None,
        },
    );
    // What has come before something went wrong is what there is.
    write(&mut lines);
    asked?;
    printed
}

/// Bytes that are printed at a time.
const PORTION: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_named_as_in_the_access_log_or_with_a_colon() {
        let expected = Session {
            worker: 1,
            number: 77,
        };
        assert_eq!(session("1:77"), Ok(expected));
        assert_eq!(session("1.77"), Ok(expected));
        for wrong in ["77", "1:", ":77", "a:7", "1:-7", "1:4294967296", ""] {
            assert!(session(wrong).is_err(), "{wrong}");
        }
    }
}
