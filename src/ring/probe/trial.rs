//! The trials behind [`super::probe`]: a small ring, and ops whose answer shows whether the kernel
//! knows them. No trial waits: each op is answered at submission or not at all.

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use io_uring::{IoUring, Parameters, Probe, cqueue, opcode, squeue, types};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::super::setup;

/// A setup flag, or a pair that is of no use apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Flag {
    /// CQSIZE and CLAMP.
    Sizes,
    SubmitAll,
    SingleIssuer,
    CoopTaskrun,
    /// TASKRUN_FLAG, tried with COOP_TASKRUN, which it needs.
    ShowTaskrun,
    /// Tried with SINGLE_ISSUER, which it needs.
    DeferTaskrun,
    NoSqarray,
}

/// A plain ring to try things on.
pub(super) struct Trial {
    ring: IoUring,
    buffer_ring: bool,
}

impl Trial {
    /// Sets the ring up, and its buffer ring if there is such a thing.
    pub(super) fn new() -> io::Result<Self> {
        let ring = IoUring::new(ENTRIES)?;
        let buffer_ring = provide_buffers(&ring);
        Ok(Self { ring, buffer_ring })
    }

    pub(super) fn parameters(&self) -> &Parameters {
        self.ring.params()
    }

    pub(super) fn has_buffer_ring(&self) -> bool {
        self.buffer_ring
    }

    /// Builds a ring with the flag; EINVAL is a kernel that doesn't know it.
    pub(super) fn takes_flag(&self, flag: Flag) -> io::Result<bool> {
        let mut builder = IoUring::<squeue::Entry, cqueue::Entry>::builder();
        match flag {
            Flag::Sizes => builder.setup_clamp().setup_cqsize(4 * ENTRIES),
            Flag::SubmitAll => builder.setup_submit_all(),
            Flag::SingleIssuer => builder.setup_single_issuer(),
            Flag::CoopTaskrun => builder.setup_coop_taskrun(),
            Flag::ShowTaskrun => builder.setup_coop_taskrun().setup_taskrun_flag(),
            Flag::DeferTaskrun => builder.setup_single_issuer().setup_defer_taskrun(),
            Flag::NoSqarray => builder.setup_no_sqarray(),
        };
        match builder.build(ENTRIES) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Which operations the kernel has. Without REGISTER_PROBE (before 5.6) it is an error.
    pub(super) fn operations(&self) -> io::Result<Probe> {
        let mut probe = Probe::new();
        self.ring.submitter().register_probe(&mut probe)?;
        Ok(probe)
    }

    pub(super) fn registers_ring_fd(&self) -> bool {
        let mut submitter = self.ring.submitter();
        // The thread's table has few places: the trial gives its own back.
        submitter.register_ring_fd().is_ok() && submitter.unregister_ring_fd().is_ok()
    }

    /// Registers a worker's allow-list.
    pub(super) fn takes_restrictions(&self) -> io::Result<bool> {
        let mut builder = IoUring::<squeue::Entry, cqueue::Entry>::builder();
        match builder.setup_r_disabled().build(ENTRIES) {
            Ok(ring) => setup::restrict(&ring),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Nobody connects, so silence is consent and a refusal comes at once.
    pub(super) fn accepts_multishot(&self) -> io::Result<bool> {
        let listener = net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        // Without a name the kernel chooses one that is no file.
        net::bind(&listener, &SocketAddrUnix::new_unnamed())?;
        net::listen(&listener, 1)?;
        let accept = opcode::AcceptMulti::new(types::Fd(listener.as_raw_fd())).build();
        // A ring of its own: the accept stays armed until the ring is gone.
        let ring = IoUring::new(ENTRIES)?;
        Ok(submit(ring, &accept)?.is_none_or(|answer| answer.result >= 0))
    }

    /// One byte is there; the op must deliver it and stay armed.
    pub(super) fn receives_multishot(&self) -> io::Result<bool> {
        let answer = receive_one_byte(None)?;
        Ok(answer.is_some_and(|answer| answer.result == 1 && answer.more))
    }

    /// One byte is there and the budget is one byte: the op must deliver it and end.
    pub(super) fn receives_within_budget(&self) -> io::Result<bool> {
        let answer = receive_one_byte(Some(1))?;
        Ok(answer.is_some_and(|answer| answer.result == 1 && !answer.more))
    }
}

/// The first completion of an op.
struct Answer {
    result: i32,
    more: bool,
}

/// Submits one op whose memory is static, and takes the completion that is there right after.
fn submit(mut ring: IoUring, op: &squeue::Entry) -> io::Result<Option<Answer>> {
    // SAFETY: all callers are in this file; what their ops point to is leaked or a constant, and so
    // outlives the ring. Descriptors are the kernel's to check.
    let pushed = unsafe { ring.submission().push(op) };
    pushed.map_err(|_| io::Error::from(io::ErrorKind::Other))?;
    ring.submit()?;
    Ok(ring.completion().next().map(|completion| Answer {
        result: completion.result(),
        more: cqueue::more(completion.flags()),
    }))
}

fn receive_one_byte(budget: Option<u32>) -> io::Result<Option<Answer>> {
    let (mut sender, receiver) = UnixStream::pair()?;
    sender.write_all(b"a")?;
    let receive = opcode::RecvMulti::new(types::Fd(receiver.as_raw_fd()), BUFFER_GROUP).build();
    let receive = match budget {
        Some(bytes) => with_budget(receive, bytes),
        None => receive,
    };
    // A ring of its own, which ends what is still armed.
    let ring = IoUring::new(ENTRIES)?;
    if !provide_buffers(&ring) {
        return Ok(None);
    }
    submit(ring, &receive)
}

/// Sets `optlen`, which the crate has no field for: the u32 at byte 44 of the entry. A kernel before
/// 6.17 sees a file index there and refuses the receive.
fn with_budget(op: squeue::Entry, bytes: u32) -> squeue::Entry {
    // SAFETY: the entry is the kernel's struct of 64 bytes (`transmute` checks the size) and was
    // zeroed before it was filled, so that every byte is initialized; a u32 may be any of them.
    let mut words: [u32; 16] = unsafe { std::mem::transmute(op) };
    words[44 / 4] = bytes;
    // SAFETY: the entry consists of integers and unions of integers, valid with any bytes.
    unsafe { std::mem::transmute(words) }
}

/// Registers a buffer ring that is full from the start: the kernel takes the tail as it finds it.
fn provide_buffers(ring: &IoUring) -> bool {
    let memory = Box::leak(Box::new(BufferRing::default()));
    for (id, buffer) in memory.buffers.iter_mut().enumerate() {
        memory.entries[id].address = buffer.as_mut_ptr() as u64;
        memory.entries[id].length = buffer.len() as u32;
        memory.entries[id].id = id as u16;
    }
    memory.entries[0].tail = BUFFERS as u16;
    let address = memory.entries.as_ptr() as u64;
    // SAFETY: the address is that of BUFFERS entries at the start of a page that is leaked, so that
    // they and the buffers they name outlive the ring; nobody touches either from here on.
    let registered = unsafe {
        ring.submitter()
            .register_buf_ring_with_flags(address, BUFFERS as u16, BUFFER_GROUP, 0)
    };
    registered.is_ok()
}

/// As the kernel lays it out (`struct io_uring_buf`). `tail` counts in the first entry only.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct BufferEntry {
    address: u64,
    length: u32,
    id: u16,
    tail: u16,
}

/// Entries must start on a page, and pages have up to 64 KiB.
#[derive(Default)]
#[repr(C, align(65536))]
struct BufferRing {
    entries: [BufferEntry; BUFFERS],
    buffers: [[u8; 16]; BUFFERS],
}

const ENTRIES: u32 = 8;

const BUFFERS: usize = 4;

const BUFFER_GROUP: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_all_that_changes_in_the_entry() {
        let op = || opcode::RecvMulti::new(types::Fd(7), BUFFER_GROUP).build();
        let words = |op: squeue::Entry| -> [u32; 16] {
            // SAFETY: as in `with_budget`.
            unsafe { std::mem::transmute(op) }
        };
        let plain = words(op());
        let mut expected = plain;
        expected[11] = 0x0102_0304;
        assert_eq!(plain[11], 0);
        assert_eq!(words(with_budget(op(), 0x0102_0304)), expected);
    }
}
