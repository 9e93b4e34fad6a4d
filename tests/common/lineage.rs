//! The proxy under test over upgrades: processes that follow each other, of which the newest serves. Every
//! one of them is watched by a descriptor of its own, and ended at the end.

use std::cell::OnceCell;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ringress::control::socket::status::Status;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, getpid, pidfd_open,
    pidfd_send_signal, set_child_subreaper, waitid,
};
use serde_json::Value;

use super::proxy::BINARY;
use super::{PATIENCE, Proxy, eventually};

/// A process and those that have taken over from it. All are killed when this goes.
pub(crate) struct Lineage {
    /// The first one. All of them write their log to its standard error.
    pub(crate) proxy: Proxy,
    /// What an upgrade executes. Its name is this lineage's alone, so that /proc tells who belongs to it.
    pub(crate) binary: PathBuf,
    pub(crate) console: Console,
    members: Vec<Member>,
}

/// A process of a lineage.
struct Member {
    pid: u32,
    fd: OwnedFd,
    exit: OnceCell<Exit>,
}

/// How a process has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Exit {
    Code(i32),
    Killed,
    /// The process before it has outlived it, and heard.
    Unknown,
}

/// What /proc says of a process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Seen {
    pub(crate) pid: u32,
    pub(crate) is_zombie: bool,
    parent: u32,
    name: String,
}

/// The commands that talk to the newest process.
#[derive(Clone)]
pub(crate) struct Console {
    /// Where the control socket is.
    pub(crate) folder: PathBuf,
    /// The configuration.
    pub(crate) file: PathBuf,
}

impl Lineage {
    /// Starts the first one with this configuration and waits until it serves.
    pub(crate) fn start(config: &str) -> Self {
        Self::start_with(|_| config.to_owned())
    }

    /// The same with a configuration that names paths of the folder that it is in.
    pub(crate) fn start_with(config: impl FnOnce(&Path) -> String) -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        // Whose parent has ended becomes our child, and can be waited for.
        set_child_subreaper(Some(getpid())).expect("it may be set");
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let folder = tempfile::tempdir().expect("a folder for the configuration");
        let path = folder.path().to_owned();
        let binary = path.join(format!("r{}-{number}", process::id()));
        install(Path::new(BINARY), &binary);
        let proxy = Proxy::spawn_in(folder, &binary, &config(&path), "");
        proxy.wait_message(0, "started");
        let console = Console {
            folder: path,
            file: proxy.file(),
        };
        let members = vec![Member::of(proxy.pid())];
        Self {
            proxy,
            binary,
            console,
            members,
        }
    }

    /// The process that serves.
    pub(crate) fn pid(&self) -> u32 {
        self.newest().pid
    }

    /// Has a new process take over.
    pub(crate) fn upgrade(&mut self) {
        let (code, told) = self.console.run("upgrade", &[]);
        assert_eq!(code, Some(0), "{told}");
        self.adopt(&told["pid"]);
    }

    /// The same with another configuration.
    pub(crate) fn upgrade_to(&mut self, config: &str) {
        self.proxy.write(config);
        self.upgrade();
    }

    /// A process that has taken over.
    pub(crate) fn adopt(&mut self, pid: &Value) {
        let pid = pid.as_u64().expect("a number") as u32;
        assert_ne!(pid, self.pid());
        self.members.push(Member::of(pid));
    }

    /// Asks for an upgrade that has to fail, and says why it did.
    pub(crate) fn upgrade_fails(&self) -> String {
        let (code, told) = self.console.run("upgrade", &[]);
        assert_eq!(code, Some(1), "{told}");
        told["error"].as_str().expect("a reason").to_owned()
    }

    /// To the process that serves.
    pub(crate) fn signal(&self, signal: Signal) {
        self.newest().signal(signal);
    }

    /// To the process of this generation, 0 being the first one.
    pub(crate) fn signal_to(&self, generation: usize, signal: Signal) {
        self.members[generation].signal(signal);
    }

    /// Waits until the process of this generation has ended.
    pub(crate) fn wait_exit(&mut self, generation: usize) -> Exit {
        match generation {
            0 => (self.proxy.wait_exit().code()).map_or(Exit::Killed, Exit::Code),
            _ => self.members[generation].wait_exit(),
        }
    }

    fn wait_good_end(&mut self, generation: usize) {
        let exit = self.wait_exit(generation);
        assert!(matches!(exit, Exit::Code(0) | Exit::Unknown), "{exit:?}");
    }

    /// Waits until nobody before the newest process lives any more; all of them have to end well.
    pub(crate) fn wait_alone(&mut self) {
        (0..self.members.len() - 1).for_each(|generation| self.wait_good_end(generation));
        eventually("no process but the newest", || {
            let family = self.family();
            (family.len() == 1 && family[0].pid == self.pid()).then_some(())
        });
    }

    /// Ends the newest process with SIGTERM, after which there is none. With no session left all have to end
    /// well.
    pub(crate) fn end(mut self) {
        self.signal(Signal::TERM);
        (0..self.members.len()).for_each(|generation| self.wait_good_end(generation));
        assert_eq!(self.family(), []);
    }

    /// All processes of this name and their children, zombies as well.
    pub(crate) fn family(&self) -> Vec<Seen> {
        let name = self.binary.file_name().expect("it has one");
        let all = fs::read_dir("/proc").expect("it is mounted");
        let all = all.filter_map(|entry| Seen::at(&entry.ok()?.path()));
        let running = self
            .members
            .iter()
            .filter(|it| !it.ends_within(Duration::ZERO));
        let running: Vec<_> = running.map(|it| it.pid).collect();
        let is_ours = |seen: &Seen| *seen.name == *name || running.contains(&seen.parent);
        all.filter(is_ours).collect()
    }

    fn newest(&self) -> &Member {
        self.members.last().expect("there is a first one")
    }
}

impl Drop for Lineage {
    fn drop(&mut self) {
        // Those that are not known as members, too; nobody else has this name or these parents.
        let others = self.family().into_iter();
        let others = others.filter(|seen| self.members.iter().all(|it| it.pid != seen.pid));
        let others: Vec<_> = others
            .filter_map(|seen| Member::of_running(seen.pid))
            .collect();
        for member in self.members.iter().chain(&others) {
            // It may have ended already.
            let _ = pidfd_send_signal(&member.fd, Signal::KILL);
        }
        for member in self.members.iter().chain(&others) {
            member.ends_within(PATIENCE);
        }
        // The first one is reaped by whoever started it.
        for member in self.members.iter().skip(1).chain(&others) {
            member.exit.get_or_init(|| member.reap());
        }
    }
}

impl Member {
    fn of(pid: u32) -> Self {
        Self::of_running(pid).expect("it runs")
    }

    fn of_running(pid: u32) -> Option<Self> {
        let raw = Pid::from_raw(pid.cast_signed())?;
        let fd = pidfd_open(raw, PidfdFlags::empty()).ok()?;
        let exit = OnceCell::new();
        Some(Self { pid, fd, exit })
    }

    fn signal(&self, signal: Signal) {
        pidfd_send_signal(&self.fd, signal).expect("it runs");
    }

    fn ends_within(&self, time: Duration) -> bool {
        let mut polled = [PollFd::new(&self.fd, PollFlags::IN)];
        let time = Timespec::try_from(time).expect("a short time");
        poll(&mut polled, Some(&time)).expect("it can be polled") > 0
    }

    fn wait_exit(&self) -> Exit {
        assert!(self.ends_within(PATIENCE), "{} does not end", self.pid);
        *self.exit.get_or_init(|| self.reap())
    }

    fn reap(&self) -> Exit {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        let status = waitid(WaitId::PidFd(self.fd.as_fd()), options);
        let code = |status: WaitIdStatus| status.exit_status();
        match status {
            Ok(Some(status)) => code(status).map_or(Exit::Killed, Exit::Code),
            Ok(None) | Err(_) => Exit::Unknown,
        }
    }
}

impl Seen {
    /// proc_pid_stat(5): `pid (name) state parent`.
    fn at(folder: &Path) -> Option<Self> {
        let pid = folder.file_name()?.to_str()?.parse().ok()?;
        let stat = fs::read_to_string(folder.join("stat")).ok()?;
        let (_, rest) = stat.split_once(" (")?;
        let (name, rest) = rest.rsplit_once(") ")?;
        let mut rest = rest.split(' ');
        Some(Self {
            pid,
            name: name.to_owned(),
            is_zombie: rest.next()? == "Z",
            parent: rest.next()?.parse().ok()?,
        })
    }
}

impl Console {
    /// Runs a subcommand with further arguments. Its exit code, and what it printed.
    pub(crate) fn run(&self, subcommand: &str, arguments: &[&str]) -> (Option<i32>, Value) {
        let output = Command::new(BINARY)
            .args([subcommand, "--format", "json", "-c"])
            .arg(&self.file)
            .args(arguments)
            .env("RUNTIME_DIRECTORY", &self.folder)
            .env_remove("XDG_RUNTIME_DIR")
            .stdin(Stdio::null())
            .output()
            .expect("the binary was built");
        let printed = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
            let said = String::from_utf8_lossy(&output.stderr);
            panic!("{subcommand} {arguments:?} printed no JSON: {said}")
        });
        (output.status.code(), printed)
    }

    /// Runs a subcommand that has to succeed.
    pub(crate) fn does(&self, subcommand: &str, arguments: &[&str]) -> Value {
        let (code, told) = self.run(subcommand, arguments);
        assert_eq!(code, Some(0), "{subcommand} {arguments:?}: {told}");
        told
    }

    /// What the process that serves tells about itself.
    pub(crate) fn status(&self) -> Status {
        serde_json::from_value(self.does("status", &[])).expect("a status")
    }
}

/// Puts an executable in the place of another. A process of its own writes it: what this one has open for
/// writing could not be executed as long as a child has it open, too, which another thread is starting.
pub(crate) fn install(from: &Path, to: &Path) {
    let _ = fs::remove_file(to);
    if fs::hard_link(from, to).is_ok() {
        return;
    }
    copy(from, to, "755");
}

/// Puts a script in the place of an executable.
pub(crate) fn install_script(text: &str, mode: &str, to: &Path) {
    let draft = to.with_extension("draft");
    fs::write(&draft, format!("#!/bin/sh\n{text}\n")).expect("the folder can be written to");
    copy(&draft, to, mode);
}

fn copy(from: &Path, to: &Path, mode: &str) {
    let copied = Command::new("install")
        .args(["-m", mode])
        .args([from, to])
        .status();
    assert!(copied.expect("coreutils are there").success());
}
