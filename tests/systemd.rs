//! The units in conf/systemd: that systemd understands them where it is installed, and everywhere that
//! they fit the program and its defaults. And what the process says to a service manager, and takes from one,
//! without systemd.

mod common;

#[path = "systemd/activation.rs"]
mod activation;
#[path = "systemd/notify.rs"]
mod notify;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ringress::config::{self, SystemResolver};

/// Where the package puts what the units start.
const INSTALLED: &str = "/usr/bin/ringress";

const BUILT: &str = env!("CARGO_BIN_EXE_ringress");

const UNITS: [&str; 2] = ["ringress.service", "ringress.socket"];

/// For a systemd that doesn't know Type=notify-reload.
const DROP_IN: &str = "before-253.conf";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/systemd")
}

fn text(file: &str) -> String {
    fs::read_to_string(folder().join(file)).expect("it is in the repository")
}

/// A line `key=value`, and the section that it stands in.
struct Directive {
    section: String,
    key: String,
    value: String,
}

fn directives(text: &str) -> Vec<Directive> {
    let mut section = String::new();
    let mut found = Vec::new();
    for line in text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']').to_owned();
            continue;
        }
        let (key, value) = line
            .split_once('=')
            .unwrap_or_else(|| panic!("no directive: {line}"));
        found.push(Directive {
            section: section.clone(),
            key: key.to_owned(),
            value: value.to_owned(),
        });
    }
    found
}

/// All values of a key, in the order of the file.
fn values(text: &str, key: &str) -> Vec<String> {
    let all = directives(text).into_iter();
    all.filter(|found| found.key == key)
        .map(|found| found.value)
        .collect()
}

fn value(text: &str, key: &str) -> String {
    let all = values(text, key);
    assert_eq!(all.len(), 1, "{key}: {all:?}");
    all[0].clone()
}

fn time(text: &str, key: &str) -> Duration {
    humantime::parse_duration(&value(text, key)).expect("a time with a unit")
}

/// The directives of systemd 253 that the units use; systemd only warns of one that it doesn't know.
const KNOWN: [(&str, &[&str]); 4] = [
    ("Unit", &["Description", "After", "Wants"]),
    ("Install", &["WantedBy"]),
    (
        "Socket",
        &[
            "FileDescriptorName",
            "ListenStream",
            "Backlog",
            "NoDelay",
            "KeepAlive",
            "Service",
        ],
    ),
    (
        "Service",
        &[
            "AmbientCapabilities",
            "CapabilityBoundingSet",
            "ExecReload",
            "ExecStart",
            "Group",
            "KeyringMode",
            "KillMode",
            "LimitMEMLOCK",
            "LimitNOFILE",
            "LockPersonality",
            "MemoryDenyWriteExecute",
            "NoNewPrivileges",
            "NotifyAccess",
            "PrivateDevices",
            "PrivateMounts",
            "PrivateTmp",
            "ProtectClock",
            "ProtectControlGroups",
            "ProtectHome",
            "ProtectHostname",
            "ProtectKernelLogs",
            "ProtectKernelModules",
            "ProtectKernelTunables",
            "ProtectProc",
            "ProtectSystem",
            "RemoveIPC",
            "Restart",
            "RestartSec",
            "RestrictAddressFamilies",
            "RestrictNamespaces",
            "RestrictRealtime",
            "RestrictSUIDSGID",
            "RuntimeDirectory",
            "SystemCallArchitectures",
            "SystemCallErrorNumber",
            "SystemCallFilter",
            "TimeoutStopSec",
            "Type",
            "UMask",
            "User",
            "WatchdogSec",
        ],
    ),
];

fn unknown(text: &str) -> Vec<String> {
    let is_known = |found: &Directive| {
        let section = KNOWN.iter().find(|(name, _)| *name == found.section);
        section.is_some_and(|(_, keys)| keys.contains(&&*found.key))
    };
    let all = directives(text)
        .into_iter()
        .filter(|found| !is_known(found));
    all.map(|found| format!("[{}] {}", found.section, found.key))
        .collect()
}

#[test]
fn every_directive_exists() {
    for file in UNITS.iter().chain([&DROP_IN]) {
        assert_eq!(unknown(&text(file)), Vec::<String>::new(), "{file}");
    }
    let planted = "[Service]\nUser=a\nProtectSytem=strict\n[Unit]\nUser=a\n";
    assert_eq!(unknown(planted), ["[Service] ProtectSytem", "[Unit] User"]);
}

#[test]
fn the_service_may_take_as_long_as_a_drain_by_default() {
    let smallest = "listeners.web = { bind = '127.0.0.1:80', upstream = 'app' }
                    upstreams.app.backends = ['127.0.0.1:81']";
    let config = config::parse(smallest, "a.toml", &mut SystemResolver).expect("it is valid");
    let unit = text("ringress.service");
    // Aborting what is left takes a moment.
    let longest = config.runtime.drain_timeout + Duration::from_secs(5);
    assert!(time(&unit, "TimeoutStopSec") >= longest);
    assert!(time(&unit, "WatchdogSec") >= Duration::from_secs(10));
}

#[test]
fn the_sandbox_leaves_what_the_program_needs() {
    let unit = text("ringress.service");
    let families = value(&unit, "RestrictAddressFamilies");
    assert_eq!(families, "AF_INET AF_INET6 AF_UNIX");
    for key in ["AmbientCapabilities", "CapabilityBoundingSet"] {
        assert_eq!(value(&unit, key), "CAP_NET_BIND_SERVICE", "{key}");
    }
    let filters = values(&unit, "SystemCallFilter");
    let (removed, allowed): (Vec<_>, Vec<_>) = filters.iter().partition(|f| f.starts_with('~'));
    for call in ["io_uring_setup", "io_uring_enter", "io_uring_register"] {
        assert!(
            allowed
                .iter()
                .any(|f| f.split(' ').any(|word| word == call))
        );
    }
    // @resources has the calls that pin a worker and raise the limit of descriptors, @aio io_uring.
    for set in ["@resources", "@aio", "io_uring"] {
        assert!(!removed.iter().any(|f| f.contains(set)), "{set}");
    }
    assert_eq!(value(&unit, "Type"), "notify-reload");
    assert_eq!(value(&unit, "NotifyAccess"), "main");
}

#[test]
fn what_is_started_is_a_command_of_the_program() {
    let command = value(&text("ringress.service"), "ExecStart");
    let arguments = command
        .strip_prefix(INSTALLED)
        .expect("where the package puts it");
    let arguments = arguments.replace("/etc/ringress", "/no such folder");
    let words = arguments.trim().splitn(3, ' ');
    let ran = Command::new(BUILT)
        .args(words)
        .output()
        .expect("it was built");
    let said = String::from_utf8_lossy(&ran.stderr);
    // 2 would be: no such command or option.
    assert_eq!(ran.status.code(), Some(1), "{said}");
    assert!(said.contains("/no such folder/ringress.toml"), "{said}");
}

/// Version of the systemd that is installed.
fn installed_systemd() -> Option<u32> {
    let ran = Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .ok()?;
    let said = String::from_utf8(ran.stdout).ok()?;
    said.split_whitespace().nth(1)?.parse().ok()
}

/// What systemd has to say about the units, with `change` made to the service.
fn complaints(change: impl Fn(&str) -> String, version: u32) -> Vec<String> {
    let folder = tempfile::tempdir().expect("a folder");
    for unit in UNITS {
        let text = text(unit).replace(INSTALLED, BUILT);
        let text = if unit == UNITS[0] {
            change(&text)
        } else {
            text
        };
        fs::write(folder.path().join(unit), text).expect("there is room");
    }
    if version < 253 {
        let drop_ins = folder.path().join("ringress.service.d");
        fs::create_dir(&drop_ins).expect("there is room");
        fs::copy(self::folder().join(DROP_IN), drop_ins.join(DROP_IN)).expect("there is room");
    }
    let ran = Command::new("systemd-analyze")
        .args(["--man=no", "verify"])
        .args(UNITS.map(|unit| folder.path().join(unit)))
        .output()
        .expect("it is installed");
    let said = String::from_utf8_lossy(&ran.stderr);
    // Units of this machine may have faults of their own, and an old systemd warns before the drop-in.
    said.lines()
        .filter(|line| line.contains("ringress"))
        .filter(|line| version >= 253 || !line.ends_with("notify-reload"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn systemd_has_nothing_to_say_about_the_units() {
    let Some(version) = installed_systemd() else {
        eprintln!("skipped: systemd-analyze is not installed");
        return;
    };
    let unchanged = complaints(str::to_owned, version);
    assert_eq!(unchanged, Vec::<String>::new());
    // And it would if there were something.
    for (from, to) in [
        ("KillMode=mixed", "KillMode=gently"),
        ("PrivateTmp", "PrivateTemp"),
        ("AF_INET6", "AF_INET7"),
        ("io_uring_enter", "io_uring_inter"),
        (BUILT, "/nowhere/ringress"),
    ] {
        let said = complaints(|text| text.replace(from, to), version);
        assert!(!said.is_empty(), "{to} goes unnoticed");
    }
}
