//! Descriptors that this process has not made: they were open when it began, or another process has
//! sent them. And what a socket is, whoever made it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Gid, OFlags, Uid, fcntl_getfl, fcntl_setfl};
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use socket2::{SockRef, Type};

use crate::address::Address;

/// Takes over a descriptor that was open when this process began, as systemd's LISTEN_FDS are. From
/// here on it is closed by exec and doesn't block (which goes for whoever else holds it, too).
///
/// # Errors
/// EBADF when it isn't open; `InvalidInput` for standard input, output and error, and when it is closed
/// by exec: such a one was made by this process or has been taken over already.
pub fn inherit(raw: RawFd) -> io::Result<OwnedFd> {
    /// Between looking and taking nobody else may take the same.
    static TAKING: Mutex<()> = Mutex::new(());
    const STANDARD: std::ops::RangeInclusive<RawFd> = 0..=2;
    if STANDARD.contains(&raw) {
        return Err(not_inherited(raw));
    }
    if raw < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    let _taking = TAKING.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: the borrow ends with this function, and only asks for flags, which is an error for a
    // number that isn't open (-1 is none, and was ruled out).
    let found = unsafe { BorrowedFd::borrow_raw(raw) };
    let flags = fcntl_getfd(found)?;
    if flags.contains(FdFlags::CLOEXEC) {
        return Err(not_inherited(raw));
    }
    fcntl_setfd(found, flags | FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and nobody's. All that std, rustix, socket2 and this crate open is closed by
    // exec, which this one was not, so that it was open before the process began; and it is closed by
    // exec from here on, so that nobody can take it a second time.
    let taken = unsafe { OwnedFd::from_raw_fd(raw) };
    let flags = fcntl_getfl(&taken)?;
    fcntl_setfl(&taken, flags | OFlags::NONBLOCK)?;
    Ok(taken)
}

fn not_inherited(raw: RawFd) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("descriptor {raw} was not handed to this process, or has been taken over already"),
    )
}

/// What a socket is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inherited {
    /// Where it is bound. Of a unix socket it is the path of that moment: it may have been renamed.
    pub address: Address,
    /// It has been told to listen.
    pub listening: bool,
    /// It may be a member of a group. One that was bound without can't become one.
    pub reuse_port: bool,
    /// TCP or its like, and not datagrams.
    pub stream: bool,
    /// It takes IPv6 and not IPv4, too.
    pub ipv6_only: bool,
}

/// Asks the kernel what a socket is.
///
/// # Errors
/// ENOTSOCK; `InvalidInput` when it is bound to something else than an IP address or a path.
pub fn describe(fd: BorrowedFd<'_>) -> io::Result<Inherited> {
    let socket = SockRef::from(&fd);
    let address = socket.local_addr()?;
    let address = match (address.as_socket(), address.as_pathname()) {
        (Some(address), _) => Address::Ip(address),
        (None, Some(path)) => Address::Unix(path.into()),
        (None, None) => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "descriptor {} is bound to neither an IP address nor a path",
                    fd.as_raw_fd()
                ),
            ));
        }
    };
    // Unix sockets have had the option since Linux 6.12 only to refuse it.
    let reuse_port = matches!(address, Address::Ip(_)) && socket.reuse_port()?;
    let is_ipv6 = address.as_ip().is_some_and(|address| address.is_ipv6());
    Ok(Inherited {
        address,
        listening: socket.is_listener()?,
        reuse_port,
        stream: socket.r#type()? == Type::STREAM,
        ipv6_only: is_ipv6 && socket.only_v6()?,
    })
}

/// Makes a socket belong to a user, so that a process that becomes that user can add members to its
/// group with [`listen_more`](super::listen_more). All members of a group have to be given: who is of
/// another user than the rest is a group of its own, which gets nothing or everything.
///
/// # Errors
/// As fchown(2): EPERM without CAP_CHOWN.
pub fn give_to(fd: BorrowedFd<'_>, uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    Ok(rustix::fs::fchown(fd, Some(uid), Some(gid))?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, IntoRawFd};

    use super::super::clients::{self, OPTIONS};
    use super::super::{listen_more, listen_unix};
    use super::*;

    /// As a descriptor is that came over exec.
    fn handed_over(fd: OwnedFd) -> RawFd {
        fcntl_setfd(&fd, FdFlags::empty()).expect("it is open");
        let flags = fcntl_getfl(&fd).expect("it is open");
        fcntl_setfl(&fd, flags - OFlags::NONBLOCK).expect("it is open");
        fd.into_raw_fd()
    }

    fn refusal(raw: RawFd) -> io::Error {
        inherit(raw).expect_err("it can't be taken")
    }

    #[test]
    fn what_was_handed_over_is_taken_once_and_serves() {
        let listener = clients::listening(1);
        let address = clients::address(&listener);
        let raw = handed_over(listener.into_iter().next().expect("one"));
        let taken = inherit(raw).expect("it was handed over");
        assert!(
            fcntl_getfd(&taken)
                .expect("open")
                .contains(FdFlags::CLOEXEC)
        );
        assert!(
            fcntl_getfl(&taken)
                .expect("open")
                .contains(OFlags::NONBLOCK)
        );
        assert_eq!(refusal(raw).kind(), io::ErrorKind::InvalidInput);
        let members = [taken];
        let accepted = clients::accepted(&members, clients::connect(address, 3));
        assert_eq!(accepted, [3]);
    }

    #[test]
    fn what_is_not_open_or_not_handed_over_is_not_taken() {
        assert_eq!(refusal(-1).raw_os_error(), Some(libc::EBADF));
        assert_eq!(refusal(1 << 30).raw_os_error(), Some(libc::EBADF));
        assert_eq!(refusal(1).kind(), io::ErrorKind::InvalidInput);
        let ours = clients::listening(1);
        let raw = ours[0].as_raw_fd();
        let line = refusal(raw).to_string();
        assert!(line.contains(&raw.to_string()), "{line}");
    }

    #[test]
    fn a_socket_says_what_it_is() {
        let member = clients::listening(1);
        let address = Address::Ip(clients::address(&member));
        let expected = Inherited {
            address,
            listening: true,
            reuse_port: true,
            stream: true,
            ipv6_only: false,
        };
        assert_eq!(describe(member[0].as_fd()).expect("a socket"), expected);

        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").expect("port 0");
        let found = describe(datagrams.as_fd()).expect("a socket");
        assert_eq!(
            (found.listening, found.reuse_port, found.stream),
            (false, false, false)
        );

        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.sock");
        let (sockets, _) = listen_unix(&path, 1, &OPTIONS).expect("the path is free");
        let found = describe(sockets[0].as_fd()).expect("a socket");
        assert_eq!(found.address, Address::Unix(path.into()));
        assert_eq!((found.listening, found.reuse_port), (true, false));
    }

    #[test]
    fn what_is_no_socket_or_has_no_place_is_an_error() {
        let folder = tempfile::tempfile().expect("a file");
        let error = describe(folder.as_fd()).expect_err("a file");
        assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK));
        let (nowhere, _) = std::os::unix::net::UnixStream::pair().expect("two sockets");
        let error = describe(nowhere.as_fd()).expect_err("it is not bound");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    /// As a process of that user would; only root can try.
    fn as_user<T: Send>(uid: u32, act: impl FnOnce() -> T + Send) -> T {
        let act = || {
            // SAFETY: it takes a number, and changes the user of this thread only, which ends here.
            unsafe { libc::setfsuid(uid) };
            act()
        };
        std::thread::scope(|scope| scope.spawn(act).join().expect("it doesn't panic"))
    }

    #[test]
    fn a_group_takes_members_of_the_user_that_it_was_given_to() {
        const NOBODY: u32 = 65_534;
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let mut members = clients::listening(2);
        let address = clients::address(&members);
        let join = || as_user(NOBODY, || listen_more(address, 1, &OPTIONS));
        let stranger = join().expect_err("they are root's");
        assert_eq!(stranger.raw_os_error(), Some(libc::EADDRINUSE));
        for member in &members {
            give_to(member.as_fd(), NOBODY, NOBODY).expect("root may");
        }
        members.extend(join().expect("they are its own"));
        let accepted = clients::accepted(&members, clients::connect(address, 200));
        assert!(accepted.iter().all(|&count| count > 20), "{accepted:?}");
    }
}
