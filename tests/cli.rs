//! The command as a user meets it: exit codes, where messages go, and no panic when nobody reads.

use std::process::{Command, Output, Stdio};

fn ringress(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringress"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn output(arguments: &[&str]) -> Output {
    ringress(arguments).output().expect("the binary was built")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("what is printed is UTF-8")
}

#[test]
fn wrong_usage_exits_with_2_and_says_so_on_stderr() {
    for arguments in [&[][..], &["nonsense"], &["run"], &["tcp", "127.0.0.1:8080"]] {
        let output = output(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains("Usage"), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn help_and_version_exit_with_0() {
    assert!(output(&["--help"]).status.success());
    let version = output(&["--version"]);
    assert_eq!(
        text(&version.stdout),
        concat!("ringress ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[test]
fn init_prints_toml() {
    let output = output(&["init"]);
    assert!(output.status.success());
    let table: toml::Table = text(&output.stdout).parse().expect("it is TOML");
    assert!(table.contains_key("listeners"));
}

#[test]
fn doctor_lists_features_and_limits() {
    let output = output(&["doctor"]);
    let report = text(&output.stdout);
    assert!(output.status.success(), "{report}{}", text(&output.stderr));
    for part in [
        "DEFER_TASKRUN",
        "multishot recv",
        "max_connections",
        "locked memory",
        "workers",
    ] {
        assert!(report.contains(part), "{part} is missing:\n{report}");
    }
}

#[test]
fn a_missing_file_is_said_on_stderr_and_exits_with_1() {
    let output = output(&["run", "-c", "no/such/file.toml"]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(
        message.starts_with("no/such/file.toml: error: there is no such file\n"),
        "{message}"
    );
}

/// Writes two configurations, the second with `pin_workers = false` and another listener.
fn two_files() -> (tempfile::TempDir, [String; 2]) {
    let folder = tempfile::tempdir().expect("a folder");
    let rest = "[listeners.web]\nbind = \"127.0.0.1:0\"\nupstream = \"app\"\n\
                [upstreams.app]\nbackends = [\"127.0.0.1:1\"]\n";
    let more =
        "[runtime]\npin_workers = false\n[listeners.api]\nbind = \"[::1]:0\"\nupstream = \"app\"\n";
    let paths = [("old.toml", ""), ("new.toml", more)].map(|(name, text)| {
        let path = folder.path().join(name);
        std::fs::write(&path, format!("{text}{rest}")).expect("it can be written");
        path.display().to_string()
    });
    (folder, paths)
}

#[test]
fn plan_tells_what_another_file_changes_and_how() {
    let (_folder, [old, new]) = two_files();
    let plan = |arguments: &[&str]| {
        let output = output(&[&["plan"], arguments].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout).to_owned()
    };
    assert_eq!(
        plan(&[&new, "--from", &old]),
        "a reload would change\n  listeners.api: added (rebind)\n  \
         runtime.pin_workers: true → false (needs upgrade)\n"
    );
    assert_eq!(
        plan(&[&old, "--from", &old]),
        "a reload would change nothing\n"
    );
    let json = plan(&[&old, "--from", &new, "--format", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let expected = serde_json::json!({
        "changes": [
            { "key": "listeners.api", "from": "[[::1]:0]", "to": null, "how": "rebind" },
            { "key": "runtime.pin_workers", "from": "false", "to": "true", "how": "needs upgrade" },
        ],
    });
    assert_eq!(json, expected);
}

#[test]
fn plan_of_a_wrong_file_says_what_is_wrong_and_exits_with_1() {
    let (folder, [old, new]) = two_files();
    let wrong = folder.path().join("wrong.toml").display().to_string();
    std::fs::write(&wrong, "[listners]").expect("it can be written");
    for arguments in [[&wrong, "--from", &old], [&new, "--from", &wrong]] {
        let output = output(&[&["plan"], &arguments[..]].concat());
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty());
        assert!(
            text(&output.stderr).contains("did you mean"),
            "{arguments:?}"
        );
    }
}

#[test]
fn a_reader_that_went_away_is_no_panic() {
    for arguments in [&["init"][..], &["doctor"], &["--help"]] {
        let mut child = ringress(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary was built");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("it ends");
        assert!(
            !text(&output.stderr).contains("panicked"),
            "{}",
            text(&output.stderr)
        );
        assert!(
            output.status.code().is_some_and(|code| code <= 1),
            "{arguments:?}"
        );
    }
}
