//! The socket's file: how it comes to be, and how it goes. Others never see it half made, and no file but
//! a dead process's socket is ever replaced.

use std::fmt;
use std::fs::{self, DirBuilder, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use super::client;
use super::path::Candidate;

/// How to listen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Options<'a> {
    /// This path is taken even if a process answers there: it is the one that hands over to us. From then on
    /// no command finds it any more.
    pub take_over: Option<&'a Path>,
}

/// Who may connect to a socket, by its file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::control) struct Access {
    /// Permission bits.
    pub(in crate::control) mode: u32,
    /// User and group that it is given to; `None` = it is the process's.
    pub(in crate::control) owner: Option<(u32, u32)>,
}

/// For nobody but the user of the process.
const PRIVATE: Access = Access {
    mode: 0o600,
    owner: None,
};

/// The file of a socket that is listened on. Dropping it removes the file, unless another process has
/// taken the path.
#[derive(Debug)]
pub(in crate::control) struct SocketFile {
    path: PathBuf,
    /// Device and inode. The number can't be used again while our socket is open.
    identity: (u64, u64),
}

impl SocketFile {
    /// Of a socket that another process has made and handed over; `identity` is device and inode.
    pub(in crate::control) fn inherited(path: PathBuf, identity: (u64, u64)) -> Self {
        Self { path, identity }
    }

    /// Device and inode.
    pub(in crate::control) fn identity(&self) -> (u64, u64) {
        self.identity
    }

    /// Another process goes on with it: the file stays.
    pub(in crate::control) fn leave(mut self) {
        // No file is at an empty path.
        self.path = PathBuf::new();
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Nobody has taken the path.
    pub(super) fn is_in_place(&self) -> bool {
        let found = fs::symlink_metadata(&self.path);
        found.is_ok_and(|found| identity(&found) == self.identity)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_in_place() {
            // Where we may not, the next process finds that nobody listens and replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

/// Listens where `candidate` says, in a folder that is made if need be.
pub(super) fn listen_in(
    candidate: &Candidate,
    options: Options<'_>,
) -> Result<(UnixListener, SocketFile), ListenError> {
    if let Some(folder) = candidate.path.parent() {
        let failed = |error| ListenError::at(folder, error);
        make(folder, candidate.folder_mode, None).map_err(failed)?;
    }
    listen(&candidate.path, options)
}

/// Makes the folder of the first candidate for a process that is about to become `owner` and can't then.
/// If that fails, the process finds it out when it listens.
pub(in crate::control) fn make_folder(candidate: &Candidate, owner: (u32, u32)) {
    if let Some(folder) = candidate.path.parent() {
        let _ = make(folder, candidate.folder_mode, Some(owner));
    }
}

/// Makes a folder if it isn't there. Its parent has to be: /run and the user's folder are the system's.
fn make(folder: &Path, mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    }
    // The umask may have taken something away.
    fs::set_permissions(folder, Permissions::from_mode(mode))?;
    match owner {
        Some((user, group)) => chown(folder, Some(user), Some(group)),
        None => Ok(()),
    }
}

/// Listens at `path`. The socket is made under another name and moved there when its permissions are
/// right, which also leaves no moment without a socket when one is replaced.
///
/// Of two processes that find nobody at the same time, the second one gets the path. Two with the same
/// configuration don't come here together: the addresses of their listeners keep them apart.
pub(super) fn listen(
    path: &Path,
    options: Options<'_>,
) -> Result<(UnixListener, SocketFile), ListenError> {
    listen_for(path, options, PRIVATE)
}

/// The same for those that `access` is for.
pub(in crate::control) fn listen_for(
    path: &Path,
    options: Options<'_>,
    access: Access,
) -> Result<(UnixListener, SocketFile), ListenError> {
    let failed = |error| ListenError::at(path, error);
    // The draft's name may be short enough where this one is not.
    SocketAddr::from_pathname(path).map_err(failed)?;
    may_replace(path, options.take_over == Some(path))?;
    let draft = draft_of(path);
    let listener = UnixListener::bind(&draft).map_err(failed)?;
    let moved = place(&draft, path, access);
    if moved.is_err() {
        // What is reported is why it can't stay.
        let _ = fs::remove_file(&draft);
    }
    let identity = moved.map_err(failed)?;
    let path = path.to_owned();
    Ok((listener, SocketFile { path, identity }))
}

/// Whether [`listen`] could. Nothing is left of the trial.
pub(super) fn try_out(path: &Path, options: Options<'_>) -> Result<(), ListenError> {
    let failed = |error| ListenError::at(path, error);
    SocketAddr::from_pathname(path).map_err(failed)?;
    may_replace(path, options.take_over == Some(path))?;
    let draft = draft_of(path);
    UnixListener::bind(&draft).map_err(failed)?;
    fs::remove_file(&draft).map_err(failed)
}

fn place(draft: &Path, path: &Path, access: Access) -> io::Result<(u64, u64)> {
    if let Some((user, group)) = access.owner {
        chown(draft, Some(user), Some(group))?;
    }
    fs::set_permissions(draft, Permissions::from_mode(access.mode))?;
    let identity = identity(&fs::symlink_metadata(draft)?);
    fs::rename(draft, path)?;
    Ok(identity)
}

/// A name in the same folder that nobody else uses; short, since a socket's path may have 107 bytes.
fn draft_of(path: &Path) -> PathBuf {
    static DRAFTS: AtomicU32 = AtomicU32::new(0);
    let number = DRAFTS.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".{:x}-{number:x}", process::id()))
}

/// Nothing is at `path`, or a socket on which nobody listens, or one that is to be taken over.
fn may_replace(path: &Path, take_over: bool) -> Result<(), ListenError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(ListenError::at(path, error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ListenError::NotASocket(path.to_owned()));
        }
        Ok(_) if take_over => return Ok(()),
        Ok(_) => {}
    }
    match client::connect(path).map_err(|error| (error.kind(), error)) {
        Err((io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound, _)) => Ok(()),
        // Its queue is full.
        Ok(_) | Err((io::ErrorKind::WouldBlock, _)) => Err(ListenError::InUse(path.to_owned())),
        Err((_, error)) => Err(ListenError::at(path, error)),
    }
}

/// Why there is no control socket.
#[derive(Debug)]
pub enum ListenError {
    /// Another process answers there.
    InUse(PathBuf),
    /// Something else is there.
    NotASocket(PathBuf),
    /// The system says no.
    System {
        /// The socket, or the folder that it should be in.
        path: PathBuf,
        /// As mkdir(2), bind(2), chmod(2), chown(2) or rename(2).
        error: io::Error,
    },
}

impl ListenError {
    fn at(path: &Path, error: io::Error) -> Self {
        let path = path.to_owned();
        Self::System { path, error }
    }
}

impl std::error::Error for ListenError {}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse(path) => write!(
                f,
                "another process answers at {}: give each its own runtime.control_socket",
                path.display()
            ),
            Self::NotASocket(path) => write!(
                f,
                "{} is there and no socket: name another path in runtime.control_socket",
                path.display()
            ),
            Self::System { path, error } => write!(f, "{}: {error}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Options<'static> {
        Options::default()
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    fn names(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn the_socket_is_its_owners_alone_and_goes_with_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let (_listener, file) = listen(&path, plain()).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!((file.path(), names(folder.path())), (&*path, 1));
        drop(file);
        assert_eq!(names(folder.path()), 0);
    }

    #[test]
    fn a_dead_processs_socket_is_replaced_and_a_live_ones_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        drop(UnixListener::bind(&path).unwrap());
        let live = listen(&path, plain()).unwrap();
        let error = listen(&path, plain()).unwrap_err();
        assert!(
            matches!(&error, ListenError::InUse(at) if *at == path),
            "{error}"
        );
        drop(live);
        listen(&path, plain()).unwrap();
    }

    #[test]
    fn no_file_that_is_no_socket_is_touched() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("a"), folder.path().join("b"));
        fs::write(&file, "precious").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for (path, take_over) in [(&file, false), (&file, true), (&link, false)] {
            let options = Options {
                take_over: take_over.then_some(path),
            };
            let error = listen(path, options).unwrap_err();
            assert!(matches!(error, ListenError::NotASocket(_)), "{error}");
            try_out(path, options).unwrap_err();
        }
        assert_eq!(fs::read_to_string(&link).unwrap(), "precious");
        assert_eq!(names(folder.path()), 2);
    }

    #[test]
    fn who_hands_over_leaves_the_path_to_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let (old_listener, old) = listen(&path, plain()).unwrap();
        let other = folder.path().join("b.sock");
        let options = Options {
            take_over: Some(&other),
        };
        try_out(&path, options).unwrap_err();
        listen(&path, options).unwrap_err();
        let options = Options {
            take_over: Some(&path),
        };
        try_out(&path, options).unwrap();
        assert_eq!(names(folder.path()), 1);
        let (new_listener, new) = listen(&path, options).unwrap();
        let _client = client::connect(&path).unwrap();
        drop((old, old_listener));
        new_listener.set_nonblocking(true).unwrap();
        new_listener.accept().expect("the new one has the client");
        assert_eq!(names(folder.path()), 1);
        drop(new);
        assert_eq!(names(folder.path()), 0);
    }

    #[test]
    fn a_folder_is_made_with_its_mode_but_not_its_parent() {
        let folder = tempfile::tempdir().unwrap();
        let candidate = |below: &str, folder_mode| Candidate {
            path: folder.path().join(below),
            folder_mode,
        };
        let (_listener, _file) = listen_in(&candidate("made/a.sock", 0o777), plain()).unwrap();
        assert_eq!(mode(&folder.path().join("made")), 0o777);
        let (_listener, _file) = listen_in(&candidate("made/b.sock", 0o700), plain()).unwrap();
        assert_eq!(mode(&folder.path().join("made")), 0o777, "it was there");
        let error = listen_in(&candidate("no/such/a.sock", 0o755), plain()).unwrap_err();
        assert!(
            error.to_string().contains("no/such: No such file"),
            "{error}"
        );
    }

    #[test]
    fn a_new_folder_is_given_to_who_will_use_it() {
        let folder = tempfile::tempdir().unwrap();
        let made = folder.path().join("made");
        // Who is not root can only give to itself.
        let is_root = rustix::process::geteuid().is_root();
        let owner = match is_root {
            true => (12_345, 23_456),
            false => (
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            ),
        };
        let candidate = Candidate {
            path: made.join("a.sock"),
            folder_mode: 0o755,
        };
        make_folder(&candidate, owner);
        let found = fs::symlink_metadata(made).unwrap();
        assert_eq!((found.uid(), found.gid()), owner);
    }

    #[test]
    fn a_path_that_is_too_long_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x".repeat(150));
        let error = listen(&path, plain()).unwrap_err();
        assert!(matches!(error, ListenError::System { .. }), "{error}");
        assert_eq!(names(folder.path()), 0);
    }
}
