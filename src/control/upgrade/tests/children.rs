//! Upgrades with real children, within the control plane's runtime. The new processes are this test
//! binary, executed for one of the tests whose names begin with `newcomer`; those do nothing in an
//! ordinary run.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::time::Duration;

use rustix::io::{Errno, FdFlags, fcntl_getfd};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::alone::{alone, arguments};
use super::{PLENTY, SHORT, no_state, offer};
use crate::control::upgrade::handover::refuse_first_process;
use crate::control::upgrade::{
    Committed, Failure, Inheritance, Launch, Offer, Predecessor, Successor, VARIABLE, hand_over,
    predecessor,
};

fn launch(test: &str) -> Launch {
    let executable = env::current_exe().unwrap();
    let arguments = arguments(&format!("children::{test}"));
    Launch {
        name: executable.clone().into(),
        executable,
        arguments: arguments.map(Into::into).to_vec(),
    }
}

fn shell(script: &str) -> Launch {
    Launch {
        executable: "/bin/sh".into(),
        name: "sh".into(),
        arguments: ["-c", script].map(Into::into).to_vec(),
    }
}

/// A folder for the new process to write to. The path of the control socket tells it where.
struct Notes(TempDir);

impl Notes {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn offer(&self) -> Offer {
        Offer {
            drained: vec![self.0.path().to_str().unwrap().to_owned()],
            ..offer(&[2])
        }
    }

    /// What the new process wrote, once it has.
    async fn read(&self, name: &str) -> String {
        let path = self.0.path().join(name);
        let written = async {
            loop {
                if let Ok(text) = fs::read_to_string(&path) {
                    return text;
                }
                sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(PLENTY, written).await.unwrap()
    }

    async fn pid(&self) -> Pid {
        Pid::from_raw(self.read("pid").await.parse().unwrap()).unwrap()
    }

    async fn hand_over(&self, test: &str, patience: Duration) -> Result<Successor, Failure> {
        let sockets: [OwnedFd; 2] = [(); 2].map(|()| UnixStream::pair().unwrap().0.into());
        let state = |_: &_| json!("state");
        hand_over(&launch(test), self.offer(), &sockets, &[], state, patience).await
    }
}

/// Appears whole or not at all.
fn note(offer: &Offer, name: &str, text: &str) {
    let folder = PathBuf::from(&offer.drained[0]);
    fs::write(folder.join("draft"), text).unwrap();
    fs::rename(folder.join("draft"), folder.join(name)).unwrap();
}

/// In a new process; `None` in an ordinary run.
fn inherited() -> Option<Inheritance> {
    let inheritance = predecessor().unwrap()?;
    note(&inheritance.offer, "pid", &process::id().to_string());
    Some(inheritance)
}

#[test]
fn newcomer_that_serves() {
    let Some(Inheritance {
        offer,
        sockets,
        sessions: _,
        predecessor,
    }) = inherited()
    else {
        return;
    };
    let stdin = fs::read_link("/proc/self/fd/0").unwrap();
    let inherited = |fd: &OwnedFd| !fcntl_getfd(fd).unwrap().contains(FdFlags::CLOEXEC);
    let inherited = sockets.iter().flatten().filter(|fd| inherited(fd)).count();
    let (state, committed) = predecessor.ready(vec![0]).unwrap();
    let mut counted = Vec::new();
    tokio_uring::start(async {
        let mut links = committed.serving().unwrap();
        note(&offer, "serving", "");
        while let Some(totals) = links[0].next_counted().await.unwrap() {
            counted.push(totals);
        }
    });
    let seen = json!([stdin, sockets[0].len(), inherited, state, counted.last()]);
    note(&offer, "seen", &seen.to_string());
}

#[test]
fn newcomer_that_refuses() {
    if let Some(inheritance) = inherited() {
        inheritance.predecessor.refuse("line 3: no such thing");
        process::exit(1);
    }
}

#[test]
fn newcomer_that_hangs() {
    if let Some(_inheritance) = inherited() {
        hang();
    }
}

#[test]
fn newcomer_that_hangs_after_ready() {
    if let Some(inheritance) = inherited() {
        let _committed = committed(inheritance.predecessor);
        hang();
    }
}

#[test]
fn newcomer_that_exits() {
    if inherited().is_some() {
        process::exit(3);
    }
}

#[test]
fn newcomer_that_aborts_after_ready() {
    if let Some(inheritance) = inherited() {
        let _committed = committed(inheritance.predecessor);
        process::abort();
    }
}

fn committed(predecessor: Predecessor) -> Committed {
    predecessor.ready(Vec::new()).unwrap().1
}

/// Longer than anybody waits; a failed test shall not leave it behind for ever.
fn hang() -> ! {
    std::thread::park_timeout(2 * PLENTY);
    process::exit(9)
}

/// The state of a child is left as it is: a zombie stays one.
fn is_child(pid: Pid) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    match waitid(WaitId::Pid(pid), options) {
        Err(Errno::CHILD) => false,
        status => {
            status.unwrap();
            true
        }
    }
}

async fn until_reaped(pid: Pid) {
    let reaped = async {
        while is_child(pid) {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PLENTY, reaped).await.expect("the child is reaped");
}

#[test]
fn a_new_process_gets_everything_and_is_reaped_when_it_ends_first() {
    tokio_uring::start(async {
        let notes = Notes::new();
        let mut successor = notes
            .hand_over("newcomer_that_serves", PLENTY)
            .await
            .unwrap();
        let pid = notes.pid().await;
        assert_eq!(successor.pid, pid.as_raw_nonzero().get().unsigned_abs());
        notes.read("serving").await;
        successor.counted(json!(1)).unwrap();
        successor.finish(json!(2), PLENTY).await.unwrap();
        let seen: Value = serde_json::from_str(&notes.read("seen").await).unwrap();
        assert_eq!(seen, json!(["/dev/null", 2, 0, "state", 2]));
        until_reaped(pid).await;
    });
}

#[test]
fn whoever_fails_is_ended_and_reaped_and_the_reason_told() {
    let mut bystander = Command::new("/bin/sleep").arg("60").spawn().unwrap();
    tokio_uring::start(async {
        for (test, patience, text) in [
            (
                "newcomer_that_refuses",
                PLENTY,
                "the new process refused: line 3: no such thing",
            ),
            (
                "newcomer_that_exits",
                PLENTY,
                "the new process ended before it was ready (exit status: 3)",
            ),
            (
                "newcomer_that_aborts_after_ready",
                PLENTY,
                "the new process ended before it was ready (signal: 6 (SIGABRT)",
            ),
            (
                "newcomer_that_hangs",
                SHORT * 25,
                "the new process was not ready within 2s",
            ),
            (
                "newcomer_that_hangs_after_ready",
                SHORT * 25,
                "the new process was not ready within 2s",
            ),
        ] {
            let notes = Notes::new();
            let failure = notes.hand_over(test, patience).await.unwrap_err();
            assert!(failure.to_string().starts_with(text), "{failure}");
            assert!(!is_child(notes.pid().await), "{test} is a zombie");
        }
    });
    assert_eq!(bystander.try_wait().unwrap(), None);
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[test]
fn a_dropped_upgrade_ends_and_reaps_the_new_process() {
    tokio_uring::start(async {
        let notes = Notes::new();
        let pid = tokio::select! {
            _ = notes.hand_over("newcomer_that_hangs", PLENTY) => panic!("it hangs"),
            pid = notes.pid() => pid,
        };
        until_reaped(pid).await;
    });
}

async fn failure_of(launch: Launch) -> Failure {
    let patience = SHORT * 10;
    let handed_over = hand_over::<OwnedFd>(&launch, offer(&[0]), &[], &[], no_state, patience);
    handed_over.await.unwrap_err()
}

#[test]
fn other_programs_are_no_new_process() {
    tokio_uring::start(async {
        let ended = failure_of(shell("exit 7")).await;
        assert!(
            matches!(ended, Failure::Ended(status) if status.code() == Some(7)),
            "{ended}"
        );
        // What it has of the link outlives it.
        let ended = failure_of(shell("sleep 1 & exit 7")).await;
        assert!(
            matches!(ended, Failure::Ended(status) if status.code() == Some(7)),
            "{ended}"
        );
        let nonsense = failure_of(shell("echo 'hello world' >&0; sleep 60")).await;
        assert!(matches!(nonsense, Failure::Link(_)), "{nonsense}");
        let closed = failure_of(shell("exec sleep 60 </dev/null")).await;
        assert!(matches!(closed, Failure::Link(_)), "{closed}");
    });
}

#[test]
fn a_binary_that_can_not_be_executed_is_named() {
    tokio_uring::start(async {
        let missing = failure_of(Launch {
            executable: "/nowhere/ringress".into(),
            ..shell("")
        });
        let text = "can't execute /nowhere/ringress: No such file or directory (os error 2)";
        assert_eq!(missing.await.to_string(), text);
    });
}

#[test]
fn process_one_refuses() {
    let refusal = refuse_first_process(1).unwrap_err();
    assert!(refusal.to_string().contains("replace the container"));
    assert!(refuse_first_process(2).is_ok());
}

#[test]
fn what_systemd_says_to_one_process_is_not_inherited() {
    let command = shell("").command(UnixStream::pair().unwrap().0.into());
    let mut removed: Vec<&OsStr> = Vec::new();
    for (name, value) in command.as_std().get_envs() {
        match value {
            None => removed.push(name),
            Some(value) => assert_eq!((name, value), (OsStr::new(VARIABLE), OsStr::new("1"))),
        }
    }
    removed.sort_unstable();
    assert_eq!(
        removed,
        [
            "LISTEN_FDNAMES",
            "LISTEN_FDS",
            "LISTEN_PID",
            "LISTEN_PIDFDID",
            "WATCHDOG_PID"
        ]
    );
}

#[test]
fn the_successor_is_started_as_this_process_was() {
    let launch = Launch::of_this_process().unwrap();
    let running = env::current_exe().unwrap();
    assert_eq!(fs::canonicalize(launch.executable()).unwrap(), running);
    assert_eq!(launch.arguments, env::args_os().skip(1).collect::<Vec<_>>());
}

#[test]
fn descriptors_are_not_leaked_by_upgrades() {
    alone("children::descriptors_are_not_leaked_by_upgrades", || {
        let open = || fs::read_dir(Path::new("/proc/self/fd")).unwrap().count();
        tokio_uring::start(async {
            let upgrade = async |test: &str| {
                let notes = Notes::new();
                let outcome = notes.hand_over(test, PLENTY).await;
                let pid = notes.pid().await;
                drop(outcome);
                until_reaped(pid).await;
            };
            // The runtime opens what it needs to hear of children.
            upgrade("newcomer_that_serves").await;
            let before = open();
            for test in [
                "newcomer_that_serves",
                "newcomer_that_refuses",
                "newcomer_that_exits",
            ] {
                upgrade(test).await;
            }
            assert_eq!(open(), before);
        });
    });
}
