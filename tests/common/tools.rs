//! Real servers and clients of other makers. `make test` installs them; a test does not do without.

use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

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

/// What `command` prints with these words; `None` when it fails.
pub(crate) fn printed(command: &str, words: &str) -> Option<String> {
    let output = tool(command, words).output().expect("it was found");
    let text = String::from_utf8(output.stdout).expect("what is printed is UTF-8");
    output.status.success().then_some(text)
}

fn tool(command: &str, words: &str) -> Command {
    let package = match command {
        "dnsmasq" => "dnsmasq-base",
        "dig" => "bind9-dnsutils",
        other => other,
    };
    // Where servers are, which not everybody's PATH has.
    let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
    let folders = std::env::split_paths(&path);
    let mut found = folders.map(|folder| folder.join(command));
    let Some(program) = found.find(|file| file.exists()) else {
        panic!(
            "{command} is not installed: it is in Debian's {package}, and `make test` sees to it"
        );
    };
    let mut tool = Command::new(program);
    tool.args(words.split_whitespace()).stdin(Stdio::null());
    tool
}
