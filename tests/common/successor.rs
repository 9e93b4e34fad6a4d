//! A process that another one has started and left to itself, as an upgrade does.

use std::fs;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{PATIENCE, Proxy};

/// A process that is nobody's child here. It is killed when this goes.
pub(crate) struct Successor {
    pub(crate) pid: u32,
    /// Unlike its number this can't become somebody else's.
    handle: OwnedFd,
}

impl Proxy {
    /// The process that has taken over from this one, which was told to upgrade.
    pub(crate) fn successor(&self) -> Successor {
        let line = self.wait_message(0, "upgraded: the new process serves");
        Successor::new(line["pid"].as_u64().expect("a number"))
    }
}

impl Successor {
    fn new(pid: u64) -> Self {
        let raw = i32::try_from(pid).expect("a process's number");
        let known = Pid::from_raw(raw).expect("it is not 0");
        Self {
            pid: known.as_raw_nonzero().get().unsigned_abs(),
            handle: pidfd_open(known, PidfdFlags::empty()).expect("it runs"),
        }
    }

    /// Tells it to end and waits until it has.
    pub(crate) fn end(self) {
        pidfd_send_signal(&self.handle, Signal::TERM).expect("it runs");
        let mut polled = [PollFd::new(&self.handle, PollFlags::IN)];
        let patience = Timespec::try_from(PATIENCE).expect("a short time");
        let ended = poll(&mut polled, Some(&patience)).expect("it can be polled");
        assert_eq!(ended, 1, "it has not ended");
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
    }
}

/// A line of the status of each thread of a process, in /proc.
pub(crate) fn of_threads(pid: u32, key: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let statuses =
        tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
    let value = |status: String| {
        let mut lines = status.lines().filter_map(|line| line.split_once(':'));
        let (_, value) = lines.find(|(name, _)| *name == key).expect("a known key");
        value.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    statuses.map(value).collect()
}
