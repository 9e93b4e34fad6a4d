//! Options of a listening socket, set before it listens or while it does.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::{ListenOptions, queue_length};
use crate::ring::datagrams;

/// One of the options, by the key that it has in the configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Setting {
    /// `backlog`
    Backlog,
    /// `tcp_keepalive`
    Keepalive,
    /// `congestion`
    Congestion,
    /// TCP_NODELAY, which has no key.
    NoDelay,
    /// `unix_mode`
    UnixMode,
    /// What a socket for datagrams needs, which has no key.
    Datagrams,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Backlog => "backlog",
            Self::Keepalive => "tcp_keepalive",
            Self::Congestion => "congestion",
            Self::NoDelay => "TCP_NODELAY",
            Self::UnixMode => "unix_mode",
            Self::Datagrams => "what datagrams need",
        })
    }
}

/// An option that a socket did not take.
#[derive(Debug)]
pub struct AdjustError {
    /// Which one.
    pub setting: Setting,
    /// What the kernel said.
    pub error: io::Error,
}

impl fmt::Display for AdjustError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { setting, error } = self;
        match (setting, error.raw_os_error()) {
            (Setting::Congestion, Some(libc::ENOENT)) => write!(
                f,
                "congestion: the kernel has no such algorithm; net.ipv4.tcp_available_congestion_control \
                 lists them"
            ),
            (Setting::Congestion, Some(libc::EPERM)) => write!(
                f,
                "congestion: only root may use this algorithm; add it to \
                 net.ipv4.tcp_allowed_congestion_control"
            ),
            _ => write!(f, "{setting} can't be set: {error}"),
        }
    }
}

impl std::error::Error for AdjustError {}

impl From<AdjustError> for io::Error {
    /// With the kernel's number, and without the name of the option.
    fn from(refused: AdjustError) -> Self {
        refused.error
    }
}

/// Sets a listening socket, TCP or unix, to `options` while it listens: the accept queue's length at
/// once, keepalive and congestion control for connections that come from now on, the mode of a unix
/// socket's path. All but `ipv6_only`, which needs [other sockets](super::listen_beside). A socket that
/// was made elsewhere gets TCP_NODELAY.
///
/// The system's congestion control is that of this moment: a socket that once had a choice of its own
/// doesn't follow when the system's changes later.
///
/// # Errors
/// The first option that it didn't take; those behind it in the order congestion, keepalive,
/// TCP_NODELAY, backlog are as they were.
pub fn adjust(fd: BorrowedFd<'_>, options: &ListenOptions<'_>) -> Result<(), AdjustError> {
    let socket = SockRef::from(&fd);
    let address = socket.local_addr().map_err(of(Setting::Backlog))?;
    if let (false, Some(address)) = (options.listens(), address.as_socket()) {
        let prepared = datagrams::prepare_for_clients(&socket, address);
        return prepared.map_err(of(Setting::Datagrams));
    }
    if let Some(path) = address.as_pathname() {
        set_mode(path, options.unix_mode).map_err(of(Setting::UnixMode))?;
    } else if address.as_socket().is_some() {
        if options.congestion.is_none() {
            follow_system(&socket).map_err(of(Setting::Congestion))?;
        }
        tune(&socket, options)?;
    }
    let listens = socket.listen(queue_length(options));
    listens.map_err(of(Setting::Backlog))
}

/// What doesn't depend on the socket's being bound, of a TCP socket.
pub(super) fn tune(socket: &SockRef<'_>, options: &ListenOptions<'_>) -> Result<(), AdjustError> {
    if let Some(congestion) = options.congestion {
        let sets = socket.set_tcp_congestion(congestion.as_bytes());
        sets.map_err(of(Setting::Congestion))?;
    }
    let keepalive = match options.keepalive {
        Some(time) => socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(time)),
        None => socket.set_keepalive(false),
    };
    keepalive.map_err(of(Setting::Keepalive))?;
    socket.set_tcp_nodelay(true).map_err(of(Setting::NoDelay))
}

fn of(setting: Setting) -> impl Fn(io::Error) -> AdjustError {
    move |error| AdjustError { setting, error }
}

/// Every new socket has the system's, so that one can be asked; /proc may be hidden.
fn follow_system(socket: &SockRef<'_>) -> io::Result<()> {
    let new = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    let systems = new.tcp_congestion()?;
    if socket.tcp_congestion()? == systems {
        return Ok(());
    }
    let name = systems.split(|&byte| byte == 0).next();
    socket.set_tcp_congestion(name.unwrap_or_default())
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        // Somebody has removed it: nobody can connect any more, whatever the mode.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    if !found.file_type().is_socket() {
        return Err(super::unix::no_socket());
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::super::clients::{self, OPTIONS};
    use super::super::{listen_unix, steer};
    use super::*;

    /// What a connection that comes now has inherited.
    fn accepted(listener: &[std::os::fd::OwnedFd]) -> Socket {
        let address = SockRef::from(&listener[0]).local_addr().expect("bound");
        let client = Socket::new(address.domain(), Type::STREAM, None).expect("a socket");
        client.connect(&address).expect("it listens");
        clients::wait(&listener[0]);
        SockRef::from(&listener[0]).accept().expect("queued").0
    }

    fn congestion(socket: &Socket) -> String {
        let name = socket.tcp_congestion().expect("TCP");
        String::from_utf8_lossy(&name)
            .trim_end_matches('\0')
            .to_owned()
    }

    #[test]
    fn keepalive_is_switched_on_changed_and_off() {
        let listener = clients::listening(1);
        let minutes = |minutes| ListenOptions {
            keepalive: Some(Duration::from_secs(60 * minutes)),
            ..OPTIONS
        };
        for time in [1, 7] {
            adjust(listener[0].as_fd(), &minutes(time)).expect("TCP takes it");
            let socket = accepted(&listener);
            assert!(socket.keepalive().expect("a socket"));
            let idle = socket.tcp_keepalive_time().expect("TCP");
            assert_eq!(idle, Duration::from_secs(60 * time));
        }
        adjust(listener[0].as_fd(), &OPTIONS).expect("TCP takes it");
        assert!(!accepted(&listener).keepalive().expect("a socket"));
    }

    #[test]
    fn a_longer_and_a_shorter_queue_hold_from_now_on() {
        let listener = clients::listening(1);
        let backlog = |backlog| ListenOptions { backlog, ..OPTIONS };
        let to = clients::address(&listener);
        adjust(listener[0].as_fd(), &backlog(1)).expect("TCP takes it");
        // One more than the backlog fits in.
        let fitting = clients::connect(to, 2);
        let excess = clients::begin(to);
        assert!(!clients::is_connected(&excess, 100));
        adjust(listener[0].as_fd(), &backlog(64)).expect("TCP takes it");
        drop(clients::connect(to, 10));
        drop(fitting);
    }

    #[test]
    fn congestion_control_is_chosen_and_given_back() {
        let listener = clients::listening(1);
        let systems = congestion(&accepted(&listener));
        // Every kernel has it.
        let reno = ListenOptions {
            congestion: Some("reno"),
            ..OPTIONS
        };
        adjust(listener[0].as_fd(), &reno).expect("every kernel has it");
        assert_eq!(congestion(&accepted(&listener)), "reno");
        adjust(listener[0].as_fd(), &OPTIONS).expect("it is the system's");
        assert_eq!(congestion(&accepted(&listener)), systems);
    }

    #[test]
    fn an_option_that_is_not_taken_is_named_and_the_rest_stays() {
        let listener = clients::listening(1);
        let options = ListenOptions {
            congestion: Some("no-such-thing"),
            keepalive: Some(Duration::from_secs(60)),
            ..OPTIONS
        };
        let error = adjust(listener[0].as_fd(), &options).expect_err("there is no such thing");
        assert_eq!(error.setting, Setting::Congestion);
        let line = error.to_string();
        assert!(line.contains("tcp_available_congestion_control"), "{line}");
        assert!(!accepted(&listener).keepalive().expect("a socket"));
    }

    #[test]
    fn a_member_that_is_adjusted_keeps_its_place() {
        let members = clients::listening(3);
        steer(members[1].as_fd(), 1).expect("it is a group");
        adjust(members[0].as_fd(), &OPTIONS).expect("TCP takes it");
        clients::all_go_to(&members[..1], &members[1..], clients::address(&members));
    }

    #[test]
    fn a_unix_socket_gets_its_mode() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.sock");
        let (sockets, _) = listen_unix(&path, 1, &OPTIONS).expect("the path is free");
        let options = ListenOptions {
            unix_mode: 0o640,
            ..OPTIONS
        };
        adjust(sockets[0].as_fd(), &options).expect("it is ours");
        let mode = fs::metadata(&path).expect("it is there").permissions();
        assert_eq!(mode.mode() & 0o777, 0o640);
        fs::remove_file(&path).expect("it is ours");
        fs::write(&path, "").expect("it is free");
        let error = adjust(sockets[0].as_fd(), &options).expect_err("not a socket");
        assert_eq!(error.setting, Setting::UnixMode);
    }
}
