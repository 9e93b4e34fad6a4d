//! The proxy under test: the real binary, its configuration in a temporary folder, its log read
//! line by line.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use socket2::Socket;
use tempfile::TempDir;

use super::{PATIENCE, eventually, now};

/// The binary as it was built.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_ringress");

/// A running `ringress run`. It is killed when this goes.
pub(crate) struct Proxy {
    child: Child,
    folder: TempDir,
    log: Arc<Log>,
    /// Sessions that were handed out: line numbers of the log.
    sessions_from: usize,
}

/// A `session closed` line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Session {
    pub(crate) listener: String,
    pub(crate) client: String,
    pub(crate) backend: String,
    pub(crate) reason: String,
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    /// More of the reason, where there is more to say.
    pub(crate) detail: String,
}

/// What was written to stderr so far. A line that is no JSON is a string.
#[derive(Default)]
struct Log {
    state: Mutex<Lines>,
    grown: Condvar,
}

#[derive(Default)]
struct Lines {
    list: Vec<Value>,
    ended: bool,
}

impl Proxy {
    /// Starts with this configuration and waits until it serves.
    pub(crate) fn start(config: &str) -> Self {
        Self::start_without(config, "")
    }

    /// The same, with kernel features left unused.
    pub(crate) fn start_without(config: &str, features: &str) -> Self {
        let proxy = Self::spawn(config, features);
        proxy.wait_line("started", |line| {
            (line["message"] == "started").then_some(())
        });
        proxy
    }

    /// Starts with this configuration, which must fail. Returns the exit code and what it said.
    pub(crate) fn fails(config: &str) -> (Option<i32>, String) {
        let mut proxy = Self::spawn(config, "");
        let code = proxy.wait_exit().code();
        let lines = proxy.log.wait_end();
        let said: Vec<String> = lines
            .iter()
            .map(|line| {
                line.as_str()
                    .map_or_else(|| line.to_string(), str::to_owned)
            })
            .collect();
        (code, said.join("\n"))
    }

    /// Starts without waiting for anything.
    pub(crate) fn spawn(config: &str, features: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder for the configuration");
        Self::spawn_in(folder, BINARY.as_ref(), config, features)
    }

    /// The same with this binary. Configuration and control socket are in `folder`.
    pub(crate) fn spawn_in(folder: TempDir, binary: &Path, config: &str, features: &str) -> Self {
        let mut command = Command::new(binary);
        command
            .env("RINGRESS_WITHOUT", features)
            .stdin(Stdio::null());
        Self::launch(folder, config, command)
    }

    /// Starts `command`, which has to become ringress with the arguments that are added here, without
    /// waiting for anything. Configuration and control socket are in `folder`.
    pub(crate) fn launch(folder: TempDir, config: &str, mut command: Command) -> Self {
        let file = folder.path().join("ringress.toml");
        std::fs::write(&file, with_log(config)).expect("the folder can be written to");
        let mut child = command
            .args(["run", "-c"])
            .arg(file)
            .env("RUNTIME_DIRECTORY", folder.path())
            .stderr(Stdio::piped())
            .spawn()
            .expect("there is such a command");
        let log = Arc::new(Log::default());
        let (stderr, lines) = (child.stderr.take().expect("it is piped"), log.clone());
        thread::spawn(move || lines.read(stderr));
        Self {
            child,
            folder,
            log,
            sessions_from: 0,
        }
    }

    /// Every line, once the process has ended.
    pub(crate) fn last_lines(&mut self) -> Vec<Value> {
        self.wait_exit();
        self.log.wait_end()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The first address that `listener` got.
    pub(crate) fn address(&self, listener: &str) -> String {
        self.addresses(listener).remove(0)
    }

    /// All addresses that `listener` got since the first line, in the order of the configuration.
    pub(crate) fn addresses(&self, listener: &str) -> Vec<String> {
        self.addresses_since(0, listener)
    }

    /// The same since this line.
    pub(crate) fn addresses_since(&self, from: usize, listener: &str) -> Vec<String> {
        let lines = self.lines();
        lines
            .iter()
            .skip(from)
            .filter(|line| line["message"] == "listening" && line["listener"] == listener)
            .map(|line| text(line, "address"))
            .collect()
    }

    /// A client's connection to the listener `web`.
    pub(crate) fn connect(&self) -> Socket {
        super::connect(&self.address("web"))
    }

    /// The next session that ended.
    pub(crate) fn next_session(&mut self) -> Session {
        let from = self.sessions_from;
        let (at, session) = self.log.wait(from, "a session to end", Session::of);
        self.sessions_from = at + 1;
        session
    }

    /// The next `count` sessions that ended.
    pub(crate) fn next_sessions(&mut self, count: usize) -> Vec<Session> {
        (0..count).map(|_| self.next_session()).collect()
    }

    /// Waits for a line, from the first one on.
    pub(crate) fn wait_line<T>(&self, what: &str, pick: impl Fn(&Value) -> Option<T>) -> T {
        self.log.wait(0, what, pick).1
    }

    /// Waits for the next line with this beginning of its message, after the `from`th line.
    pub(crate) fn wait_message(&self, from: usize, beginning: &str) -> Value {
        let starts = |line: &Value| text(line, "message").starts_with(beginning);
        let pick = |line: &Value| starts(line).then(|| line.clone());
        self.log.wait(from, beginning, pick).1
    }

    /// Waits for the next line with this message about a backend, after the `from`th line. Returns its
    /// number as well.
    pub(crate) fn wait_about(&self, from: usize, message: &str, backend: &str) -> (usize, Value) {
        let what = format!("{message}: {backend}");
        self.log.wait(from, &what, |line| {
            is_about(line, message, backend).then(|| line.clone())
        })
    }

    /// How many lines with this message there are about a backend.
    pub(crate) fn count_about(&self, message: &str, backend: &str) -> usize {
        let lines = self.lines();
        let about = lines.iter().filter(|line| is_about(line, message, backend));
        about.count()
    }

    /// Every line so far.
    pub(crate) fn lines(&self) -> Vec<Value> {
        self.log.locked().list.clone()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.rustix_pid(), signal).expect("it runs");
    }

    pub(crate) fn rustix_pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Writes the configuration anew and sends SIGHUP. Returns the line that says what came of it.
    pub(crate) fn reload(&self, config: &str) -> Value {
        self.write(config);
        self.reload_file()
    }

    /// The same with the file as it is.
    pub(crate) fn reload_file(&self) -> Value {
        let from = self.lines().len();
        self.signal(Signal::HUP);
        self.wait_message(from, "reload")
    }

    /// Replaces the configuration's file by another one.
    pub(crate) fn write(&self, config: &str) {
        let (file, new) = (self.file(), self.file().with_extension("new"));
        std::fs::write(&new, with_log(config)).expect("the folder can be written to");
        std::fs::rename(new, file).expect("the folder can be written to");
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.folder.path().join("ringress.toml")
    }

    /// Waits for the process to end by itself.
    pub(crate) fn wait_exit(&mut self) -> ExitStatus {
        eventually("the process to end", || {
            self.child.try_wait().expect("it is our child")
        })
    }

    /// Ends it with SIGTERM; with no session left it has to end well.
    pub(crate) fn end(mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.wait_exit().code(), Some(0));
    }

    /// Ends it with two SIGTERM, whatever sessions are left.
    pub(crate) fn end_now(mut self) {
        self.signal(Signal::TERM);
        self.wait_message(0, "draining");
        self.signal(Signal::TERM);
        assert_eq!(self.wait_exit().code(), Some(0));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            for line in self.lines().iter().rev().take(20).rev() {
                eprintln!("ringress: {line}");
            }
        }
    }
}

impl Session {
    fn of(line: &Value) -> Option<Self> {
        let number = |key: &str| line[key].as_u64().expect("a number");
        (line["message"] == "session closed").then(|| Self {
            listener: text(line, "listener"),
            client: text(line, "client"),
            backend: text(line, "backend"),
            reason: text(line, "reason"),
            bytes_received: number("bytes_received"),
            bytes_sent: number("bytes_sent"),
            detail: text(line, "detail"),
        })
    }
}

impl Log {
    fn read(&self, stderr: ChildStderr) {
        for line in BufReader::new(stderr).lines() {
            let Ok(line) = line else { break };
            let parsed = serde_json::from_str(&line).unwrap_or(Value::String(line));
            self.locked().list.push(parsed);
            self.grown.notify_all();
        }
        self.locked().ended = true;
        self.grown.notify_all();
    }

    /// Waits for a line at `from` or later that `pick` takes; returns its number as well.
    fn wait<T>(&self, from: usize, what: &str, pick: impl Fn(&Value) -> Option<T>) -> (usize, T) {
        let until = now() + PATIENCE;
        let mut at = from;
        let mut lines = self.locked();
        loop {
            while let Some(line) = lines.list.get(at) {
                if let Some(picked) = pick(line) {
                    return (at, picked);
                }
                at += 1;
            }
            let left = until.saturating_duration_since(now());
            assert!(!left.is_zero() && !lines.ended, "waited in vain: {what}");
            let waited = self.grown.wait_timeout(lines, left);
            lines = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Every line, once stderr is closed.
    fn wait_end(&self) -> Vec<Value> {
        eventually("stderr to close", || {
            let lines = self.locked();
            lines.ended.then(|| lines.list.clone())
        })
    }

    fn locked(&self) -> MutexGuard<'_, Lines> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn with_log(config: &str) -> String {
    if config.contains("[log]") {
        return config.to_owned();
    }
    format!("{config}\n[log]\nlevel = \"debug\"\nformat = \"json\"\n")
}

fn is_about(line: &Value, message: &str, backend: &str) -> bool {
    line["message"] == message && line["backend"] == backend
}

pub(crate) fn text(line: &Value, key: &str) -> String {
    line[key].as_str().unwrap_or_default().to_owned()
}
