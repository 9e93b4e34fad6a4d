//! `ringress plan`: what would another configuration change, and how? Changes nothing itself.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::check::Format;
use super::{Error, load_file, print};
use crate::config::diff::{self, Change};

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// The configuration that would be loaded
    #[arg(value_name = "NEW")]
    new: PathBuf,
    /// The configuration that it would take the place of
    #[arg(long, value_name = "OLD")]
    from: Option<PathBuf>,
    /// How to print the changes
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Prints what is different in the new file. Fails if one of the files is wrong.
pub(super) fn run(arguments: &Arguments) -> Result<(), Error> {
    let Arguments { new, from, format } = arguments;
    let old = from.as_ref().ok_or(Error::NothingToCompareWith)?;
    let changes = diff::between(&load_file(old)?, &load_file(new)?);
    print(&match format {
        Format::Text => lines(&changes),
        Format::Json => format!("{}\n", object(old, new, &changes)),
    })
}

fn lines(changes: &[Change]) -> String {
    match changes {
        [] => "nothing changes\n".to_owned(),
        changes => changes.iter().map(|it| format!("{it}\n")).collect(),
    }
}

fn object(from: &Path, to: &Path, changes: &[Change]) -> serde_json::Value {
    json!({
        "from": from.display().to_string(),
        "to": to.display().to_string(),
        "changes": changes,
    })
}
