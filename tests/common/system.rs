//! What /proc says of a process.

use std::fs;

use socket2::Socket;

use super::eventually;

/// Anonymous memory in use, in KiB.
pub(crate) fn anonymous_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .expect("the kernel tells RssAnon");
    line.trim()
        .trim_end_matches(" kB")
        .parse()
        .expect("a number")
}

/// CPU time used so far, in hundredths of a second.
pub(crate) fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let (_, after_name) = stat.rsplit_once(") ").expect("the name is in brackets");
    let fields: Vec<&str> = after_name.split(' ').collect();
    // proc_pid_stat(5): utime is field 14 and stime 15; the state, field 3, is the first one here.
    [11, 12]
        .map(|field: usize| fields[field].parse::<u64>().expect("a number"))
        .iter()
        .sum()
}

/// Open descriptors.
pub(crate) fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("it runs")
        .count()
}

/// Ends of pipes that it has open.
pub(crate) fn pipes(pid: u32) -> usize {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("it runs");
    let targets = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    targets
        .filter(|target| target.to_string_lossy().starts_with("pipe:"))
        .count()
}

/// The names of its threads, the kernel's for its rings included.
pub(crate) fn threads(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    tasks
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .collect()
}

/// Waits until the other end's kernel has acknowledged all that was written to this IPv4 socket.
pub(crate) fn taken_by_the_other_end(socket: &Socket) {
    let port = |address: socket2::SockAddr| address.as_socket().expect("an IP address").port();
    let local = port(socket.local_addr().expect("it is connected"));
    let peer = port(socket.peer_addr().expect("it is connected"));
    eventually("the other end to take the bytes", || {
        (unacknowledged(local, peer)? == 0).then_some(())
    });
}

/// The queue of the socket between these ports; proc(5), /proc/net/tcp: `sl local remote st tx:rx`.
fn unacknowledged(local: u16, peer: u16) -> Option<u64> {
    let table = fs::read_to_string("/proc/net/tcp").expect("it can be read");
    let row = table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_port = |field: &str, port: u16| field.ends_with(&format!(":{port:04X}"));
        (is_port(fields[1], local) && is_port(fields[2], peer)).then(|| fields[4].to_owned())
    })?;
    u64::from_str_radix(row.split(':').next()?, 16).ok()
}
