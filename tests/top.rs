//! `ringress top` on a terminal: what somebody sees of a process that runs, and that the terminal is as it
//! was afterwards.

mod common;

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::num::NonZeroU16;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use common::switched::{Manner, Switched};
use common::{Backend, Proxy, config, eventually, plain};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

/// A terminal with a command on it.
struct Terminal {
    keys: File,
    /// The command's side, which keeps the terminal there when it has ended.
    inside: File,
    screen: Arc<Mutex<vt100::Parser>>,
    child: Child,
}

impl Terminal {
    fn new(mut command: Command, rows: u16, columns: u16) -> Self {
        let outside = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&outside).expect("it is ours");
        unlockpt(&outside).expect("it is ours");
        let path = ptsname(&outside, Vec::new()).expect("it has a name");
        let inside = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OpenptFlags::NOCTTY.bits() as i32)
            .open(Path::new(std::ffi::OsStr::from_bytes(path.to_bytes())))
            .expect("it is there");
        resize(&outside, rows, columns);
        let side = || inside.try_clone().expect("a descriptor");
        let child = command
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .env("TERM", "xterm-256color")
            .env_remove("NO_COLOR")
            .spawn()
            .expect("the binary was built");
        let screen = Arc::new(Mutex::new(vt100::Parser::new(
            cells(rows),
            cells(columns),
            0,
        )));
        let keys = File::from(outside);
        let (mut output, shown) = (keys.try_clone().expect("a descriptor"), screen.clone());
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                shown.lock().expect("no failure").process(&bytes[..count]);
            }
        });
        Self {
            keys,
            inside,
            screen,
            child,
        }
    }

    fn screen(&self) -> MutexGuard<'_, vt100::Parser> {
        self.screen.lock().expect("no failure")
    }

    /// Waits until a line of the screen contains all of these.
    fn shows(&self, parts: &[&str]) {
        eventually(&format!("a line with {parts:?}"), || {
            let contents = self.screen().screen().contents();
            let mut lines = contents.lines();
            lines
                .any(|line| parts.iter().all(|part| line.contains(part)))
                .then_some(())
        });
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).expect("it is read");
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The command has taken the terminal for itself.
    fn is_taken(&self) -> bool {
        let modes = tcgetattr(&self.inside)
            .expect("it is a terminal")
            .local_modes;
        self.screen().screen().alternate_screen() || !modes.contains(LocalModes::ICANON)
    }

    /// Waits until the command has ended and the terminal is as it was.
    fn ends(mut self) -> ExitStatus {
        let status = eventually("top to end", || self.child.try_wait().expect("it is ours"));
        eventually("the terminal to be given back", || {
            (!self.is_taken()).then_some(())
        });
        assert!(!self.screen().screen().hide_cursor());
        status
    }
}

fn cells(count: u16) -> NonZeroU16 {
    NonZeroU16::new(count).expect("some")
}

fn resize(terminal: &OwnedFd, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).expect("it is a terminal");
}

#[test]
fn a_backend_is_seen_to_go_down_and_to_come_back() {
    let (good, bad) = (Switched::new(Manner::Echo), Switched::new(Manner::Echo));
    let check =
        "[upstreams.app.health_check]\ntype = \"tcp\"\ninterval = \"100ms\"\nfall = 1\nrise = 1\n";
    let backends = [&*good.address, &*bad.address];
    let proxy = Proxy::start(&config(&backends, "", "", check));
    let mut terminal = Terminal::new(proxy.command("top"), 24, 80);
    let row = format!("app/{}", bad.address);
    terminal.shows(&["ringress serving", "generation 1"]);
    terminal.shows(&[&row, " up "]);
    terminal.shows(&["app ", "2 of 2"]);
    bad.stop_listening();
    terminal.shows(&[&row, " down ", "connection ref"]);
    terminal.shows(&["app ", "1 of 2"]);
    terminal.shows(&["backend is down"]);
    bad.listen_again();
    terminal.shows(&[&row, " up "]);
    assert!(terminal.is_taken());
    terminal.press("q");
    assert!(terminal.ends().success());
    proxy.end();
}

#[test]
fn keys_choose_what_is_shown_and_the_screen_follows_its_size() {
    let (one, other) = (Backend::echo(), Backend::echo());
    let proxy = Proxy::start(&plain(&[&one.address, &other.address]));
    let mut terminal = Terminal::new(proxy.command("top"), 24, 80);
    terminal.shows(&["by file", "1 of 2"]);
    terminal.press(&format!("/{}\r", other.address));
    terminal.shows(&[&format!("with \"{}\", 1 of 1", other.address)]);
    terminal.press("\u{1b}");
    terminal.shows(&["1 of 2"]);
    terminal.press("s ");
    terminal.shows(&["by name"]);
    terminal.shows(&["PAUSED"]);
    let outside = terminal.keys.try_clone().expect("a descriptor").into();
    resize(&outside, 30, 160);
    terminal
        .screen()
        .screen_mut()
        .set_size(cells(30), cells(160));
    kill_process(terminal.pid(), Signal::WINCH).expect("it runs");
    terminal.shows(&["BACKEND", "WEIGHT", "BREAKER"]);
    terminal.press("\u{3}");
    assert!(terminal.ends().success());
    proxy.end();
}

#[test]
fn a_process_that_ends_is_told_and_asked_again() {
    let backend = Backend::echo();
    let proxy = Proxy::start(&plain(&[&backend.address]));
    let terminal = Terminal::new(proxy.command("top"), 24, 80);
    terminal.shows(&["ringress serving"]);
    proxy.end();
    terminal.shows(&["GONE"]);
    terminal.shows(&["no process answers; trying again"]);
    kill_process(terminal.pid(), Signal::TERM).expect("it runs");
    assert!(terminal.ends().success());
}

#[test]
fn what_is_no_terminal_is_refused_with_what_to_do_instead() {
    let backend = Backend::echo();
    let proxy = Proxy::start(&plain(&[&backend.address]));
    let said = proxy.refused("top");
    assert!(said.contains("`ringress status --format json`"), "{said}");
    proxy.end();
}

#[test]
fn without_a_process_it_says_so_and_leaves_the_terminal_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let words = format!("top --socket {}", folder.path().join("no.sock").display());
    let terminal = Terminal::new(common::commands::command_in(folder.path(), &words), 24, 80);
    terminal.shows(&["no process answers"]);
    assert_eq!(terminal.ends().code(), Some(1));
}
