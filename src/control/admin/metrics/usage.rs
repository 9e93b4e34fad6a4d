//! What the process takes of the machine, as the kernel says.

use std::fs;
use std::time::Duration;

use rustix::param::page_size;
use rustix::time::{ClockId, clock_gettime};

/// As of one moment. What /proc does not say is `None`.
pub(super) struct Usage {
    /// Time on a CPU since the process started.
    pub(super) cpu: Duration,
    /// Bytes in RAM, and bytes that are mapped.
    pub(super) memory: Option<(u64, u64)>,
    /// Open ones.
    pub(super) descriptors: Option<u64>,
}

impl Usage {
    #[expect(
        clippy::disallowed_methods,
        reason = "it is what the process has used, and no time that anything goes by"
    )]
    pub(super) fn now() -> Self {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let statm = fs::read_to_string("/proc/self/statm").ok();
        Self {
            cpu: Duration::new(cpu.tv_sec.unsigned_abs(), cpu.tv_nsec as u32),
            memory: statm.and_then(|pages| memory(&pages)),
            // The one that looks is open, too.
            descriptors: fs::read_dir("/proc/self/fd")
                .ok()
                .map(|found| found.count().saturating_sub(1) as u64),
        }
    }
}

/// From /proc/PID/statm: pages that are mapped, pages in RAM, and more.
fn memory(pages: &str) -> Option<(u64, u64)> {
    let mut numbers = pages.split(' ').map(str::parse::<u64>);
    let (mapped, resident) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    let bytes = |pages: u64| pages.saturating_mul(page_size() as u64);
    Some((bytes(resident), bytes(mapped)))
}
