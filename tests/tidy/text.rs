//! Checks of single files: `unsafe`, lengths, leftovers, paths of a machine.

use super::File;

/// Longest file of src/, tests/ and bench/.
const LINES_MAX: usize = 600;

const HELD_TO_LENGTH: [&str; 3] = ["src", "tests", "bench"];

pub(super) fn length(file: &File) -> Vec<String> {
    let lines = file.text.lines().count();
    let counts = file.is_rust() && HELD_TO_LENGTH.iter().any(|folder| file.is_under(folder));
    if counts && lines > LINES_MAX {
        vec![format!(
            "{}: {lines} lines, {LINES_MAX} are the most",
            file.path
        )]
    } else {
        Vec::new()
    }
}

pub(super) fn unsafe_code(file: &File) -> Vec<String> {
    if !file.is_rust() {
        return Vec::new();
    }
    let code = without_comments_and_strings(&file.text);
    let lines: Vec<&str> = file.text.lines().collect();
    let mut findings = Vec::new();
    for (index, line) in code
        .lines()
        .enumerate()
        .filter(|(_, line)| has_word(line, "unsafe"))
    {
        let place = format!("{}:{}", file.path, index + 1);
        if !file.is_under("src/ring") {
            findings.push(format!("{place}: unsafe outside src/ring/"));
        } else if opens_block(line) && !is_explained(&lines, index) {
            findings.push(format!(
                "{place}: an unsafe block without a SAFETY comment above it"
            ));
        }
    }
    findings
}

/// `unsafe {` and `unsafe impl`, which claim something; `unsafe fn` and `unsafe trait` ask for it.
fn opens_block(line: &str) -> bool {
    line.match_indices("unsafe").any(|(at, word)| {
        let rest = line[at + word.len()..].trim_start();
        rest.is_empty() || rest.starts_with('{') || rest.starts_with("impl")
    })
}

/// Directly above the statement, within the few lines that a statement may take before the block.
fn is_explained(lines: &[&str], index: usize) -> bool {
    let mut above = lines[..index].iter().rev().map(|line| line.trim());
    for line in above.by_ref().take(STATEMENT_LINES_MAX) {
        if line.starts_with("//") {
            let comment = std::iter::once(line).chain(above.take_while(|l| l.starts_with("//")));
            return comment
                .into_iter()
                .any(|line| line.starts_with("// SAFETY:"));
        }
        if line.ends_with(';') || line.ends_with('}') || line.is_empty() {
            return false;
        }
    }
    false
}

const STATEMENT_LINES_MAX: usize = 6;

pub(super) fn leftovers(file: &File) -> Vec<String> {
    if !file.is_rust() {
        return Vec::new();
    }
    let code = without_comments_and_strings(&file.text);
    let lines = code.lines().enumerate();
    let mut findings: Vec<String> = lines
        .filter_map(|(index, line)| {
            let what = LEFTOVERS
                .iter()
                .find(|what| line.replace(' ', "").contains(**what))?;
            Some(format!("{}:{}: {what}", file.path, index + 1))
        })
        .collect();
    for (at, start) in code.match_indices("#![allow") {
        let end = code[at..].find(']').map_or(code.len(), |end| at + end);
        if !code[at..end].contains("reason") {
            let line = code[..at].lines().count() + 1;
            findings.push(format!(
                "{}:{line}: {start}(…)] without a reason",
                file.path
            ));
        }
    }
    findings
}

const LEFTOVERS: [&str; 5] = ["#[ignore", "todo!", "unimplemented!", "dbg!(", "#![feature"];

pub(super) fn machine_paths(file: &File) -> Vec<String> {
    let lines = file.text.lines().enumerate();
    lines
        .filter_map(|(index, line)| {
            let path = machine_roots()
                .into_iter()
                .find(|root| starts_a_path(line, root))?;
            Some(format!("{}:{}: a path below {path}", file.path, index + 1))
        })
        .collect()
}

/// Put together here, so that this file doesn't contain them.
fn machine_roots() -> [String; 4] {
    ["work", "farm", "home", "Users"].map(|name| format!("/{name}/"))
}

/// `/x/` at the start of a path, not within one such as `a/x/b`.
fn starts_a_path(line: &str, root: &str) -> bool {
    line.match_indices(root)
        .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "_-.}/".contains(c)))
}

fn has_word(line: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].ends_with(is_part) && !line[at + word.len()..].starts_with(is_part)
    })
}

/// The code with comments and the contents of literals blanked; lines keep their numbers.
pub(super) fn without_comments_and_strings(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = skipped_length(rest, out.chars().next_back());
        if length == 0 {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            out.push(' ');
            out.extend(rest[..length].chars().filter(|c| *c == '\n'));
            rest = &rest[length..];
        }
    }
    out
}

/// Bytes of the comment or literal that `rest` starts with; 0 when it is code.
fn skipped_length(rest: &str, before: Option<char>) -> usize {
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    if rest.starts_with("/*") {
        return rest.find("*/").map_or(rest.len(), |end| end + 2);
    }
    if !in_word && let Some(length) = raw_string_length(rest) {
        return length;
    }
    match rest.chars().next() {
        Some('"') => quoted_length(rest, '"').unwrap_or(rest.len()),
        Some('\'') => character_length(rest),
        _ => 0,
    }
}

fn raw_string_length(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let body = after.trim_start_matches('#');
    let hashes = after.len() - body.len();
    let end = format!("\"{}", "#".repeat(hashes));
    let start = rest.len() - body.strip_prefix('"')?.len();
    Some(
        rest[start..]
            .find(&end)
            .map_or(rest.len(), |at| start + at + end.len()),
    )
}

fn quoted_length(rest: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// `'a'` and `'\n'`, but not the lifetime `'a`.
fn character_length(rest: &str) -> usize {
    let mut inside = rest.chars().skip(1);
    let is_literal = match inside.next() {
        Some('\\') => true,
        Some(_) => inside.next() == Some('\''),
        None => false,
    };
    if is_literal {
        quoted_length(rest, '\'').unwrap_or(0)
    } else {
        0
    }
}

#[test]
fn a_long_file_is_found() {
    let text = "x\n".repeat(LINES_MAX + 1);
    assert_eq!(length(&File::planted("src/a.rs", &text)).len(), 1);
    assert_eq!(length(&File::planted("tests/a/b.rs", &text)).len(), 1);
    assert_eq!(length(&File::planted("bench/src/a.rs", &text)).len(), 1);
    assert_eq!(length(&File::planted("src/a.rs", &text[2..])).len(), 0);
}

#[test]
fn unsafe_in_the_wrong_place_or_without_a_word_is_found() {
    let word = concat!("un", "safe");
    let block = format!("fn f() {{\n    let a = {word} {{ g() }};\n}}\n");
    let unexplained = check_in_ring(&block);
    assert_eq!(unexplained.len(), 1);
    assert!(
        unexplained[0].starts_with("src/ring/a.rs:2: "),
        "{unexplained:?}"
    );
    assert_eq!(
        unsafe_code(&File::planted("src/proxy/a.rs", &block)).len(),
        1
    );
    assert_eq!(unsafe_code(&File::planted("tests/a.rs", &block)).len(), 1);
    let in_bench = File::planted("bench/src/a.rs", &block);
    assert_eq!(unsafe_code(&in_bench).len(), 1);
    let far = format!("// SAFETY: yes.\nlet a = 1;\n{word} {{ g() }}\n");
    assert_eq!(check_in_ring(&far).len(), 1);
    let other = format!("// A note.\n{word} {{ g() }}\n");
    assert_eq!(check_in_ring(&other).len(), 1);
    let claim = format!("{word} impl Send for A {{}}\n");
    assert_eq!(check_in_ring(&claim).len(), 1);
}

#[test]
fn explained_blocks_and_mere_mentions_pass() {
    let word = concat!("un", "safe");
    for code in [
        format!("// SAFETY: a reason\n// of two lines.\n{word} {{ g() }}\n"),
        format!("// SAFETY: a reason.\nlet a =\n    b.c(|| {word} {{ g() }});\n"),
        format!("{word} fn f();\n"),
        format!("{word}_code = 1; // {word} {{ }}\nlet a = \"{word} {{\";\n"),
    ] {
        assert_eq!(check_in_ring(&code), Vec::<String>::new(), "{code}");
    }
}

#[cfg(test)]
fn check_in_ring(code: &str) -> Vec<String> {
    unsafe_code(&File::planted("src/ring/a.rs", code))
}

#[test]
fn leftovers_are_found() {
    for code in [
        "#[ignore]\nfn f() {}",
        "#[ignore = \"flaky\"]",
        "todo!()",
        "unimplemented!(\"later\")",
        "dbg!(x)",
        "#![allow(dead_code)]",
        "#![allow(\n    dead_code\n)]",
    ] {
        assert_eq!(
            leftovers(&File::planted("src/a.rs", code)).len(),
            1,
            "{code}"
        );
    }
    for code in [
        "#![allow(dead_code, reason = \"each test uses a part\")]",
        "// todo!() is not left",
        "let a = \"dbg!(\";",
        "let ignore = 1;",
    ] {
        assert_eq!(
            leftovers(&File::planted("src/a.rs", code)),
            Vec::<String>::new(),
            "{code}"
        );
    }
}

#[test]
fn a_path_of_a_machine_is_found() {
    for root in machine_roots() {
        for text in [
            format!("cd {root}x"),
            format!("\"{root}x\""),
            format!("({root}y)"),
        ] {
            let findings = machine_paths(&File::planted("docs/a.md", &text));
            assert_eq!(findings.len(), 1, "{text}");
        }
        let inside = format!("https://example.com{root}x and src{root}y");
        assert_eq!(machine_paths(&File::planted("docs/a.md", &inside)).len(), 0);
    }
}

#[test]
fn comments_and_literals_are_blanked_and_lines_are_kept() {
    let text = "a /* b\n */ c // d\n'\"' e \"f \\\" g\" r#\"h \" i\"# j<'k> b'l' \"m\nn\" o";
    let code = without_comments_and_strings(text);
    let words: Vec<_> = code.split_whitespace().collect();
    assert_eq!(words, ["a", "c", "e", "j<'k>", "b", "o"]);
    assert_eq!(code.lines().count(), text.lines().count());
}
