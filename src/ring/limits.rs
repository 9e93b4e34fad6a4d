//! What this process may use: descriptors, CPUs, memory. The only place that asks the kernel, /proc
//! and the cgroup files about it. A file that is missing or unreadable means "no limit from there".

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::system::sysinfo;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Raises the soft limit of open descriptors to the hard one and returns it.
///
/// # Errors
/// As setrlimit(2).
pub fn raise_nofile() -> io::Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        setrlimit(
            Resource::Nofile,
            Rlimit {
                current: limit.maximum,
                maximum: limit.maximum,
            },
        )?;
    }
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

/// Open descriptors allowed: the soft and the hard limit; `None` = no limit.
pub fn nofile_limit() -> (Option<u64>, Option<u64>) {
    let limit = getrlimit(Resource::Nofile);
    (limit.current, limit.maximum)
}

/// Gives the system back what is free in the heap, where the allocator would keep it: after a crowd has left.
/// Takes milliseconds.
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) looks for free pages under the allocator's own locks, and touches none that
    // is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Local ports that the kernel chooses from for sockets of one address (ip_local_port_range, without
/// ip_local_reserved_ports).
pub fn local_ports() -> usize {
    let read = |name: &str| fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).ok();
    let range = read("ip_local_port_range");
    let reserved = read("ip_local_reserved_ports").unwrap_or_default();
    let range = range.and_then(|text| {
        let mut bounds = text.split_whitespace().map(|bound| bound.parse().ok());
        Some((bounds.next()??, bounds.next()??))
    });
    range.map_or(usize::from(u16::MAX), |range| {
        count_ports(range, reserved.trim())
    })
}

fn count_ports((first, last): (u16, u16), reserved: &str) -> usize {
    let ports = reserved.split(',').filter_map(|part| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to): (u16, u16) = (from.parse().ok()?, to.parse().ok()?);
        let (from, to) = (from.max(first), to.min(last));
        Some(
            usize::from(to)
                .saturating_add(1)
                .saturating_sub(usize::from(from)),
        )
    });
    let all = usize::from(last)
        .saturating_add(1)
        .saturating_sub(usize::from(first));
    all.saturating_sub(ports.sum())
}

/// Bytes of memory that may be locked, which rings are charged to; `None` = no limit.
pub fn memlock_limit() -> Option<u64> {
    getrlimit(Resource::Memlock).current
}

/// The CPUs that the scheduler may put this process on. Ascending, never empty.
pub fn usable_cpus() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU)
            .filter(|&cpu| set.is_set(cpu))
            .collect(),
        // More CPUs than the set has room for.
        Err(_) => (0..std::thread::available_parallelism().map_or(1, usize::from)).collect(),
    }
}

/// CPUs worth of time that the cgroups allow, rounded up; `None` = no quota.
pub fn cpu_quota() -> Option<usize> {
    let memberships = fs::read_to_string("/proc/self/cgroup").ok()?;
    let v2 = ancestors(CGROUP_ROOT, &v2_path(&memberships).unwrap_or_default())
        .filter_map(|group| parse_cpu_max(&read(&group, "cpu.max")?));
    let v1 = ["cpu", "cpu,cpuacct"].into_iter().flat_map(|mount| {
        let path = v1_path(&memberships, "cpu").unwrap_or_default();
        ancestors(&format!("{CGROUP_ROOT}/{mount}"), &path).filter_map(|group| {
            let period = read(&group, "cpu.cfs_period_us")?;
            parse_cfs(&read(&group, "cpu.cfs_quota_us")?, &period)
        })
    });
    v2.chain(v1).min()
}

/// How many workers have a CPU of their own: the usable CPUs, or the quota when that is less.
pub fn worker_count() -> usize {
    let cpus = usable_cpus().len();
    cpu_quota().map_or(cpus, |quota| quota.min(cpus)).max(1)
}

/// Keeps the calling thread on one CPU.
///
/// # Errors
/// As sched_setaffinity(2): the CPU is not one of [`usable_cpus`].
pub fn pin_to(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// Bytes of memory this process can count on: the machine's, or its cgroup's limit when that is less.
pub fn total_memory() -> u64 {
    let facts = sysinfo();
    let machine = (facts.totalram as u64).saturating_mul(u64::from(facts.mem_unit));
    let memberships = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let v2 = ancestors(CGROUP_ROOT, &v2_path(&memberships).unwrap_or_default())
        .filter_map(|group| read(&group, "memory.max"));
    let v1_mount = format!("{CGROUP_ROOT}/memory");
    let v1 = ancestors(
        &v1_mount,
        &v1_path(&memberships, "memory").unwrap_or_default(),
    )
    .filter_map(|group| read(&group, "memory.limit_in_bytes"));
    v2.chain(v1)
        .filter_map(|text| parse_memory(&text))
        .fold(machine, u64::min)
}

fn read(group: &Path, file: &str) -> Option<String> {
    fs::read_to_string(group.join(file)).ok()
}

/// `root/a/b`, `root/a`, `root`. A limit of any ancestor holds. In a container the path may be that
/// of the host and not exist here; the root then is the container's own group.
fn ancestors(root: &str, path: &str) -> impl Iterator<Item = PathBuf> + use<> {
    let root = PathBuf::from(root);
    let group = root.join(path.trim_start_matches('/'));
    let depth = group.components().count() - root.components().count();
    let groups: Vec<PathBuf> = group.ancestors().take(depth + 1).map(Into::into).collect();
    groups.into_iter()
}

/// The path of the unified hierarchy in /proc/self/cgroup: `0::/path`.
fn v2_path(memberships: &str) -> Option<String> {
    memberships
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .map(str::to_owned)
}

/// The path of one version 1 controller in /proc/self/cgroup: `4:cpu,cpuacct:/path`.
fn v1_path(memberships: &str, controller: &str) -> Option<String> {
    memberships.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let mut controllers = fields.next()?.split(',');
        let path = fields.next()?;
        controllers
            .any(|name| name == controller)
            .then(|| path.to_owned())
    })
}

/// `cpu.max` of version 2: `QUOTA PERIOD` in microseconds, or `max PERIOD`.
fn parse_cpu_max(text: &str) -> Option<usize> {
    let (quota, period) = text.trim().split_once(' ')?;
    parse_cfs(quota, period)
}

/// Version 1's quota and period in microseconds; -1 = no quota.
fn parse_cfs(quota: &str, period: &str) -> Option<usize> {
    let quota: u64 = quota.trim().parse().ok()?;
    let period: u64 = period.trim().parse().ok().filter(|&period| period > 0)?;
    usize::try_from(quota.div_ceil(period).max(1)).ok()
}

/// `max` or a number of bytes. Version 1 says "no limit" with a number near 2^63, which is more than
/// any machine has.
fn parse_memory(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Where both versions are mounted.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "12:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n";

    #[test]
    fn reserved_ports_are_not_chosen() {
        assert_eq!(count_ports((32_768, 60_999), ""), 28_232);
        let reserved = "80,40000,50000-50009,60990-61010";
        assert_eq!(
            count_ports((32_768, 60_999), reserved),
            28_232 - 1 - 10 - 10
        );
        assert_eq!(count_ports((9, 8), "x"), 0);
    }

    #[test]
    fn a_quota_is_rounded_up_to_whole_cpus() {
        assert_eq!(parse_cpu_max("150000 100000\n"), Some(2));
        assert_eq!(parse_cpu_max("200000 100000\n"), Some(2));
        assert_eq!(parse_cpu_max("10000 100000\n"), Some(1));
        assert_eq!(parse_cfs("-1\n", "100000\n"), None);
        assert_eq!(parse_cfs("50000\n", "100000\n"), Some(1));
    }

    #[test]
    fn no_quota_and_nonsense_are_no_limit() {
        for text in ["max 100000\n", "", "100000", "1 0", "a b"] {
            assert_eq!(parse_cpu_max(text), None, "{text:?}");
        }
        assert_eq!(parse_memory("max\n"), None);
        assert_eq!(parse_memory("1048576\n"), Some(1 << 20));
    }

    #[test]
    fn memberships_are_found_for_both_versions() {
        assert_eq!(v2_path("0::/a/b\n").as_deref(), Some("/a/b"));
        assert_eq!(v2_path(V1), None);
        assert_eq!(v1_path(V1, "cpu").as_deref(), Some("/docker/abc"));
        assert_eq!(v1_path(V1, "memory").as_deref(), Some("/docker/abc"));
        assert_eq!(v1_path(V1, "cpuset"), None);
        assert_eq!(v1_path("0::/a:cpu:b\n", "cpu"), None);
    }

    #[test]
    fn a_group_is_looked_at_up_to_the_root() {
        let paths: Vec<_> = ancestors("/sys/fs/cgroup", "/a/b").collect();
        assert_eq!(
            paths,
            ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"].map(PathBuf::from)
        );
        assert_eq!(ancestors("/sys/fs/cgroup", "/").count(), 1);
    }

    #[test]
    fn this_machine_has_a_cpu_to_pin_to_and_memory() {
        let cpus = usable_cpus();
        let first = *cpus.first().expect("a process runs on some CPU");
        std::thread::spawn(move || pin_to(first))
            .join()
            .expect("the thread ends")
            .expect("a usable CPU can be pinned to");
        assert!((1..=cpus.len()).contains(&worker_count()));
        assert!(total_memory() > 1 << 20);
        assert!(pin_to(usize::MAX).is_err());
    }

    #[test]
    fn raising_the_limit_of_descriptors_gives_the_hard_one() {
        let raised = raise_nofile().expect("the soft limit may be raised to the hard one");
        assert_eq!(nofile_limit().0.unwrap_or(u64::MAX), raised);
    }
}
