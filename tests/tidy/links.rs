//! The documents that must exist, and the relative links of all of them.

use super::File;

const DOCUMENTS: [&str; 17] = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/architecture.md",
    "docs/configuration.md",
    "docs/lexicon.md",
    "docs/guide/install.md",
    "docs/guide/balancing.md",
    "docs/guide/health.md",
    "docs/guide/limits.md",
    "docs/guide/resilience.md",
    "docs/guide/reload.md",
    "docs/guide/upgrade.md",
    "docs/guide/tls.md",
    "docs/guide/passthrough.md",
    "docs/guide/proxy-protocol.md",
    "docs/guide/systemd.md",
];

pub(super) fn missing(exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let missing = DOCUMENTS.iter().filter(|path| !exists(path));
    missing.map(|path| format!("{path} is missing")).collect()
}

/// Relative links that lead nowhere. Links to sections are checked for the file only.
pub(super) fn check(file: &File, exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    if !file.path.ends_with(".md") {
        return Vec::new();
    }
    let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    targets(&file.text)
        .into_iter()
        .filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
        .filter_map(|target| {
            let path = target.split('#').next().filter(|path| !path.is_empty())?;
            let resolved = resolve(folder, path);
            let leads = resolved.as_deref().is_some_and(exists);
            (!leads).then(|| format!("{}: the link to {path} leads nowhere", file.path))
        })
        .collect()
}

/// What stands between `](` and `)`, outside of fenced code.
fn targets(text: &str) -> Vec<&str> {
    let mut fenced = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            found.extend(
                line.split("](")
                    .skip(1)
                    .filter_map(|rest| rest.split(')').next()),
            );
        }
    }
    found
}

/// `None` when the link leaves the repository.
fn resolve(folder: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[test]
fn a_dead_link_is_found_and_a_living_one_is_not() {
    let exists = |path: &str| path == "docs/lexicon.md";
    let planted = |text: &str| check(&File::planted("docs/guide/a.md", text), &exists);
    assert_eq!(
        planted("[a](../lexicon.md#words) [b](https://example.com) [c](#here)").len(),
        0
    );
    assert_eq!(planted("```\n[a](nowhere.md)\n```\n").len(), 0);
    assert_eq!(
        planted("[a](lexicon.md) and [b](../../../outside.md)").len(),
        2
    );
}

#[test]
fn a_missing_document_is_found() {
    assert_eq!(
        missing(&|path| path != "docs/lexicon.md"),
        ["docs/lexicon.md is missing"]
    );
}
