//! The command's side of the control socket. Blocks, and has an end: it waits for a process no longer
//! than it is told to.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use super::protocol::{self, Command, Outcome, ProtocolError, REQUEST_BYTES_MAX, Reply};

/// Asks the first process that answers at one of `paths`. `timeout` is how long it may be silent.
///
/// # Errors
/// Nobody answers, it refuses, or it does not keep to the protocol. Whoever was reached may have carried out
/// the command all the same, unless the error is [`ClientError::NoProcess`] or [`ClientError::Refused`].
pub fn ask(
    paths: &[PathBuf],
    command: &Command,
    timeout: Duration,
) -> Result<Outcome, ClientError> {
    ask_along(paths, command, timeout, &mut |_| ())
}

/// The same; `along` hears of each moment of a dump, which is an object of JSON, before the outcome is there.
///
/// # Errors
/// As [`ask`]. What `along` has heard until then was true.
pub fn ask_along(
    paths: &[PathBuf],
    command: &Command,
    timeout: Duration,
    along: &mut dyn FnMut(&str),
) -> Result<Outcome, ClientError> {
    let request = protocol::line(command).map_err(ClientError::NotUnderstood)?;
    if request.len() > REQUEST_BYTES_MAX {
        return Err(ClientError::TooLong);
    }
    let (path, stream) = reach(paths)?;
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ClientError::Silent {
            path: path.to_owned(),
            timeout,
        },
        _ => ClientError::Broken {
            path: path.to_owned(),
            error,
        },
    };
    stream.set_read_timeout(Some(timeout)).map_err(failed)?;
    stream.set_write_timeout(Some(timeout)).map_err(failed)?;
    // Whoever turns us away does so without reading what we send, so that the reply counts and not
    // that sending failed.
    let sent = (&stream).write_all(&request);
    let mut lines = BufReader::new((&stream).take(REPLY_BYTES_MAX));
    match (reply(&mut lines, along), sent) {
        (Ok(outcome), _) => outcome,
        (Err(_), Err(error)) | (Err(error), Ok(())) => Err(failed(error)),
    }
}

/// A status has some hundred bytes per backend, a dump two hundred per moment: a MiB per worker.
const REPLY_BYTES_MAX: u64 = 1 << 30;

/// Reads up to the final line.
fn reply(
    lines: &mut impl BufRead,
    along: &mut dyn FnMut(&str),
) -> io::Result<Result<Outcome, ClientError>> {
    let mut line = Vec::new();
    loop {
        line.clear();
        lines.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\n") {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(moment) = protocol::moment_in(&line) {
            along(moment);
            continue;
        }
        return Ok(match Reply::parse(&line) {
            Ok(None) => continue,
            Ok(Some(Reply::Done(outcome))) => Ok(outcome),
            Ok(Some(Reply::Failed { error })) => Err(ClientError::Refused(error)),
            Err(error) => Err(ClientError::NotUnderstood(error)),
        });
    }
}

/// Connects to the first path where somebody answers.
fn reach(paths: &[PathBuf]) -> Result<(&Path, UnixStream), ClientError> {
    let mut tried = Vec::new();
    for path in paths {
        match connect(path) {
            Ok(stream) => return Ok((path, stream)),
            Err(error) => tried.push((path.clone(), error)),
        }
    }
    Err(ClientError::NoProcess { tried })
}

/// Connects to a unix socket, or fails at once: a process that does not accept any more holds nobody up.
pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)?;
    socket.set_nonblocking(false)?;
    Ok(socket.into())
}

/// Why a command has no outcome. `Display` is what the user reads.
#[derive(Debug)]
pub enum ClientError {
    /// Nobody answers at any of these paths.
    NoProcess {
        /// Each with what connect(2) says.
        tried: Vec<(PathBuf, io::Error)>,
    },
    /// The process says no, in its words.
    Refused(String),
    /// The process is silent.
    Silent {
        /// Where it is.
        path: PathBuf,
        /// For how long.
        timeout: Duration,
    },
    /// The connection ended before the reply did.
    Broken {
        /// Where the process is.
        path: PathBuf,
        /// As read(2) or write(2).
        error: io::Error,
    },
    /// The request is longer than a process would read.
    TooLong,
    /// The reply makes no sense to this version.
    NotUnderstood(ProtocolError),
}

impl std::error::Error for ClientError {}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoProcess { tried } => no_process(f, tried),
            Self::Refused(error) => f.write_str(error),
            Self::Silent { path, timeout } => write!(
                f,
                "the process at {} has not answered for {}; it may still do what it was asked: \
                 see `ringress status` and its log",
                path.display(),
                humantime::format_duration(*timeout)
            ),
            Self::Broken { path, error } if error.kind() == io::ErrorKind::UnexpectedEof => write!(
                f,
                "the process at {} has ended, or broke off, before it answered: see its log",
                path.display()
            ),
            Self::Broken { path, error } => {
                write!(f, "lost the process at {}: {error}", path.display())
            }
            Self::TooLong => write!(
                f,
                "too long for the control socket, which takes {} MiB",
                REQUEST_BYTES_MAX >> 20
            ),
            Self::NotUnderstood(error) => {
                write!(
                    f,
                    "the process runs another version of ringress: its answer is {error}"
                )
            }
        }
    }
}

fn no_process(f: &mut fmt::Formatter<'_>, tried: &[(PathBuf, io::Error)]) -> fmt::Result {
    f.write_str("no process answers")?;
    for (path, error) in tried {
        let why = match error.kind() {
            io::ErrorKind::NotFound => "there is no such socket".to_owned(),
            io::ErrorKind::ConnectionRefused => "nobody listens on it".to_owned(),
            io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
            io::ErrorKind::WouldBlock => "the process does not accept".to_owned(),
            _ => error.to_string(),
        };
        write!(f, "\n  {}: {why}", path.display())?;
    }
    let denied = |(_, error): &(_, io::Error)| error.kind() == io::ErrorKind::PermissionDenied;
    if tried.iter().any(denied) {
        f.write_str("\nRun it as the user of the process, or as root.")
    } else {
        f.write_str(
            "\nIs ringress running with this file? -c has to name it by the same path; \
             --socket names the socket itself.",
        )
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread::{self, JoinHandle};

    use super::super::protocol::{Reloaded, Upgraded};
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A process that says `reply` to one request and hands back what it was asked.
    fn process(path: &Path, reply: &'static [u8]) -> JoinHandle<String> {
        let listener = UnixListener::bind(path).unwrap();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut request = String::new();
            BufReader::new(&stream).read_line(&mut request).unwrap();
            (&stream).write_all(reply).unwrap();
            request
        })
    }

    fn asked(reply: &'static [u8]) -> Result<Outcome, ClientError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let process = process(&path, reply);
        let outcome = ask(&[path], &Command::Reload, PATIENCE);
        assert_eq!(process.join().unwrap(), "{\"command\":\"reload\"}\n");
        outcome
    }

    fn said(error: &ClientError, parts: &[&str]) {
        let error = error.to_string();
        for part in parts {
            assert!(error.contains(part), "{part} is missing in: {error}");
        }
    }

    #[test]
    fn the_outcome_is_in_the_final_line() {
        let reply = b"{\"progress\":1}\n{\"done\":{\"reloaded\":{\"generation\":2}}}\n{\"x\":1}\n";
        let expected = Outcome::Reloaded(Reloaded {
            generation: 2,
            changes: Vec::new(),
        });
        assert_eq!(asked(reply).unwrap(), expected);
    }

    #[test]
    fn moments_are_heard_before_the_outcome_and_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let reply =
            b"{\"moment\":{\"b\":1,\"a\":{}}}\n{\"moment\":{}}\n{\"done\":{\"dumped\":{}}}\n";
        let process = process(&path, reply);
        let mut heard = Vec::new();
        let command = Command::Dump(protocol::Wanted::default());
        let along = &mut |moment: &str| heard.push(moment.to_owned());
        let outcome = ask_along(&[path], &command, PATIENCE, along);
        process.join().unwrap();
        assert_eq!(
            outcome.unwrap(),
            Outcome::Dumped(protocol::Dumped::default())
        );
        assert_eq!(heard, ["{\"b\":1,\"a\":{}}", "{}"]);
    }

    #[test]
    fn a_refusal_is_in_the_words_of_the_process() {
        let error = asked(b"{\"failed\":{\"error\":\"a\\nb\"}}\n").unwrap_err();
        assert!(matches!(&error, ClientError::Refused(said) if said == "a\nb"));
        assert_eq!(error.to_string(), "a\nb");
    }

    #[test]
    fn half_an_answer_is_none() {
        for reply in [&b""[..], b"{\"done\":{\"upgraded\":{\"pid\":5}}}"] {
            let error = asked(reply).unwrap_err();
            said(&error, &["a.sock has ended", "before it answered"]);
        }
    }

    #[test]
    fn an_answer_of_another_version_is_called_that() {
        for reply in [&b"hello\n"[..], b"{\"done\":{\"exploded\":{}}}\n"] {
            said(&asked(reply).unwrap_err(), &["another version"]);
        }
    }

    #[test]
    fn a_process_that_turns_us_away_unread_is_heard() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let process = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            (&stream)
                .write_all(b"{\"failed\":{\"error\":\"no\"}}\n")
                .unwrap();
        });
        let text = "x".repeat(1 << 20);
        let file = "a.toml".to_owned();
        let error = ask(&[path], &Command::Plan { file, text }, PATIENCE).unwrap_err();
        process.join().unwrap();
        said(&error, &["no"]);
    }

    #[test]
    fn a_silent_process_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let error = ask(&[path], &Command::Status, Duration::from_millis(10)).unwrap_err();
        said(&error, &["has not answered for 10ms"]);
    }

    #[test]
    fn the_first_path_where_somebody_answers_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let [missing, stale, live] = ["a", "b", "c"].map(|name| folder.path().join(name));
        drop(UnixListener::bind(&stale).unwrap());
        let process = process(&live, b"{\"done\":{\"upgraded\":{\"pid\":5}}}\n");
        let outcome = ask(&[missing, stale, live], &Command::Upgrade, PATIENCE).unwrap();
        assert_eq!(outcome, Outcome::Upgraded(Upgraded { pid: 5 }));
        process.join().unwrap();
    }

    #[test]
    fn when_nobody_answers_every_path_is_told_and_what_to_check() {
        let folder = tempfile::tempdir().unwrap();
        let [missing, stale] = ["a", "b"].map(|name| folder.path().join(name));
        drop(UnixListener::bind(&stale).unwrap());
        let error = ask(&[missing, stale], &Command::Status, PATIENCE).unwrap_err();
        let parts = ["/a: there is no such socket", "/b: nobody listens on it"];
        said(&error, &parts);
        said(&error, &["with this file?", "by the same path"]);
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let tried = vec![("/x".into(), denied)];
        let error = ClientError::NoProcess { tried };
        said(
            &error,
            &[
                "/x: permission denied",
                "as the user of the process, or as root",
            ],
        );
    }

    #[test]
    fn a_request_that_no_process_would_read_is_not_sent() {
        let text = "x".repeat(REQUEST_BYTES_MAX);
        let file = "a.toml".to_owned();
        let error = ask(&[], &Command::Plan { file, text }, PATIENCE).unwrap_err();
        said(&error, &["too long", "8 MiB"]);
    }
}
