//! Where the control socket is, and how several processes on one machine keep apart.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use crate::common::commands::{command_in, said};
use crate::common::essentials::there_and_back;
use crate::common::proxy::text;
use crate::common::{Backend, Proxy, config, plain};
use serde_json::Value;

/// A shell that becomes `$BINARY` in the end.
fn shell(script: &str) -> Command {
    let mut shell = Command::new("sh");
    shell
        .args(["-c", script, "sh"])
        .env("BINARY", env!("CARGO_BIN_EXE_ringress"));
    shell
}

fn ringress() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ringress"))
}

fn with_socket(backend: &Backend, socket: &str) -> String {
    let tables = format!("[runtime]\ncontrol_socket = {socket:?}\n");
    config(&[&backend.address], "", "", &tables)
}

#[test]
fn it_is_its_users_alone() {
    let backend = Backend::echo();
    let proxy = Proxy::start(&plain(&[&backend.address]));
    let socket = proxy.control_socket();
    assert_eq!(socket.parent(), Some(&*proxy.runtime_folder()));
    let file = fs::symlink_metadata(&socket).expect("it is there");
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o7777, 0o600);
    proxy.end();
}

/// Several, each with a file of the same name in a folder of its own, and all sockets in one.
#[test]
fn each_file_finds_its_own_process_however_it_is_spelled() {
    let backend = Backend::echo();
    let runtime = tempfile::tempdir().expect("a folder");
    let proxies = [(); 3].map(|()| {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("x")).expect("nothing is there");
        // Not the folder that is set for each.
        let script = "RUNTIME_DIRECTORY=$SHARED exec \"$BINARY\" \"$@\"";
        let mut shell = shell(script);
        shell.env("SHARED", runtime.path());
        let proxy = Proxy::launch(folder, &plain(&[&backend.address]), shell);
        proxy.wait_message(0, "started");
        proxy
    });
    let mut sockets: Vec<_> = proxies.iter().map(Proxy::control_socket).collect();
    sockets.sort();
    sockets.dedup();
    assert_eq!(sockets.len(), 3, "{sockets:?}");
    for proxy in &proxies {
        let folder = proxy.runtime_folder();
        for spelling in [
            "./ringress.toml".to_owned(),
            "x/../ringress.toml".to_owned(),
            format!("../{}/ringress.toml", name(&folder)),
            format!("{}/./ringress.toml", folder.display()),
        ] {
            let mut command = command_in(runtime.path(), "status --format json -c");
            command.arg(&spelling).current_dir(&folder);
            let said = said(command);
            let status: Value = serde_json::from_str(&said.stdout).unwrap_or_default();
            assert_eq!(status["pid"], proxy.pid(), "{spelling}: {said:?}");
        }
    }
    proxies.into_iter().for_each(Proxy::end);
}

fn name(folder: &Path) -> &str {
    let name = folder.file_name().expect("it has one");
    name.to_str().expect("it is UTF-8")
}

#[test]
fn off_is_none_and_a_path_is_there() {
    let backend = Backend::echo();
    let proxy = Proxy::start(&with_socket(&backend, "off"));
    let said = proxy.refused("status");
    assert!(said.contains("control_socket = \"off\""), "{said}");
    there_and_back(&proxy.connect(), 1000);
    proxy.end();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x.sock");
    let written = path.to_str().expect("it is UTF-8");
    let proxy = Proxy::start(&with_socket(&backend, written));
    assert_eq!(proxy.control_socket(), path);
    assert_eq!(proxy.status()["pid"], proxy.pid());
    let output = ringress().args(["status", "--socket", written]).output();
    assert!(output.expect("it was built").status.success());
    proxy.end();
    assert!(!path.exists());
}

#[test]
fn a_path_that_another_process_has_is_refused_and_left_to_it() {
    let backend = Backend::echo();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x.sock");
    let path = path.to_str().expect("it is UTF-8");
    let config = with_socket(&backend, path);
    let first = Proxy::start(&config);
    let (code, said) = Proxy::fails(&config);
    assert_eq!(code, Some(1), "{said}");
    for part in [path, "another process answers", "runtime.control_socket"] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(first.status()["pid"], first.pid());
    there_and_back(&first.connect(), 1000);
    first.end();
    Proxy::start(&config).end();
}

#[test]
fn a_dead_process_is_in_nobodys_way() {
    let backend = Backend::echo();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("x.sock");
    let config = with_socket(&backend, path.to_str().expect("it is UTF-8"));
    // It is killed, and its file stays.
    drop(Proxy::start(&config));
    assert!(path.exists());
    let proxy = Proxy::start(&config);
    assert_eq!(proxy.status()["pid"], proxy.pid());
    proxy.end();
}

#[test]
fn without_a_folder_for_it_there_is_a_warning_and_signals_do_the_rest() {
    let backend = Backend::echo();
    let is_root = rustix::process::geteuid().is_root();
    // Nobody can make anything in /proc. The system's folder is only root's to make.
    let tables = if is_root {
        "[runtime]\nuser = \"nobody\"\n"
    } else {
        ""
    };
    let config = config(&[&backend.address], "", "", tables);
    let mut shell = shell("RUNTIME_DIRECTORY=/proc/none exec \"$BINARY\" \"$@\"");
    shell.env("XDG_RUNTIME_DIR", "/proc/none");
    let folder = tempfile::tempdir().expect("a folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("it is ours");
    let proxy = Proxy::launch(folder, &config, shell);
    proxy.wait_message(0, "started");
    let line = proxy.wait_message(0, "no control socket");
    assert_eq!(line["level"], "WARN");
    assert!(text(&line, "error").contains("/proc/none"), "{line}");
    there_and_back(&proxy.connect(), 1000);
    assert_eq!(text(&proxy.reload_file(), "message"), "reloaded");
    proxy.end();
}
