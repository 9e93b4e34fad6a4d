//! `ringress reload`: as SIGHUP, but tells what came of it.

use std::process::ExitCode;

use super::process::{Process, RESOLVING, changes, conclude};
use crate::control::socket::protocol::{Command, Outcome, Reloaded};

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    process: Process,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let process = &arguments.process;
    let outcome = process.ask(&Command::Reload, RESOLVING, |outcome| match outcome {
        Outcome::Reloaded(reloaded) => Some(reloaded),
        _ => None,
    });
    conclude(process.format(), outcome, text)
}

fn text(reloaded: &Reloaded) -> String {
    let generation = reloaded.generation;
    match &reloaded.changes[..] {
        [] => format!("reloaded: nothing has changed, generation {generation}\n"),
        list => changes(&format!("reloaded: generation {generation}"), list),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::diff::{Change, How};

    #[test]
    fn the_generation_and_every_change_is_told() {
        let change = |key: &str| Change {
            key: key.to_owned(),
            from: Some("1".to_owned()),
            to: Some("2".to_owned()),
            how: How::Live,
        };
        let mut reloaded = Reloaded {
            generation: 4,
            changes: vec![change("a"), change("b")],
        };
        let expected = "reloaded: generation 4\n  a: 1 → 2 (live)\n  b: 1 → 2 (live)\n";
        assert_eq!(text(&reloaded), expected);
        reloaded.changes.clear();
        let expected = "reloaded: nothing has changed, generation 4\n";
        assert_eq!(text(&reloaded), expected);
    }
}
