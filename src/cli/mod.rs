//! The command line: arguments → subcommand → exit code. 0 is fine, 1 an error, 2 wrong usage.

mod check;
mod demo;
mod doctor;
mod drain;
mod dump;
mod explain;
mod init;
mod numbers;
mod plan;
mod process;
mod reload;
mod resume;
mod run;
mod status;
mod table;
mod tcp;
mod top;
mod upgrade;

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::{self, Config, Diagnostics};
use crate::control;
use crate::control::socket::client::ClientError;
use crate::control::socket::protocol::Part;
use crate::telemetry::log;

/// Runs the subcommand that the process's arguments ask for.
pub fn main() -> ExitCode {
    let command = Arguments::parse().command;
    if let Command::Run(_) | Command::Demo(_) | Command::Tcp(_) = command
        && let Err(error) = control::no_new_privileges()
    {
        report(&error.into());
        return ExitCode::FAILURE;
    }
    let outcome = match command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Check(arguments) => return check::run(&arguments),
        Command::Doctor => doctor::run(),
        Command::Init => init::run(),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Tcp(arguments) => tcp::run(&arguments),
        Command::Top(arguments) => top::run(&arguments),
        Command::Status(arguments) => return status::run(&arguments),
        Command::Reload(arguments) => return reload::run(&arguments),
        Command::Plan(arguments) => return plan::run(&arguments),
        Command::Drain(arguments) => return drain::run(&arguments),
        Command::Resume(arguments) => return resume::run(&arguments),
        Command::Upgrade(arguments) => return upgrade::run(&arguments),
        Command::Explain(arguments) => return explain::run(&arguments),
        Command::Dump(arguments) => return dump::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

/// Says on stderr why a subcommand failed. What is wrong with a configuration stands by itself, whoever
/// found it.
fn report(error: &Error) {
    // With stderr closed the exit code still tells.
    let _ = match error {
        Error::Configuration(diagnostics) => write!(io::stderr(), "{diagnostics}"),
        Error::Process(ClientError::Refused(why)) => writeln!(io::stderr(), "{}", why.trim_end()),
        error => writeln!(io::stderr(), "ringress: {error}"),
    };
}

/// A TCP load balancer on io_uring, one worker per core
#[derive(Parser, Debug)]
#[command(
    name = "ringress",
    version,
    subcommand_required = true,
    arg_required_else_help = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the proxy with a configuration file
    Run(run::Arguments),
    /// Check a configuration file and report everything that is wrong with it
    Check(check::Arguments),
    /// Show what a reload with another configuration would change, and what it takes
    Plan(plan::Arguments),
    /// Show what io_uring and the limits of this machine allow
    Doctor,
    /// Print a commented configuration to start from
    Init,
    /// Run the proxy in front of three built-in backends, to try it out
    Demo(demo::Arguments),
    /// Balance TCP without a file: an address to listen on, then the backends
    Tcp(tcp::Arguments),
    /// Show what a running process does
    Status(status::Arguments),
    /// Watch a running process: listeners, upstreams and backends with their rates, once a second
    Top(top::Arguments),
    /// Have a running process read its configuration again
    Reload(reload::Arguments),
    /// Give a listener or a backend of a running process no new sessions
    Drain(drain::Arguments),
    /// Undo drain
    Resume(resume::Arguments),
    /// Have a running process hand over to a new one of the binary that is installed now
    Upgrade(upgrade::Arguments),
    /// Show what would become of a client of a running process, and why
    Explain(explain::Arguments),
    /// Print what the workers of a running process did last, a line of JSON per moment
    Dump(dump::Arguments),
}

/// Why a subcommand failed. `Display` is what the user reads.
#[derive(Debug)]
enum Error {
    /// The configuration is wrong.
    Configuration(Box<Diagnostics>),
    /// The proxy can't run.
    Control(control::Error),
    /// The demo can't have an address.
    Address(String, io::Error),
    /// `doctor` found that ringress can't run here; its report has said why.
    CannotRun,
    /// stdout can't be written to.
    Output(io::Error),
    /// A file can't be read, or has no place.
    File(PathBuf, io::Error),
    /// A process did not do what it was asked.
    Process(ClientError),
    /// This file asks for no control socket, and no process answers where one would be.
    NoSocket(PathBuf),
    /// There is no terminal to draw on.
    NoTerminal,
    /// What was waited for does not drain any more.
    Resumed(Part),
}

impl From<control::Error> for Error {
    fn from(error: control::Error) -> Self {
        Self::Control(error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configuration(diagnostics) => diagnostics.fmt(f),
            Self::Control(error) => error.fmt(f),
            Self::Address(address, error) if error.kind() == io::ErrorKind::AddrInUse => write!(
                f,
                "{address} is in use: choose another, for instance \
                 `ringress demo --listen 127.0.0.1:0`"
            ),
            Self::Address(address, error) => write!(f, "can't listen on {address}: {error}"),
            Self::CannotRun => f.write_str("this machine lacks something required, see above"),
            Self::Output(error) => write!(f, "can't write to stdout: {error}"),
            Self::File(path, error) => write!(f, "can't read {}: {error}", path.display()),
            Self::Process(error) => error.fmt(f),
            Self::NoSocket(file) => write!(
                f,
                "no process answers, and {} says runtime.control_socket = \"off\": without it there are \
                 only signals (SIGHUP, SIGTERM)",
                file.display()
            ),
            Self::NoTerminal => f.write_str(
                "top draws on a terminal, and stdout is none: for scripts and files there is \
                 `ringress status --format json`",
            ),
            Self::Resumed(part) => write!(
                f,
                "{part} is not draining any more: it was resumed, or a reload took it away"
            ),
        }
    }
}

/// Reads and checks a configuration file.
fn load_file(path: &Path) -> Result<Config, Error> {
    config::load(path).map_err(|diagnostics| Error::Configuration(Box::new(diagnostics)))
}

/// Checks configuration text; `name` stands for the file in what is reported.
fn load_text(text: &str, name: &str) -> Result<Config, Error> {
    config::parse(text, name, &mut config::SystemResolver)
        .map_err(|diagnostics| Error::Configuration(Box::new(diagnostics)))
}

/// Runs the proxy until it is told to end. `source` is read again on SIGHUP.
fn serve(config: Config, source: Option<PathBuf>) -> Result<(), Error> {
    log::start(&config.log);
    Ok(control::run(config, source)?)
}

/// Writes to stdout. A reader that has gone away (`ringress doctor | head -1`) is fine.
fn print(text: &str) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::Output(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_is_wanted_parses_and_what_is_wrong_does_not() {
        for line in [
            "ringress run -c a.toml",
            "ringress doctor",
            "ringress init",
            "ringress plan new.toml --from old.toml --format json",
            "ringress demo",
            "ringress demo --listen 127.0.0.1:0",
            "ringress tcp 127.0.0.1:8080 10.0.0.1:80 10.0.0.2:80",
            "ringress status -c a.toml",
            "ringress status --socket a.sock --format json",
            "ringress status -c a.toml --json",
            "ringress reload --config a.toml",
            "ringress top -c a.toml",
            "ringress top --socket a.sock",
            "ringress upgrade -c a.toml",
            "ringress plan new.toml",
            "ringress plan new.toml -c a.toml --format json",
            "ringress plan new.toml --socket a.sock",
            "ringress drain -c a.toml --listener web --deadline 30s --wait",
            "ringress drain --socket a.sock --backend app/b1",
            "ringress resume -c a.toml --listener web",
            "ringress explain -c a.toml --listener web --client 203.0.113.9",
            "ringress explain --socket a.sock --listener web --client ::1 --sni a.example --json",
            "ringress dump -c a.toml --worker 1 --last 100",
            "ringress dump --socket a.sock --session 1:77",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        for line in [
            "ringress",
            "ringress run",
            "ringress plan --from old.toml",
            "ringress demo --listen nonsense",
            "ringress tcp 127.0.0.1:8080",
            "ringress tcp",
            "ringress doctor x",
            "ringress status",
            "ringress top",
            "ringress top -c a.toml --format json",
            "ringress status -c a.toml --json --format text",
            "ringress reload -c a.toml --socket a.sock",
            "ringress plan",
            "ringress plan -c a.toml",
            "ringress plan new.toml -c a.toml --from old.toml",
            "ringress drain -c a.toml",
            "ringress drain --listener web",
            "ringress drain -c a.toml --listener web --backend app/b1",
            "ringress drain -c a.toml --backend app",
            "ringress drain -c a.toml --listener web --deadline 30",
            "ringress resume -c a.toml",
            "ringress resume -c a.toml --listener web --wait",
            "ringress explain -c a.toml --listener web",
            "ringress explain -c a.toml --client 203.0.113.9",
            "ringress explain -c a.toml --listener web --client web",
            "ringress explain -c a.toml --listener web --client 203.0.113.9:80",
            "ringress dump",
            "ringress dump -c a.toml --worker 1 --session 1:77",
            "ringress dump -c a.toml --session 77",
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn a_taken_port_says_how_to_choose_another() {
        let taken = io::Error::from(io::ErrorKind::AddrInUse);
        let message = Error::Address("127.0.0.1:8080".to_owned(), taken).to_string();
        assert!(message.starts_with("127.0.0.1:8080 is in use"), "{message}");
        assert!(message.contains("--listen"), "{message}");
    }
}
