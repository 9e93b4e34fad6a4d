//! What is counted and what is told: per-worker counters, reasons, and the events that the data
//! plane hands to the control plane.

pub mod calendar;
pub mod counters;
mod dropped;
pub mod events;
pub mod latency;
pub mod log;
mod names;
pub mod news;
mod opening;
mod reason;
pub mod recorder;
pub mod sessions;
pub mod tallies;

pub use dropped::Dropped;
pub use names::Names;
pub use opening::Opening;
pub use reason::Reason;
