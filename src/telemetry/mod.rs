//! What is counted and what is told: per-worker counters, reasons, and the events that the data
//! plane hands to the control plane.

pub mod counters;
pub mod events;
pub mod log;
mod reason;

pub use reason::Reason;
