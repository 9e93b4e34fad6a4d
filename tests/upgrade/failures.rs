//! Upgrades that fail: the old process goes on as if nothing had happened, says why, and a later one
//! succeeds.

use std::fs;
use std::path::Path;

use rustix::process::Signal;
use socket2::Socket;

use super::queues::used;
use super::{exchange, leave, listener, plain, visit, wait_old_processes};
use crate::common::lineage::{Exit, Lineage, install, install_script};
use crate::common::proxy::{BINARY, text};
use crate::common::{Backend, connect, eventually};

/// A process that is to be upgraded, with a session.
struct Setting {
    line: Lineage,
    backend: Backend,
    address: String,
    client: Socket,
}

impl Setting {
    fn new() -> Self {
        let backend = Backend::echo();
        let line = Lineage::start(&plain(&[&backend.address]));
        let address = line.proxy.address("web");
        let mut client = connect(&address);
        exchange(&mut client);
        Self {
            line,
            backend,
            address,
            client,
        }
    }

    /// The configuration that it began with.
    fn plain(&self) -> String {
        plain(&[&self.backend.address])
    }

    /// Nothing has happened.
    fn goes_on(&mut self) {
        let family = self.line.family();
        assert_eq!(family.len(), 1, "{family:?}");
        exchange(&mut self.client);
        visit(&self.address);
        assert_eq!(used(&self.line, &self.address), 2);
        let status = self.line.console.status();
        assert_eq!(status.pid, self.line.pid());
        assert_eq!((status.generation, status.old_processes), (1, 0));
    }

    /// An upgrade that has to fail, with all of `parts` in the reason.
    fn fails(&mut self, parts: &[&str]) {
        let why = self.line.upgrade_fails();
        for part in parts {
            assert!(why.contains(part), "{part} is missing: {why}");
        }
        self.goes_on();
    }

    /// An upgrade with this configuration has to fail.
    fn fails_with(&mut self, config: &str, parts: &[&str]) {
        self.line.proxy.write(config);
        self.fails(parts);
        self.line.proxy.write(&self.plain());
    }

    /// Everything is as it should be again.
    fn succeeds(mut self) {
        self.line.upgrade();
        exchange(&mut self.client);
        visit(&self.address);
        leave(self.client);
        wait_old_processes(&self.line.console, 0);
        self.line.wait_alone();
        self.line.end();
    }
}

#[test]
fn a_binary_that_cannot_be_executed_changes_nothing() {
    let mut setting = Setting::new();
    let binary = setting.line.binary.clone();
    fs::remove_file(&binary).expect("it is there");
    setting.fails(&["can't execute", "No such file"]);
    install_script("exit 0", "644", &binary);
    setting.fails(&["can't execute", "ermission denied"]);
    for (script, why) in [("exit 3", "exit status: 3"), ("kill -9 $$", "signal: 9")] {
        install_script(script, "755", &binary);
        setting.fails(&["ended before it was ready", why]);
    }
    install_script("echo no such protocol >&0; exec sleep 60", "755", &binary);
    setting.fails(&["a message"]);
    install(Path::new(BINARY), &binary);
    setting.succeeds();
}

#[test]
fn a_new_process_that_hangs_is_ended_and_refuses_other_orders_until_then() {
    let mut setting = Setting::new();
    let binary = setting.line.binary.clone();
    install_script("exec sleep 60", "755", &binary);
    let console = setting.line.console.clone();
    let waiting = std::thread::spawn(move || console.run("upgrade", &[]));
    setting.line.proxy.wait_message(0, "upgrading");
    let (code, told) = setting.line.console.run("upgrade", &[]);
    assert_eq!(
        (code, &told["error"]),
        (Some(1), &"one is under way already".into())
    );
    let (code, told) = setting.line.console.run("reload", &[]);
    assert_eq!(
        (code, &told["error"]),
        (Some(1), &"an upgrade is under way".into())
    );
    assert_eq!(
        text(&setting.line.proxy.reload_file(), "message"),
        "reload refused: an upgrade is under way"
    );
    visit(&setting.address);
    let (code, told) = waiting.join().expect("it ran");
    let why = told["error"].as_str().expect("a reason");
    assert!(
        code == Some(1) && why.contains("not ready within 10s"),
        "{why}"
    );
    setting.goes_on();
    install(Path::new(BINARY), &binary);
    setting.succeeds();
}

#[test]
fn a_configuration_that_cannot_be_had_changes_nothing() {
    let mut setting = Setting::new();
    let plain = setting.plain();
    setting.fails_with("[listeners.web\n", &["refused", "ringress.toml:1:"]);
    setting.fails_with(
        &plain.replace("\"app\"", "\"ap\""),
        &["refused", "no upstream"],
    );
    // What could be done is in the file as well, and must not have been.
    let fewer = plain.replace("workers = 2", "workers = 1");
    let fewer = fewer.replace("[listeners.web]", "[listeners.web]\nbacklog = 1");
    let other = Backend::named("other");
    let taken = format!("{}{fewer}", listener("taken", &other.address));
    setting.fails_with(&taken, &["refused", "taken", &other.address, "in use"]);
    let folder = setting.line.console.folder.join("no/such.sock");
    let socket = format!("{fewer}control_socket = {folder:?}\n");
    setting.fails_with(&socket, &["refused", "no", "No such file"]);
    setting.succeeds();
}

#[test]
fn a_process_that_is_told_to_end_meanwhile_ends_the_new_one_and_drains() {
    let setting = Setting::new();
    let Setting {
        mut line,
        mut client,
        ..
    } = setting;
    install_script("exec sleep 60", "755", &line.binary.clone());
    line.signal(Signal::USR2);
    line.proxy.wait_message(0, "upgrading");
    line.signal(Signal::TERM);
    line.proxy.wait_message(0, "draining");
    eventually("the new one to be gone", || {
        (line.family().len() == 1).then_some(())
    });
    exchange(&mut client);
    leave(client);
    assert_eq!(line.wait_exit(0), Exit::Code(0));
    assert_eq!(line.family(), []);
}
