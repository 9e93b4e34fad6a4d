//! TLS: the one module that names rustls. Sans I/O: it is fed bytes and hands bytes out. Whoever holds a
//! socket moves them.
//!
//! | file | owns |
//! |---|---|
//! | `material` | certificates, keys and authorities as they are read from files |
//! | `pem` | what is in a file of PEM, or what is wrong with it |
//! | `settings` | what a listener or an upstream wants of TLS |
//! | `server`, `client` | settings made ready for handshakes |
//! | `session` | one connection's TLS: ciphertext in, plaintext out, and back |
//! | `tickets` | the keys by which sessions are resumed |
//! | `fault` | why it can't go on |

mod client;
mod fault;
pub mod material;
mod pem;
mod server;
mod session;

pub mod settings;
#[cfg(test)]
mod tests;
pub mod tickets;

use std::sync::{Arc, OnceLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};

pub use client::Client;
pub use fault::{Fault, Kind};
pub use material::{Authorities, LoadError, Pair};
pub use server::Server;
pub use session::{Handshake, Session};
pub use settings::{ClientAuth, ClientSettings, ServerSettings, Version};
pub use tickets::Tickets;

/// What does the arithmetic, made once.
fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let made = PROVIDER.get_or_init(|| Arc::new(aws_lc_rs::default_provider()));
    made.clone()
}
