//! The command line: arguments → subcommand → exit code. 0 is fine, 1 an error, 2 wrong usage.

mod backend;
mod compare;
mod reload;
mod self_check;
mod tcp;
mod udp;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::Error;

/// Runs the subcommand that the process's arguments ask for.
pub fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Tcp(arguments) => tcp::run(&arguments),
        Command::Udp(arguments) => udp::run(&arguments),
        Command::Backend(arguments) => backend::run(&arguments),
        Command::Compare(arguments) => compare::run(&arguments),
        Command::Reload(arguments) => reload::run(&arguments),
        Command::SelfCheck => self_check::run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // With stderr closed the exit code still tells.
            let _ = writeln!(io::stderr(), "ringress-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Load generator and comparison harness of ringress
#[derive(Parser, Debug)]
#[command(name = "ringress-bench", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Put load on a TCP address: saturation, a fixed rate, new connections, downloads, idle ones
    Tcp(tcp::Arguments),
    /// Put load on a UDP address: saturation, a fixed rate, bursts to or from a backend
    Udp(udp::Arguments),
    /// Run a backend: echo, downloads of a counted pattern, and with UDP echo or bursts
    Backend(backend::Arguments),
    /// Compare ringress with the other proxies that are installed
    Compare(compare::Arguments),
    /// Measure what reloads and upgrades cost and lose under new connections at a fixed rate
    Reload(reload::Arguments),
    /// Show that a stall of the backend is seen and not hidden
    SelfCheck,
}

/// Writes to stdout. A reader that has gone away is fine.
fn print(text: &str) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::while_doing("writing to stdout")(error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn what_is_wanted_parses_and_what_is_wrong_does_not() {
        let parse = |line: &str| Arguments::try_parse_from(line.split_whitespace());
        for line in [
            "ringress-bench tcp 127.0.0.1:80",
            "ringress-bench tcp [::1]:80 --connections 512 --duration 10s --warmup 500ms --json",
            "ringress-bench tcp 127.0.0.1:80 --rate 20000 --size 128",
            "ringress-bench tcp 127.0.0.1:80 --new-connections",
            "ringress-bench tcp 127.0.0.1:80 --new-connections --rate 9000",
            "ringress-bench tcp 127.0.0.1:80 --download 67108864",
            "ringress-bench tcp 127.0.0.1:80 --idle --connections 5000",
            "ringress-bench tcp 127.0.0.1:443 --tls cert.pem --rate 500",
            "ringress-bench tcp 127.0.0.1:443 --tls cert.pem --new-connections --resume",
            "ringress-bench udp 127.0.0.1:53",
            "ringress-bench udp [::1]:53 --sources 500 --outstanding 4 --size 65507 --json",
            "ringress-bench udp 127.0.0.1:53 --rate 20000 --timeout 2s --from 127.0.0.2-127.0.0.9",
            "ringress-bench udp 127.0.0.1:53 --segments 40 --size 1200 --outstanding 2",
            "ringress-bench udp 127.0.0.1:53 --segments 40 --size 1200 --download",
            "ringress-bench backend 127.0.0.1:0",
            "ringress-bench backend 127.0.0.1:0 --udp",
            "ringress-bench backend 127.0.0.1:0 --udp-bursts --cpu 1",
            "ringress-bench backend 127.0.0.1:0 --download --cpu 1",
            "ringress-bench self-check",
            "ringress-bench compare",
            "ringress-bench compare --only echo-64,idle --peers ringress,nginx --rounds 2",
            "ringress-bench compare --seconds 0.5 --show-configs",
            "ringress-bench compare --udp --peers nginx",
            "ringress-bench compare --tls --peers nginx,haproxy",
            "ringress-bench compare --only tls-handshakes,tls-resumed,tls-idle",
            "ringress-bench compare --only echo-64,udp-64,udp-bulk",
            "ringress-bench reload",
            "ringress-bench reload --reloads 60 --over 8s --rate 9000 --peers nginx,haproxy",
            "ringress-bench reload --upgrades 50 --over 60s --kept 100 --kept-rate 500 --listener",
        ] {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        for line in [
            "ringress-bench",
            "ringress-bench tcp",
            "ringress-bench tcp 127.0.0.1:80 --rate 0",
            "ringress-bench tcp 127.0.0.1:80 --connections 0",
            "ringress-bench tcp 127.0.0.1:80 --size 0",
            "ringress-bench tcp 127.0.0.1:80 --rate 5 --idle",
            "ringress-bench tcp 127.0.0.1:80 --new-connections --resume",
            "ringress-bench tcp 127.0.0.1:443 --tls cert.pem --resume",
            "ringress-bench tcp 127.0.0.1:443 --tls c.pem --new-connections --rate 5 --resume",
            "ringress-bench tcp 127.0.0.1:80 --rate 5 --download 5",
            "ringress-bench tcp 127.0.0.1:80 --idle --download 5",
            "ringress-bench tcp 127.0.0.1:80 --duration 5",
            "ringress-bench udp 127.0.0.1:53 --size 27",
            "ringress-bench udp 127.0.0.1:53 --size 65508",
            "ringress-bench udp 127.0.0.1:53 --sources 0",
            "ringress-bench udp 127.0.0.1:53 --rate 5 --outstanding 2",
            "ringress-bench udp 127.0.0.1:53 --rate 5 --segments 2",
            "ringress-bench udp 127.0.0.1:53 --download",
            "ringress-bench udp 127.0.0.1:53 --from 127.0.0.9-127.0.0.2",
            "ringress-bench backend 127.0.0.1:0 --echo --download",
            "ringress-bench backend 127.0.0.1:0 --udp --echo",
            "ringress-bench compare --only nonsense",
            "ringress-bench compare --udp --only udp-64",
            "ringress-bench compare --tls --only tls-idle",
            "ringress-bench compare --tls --udp",
            "ringress-bench compare --peers nonsense",
            "ringress-bench compare --seconds 0",
            "ringress-bench compare --rounds 0",
            "ringress-bench reload --upgrades 5 --reloads 5",
            "ringress-bench reload --reloads 0",
            "ringress-bench reload --rate 0",
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
