//! Listeners and sessions: from an accepted connection to its end.
//!
//! A connection's life: accept → admission → pick → connect → relay both ways with half-close →
//! close with one [`Reason`](crate::telemetry::Reason).

mod admission;
mod bulk;
mod listener;
mod pacing;
mod relay;
mod snapshot;
mod tcp;
mod worker;

pub use snapshot::{ListenerPolicy, ListenerState, Shared, Snapshot};
pub use worker::{ListenerSocket, Message, Worker};
