//! The `ringress-bench` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    ringress_bench::cli::main()
}
