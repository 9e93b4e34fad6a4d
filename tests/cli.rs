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
