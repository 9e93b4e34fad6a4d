//! `ringress-bench reload` against ringress: nothing is lost by reloads and upgrades, and what is lost when
//! the proxy dies is seen.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// The proxy: beside the harness, where `cargo test --workspace` puts it, or else built.
static RINGRESS: LazyLock<PathBuf> = LazyLock::new(|| {
    let beside = Path::new(env!("CARGO_BIN_EXE_ringress-bench")).with_file_name("ringress");
    if !beside.exists() {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
        let built = Command::new(env!("CARGO"))
            .args(["build", "--package", "ringress", "--bin", "ringress"])
            .arg("--target-dir")
            .arg(target.expect("it is in the target folder"))
            .stdin(Stdio::null())
            .status()
            .expect("cargo can be run");
        assert!(built.success(), "ringress can't be built");
    }
    beside
});

/// A run of the harness under little load.
struct Run {
    harness: Child,
    json: PathBuf,
}

impl Run {
    fn start(name: &str, orders: &str) -> Self {
        let json = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("reload.{}.{name}.json", std::process::id()));
        let harness = Command::new(env!("CARGO_BIN_EXE_ringress-bench"))
            .args("reload --peers ringress --rate 200 --kept 5 --kept-rate 100".split(' '))
            .args(orders.split(' '))
            .args([Path::new("--ringress"), &RINGRESS])
            .args([Path::new("--json"), &json])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the harness is there");
        Self { harness, json }
    }

    /// What it has measured. `look` is shown every line that tells how far it is.
    fn finish(mut self, mut look: impl FnMut(&str)) -> Value {
        let progress = self.harness.stderr.take().expect("it is piped");
        for line in BufReader::new(progress).lines() {
            look(&line.expect("it is text"));
        }
        assert!(self.harness.wait().expect("it ran").success());
        let text = std::fs::read(&self.json).expect("it wrote the file");
        std::fs::remove_file(&self.json).expect("it was there");
        let mut report: Value = serde_json::from_slice(&text).expect("it is JSON");
        report["contenders"][0]["measured"].take()
    }
}

/// Lost in this phase, of new connections and on kept ones.
fn lost(measured: &Value, phase: &str) -> [u64; 2] {
    ["fresh", "kept"].map(|load| {
        let load = &measured[phase][load];
        let count = |key: &str| load[key].as_u64().expect("a number");
        assert!(count("due") > 0, "{measured}");
        count("errors") + count("unanswered")
    })
}

fn nothing_is_lost(measured: &Value) {
    for phase in ["quiet", "orders"] {
        assert_eq!(lost(measured, phase), [0, 0], "{measured}");
    }
    let given = measured["given"].as_u64();
    assert!(given > Some(0), "{measured}");
    assert_eq!(measured["complaints"], Value::Array(vec![]), "{measured}");
}

#[test]
fn reloads_lose_nothing() {
    let run = Run::start("reloads", "--reloads 5 --over 1s --listener");
    let measured = run.finish(|_| {});
    nothing_is_lost(&measured);
    assert!(measured["took_effect"].as_u64() > Some(0), "{measured}");
    assert_eq!(measured["most_processes"], 1, "{measured}");
}

#[test]
fn upgrades_lose_nothing_and_leave_one_process() {
    let run = Run::start("upgrades", "--upgrades 3 --over 2s --listener");
    let measured = run.finish(|_| {});
    nothing_is_lost(&measured);
    assert_eq!(measured["took_effect"], measured["given"], "{measured}");
    assert!(measured["most_processes"].as_u64() > Some(1), "{measured}");
    assert_eq!(measured["after"]["processes"], 1, "{measured}");
}

#[test]
fn connections_that_a_killed_proxy_loses_are_counted() {
    let mut proxy = None;
    let run = Run::start("killed", "--reloads 2 --over 1s");
    let measured = run.finish(|line| {
        if let Some((_, id)) = line.split_once("process ") {
            proxy = Pid::from_raw(id.parse().expect("a process's number"));
        } else if line.contains("2 reloads") {
            let proxy = proxy.expect("it was named before");
            kill_process(proxy, Signal::KILL).expect("it lives");
        }
    });
    assert_eq!(lost(&measured, "quiet"), [0, 0], "{measured}");
    assert!(lost(&measured, "orders")[0] > 0, "{measured}");
    let refused = &measured["orders"]["fresh"]["losses"]["refused"];
    assert!(refused.as_u64() > Some(0), "{measured}");
    assert_eq!(measured["after"]["processes"], 0, "{measured}");
}
