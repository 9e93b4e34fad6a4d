//! The runtime.

mod driver;
mod op;
pub mod sim;

pub use driver::{Capabilities, Driver, Shutdown, SocketOptions};
pub use op::{Completion, Fd, Lane, Op, Token};
