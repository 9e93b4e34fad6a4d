//! The control plane: loads the configuration and runs the workers under it.

use std::fmt;
use std::path::PathBuf;

use crate::config::Config;

/// Reads configuration text; `file` names it in what is reported.
///
/// # Errors
/// The text is not a configuration.
pub fn load(_text: &str, _file: &str) -> Result<Config, Error> {
    Err(Error::Unavailable)
}

/// Runs until it is told to end. `source` is the file to read again on SIGHUP.
///
/// # Errors
/// It can't start.
pub fn run(_config: Config, _source: Option<PathBuf>) -> Result<(), Error> {
    Err(Error::Unavailable)
}

/// Why the program can't run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Error {
    /// This build has no data plane.
    Unavailable,
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable => f.write_str("this build has no data plane"),
        }
    }
}
