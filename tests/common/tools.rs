//! Real servers and clients of other makers. `make test` installs them; a test does not do without.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rustix::process::{Pid, Signal, kill_process};

use super::eventually;

/// A server that runs. It is killed when this goes.
pub(crate) struct Server(Child);

impl Server {
    /// `command` with these words; what it says is of no interest.
    pub(crate) fn start(command: &str, words: &str) -> Self {
        let mut command = tool(command, words);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().expect("it was found"))
    }

    /// Ends it in the midst of what it does, and waits until its sockets are closed.
    pub(crate) fn kill(mut self) {
        kill_process(Pid::from_child(&self.0), Signal::KILL).expect("it runs");
        self.0.wait().expect("it is our child");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program that one talks to by its standard input. It is killed when this goes.
pub(crate) struct Talk {
    child: Child,
    input: Option<ChildStdin>,
    said: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Talk {
    pub(crate) fn start(command: &str, words: &[&str]) -> Self {
        let mut command = tool(command, "");
        let command = command.args(words).stdin(Stdio::piped());
        let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().expect("it was found");
        let said = Arc::<Mutex<String>>::default();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let readers = vec![
            collect(stdout.expect("it is piped"), &said),
            collect(stderr.expect("it is piped"), &said),
        ];
        Self {
            input: child.stdin.take(),
            child,
            said,
            readers,
        }
    }

    /// Gives it this to read.
    pub(crate) fn say(&mut self, text: &str) {
        let input = self.input.as_mut().expect("it is open");
        input.write_all(text.as_bytes()).expect("it reads");
    }

    /// Waits until it has printed this so many times.
    pub(crate) fn hears(&self, text: &str, times: usize) {
        eventually(text, || {
            let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
            (said.matches(text).count() >= times).then_some(())
        });
    }

    /// Waits until something can be told from all that it has printed.
    pub(crate) fn told<T>(&self, what: &str, pick: impl Fn(&str) -> Option<T>) -> T {
        eventually(what, || {
            pick(&self.said.lock().unwrap_or_else(PoisonError::into_inner))
        })
    }

    /// Gives it no more to read, and waits for its end. Whether that was a good one, and all that it printed.
    pub(crate) fn end(mut self) -> (bool, String) {
        self.input = None;
        let status = eventually("the program to end", || {
            self.child.try_wait().expect("it is our child")
        });
        for reader in self.readers.drain(..) {
            reader.join().expect("it reads to the end");
        }
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        (status.success(), said.clone())
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(mut from: impl Read + Send + 'static, said: &Arc<Mutex<String>>) -> JoinHandle<()> {
    let said = said.clone();
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..count]);
            said.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push_str(&text);
        }
    })
}

/// What `command` prints with these words; `None` when it fails.
pub(crate) fn printed(command: &str, words: &str) -> Option<String> {
    let output = tool(command, words).output().expect("it was found");
    let text = String::from_utf8(output.stdout).expect("what is printed is UTF-8");
    output.status.success().then_some(text)
}

/// All that `command` prints with these words, however it ends.
pub(crate) fn said(command: &str, words: &[&str]) -> String {
    let output = tool(command, "")
        .args(words)
        .output()
        .expect("it was found");
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// Whether `command` ends well with these words and this on its standard input, and all that it says.
pub(crate) fn fed(command: &str, words: &[&str], input: &str) -> (bool, String) {
    let mut command = tool(command, "");
    let command = command.args(words).stdin(Stdio::piped());
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("it was found");
    let mut stdin = child.stdin.take().expect("it is piped");
    // It may not care for all of it.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

/// This file of a package is there.
pub(crate) fn installed(file: &str, package: &str) {
    assert!(
        std::path::Path::new(file).exists(),
        "{file} is not installed: it is in Debian's {package}, and `make test` sees to it"
    );
}

fn tool(command: &str, words: &str) -> Command {
    let mut tool = Command::new(found(command));
    tool.args(words.split_whitespace()).stdin(Stdio::null());
    tool
}

/// Where this command is.
pub(crate) fn found(command: &str) -> PathBuf {
    let package = match command {
        "chromedriver" => "chromium-driver",
        "dnsmasq" => "dnsmasq-base",
        "dig" => "bind9-dnsutils",
        "promtool" => "prometheus",
        "testssl" => "testssl.sh",
        other => other,
    };
    // Where servers are, which not everybody's PATH has.
    let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
    let folders = std::env::split_paths(&path);
    let mut found = folders.map(|folder| folder.join(command));
    found.find(|file| file.exists()).unwrap_or_else(|| {
        panic!(
            "{command} is not installed: it is in Debian's {package}, and `make test` sees to it"
        )
    })
}
