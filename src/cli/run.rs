//! `ringress run -c FILE`

use std::path::PathBuf;

use super::{Error, load_file, serve};
use crate::control;

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// The configuration; read again on SIGHUP
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Error> {
    let config = load_file(&arguments.config)
        .inspect_err(|error| control::refuse_upgrade(&error.to_string()))?;
    serve(config, Some(arguments.config.clone()))
}
