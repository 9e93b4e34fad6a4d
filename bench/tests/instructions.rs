//! Guards what was won, on a fixed scripted run (`examples/scripted.rs`, on the simulated driver): the
//! instructions that ringress's own code spends on it may not grow by more than 3 %, with traffic
//! policy on it may not take more than 3 % more, nor may bulk that a name has led to its backend; telling every
//! session to the access log may take 2 %. Counted by callgrind, so that the figures are the same however busy
//! the machine is.
//!
//! The accepted figures are in `bench/instructions.txt`. When a change is worth what it costs, or
//! saves: `RINGRESS_ACCEPT=1 cargo test -p ringress-bench --test instructions`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use ringress::policy::clients::Clients;

const TOLERANCE: f64 = 0.03;
/// What policies may cost beside the bare relay.
const POLICIES_MOST: f64 = 0.03;
/// What it may cost that every session is told to the access log.
const LOGGED_MOST: f64 = 0.02;
/// What passthrough may cost beside plain TCP, once the ClientHello has been passed on.
const PASSTHROUGH_MOST: f64 = 0.03;
/// Functions below this share of the total are not listed.
const LEAST_SHARE: f64 = 0.005;

/// By function of ringress, without what it calls.
type Counts = BTreeMap<String, u64>;

/// What a worker took in a scripted run, beyond the simulated kernel.
#[derive(PartialEq, Eq, Debug)]
struct Profile {
    own: Counts,
    /// With what it calls of libraries, as for allocating and hashing.
    whole: u64,
}

/// The scripted run, built; `None` without valgrind.
static PROGRAM: LazyLock<Option<PathBuf>> = LazyLock::new(|| {
    let valgrind = Command::new("valgrind")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    if valgrind.is_err() {
        eprintln!(
            "valgrind is not installed: instructions are not counted (make test installs it)"
        );
        return None;
    }
    Some(build())
});

/// Without policies, and its requests.
static BARE: LazyLock<Option<(Profile, u64)>> =
    LazyLock::new(|| PROGRAM.as_ref().map(|program| exchanges(program, &[])));

#[test]
fn a_scripted_run_takes_no_more_instructions_than_accepted() {
    let Some((Profile { own: counts, .. }, _)) = &*BARE else {
        return;
    };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.txt");
    if std::env::var_os("RINGRESS_ACCEPT").is_some() {
        std::fs::write(&file, render(counts)).expect("the file can be written");
        return;
    }
    let accepted = std::fs::read_to_string(&file).expect("the accepted figures are there");
    if let Err(complaint) = compare(&accepted_counts(&accepted), counts) {
        panic!("{complaint}");
    }
}

#[test]
fn policies_take_at_most_3_percent_more_instructions_than_the_bare_relay() {
    let (Some(program), Some((bare, requests))) = (&*PROGRAM, &*BARE) else {
        return;
    };
    costs_at_most(program, "policies", POLICIES_MOST, bare, *requests);
}

#[test]
fn the_access_log_takes_at_most_2_percent_more_instructions_than_the_bare_relay() {
    let (Some(program), Some((bare, requests))) = (&*PROGRAM, &*BARE) else {
        return;
    };
    costs_at_most(program, "logged", LOGGED_MOST, bare, *requests);
}

/// The same run with `what` takes at most so much more than the bare one.
fn costs_at_most(program: &Path, what: &str, most: f64, bare: &Profile, requests: u64) {
    let (with, same) = exchanges(program, &[what]);
    assert_eq!(requests, same, "both runs do the same work");
    let per_request = |profile: &Profile| profile.whole as f64 / requests as f64;
    let more = with.whole as f64 / bare.whole as f64 - 1.0;
    println!(
        "instructions per request: {:.1} bare, {:.1} {what}, {:+.2} %",
        per_request(bare),
        per_request(&with),
        more * 100.0
    );
    assert!(
        more <= most,
        "{what} cost {:.2} %, by function:\n{}",
        more * 100.0,
        growth(&bare.own, &with.own)
    );
}

#[test]
fn passthrough_takes_at_most_3_percent_more_instructions_per_byte_than_plain_tcp() {
    let Some(program) = &*PROGRAM else {
        return;
    };
    let [plain, routed] = ["plain", "passthrough"].map(|kind| Bulk::of(program, kind));
    assert_eq!(plain.bytes, routed.bytes, "both runs do the same work");
    let per_kib = |bulk: &Bulk| bulk.instructions as f64 * 1024.0 / bulk.bytes as f64;
    let more = routed.instructions as f64 / plain.instructions as f64 - 1.0;
    println!(
        "instructions per KiB: {:.2} plain, {:.2} in passthrough, {:+.2} %",
        per_kib(&plain),
        per_kib(&routed),
        more * 100.0
    );
    assert!(
        more <= PASSTHROUGH_MOST,
        "passthrough costs {:.2} %, by function:\n{}",
        more * 100.0,
        growth(&plain.own, &routed.own)
    );
}

/// What a long transfer took more than a shorter one: neither the start, nor the ClientHello, nor the end.
struct Bulk {
    instructions: u64,
    bytes: u64,
    /// Of the long one.
    own: Counts,
}

impl Bulk {
    fn of(program: &Path, kind: &str) -> Self {
        let [(short, few), (long, many)] = ["4", "12"].map(|mib| profile(program, &[kind, mib]));
        let own = |profile: &Profile| profile.own.values().sum::<u64>();
        let instructions = long.whole - short.whole;
        assert_is_ringress(own(&long) - own(&short), instructions);
        Self {
            instructions,
            bytes: many - few,
            own: long.own,
        }
    }
}

#[test]
fn a_client_address_takes_at_most_64_bytes() {
    const CLIENTS: u32 = 100_000;
    let most = NonZeroU32::new(CLIENTS).expect("above zero");
    let bytes = Clients::new(most, 1).bytes() as f64 / f64::from(CLIENTS);
    println!("a table for {CLIENTS} client addresses takes {bytes:.1} bytes for each");
    assert!(bytes <= 64.0, "{bytes}");
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

/// What a run with exchanges took, and how many there were.
fn exchanges(program: &Path, arguments: &[&str]) -> (Profile, u64) {
    let (profile, requests) = profile(program, arguments);
    assert_is_ringress(profile.own.values().sum(), profile.whole);
    (profile, requests)
}

/// Nearly all that was counted is ringress's own.
fn assert_is_ringress(own: u64, whole: u64) {
    assert!(
        own > 200_000 && own * 10 > whole * 9,
        "callgrind did not see ringress, or not it alone: {own} of {whole}"
    );
}

/// Runs `program` under callgrind; what it took, and the requests or bytes that it says it served.
fn profile(program: &Path, arguments: &[&str]) -> (Profile, u64) {
    let kind = arguments.join(".");
    let out = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(format!("callgrind.{}.{kind}", std::process::id()));
    let run = Command::new("valgrind")
        .args([
            "--tool=callgrind",
            "--compress-strings=no",
            "--compress-pos=no",
        ])
        .args(COUNTED.map(|function| format!("--toggle-collect={function}")))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args(arguments)
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
    let profile = parse(&text);
    let said = String::from_utf8_lossy(&run.stdout);
    let requests = said
        .split_whitespace()
        .rev()
        .nth(1)
        .and_then(|word| word.parse().ok());
    (profile, requests.expect("it says so many exchanges"))
}

/// Counting changes over whenever one of these is entered or left: it begins with a worker's turn, and
/// rests while that turn is with the simulated kernel.
const COUNTED: [&str; 2] = [
    "scripted::turn*",
    "*sim::driver::SimDriver as ringress::ring::driver::Driver>*",
];

/// The simulated kernel's own functions are not ringress's.
fn parse(callgrind: &str) -> Profile {
    let mut own = Counts::new();
    let mut whole = 0;
    let mut function = String::new();
    let mut lines = callgrind.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("fn=") {
            function = plain_name(name);
        } else if line.starts_with("calls=") {
            // The next line holds what the called function took.
            lines.next();
        } else if line.starts_with(|first: char| first.is_ascii_digit()) {
            let cost = line.split_whitespace().nth(1);
            let cost = cost.and_then(|cost| cost.parse().ok()).unwrap_or(0);
            whole += cost;
            if is_ours(&function) {
                *own.entry(function.clone()).or_default() += cost;
            }
        }
    }
    Profile { own, whole }
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
    Err(format!(
        "{now} instructions, {:.1} % more than the {before} accepted:\n{}",
        grown * 100.0,
        growth(accepted, counts)
    ))
}

/// The functions that grew most.
fn growth(before: &Counts, now: &Counts) -> String {
    let mut differences: Vec<(i64, &String)> = now
        .iter()
        .map(|(name, count)| {
            (
                *count as i64 - before.get(name).copied().unwrap_or(0) as i64,
                name,
            )
        })
        .collect();
    differences.sort_unstable_by(|a, b| b.cmp(a));
    let mut text = String::new();
    for (more, name) in differences.iter().take(5).filter(|(more, _)| *more > 0) {
        let _ = writeln!(text, "{more:>+12} {name}");
    }
    text
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
    let profile = Profile {
        own: Counts::from([("ringress::a".to_owned(), 15)]),
        whole: 74,
    };
    assert_eq!(parse(text), profile);
}
