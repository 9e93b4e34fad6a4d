//! What all workers know of a backend's work.

use super::latency::Latency;
use crate::policy::admission::Occupancy;

/// Shared by all workers, and kept over reloads.
#[derive(Debug, Default)]
pub struct Load {
    /// Sessions that use the backend.
    pub active: Occupancy,
    /// How long it takes to connect and answer; measured only where [`super::Algorithm::needs_latency`]
    /// asks for it. A failed try counts with the time that it might have taken: a dead backend
    /// that was never measured would be every session's first choice.
    pub latency: Latency,
}

/// The identity of a backend of this address: the same in every process and version.
pub fn identity(address: &str) -> u64 {
    // FNV-1a, 64 bits.
    address.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
