//! Who the process is towards the kernel, tried out: each test starts this program once more as a child
//! that becomes somebody else, and looks at it in /proc; some start the real
//! binary. Where the tests don't run as root the kernel
//! allows none of that; then it is the refusals that are tested.

mod common;

#[path = "hardening/child.rs"]
mod child;
#[path = "hardening/process.rs"]
mod process;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};

use libtest_mimic::{Arguments, Trial};
use rustix::fs::{StatVfsMountFlags, XattrFlags};

/// Somebody who owns nothing on any system, and their group.
const NOBODY: &str = "65534";

fn main() -> ExitCode {
    if let Ok(steps) = std::env::var(child::STEPS) {
        return child::run(&steps);
    }
    let mut trials = vec![
        trial(
            "a_stranger_is_refused_with_what_to_do",
            a_stranger_is_refused_with_what_to_do,
        ),
        trial(
            "the_user_it_is_already_is_nothing_to_do",
            the_user_it_is_already_is_nothing_to_do,
        ),
        trial("nothing_is_gained_any_more", nothing_is_gained_any_more),
        trial(
            "inherited_sockets_are_found_and_taken_once",
            inherited_sockets_are_found_and_taken_once,
        ),
    ];
    if rustix::process::geteuid().is_root() {
        trials.extend(as_root());
    } else {
        let name = "a_whole_process_that_is_not_root_is_refused";
        trials.push(trial(name, process::who_is_not_root_is_refused));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn as_root() -> Vec<Trial> {
    vec![
        trial("root_becomes_nobody", root_becomes_nobody),
        trial("groups_come_along", groups_come_along),
        trial(
            "a_low_port_is_kept_over_an_exec",
            a_low_port_is_kept_over_an_exec,
        ),
        trial(
            "a_capability_of_the_file_is_kept_over_an_exec",
            a_capability_of_the_file_is_kept_over_an_exec,
        ),
        trial(
            "a_process_with_threads_stays_who_it_is",
            a_process_with_threads_stays_who_it_is,
        ),
        trial(
            "a_key_of_root_is_an_error_that_says_so",
            a_key_of_root_is_an_error_that_says_so,
        ),
        trial(
            "what_root_has_bound_can_not_be_joined",
            what_root_has_bound_can_not_be_joined,
        ),
        trial(
            "every_thread_is_nobodys_and_serves",
            process::every_thread_is_nobodys_and_serves,
        ),
        trial(
            "a_reload_adds_a_listener",
            process::a_reload_adds_a_listener,
        ),
        trial(
            "a_file_that_only_root_can_read_is_an_error_at_the_start",
            process::a_file_that_only_root_can_read_is_an_error_at_the_start,
        ),
        trial(
            "a_key_that_only_root_can_read_is_an_error_at_the_start",
            process::a_key_that_only_root_can_read_is_an_error_at_the_start,
        ),
        trial(
            "a_low_port_is_kept_over_an_upgrade_with_more_workers",
            process::a_low_port_is_kept_over_an_upgrade_with_more_workers,
        ),
    ]
}

fn trial(name: &'static str, test: fn()) -> Trial {
    Trial::test(name, move || {
        test();
        Ok(())
    })
}

/// A child that goes through steps. It is killed when this goes.
struct Steps {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Steps {
    fn start(steps: &str) -> Self {
        Self::spawn(program(), steps)
    }

    /// Started by the kernel as somebody without privileges: by this process itself if it has none.
    fn start_as_nobody(steps: &str) -> Self {
        let mut command = program();
        if rustix::process::geteuid().is_root() {
            command.uid(65534).gid(65534);
        }
        Self::spawn(command, steps)
    }

    fn spawn(mut command: Command, steps: &str) -> Self {
        let mut child = command
            .env(child::STEPS, steps)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it can be executed");
        let said = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, said }
    }

    /// What the next step says.
    fn next(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).expect("it can be read");
        line.trim_end().to_owned()
    }

    /// A line of /proc/PID/status, while the child pauses.
    fn status(&self, key: &str) -> String {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(path).expect("it runs");
        let mut lines = status.lines().filter_map(|line| line.split_once(':'));
        let (_, value) = lines.find(|(name, _)| *name == key).expect("a known key");
        let words: Vec<_> = value.split_whitespace().collect();
        words.join(" ")
    }

    /// Lets a child that pauses go on.
    fn go_on(&mut self) {
        let stdin = self.child.stdin.as_mut().expect("it is piped");
        stdin.write_all(b"\n").expect("it waits");
        assert_eq!(self.next(), "went on");
    }

    fn assert_ids(&self, id: &str) {
        let four = [id; 4].join(" ");
        assert_eq!(
            (self.status("Uid"), self.status("Gid")),
            (four.clone(), four)
        );
    }

    fn assert_capabilities(&self, permitted: u64) {
        let shown = format!("{permitted:016x}");
        for key in ["CapPrm", "CapEff", "CapInh", "CapAmb"] {
            assert_eq!(self.status(key), shown, "{key}");
        }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// By its link in /proc: the folder that it lies in may be closed to others.
fn program() -> Command {
    Command::new("/proc/self/exe")
}

/// 1 << CAP_NET_BIND_SERVICE
const BIND: u64 = 1 << 10;

fn a_stranger_is_refused_with_what_to_do() {
    let mut child = Steps::start_as_nobody("resolve:4000000000:4000000000");
    let said = child.next();
    for part in [
        "runtime.user",
        "4000000000",
        "start it as root",
        "leave runtime.user out",
    ] {
        assert!(said.contains(part), "{said}");
    }
}

fn the_user_it_is_already_is_nothing_to_do() {
    let mut child = Steps::start_as_nobody("myself;pause");
    assert_eq!(child.next(), "nothing to do");
}

fn nothing_is_gained_any_more() {
    let mut child = Steps::start_as_nobody("nnp;pause;exec;pause");
    assert_eq!((child.next(), child.next()), ("ok".into(), "paused".into()));
    assert_eq!(child.status("NoNewPrivs"), "1");
    child.assert_capabilities(0);
    child.go_on();
    assert_eq!(child.next(), "paused");
    assert_eq!(child.status("NoNewPrivs"), "1");
}

fn root_becomes_nobody() {
    let mut child = Steps::start(&format!("drop:{NOBODY}:{NOBODY}:plain;nnp;pause;port"));
    assert_eq!(child.next(), "ok");
    assert_eq!((child.next(), child.next()), ("ok".into(), "paused".into()));
    child.assert_ids(NOBODY);
    assert_eq!(child.status("Groups"), NOBODY);
    child.assert_capabilities(0);
    assert_eq!(child.status("NoNewPrivs"), "1");
    assert!(owned_by_nobody(&child), "/proc/PID stays root's");
    child.go_on();
    let refused = child.next();
    let expected = if child::low_ports_are_free() {
        "bound"
    } else {
        "Permission denied"
    };
    assert!(refused.contains(expected), "{refused}");
}

/// /proc/PID belongs to its user if the process is dumpable.
fn owned_by_nobody(child: &Steps) -> bool {
    let environment = format!("/proc/{}/environ", child.child.id());
    fs::metadata(environment).expect("it runs").uid() == 65534
}

/// Of every user that there is.
fn groups_come_along() {
    let passwd = fs::read_to_string("/etc/passwd").expect("there are users");
    let fields = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>());
    let others = fields.filter(|fields| fields.len() == 7 && fields[2] != "0");
    for user in others.map(|fields| fields[0].to_owned()) {
        let mut child = Steps::start(&format!("drop:{user}::plain;pause"));
        assert_eq!(
            (child.next(), child.next()),
            ("ok".into(), "paused".into()),
            "{user}"
        );
        let id = Command::new("id")
            .args(["-G", &user])
            .output()
            .expect("coreutils");
        let mut groups: Vec<u32> = String::from_utf8_lossy(&id.stdout)
            .split_whitespace()
            .map(|group| group.parse().expect("a number"))
            .collect();
        groups.sort_unstable();
        let shown: Vec<_> = groups.iter().map(u32::to_string).collect();
        assert_eq!(child.status("Groups"), shown.join(" "), "{user}");
    }
}

fn a_low_port_is_kept_over_an_exec() {
    let steps = format!("drop:{NOBODY}:{NOBODY}:keep;nnp;pause;port;exec;pause;port");
    let mut child = Steps::start(&steps);
    assert_eq!((child.next(), child.next()), ("ok".into(), "ok".into()));
    for _ in 0..2 {
        assert_eq!(child.next(), "paused");
        child.assert_ids(NOBODY);
        child.assert_capabilities(BIND);
        child.go_on();
        assert_eq!(child.next(), "bound");
    }
}

/// As `setcap cap_net_bind_service+ep` leaves it; the next binary is one without.
fn a_capability_of_the_file_is_kept_over_an_exec() {
    let folder = tempfile::tempdir().expect("a folder");
    open_to_all(folder.path());
    if !files_may_have_capabilities(folder.path()) {
        eprintln!("skipped: the kernel ignores capabilities of files here");
        return;
    }
    let [with, without] = ["with", "without"].map(|name| folder.path().join(name));
    for binary in [&with, &without] {
        copy(Path::new("/proc/self/exe"), binary);
    }
    give_capability(&with);
    let mut command = Command::new(&with);
    command.uid(65534).gid(65534);
    let steps = format!("pause;nnp;pause;exec:{};pause;port", without.display());
    let mut child = Steps::spawn(command, &steps);
    assert_eq!(child.next(), "paused");
    assert_eq!(child.status("CapPrm"), format!("{BIND:016x}"));
    assert_eq!(child.status("CapAmb"), format!("{:016x}", 0));
    child.go_on();
    assert_eq!((child.next(), child.next()), ("ok".into(), "paused".into()));
    child.assert_capabilities(BIND);
    child.go_on();
    assert_eq!(child.next(), "paused");
    child.assert_capabilities(BIND);
    child.go_on();
    assert_eq!(child.next(), "bound");
}

fn open_to_all(path: &Path) {
    open_to(path, 0o755);
}

fn open_to(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("it is ours");
}

/// By another process: a child that a test beside this one starts at that moment would inherit the file as
/// it is being written, and nobody could execute it.
fn copy(binary: &Path, to: &Path) {
    // A link in /proc/self is another one there.
    let binary = fs::canonicalize(binary).expect("it exists");
    let copied = Command::new("cp").arg(binary).arg(to).status();
    assert!(copied.expect("there is such a command").success());
}

fn files_may_have_capabilities(folder: &Path) -> bool {
    let mount = rustix::fs::statvfs(folder).expect("it exists").f_flag;
    let gains = !rustix::thread::no_new_privs().expect("Linux 3.5");
    gains && !mount.contains(StatVfsMountFlags::NOSUID)
}

fn give_capability(binary: &Path) {
    // struct vfs_cap_data of linux/capability.h: VFS_CAP_REVISION_2 with the effective bit, then permitted
    // and inheritable, low words first.
    let words = [0x0200_0001, 1u32 << 10, 0, 0, 0];
    let value: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    rustix::fs::setxattr(binary, "security.capability", &value, XattrFlags::empty())
        .expect("root may, on a file system with attributes");
}

fn a_process_with_threads_stays_who_it_is() {
    let mut child = Steps::start(&format!("thread;drop:{NOBODY}:{NOBODY}:keep;pause"));
    let said = child.next();
    assert!(
        said.contains("one thread") && said.ends_with("there are 2"),
        "{said}"
    );
    assert_eq!(child.next(), "paused");
    child.assert_ids("0");
}

fn a_key_of_root_is_an_error_that_says_so() {
    let folder = tempfile::tempdir().expect("a folder");
    open_to_all(folder.path());
    let key = folder.path().join("key.pem");
    fs::write(&key, "key").expect("there is room");
    for (bits, readable) in [(0o600, false), (0o644, true)] {
        fs::set_permissions(&key, fs::Permissions::from_mode(bits)).expect("it is ours");
        let steps = format!("drop:{NOBODY}:{NOBODY}:plain;read:{}", key.display());
        let mut child = Steps::start(&steps);
        assert_eq!(child.next(), "ok");
        let said = child.next();
        assert_eq!(said == "ok", readable, "{said}");
        for part in ["key.pem", "uid 65534", "Permission denied", "chgrp"] {
            assert!(readable || said.contains(part), "{said}");
        }
    }
}

/// The reason to bind after the drop.
fn what_root_has_bound_can_not_be_joined() {
    let mut child = Steps::start(&format!(
        "share;drop:{NOBODY}:{NOBODY}:keep;join;share;join"
    ));
    let said: Vec<_> = (0..5).map(|_| child.next()).collect();
    assert_eq!(said[..2], ["ok", "ok"]);
    assert!(said[2].contains("in use"), "{said:?}");
    assert_eq!(said[3..], ["ok", "ok"]);
}

/// A shell gives descriptors their number, and says whom they are for: it becomes that process.
fn inherited_sockets_are_found_and_taken_once() {
    let sockets = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port is free"));
    let [web, other] = sockets
        .each_ref()
        .map(|s| s.local_addr().expect("it is bound"));
    let [first, second] = sockets.map(|socket| Stdio::from(OwnedFd::from(socket)));
    let script = "exec 3<&0 4<&1 0</dev/null 1>&2; \
                  LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=web:unknown exec /proc/$PPID/exe";
    let mut child = Command::new("sh")
        .args(["-c", script])
        .env(child::STEPS, "sockets;exec;sockets")
        .stdin(first)
        .stdout(second)
        .stderr(Stdio::piped())
        .spawn()
        .expect("there is a shell");
    let mut said = String::new();
    let mut stderr = child.stderr.take().expect("it is piped");
    stderr.read_to_string(&mut said).expect("it ends");
    assert!(child.wait().expect("it is ours").success(), "{said}");
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[..2], [format!("web {web}"), format!("- {other}")]);
    assert!(lines[2].contains("descriptor 3"), "taken twice: {said}");
    // Closed on exec, so that no child has them.
    assert!(lines[3].contains("descriptor 3"), "kept open: {said}");
}
