//! Who this process is towards the kernel: from root to the user that the configuration names, and what
//! is left of root's power. It owns the process's ids and capabilities, for the short time at the start
//! in which there is one thread; it never gives a power back, and binds nothing.
//!
//! ```text
//!   root ──drop_to──▶ user [+ CAP_NET_BIND_SERVICE] ──no_new_privileges──▶ can't become more ──can_read──▶
//!   user ────────────────────────────────────────────────────┘
//! ```
//!
//! Sockets are best bound after the drop: the kernel lets only sockets of the same user share a port
//! (SO_REUSEPORT), so what root has bound could not be joined by a worker that a later process adds.

use std::ffi::CString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::unistd::{
    Gid, Group, Uid, User, getgrouplist, getgroups, getresgid, getresuid, setgroups, setresgid,
    setresuid,
};
use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_ambient_set,
    clear_ambient_capability_set, configure_capability_in_ambient_set, set_capabilities,
    set_keep_capabilities, set_no_new_privs,
};

/// A user to become.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    uid: Uid,
    gid: Gid,
    /// Supplementary groups, ascending.
    groups: Vec<Gid>,
}

impl Identity {
    /// Whom `runtime.user` and `runtime.group` name, by name or number; the group is the user's own if it
    /// is not named. `None` = there is nothing to become: nobody is named, or this process is it already,
    /// as after an upgrade.
    ///
    /// # Errors
    /// There is no such user or group, it is root, or this process may not become it.
    pub fn resolve(user: Option<&str>, group: Option<&str>) -> Result<Option<Self>, Error> {
        let Some(user) = user else {
            return group.map_or(Ok(None), |_| Err(Error::GroupWithoutUser));
        };
        let identity = Self::look_up(user, group)?;
        if identity.uid.is_root() {
            return Err(Error::Root);
        }
        let (uids, gids) = (getresuid(), getresgid());
        let (uids, gids) = (
            uids.map_err(Error::at("asking for the user"))?,
            gids.map_err(Error::at("asking for the group"))?,
        );
        if identity.has_ids(&uids, &gids) {
            Ok(None)
        } else if uids.effective.is_root() {
            Ok(Some(identity))
        } else {
            Err(Error::NotRoot {
                wanted: identity.to_string(),
                is: current(),
            })
        }
    }

    /// Numbers of the user and of its group.
    pub fn ids(&self) -> (u32, u32) {
        (self.uid.as_raw(), self.gid.as_raw())
    }

    fn look_up(user: &str, group: Option<&str>) -> Result<Self, Error> {
        let number = number(user).map(Uid::from_raw);
        let found = match number {
            Some(uid) => User::from_uid(uid),
            None => User::from_name(user),
        };
        let found = found.map_err(Error::at("looking up the user"))?;
        let uid = found.as_ref().map(|user| user.uid).or(number);
        let uid = uid.ok_or_else(|| Error::UnknownUser(user.to_owned()))?;
        let gid = match (group, &found) {
            (Some(group), _) => look_up_group(group)?,
            (None, Some(found)) => found.gid,
            (None, None) => return Err(Error::NoGroup(user.to_owned())),
        };
        let mut groups = match found.map(|found| CString::new(found.name)) {
            Some(Ok(name)) => {
                getgrouplist(&name, gid).map_err(Error::at("looking up the user's groups"))?
            }
            _ => vec![gid],
        };
        settle(&mut groups);
        Ok(Self { uid, gid, groups })
    }

    fn has_ids(&self, uids: &nix::unistd::ResUid, gids: &nix::unistd::ResGid) -> bool {
        [uids.real, uids.effective, uids.saved] == [self.uid; 3]
            && [gids.real, gids.effective, gids.saved] == [self.gid; 3]
    }
}

impl fmt::Display for Identity {
    /// `name (uid 1, gid 1)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { uid, gid, .. } = self;
        match User::from_uid(*uid) {
            Ok(Some(user)) => write!(f, "{} (uid {uid}, gid {gid})", user.name),
            _ => write!(f, "uid {uid}, gid {gid}"),
        }
    }
}

fn look_up_group(group: &str) -> Result<Gid, Error> {
    if let Some(number) = number(group) {
        return Ok(Gid::from_raw(number));
    }
    let found = Group::from_name(group).map_err(Error::at("looking up the group"))?;
    let found = found.ok_or_else(|| Error::UnknownGroup(group.to_owned()))?;
    Ok(found.gid)
}

/// An id as a number. The highest one means "leave it as it is" to the kernel.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    let number = text.parse().ok().filter(|_| digits);
    number.filter(|&number| number != u32::MAX)
}

fn settle(groups: &mut Vec<Gid>) {
    groups.sort_by_key(|group| group.as_raw());
    groups.dedup();
}

/// Becomes `identity` for good, and checks that it has. Of root's capabilities nothing stays but, with
/// `keep_bind`, CAP_NET_BIND_SERVICE; it is ambient then, so that the exec of an upgrade keeps it.
///
/// The process is dumpable afterwards, as one that was started as this user is, and as the next one is
/// after an upgrade: /proc/self belongs to it, and whether it leaves a core is up to RLIMIT_CORE. What it
/// has read that the user can't read is none of its business, see [`can_read`]. The secure bits stay:
/// they say what becomes of a process that turns root, and this one can't.
///
/// # Errors
/// Another thread exists (the kernel keeps capabilities per thread), or the kernel refuses a step. The
/// process is neither one nor the other then, and has to end.
pub fn drop_to(identity: &Identity, keep_bind: bool) -> Result<(), Error> {
    let kept = if keep_bind {
        CapabilitySet::NET_BIND_SERVICE
    } else {
        CapabilitySet::empty()
    };
    only_thread()?;
    set_keep_capabilities(keep_bind).map_err(Error::at("PR_SET_KEEPCAPS"))?;
    setgroups(&identity.groups).map_err(Error::at("setgroups"))?;
    let Identity { uid, gid, .. } = *identity;
    setresgid(gid, gid, gid).map_err(Error::at("setresgid"))?;
    setresuid(uid, uid, uid).map_err(Error::at("setresuid"))?;
    set_capabilities(None, only(kept)).map_err(Error::at("capset"))?;
    clear_ambient_capability_set().map_err(Error::at("PR_CAP_AMBIENT_CLEAR_ALL"))?;
    if keep_bind {
        configure_capability_in_ambient_set(kept, true)
            .map_err(Error::at("PR_CAP_AMBIENT_RAISE"))?;
    }
    set_keep_capabilities(false).map_err(Error::at("PR_SET_KEEPCAPS"))?;
    set_dumpable_behavior(DumpableBehavior::Dumpable).map_err(Error::at("PR_SET_DUMPABLE"))?;
    verify(identity, kept)
}

fn only(set: CapabilitySet) -> CapabilitySets {
    CapabilitySets {
        effective: set,
        permitted: set,
        inheritable: set,
    }
}

fn verify(identity: &Identity, kept: CapabilitySet) -> Result<(), Error> {
    let asking = "asking who we are";
    let uids = getresuid().map_err(Error::at(asking))?;
    let gids = getresgid().map_err(Error::at(asking))?;
    let mut groups = getgroups().map_err(Error::at(asking))?;
    settle(&mut groups);
    let capabilities = capabilities(None).map_err(Error::at(asking))?;
    let ambient = capability_is_in_ambient_set(CapabilitySet::NET_BIND_SERVICE);
    let ambient = ambient.map_err(Error::at(asking))?;
    let root = Uid::from_raw(0);
    for (holds, what) in [
        (identity.has_ids(&uids, &gids), "the ids are others"),
        (groups == identity.groups, "the groups are others"),
        (capabilities == only(kept), "the capabilities are others"),
        (
            ambient != kept.is_empty(),
            "the ambient capabilities are others",
        ),
        (
            setresuid(root, root, root).is_err(),
            "root can be had again",
        ),
    ] {
        if !holds {
            return Err(Error::NotDropped(what));
        }
    }
    Ok(())
}

/// From now on neither this process nor what it executes can gain a privilege: bits and capabilities of
/// files give nothing. A user's CAP_NET_BIND_SERVICE (of the service manager or of the file) becomes
/// ambient before, so that an upgrade keeps it even if the new file lacks it.
///
/// # Errors
/// Another thread exists, or the kernel refuses.
pub fn no_new_privileges() -> Result<(), Error> {
    only_thread()?;
    if !Uid::effective().is_root() {
        keep_bind()?;
    }
    set_no_new_privs(true).map_err(Error::at("PR_SET_NO_NEW_PRIVS"))
}

/// Leaves what is ambient already alone: capset may be forbidden where the service manager has seen to it.
fn keep_bind() -> Result<(), Error> {
    let bind = CapabilitySet::NET_BIND_SERVICE;
    let mut sets = capabilities(None).map_err(Error::at("capget"))?;
    let ambient = capability_is_in_ambient_set(bind);
    if ambient.map_err(Error::at("PR_CAP_AMBIENT_IS_SET"))? || !sets.permitted.contains(bind) {
        return Ok(());
    }
    sets.inheritable |= bind;
    sets.effective |= bind;
    set_capabilities(None, sets).map_err(Error::at("capset"))?;
    configure_capability_in_ambient_set(bind, true).map_err(Error::at("PR_CAP_AMBIENT_RAISE"))
}

fn only_thread() -> Result<(), Error> {
    let tasks = fs::read_dir("/proc/self/task").map_err(Error::at("counting threads"))?;
    match tasks.count() {
        1 => Ok(()),
        threads => Err(Error::Threads(threads)),
    }
}

/// Whether one of these ports may be bound with CAP_NET_BIND_SERVICE only. Port 0 may by anybody.
pub fn needs_bind_capability(ports: impl IntoIterator<Item = u16>) -> bool {
    let first = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        .ok()
        .and_then(|text| text.trim().parse().ok());
    any_below(first.unwrap_or(1024), ports)
}

fn any_below(first_unprivileged: u16, ports: impl IntoIterator<Item = u16>) -> bool {
    ports
        .into_iter()
        .any(|port| (1..first_unprivileged).contains(&port))
}

/// Opens every file once, as the user that this process is by now: what only root can read is an error at
/// the start, and not at the next reload.
///
/// # Errors
/// The first file that can't be read.
pub fn can_read(paths: impl IntoIterator<Item = impl AsRef<Path>>) -> Result<(), Error> {
    paths.into_iter().try_for_each(|path| {
        let path = path.as_ref();
        readable(path).map_err(|error| Error::Unreadable {
            path: path.to_owned(),
            user: current(),
            error,
        })
    })
}

fn readable(path: &Path) -> io::Result<()> {
    // Non-blocking: a pipe would wait for its writer.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = fs::File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if file.metadata()?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok(())
}

/// Who this process is, for messages.
fn current() -> String {
    Identity {
        uid: Uid::effective(),
        gid: Gid::effective(),
        groups: Vec::new(),
    }
    .to_string()
}

/// Why the process can't become or stay who it should be.
#[derive(Debug)]
pub enum Error {
    /// `runtime.user` is neither a name in the user database nor a number.
    UnknownUser(String),
    /// `runtime.group` is neither a name in the group database nor a number.
    UnknownGroup(String),
    /// `runtime.user` is a number that the user database doesn't have, so that it has no group of its own.
    NoGroup(String),
    /// `runtime.group` alone.
    GroupWithoutUser,
    /// `runtime.user` is root.
    Root,
    /// This process is somebody else and may not change that.
    NotRoot {
        /// Whom the configuration names.
        wanted: String,
        /// Who it is.
        is: String,
    },
    /// There is more than this one thread; how many there are.
    Threads(usize),
    /// The system refuses a step.
    Refused {
        /// What was tried.
        step: &'static str,
        /// Its answer.
        error: io::Error,
    },
    /// Every step went well, and yet it isn't so; what isn't.
    NotDropped(&'static str),
    /// The user can't read a file.
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Who tried.
        user: String,
        /// As open(2).
        error: io::Error,
    },
}

impl Error {
    fn at<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Refused {
            step,
            error: error.into(),
        }
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownUser(user) => write!(
                f,
                "runtime.user: there is no user \"{user}\"; create it \
                 (`useradd --system --shell /usr/sbin/nologin {user}`) or name another"
            ),
            Self::UnknownGroup(group) => write!(
                f,
                "runtime.group: there is no group \"{group}\"; create it (`groupadd --system {group}`), \
                 or leave it out for the user's own"
            ),
            Self::NoGroup(uid) => write!(
                f,
                "runtime.user: the user database doesn't have {uid}, so its group isn't known; \
                 name it with runtime.group"
            ),
            Self::GroupWithoutUser => f.write_str("runtime.group needs runtime.user"),
            Self::Root => f.write_str(
                "runtime.user is root: name an unprivileged user, or leave it out to stay root",
            ),
            Self::NotRoot { wanted, is } => write!(
                f,
                "runtime.user: this process is {is} and can't become {wanted}; start it as root or as \
                 that user, or leave runtime.user out"
            ),
            Self::Threads(threads) => write!(
                f,
                "privileges can be dropped by a process of one thread only, and there are {threads}"
            ),
            Self::Refused { step, error } => write!(
                f,
                "can't drop privileges: {step}: {error}{}",
                if error.kind() == io::ErrorKind::PermissionDenied {
                    "; it takes CAP_SETUID and CAP_SETGID, and CAP_NET_BIND_SERVICE for a low port"
                } else {
                    ""
                }
            ),
            Self::NotDropped(what) => write!(f, "privileges were dropped in vain: {what}"),
            Self::Unreadable { path, user, error } => write!(
                f,
                "{}: {user} can't read it: {error}{}",
                path.display(),
                if error.kind() == io::ErrorKind::PermissionDenied {
                    "; give it to that user's group (`chgrp`, `chmod g+r`; `namei -l` shows which folder \
                     is in the way)"
                } else {
                    ""
                }
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_ports_need_the_capability() {
        assert!(any_below(1024, [8080, 443]));
        assert!(any_below(1024, [1023]));
        assert!(!any_below(1024, [1024, 0]));
        assert!(!any_below(0, [1, 80]));
        assert!(!any_below(1024, []));
    }

    #[test]
    fn ids_are_numbers_but_for_the_one_that_means_nothing() {
        assert_eq!(number("0"), Some(0));
        assert_eq!(number("65534"), Some(65534));
        for text in ["", "-1", "+1", "nobody", "1x", "4294967295", "4294967296"] {
            assert_eq!(number(text), None, "{text:?}");
        }
    }

    #[test]
    fn nobody_named_is_nothing_to_do_and_a_group_alone_an_error() {
        assert!(matches!(Identity::resolve(None, None), Ok(None)));
        let alone = Identity::resolve(None, Some("0"));
        assert!(matches!(alone, Err(Error::GroupWithoutUser)), "{alone:?}");
    }

    #[test]
    fn unknown_names_say_what_to_do() {
        let said = |user, group| {
            let outcome = Identity::resolve(Some(user), group);
            outcome.expect_err("there is none").to_string()
        };
        assert!(said("no such user", None).contains("useradd"));
        assert!(said("4294967295", None).contains("no user"));
        assert!(said("4000000000", None).contains("runtime.group"));
        assert!(said("4000000000", Some("no such group")).contains("groupadd"));
        assert!(said("root", None).contains("root"));
        assert!(said("0", Some("4000000000")).contains("root"));
    }

    #[test]
    fn a_process_with_threads_keeps_its_privileges() {
        // The harness has one for this test and one of its own.
        let outcome = no_new_privileges();
        assert!(matches!(outcome, Err(Error::Threads(2..))), "{outcome:?}");
    }

    #[test]
    fn files_are_read_and_folders_and_gaps_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key.pem");
        fs::write(&file, "key").unwrap();
        can_read([&file]).unwrap();
        let gap = folder.path().join("gap.pem");
        let said = can_read([&file, &gap]).unwrap_err().to_string();
        assert!(said.contains("gap.pem") && said.contains("uid"), "{said}");
        let said = can_read([folder.path()]).unwrap_err().to_string();
        assert!(said.contains("directory"), "{said}");
    }
}
