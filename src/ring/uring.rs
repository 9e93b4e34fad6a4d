//! The real kernel: one io_uring, its provided-buffer ring, and the direct socket calls.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::types::{BufRingEntry, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue};

use super::buffers::{MOST_BUFFERS, MOST_DATAGRAM_BUFFERS};
use super::datagrams;
use super::driver::{Capabilities, Datagram, Driver, PipeEnds, Shutdown, SocketOptions};
use super::entry::entry;
use super::mapping::Mapping;
use super::net;
use super::op::{Completion, Fd, Group, Op, Token};
use super::setup::{self, ENTER_REGISTERED_RING, Registered, Setup};
use crate::address::Address;
use crate::time::Instant;

/// The driver of a worker. It belongs to the thread that made it.
pub struct Uring {
    /// Before the ring, which it keeps alive.
    _registered: Option<Registered>,
    ring: IoUring,
    /// Entries that found the submission queue full while the kernel would take none.
    waiting: VecDeque<Entry>,
    overflows: u64,
    buffers: BufferRing,
    datagrams: BufferRing,
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

impl Uring {
    /// Sets up a ring of the calling thread; flags that the kernel refuses are left out.
    ///
    /// # Errors
    /// As io_uring_setup(2): ENOSYS, EPERM, ENOMEM (memlock), EMFILE; EINVAL where provided
    /// buffers are missing (Linux before 5.19).
    pub fn new(setup: &Setup) -> io::Result<Self> {
        let (ring, deferred) = setup::build(setup)?;
        let entries = setup.buffers.clamp(1, MOST_BUFFERS).next_power_of_two();
        let buffers = BufferRing::register(&ring, Group::Stream, entries as u16)?;
        let datagrams = MOST_DATAGRAM_BUFFERS as u16;
        let datagrams = BufferRing::register(&ring, Group::Datagrams, datagrams)?;
        let mut wait_flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        if ring.params().is_feature_no_iowait() && !setup.without.no_iowait {
            wait_flags |= EnterFlags::NO_IOWAIT;
        }
        let registered = Registered::new(ring.as_raw_fd());
        let (enter_fd, enter_flag) = match &registered {
            Some(registered) => (registered.index, ENTER_REGISTERED_RING),
            None => (ring.as_raw_fd(), 0),
        };
        if !setup.without.restrictions {
            // Without one the ring does the same, and `doctor` says what is missing.
            setup::restrict(&ring)?;
        }
        setup::enable(&ring)?;
        let capabilities = Capabilities {
            multishot_recv: true,
            recv_budget: !setup.without.recv_budget,
            multishot_accept: !setup.without.multishot_accept,
        };
        let mut uring = Self {
            _registered: registered,
            ring,
            waiting: VecDeque::new(),
            overflows: 0,
            buffers,
            datagrams,
            capabilities,
            enter_fd,
            wait_flags: wait_flags.bits() | enter_flag,
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

    fn cpu_nanos(&mut self) -> u64 {
        #[expect(
            clippy::disallowed_methods,
            reason = "it is what the thread has used, and no time that anything goes by"
        )]
        let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        used.tv_sec.unsigned_abs() * 1_000_000_000 + used.tv_nsec.unsigned_abs()
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
        self.datagrams.publish();
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
        drop(completions);
        if self.ring.submission().cq_overflow() {
            self.overflows += 1;
        }
        Ok(())
    }

    fn overflows(&self) -> u64 {
        self.overflows
    }

    unsafe fn provide(&mut self, group: Group, buffer: u16, start: NonNull<u8>, len: u32) {
        let ring = match group {
            Group::Stream => &mut self.buffers,
            Group::Datagrams => &mut self.datagrams,
        };
        ring.add(buffer, start, len);
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

    fn open_datagrams(&mut self, to: SocketAddr, source: Option<IpAddr>) -> io::Result<Fd> {
        datagrams::open(to, source)
    }

    fn send_datagrams(&mut self, fd: Fd, datagrams: &[Datagram<'_>]) -> io::Result<usize> {
        datagrams::send(fd, datagrams)
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

    fn local(&mut self, fd: Fd) -> io::Result<Option<SocketAddr>> {
        net::local(fd)
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

    /// The ring's end cancels what is pending, and lets go of its files.
    fn abandon(&mut self) -> Vec<Completion> {
        let mut completions = self.ring.completion();
        completions.sync();
        completions.map(|entry| completion(&entry)).collect()
    }

    fn detach(&mut self, fd: Fd) -> io::Result<OwnedFd> {
        Ok(net::detach(fd))
    }

    fn close(&mut self, fd: Fd) {
        net::close(fd);
    }
}

/// CLOCK_MONOTONIC as it is: the time of all workers that run on the kernel's ring, for those who leave
/// them instants in shared state, and of all processes of the machine (of a time namespace), for
/// those who are handed the state of another.
pub fn now() -> Instant {
    const SECOND: u64 = 1_000_000_000;
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the driver that reads the clock"
    )]
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // Neither is ever below 0.
    let (seconds, nanos) = (now.tv_sec as u64, now.tv_nsec as u64);
    Instant::from_nanos(seconds.saturating_mul(SECOND).saturating_add(nanos))
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

/// The ring by which buffers are given to the kernel: entries in memory that both sides map, and a
/// tail that the kernel reads.
struct BufferRing {
    mapping: Mapping,
    mask: u16,
    tail: u16,
}

impl BufferRing {
    fn register(ring: &IoUring, group: Group, entries: u16) -> io::Result<Self> {
        let mapping = Mapping::new(usize::from(entries) * size_of::<BufRingEntry>())?;
        let start = mapping.start.as_ptr() as u64;
        // SAFETY: the mapping is page-aligned, long enough for `entries`, and lives as long as the
        // ring: `Uring` drops the ring before it (field order).
        unsafe {
            ring.submitter()
                .register_buf_ring_with_flags(start, entries, group as u16, 0)
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

#[cfg(test)]
mod tests {
    use io_uring::{opcode, types};

    use super::super::setup::Without;
    use super::*;

    fn uring(restrictions: bool) -> Uring {
        let without = Without {
            restrictions: !restrictions,
            ..Without::default()
        };
        let setup = Setup {
            buffers: 4,
            without,
            ..Setup::default()
        };
        Uring::new(&setup).expect("the tests need io_uring")
    }

    /// What the ring says of an op that needs no memory and ends at once.
    fn answer(uring: &mut Uring, entry: Entry) -> i32 {
        uring.enqueue(entry);
        let mut completions = Vec::new();
        while completions.is_empty() {
            uring.turn(None, 1, &mut completions).expect("it turns");
        }
        completions[0].result
    }

    fn open_something() -> Entry {
        let path = c"/dev/null".as_ptr();
        opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path)
            .flags(libc::O_CLOEXEC)
            .build()
    }

    #[test]
    fn an_operation_outside_of_the_list_is_refused() {
        let mut ring = uring(true);
        for entry in [opcode::Nop::new().build(), open_something()] {
            assert_eq!(answer(&mut ring, entry), -libc::EACCES);
        }
        let linked = opcode::Read::new(types::Fd(-1), std::ptr::null_mut(), 0).build();
        let linked = linked.flags(io_uring::squeue::Flags::ASYNC);
        assert_eq!(answer(&mut ring, linked), -libc::EACCES);
    }

    #[test]
    fn an_operation_of_the_list_is_not_refused() {
        let (event, signal) = net::event().expect("an eventfd");
        signal();
        let mut counter = 0;
        let read = Op::ReadEvent {
            fd: event,
            counter: &raw mut counter,
        };
        assert_eq!(answer(&mut uring(true), entry(read)), 8);
        assert_eq!(counter, 1);
        net::close(event);
    }

    #[test]
    fn without_the_list_the_same_operations_work() {
        let mut ring = uring(false);
        assert_eq!(answer(&mut ring, opcode::Nop::new().build()), 0);
        let fd = answer(&mut ring, open_something());
        assert!(fd > 0, "{fd}");
        net::close(Fd(fd));
    }

    #[test]
    fn a_ring_that_is_gone_leaves_its_place_with_the_thread_to_another() {
        // A thread has 16.
        for _ in 0..40 {
            assert!(uring(true)._registered.is_some());
        }
    }

    #[test]
    fn nothing_can_be_registered_once_the_list_is_in_force() {
        let refused = |ring: &Uring| {
            let files = ring.ring.submitter().register_files(&[-1]);
            files.err().and_then(|error| error.raw_os_error())
        };
        assert_eq!(refused(&uring(true)), Some(libc::EACCES));
        assert_eq!(refused(&uring(false)), None);
    }

    #[test]
    fn the_clock_is_that_of_every_process_of_the_machine() {
        #[expect(
            clippy::disallowed_methods,
            reason = "it is what `now` is held against"
        )]
        let machines = || rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let nanos =
            |time: rustix::time::Timespec| Duration::try_from(time).expect("above 0").as_nanos();
        let before = machines();
        let now = u128::from(now().as_nanos());
        assert!(nanos(before) <= now && now <= nanos(machines()));
    }

    #[test]
    fn the_list_costs_no_ability() {
        assert_eq!(uring(true).capabilities(), uring(false).capabilities());
    }
}
