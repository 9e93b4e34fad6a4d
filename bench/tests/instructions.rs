//! Guards what was won: the instructions that ringress's own code spends on a fixed scripted run
//! (`examples/scripted.rs`, on the simulated driver) may not grow by more than 3 %. Counted by
//! callgrind, so that the figure is the same however busy the machine is.
//!
//! The accepted figures are in `bench/instructions.txt`. When a change is worth what it costs, or
//! saves: `RINGRESS_ACCEPT=1 cargo test -p ringress-bench --test instructions`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const TOLERANCE: f64 = 0.03;
/// Functions below this share of the total are not listed.
const LEAST_SHARE: f64 = 0.005;

type Counts = BTreeMap<String, u64>;

#[test]
fn a_scripted_run_takes_no_more_instructions_than_accepted() {
    if Command::new("valgrind")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_err()
    {
        eprintln!(
            "valgrind is not installed: instructions are not counted (make test installs it)"
        );
        return;
    }
    let counts = parse(&callgrind(&build()));
    let total: u64 = counts.values().sum();
    assert!(
        total > 1_000_000,
        "callgrind saw nothing of ringress: {counts:?}"
    );
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.txt");
    if std::env::var_os("RINGRESS_ACCEPT").is_some() {
        std::fs::write(&file, render(&counts)).expect("the file can be written");
        return;
    }
    let accepted = std::fs::read_to_string(&file).expect("the accepted figures are there");
    if let Err(complaint) = compare(&accepted_counts(&accepted), &counts) {
        panic!("{complaint}");
    }
}

/// Builds the scripted run as it is released and returns its path.
fn build() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .expect("it is in the target folder");
    let built = Command::new(env!("CARGO"))
        .args([
            "build",
            "--release",
            "--package",
            "ringress-bench",
            "--example",
            "scripted",
        ])
        .arg("--target-dir")
        .arg(target)
        .stdin(Stdio::null())
        .status()
        .expect("cargo can be run");
    assert!(built.success(), "the scripted run can't be built");
    target.join("release/examples/scripted")
}

fn callgrind(program: &Path) -> String {
    let out =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("callgrind.{}", std::process::id()));
    let run = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--compress-strings=no",
            "--compress-pos=no",
        ])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .stdin(Stdio::null())
        .output()
        .expect("valgrind can be run");
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    let text = std::fs::read_to_string(&out).expect("callgrind wrote its figures");
    std::fs::remove_file(&out).expect("it can be removed");
    text
}

/// The instructions of each of ringress's functions itself, without what it calls. The simulated
/// kernel does not count.
fn parse(callgrind: &str) -> Counts {
    let mut counts = Counts::new();
    let mut function = String::new();
    let mut lines = callgrind.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("fn=") {
            function = plain_name(name);
        } else if line.starts_with("calls=") {
            // The next line holds what the called function took.
            lines.next();
        } else if line.starts_with(|first: char| first.is_ascii_digit()) && is_ours(&function) {
            let cost = line
                .split_whitespace()
                .nth(1)
                .and_then(|cost| cost.parse::<u64>().ok());
            *counts.entry(function.clone()).or_default() += cost.unwrap_or(0);
        }
    }
    counts
}

fn is_ours(function: &str) -> bool {
    // The ring's turn is inlined into the script's.
    (function.contains("ringress::") || function.contains("scripted::turn"))
        && !function.contains("::sim::")
}

/// Without the hash that differs from build to build.
fn plain_name(name: &str) -> String {
    let end = name
        .rfind("::h")
        .filter(|end| name.len() - end == 19)
        .unwrap_or(name.len());
    name[..end].to_owned()
}

fn compare(accepted: &Counts, counts: &Counts) -> Result<(), String> {
    let (before, now): (u64, u64) = (accepted.values().sum(), counts.values().sum());
    let grown = now as f64 / before as f64 - 1.0;
    if grown <= TOLERANCE {
        return Ok(());
    }
    let mut complaint = format!(
        "{now} instructions, {:.1} % more than the {before} accepted:\n",
        grown * 100.0
    );
    let mut differences: Vec<(i64, &String)> = counts
        .iter()
        .map(|(name, count)| {
            (
                *count as i64 - accepted.get(name).copied().unwrap_or(0) as i64,
                name,
            )
        })
        .collect();
    differences.sort_unstable_by(|a, b| b.cmp(a));
    for (more, name) in differences.iter().take(5).filter(|(more, _)| *more > 0) {
        let _ = writeln!(complaint, "{more:>+12} {name}");
    }
    Err(complaint)
}

fn render(counts: &Counts) -> String {
    let total: u64 = counts.values().sum();
    let mut by_cost: Vec<_> = counts.iter().collect();
    by_cost.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), name.as_str()));
    let mut text = String::new();
    let mut rest = 0;
    for (name, count) in by_cost {
        if *count as f64 >= total as f64 * LEAST_SHARE {
            let _ = writeln!(text, "{count} {name}");
        } else {
            rest += count;
        }
    }
    let _ = writeln!(text, "{rest} others");
    text
}

fn accepted_counts(text: &str) -> Counts {
    text.lines()
        .filter_map(|line| {
            let (count, name) = line.split_once(' ')?;
            Some((name.to_owned(), count.parse().ok()?))
        })
        .collect()
}

#[test]
fn growth_beyond_the_tolerance_names_the_function() {
    let accepted = accepted_counts("600 ringress::a\n400 ringress::b\n");
    let counts =
        |a: u64, b: u64| Counts::from([("ringress::a".into(), a), ("ringress::b".into(), b)]);
    assert!(compare(&accepted, &counts(605, 420)).is_ok());
    let complaint = compare(&accepted, &counts(600, 440)).expect_err("4 % more");
    assert!(
        complaint.contains("+40 ringress::b") && !complaint.contains("ringress::a"),
        "{complaint}"
    );
}

#[test]
fn only_a_functions_own_cost_counts_and_the_simulation_does_not() {
    let text = "fn=ringress::a::h0123456789abcdef\n1 10\n2 5\ncalls=1 7\n3 1000\nfn=ringress::ring::sim::x\n4 50\nfn=memcpy\n1 9\n";
    assert_eq!(parse(text), Counts::from([("ringress::a".to_owned(), 15)]));
}
