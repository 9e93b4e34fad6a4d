//! How much fits: client connections into descriptors, buffers into memory. Pure sums, each term
//! with its reason, checked before anything is started.

use crate::config::Config;
use crate::ring::BUFFER_BYTES;

/// Both ends of a session.
const PER_SESSION: u64 = 2;
/// A worker's ring, its eventfd, and the sender's copy of that.
const PER_WORKER: u64 = 3;
/// stdio, the control plane's ring and runtime, signal pipes, the log, files that a reload reads,
/// and a few to look at the process with.
const PROCESS: u64 = 64;

/// Client connections that fit into `descriptors`.
pub(super) fn most_connections(descriptors: u64, workers: usize, config: &Config) -> usize {
    let workers = workers as u64;
    let listening: u64 = config
        .listeners
        .iter()
        .map(|listener| listener.bind.len() as u64 * workers)
        .sum();
    let left = descriptors.saturating_sub(PROCESS + PER_WORKER * workers + listening);
    usize::try_from(left / PER_SESSION).unwrap_or(usize::MAX)
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
    fn memory_is_shared_among_workers_within_bounds() {
        assert_eq!(buffer_memory(1 << 30, 4), 16 << 20);
        assert_eq!(buffer_memory(1 << 40, 2), 64 << 20);
        assert_eq!(buffer_memory(1 << 20, 64), 2 << 20);
    }
}
