//! Who may import whom: docs/architecture.md's layers as a table.

use std::collections::BTreeSet;

use super::File;
use super::text::without_comments_and_strings;

/// A module of src/ and the modules it may name beside itself and the base ones.
const TABLE: [(&str, &[&str]); 11] = [
    ("policy", &[]),
    ("proto", &[]),
    ("tls", &[]),
    ("config", &["policy", "tls"]),
    ("telemetry", &["config"]),
    ("ring", &["proto"]),
    (
        "upstream",
        &["ring", "tls", "proto", "policy", "config", "telemetry"],
    ),
    (
        "proxy",
        &[
            "upstream",
            "ring",
            "tls",
            "proto",
            "policy",
            "config",
            "telemetry",
        ],
    ),
    (
        "control",
        &[
            "tls",
            "proxy",
            "upstream",
            "ring",
            "proto",
            "policy",
            "config",
            "telemetry",
        ],
    ),
    (
        "cli",
        &[
            "control",
            "config",
            "telemetry",
            "ring::probe",
            "ring::limits",
        ],
    ),
    ("main", &["cli"]),
];

/// Known to everybody; they know nobody.
const BASE: [&str; 3] = ["time", "address", "settled"];

pub(super) fn check(file: &File) -> Vec<String> {
    let Some(module) = module_of(&file.path) else {
        return Vec::new();
    };
    let allowed: &[&str] = TABLE
        .iter()
        .find(|(name, _)| *name == module)
        .map_or(&[], |(_, allowed)| allowed);
    let root = if module == "main" {
        "ringress"
    } else {
        "crate"
    };
    named_paths(&without_comments_and_strings(&file.text), root)
        .into_iter()
        .filter(|path| !may_name(&module, allowed, path))
        .map(|path| format!("{}: {module} may not use {root}::{path}", file.path))
        .collect()
}

/// Modules without a row, which would pass any check.
pub(super) fn unknown_modules(files: &[File]) -> Vec<String> {
    let modules: BTreeSet<String> = files.iter().filter_map(|f| module_of(&f.path)).collect();
    modules
        .iter()
        .filter(|module| !BASE.contains(&module.as_str()))
        .filter(|module| !TABLE.iter().any(|(name, _)| name == module))
        .map(|module| format!("src/{module}: the import table has no row for it"))
        .collect()
}

fn may_name(module: &str, allowed: &[&str], path: &str) -> bool {
    let first = path.split("::").next().unwrap_or_default();
    let is_base = BASE.contains(&module);
    first == module
        || (!is_base && BASE.contains(&first))
        || allowed.iter().any(|entry| {
            path == *entry
                || path
                    .strip_prefix(entry)
                    .is_some_and(|rest| rest.starts_with("::"))
        })
}

/// The first part of the path below src/; lib.rs only declares.
fn module_of(path: &str) -> Option<String> {
    let below = path.strip_prefix("src/")?.strip_suffix(".rs")?;
    let first = below.split('/').next()?;
    (first != "lib").then(|| first.to_owned())
}

/// Every path that starts at `root::`, braces taken apart: `crate::{a, b::{c, d}}` is `a`, `b::c`,
/// `b::d`.
fn named_paths(code: &str, root: &str) -> Vec<String> {
    let start = format!("{root}::");
    code.match_indices(&start)
        .filter(|(at, _)| !code[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
        .flat_map(|(at, _)| expand(&mut code[at + start.len()..].chars().peekable()))
        .collect()
}

fn expand(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Vec<String> {
    let mut path = String::new();
    loop {
        match rest.peek() {
            Some('{') => {
                rest.next();
                return braced(rest, &path);
            }
            Some(c) if c.is_alphanumeric() || "_:*".contains(*c) => path.extend(rest.next()),
            _ => return vec![path.trim_end_matches(':').to_owned()],
        }
    }
}

fn braced(rest: &mut std::iter::Peekable<std::str::Chars<'_>>, prefix: &str) -> Vec<String> {
    let mut paths = Vec::new();
    loop {
        match rest.peek() {
            None => return paths,
            Some('}') => {
                rest.next();
                return paths;
            }
            Some(c) if c.is_alphanumeric() || "_*{".contains(*c) => {
                let inner = expand(rest);
                if inner.iter().any(|path| path == "as") {
                    // `a as b`: the next word is a name of its own making.
                    while rest.next_if(|c| !",}".contains(*c)).is_some() {}
                } else {
                    paths.extend(inner.iter().map(|path| format!("{prefix}{path}")));
                }
            }
            Some(_) => {
                rest.next();
            }
        }
    }
}

#[test]
fn a_wrong_import_is_found_in_every_spelling() {
    for code in [
        "use crate::proxy::Session;",
        "use crate::{time::Instant, proxy};",
        "use crate::{\n    time,\n    ring::{Driver, Op},\n};",
        "fn f() { crate::control::run() }",
        "fn f(x: &crate::config::Config) {}",
        "pub(in crate::proxy) fn f() {}",
    ] {
        let findings = check(&File::planted("src/policy/health.rs", code));
        assert_eq!(
            findings.len(),
            if code.contains("Op}") { 2 } else { 1 },
            "{code}"
        );
    }
}

#[test]
fn a_right_import_passes() {
    for (path, code) in [
        (
            "src/policy/health.rs",
            "use crate::time::Instant;\nuse crate::policy::bucket;",
        ),
        (
            "src/policy/health.rs",
            "// use crate::proxy;\nlet a = \"crate::proxy\";",
        ),
        ("src/policy/health.rs", "use mycrate::proxy;"),
        (
            "src/cli/doctor.rs",
            "use crate::ring::probe::{self, Feature};",
        ),
        ("src/cli/doctor.rs", "use crate::ring::{limits, probe};"),
        (
            "src/control/mod.rs",
            "use crate::{ring::{Driver, uring}, address::Address as A};",
        ),
        ("src/main.rs", "fn main() { ringress::cli::main() }"),
        ("src/lib.rs", "pub use crate::proxy;"),
        ("tests/tcp.rs", "use crate::common;"),
    ] {
        assert_eq!(
            check(&File::planted(path, code)),
            Vec::<String>::new(),
            "{code}"
        );
    }
}

#[test]
fn a_part_of_a_module_is_not_the_whole_of_it() {
    for code in [
        "use crate::ring::Driver;",
        "use crate::ring::{probe, uring};",
        "use crate::ring;",
    ] {
        assert_eq!(
            check(&File::planted("src/cli/run.rs", code)).len(),
            1,
            "{code}"
        );
    }
    let code = "fn main() { ringress::control::run() }";
    assert_eq!(check(&File::planted("src/main.rs", code)).len(), 1);
    assert_eq!(
        check(&File::planted("src/time.rs", "use crate::address::A;")).len(),
        1
    );
}

#[test]
fn a_module_without_a_row_is_found() {
    let planted = [
        File::planted("src/helpers/mod.rs", ""),
        File::planted("src/time.rs", ""),
    ];
    assert_eq!(unknown_modules(&planted).len(), 1);
}
