//! `log.access_log`: where a line per session goes.

use std::fmt;
use std::path::PathBuf;

use toml::de::DeValue;

use super::diagnostics::Fault;
use super::files::Files;
use super::section::{Findings, Section};
use super::value::{self, Read};

/// `log.access_log`
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub enum AccessLog {
    /// There is none.
    #[default]
    Off,
    /// On the standard output.
    Stdout,
    /// At the end of this file; absolute.
    File(PathBuf),
}

/// As it could stand in the file, with the whole path.
impl fmt::Display for AccessLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Stdout => f.write_str("stdout"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

/// Of the section `log`.
pub(super) fn read(section: &Section<'_>, files: &Files<'_>, findings: &mut Findings) -> AccessLog {
    section.read("access_log", AccessLog::default(), findings, |value| {
        sink(value, files)
    })
}

fn sink(value: &DeValue<'_>, files: &Files<'_>) -> Read<AccessLog> {
    match value::string(value).map_err(|_| value::wrong_type(value, ACCESS_LOG_FORM))? {
        "off" => Ok(AccessLog::Off),
        "stdout" => Ok(AccessLog::Stdout),
        // A file of such a name was hardly meant.
        text if !text.contains(['/', '.']) => Err(Fault::new(format!("unknown value {text:?}"))
            .expected(ACCESS_LOG_FORM)
            .suggest(text, ["off", "stdout"])),
        _ => {
            let path = files.path(value);
            path.map(AccessLog::File)
                .map_err(|it| it.expected(ACCESS_LOG_FORM))
        }
    }
}

const ACCESS_LOG_FORM: &str =
    "\"off\", \"stdout\" or the path of a file with a slash or a dot in it";
