//! The new process as a child of the old one: how it is started, killed and reaped. Nothing here
//! ever signals a process that is not an unreaped child.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{self, Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use tokio::process::{Child, Command};

use super::handover::Failure;
use super::link::Link;
use super::{VARIABLE, VERSION};
use crate::control::{activation, notify};

/// How this process was started, which is how its successor is.
#[derive(Clone, Debug)]
pub(in crate::control) struct Launch {
    pub(super) executable: PathBuf,
    pub(super) name: OsString,
    pub(super) arguments: Vec<OsString>,
}

impl Launch {
    /// To be asked for at the start: once the file has been replaced, the kernel only knows of one
    /// that was deleted.
    ///
    /// # Errors
    /// /proc can't be read, or there is no working directory.
    pub(in crate::control) fn of_this_process() -> io::Result<Self> {
        let mut arguments = env::args_os();
        let name = arguments.next().unwrap_or_default();
        Ok(Self {
            executable: executable(Path::new(&name), env::current_exe()?)?,
            name,
            arguments: arguments.collect(),
        })
    }

    /// The file that an upgrade executes.
    pub(in crate::control) fn executable(&self) -> &Path {
        &self.executable
    }

    /// Starts the new process, with its end of the link as its standard input.
    pub(super) fn start(&self) -> Result<Newcomer, Failure> {
        let (ours, theirs) = UnixStream::pair().map_err(Failure::Resources)?;
        let link = Link::new(ours.into(), Vec::new())?;
        let child = self.command(theirs.into()).spawn();
        let child = child.map_err(|error| Failure::NotExecuted {
            executable: self.executable.clone(),
            error,
        })?;
        let child = Hostage(Some(child));
        Ok(Newcomer { child, link })
    }

    /// Whoever holds the command holds the other end of the link too.
    pub(super) fn command(&self, stdin: OwnedFd) -> Command {
        let mut command = Command::new(&self.executable);
        command
            .arg0(&self.name)
            .args(&self.arguments)
            .env(VARIABLE, VERSION.to_string())
            .stdin(Stdio::from(stdin));
        let for_us = activation::FOR_THIS_PROCESS.iter();
        for variable in for_us.chain(&notify::FOR_THIS_PROCESS) {
            command.env_remove(variable);
        }
        command
    }
}

/// The path as it was called, if it was called by one: it may be a link that leads to the new binary
/// by the time of an upgrade, and `running` is where it leads now.
fn executable(name: &Path, running: PathBuf) -> io::Result<PathBuf> {
    let identity = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
    // A bare name was looked for in PATH, and says nothing about this folder.
    let is_path = name.components().count() > 1;
    if is_path && identity(name).is_some_and(|found| Some(found) == identity(&running)) {
        path::absolute(name)
    } else {
        Ok(running)
    }
}

/// A new process that has been started. The order counts: when it is dropped, it is killed before
/// the link closes.
pub(super) struct Newcomer {
    pub(super) child: Hostage,
    pub(super) link: Link,
}

/// A child that is killed when it is dropped; the runtime reaps it then.
pub(super) struct Hostage(Option<Child>);

impl Hostage {
    /// Waits until it has ended by itself, and reaps it.
    pub(super) async fn ended(&mut self) -> io::Result<ExitStatus> {
        match &mut self.0 {
            Some(child) => child.wait().await,
            None => std::future::pending().await,
        }
    }

    /// Kills and reaps it.
    pub(super) async fn kill(mut self) {
        if let Some(child) = &mut self.0 {
            // Fails if it has been reaped before, which is what is wanted.
            let _ = child.kill().await;
        }
    }

    /// Lets it live. The runtime still reaps it if it ends before this process.
    pub(super) fn release(mut self) {
        drop(self.0.take());
    }
}

impl Drop for Hostage {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.start_kill();
        }
    }
}
