//! How much fits: client connections into descriptors, buffers into memory. Pure sums, each term
//! with its reason, checked before anything is started.

use crate::ring::{BUFFER_BYTES, MOST_BUFFERS, MOST_PIPES};

/// Both ends of a session over TCP.
const PER_CONNECTION: u64 = 2;
/// The backend's end of a session of datagrams: all clients of a worker share its listening socket.
const PER_DATAGRAM_SESSION: u64 = 1;
/// A worker's ring, its eventfd, and the sender's copy of that; and connections that the kernel has
/// accepted for it and that are still to be refused because a cap is reached; and its pipes.
const PER_WORKER: u64 = 3 + 128 + 2 * MOST_PIPES as u64;
/// A worker's listening socket, the control thread's duplicate of it, and one for a new process while it
/// takes over.
const PER_ADDRESS: u64 = 3;
/// stdio, the control plane's ring and runtime, signal pipes, the log, files that a reload reads,
/// the control socket's connections, and a few to look at the process with.
const PROCESS: u64 = 96;
/// Connections of the admin endpoint; its socket and a duplicate to accept from, the same of the next one while
/// it changes its address, and one for a new process.
const ADMIN: u64 = ADMIN_CONNECTIONS as u64 + 5;

/// Connections of the admin endpoint at once; others wait in its queue.
pub(super) const ADMIN_CONNECTIONS: u32 = 256;

/// What a process takes descriptors for, beside its sessions.
#[derive(Clone, Copy, Debug)]
pub struct Demand {
    /// Workers.
    pub workers: usize,
    /// Addresses that each of them listens on.
    pub addresses: usize,
    /// Connections for probes, or held ahead of sessions.
    pub ahead: usize,
    /// All listeners take datagrams.
    pub datagrams_only: bool,
    /// There is an admin endpoint.
    pub admin: bool,
}

/// Sessions that fit into `descriptors`; 0 when not even the process itself fits.
pub fn max_connections(descriptors: u64, demand: Demand) -> usize {
    let per_worker = PER_WORKER + PER_ADDRESS * demand.addresses as u64;
    let admin = if demand.admin { ADMIN } else { 0 };
    let reserved = PROCESS + admin + demand.workers as u64 * per_worker + demand.ahead as u64;
    let per_session = match demand.datagrams_only {
        true => PER_DATAGRAM_SESSION,
        false => PER_CONNECTION,
    };
    usize::try_from(descriptors.saturating_sub(reserved) / per_session).unwrap_or(usize::MAX)
}

/// Sessions of datagrams at once: no more than `connections` of the process, and each needs a local port
/// of its own, of which every one of so many source addresses has `ports`.
pub(super) fn max_sessions(connections: usize, ports: usize, sources: usize) -> usize {
    connections.min(ports.saturating_mul(sources.max(1))).max(1)
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
        let demand = Demand {
            workers: 2,
            addresses: 1,
            ahead: 20,
            datagrams_only: false,
            admin: false,
        };
        let left = 1024 - 96 - 524 - 20;
        assert_eq!(max_connections(1024, demand), left / 2);
        assert_eq!(max_connections(10, demand), 0);
        let datagrams_only = true;
        let demand = Demand {
            datagrams_only,
            ..demand
        };
        assert_eq!(max_connections(1024, demand), left);
        let admin = true;
        let with_admin = Demand { admin, ..demand };
        assert_eq!(max_connections(1024, with_admin), left - 261);
    }

    #[test]
    fn sessions_are_bound_by_descriptors_and_by_ports_per_source() {
        assert_eq!(max_sessions(19_000, 28_232, 0), 19_000);
        assert_eq!(max_sessions(90_000, 28_232, 0), 28_232);
        assert_eq!(max_sessions(90_000, 28_232, 2), 56_464);
    }

    #[test]
    fn memory_is_a_buffer_per_direction_within_bounds() {
        assert_eq!(buffer_memory(1 << 40, 1000, 2), 500 * 2 * 2 * (16 << 10));
        assert_eq!(buffer_memory(1 << 30, 1_000_000, 4), 16 << 20);
        assert_eq!(buffer_memory(1 << 40, 1_000_000, 4), 512 << 20);
        assert_eq!(buffer_memory(1 << 20, 1000, 64), 2 << 20);
    }
}
