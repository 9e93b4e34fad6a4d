//! `ringress-bench self-check`: does the load generator tell of a stall?

use std::time::Duration;

use super::print;
use crate::honesty::{self, Check};
use crate::{Error, local};

pub(super) fn run() -> Result<(), Error> {
    let check = Check {
        stall: Duration::from_secs(1),
        per_second: 5_000,
        connections: 50,
    };
    let report = honesty::check(&local::ring()?, check)?;
    print(&report.to_string())?;
    let findings = report.findings();
    if findings.is_empty() {
        return print("honest: every request that was due during the stall shows it\n");
    }
    Err(Error::Failed(format!(
        "not honest: {}",
        findings.join("; ")
    )))
}
