//! The control socket: how `ringress reload`, `status` and the like talk to a running process. It
//! carries requests and answers; what a request does is decided by whoever takes them.
//!
//! | file | owns |
//! |---|---|
//! | `protocol` | requests and replies, line by line |
//! | `status` | what a process tells about itself |
//! | `pulse` | what it tells of the last second |
//! | `explained` | what would become of a client, as it is told |
//! | `moments` | what its flight recorders hold |
//! | `path` | where the socket is |
//! | `listen` | the socket's file |
//! | `server` | the process's side |
//! | `client` | the command's side |

pub mod client;
pub mod explained;
mod listen;
pub mod moments;
pub mod path;
pub mod protocol;
pub mod pulse;
pub mod server;
pub mod status;

pub(super) use self::explained::*;
pub(super) use self::listen::{Access, SocketFile, listen_for, make_folder};
pub(super) use self::protocol::*;
pub(super) use self::pulse::*;
pub(super) use self::server::{Request, Server};
pub(super) use self::status::*;
