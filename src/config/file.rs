//! Text → model. The file may hold anything; every finding is collected, so that one run shows them all.

use std::io;
use std::path::Path;

use toml::de::DeTable;

use super::diagnostics::{Diagnostics, Fault};
use super::files::Files;
use super::resolve::{Resolver, SystemResolver};
use super::section::{Findings, Section};
use super::{
    AccessLog, Config, Log, LogFormat, LogLevel, access_log, admin, keys, listeners, runtime,
    secret, syntax, upstreams, value,
};
use crate::settled;

/// Reads and checks a file; host names are resolved and certificates read by the system. Blocks.
pub fn load(path: &Path) -> Result<Config, Diagnostics> {
    load_with(path, &mut SystemResolver)
}

/// The same with another resolver. Blocks.
pub fn load_with(path: &Path, resolver: &mut dyn Resolver) -> Result<Config, Diagnostics> {
    let name = path.display().to_string();
    match read_text(path) {
        Ok(text) => parse_at(path, &text, name, resolver),
        Err(fault) => Err(Diagnostics::unreadable(name, fault)),
    }
}

/// Checks a file's text. `file_name` is for the diagnostics, and for the folder where relative paths begin:
/// nothing is read there.
pub fn parse(
    text: &str,
    file_name: &str,
    resolver: &mut dyn Resolver,
) -> Result<Config, Diagnostics> {
    parse_at(Path::new(file_name), text, file_name.to_owned(), resolver)
}

fn parse_at(
    path: &Path,
    text: &str,
    name: String,
    resolver: &mut dyn Resolver,
) -> Result<Config, Diagnostics> {
    let (readable, mut findings) = syntax::check(text);
    let syntax_errors = findings.count();
    let (table, _) = DeTable::parse_recoverable(&readable);
    let mut files = Files::beside(path, resolver);
    let config = config(table.get_ref(), &mut files, &mut findings);
    if findings.count() == 0 {
        return Ok(config);
    }
    Err(Diagnostics::locate(
        name,
        secret::without_token(text, table.get_ref()),
        syntax::without_echoes(text, findings, syntax_errors),
    ))
}

fn config<'a>(table: &'a DeTable<'a>, files: &mut Files<'_>, findings: &mut Findings) -> Config {
    let root = Section::root(table, keys::ROOT, findings);
    let upstreams = upstreams::read(&root, files, findings);
    let listeners = listeners::read(&root, &upstreams, files, findings);
    let runtime = runtime::read(&root, &listeners, findings);
    let (log, access_log) = log(&root, files, findings);
    Config {
        log,
        access_log,
        admin: admin::read(&root, (&listeners, &runtime), findings),
        runtime,
        listeners,
        upstreams,
    }
}

fn log(root: &Section<'_>, files: &Files<'_>, findings: &mut Findings) -> (Log, AccessLog) {
    let default = Log::default();
    let section = root.child("log", keys::LOG, findings);
    let log = Log {
        level: section.read("level", default.level, findings, |value| {
            value::word(value, &keys::LEVEL, &LogLevel::ALL)
        }),
        format: section.read("format", default.format, findings, |value| {
            value::word(value, &keys::FORMAT, &[LogFormat::Text, LogFormat::Json])
        }),
    };
    (log, access_log::read(&section, files, findings))
}

fn read_text(path: &Path) -> Result<String, Fault> {
    let bytes = settled::read(path, LONGEST_FILE).map_err(|error| match error {
        settled::Error::Io(error) => unreadable(&error),
        settled::Error::TooLong => {
            Fault::new("the file is too long").expected("a TOML file of at most 4 MiB")
        }
        settled::Error::Special => Fault::new("this is no regular file").expected("a TOML file"),
        settled::Error::KeepsChanging => Fault::new("the file keeps changing")
            .expected("a file that nobody is writing")
            .hint("write a new file and rename it over this one"),
    })?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..at].split(|byte| *byte == b'\n').count();
        Fault::new(format!("the file is not UTF-8: byte {at}, in line {line}"))
            .expected("a TOML file in UTF-8")
            .hint("convert it, for instance with iconv -t UTF-8")
    })
}

/// A configuration is a few pages; /dev/zero is not one.
const LONGEST_FILE: u64 = 4 << 20;

fn unreadable(error: &io::Error) -> Fault {
    let expected = "a TOML file that can be read";
    match error.kind() {
        io::ErrorKind::NotFound => Fault::new("there is no such file")
            .expected(expected)
            .hint("give the path of a configuration with -c FILE"),
        io::ErrorKind::PermissionDenied => Fault::new("no permission to read the file")
            .expected(expected)
            .hint("check its owner and mode, and those of its directories, with ls -l"),
        io::ErrorKind::IsADirectory => Fault::new("this is a directory")
            .expected(expected)
            .hint("give the path of a file in it"),
        _ => Fault::new(format!("the file can't be read: {error}")).expected(expected),
    }
}
