//! The bench harness of ringress: a load generator, the backends it measures against, and a
//! comparison with other proxies. Everything runs on [`ringress::ring`], like ringress itself.
//!
//! | file | owns |
//! |---|---|
//! | `schedule`, `pattern` | arithmetic: due times, counted bytes |
//! | `local` | a ring of this thread, and running one future on it |
//! | `load/` | the load generator: what is asked for, in which rhythm, how it is counted |
//! | `backend` | the backends: echo, download, one that stalls |
//! | `honesty` | the self-check: is a stall seen? |
//! | `procstat` | what /proc tells about processes |
//! | `cli/` | arguments → subcommand |

pub mod backend;
pub mod cli;
mod error;
pub mod honesty;
pub mod load;
pub mod local;
mod pattern;
pub mod procstat;
mod schedule;

pub use error::Error;
