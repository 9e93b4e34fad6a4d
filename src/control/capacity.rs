//! How much fits: client connections into descriptors, buffers into memory. Pure sums, each term
//! with its reason, checked before anything is started.

use crate::ring::BUFFER_BYTES;

/// Both ends of a session.
const PER_SESSION: u64 = 2;
/// A worker's ring, its eventfd, and the sender's copy of that; and connections that the kernel has
/// accepted for it and that are still to be refused because a cap is reached.
const PER_WORKER: u64 = 3 + 128;
/// stdio, the control plane's ring and runtime, signal pipes, the log, files that a reload reads,
/// and a few to look at the process with.
const PROCESS: u64 = 64;

/// Client connections that fit into `descriptors`, where each of `workers` listens on `addresses`;
/// 0 when not even the process itself fits.
pub fn max_connections(descriptors: u64, workers: usize, addresses: usize) -> usize {
    let reserved = PROCESS + workers as u64 * (PER_WORKER + addresses as u64);
    usize::try_from(descriptors.saturating_sub(reserved) / PER_SESSION).unwrap_or(usize::MAX)
}

/// Bytes of receive buffers per worker when the configuration leaves it open: a sixteenth of the
/// memory for all workers together, within bounds. The upper bound is what one buffer ring of
/// 4,096 entries takes, of which only the busy part is ever touched.
pub(super) fn buffer_memory(total_memory: u64, workers: usize) -> u64 {
    const LEAST: u64 = 2 << 20;
    const MOST: u64 = 4096 * BUFFER_BYTES as u64;
    (total_memory / 16 / workers.max(1) as u64).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_what_the_process_and_its_workers_leave() {
        assert_eq!(max_connections(1024, 2, 1), (1024 - 64 - 264) / 2);
        assert_eq!(max_connections(10, 2, 1), 0);
    }

    #[test]
    fn memory_is_shared_among_workers_within_bounds() {
        assert_eq!(buffer_memory(1 << 30, 4), 16 << 20);
        assert_eq!(buffer_memory(1 << 40, 2), 64 << 20);
        assert_eq!(buffer_memory(1 << 20, 64), 2 << 20);
    }
}
