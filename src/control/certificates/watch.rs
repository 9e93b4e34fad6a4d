//! The kernel's watches on folders (inotify(7)). A folder is watched by its inode: which one it is at a path
//! has to be found out again after every change.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::net::unix::pipe;

use super::links::Folders;

/// What comes from the kernel. For tokio it is a pipe's end: it waits for that, and reads nothing of it.
pub(super) struct Events {
    readable: pipe::Receiver,
    inotify: Arc<OwnedFd>,
}

/// Something has happened in a folder, or to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Event<'a> {
    watch: i32,
    /// What in the folder; `None` = the folder itself.
    name: Option<&'a OsStr>,
}

/// What is watched.
pub(super) struct Watches {
    inotify: Arc<OwnedFd>,
    /// By the kernel's number: names that matter.
    known: HashMap<i32, BTreeSet<OsString>>,
    /// Watches can't be had, which was told.
    lacking: bool,
}

impl Events {
    /// Of nothing yet. Runs within a runtime.
    ///
    /// # Errors
    /// As inotify_init1(2).
    pub(super) fn new() -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        Ok(Self {
            readable: pipe::Receiver::from_owned_fd_unchecked(inotify.try_clone()?)?,
            inotify: Arc::new(inotify),
        })
    }

    /// By which something can be watched; to be had once.
    pub(super) fn watches(&self) -> Watches {
        Watches {
            inotify: self.inotify.clone(),
            known: HashMap::new(),
            lacking: false,
        }
    }

    /// Waits for one that matters, and passes over all that have come until then. May be dropped and called
    /// again.
    pub(super) async fn next(&mut self, matters: impl Fn(&Event<'_>) -> bool) {
        loop {
            if self.readable.readable().await.is_err() {
                return std::future::pending().await;
            }
            let mut found = false;
            // What would block is waited for the next time.
            let _ = self.readable.try_io(|| {
                let taken = take(&self.inotify, &matters);
                found = taken.is_none_or(|found| found);
                taken.map_or(Ok(()), |_| Err(io::ErrorKind::WouldBlock.into()))
            });
            if found {
                return;
            }
        }
    }
}

/// Takes all that has come, and says whether anything of it matters; `None` if there was too much to tell.
fn take(inotify: &OwnedFd, matters: impl Fn(&Event<'_>) -> bool) -> Option<bool> {
    /// Nobody keeps the control thread busy by changing files.
    const AT_ONCE: usize = 1000;
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = Reader::new(inotify, &mut buffer);
    let mut found = false;
    for _ in 0..AT_ONCE {
        match events.next() {
            Ok(event) => {
                // A watch is gone: of that there was an event before, or we have removed it.
                let gone = event.events().contains(ReadFlags::IGNORED);
                let name = event.file_name();
                let event = Event {
                    watch: event.wd(),
                    name: name.map(|name| OsStr::from_bytes(name.to_bytes())),
                };
                found |= !gone && matters(&event);
            }
            Err(Errno::INTR) => {}
            Err(_) => return Some(found),
        }
    }
    None
}

/// What can happen to the names in a folder.
const NAMES: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVE)
    .union(CONTENT);
/// What can happen to a file.
const CONTENT: WatchFlags = WatchFlags::MODIFY
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB);
/// What can happen to anything.
const ITSELF: WatchFlags = WatchFlags::DELETE_SELF.union(WatchFlags::MOVE_SELF);

impl Watches {
    /// The event says something of what is watched.
    pub(super) fn is_about(&self, event: &Event<'_>) -> bool {
        match (self.known.get(&event.watch), event.name) {
            (Some(names), Some(name)) => names.contains(name),
            // Events were lost (-1), or something has happened to the folder.
            (known, None) => known.is_some() || event.watch < 0,
            (None, Some(_)) => false,
        }
    }

    /// Watches these folders and no other. They are asked for again after that, since they may have changed
    /// meanwhile.
    pub(super) fn renew(&mut self, folders: impl Fn() -> Folders) {
        /// Whoever changes links all the time is heard of by the watches there are.
        const TRIES: usize = 4;
        let mut wanted = folders();
        for _ in 0..TRIES {
            self.watch(&wanted);
            let now = folders();
            if now == wanted {
                return;
            }
            wanted = now;
        }
    }

    fn watch(&mut self, folders: &Folders) {
        let before = std::mem::take(&mut self.known);
        let mut lacking = false;
        for (folder, names) in folders {
            match self.add(folder, names) {
                // It is seen to be gone or forbidden by whoever reads the file.
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => {}
                Err(error) => {
                    lacking = true;
                    if !self.lacking {
                        let folder = folder.display();
                        tracing::warn!(%folder, %error, "a folder can't be watched for certificates, which are looked at now and then");
                    }
                }
            }
        }
        self.lacking = lacking;
        for watch in before.into_keys() {
            if !self.known.contains_key(&watch) {
                // It may have gone with what it watched.
                let _ = inotify::remove_watch(&self.inotify, watch);
            }
        }
    }

    fn add(&mut self, folder: &Path, names: &BTreeSet<OsString>) -> Result<(), Errno> {
        let what = if names.is_empty() {
            ITSELF
        } else {
            NAMES | ITSELF
        };
        match self.add_one(folder, what | WatchFlags::ONLYDIR, names) {
            // Who may enter a folder without reading it can watch what is in it.
            Err(Errno::ACCESS) => names.iter().try_for_each(|name| {
                let what = CONTENT | ITSELF | WatchFlags::DONT_FOLLOW;
                self.add_one(&folder.join(name), what, &BTreeSet::new())
            }),
            added => added,
        }
    }

    /// Two paths may lead to the same folder.
    fn add_one(
        &mut self,
        path: &Path,
        what: WatchFlags,
        names: &BTreeSet<OsString>,
    ) -> Result<(), Errno> {
        let mask = what | WatchFlags::MASK_ADD;
        let watch = inotify::add_watch(&self.inotify, path, mask)?;
        let known = self.known.entry(watch).or_default();
        known.extend(names.iter().cloned());
        Ok(())
    }
}
