//! The bench harness of ringress: a load generator, the backends it measures against, and a
//! comparison with other proxies. Everything runs on [`ringress::ring`], like ringress itself.
//!
//! | file | owns |
//! |---|---|
//! | `schedule`, `pattern`, `statistics` | arithmetic: due times, counted bytes, ratios and verdicts |
//! | `local` | a ring of this thread, and running one future on it |
//! | `load/` | the load generator: what is asked for, in which rhythm, over TCP or TLS, how it is counted |
//! | `backend` | the backends: echo, download, one that stalls |
//! | `udp/` | the same with datagrams: generator, counts, backends |
//! | `honesty` | the self-check: is a stall seen? |
//! | `procstat`, `machine` | what /proc tells about processes and the machine |
//! | `peers/` | the proxies: found, configured, started, ended |
//! | `scenario`, `compare`, `report` | what `make bench` measures, how, and what it prints |
//! | `reload/` | what reloads and upgrades cost and lose |
//! | `cli/` | arguments → subcommand |

pub mod backend;
pub mod cli;
mod compare;
mod error;
pub mod honesty;
pub mod load;
pub mod local;
mod machine;
mod pattern;
mod peers;
pub mod procstat;
mod reload;
mod report;
mod scenario;
mod schedule;
mod statistics;
pub mod udp;

pub use error::Error;
