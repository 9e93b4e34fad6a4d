//! What goes wrong in the harness: always said, never measured around.

use std::fmt;
use std::io;

/// Why a measurement could not be made. `Display` is what the user reads.
#[derive(Debug)]
pub enum Error {
    /// The system refused something.
    System {
        /// What was being done.
        doing: String,
        /// Its answer.
        error: io::Error,
    },
    /// Something else than the system; the text says all.
    Failed(String),
}

impl Error {
    /// The system's answer while `doing`, for `map_err`.
    pub fn while_doing(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |error| Self::System { doing, error }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System { doing, error } => write!(f, "{doing}: {error}"),
            Self::Failed(what) => f.write_str(what),
        }
    }
}
