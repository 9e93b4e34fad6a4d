//! `ringress drain`: a listener or a backend gets no new sessions, while the rest of the process goes on.

use std::process::ExitCode;
use std::time::Duration;

use super::check::Format;
use super::process::{AT_ONCE, Process, conclude, sessions};
use super::{Error, print, status};
use crate::control::socket::protocol::{Command, Drained, Outcome, Part};

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    #[command(flatten)]
    part: PartArguments,
    /// Abort the sessions that are left after this time, such as 30s
    #[arg(long, value_name = "TIME", value_parser = deadline)]
    deadline: Option<Duration>,
    /// Wait until no session is left
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    process: Process,
}

/// Which part: exactly one.
#[derive(clap::Args, Debug)]
#[group(required = true, multiple = false)]
pub(super) struct PartArguments {
    /// A listener
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// A backend of an upstream
    #[arg(long, value_name = "UPSTREAM/NAME", value_parser = backend)]
    backend: Option<Part>,
}

impl PartArguments {
    /// The part that was named.
    pub(super) fn part(&self) -> Part {
        let listener = || Part::Listener {
            listener: self.listener.clone().unwrap_or_default(),
        };
        self.backend.clone().unwrap_or_else(listener)
    }
}

/// A name of an upstream has no slash; that of a backend may be its address.
fn backend(text: &str) -> Result<Part, String> {
    match text.split_once('/') {
        Some((upstream, backend)) if !upstream.is_empty() && !backend.is_empty() => {
            Ok(Part::Backend {
                upstream: upstream.to_owned(),
                backend: backend.to_owned(),
            })
        }
        _ => Err("expected the upstream's name, a slash and the backend's name".to_owned()),
    }
}

fn deadline(text: &str) -> Result<Duration, String> {
    // To humantime "M" is a month; whoever writes "10M" means minutes.
    let known = (!text.contains('M')).then(|| humantime::parse_duration(text).ok());
    let fits = |it: &Duration| *it <= DEADLINE_MAX;
    let expected =
        || "expected a time like \"250ms\", \"30s\" or \"5m\", a year at most".to_owned();
    known.flatten().filter(fits).ok_or_else(expected)
}

/// A slip, if it is longer.
const DEADLINE_MAX: Duration = Duration::from_hours(24 * 366);

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let format = arguments.process.format();
    conclude(format, drain(arguments), text)
}

fn drain(arguments: &Arguments) -> Result<Drained, Error> {
    let process = &arguments.process;
    let part = arguments.part.part();
    let deadline = arguments.deadline;
    let drained = process.ask(
        &Command::Drain { part, deadline },
        AT_ONCE,
        |outcome| match outcome {
            Outcome::Drained(drained) => Some(drained),
            _ => None,
        },
    )?;
    if !arguments.wait {
        return Ok(drained);
    }
    wait(drained, |drained| {
        if process.format() == Format::Text {
            print(&text(drained))?;
        }
        pass(INTERVAL);
        let status = status::ask(process)?;
        let mut draining = status.draining.into_iter();
        let ours = draining.find(|draining| draining.part == drained.part);
        Ok(ours.map(|draining| draining.sessions_left))
    })
}

/// Until no session is left. `next` lets time pass and tells how many there are then, or that the part is
/// not draining any more.
fn wait(
    mut drained: Drained,
    mut next: impl FnMut(&Drained) -> Result<Option<u64>, Error>,
) -> Result<Drained, Error> {
    while drained.sessions_left > 0 {
        match next(&drained)? {
            Some(left) => drained.sessions_left = left,
            None => return Err(Error::Resumed(drained.part)),
        }
    }
    Ok(drained)
}

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

fn pass(time: Duration) {
    #[expect(
        clippy::disallowed_methods,
        reason = "a command that waits for a process has nothing else to do"
    )]
    std::thread::sleep(time);
}

fn text(drained: &Drained) -> String {
    match drained.sessions_left {
        0 => format!("{} is drained\n", drained.part),
        left => format!("{} is draining: {} left\n", drained.part, sessions(left)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(sessions_left: u64) -> Drained {
        let listener = "web".to_owned();
        Drained {
            part: Part::Listener { listener },
            sessions_left,
        }
    }

    #[test]
    fn a_backend_is_named_by_its_upstream_and_its_name_or_address() {
        let part = |upstream: &str, backend: &str| Part::Backend {
            upstream: upstream.to_owned(),
            backend: backend.to_owned(),
        };
        assert_eq!(backend("app/b1"), Ok(part("app", "b1")));
        let expected = part("app", "unix:/run/b.sock");
        assert_eq!(backend("app/unix:/run/b.sock"), Ok(expected));
        for wrong in ["app", "/b1", "app/", ""] {
            assert!(backend(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_deadline_is_a_time_with_its_unit() {
        assert_eq!(deadline("1m 30s"), Ok(Duration::from_secs(90)));
        assert_eq!(deadline("0s"), Ok(Duration::ZERO));
        for wrong in ["30", "5M", "-1s", "2y", "soon", ""] {
            assert!(deadline(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn waiting_ends_with_the_last_session() {
        let mut left = [2, 2, 1, 0, 9].into_iter();
        let outcome = wait(listener(3), |_| Ok(left.next()));
        assert_eq!(outcome.unwrap(), listener(0));
        assert_eq!(left.next(), Some(9), "it did not ask again");
        let outcome = wait(listener(0), |_| panic!("there is nothing to wait for"));
        assert_eq!(outcome.unwrap(), listener(0));
    }

    #[test]
    fn waiting_ends_when_somebody_resumes_the_part() {
        let mut left = [Some(2), None].into_iter();
        let error = wait(listener(3), |_| Ok(left.next().unwrap())).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("listener \"web\" is not draining any more")
        );
    }

    #[test]
    fn what_is_left_is_told() {
        assert_eq!(text(&listener(0)), "listener \"web\" is drained\n");
        let expected = "listener \"web\" is draining: 1 session left\n";
        assert_eq!(text(&listener(1)), expected);
    }
}
