//! What goes over the control socket: one JSON object per line. A connection carries one request and its
//! replies; `done` and `failed` are final, lines of any other kind before them may be skipped. Unknown
//! fields are skipped too, and missing ones have a default where there can be one, so that a binary
//! understands an older or newer one's process.
//!
//! ```text
//! {"command":"drain","part":{"upstream":"app","backend":"b1"},"deadline_ms":30000}
//! {"done":{"drained":{"part":{"upstream":"app","backend":"b1"},"sessions_left":7}}}
//! ```
//!
//! A dump brings its moments in lines like `{"moment":{…}}` before the final one: there may be many.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use super::explained::{Explained, Question};
pub use super::moments::{Noted, Teller, ToldMoment, Wanted};
use super::pulse::{NewsLine, Pulse};
pub use super::status::Status;
use crate::config::diff::Change;
use crate::telemetry::recorder::Moment;
use crate::time::millis;

/// Bytes of a request with its newline at most: it may carry a whole configuration.
pub const REQUEST_BYTES_MAX: usize = 8 << 20;

/// What a process can be asked to do.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum Command {
    /// To tell about itself.
    Status,
    /// To tell of the last second, and what there is new.
    Pulse {
        /// The number of the last line that is known; 0 = none is.
        #[serde(default)]
        news_after: u64,
    },
    /// To read its configuration again, as SIGHUP does, and to tell what came of it.
    Reload,
    /// To hand over to a new process.
    Upgrade,
    /// To tell what a reload with this configuration would change.
    Plan {
        /// The file's name, for what is said about it.
        file: String,
        /// What is in it.
        text: String,
    },
    /// To give a part of itself no new sessions.
    Drain {
        /// Which part.
        part: Part,
        /// How long its sessions may go on, in whole milliseconds; `None` = as long as they like.
        #[serde(default, rename = "deadline_ms", with = "milliseconds")]
        deadline: Option<Duration>,
    },
    /// To undo [`Command::Drain`].
    Resume {
        /// Which part.
        part: Part,
    },
    /// To tell what would become of a client.
    Explain(Question),
    /// To tell what its workers did last.
    Dump(Wanted),
    /// To let a worker panic, for tests; answered like [`Command::Status`].
    #[cfg(debug_assertions)]
    Panic {
        /// Its number.
        worker: usize,
        /// Where.
        spot: crate::proxy::Spot,
    },
}

impl Command {
    /// Its word on the wire.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Pulse { .. } => "pulse",
            Self::Reload => "reload",
            Self::Upgrade => "upgrade",
            Self::Plan { .. } => "plan",
            Self::Drain { .. } => "drain",
            Self::Resume { .. } => "resume",
            Self::Explain(_) => "explain",
            Self::Dump(_) => "dump",
            #[cfg(debug_assertions)]
            Self::Panic { .. } => "panic",
        }
    }

    /// Reads a request's line, with or without its newline.
    ///
    /// # Errors
    /// It is no request, or one that only another version knows.
    pub fn parse(line: &[u8]) -> Result<Self, ProtocolError> {
        let value: Value = serde_json::from_slice(line)?;
        let name = value
            .get("command")
            .and_then(Value::as_str)
            .map(String::from);
        let name = name.ok_or(ProtocolError::NoCommand)?;
        let is_known = NAMES.contains(&name.as_str()) || cfg!(debug_assertions) && name == "panic";
        if !is_known {
            return Err(ProtocolError::UnknownCommand(name));
        }
        Ok(serde_json::from_value(value)?)
    }
}

/// Every command's word.
const NAMES: [&str; 9] = [
    "status", "pulse", "reload", "upgrade", "plan", "drain", "resume", "explain", "dump",
];

/// What can be drained while the rest goes on.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "a part is {\"listener\": NAME} or {\"upstream\": NAME, \"backend\": NAME}"
)]
pub enum Part {
    /// A listener.
    Listener {
        /// Its name.
        listener: String,
    },
    /// A backend of an upstream.
    Backend {
        /// The upstream's name.
        upstream: String,
        /// The backend's name.
        backend: String,
    },
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listener { listener } => write!(f, "listener \"{listener}\""),
            Self::Backend { upstream, backend } => write!(f, "backend \"{upstream}/{backend}\""),
        }
    }
}

/// The final answer to a request.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// It is done.
    Done(Outcome),
    /// Nothing has changed.
    Failed {
        /// Why, and what to do; may have several lines.
        error: String,
    },
}

impl Reply {
    /// A request that failed.
    pub fn failed(error: impl fmt::Display) -> Self {
        let error = error.to_string();
        Self::Failed { error }
    }

    /// Reads a line of a reply; `None` if it is one that comes before the final one.
    ///
    /// # Errors
    /// It is no reply, or the outcome of something that only another version knows.
    pub fn parse(line: &[u8]) -> Result<Option<Self>, ProtocolError> {
        let mut value: Value = serde_json::from_slice(line)?;
        if let Some(outcome) = value.get_mut("done") {
            let outcome = serde_json::from_value(outcome.take())?;
            return Ok(Some(Self::Done(outcome)));
        }
        let error = value.get("failed").and_then(|failed| failed.get("error"));
        Ok(error.and_then(Value::as_str).map(Self::failed))
    }
}

/// What was done.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Of [`Command::Status`].
    Status(Box<Status>),
    /// Of [`Command::Pulse`].
    Pulse(Box<Pulsed>),
    /// Of [`Command::Reload`].
    Reloaded(Reloaded),
    /// Of [`Command::Upgrade`].
    Upgraded(Upgraded),
    /// Of [`Command::Plan`].
    Planned(Planned),
    /// Of [`Command::Drain`].
    Drained(Drained),
    /// Of [`Command::Resume`].
    Resumed(Resumed),
    /// Of [`Command::Explain`].
    Explained(Box<Explained>),
    /// Of [`Command::Dump`].
    Dumped(Dumped),
}

/// The last second.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Pulsed {
    /// What was counted in it, and how the process stood.
    pub pulse: Pulse,
    /// Lines of the log, the oldest first.
    pub news: Vec<NewsLine>,
}

/// Another generation is in effect.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reloaded {
    /// Its number.
    pub generation: u64,
    /// What it changed; empty if nothing.
    #[serde(default)]
    pub changes: Vec<Change>,
}

/// A new process has taken over.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Upgraded {
    /// Of the new one.
    pub pid: u32,
}

/// What a reload would change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Planned {
    /// Empty if nothing.
    #[serde(default)]
    pub changes: Vec<Change>,
}

/// A part gets no new sessions any more.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Drained {
    /// Which part.
    pub part: Part,
    /// Sessions that it still has.
    pub sessions_left: u64,
}

/// A part gets new sessions again.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Resumed {
    /// Which part.
    pub part: Part,
}

/// What the workers did last.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Dumped {
    /// How many moments there are.
    #[serde(default)]
    pub count: u64,
    /// In the order of time. Each has a line of its own, before the final one.
    #[serde(skip)]
    pub noted: Noted,
}

/// A reply as it goes over the socket, in portions of whole lines.
pub(super) fn portions(reply: &Reply) -> impl Iterator<Item = Vec<u8>> {
    let noted = match reply {
        Reply::Done(Outcome::Dumped(dumped)) => Some(&dumped.noted),
        _ => None,
    };
    let along = noted.into_iter().flat_map(|noted| {
        let portions = noted.moments.chunks(MOMENTS_PER_PORTION);
        portions.map(|moments| told(&noted.teller, moments))
    });
    along.chain(std::iter::once_with(|| line(reply).unwrap_or_default()))
}

/// Moments of workers, each a line.
fn told(teller: &Teller, moments: &[(usize, Moment)]) -> Vec<u8> {
    let lines = moments.iter().map(|(worker, moment)| {
        let moment = &teller.tell(*worker, moment);
        line(&Along { moment }).unwrap_or_default()
    });
    lines.collect::<Vec<_>>().concat()
}

/// Some 50 KiB: as much as may well be written at a time.
const MOMENTS_PER_PORTION: usize = 256;

/// A line before the final one.
#[derive(Serialize)]
struct Along<'a> {
    moment: &'a ToldMoment,
}

/// The moment in a line of a reply, as the process has written it: a newer one may have more fields.
pub(super) fn moment_in(line: &[u8]) -> Option<&str> {
    let line = std::str::from_utf8(line).ok()?.trim_end();
    line.strip_prefix("{\"moment\":")?.strip_suffix('}')
}

/// A message as it goes over the socket: one line with its newline.
///
/// # Errors
/// It can't be JSON; no message of this module is like that.
pub(super) fn line(message: &impl Serialize) -> Result<Vec<u8>, ProtocolError> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// Why a line is not understood.
#[derive(Debug)]
pub enum ProtocolError {
    /// It is not JSON, or its fields are not those of its kind.
    Malformed(serde_json::Error),
    /// It does not say what to do.
    NoCommand,
    /// This version does not have the command.
    UnknownCommand(String),
    /// It is the outcome of another command.
    OtherOutcome,
}

impl From<serde_json::Error> for ProtocolError {
    fn from(error: serde_json::Error) -> Self {
        Self::Malformed(error)
    }
}

impl std::error::Error for ProtocolError {}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(error) => write!(f, "not understood: {error}"),
            Self::NoCommand => f.write_str(
                "not understood: expected an object with \"command\", such as {\"command\":\"status\"}",
            ),
            Self::UnknownCommand(name) => write!(
                f,
                "unknown command {name:?}: ringress {} has {}",
                env!("CARGO_PKG_VERSION"),
                NAMES.join(", ")
            ),
            Self::OtherOutcome => f.write_str("the outcome of another command"),
        }
    }
}

/// An optional duration as a number of milliseconds.
mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        duration.map(super::millis).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(deserializer)?.map(Duration::from_millis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Names;
    use crate::telemetry::recorder::What;
    use crate::time::Instant;

    fn backend() -> Part {
        Part::Backend {
            upstream: "app".to_owned(),
            backend: "b1".to_owned(),
        }
    }

    fn listener() -> Part {
        let listener = "web".to_owned();
        Part::Listener { listener }
    }

    fn commands() -> [(Command, &'static str); 10] {
        let drain = |part, deadline| Command::Drain { part, deadline };
        let plan = Command::Plan {
            file: "a.toml".to_owned(),
            text: "x\n\"".to_owned(),
        };
        [
            (Command::Status, r#"{"command":"status"}"#),
            (
                Command::Pulse { news_after: 7 },
                r#"{"command":"pulse","news_after":7}"#,
            ),
            (Command::Reload, r#"{"command":"reload"}"#),
            (Command::Upgrade, r#"{"command":"upgrade"}"#),
            (plan, r#"{"command":"plan","file":"a.toml","text":"x\n\""}"#),
            (
                drain(listener(), Some(Duration::from_secs(30))),
                r#"{"command":"drain","part":{"listener":"web"},"deadline_ms":30000}"#,
            ),
            (
                drain(backend(), None),
                r#"{"command":"drain","part":{"upstream":"app","backend":"b1"},"deadline_ms":null}"#,
            ),
            (
                Command::Resume { part: listener() },
                r#"{"command":"resume","part":{"listener":"web"}}"#,
            ),
            (
                Command::Explain(Question {
                    listener: "web".to_owned(),
                    client: [192, 0, 2, 1].into(),
                    sni: None,
                }),
                r#"{"command":"explain","listener":"web","client":"192.0.2.1","sni":null}"#,
            ),
            (
                Command::Dump(Wanted {
                    worker: Some(1),
                    session: None,
                    last: Some(64),
                }),
                r#"{"command":"dump","worker":1,"session":null,"last":64}"#,
            ),
        ]
    }

    #[test]
    fn a_request_is_one_line_that_old_and_new_binaries_agree_on() {
        for (command, expected) in commands() {
            let line = line(&command).unwrap();
            assert_eq!(
                String::from_utf8(line.clone()).unwrap(),
                format!("{expected}\n")
            );
            assert_eq!(Command::parse(&line).unwrap(), command);
            assert!(expected.starts_with(&format!("{{\"command\":\"{}\"", command.name())));
            assert!(NAMES.contains(&command.name()));
        }
    }

    #[test]
    fn a_reply_is_one_line_that_old_and_new_binaries_agree_on() {
        let left = Drained {
            part: backend(),
            sessions_left: 7,
        };
        let drained =
            r#"{"done":{"drained":{"part":{"upstream":"app","backend":"b1"},"sessions_left":7}}}"#;
        let failed = r#"{"failed":{"error":"a\nb"}}"#;
        for (reply, expected) in [
            (Reply::Done(Outcome::Drained(left)), drained),
            (Reply::failed("a\nb"), failed),
        ] {
            let line = line(&reply).unwrap();
            assert_eq!(
                String::from_utf8(line.clone()).unwrap(),
                format!("{expected}\n")
            );
            assert_eq!(Reply::parse(&line).unwrap(), Some(reply));
        }
    }

    #[test]
    fn fields_that_only_a_newer_binary_knows_are_skipped_and_missing_ones_have_a_default() {
        let parse = |line: &str| Command::parse(line.as_bytes()).unwrap();
        assert_eq!(
            parse(r#"{"command":"reload","soft":true}"#),
            Command::Reload
        );
        assert_eq!(
            parse(r#"{"command":"pulse"}"#),
            Command::Pulse { news_after: 0 }
        );
        assert_eq!(
            parse(r#"{"command":"drain","part":{"listener":"web","of":1},"why":"x"}"#),
            Command::Drain {
                part: listener(),
                deadline: None
            }
        );
        let reply = Reply::parse(br#"{"done":{"reloaded":{"generation":3,"took_ms":1}},"id":4}"#);
        let expected = Reloaded {
            generation: 3,
            changes: Vec::new(),
        };
        let expected = Reply::Done(Outcome::Reloaded(expected));
        assert_eq!(reply.unwrap(), Some(expected));
        let status = Reply::parse(br#"{"done":{"status":{"pid":5,"state":"dreaming"}}}"#).unwrap();
        let Some(Reply::Done(Outcome::Status(status))) = status else {
            panic!("{status:?}");
        };
        assert_eq!((status.pid, status.generation), (5, 0));
    }

    #[test]
    fn a_dump_brings_its_moments_before_the_final_line() {
        let moment = Moment {
            at: Instant::from_nanos(1),
            session: 7,
            what: What::Accept,
            reason: None,
            subject: 0,
            value: 0,
        };
        let names = Names::default();
        names.number("web");
        let noted = Noted {
            teller: Teller::new(&names, Instant::from_nanos(1)),
            moments: vec![(3, moment); 600],
        };
        let expected = noted.teller.tell(3, &moment);
        let dumped = Dumped { count: 600, noted };
        let reply = Reply::Done(Outcome::Dumped(dumped));
        let bytes = portions(&reply).collect::<Vec<_>>().concat();
        let lines: Vec<_> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
        assert_eq!(lines.len(), 601);
        for line in &lines[..600] {
            assert_eq!(Reply::parse(line).unwrap(), None);
            let told = serde_json::from_str::<ToldMoment>(moment_in(line).unwrap());
            assert_eq!(told.unwrap(), expected);
        }
        assert_eq!(lines[600], b"{\"done\":{\"dumped\":{\"count\":600}}}\n");
        assert_eq!(moment_in(lines[600]), None);
    }

    #[test]
    fn what_is_not_final_may_be_skipped() {
        assert_eq!(Reply::parse(br#"{"progress":"half"}"#).unwrap(), None);
    }

    #[test]
    fn what_is_not_understood_says_what_would_be() {
        for (line, said) in [
            ("", "not understood: "),
            ("reload", "not understood: "),
            ("{}", "expected an object with \"command\""),
            (r#"{"command":5}"#, "expected an object with \"command\""),
            (
                r#"{"command":"explode"}"#,
                "unknown command \"explode\": ringress ",
            ),
            (r#"{"command":"drain"}"#, "missing field `part`"),
            (
                r#"{"command":"drain","part":{}}"#,
                "a part is {\"listener\": NAME} or",
            ),
            (
                r#"{"command":"explain","listener":"web","client":"web"}"#,
                "invalid IP address",
            ),
            (
                r#"{"command":"drain","part":{"listener":"web"},"deadline_ms":-1}"#,
                "invalid value: integer `-1`",
            ),
        ] {
            let error = Command::parse(line.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(said), "{line}: {error}");
        }
        assert!(Reply::parse(br#"{"done":{"exploded":{}}}"#).is_err());
    }
}
