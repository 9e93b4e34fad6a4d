//! What an operator asks of a running proxy: the real commands, which find it by its configuration.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::proxy::text;
use super::{PATIENCE, Proxy};

/// What came of a command.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Proxy {
    /// `ringress` with these words, for this process.
    pub(crate) fn command(&self, words: &str) -> Command {
        let mut command = command_in(&self.runtime_folder(), words);
        command.arg("-c").arg(self.file());
        command
    }

    /// Runs it.
    pub(crate) fn ask(&self, words: &str) -> Said {
        said(self.command(words))
    }

    /// Runs it; it has to succeed. Returns what it printed.
    pub(crate) fn done(&self, words: &str) -> String {
        let said = self.ask(words);
        assert_eq!(said.code, Some(0), "{words}: {said:?}");
        assert_eq!(said.stderr, "", "{words}");
        said.stdout
    }

    /// Runs it; it has to fail. Returns what it said of that.
    pub(crate) fn refused(&self, words: &str) -> String {
        let said = self.ask(words);
        assert_eq!(said.code, Some(1), "{words}: {said:?}");
        assert_eq!(said.stdout, "", "{words}");
        said.stderr
    }

    /// What the process says of itself.
    pub(crate) fn status(&self) -> Value {
        serde_json::from_str(&self.done("status --format json")).expect("it is JSON")
    }

    /// Where the process says that it listens for commands.
    pub(crate) fn control_socket(&self) -> PathBuf {
        let lines = self.lines();
        let mut lines = lines.iter();
        let line = lines.find(|line| line["message"] == "control socket");
        text(line.expect("it has one"), "path").into()
    }

    /// A connection to that socket.
    pub(crate) fn visitor(&self) -> UnixStream {
        let stream = UnixStream::connect(self.control_socket()).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }

    /// The folder with its control socket.
    pub(crate) fn runtime_folder(&self) -> PathBuf {
        self.file().parent().expect("it has one").to_owned()
    }
}

/// `ringress` with these words, where control sockets are in `folder`.
pub(crate) fn command_in(folder: &Path, words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringress"));
    command
        .args(words.split_whitespace())
        .env("RUNTIME_DIRECTORY", folder)
        .env_remove("XDG_RUNTIME_DIR")
        .stdin(Stdio::null());
    command
}

/// Runs a command to its end.
pub(crate) fn said(mut command: Command) -> Said {
    let output = command.output().expect("the binary was built");
    let text = |bytes| String::from_utf8(bytes).expect("what is printed is UTF-8");
    Said {
        code: output.status.code(),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// The entry of this name in a list of a status.
pub(crate) fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let mut entries = list.as_array().expect("a list").iter();
    let found = entries.find(|entry| entry["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {list}"))
}
