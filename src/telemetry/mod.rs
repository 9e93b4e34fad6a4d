//! What is counted and what is told: per-worker counters, reasons, and the events that the data
//! plane hands to the control plane.

pub mod counters;
mod dropped;
pub mod events;
pub mod log;
mod opening;
mod reason;

pub use dropped::Dropped;
pub use opening::Opening;
pub use reason::Reason;
