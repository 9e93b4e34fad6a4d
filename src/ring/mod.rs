//! The runtime of a worker: one io_uring, slots that own what the kernel may touch, receive
//! buffers, timers, and a small local executor. The only module with `unsafe`, and the only one
//! that talks to the kernel about sockets.
//!
//! | file | owns |
//! |---|---|
//! | `driver` | the seam: what a kernel must be able to do |
//! | `uring`, `setup`, `entry`, `net` | the real kernel |
//! | `listen` | listening sockets: made, changed, handed over, ended |
//! | `sim` | a simulated kernel with its own clock and a seed |
//! | `op` | what is asked and answered |
//! | `slots`, `buffers`, `timers`, `executor` | one table each |
//! | `core`, `send` | what a completion does to those tables |
//! | `meter` | what a ring tells about itself |
//! | `dismantle` | the end of a ring whose worker has panicked |
//! | `staging` | memory for bytes that are made here |
//! | `splice` | bulk transfer without copying |
//! | `udp`, `datagrams` | datagram sockets, and the calls for them |
//! | `runtime`, `socket` | what tasks hold: [`Ring`], [`Socket`], [`Listener`], [`Event`], [`Timer`]; in `udp`: [`DatagramSocket`] |
//!
//! The contract: memory that the kernel may touch belongs to a slot until the last completion of
//! its op; a dropped handle cancels, waits and closes without its owner; no task runs while
//! completions are booked; a turn is bounded.

mod buffers;
mod core;
mod datagrams;
mod dismantle;
mod driver;
mod entry;
mod executor;
pub mod limits;
pub mod listen;
mod mailbox;
mod mapping;
mod meter;
pub mod net;
mod op;
pub mod probe;
mod runtime;
mod send;
mod setup;
pub mod sim;
mod slots;
mod socket;
mod splice;
mod staging;
mod timers;
mod udp;
mod uring;

pub use buffers::{BUFFER_BYTES, MOST_BUFFERS, MOST_DATAGRAM_BUFFERS};
pub use driver::{Capabilities, Datagram, Driver, PipeEnds, Shutdown, SocketOptions};
pub use mailbox::{Mailbox, Receiver};
pub use meter::{Meter, Reading};
pub use op::{Completion, Fd, Group, Lane, Op, Token};
pub use runtime::{Ring, Timer, Usage, Waker};
pub use setup::{Setup, Without};
pub use socket::{Event, Flow, Listener, Relayed, Socket};
pub use splice::{MOST_PIPES, Pipe};
pub use udp::{Arrival, DatagramSocket};
pub use uring::{Uring, now};
