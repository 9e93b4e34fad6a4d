//! Active health checks.
//!
//! | file | owns |
//! |---|---|
//! | `probe`, `http` | one attempt |
//! | `failure` | why it failed |

mod failure;
mod http;
mod probe;
#[cfg(test)]
mod tests;
