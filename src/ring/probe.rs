//! What io_uring can do on this machine, found out by trying: distributions backport, so a version
//! number proves nothing. And why it can't be set up at all, told apart by cause.

mod trial;

use std::fmt;
use std::fs;
use std::io;

use io_uring::opcode;

use super::limits;
use trial::{Flag, Trial};

/// Something ringress would like the kernel to have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Feature {
    /// As the kernel's documentation calls it.
    pub name: &'static str,
    /// The first Linux with it.
    pub since: &'static str,
    /// What ringress does with it.
    pub wanted_for: &'static str,
    /// It is here.
    pub present: bool,
    /// What is worse without it.
    pub cost_of_absence: &'static str,
    /// There is no way round it.
    pub required: bool,
}

/// Tries everything on small rings that are gone afterwards.
///
/// # Errors
/// No ring can be set up, or the trials' own sockets can't.
pub fn probe() -> Result<Vec<Feature>, SetupError> {
    let trial = Trial::new()?;
    let mut features = setup_flags(&trial)?;
    features.extend(ring_abilities(&trial)?);
    features.extend(operations(&trial)?);
    features.extend(receiving(&trial)?);
    Ok(features)
}

/// Nothing required is missing.
pub fn is_sufficient(features: &[Feature]) -> bool {
    features.iter().all(|f| f.present || !f.required)
}

fn setup_flags(trial: &Trial) -> Result<Vec<Feature>, SetupError> {
    FLAGS
        .iter()
        .map(|&(flag, wanted)| {
            Ok(Feature {
                present: trial.takes_flag(flag)?,
                ..wanted
            })
        })
        .collect()
}

fn ring_abilities(trial: &Trial) -> Result<Vec<Feature>, SetupError> {
    Ok(vec![
        Feature {
            present: trial.parameters().is_feature_ext_arg(),
            ..EXT_ARG
        },
        Feature {
            present: trial.parameters().is_feature_nodrop(),
            ..NODROP
        },
        Feature {
            present: trial.parameters().is_feature_no_iowait(),
            ..NO_IOWAIT
        },
        Feature {
            present: trial.registers_ring_fd(),
            ..RING_FD
        },
        Feature {
            present: trial.takes_restrictions()?,
            ..RESTRICTIONS
        },
    ])
}

fn operations(trial: &Trial) -> Result<Vec<Feature>, SetupError> {
    let supported = trial.operations()?;
    Ok(OPERATIONS
        .iter()
        .map(|&(code, wanted)| Feature {
            present: supported.is_supported(code),
            ..wanted
        })
        .collect())
}

fn receiving(trial: &Trial) -> Result<Vec<Feature>, SetupError> {
    Ok(vec![
        Feature {
            present: trial.accepts_multishot()?,
            ..MULTISHOT_ACCEPT
        },
        Feature {
            present: trial.has_buffer_ring(),
            ..BUFFER_RING
        },
        Feature {
            present: trial.receives_multishot()?,
            ..MULTISHOT_RECV
        },
        Feature {
            present: trial.receives_within_budget()?,
            ..RECV_BUDGET
        },
    ])
}

/// Why io_uring can't be set up. `Display` is one line: what it is and what to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SetupError {
    /// ENOSYS: the kernel was built without it, or an old seccomp profile hides it.
    Missing,
    /// EPERM, and `kernel.io_uring_disabled` is not 0.
    Disabled {
        /// 1 = for unprivileged processes outside `kernel.io_uring_group`, 2 = for everybody.
        sysctl: u32,
    },
    /// EPERM, and the sysctl allows it: a seccomp profile, as containers have.
    Forbidden,
    /// ENOMEM: rings are charged to RLIMIT_MEMLOCK.
    LockedMemory {
        /// The limit in bytes; `None` = no limit, so that the machine's memory is short.
        limit: Option<u64>,
    },
    /// EMFILE: this process has too many descriptors open.
    Descriptors {
        /// The soft RLIMIT_NOFILE; `None` = no limit.
        limit: Option<u64>,
    },
    /// Anything else, as the kernel says it.
    Other {
        /// The errno; 0 when there was none.
        errno: i32,
    },
}

impl SetupError {
    /// The cause behind the errno of io_uring_setup(2) or of a ring's registrations.
    pub fn from_errno(errno: i32) -> Self {
        let sysctl = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
        Self::classify(errno, sysctl.as_deref())
    }

    fn classify(errno: i32, sysctl: Option<&str>) -> Self {
        match errno {
            libc::ENOSYS => Self::Missing,
            libc::EPERM => match sysctl.and_then(|text| text.trim().parse().ok()) {
                None | Some(0) => Self::Forbidden,
                Some(sysctl) => Self::Disabled { sysctl },
            },
            libc::ENOMEM => Self::LockedMemory {
                limit: limits::memlock_limit(),
            },
            libc::EMFILE => Self::Descriptors {
                limit: limits::nofile_limit().0,
            },
            errno => Self::Other { errno },
        }
    }
}

impl From<io::Error> for SetupError {
    fn from(error: io::Error) -> Self {
        Self::from_errno(error.raw_os_error().unwrap_or(0))
    }
}

impl std::error::Error for SetupError {}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str(
                "this kernel has no io_uring (ENOSYS): run Linux 6.1 or newer with CONFIG_IO_URING, \
                 and outside sandboxes that hide it",
            ),
            Self::Disabled { sysctl: 1 } => f.write_str(
                "io_uring is forbidden to unprivileged processes (kernel.io_uring_disabled = 1): set \
                 it to 0, or join the group named by kernel.io_uring_group",
            ),
            Self::Disabled { sysctl } => write!(
                f,
                "io_uring is switched off on this machine (kernel.io_uring_disabled = {sysctl}): set \
                 it to 0 with sysctl"
            ),
            Self::Forbidden => f.write_str(
                "io_uring is forbidden (EPERM) though the kernel has it: a container's seccomp \
                 profile; allow io_uring_setup, io_uring_enter and io_uring_register in it",
            ),
            Self::LockedMemory { limit: Some(limit) } => write!(
                f,
                "not enough lockable memory for a ring (RLIMIT_MEMLOCK is {} KiB): raise it, for \
                 instance with LimitMEMLOCK=infinity in the systemd unit or `ulimit -l`",
                limit / 1024
            ),
            Self::LockedMemory { limit: None } => f.write_str(
                "the kernel has no memory for a ring (ENOMEM), and RLIMIT_MEMLOCK is not the cause: \
                 free memory, or raise the cgroup's limit",
            ),
            Self::Descriptors { limit } => write!(
                f,
                "too many open descriptors for a ring (RLIMIT_NOFILE is {}): raise it, for instance \
                 with LimitNOFILE= in the systemd unit or `ulimit -n`",
                limit.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string())
            ),
            Self::Other { errno } => write!(
                f,
                "io_uring can't be set up: {}",
                io::Error::from_raw_os_error(*errno)
            ),
        }
    }
}

/// A feature that there is a way round, not looked for yet.
const fn wanted(
    name: &'static str,
    since: &'static str,
    wanted_for: &'static str,
    cost_of_absence: &'static str,
) -> Feature {
    Feature {
        name,
        since,
        wanted_for,
        present: false,
        cost_of_absence,
        required: false,
    }
}

/// A feature without which ringress can't run, not looked for yet.
const fn required(name: &'static str, since: &'static str, wanted_for: &'static str) -> Feature {
    Feature {
        name,
        since,
        wanted_for,
        present: false,
        cost_of_absence: "ringress can't run",
        required: true,
    }
}

const FLAGS: [(Flag, Feature); 7] = [
    (
        Flag::Sizes,
        required(
            "CQSIZE, CLAMP",
            "5.6",
            "a completion queue longer than the submission queue",
        ),
    ),
    (
        Flag::SubmitAll,
        wanted(
            "SUBMIT_ALL",
            "5.18",
            "a bad entry doesn't hold up the batch",
            "after a refused op the rest of the batch needs another system call",
        ),
    ),
    (
        Flag::SingleIssuer,
        wanted(
            "SINGLE_ISSUER",
            "6.0",
            "no locking at submission",
            "a lock per submission, and no DEFER_TASKRUN",
        ),
    ),
    (
        Flag::CoopTaskrun,
        wanted(
            "COOP_TASKRUN",
            "5.19",
            "no interrupt to report a completion",
            "inter-processor interrupts while a worker is busy",
        ),
    ),
    (
        Flag::ShowTaskrun,
        wanted(
            "TASKRUN_FLAG",
            "5.19",
            "seeing pending completions without a system call",
            "a system call to find out",
        ),
    ),
    (
        Flag::DeferTaskrun,
        wanted(
            "DEFER_TASKRUN",
            "6.1",
            "completions in batches, when the worker asks for them",
            "completions interrupt the worker; smaller batches, more CPU per request",
        ),
    ),
    (
        Flag::NoSqarray,
        wanted(
            "NO_SQARRAY",
            "6.6",
            "one indirection less per op",
            "one more cache line per batch; hardly measurable",
        ),
    ),
];

const EXT_ARG: Feature = required("EXT_ARG", "5.11", "waiting with the next timer's deadline");

const NODROP: Feature = required("NODROP", "5.5", "no completion lost when the queue is full");

const NO_IOWAIT: Feature = wanted(
    "NO_IOWAIT",
    "6.15",
    "idle workers that don't count as waiting for a disk",
    "idle workers show as iowait; cosmetic",
);

const RING_FD: Feature = wanted(
    "registered ring fd",
    "5.18",
    "no descriptor lookup per system call",
    "a few percent at tiny batches",
);

const RESTRICTIONS: Feature = wanted(
    "restrictions",
    "5.10",
    "rings that can do what the proxy does and nothing else",
    "a bug in the proxy could use any io_uring operation",
);

const OPERATIONS: [(u8, Feature); 9] = [
    (opcode::Accept::CODE, required("ACCEPT", "5.5", "clients")),
    (
        opcode::Connect::CODE,
        required("CONNECT", "5.5", "backends"),
    ),
    (opcode::Recv::CODE, required("RECV", "5.6", "receiving")),
    (
        opcode::RecvMsg::CODE,
        required("RECVMSG", "5.3", "receiving datagrams"),
    ),
    (opcode::Send::CODE, required("SEND", "5.6", "sending")),
    (
        opcode::SendMsg::CODE,
        required("SENDMSG", "5.3", "sending several buffers at once"),
    ),
    (
        opcode::Read::CODE,
        required("READ", "5.6", "waking a worker by eventfd"),
    ),
    (
        opcode::AsyncCancel::CODE,
        required("ASYNC_CANCEL", "5.5", "deadlines and closing"),
    ),
    (
        opcode::PollAdd::CODE,
        required("POLL_ADD", "5.1", "waiting for room to send"),
    ),
];

const MULTISHOT_ACCEPT: Feature = wanted(
    "multishot accept",
    "5.19",
    "one op for all clients of a listener",
    "an op per client",
);

const BUFFER_RING: Feature = required(
    "provided-buffer ring",
    "5.19",
    "buffers chosen when data is there, so that idle clients hold none",
);

const MULTISHOT_RECV: Feature = wanted(
    "multishot recv",
    "6.0",
    "one op for many received buffers",
    "an op per received buffer",
);

const RECV_BUDGET: Feature = wanted(
    "recv byte budget",
    "6.17",
    "multishot receive that stops when the other side is slow",
    "an op per received buffer",
);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::entry;
    use super::*;

    #[test]
    fn the_causes_of_a_failed_setup_are_told_apart() {
        use SetupError as E;
        assert_eq!(E::classify(libc::ENOSYS, None), E::Missing);
        assert_eq!(E::classify(libc::EPERM, None), E::Forbidden);
        assert_eq!(E::classify(libc::EPERM, Some("0\n")), E::Forbidden);
        assert_eq!(
            E::classify(libc::EPERM, Some("1\n")),
            E::Disabled { sysctl: 1 }
        );
        assert_eq!(
            E::classify(libc::EPERM, Some("2\n")),
            E::Disabled { sysctl: 2 }
        );
        assert!(matches!(
            E::classify(libc::ENOMEM, None),
            E::LockedMemory { .. }
        ));
        assert!(matches!(
            E::classify(libc::EMFILE, None),
            E::Descriptors { .. }
        ));
        assert_eq!(
            E::classify(libc::EINVAL, None),
            E::Other {
                errno: libc::EINVAL
            }
        );
    }

    #[test]
    fn every_cause_is_one_line_that_names_the_remedy() {
        let messages = [
            (SetupError::Missing, "CONFIG_IO_URING"),
            (SetupError::Disabled { sysctl: 1 }, "kernel.io_uring_group"),
            (
                SetupError::Disabled { sysctl: 2 },
                "kernel.io_uring_disabled = 2",
            ),
            (SetupError::Forbidden, "seccomp"),
            (SetupError::LockedMemory { limit: Some(65536) }, "64 KiB"),
            (SetupError::LockedMemory { limit: None }, "cgroup"),
            (SetupError::Descriptors { limit: Some(1024) }, "1024"),
            (
                SetupError::Other {
                    errno: libc::EINVAL,
                },
                "Invalid argument",
            ),
        ];
        for (error, part) in messages {
            let line = error.to_string();
            assert!(line.contains(part), "{line}");
            assert!(!line.contains('\n') && !line.contains("  "), "{line}");
        }
    }

    #[test]
    fn what_is_found_is_consistent() {
        let features = match probe() {
            Ok(features) => features,
            Err(error) => panic!("the tests need io_uring: {error}"),
        };
        let has = |name| {
            features
                .iter()
                .find(|f| f.name == name)
                .expect("the name is in the table")
                .present
        };
        assert!(is_sufficient(&features));
        assert!(!has("DEFER_TASKRUN") || has("SINGLE_ISSUER"));
        assert!(!has("recv byte budget") || has("multishot recv"));
        assert!(!has("multishot recv") || has("provided-buffer ring"));
    }

    #[test]
    fn every_operation_of_a_worker_is_asked_for() {
        let asked = OPERATIONS.map(|(code, _)| code);
        assert_eq!(BTreeSet::from(asked), BTreeSet::from(entry::SQE_OPERATIONS));
    }

    #[test]
    fn a_missing_requirement_is_insufficient_and_a_missing_wish_is_not() {
        assert!(!is_sufficient(&[BUFFER_RING]));
        assert!(is_sufficient(&[MULTISHOT_RECV]));
    }
}
