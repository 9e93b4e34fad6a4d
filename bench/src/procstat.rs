//! What /proc tells about processes: CPU time, memory, threads of io_uring's. Reading it is the only
//! thing that is done to the processes that are measured.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// The CPU time of some processes at one moment.
#[derive(Clone, Debug, Default)]
pub struct CpuTime {
    /// Nanoseconds of each thread, exact to the last time it was on or off its CPU.
    threads: BTreeMap<(u32, u32), u64>,
    /// User and system time of the processes in clock ticks, ended threads included.
    ticks: u64,
}

impl CpuTime {
    /// Of these processes now: all their threads, and so io_uring's kernel workers, which are
    /// threads of the process that they work for.
    pub fn of(processes: &[u32]) -> Self {
        let mut time = Self::default();
        for &process in processes {
            time.ticks += stat_of(process).map_or(0, |stat| stat.user + stat.system);
            for thread in threads_of(process) {
                let text = read(&format!("/proc/{process}/task/{thread}/schedstat"));
                if let Some(nanos) = text.and_then(|text| parse_schedstat(&text)) {
                    time.threads.insert((process, thread), nanos);
                }
            }
        }
        time
    }

    /// The CPU time since `earlier`. The threads' own clocks are finer than the processes' ticks
    /// (10 ms); but a thread that ended takes its clock with it, and then the ticks have to do.
    pub fn since(&self, earlier: &Self) -> Duration {
        let all_live = earlier
            .threads
            .keys()
            .all(|thread| self.threads.contains_key(thread));
        if all_live && !self.threads.is_empty() {
            let now: u64 = self.threads.values().sum();
            let then: u64 = earlier.threads.values().sum();
            return Duration::from_nanos(now.saturating_sub(then));
        }
        let ticks = self.ticks.saturating_sub(earlier.ticks);
        let per_second = rustix::param::clock_ticks_per_second().max(1);
        Duration::from_nanos(ticks * (1_000_000_000 / per_second))
    }
}

/// The CPU time of these processes and of those children of theirs that have ended and were waited for:
/// what a proxy has used that replaces its processes. Exact to a few ticks (10 ms).
pub fn cpu_with_ended(processes: &[u32]) -> Duration {
    let stats = processes.iter().filter_map(|process| stat_of(*process));
    let ticks: u64 = stats
        .map(|stat| stat.user + stat.system + stat.children)
        .sum();
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    Duration::from_nanos(ticks * (1_000_000_000 / per_second))
}

/// Those of these processes that have not ended.
pub fn living(processes: &[u32]) -> Vec<u32> {
    let lives = |process: &u32| stat_of(*process).is_some_and(|stat| stat.lives);
    processes.iter().copied().filter(lives).collect()
}

/// Descriptors that these processes have open together.
pub fn descriptors(processes: &[u32]) -> usize {
    let of = |process| numbers_in(Path::new(&format!("/proc/{process}/fd"))).len();
    processes.iter().copied().map(of).sum()
}

/// Anonymous memory of these processes together, in bytes: what is their own and not a file's.
pub fn anonymous_memory(processes: &[u32]) -> u64 {
    let of = |process| parse_rss_anon(&read(&format!("/proc/{process}/status"))?);
    processes.iter().copied().filter_map(of).sum()
}

/// io_uring's kernel worker threads of these processes.
pub fn kernel_workers(processes: &[u32]) -> usize {
    let is_worker = |process: u32, thread: u32| {
        read(&format!("/proc/{process}/task/{thread}/comm"))
            .is_some_and(|name| name.starts_with("iou-wrk"))
    };
    processes
        .iter()
        .map(|&process| {
            let threads = threads_of(process).into_iter();
            threads.filter(|thread| is_worker(process, *thread)).count()
        })
        .sum()
}

/// A process and all that descend from it.
pub fn family(process: u32) -> Vec<u32> {
    let mut found = vec![process];
    let mut looked_at = 0;
    while let Some(&parent) = found.get(looked_at) {
        looked_at += 1;
        let Some(children) = children_of(parent) else {
            return family_by_parents(process);
        };
        found.extend(children);
    }
    found
}

/// The children of a process, where the kernel lists them (CONFIG_PROC_CHILDREN); `None` where it does
/// not.
fn children_of(process: u32) -> Option<Vec<u32>> {
    let mut children = Vec::new();
    for thread in threads_of(process) {
        let task = format!("/proc/{process}/task/{thread}");
        match read(&format!("{task}/children")) {
            Some(text) => children.extend(text.split_ascii_whitespace().filter_map(number)),
            None if Path::new(&task).exists() => return None,
            None => {}
        }
    }
    Some(children)
}

fn number(text: &str) -> Option<u32> {
    text.parse().ok()
}

/// Looks at every process there is.
fn family_by_parents(process: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = numbers_in(Path::new("/proc"))
        .into_iter()
        .filter_map(|child| Some((child, stat_of(child)?.parent)))
        .collect();
    descendants(process, &parents)
}

/// `process` and everything below it; `parents` holds children with their parents.
fn descendants(process: u32, parents: &[(u32, u32)]) -> Vec<u32> {
    let mut found = vec![process];
    let mut looked_at = 0;
    while let Some(&parent) = found.get(looked_at) {
        looked_at += 1;
        let children = parents.iter().filter(|(_, of)| *of == parent);
        let new: Vec<u32> = children
            .map(|(child, _)| *child)
            .filter(|child| !found.contains(child))
            .collect();
        found.extend(new);
    }
    found
}

fn threads_of(process: u32) -> Vec<u32> {
    numbers_in(Path::new(&format!("/proc/{process}/task")))
}

/// The entries of a folder whose names are numbers; none when it is gone.
fn numbers_in(folder: &Path) -> Vec<u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

fn stat_of(process: u32) -> Option<Stat> {
    Stat::parse(&read(&format!("/proc/{process}/stat"))?)
}

fn read(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// What is needed of /proc/PID/stat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stat {
    /// Not ended, waiting to be waited for.
    lives: bool,
    parent: u32,
    /// Clock ticks.
    user: u64,
    /// Clock ticks.
    system: u64,
    /// Clock ticks, user and system, of children that have ended and were waited for.
    children: u64,
}

impl Stat {
    /// The name in parentheses may hold anything, blanks and parentheses included (proc(5)).
    fn parse(text: &str) -> Option<Self> {
        let (_, after_name) = text.rsplit_once(')')?;
        let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
        let ticks = |field: usize| fields.get(field)?.parse::<u64>().ok();
        Some(Self {
            lives: !matches!(*fields.first()?, "Z" | "X"),
            parent: number(fields.get(1)?)?,
            user: ticks(11)?,
            system: ticks(12)?,
            children: ticks(13)? + ticks(14)?,
        })
    }
}

/// Nanoseconds on a CPU: the first number.
fn parse_schedstat(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

/// `RssAnon: 1234 kB`, in bytes.
fn parse_rss_anon(status: &str) -> Option<u64> {
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_name_full_of_parentheses_does_not_shift_the_fields() {
        let text = "812 (a) b (c)) S 17 812 812 0 -1 4194560 1 0 0 0 250 31 5 6 20 0 3 0 99 1 2";
        let stat = Stat::parse(text).expect("it is a stat");
        assert_eq!((stat.parent, stat.user, stat.system), (17, 250, 31));
        assert_eq!((stat.children, stat.lives), (5 + 6, true));
        let ended = Stat::parse(&text.replace(") S ", ") Z ")).expect("it is a stat");
        assert!(!ended.lives);
        for text in [
            "",
            "812 (a",
            "812 (a) S 17",
            "1 (a) S x 0 0 0 0 0 0 0 0 0 1 2",
        ] {
            assert_eq!(Stat::parse(text), None, "{text}");
        }
    }

    #[test]
    fn anonymous_memory_is_read_in_kib() {
        let status = "VmRSS:\t    9000 kB\nRssAnon:\t    1234 kB\nRssFile:\t 1 kB\n";
        assert_eq!(parse_rss_anon(status), Some(1234 * 1024));
        assert_eq!(parse_rss_anon("VmRSS:\t 9000 kB\n"), None);
        assert_eq!(parse_schedstat("123456 789 3\n"), Some(123_456));
        assert_eq!(parse_schedstat(""), None);
    }

    #[test]
    fn a_family_is_a_process_and_its_descendants() {
        let parents = [(2, 1), (3, 2), (4, 1), (5, 3), (1, 0), (9, 8)];
        assert_eq!(descendants(2, &parents), [2, 3, 5]);
        assert_eq!(descendants(7, &parents), [7]);
    }

    #[test]
    fn a_child_is_found_in_either_way_and_one_that_has_ended_does_not_live() {
        let own = std::process::id();
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .spawn()
            .expect("cat is there");
        for family in [family(own), family_by_parents(own)] {
            assert!(family.contains(&child.id()), "{family:?}");
        }
        assert_eq!(living(&[child.id()]), [child.id()]);
        assert!(descriptors(&[child.id()]) >= 3);
        drop(child.stdin.take());
        child.wait().expect("it ends");
        assert_eq!(living(&[child.id()]), [0; 0]);
    }

    #[test]
    fn an_ended_thread_leaves_the_ticks() {
        let hz = rustix::param::clock_ticks_per_second();
        let earlier = CpuTime {
            threads: BTreeMap::from([((1, 1), 5), ((1, 2), 7)]),
            ticks: 0,
        };
        let mut later = earlier.clone();
        later.threads.insert((1, 1), 1005);
        later.threads.insert((1, 3), 20);
        later.ticks = hz;
        assert_eq!(later.since(&earlier), Duration::from_nanos(1020));
        later.threads.remove(&(1, 2));
        assert_eq!(later.since(&earlier), Duration::from_secs(1));
    }

    #[test]
    fn this_process_has_memory_and_uses_time() {
        let own = [std::process::id()];
        let before = CpuTime::of(&own);
        let mut sum = 0_u64;
        while CpuTime::of(&own).since(&before) < Duration::from_millis(20) {
            sum = (0..100_000).fold(sum, u64::wrapping_add);
        }
        assert!(anonymous_memory(&own) > 4096, "{sum}");
        assert_eq!(family(own[0])[0], own[0]);
    }
}
