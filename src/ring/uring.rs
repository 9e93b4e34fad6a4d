//! The real kernel: one io_uring, its provided-buffer ring, and the direct socket calls.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::types::{BufRingEntry, CancelBuilder, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, types};

use super::buffers::MOST_BUFFERS;
use super::driver::{Capabilities, Driver, PipeEnds, Shutdown, SocketOptions};
use super::mapping::Mapping;
use super::net;
use super::op::{Completion, Fd, Op, Token};
use crate::address::Address;
use crate::time::Instant;

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

/// The driver of a worker. It belongs to the thread that made it.
pub struct Uring {
    ring: IoUring,
    /// Entries that found the submission queue full while the kernel would take none.
    waiting: VecDeque<Entry>,
    buffers: BufferRing,
    capabilities: Capabilities,
    /// What io_uring_enter(2) is called with: the registered ring's index, or the descriptor.
    enter_fd: i32,
    wait_flags: u32,
    /// DEFER_TASKRUN was obtained.
    deferred: bool,
}

/// `struct io_uring_getevents_arg` (uapi/linux/io_uring.h).
#[repr(C)]
struct WaitArguments {
    signals: u64,
    signals_bytes: u32,
    least_wait_us: u32,
    time: *const Timespec,
}

impl Default for WaitArguments {
    fn default() -> Self {
        Self {
            signals: 0,
            signals_bytes: 0,
            least_wait_us: 0,
            time: std::ptr::null(),
        }
    }
}

/// The one buffer group of a ring.
const GROUP: u16 = 0;
/// The least completion queue that is still tried when memlock is short.
const LEAST_COMPLETIONS: u32 = 2048;

impl Uring {
    /// Sets up a ring of the calling thread; flags that the kernel refuses are left out.
    ///
    /// # Errors
    /// As io_uring_setup(2): ENOSYS, EPERM, ENOMEM (memlock), EMFILE; EINVAL where provided
    /// buffers are missing (Linux before 5.19).
    pub fn new(setup: &Setup) -> io::Result<Self> {
        let (ring, deferred) = build(setup)?;
        let entries = setup.buffers.clamp(1, MOST_BUFFERS).next_power_of_two();
        let buffers = BufferRing::register(&ring, entries as u16)?;
        let mut wait_flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        if ring.params().is_feature_no_iowait() && !setup.without.no_iowait {
            wait_flags |= EnterFlags::NO_IOWAIT;
        }
        let (enter_fd, registered) = match register_ring(ring.as_raw_fd()) {
            Some(index) => (index, ENTER_REGISTERED_RING),
            None => (ring.as_raw_fd(), 0),
        };
        let capabilities = Capabilities {
            multishot_recv: true,
            recv_budget: !setup.without.recv_budget,
            multishot_accept: !setup.without.multishot_accept,
        };
        let mut uring = Self {
            ring,
            waiting: VecDeque::new(),
            buffers,
            capabilities,
            enter_fd,
            wait_flags: wait_flags.bits() | registered,
            deferred,
        };
        uring.capabilities.recv_budget &= uring.takes_recv_budget()?;
        Ok(uring)
    }

    /// Tries a budgeted receive on no descriptor: a kernel that knows the budget says EBADF, one
    /// that doesn't says EINVAL while preparing the op.
    fn takes_recv_budget(&mut self) -> io::Result<bool> {
        let op = Op::Recv {
            fd: Fd(-1),
            budget: Some(1),
            multishot: true,
            poll_first: false,
        };
        // SAFETY: a receive has no memory of its own.
        unsafe { self.push(op, Token::from_u64(0)) };
        let mut completions = Vec::new();
        while completions.is_empty() {
            self.turn(None, 1, &mut completions)?;
        }
        Ok(completions[0].result == -libc::EBADF)
    }

    fn enqueue(&mut self, entry: Entry) {
        // SAFETY: `Driver::push` passes its own contract on: what the entry points to outlives the op.
        if self.waiting.is_empty() && unsafe { self.ring.submission().push(&entry) }.is_ok() {
            return;
        }
        self.waiting.push_back(entry);
        // The queue is full: hand it over now. If the kernel takes none, the next turn tries again.
        let _ = self.ring.submit();
        self.refill();
    }

    fn refill(&mut self) {
        let mut queue = self.ring.submission();
        while let Some(entry) = self.waiting.front() {
            // SAFETY: as in `enqueue`.
            if unsafe { queue.push(entry) }.is_err() {
                return;
            }
            self.waiting.pop_front();
        }
    }

    fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        let (_, mut submissions, completions) = self.ring.split();
        submissions.sync();
        let queued = submissions.len();
        let least = usize::from(completions.is_empty() && wait != Some(Duration::ZERO));
        let time = wait.map(Timespec::from);
        let arguments = WaitArguments {
            time: time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
            ..WaitArguments::default()
        };
        // SAFETY: `arguments` and the timespec it points to live until the call returns, and the
        // length is that of `arguments`.
        let entered = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.enter_fd,
                queued,
                least,
                self.wait_flags,
                &raw const arguments,
                size_of_val(&arguments),
            )
        };
        if entered >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // The time is over, a signal came, or completions have to be taken first.
            Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
            _ => Err(error),
        }
    }
}

/// IORING_ENTER_REGISTERED_RING (Linux 5.18).
const ENTER_REGISTERED_RING: u32 = 1 << 4;

/// Registers the ring with the calling thread, so that entering it needs no look-up of a
/// descriptor; `None` where that can't be had. The kernel forgets it when the thread ends.
fn register_ring(ring: i32) -> Option<i32> {
    /// IORING_REGISTER_RING_FDS.
    const REGISTER_RING_FDS: u32 = 20;
    /// `struct io_uring_rsrc_update` (uapi/linux/io_uring.h).
    #[repr(C)]
    struct Update {
        offset: u32,
        reserved: u32,
        data: u64,
    }
    let mut update = Update {
        offset: u32::MAX,
        reserved: 0,
        data: u64::try_from(ring).ok()?,
    };
    // SAFETY: the kernel reads and writes one Update, and `update` is one.
    let registered = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring,
            REGISTER_RING_FDS,
            &raw mut update,
            1u32,
        )
    };
    if registered == 1 {
        i32::try_from(update.offset).ok()
    } else {
        None
    }
}

impl Driver for Uring {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn most_buffers(&self) -> usize {
        usize::from(self.buffers.mask) + 1
    }

    fn now(&mut self) -> Instant {
        now()
    }

    unsafe fn push(&mut self, op: Op, token: Token) {
        self.enqueue(entry(op).user_data(token.as_u64()));
    }

    fn turn(
        &mut self,
        wait: Option<Duration>,
        max: usize,
        out: &mut Vec<Completion>,
    ) -> io::Result<()> {
        self.buffers.publish();
        self.refill();
        let wait = if self.waiting.is_empty() {
            wait
        } else {
            Some(Duration::ZERO)
        };
        self.enter(wait)?;
        let mut completions = self.ring.completion();
        completions.sync();
        out.extend(
            completions
                .by_ref()
                .take(max)
                .map(|entry| completion(&entry)),
        );
        Ok(())
    }

    unsafe fn provide(&mut self, buffer: u16, start: NonNull<u8>, len: u32) {
        self.buffers.add(buffer, start, len);
    }

    /// With DEFER_TASKRUN the kernel works for a ring only within its own enter.
    fn is_quiescent(&mut self) -> bool {
        let overflown = self.ring.submission().cq_overflow();
        self.deferred && !overflown && self.ring.completion().is_empty()
    }

    fn open(
        &mut self,
        to: &Address,
        source: Option<IpAddr>,
        options: &SocketOptions,
    ) -> io::Result<Fd> {
        net::open(to, source, options)
    }

    fn connect_unix(&mut self, fd: Fd, address: &Address) -> io::Result<()> {
        net::connect_unix(fd, address)
    }

    fn accept_now(&mut self, fd: Fd) -> io::Result<Fd> {
        net::accept_now(fd)
    }

    fn loses_ends(&mut self, fd: Fd) -> bool {
        net::is_unix(fd)
    }

    fn peer(&mut self, fd: Fd) -> io::Result<Option<SocketAddr>> {
        net::peer(fd)
    }

    fn open_pipe(&mut self) -> io::Result<PipeEnds> {
        net::open_pipe()
    }

    fn splice(&mut self, from: Fd, to: Fd, most: u32) -> io::Result<u32> {
        net::splice(from, to, most)
    }

    fn shutdown(&mut self, fd: Fd, how: Shutdown) {
        net::shutdown(fd, how);
    }

    fn linger_zero(&mut self, fd: Fd) {
        net::linger_zero(fd);
    }

    fn unacknowledged(&mut self, fd: Fd) -> u32 {
        net::unacknowledged(fd)
    }

    fn progress(&mut self, fd: Fd) -> u64 {
        net::progress(fd)
    }

    fn is_gone(&mut self, fd: Fd) -> bool {
        net::is_gone(fd)
    }

    fn close(&mut self, fd: Fd) {
        net::close(fd);
    }
}

/// The monotonic clock, counted from the first time it was asked: the time of all workers that run on
/// the kernel's ring, for those who leave them instants in shared state.
pub fn now() -> Instant {
    static START: OnceLock<std::time::Instant> = OnceLock::new();
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the driver that reads the clock"
    )]
    let now = std::time::Instant::now();
    let nanos = now
        .saturating_duration_since(*START.get_or_init(|| now))
        .as_nanos();
    Instant::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

fn completion(entry: &cqueue::Entry) -> Completion {
    let flags = entry.flags();
    Completion {
        token: Token::from_u64(entry.user_data()),
        result: entry.result(),
        more: cqueue::more(flags),
        buffer: cqueue::buffer_select(flags),
        nonempty: cqueue::sock_nonempty(flags),
    }
}

fn entry(op: Op) -> Entry {
    const STREAM: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    match op {
        Op::AcceptMulti { fd } => opcode::AcceptMulti::new(types::Fd(fd.0))
            .flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)
            .build(),
        Op::Accept { fd } => {
            opcode::Accept::new(types::Fd(fd.0), std::ptr::null_mut(), std::ptr::null_mut())
                .flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)
                .build()
        }
        Op::Recv {
            fd,
            budget,
            multishot: true,
            poll_first,
        } => {
            let entry = opcode::RecvMulti::new(types::Fd(fd.0), GROUP).build();
            with_receive_fields(entry, poll_first, budget.unwrap_or(0))
        }
        Op::Recv { fd, poll_first, .. } => {
            let entry = opcode::Recv::new(types::Fd(fd.0), std::ptr::null_mut(), 0)
                .buf_group(GROUP)
                .build();
            with_receive_fields(
                entry.flags(io_uring::squeue::Flags::BUFFER_SELECT),
                poll_first,
                0,
            )
        }
        Op::Send { fd, data, len } => opcode::Send::new(types::Fd(fd.0), data, len)
            .flags(STREAM)
            .build(),
        Op::SendVectored { fd, message } => opcode::SendMsg::new(types::Fd(fd.0), message)
            .flags(STREAM as u32)
            .build(),
        Op::WaitForRoom { fd } => {
            opcode::PollAdd::new(types::Fd(fd.0), libc::POLLOUT as u32).build()
        }
        Op::WaitForData { fd } => {
            opcode::PollAdd::new(types::Fd(fd.0), libc::POLLIN as u32).build()
        }
        Op::Connect { fd, address } => {
            // SAFETY: the contract of `Driver::push`: the address lives until the last completion.
            let address = unsafe { &*address };
            opcode::Connect::new(types::Fd(fd.0), address.as_ptr().cast(), address.len()).build()
        }
        Op::ReadEvent { fd, counter } => {
            opcode::Read::new(types::Fd(fd.0), counter.cast(), 8).build()
        }
        Op::Cancel { target } => {
            opcode::AsyncCancel2::new(CancelBuilder::user_data(target.as_u64())).build()
        }
    }
}

const _: () = assert!(size_of::<Entry>() == size_of::<[u8; 64]>());

/// The crate's multishot receive has no field for `ioprio` (POLL_FIRST) nor for the byte budget,
/// which the kernel reads from `optlen`: both are set in the entry's bytes.
fn with_receive_fields(entry: Entry, poll_first: bool, budget: u32) -> Entry {
    const IOPRIO: usize = 2;
    const OPTLEN: usize = 44;
    const POLL_FIRST: u16 = 1;
    // SAFETY: an Entry is the 64 bytes of io_uring_sqe (checked above), plain data in both views.
    let mut bytes: [u8; 64] = unsafe { std::mem::transmute(entry) };
    let ioprio = u16::from_ne_bytes([bytes[IOPRIO], bytes[IOPRIO + 1]])
        | if poll_first { POLL_FIRST } else { 0 };
    bytes[IOPRIO..IOPRIO + 2].copy_from_slice(&ioprio.to_ne_bytes());
    bytes[OPTLEN..OPTLEN + 4].copy_from_slice(&budget.to_ne_bytes());
    // SAFETY: as above, and every value of these two fields is one that the kernel checks.
    unsafe { std::mem::transmute(bytes) }
}

/// Sets a ring up, with fewer flags each time the kernel says EINVAL and with a shorter completion
/// queue each time it says ENOMEM. Tells whether DEFER_TASKRUN was obtained.
fn build(setup: &Setup) -> io::Result<(IoUring, bool)> {
    let without = setup.without;
    let mut no_sqarray = !without.no_sqarray;
    let mut cooperative = true;
    let mut deferred = !without.defer_taskrun;
    let mut completions = setup.completions;
    loop {
        let mut builder = IoUring::builder();
        builder
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

/// The ring by which buffers are given to the kernel: entries in memory that both sides map, and a
/// tail that the kernel reads.
struct BufferRing {
    mapping: Mapping,
    mask: u16,
    tail: u16,
}

impl BufferRing {
    fn register(ring: &IoUring, entries: u16) -> io::Result<Self> {
        let mapping = Mapping::new(usize::from(entries) * size_of::<BufRingEntry>())?;
        let start = mapping.start.as_ptr() as u64;
        // SAFETY: the mapping is page-aligned, long enough for `entries`, and lives as long as the
        // ring: `Uring` drops the ring before it (field order).
        unsafe {
            ring.submitter()
                .register_buf_ring_with_flags(start, entries, GROUP, 0)
        }?;
        Ok(Self {
            mapping,
            mask: entries - 1,
            tail: 0,
        })
    }

    fn entries(&self) -> NonNull<BufRingEntry> {
        self.mapping.start.cast()
    }

    fn add(&mut self, buffer: u16, start: NonNull<u8>, len: u32) {
        // SAFETY: the index is masked to the entries of the mapping.
        let entry = unsafe { self.entries().add(usize::from(self.tail & self.mask)) };
        // SAFETY: the entry lies in the mapping, and the kernel does not read it before the tail
        // has passed it; nobody provides more than `most_buffers`, so it has read the entry's last use.
        let entry = unsafe { &mut *entry.as_ptr() };
        entry.set_addr(start.as_ptr() as u64);
        entry.set_len(len);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the kernel what was added.
    fn publish(&self) {
        // SAFETY: the pointer leads to the first entry of the mapping, which holds the tail.
        let tail = unsafe { BufRingEntry::tail(self.entries().as_ptr()) };
        // SAFETY: the tail is a u16 in the mapping, aligned, and both sides access it atomically.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}
