//! How much fits: client connections into descriptors, buffers into memory. Pure sums, each term
//! with its reason, checked before anything is started.

use crate::ring::{BUFFER_BYTES, MOST_BUFFERS, MOST_PIPES};

/// Both ends of a session.
const PER_SESSION: u64 = 2;
/// A worker's ring, its eventfd, and the sender's copy of that; and connections that the kernel has
/// accepted for it and that are still to be refused because a cap is reached; and its pipes.
const PER_WORKER: u64 = 3 + 128 + 2 * MOST_PIPES as u64;
/// A worker's listening socket, the control thread's duplicate of it, and one for a new process while it
/// takes over.
const PER_ADDRESS: u64 = 3;
/// stdio, the control plane's ring and runtime, signal pipes, the log, files that a reload reads,
/// the control socket's connections, and a few to look at the process with.
const PROCESS: u64 = 96;

/// Client connections that fit into `descriptors`, where each of `workers` listens on `addresses` and
/// `ahead` connections are for probes or held ahead of sessions; 0 when not even the process itself
/// fits.
pub fn max_connections(descriptors: u64, workers: usize, addresses: usize, ahead: usize) -> usize {
    let reserved =
        PROCESS + workers as u64 * (PER_WORKER + PER_ADDRESS * addresses as u64) + ahead as u64;
    usize::try_from(descriptors.saturating_sub(reserved) / PER_SESSION).unwrap_or(usize::MAX)
}

/// Bytes of receive buffers per worker when the configuration leaves it open: a buffer for each
/// direction of twice the worker's share of the connections (the kernel spreads them by chance), so
/// that readers that stall can't use all of them up; but for all workers together no more than a
/// sixteenth of the memory. Only what is in use at once is ever touched.
pub(super) fn buffer_memory(total_memory: u64, max_connections: usize, workers: usize) -> u64 {
    const LEAST: u64 = 2 << 20;
    const DIRECTIONS: u64 = 2;
    const IMBALANCE: u64 = 2;
    let workers = workers.max(1) as u64;
    let sessions = (max_connections as u64).div_ceil(workers) * IMBALANCE;
    let wanted = sessions.saturating_mul(DIRECTIONS * u64::from(BUFFER_BYTES));
    let affordable = total_memory / 16 / workers;
    wanted
        .min(affordable)
        .clamp(LEAST, MOST_BUFFERS as u64 * u64::from(BUFFER_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_what_the_process_and_its_workers_leave() {
        assert_eq!(max_connections(1024, 2, 1, 20), (1024 - 96 - 524 - 20) / 2);
        assert_eq!(max_connections(10, 2, 1, 0), 0);
    }

    #[test]
    fn memory_is_a_buffer_per_direction_within_bounds() {
        assert_eq!(buffer_memory(1 << 40, 1000, 2), 500 * 2 * 2 * (16 << 10));
        assert_eq!(buffer_memory(1 << 30, 1_000_000, 4), 16 << 20);
        assert_eq!(buffer_memory(1 << 40, 1_000_000, 4), 512 << 20);
        assert_eq!(buffer_memory(1 << 20, 1000, 64), 2 << 20);
    }
}
