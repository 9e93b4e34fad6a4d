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
/// Bytes that a buffer takes of its mapping: a page more than it holds, within which it begins at a
/// place of its own. Would all begin at multiples of 16 KiB, their first lines, often all that is
/// used of them, would fall into the same few sets of every cache.
const STRIDE: usize = BUFFER_BYTES as usize + PAGE;
const PAGE: usize = 4096;
/// Buffers a pool starts with: half a MiB, which fits a core's cache.
pub(crate) const INITIAL: usize = 32;
/// Buffers a pool grows by at once; also the unit of allocation.
const STEP: usize = 32;
/// How long growth is kept after the last time it was needed.
pub(crate) const TRIM_INTERVAL: Duration = Duration::from_secs(1);
/// The largest provided-buffer ring there is (io_uring_register_buf_ring(3)).
pub const MOST_BUFFERS: usize = 32768;

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
    start: u16,
    len: u16,
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

const _: () = assert!(BUFFER_BYTES <= u16::MAX as u32);

/// The pool. What goes to the kernel is collected until [`Buffers::take_outgoing`].
pub(crate) struct Buffers {
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

impl Buffers {
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
            .map(|buffer| (buffer, start_of(blocks, buffer)))
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
    pub(crate) fn filled(&mut self, buffer: u16, len: u32) -> Chain {
        let entry = &mut self.filled[buffer as usize];
        assert_eq!(
            entry.place,
            Place::Kernel,
            "the kernel returned buffer {buffer}, which it did not have"
        );
        let len16 = u16::try_from(len).expect("a buffer holds no more than its size");
        *entry = Filled {
            next: NONE,
            start: 0,
            len: len16,
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
        let room = BUFFER_BYTES - u32::from(last.start) - u32::from(last.len);
        if one.bytes <= room {
            let from = self.bytes_of(one.head);
            let to = self.room_of(chain.tail);
            // SAFETY: both ranges lie in buffers of this pool that sessions hold, `one.bytes` is at
            // most the length of either, and they are different buffers, so they don't overlap.
            unsafe {
                std::ptr::copy_nonoverlapping(from.0.as_ptr(), to.as_ptr(), one.bytes as usize);
            };
            self.filled[chain.tail as usize].len += one.bytes as u16;
            chain.bytes += one.bytes;
            self.release(&mut one);
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
            front.bytes += u32::from(entry.len);
            chain.head = entry.next;
        }
        if front.tail != NONE {
            self.filled[front.tail as usize].next = NONE;
        }
        chain.count -= front.count;
        chain.bytes -= front.bytes;
        front
    }

    /// Drops the first `bytes` of the payload, and the buffers that are empty by then.
    pub(crate) fn consume(&mut self, chain: &mut Chain, mut bytes: u32) {
        assert!(bytes <= chain.bytes, "more consumed than there is");
        chain.bytes -= bytes;
        while chain.count > 0 {
            let head = chain.head;
            let entry = &mut self.filled[head as usize];
            if u32::from(entry.len) > bytes {
                entry.start += bytes as u16;
                entry.len -= bytes as u16;
                return;
            }
            bytes -= u32::from(entry.len);
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
        let Ok(block) = Mapping::new(count * STRIDE) else {
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
        let start = start_of(&self.blocks, buffer);
        // SAFETY: start + len never passes BUFFER_BYTES: `filled` checks it, `append` uses the room
        // left, `consume` moves both by the same amount.
        (
            unsafe { start.add(usize::from(entry.start)) },
            u32::from(entry.len),
        )
    }

    fn room_of(&self, buffer: u16) -> NonNull<u8> {
        let (start, len) = self.bytes_of(buffer);
        // SAFETY: as in `bytes_of`: the end of the payload lies within the buffer or at its end.
        unsafe { start.add(len as usize) }
    }

    fn forget_pages(&self, buffer: u16) {
        let start = slot_of(&self.blocks, buffer).as_ptr().cast();
        // SAFETY: the range is one whole buffer of a private anonymous mapping of ours, page-aligned;
        // it turns to zeros, and nobody needs its content: `trim` asks for spare buffers, and for
        // the kernel's when its caller has made sure that they are empty.
        let forgotten = unsafe { rustix::mm::madvise(start, STRIDE, Advice::LinuxDontNeed) };
        debug_assert!(forgotten.is_ok());
    }
}

fn start_of(blocks: &[Mapping], buffer: u16) -> NonNull<u8> {
    /// An odd number of cache lines, so that neighbours never meet in a set.
    const COLOUR: usize = 5 * 64;
    let offset = (buffer as usize * COLOUR) % PAGE;
    let slot = slot_of(blocks, buffer);
    // SAFETY: a slot has STRIDE bytes, and `offset` is less than what that is more than a buffer.
    unsafe { slot.add(offset) }
}

/// The first of the STRIDE bytes that are the buffer's.
fn slot_of(blocks: &[Mapping], buffer: u16) -> NonNull<u8> {
    let block = &blocks[buffer as usize / STEP];
    let offset = (buffer as usize % STEP) * STRIDE;
    assert!(offset < block.bytes);
    // SAFETY: `offset` is inside the mapping, whose length is `block.bytes`.
    unsafe { block.start.add(offset) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A kernel that only keeps what it was given, in order.
    #[derive(Default)]
    struct Given(std::collections::VecDeque<(u16, NonNull<u8>)>);

    impl Given {
        fn take_from(&mut self, pool: &mut Buffers) {
            self.0.extend(pool.take_outgoing());
        }

        fn receive(&mut self, pool: &mut Buffers, payload: &[u8]) -> Chain {
            let (buffer, start) = self.0.pop_front().expect("a buffer is there");
            // SAFETY: the pool gave this buffer of BUFFER_BYTES for writing, and no payload of
            // these tests is longer.
            unsafe {
                std::ptr::copy_nonoverlapping(payload.as_ptr(), start.as_ptr(), payload.len());
            };
            pool.filled(buffer, payload.len() as u32)
        }
    }

    fn payload(pool: &Buffers, chain: &Chain) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (start, len) in pool.slices(chain) {
            // SAFETY: the slice was filled by `receive` and its chain has not been given back.
            bytes.extend_from_slice(unsafe {
                std::slice::from_raw_parts(start.as_ptr(), len as usize)
            });
        }
        bytes
    }

    #[test]
    fn single_bytes_share_a_buffer() {
        let (mut pool, mut given) = (Buffers::new(64), Given::default());
        given.take_from(&mut pool);
        let mut chain = Chain::EMPTY;
        for byte in 0..100u8 {
            let one = given.receive(&mut pool, &[byte]);
            pool.append(&mut chain, one);
            given.take_from(&mut pool);
        }
        assert_eq!((chain.count, chain.bytes, pool.held()), (1, 100, 1));
        assert_eq!(payload(&pool, &chain), (0..100).collect::<Vec<u8>>());
    }

    #[test]
    fn growth_ends_at_the_limit_and_is_given_back_after_a_quiet_interval() {
        let (mut pool, mut given) = (Buffers::new(80), Given::default());
        given.take_from(&mut pool);
        let mut held = Vec::new();
        while held.len() < 80 {
            if given.0.is_empty() {
                assert!(pool.grow());
                given.take_from(&mut pool);
            }
            held.push(given.receive(&mut pool, b"x"));
        }
        assert!(!pool.grow());
        pool.trim(true);
        pool.trim(true);
        for mut chain in held {
            pool.release(&mut chain);
        }
        given.take_from(&mut pool);
        assert_eq!((pool.held(), pool.provided()), (0, 80));
        pool.trim(true);
        pool.trim(true);
        assert!(!pool.wants_trim());
        let mut one = given.receive(&mut pool, b"x");
        pool.release(&mut one);
        assert_eq!((pool.provided(), pool.wants_trim()), (79, true));
    }

    #[test]
    fn growth_helps_at_once_when_sessions_hold_more_than_the_target() {
        let (mut pool, mut given) = (Buffers::new(1024), Given::default());
        given.take_from(&mut pool);
        let mut held = Vec::new();
        while held.len() < 300 {
            if given.0.is_empty() {
                assert!(pool.grow());
                given.take_from(&mut pool);
            }
            held.push(given.receive(&mut pool, b"x"));
        }
        pool.trim(true);
        pool.trim(true);
        while !given.0.is_empty() {
            held.push(given.receive(&mut pool, b"x"));
        }
        assert!(pool.grow());
        for mut chain in held {
            pool.release(&mut chain);
        }
    }

    #[test]
    #[should_panic(expected = "returned twice")]
    fn a_buffer_returned_twice_is_a_broken_invariant() {
        let (mut pool, mut given) = (Buffers::new(8), Given::default());
        given.take_from(&mut pool);
        let one = given.receive(&mut pool, b"x");
        let (mut first, mut second) = (one, one);
        pool.release(&mut first);
        pool.release(&mut second);
    }

    proptest! {
        #[test]
        fn a_chain_is_a_byte_queue(steps in prop::collection::vec((0u8..4, 1usize..20_000), 1..60)) {
            let (mut pool, mut given) = (Buffers::new(2048), Given::default());
            given.take_from(&mut pool);
            let (mut chain, mut model, mut next) = (Chain::EMPTY, Vec::<u8>::new(), 0u8);
            for (kind, amount) in steps {
                given.take_from(&mut pool);
                match kind {
                    0 | 1 => {
                        let bytes: Vec<u8> = (0..amount.min(BUFFER_BYTES as usize)).map(|_| { next = next.wrapping_add(1); next }).collect();
                        if given.0.is_empty() {
                            prop_assert!(pool.grow());
                            given.take_from(&mut pool);
                        }
                        let one = given.receive(&mut pool, &bytes);
                        pool.append(&mut chain, one);
                        model.extend(bytes);
                    }
                    2 => {
                        let some = (amount as u32).min(chain.bytes);
                        pool.consume(&mut chain, some);
                        model.drain(..some as usize);
                    }
                    _ => {
                        let mut front = pool.split(&mut chain, (amount % 5) as u16);
                        prop_assert_eq!(payload(&pool, &front), &model[..front.bytes as usize]);
                        model.drain(..front.bytes as usize);
                        pool.release(&mut front);
                    }
                }
                prop_assert_eq!(payload(&pool, &chain), &model[..]);
                prop_assert_eq!(chain.bytes as usize, model.len());
            }
            pool.release(&mut chain);
            prop_assert_eq!(pool.held(), 0);
        }
    }
}
