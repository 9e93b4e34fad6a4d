//! Listeners and sessions: from an accepted connection to its end.
//!
//! A connection's life: accept → admission → \[PROXY header\] → \[TLS\] → route → pick → connect → relay both
//! ways with half-close → close with one [`Reason`](crate::telemetry::Reason).

mod admission;
mod bulk;
mod image;
mod listener;
mod opening;
mod pacing;
mod record;
mod relay;
mod remains;
mod snapshot;
mod state;
mod tcp;
mod tls;
mod udp;
mod worker;

pub use image::{Image, Totals};
pub use remains::Remains;
pub use snapshot::{ListenerPolicy, Shared, Snapshot};
pub use state::ListenerState;
pub use udp::{Adopted, Left, SessionImage};
#[cfg(debug_assertions)]
pub use worker::Spot;
pub use worker::{BindingId, Closed, ListenerSocket, Message, Worker};
