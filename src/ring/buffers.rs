//! The receive buffers of a worker: memory that the kernel fills, chains of filled buffers, and
//! the rules by which the pool grows and shrinks. Idle connections hold none of it.
//!
//! The kernel cycles through what it was given first in, first out, so a large pool is a cold one:
//! the pool starts with [`INITIAL`] buffers, grows by [`STEP`] when the kernel runs out, and after
//! a quiet [`TRIM_INTERVAL`] gives the pages beyond back to the system.

use std::ptr::NonNull;
use std::time::Duration;

use rustix::mm::Advice;

use super::mapping::Mapping;

/// Bytes of a buffer: four pages, where multishot receive and plain receive cost the same.
pub const BUFFER_BYTES: u32 = 16 * 1024;
const PAGE: usize = 4096;
/// Bytes of a buffer for the largest datagram there is, or as many as the kernel joins into one (64 KiB),
/// behind what it says of them.
pub(crate) const DATAGRAM_BYTES: u32 = (64 << 10) + 256;

/// Bytes that a buffer takes of its mapping, in whole pages: a page more than it holds, within which it begins
/// at a place of its own. Would all begin at multiples of a page, their first lines, often all that is used of
/// them, would fall into the same few sets of every cache.
const fn stride(bytes: u32) -> usize {
    (bytes as usize).next_multiple_of(PAGE) + PAGE
}

/// Buffers a pool starts with: half a MiB, which fits a core's cache.
pub(crate) const INITIAL: usize = 32;
/// Buffers a pool grows by at once; also the unit of allocation.
const STEP: usize = 32;
/// How long growth is kept after the last time it was needed.
pub(crate) const TRIM_INTERVAL: Duration = Duration::from_secs(1);
/// The largest provided-buffer ring there is (io_uring_register_buf_ring(3)).
pub const MOST_BUFFERS: usize = 32768;

/// The most buffers for datagrams: they are held within a turn only, so that a turn's worth is enough.
pub const MOST_DATAGRAM_BUFFERS: usize = 256;

const NONE: u16 = u16::MAX;

/// Filled buffers in order, linked through the pool. It has no destructor: whoever holds one gives
/// it back with [`Buffers::release`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    head: u16,
    tail: u16,
    /// Buffers.
    pub(crate) count: u16,
    /// Payload.
    pub(crate) bytes: u32,
}

impl Chain {
    pub(crate) const EMPTY: Self = Self {
        head: NONE,
        tail: NONE,
        count: 0,
        bytes: 0,
    };

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }
}

#[derive(Clone, Copy)]
struct Filled {
    next: u16,
    start: u32,
    len: u32,
    place: Place,
    /// It was filled since its pages were last given back.
    touched: bool,
}

/// Who has a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Spare,
    Kernel,
    Session,
}

/// The pool of buffers of so many bytes. What goes to the kernel is collected until
/// [`Buffers::take_outgoing`].
pub(crate) struct Buffers<const BYTES: u32> {
    blocks: Vec<Mapping>,
    filled: Vec<Filled>,
    /// Buffers that neither the kernel nor a session has.
    spare: Vec<u16>,
    /// Buffers on their way to the kernel.
    outgoing: Vec<u16>,
    /// Buffers that the kernel has, those on their way included.
    provided: usize,
    /// Buffers in use by sessions.
    held: usize,
    /// Buffers that should be in circulation.
    target: usize,
    /// The most there may ever be.
    limit: usize,
    /// Growth was needed since the last trim.
    busy: bool,
    /// The fewest buffers that the kernel had since the last trim.
    lowest: usize,
    /// There may be pages to give back.
    dirty: bool,
}

impl<const BYTES: u32> Buffers<BYTES> {
    /// A pool of at most `limit` buffers (1..=32768).
    pub(crate) fn new(limit: usize) -> Self {
        let limit = limit.clamp(1, MOST_BUFFERS);
        let mut pool = Self {
            target: INITIAL.min(limit),
            limit,
            ..Self::empty()
        };
        pool.fill();
        pool
    }

    /// No pool at all.
    pub(crate) fn empty() -> Self {
        Self {
            blocks: Vec::new(),
            filled: Vec::new(),
            spare: Vec::new(),
            outgoing: Vec::new(),
            provided: 0,
            held: 0,
            target: 0,
            limit: 0,
            busy: false,
            lowest: 0,
            dirty: false,
        }
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// Buffers that sessions hold.
    pub(crate) fn held(&self) -> usize {
        self.held
    }

    /// Buffers that the kernel has.
    pub(crate) fn provided(&self) -> usize {
        self.provided
    }

    /// What is to be provided to the kernel, each whole buffer once.
    pub(crate) fn take_outgoing(&mut self) -> impl Iterator<Item = (u16, NonNull<u8>)> {
        let blocks = &self.blocks;
        self.outgoing
            .drain(..)
            .map(move |buffer| (buffer, start_of::<BYTES>(blocks, buffer)))
    }

    /// Brings what is in circulation up to the target.
    fn fill(&mut self) {
        while self.provided + self.held < self.target {
            if self.spare.is_empty() && !self.allocate() {
                return;
            }
            let buffer = self.spare.pop().expect("just allocated");
            self.hand_over(buffer);
        }
    }

    /// Puts a step more into circulation than is there, as far as the limit allows; true if the
    /// kernel has more buffers now.
    pub(crate) fn grow(&mut self) -> bool {
        self.busy = true;
        self.dirty = true;
        let before = self.provided;
        let circulating = self.target.max(self.provided + self.held);
        self.target = (circulating + STEP).min(self.limit);
        self.fill();
        self.provided > before
    }

    /// The kernel filled `buffer` with `len` bytes; it is held from now on.
    #[inline(always)]
    pub(crate) fn filled(&mut self, buffer: u16, len: u32) -> Chain {
        let entry = &mut self.filled[buffer as usize];
        assert_eq!(
            entry.place,
            Place::Kernel,
            "the kernel returned buffer {buffer}, which it did not have"
        );
        assert!(len <= BYTES, "a buffer holds no more than its size");
        *entry = Filled {
            next: NONE,
            start: 0,
            len,
            place: Place::Session,
            touched: true,
        };
        self.provided -= 1;
        self.held += 1;
        self.lowest = self.lowest.min(self.provided);
        Chain {
            head: buffer,
            tail: buffer,
            count: 1,
            bytes: len,
        }
    }

    /// Puts the one buffer of `one` behind `chain`. What fits into the room left in the last
    /// buffer is copied there, so that a peer that speaks in single bytes can't hold a buffer for
    /// each; a buffer that is emptied by that is released.
    pub(crate) fn append(&mut self, chain: &mut Chain, mut one: Chain) {
        debug_assert_eq!(one.count, 1);
        if chain.is_empty() {
            *chain = one;
            return;
        }
        let last = self.filled[chain.tail as usize];
        let room = BYTES - last.start - last.len;
        if one.bytes <= room {
            let from = self.bytes_of(one.head);
            let to = self.room_of(chain.tail);
            // SAFETY: both ranges lie in buffers of this pool that sessions hold, `one.bytes` is at
            // most the length of either, and they are different buffers, so they don't overlap.
            unsafe {
                std::ptr::copy_nonoverlapping(from.0.as_ptr(), to.as_ptr(), one.bytes as usize);
            };
            self.filled[chain.tail as usize].len += one.bytes;
            chain.bytes += one.bytes;
            self.release(&mut one);
            return;
        }
        self.link(chain, one);
    }

    /// Puts the one buffer of `one` behind `chain`, as it is.
    pub(crate) fn link(&mut self, chain: &mut Chain, one: Chain) {
        debug_assert_eq!(one.count, 1);
        if chain.is_empty() {
            *chain = one;
            return;
        }
        self.filled[chain.tail as usize].next = one.head;
        chain.tail = one.tail;
        chain.count += 1;
        chain.bytes += one.bytes;
    }

    /// Takes the first `most` buffers off `chain`.
    pub(crate) fn split(&mut self, chain: &mut Chain, most: u16) -> Chain {
        if chain.count <= most {
            return std::mem::replace(chain, Chain::EMPTY);
        }
        let mut front = Chain {
            head: chain.head,
            tail: NONE,
            count: 0,
            bytes: 0,
        };
        while front.count < most {
            let entry = self.filled[chain.head as usize];
            front.tail = chain.head;
            front.count += 1;
            front.bytes += entry.len;
            chain.head = entry.next;
        }
        if front.tail != NONE {
            self.filled[front.tail as usize].next = NONE;
        }
        chain.count -= front.count;
        chain.bytes -= front.bytes;
        front
    }

    /// Drops the first `bytes` of the payload, and the buffers that are empty by then. Inlined, as it is part of
    /// every send.
    #[inline(always)]
    pub(crate) fn consume(&mut self, chain: &mut Chain, mut bytes: u32) {
        assert!(bytes <= chain.bytes, "more consumed than there is");
        chain.bytes -= bytes;
        while chain.count > 0 {
            let head = chain.head;
            let entry = &mut self.filled[head as usize];
            if entry.len > bytes {
                entry.start += bytes;
                entry.len -= bytes;
                return;
            }
            bytes -= entry.len;
            chain.head = entry.next;
            chain.count -= 1;
            self.take_back(head);
        }
        *chain = Chain::EMPTY;
    }

    /// Gives all buffers of `chain` back.
    pub(crate) fn release(&mut self, chain: &mut Chain) {
        let bytes = chain.bytes;
        self.consume(chain, bytes);
    }

    /// The payload, one slice (start, bytes) per buffer. Valid until the chain is given back.
    pub(crate) fn slices(&self, chain: &Chain) -> impl Iterator<Item = (NonNull<u8>, u32)> {
        let mut next = chain.head;
        (0..chain.count).map(move |_| {
            let slice = self.bytes_of(next);
            next = self.filled[next as usize].next;
            slice
        })
    }

    /// [`Buffers::trim`] has something to do after a [`TRIM_INTERVAL`].
    pub(crate) fn wants_trim(&self) -> bool {
        self.dirty
    }

    /// When no growth was needed since the last time, half of what was never used since is kept out
    /// of circulation, and its pages go back to the system; all pages do when nothing was used at
    /// all. `quiescent`: what the kernel has is empty; else it may hold bytes that nobody has been
    /// told of.
    pub(crate) fn trim(&mut self, quiescent: bool) {
        let unused = std::mem::replace(&mut self.lowest, self.provided);
        if std::mem::take(&mut self.busy) {
            return;
        }
        let initial = INITIAL.min(self.limit);
        let idle = self.held == 0 && unused == self.provided;
        self.target = if idle {
            initial
        } else {
            self.target.saturating_sub(unused / 2).max(initial)
        };
        self.dirty = self.target > initial || (!quiescent && self.provided > initial);
        for buffer in 0..self.filled.len() {
            let Filled { place, touched, .. } = self.filled[buffer];
            let empty = place == Place::Spare || (place == Place::Kernel && quiescent && idle);
            if touched && empty {
                self.forget_pages(buffer as u16);
                self.filled[buffer].touched = false;
            }
        }
    }

    fn hand_over(&mut self, buffer: u16) {
        self.filled[buffer as usize].place = Place::Kernel;
        self.provided += 1;
        self.outgoing.push(buffer);
    }

    #[inline(always)]
    fn take_back(&mut self, buffer: u16) {
        let place = &mut self.filled[buffer as usize].place;
        assert_eq!(*place, Place::Session, "buffer {buffer} was returned twice");
        *place = Place::Spare;
        self.held -= 1;
        if self.provided + self.held < self.target {
            self.hand_over(buffer);
        } else {
            self.spare.push(buffer);
            self.dirty = true;
        }
    }

    /// Adds a block of spare buffers; false at the limit or when the system has no memory.
    fn allocate(&mut self) -> bool {
        let have = self.filled.len();
        let count = STEP.min(self.limit - have);
        if count == 0 {
            return false;
        }
        let Ok(block) = Mapping::new(count * stride(BYTES)) else {
            return false;
        };
        self.blocks.push(block);
        self.filled.resize(
            have + count,
            Filled {
                next: NONE,
                start: 0,
                len: 0,
                place: Place::Spare,
                touched: false,
            },
        );
        self.spare
            .extend((have..have + count).rev().map(|buffer| buffer as u16));
        true
    }

    fn bytes_of(&self, buffer: u16) -> (NonNull<u8>, u32) {
        let entry = self.filled[buffer as usize];
        let start = start_of::<BYTES>(&self.blocks, buffer);
        // SAFETY: start + len never passes the buffer's size: `filled` checks it, `append` uses the room
        // left, `consume` moves both by the same amount.
        (unsafe { start.add(entry.start as usize) }, entry.len)
    }

    fn room_of(&self, buffer: u16) -> NonNull<u8> {
        let (start, len) = self.bytes_of(buffer);
        // SAFETY: as in `bytes_of`: the end of the payload lies within the buffer or at its end.
        unsafe { start.add(len as usize) }
    }

    fn forget_pages(&self, buffer: u16) {
        let start = slot_of::<BYTES>(&self.blocks, buffer).as_ptr().cast();
        // SAFETY: the range is one whole buffer of a private anonymous mapping of ours, page-aligned;
        // it turns to zeros, and nobody needs its content: `trim` asks for spare buffers, and for
        // the kernel's when its caller has made sure that they are empty.
        let forgotten = unsafe { rustix::mm::madvise(start, stride(BYTES), Advice::LinuxDontNeed) };
        debug_assert!(forgotten.is_ok());
    }
}

fn start_of<const BYTES: u32>(blocks: &[Mapping], buffer: u16) -> NonNull<u8> {
    /// An odd number of cache lines, so that neighbours never meet in a set.
    const COLOUR: usize = 5 * 64;
    let offset = (buffer as usize * COLOUR) % PAGE;
    let slot = slot_of::<BYTES>(blocks, buffer);
    // SAFETY: a slot has `stride` bytes, and `offset` is less than what that is more than a buffer.
    unsafe { slot.add(offset) }
}

/// The first of the `stride` bytes that are the buffer's.
fn slot_of<const BYTES: u32>(blocks: &[Mapping], buffer: u16) -> NonNull<u8> {
    let block = &blocks[buffer as usize / STEP];
    let offset = (buffer as usize % STEP) * stride(BYTES);
    assert!(offset < block.bytes);
    // SAFETY: `offset` is inside the mapping, whose length is `block.bytes`.
    unsafe { block.start.add(offset) }
}

#[cfg(test)]
mod tests;
