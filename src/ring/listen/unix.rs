//! Unix sockets: who has a path, and how it changes hands. A path belongs to whoever bound it last;
//! the file there stays when its socket is closed, and says nothing about anybody's listening.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use socket2::{Domain, SockAddr, Socket, Type};

use super::{ListenOptions, queue_length};

/// Which file is at a path. No other file has the same for as long as the socket that made it is open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// As stat(2) says.
    pub device: u64,
    /// As stat(2) says.
    pub inode: u64,
}

impl Identity {
    /// Of the socket at `path`.
    ///
    /// # Errors
    /// As stat(2); `AlreadyExists` when it is no socket.
    pub fn of(path: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(path)?;
        if !found.file_type().is_socket() {
            return Err(no_socket());
        }
        Ok(Self {
            device: found.dev(),
            inode: found.ino(),
        })
    }
}

/// A unix socket that listens at `path`, and duplicates of it for the other of `workers` workers. A
/// path that nobody listens on any more is replaced, one that is in use is refused.
///
/// # Errors
/// As bind(2), listen(2) and chmod(2); EADDRINUSE when somebody listens there, `AlreadyExists` when
/// there is a file that is no socket.
pub fn listen_unix(
    path: &Path,
    workers: usize,
    options: &ListenOptions<'_>,
) -> io::Result<(Vec<OwnedFd>, Identity)> {
    remove_stale(path)?;
    let (socket, identity) = bind(path, options.unix_mode, queue_length(options))?;
    let mut sockets = Vec::with_capacity(workers);
    for _ in 1..workers {
        sockets.push(OwnedFd::from(socket.try_clone()?));
    }
    sockets.push(socket.into());
    Ok((sockets, identity))
}

/// Removes the socket file at `path` if it is still the one with this identity; false when there is
/// none or another. To be called while the socket is open, as the kernel may give its inode to another
/// file afterwards. Who replaces the path in the very moment between looking and removing loses it.
///
/// # Errors
/// As unlink(2).
pub fn remove_path(path: &Path, identity: Identity) -> io::Result<bool> {
    if !Identity::of(path).is_ok_and(|found| found == identity) {
        return Ok(false);
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        answer => answer.map(|()| true),
    }
}

/// Makes the file at `path` belong to a user, a group, or both. A symbolic link is not followed.
///
/// # Errors
/// As lchown(2): EPERM without CAP_CHOWN.
pub fn own_path(path: &Path, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    std::os::unix::fs::lchown(path, uid, gid)
}

pub(super) fn no_socket() -> io::Error {
    io::Error::new(
        io::ErrorKind::AlreadyExists,
        "there is a file that is not a socket",
    )
}

/// Nobody can connect before the path has its mode.
fn bind(path: &Path, mode: u32, backlog: i32) -> io::Result<(Socket, Identity)> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let identity = Identity::of(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    socket.listen(backlog)?;
    Ok((socket, identity))
}

/// Removes a socket file that nobody listens on; anything else in its place is an error.
fn remove_stale(path: &Path) -> io::Result<()> {
    match Identity::of(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        answer => answer?,
    };
    let knock = Socket::new(Domain::UNIX, Type::STREAM.nonblocking(), None)?;
    match knock.connect(&SockAddr::unix(path)?) {
        Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        // Connected, or a full queue (EAGAIN): somebody lives there.
        _ => Err(io::Error::from_raw_os_error(libc::EADDRINUSE)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;

    use rustix::process::{getgid, getuid};
    use socket2::SockRef;
    use tempfile::TempDir;

    use super::super::clients::OPTIONS;
    use super::*;

    fn place() -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.sock");
        (folder, path)
    }

    fn mode(path: &Path) -> u32 {
        let found = fs::symlink_metadata(path).expect("it is there");
        found.permissions().mode() & 0o777
    }

    fn is_queued(socket: &OwnedFd) -> bool {
        SockRef::from(socket).accept().is_ok()
    }

    #[test]
    fn workers_share_one_queue_and_the_path_has_its_mode() {
        let (_folder, path) = place();
        let (sockets, identity) = listen_unix(&path, 2, &OPTIONS).expect("the path is free");
        assert_eq!(mode(&path), 0o600);
        assert_eq!(Identity::of(&path).expect("it is there"), identity);
        let _client = UnixStream::connect(&path).expect("it listens");
        assert!(is_queued(&sockets[1]));
        assert!(!is_queued(&sockets[0]));
    }

    #[test]
    fn a_stale_path_is_replaced_and_a_living_one_is_refused() {
        let (_folder, path) = place();
        let first = listen_unix(&path, 1, &OPTIONS).expect("the path is free");
        let error = listen_unix(&path, 1, &OPTIONS).expect_err("somebody is there");
        assert_eq!(error.raw_os_error(), Some(libc::EADDRINUSE));
        drop(first);
        listen_unix(&path, 1, &OPTIONS).expect("nobody is there");
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let (_folder, path) = place();
        fs::write(&path, "precious").expect("a file");
        let error = listen_unix(&path, 1, &OPTIONS).expect_err("there is a file");
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).expect("a file"), b"precious");
    }

    #[test]
    fn a_path_is_removed_by_its_owner_only_and_once() {
        let (_folder, path) = place();
        let (_old, first) = listen_unix(&path, 1, &OPTIONS).expect("the path is free");
        let beside = path.with_extension("new");
        let (_new, second) = listen_unix(&beside, 1, &OPTIONS).expect("the path is free");
        fs::rename(&beside, &path).expect("it can be replaced");
        assert_ne!(first, second);
        assert!(!remove_path(&path, first).expect("it can be looked at"));
        UnixStream::connect(&path).expect("it listens");
        assert!(remove_path(&path, second).expect("it can be removed"));
        assert!(!remove_path(&path, second).expect("it can be looked at"));
        assert!(!path.exists());
    }

    #[test]
    fn a_path_can_be_given_away() {
        const NOBODY: u32 = 65_534;
        let (_folder, path) = place();
        let (_sockets, _) = listen_unix(&path, 1, &OPTIONS).expect("the path is free");
        let (uid, gid) = (getuid().as_raw(), getgid().as_raw());
        own_path(&path, Some(uid), Some(gid)).expect("it is ours");
        if uid == 0 {
            own_path(&path, Some(NOBODY), None).expect("root may");
            let found = fs::symlink_metadata(&path).expect("it is there");
            assert_eq!((found.uid(), found.gid()), (NOBODY, gid));
        }
    }
}
