//! The alert rules and the dashboard in docs/monitoring: that the tools take them, and that what they ask for is
//! among the metrics.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use common::tools::fed;

fn document(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("docs")
        .join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(document(path)).expect("it is there")
}

#[test]
fn the_tools_of_prometheus_take_the_alert_rules_and_they_fire_when_they_should() {
    for (what, path) in [
        ("check", "monitoring/alerts.yml"),
        ("test", "monitoring/alerts_test.yml"),
    ] {
        let path = document(path).display().to_string();
        let (well, said) = fed("promtool", &[what, "rules", &path], "");
        assert!(well, "{said}");
    }
}

/// Names of metrics in an expression, as samples have them.
fn names(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("ringress_") || word.starts_with("process_"))
}

/// Names of samples that there are.
fn documented() -> BTreeSet<String> {
    let text = read("metrics.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let mut all = BTreeSet::new();
    for row in rows {
        let (name, rest) = row.split_once('`').expect("a name ends");
        match rest.starts_with(" | histogram") {
            true => all.extend(["_bucket", "_sum", "_count"].map(|part| format!("{name}{part}"))),
            false => drop(all.insert(name.to_owned())),
        }
    }
    all
}

#[test]
fn what_alerts_and_dashboard_ask_for_is_among_the_metrics() {
    let dashboard: Value = serde_json::from_str(&read("monitoring/dashboard.json")).expect("JSON");
    let mut asked = Vec::new();
    collect(&dashboard, &mut asked);
    assert!(asked.len() > 50, "{asked:?}");
    asked.push(read("monitoring/alerts.yml"));
    let documented = documented();
    let asked = asked.iter().flat_map(|text| names(text));
    let unknown: Vec<_> = asked.filter(|name| !documented.contains(*name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

/// All queries of a part of the dashboard.
fn collect(part: &Value, queries: &mut Vec<String>) {
    match part {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if ["expr", "definition"].contains(&&**name) => {
                        queries.push(text.clone());
                    }
                    value => collect(value, queries),
                }
            }
        }
        Value::Array(parts) => parts.iter().for_each(|part| collect(part, queries)),
        _ => {}
    }
}

#[test]
fn queries_of_the_dashboard_are_well_formed() {
    let dashboard: Value = serde_json::from_str(&read("monitoring/dashboard.json")).expect("JSON");
    let mut queries = Vec::new();
    collect(&dashboard["panels"], &mut queries);
    // As rules, since these are what the tool looks at.
    let rules: String = queries
        .iter()
        .enumerate()
        .map(|(number, query)| {
            let query = query.replace("$__rate_interval", "1m");
            format!(
                "  - record: panel:{number}\n    expr: {}\n",
                Value::from(query)
            )
        })
        .collect();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("rules.yml");
    std::fs::write(
        &file,
        format!("groups:\n- name: dashboard\n  rules:\n{rules}"),
    )
    .expect("it can be written");
    let (well, said) = fed(
        "promtool",
        &["check", "rules", &file.display().to_string()],
        "",
    );
    assert!(well, "{said}");
}
