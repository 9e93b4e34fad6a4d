//! What the service manager is told, by the protocol of sd_notify(3): when the process is ready, reloads,
//! ends, is alive, or hands over to another one. It owns the way there and nothing else; without
//! NOTIFY_SOCKET every word is for nobody, and a word that gets lost never stops the process.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::ring;

/// Variables that speak to one process only: whoever starts another one, as an upgrade does, takes them
/// out of its environment. NOTIFY_SOCKET and WATCHDOG_USEC stay; the new process needs them.
pub const FOR_THIS_PROCESS: [&str; 1] = ["WATCHDOG_PID"];

/// The way to the service manager.
#[derive(Debug, Default)]
pub struct Notifier {
    way: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
    failed: AtomicBool,
}

impl Notifier {
    /// As NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID say.
    pub fn from_environment() -> Self {
        Self::new(|name| std::env::var_os(name), std::process::id())
    }

    /// The same, with the environment and the process's id given.
    pub fn new(variable: impl Fn(&str) -> Option<OsString>, pid: u32) -> Self {
        let way = variable("NOTIFY_SOCKET").filter(|name| !name.is_empty());
        let way = way.and_then(|name| {
            let found = way_to(name.as_bytes());
            found
                .inspect_err(|error| tracing::debug!(?name, %error, "NOTIFY_SOCKET is of no use"))
                .ok()
        });
        let number = |name| variable(name)?.to_str()?.parse::<u64>().ok();
        let ours =
            variable("WATCHDOG_PID").is_none() || number("WATCHDOG_PID") == Some(u64::from(pid));
        let limit = number("WATCHDOG_USEC").filter(|&limit| ours && limit > 0);
        Self {
            watchdog: limit
                .filter(|_| way.is_some())
                .map(|limit| Duration::from_micros(limit / 2)),
            way,
            failed: AtomicBool::new(false),
        }
    }

    /// The process serves: after the start, and at the end of a reload whether it was refused or not.
    pub fn ready(&self, status: &str) {
        self.send(format_args!("READY=1\nSTATUS={}\n", line(status)));
    }

    /// A reload begins. It ends with [`Notifier::ready`].
    pub fn reloading(&self) {
        // The manager compares it with the moment at which it asked.
        let micros = ring::now().as_nanos() / 1_000;
        self.send(format_args!("RELOADING=1\nMONOTONIC_USEC={micros}\n"));
    }

    /// The process ends `within` this time, however long the manager meant to wait. Not for a process that
    /// has handed over: it isn't the service any more.
    pub fn stopping(&self, within: Duration, status: &str) {
        let (micros, status) = (within.as_micros(), line(status));
        self.send(format_args!(
            "STOPPING=1\nEXTEND_TIMEOUT_USEC={micros}\nSTATUS={status}\n"
        ));
    }

    /// The process `pid` is the service from now on, and ready. It is this one that says so, since the
    /// manager doesn't listen to the other one yet.
    pub fn main_pid(&self, pid: u32, status: &str) {
        let status = line(status);
        self.send(format_args!("MAINPID={pid}\nREADY=1\nSTATUS={status}\n"));
    }

    /// The process is alive.
    pub fn alive(&self) {
        self.send(format_args!("WATCHDOG=1\n"));
    }

    /// How often [`Notifier::alive`] is to be called: twice in the time after which the manager takes the
    /// process for dead. `None` = nobody waits for it.
    pub fn interval(&self) -> Option<Duration> {
        self.watchdog
    }

    /// One datagram, so that what belongs together arrives together.
    fn send(&self, words: fmt::Arguments<'_>) {
        let Some((socket, address)) = &self.way else {
            return;
        };
        let outcome = socket.send_to_addr(words.to_string().as_bytes(), address);
        if let Err(error) = outcome
            && !self.failed.swap(true, Ordering::Relaxed)
        {
            tracing::debug!(%error, "the service manager can't be told");
        }
    }
}

/// A path, or `@` and a name in the abstract namespace. Not connected: the manager may bind its end anew.
fn way_to(name: &[u8]) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name))?,
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok((socket, address))
}

/// A manager that has fallen behind is waited for, since READY must not get lost, but not for long.
const PATIENCE: Duration = Duration::from_secs(1);

/// A line break would begin another word.
fn line(text: &str) -> String {
    text.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const PID: u32 = 7;

    fn notifier(socket: &str, variables: &[(&str, &str)]) -> Notifier {
        let variable = |name: &str| match name {
            "NOTIFY_SOCKET" => Some(socket.into()),
            _ => variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| value.into()),
        };
        Notifier::new(variable, PID)
    }

    fn manager(path: &Path) -> (UnixDatagram, Notifier) {
        let manager = UnixDatagram::bind(path).unwrap();
        manager.set_nonblocking(true).unwrap();
        (manager, notifier(path.to_str().unwrap(), &[]))
    }

    fn heard(manager: &UnixDatagram) -> String {
        let mut words = [0; 256];
        let length = manager.recv(&mut words).expect("a datagram waits");
        String::from_utf8(words[..length].to_vec()).unwrap()
    }

    #[test]
    fn each_word_is_one_datagram() {
        let folder = tempfile::tempdir().unwrap();
        let (manager, notifier) = manager(&folder.path().join("notify"));
        notifier.ready("2 listeners");
        assert_eq!(heard(&manager), "READY=1\nSTATUS=2 listeners\n");
        notifier.stopping(Duration::from_secs(62), "draining");
        assert_eq!(
            heard(&manager),
            "STOPPING=1\nEXTEND_TIMEOUT_USEC=62000000\nSTATUS=draining\n"
        );
        notifier.main_pid(9, "upgraded");
        assert_eq!(heard(&manager), "MAINPID=9\nREADY=1\nSTATUS=upgraded\n");
        notifier.ready("a\nMAINPID=1\r\nb");
        assert_eq!(heard(&manager), "READY=1\nSTATUS=a MAINPID=1  b\n");
        notifier.alive();
        assert_eq!(heard(&manager), "WATCHDOG=1\n");
        assert!(manager.recv(&mut [0]).is_err(), "there is nothing else");
    }

    #[test]
    fn a_reload_says_when_it_began() {
        let folder = tempfile::tempdir().unwrap();
        let (manager, notifier) = manager(&folder.path().join("notify"));
        let mut times = [(); 2].map(|()| {
            notifier.reloading();
            let words = heard(&manager);
            let time = words.strip_prefix("RELOADING=1\nMONOTONIC_USEC=");
            let time = time.and_then(|time| time.trim_end().parse().ok());
            time.expect("a number")
        });
        times.sort_unstable();
        let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
        let seconds: u64 = uptime.split('.').next().unwrap().parse().unwrap();
        let [first, second]: [u64; 2] = times;
        assert!(second - first < 10_000_000, "{times:?}");
        // CLOCK_MONOTONIC stands still while the machine is suspended, the uptime goes on.
        assert!(
            (1..=(seconds + 1) * 1_000_000).contains(&second),
            "{times:?}"
        );
    }

    #[test]
    fn an_abstract_socket_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().to_str().unwrap();
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        manager.set_nonblocking(true).unwrap();
        notifier(&format!("@{name}"), &[]).alive();
        assert_eq!(heard(&manager), "WATCHDOG=1\n");
    }

    #[test]
    fn without_a_manager_every_word_is_for_nobody() {
        for socket in ["", "relative", "vsock:2:1", "/no such folder/socket"] {
            let notifier = notifier(socket, &[]);
            notifier.ready("up");
            notifier.reloading();
            notifier.alive();
        }
        Notifier::default().ready("up");
    }

    #[test]
    fn a_manager_that_comes_back_is_heard_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let (first, notifier) = manager(&path);
        drop(first);
        std::fs::remove_file(&path).unwrap();
        notifier.ready("lost");
        let (second, _) = manager(&path);
        notifier.ready("heard");
        assert_eq!(heard(&second), "READY=1\nSTATUS=heard\n");
    }

    #[test]
    fn the_watchdog_is_fed_at_half_its_time_and_by_whom_it_watches() {
        let interval = |variables: &[_]| notifier("/a/socket", variables).interval();
        let limit = ("WATCHDOG_USEC", "30000000");
        let half = Some(Duration::from_secs(15));
        assert_eq!(interval(&[limit]), half);
        assert_eq!(interval(&[limit, ("WATCHDOG_PID", "7")]), half);
        assert_eq!(interval(&[limit, ("WATCHDOG_PID", "8")]), None);
        assert_eq!(interval(&[limit, ("WATCHDOG_PID", "")]), None);
        assert_eq!(interval(&[]), None);
        assert_eq!(interval(&[("WATCHDOG_USEC", "0")]), None);
        assert_eq!(interval(&[("WATCHDOG_USEC", "soon")]), None);
        assert_eq!(notifier("", &[limit]).interval(), None);
    }
}
