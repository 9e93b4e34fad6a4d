//! `ringress run -c FILE`

use std::path::PathBuf;

use super::{Error, load_file, serve};

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// The configuration; read again on SIGHUP
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Error> {
    let config = load_file(&arguments.config)?;
    serve(config, Some(arguments.config.clone()))
}
