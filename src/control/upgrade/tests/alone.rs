//! Tests that need a process of their own: this test binary, executed for one of them.

use std::env;
use std::process::{Command, Stdio};

const MARK: &str = "RINGRESS_TEST_ALONE";

/// Arguments by which the test binary runs one test of this folder.
pub(super) fn arguments(test: &str) -> [String; 3] {
    let test = format!("control::upgrade::tests::{test}");
    [test, "--exact".to_owned(), "--nocapture".to_owned()]
}

/// Runs `body`, which is that of `test`, in a process where no other test runs.
pub(super) fn alone(test: &str, body: impl FnOnce()) {
    if env::var_os(MARK).is_some() {
        return body();
    }
    let output = Command::new(env::current_exe().unwrap())
        .args(arguments(test))
        .env(MARK, "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}{complained}");
    assert!(told.contains("1 passed"), "{told}{complained}");
}
