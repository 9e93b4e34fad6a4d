//! What all workers know of a backend's work.

use super::latency::Latency;
use super::per_weight::PerWeight;
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

impl Load {
    /// How full it is for its weight, which is above 0.
    pub(super) fn sessions_per(&self, weight: u16) -> PerWeight {
        PerWeight::new(self.active.now() as u64, weight)
    }
}

/// The identity of a backend of this address: the same in every process and version.
pub fn identity(address: &str) -> u64 {
    // FNV-1a, 64 bits.
    address.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
