//! `ringress check`: is this file a valid configuration? Changes nothing and binds nothing; host names of
//! backends are resolved.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use crate::config::{self, Config, Diagnostics};

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// The configuration to check
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// How to print what was found
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// How a subcommand's outcome is printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub(super) enum Format {
    /// For people: what is wrong goes to stderr.
    #[default]
    Text,
    /// For editors and pipelines: one object on stdout, whatever the outcome.
    Json,
}

/// Prints what is wrong with `file`, or what it holds. Fails if there is anything wrong.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let Arguments {
        config: file,
        format,
    } = arguments;
    let outcome = config::load(file);
    let printed = match (&outcome, *format) {
        (Ok(config), Format::Text) => writeln!(io::stdout(), "{}", summary(file, config)),
        (Err(errors), Format::Text) => write!(io::stderr(), "{errors}"),
        (outcome, Format::Json) => writeln!(io::stdout(), "{}", object(file, outcome.as_ref())),
    };
    // A reader that went away is no reason to call the file valid.
    if outcome.is_ok() && printed.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn summary(file: &Path, config: &Config) -> String {
    let counted = |number: usize, what: &str| {
        let plural = if number == 1 { "" } else { "s" };
        format!("{number} {what}{plural}")
    };
    format!(
        "{}: ok, {}, {}, {}",
        file.display(),
        counted(config.listeners.len(), "listener"),
        counted(config.upstreams.len(), "upstream"),
        counted(backends(config), "backend"),
    )
}

fn object(file: &Path, outcome: Result<&Config, &Diagnostics>) -> serde_json::Value {
    let file = file.display().to_string();
    match outcome {
        Ok(config) => json!({
            "file": file,
            "valid": true,
            "listeners": config.listeners.len(),
            "upstreams": config.upstreams.len(),
            "backends": backends(config),
            "errors": [],
        }),
        Err(errors) => json!({ "file": file, "valid": false, "errors": errors.list() }),
    }
}

fn backends(config: &Config) -> usize {
    config
        .upstreams
        .iter()
        .map(|upstream| upstream.backends.len())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, Diagnostics> {
        config::parse(text, "a.toml", &mut config::SystemResolver)
    }

    const VALID: &str = "
        listeners.web = { bind = '127.0.0.1:80', upstream = 'app' }
        upstreams.app.backends = ['127.0.0.1:81', '127.0.0.1:82']";

    #[test]
    fn a_valid_file_is_summed_up() {
        let config = parse(VALID).unwrap();
        let file = Path::new("a.toml");
        assert_eq!(
            summary(file, &config),
            "a.toml: ok, 1 listener, 1 upstream, 2 backends"
        );
        let object = object(file, Ok(&config));
        assert_eq!(
            (&object["valid"], &object["backends"]),
            (&json!(true), &json!(2))
        );
    }

    #[test]
    fn an_invalid_file_is_an_object_with_places() {
        let errors = parse("listeners = 1").unwrap_err();
        let object = object(Path::new("a.toml"), Err(&errors));
        assert_eq!(object["valid"], json!(false));
        let error = &object["errors"][0];
        assert_eq!(
            (&error["line"], &error["column"], &error["length"]),
            (&json!(1), &json!(13), &json!(1))
        );
    }
}
