//! The `ringress` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    ringress::cli::main()
}
