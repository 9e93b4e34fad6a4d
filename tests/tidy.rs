//! The house rules that neither compiler nor linter knows: who may import whom, where `unsafe`
//! lives, how long a file may be, what never gets committed. Each check is shown to fail on a
//! planted sample, so that it can't pass by not looking.

#[path = "tidy/imports.rs"]
mod imports;
#[path = "tidy/links.rs"]
mod links;
#[path = "tidy/text.rs"]
mod text;

use std::fs;
use std::path::{Path, PathBuf};

/// A text file of the repository.
struct File {
    /// Relative to the root, with `/`.
    path: String,
    text: String,
}

impl File {
    #[cfg(test)]
    fn planted(path: &str, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    fn is_under(&self, folder: &str) -> bool {
        self.path
            .strip_prefix(folder)
            .is_some_and(|rest| rest.starts_with('/'))
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every text file, without what is built, fetched or Git's own.
fn files() -> Vec<File> {
    let mut found = Vec::new();
    collect(&root(), &mut found);
    assert!(found.iter().any(|file| file.path == "src/lib.rs"));
    found
}

fn collect(folder: &Path, found: &mut Vec<File>) {
    for entry in fs::read_dir(folder).expect("a folder of the repository can be read") {
        let path = entry
            .expect("a folder of the repository can be read")
            .path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if SKIPPED.contains(&name.as_ref()) || path.is_symlink() {
            continue;
        }
        if path.is_dir() {
            collect(&path, found);
        } else if let Ok(text) = fs::read_to_string(&path) {
            let relative = path.strip_prefix(root()).expect("it is below the root");
            let path = relative.to_string_lossy().into_owned();
            found.push(File { path, text });
        }
    }
}

/// Names of files and folders that are not the project's text.
const SKIPPED: [&str; 6] = [
    ".git",
    "target",
    "corpus",
    "artifacts",
    "coverage",
    "Cargo.lock",
];

/// Fails with one line per finding.
fn nothing_in(findings: &[String]) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

fn all(check: impl Fn(&File) -> Vec<String>) -> Vec<String> {
    files().iter().flat_map(check).collect()
}

#[test]
fn modules_import_only_what_their_layer_may_know() {
    nothing_in(&all(imports::check));
}

#[test]
fn every_module_is_in_the_table() {
    nothing_in(&imports::unknown_modules(&files()));
}

#[test]
fn unsafe_stays_in_ring_and_is_explained() {
    nothing_in(&all(text::unsafe_code));
}

#[test]
fn files_are_short() {
    nothing_in(&all(text::length));
}

#[test]
fn nothing_is_left_unfinished_or_silenced() {
    nothing_in(&all(text::leftovers));
}

#[test]
fn no_file_names_a_path_of_somebodys_machine() {
    nothing_in(&all(text::machine_paths));
}

#[test]
fn the_documents_are_there_and_their_links_lead_somewhere() {
    let mut findings = all(|file| links::check(file, &|path| root().join(path).exists()));
    findings.extend(links::missing(&|path| root().join(path).exists()));
    nothing_in(&findings);
}
