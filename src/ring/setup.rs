//! How a worker's ring is set up: with the flags that the kernel takes, disabled at first, and with an
//! allow-list before it is enabled. It knows nothing of what a ring is used for.

use std::io;

use io_uring::IoUring;

use super::entry;

/// How a ring is set up.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Entries of the submission queue.
    pub submissions: u32,
    /// Entries of the completion queue; halved down to 2,048 where memlock is short.
    pub completions: u32,
    /// Receive buffers at most.
    pub buffers: usize,
    /// Kernel features to do without, as older kernels would.
    pub without: Without,
}

/// Optional kernel features that can be left unused, so that the ways round them stay tested.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Without {
    /// Multishot receive with a byte budget (Linux 6.17).
    pub recv_budget: bool,
    /// Multishot accept (5.19).
    pub multishot_accept: bool,
    /// DEFER_TASKRUN (6.1), with SINGLE_ISSUER (6.0).
    pub defer_taskrun: bool,
    /// NO_SQARRAY (6.6).
    pub no_sqarray: bool,
    /// NO_IOWAIT (6.15).
    pub no_iowait: bool,
    /// The allow-list of operations (5.10).
    pub restrictions: bool,
}

impl Without {
    /// Parses a comma-separated list of the names of the fields.
    ///
    /// # Errors
    /// The first name that is none.
    pub fn parse(list: &str) -> Result<Self, String> {
        let mut without = Self::default();
        for name in list
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
        {
            match name {
                "recv_budget" => without.recv_budget = true,
                "multishot_accept" => without.multishot_accept = true,
                "defer_taskrun" => without.defer_taskrun = true,
                "no_sqarray" => without.no_sqarray = true,
                "no_iowait" => without.no_iowait = true,
                "restrictions" => without.restrictions = true,
                unknown => return Err(unknown.to_owned()),
            }
        }
        Ok(without)
    }
}

impl Default for Setup {
    /// What a worker gets: batching is at its best from 32 submissions on, and multishot ops
    /// complete far more often than they are submitted.
    fn default() -> Self {
        Self {
            submissions: 1024,
            completions: 8192,
            buffers: 4096,
            without: Without::default(),
        }
    }
}

/// The least completion queue that is still tried when memlock is short.
const LEAST_COMPLETIONS: u32 = 2048;

/// IORING_ENTER_REGISTERED_RING (Linux 5.18).
pub(super) const ENTER_REGISTERED_RING: u32 = 1 << 4;

/// IORING_REGISTER_RING_FDS.
const REGISTER_RING_FDS: u32 = 20;
/// IORING_UNREGISTER_RING_FDS.
pub(super) const UNREGISTER_RING_FDS: u32 = 21;

/// `struct io_uring_rsrc_update` (uapi/linux/io_uring.h).
#[repr(C)]
struct Update {
    offset: u32,
    reserved: u32,
    data: u64,
}

/// A ring that is registered with the calling thread, so that entering it needs no look-up of a descriptor. It
/// lives as long as this, and no longer: to be dropped before it on the same thread.
pub(super) struct Registered {
    ring: i32,
    pub(super) index: i32,
}

impl Registered {
    /// `None` where that can't be had.
    pub(super) fn new(ring: i32) -> Option<Self> {
        let mut update = Update {
            offset: u32::MAX,
            reserved: 0,
            data: u64::try_from(ring).ok()?,
        };
        let done = register(ring, REGISTER_RING_FDS, &mut update);
        let index = i32::try_from(update.offset).ok()?;
        done.then_some(Self { ring, index })
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut update = Update {
            offset: self.index as u32,
            reserved: 0,
            data: 0,
        };
        // Should it fail, the ring ends with the thread.
        register(self.ring, UNREGISTER_RING_FDS, &mut update);
    }
}

/// One register op on one entry; whether the kernel has done it.
fn register(ring: i32, op: u32, update: &mut Update) -> bool {
    // SAFETY: the kernel reads and writes one Update, and `update` is one.
    let done = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring,
            op,
            std::ptr::from_mut(update),
            1u32,
        )
    };
    done == 1
}

/// Sets a ring up that is disabled until [`enable`], with fewer flags each time the kernel says EINVAL and with a shorter completion
/// queue each time it says ENOMEM. Tells whether DEFER_TASKRUN was obtained.
pub(super) fn build(setup: &Setup) -> io::Result<(IoUring, bool)> {
    let without = setup.without;
    let mut no_sqarray = !without.no_sqarray;
    let mut cooperative = true;
    let mut deferred = !without.defer_taskrun;
    let mut completions = setup.completions;
    loop {
        let mut builder = IoUring::builder();
        builder
            .setup_r_disabled()
            .setup_submit_all()
            .setup_clamp()
            .setup_cqsize(completions);
        if no_sqarray {
            builder.setup_no_sqarray();
        }
        if cooperative {
            builder.setup_coop_taskrun().setup_taskrun_flag();
        }
        if deferred {
            builder.setup_single_issuer().setup_defer_taskrun();
        }
        let error = match builder.build(setup.submissions) {
            Ok(ring) => return Ok((ring, deferred)),
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::EINVAL) if no_sqarray => no_sqarray = false,
            Some(libc::EINVAL) if cooperative => cooperative = false,
            Some(libc::EINVAL) if deferred => deferred = false,
            Some(libc::ENOMEM) if completions > LEAST_COMPLETIONS => completions /= 2,
            _ => return Err(error),
        }
    }
}

/// Registers the allow-list with a ring that is still disabled; false where the kernel has none. It
/// can't be widened later, and registrations are not on it: buffers and the ring itself go first.
pub(super) fn restrict(ring: &IoUring) -> io::Result<bool> {
    match ring
        .submitter()
        .register_restrictions(&mut entry::allowed())
    {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

/// From here on the ring takes ops. With SINGLE_ISSUER it belongs to the calling thread.
pub(super) fn enable(ring: &IoUring) -> io::Result<()> {
    ring.submitter().register_enable_rings()
}
