//! `log.access_log`: where a line per session goes.

use std::path::PathBuf;

use super::files::Files;
use super::section::{Findings, Section};
use super::value;

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

/// Of the section `log`.
pub(super) fn read(section: &Section<'_>, files: &Files<'_>, findings: &mut Findings) -> AccessLog {
    section.read(
        "access_log",
        AccessLog::Off,
        findings,
        |value| match value::string(value) {
            Ok("off") => Ok(AccessLog::Off),
            Ok("stdout") => Ok(AccessLog::Stdout),
            Ok("") | Err(_) => Err(value::wrong_type(value, ACCESS_LOG_FORM)),
            Ok(_) => files.path(value).map(AccessLog::File),
        },
    )
}

const ACCESS_LOG_FORM: &str = "\"off\", \"stdout\" or the path of a file";
