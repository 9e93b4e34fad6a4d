//! The slots of a worker: one per descriptor the ring works on, with a read lane and a write lane.
//! A slot owns the descriptor and everything that the kernel may touch; it is free again only when
//! both lanes are.
//!
//! ```text
//!   Idle ──arm──▶ Armed ──last completion──▶ Idle
//!    │              │ cancel                   ▲
//!    │              ▼                          │
//!    │           Cancelling ──last completion──┘
//!    └──no buffer──▶ Starved ──buffers are back──▶ Armed
//!
//!   Armed ──no room──▶ Polling ──room──▶ Armed          (Polling for data: the splice tier)
//!            └─after FIN─▶ Blocked ──after a pause──▶ Armed
//! ```

use std::collections::VecDeque;
use std::num::NonZeroI32;
use std::rc::Rc;

use socket2::SockAddr;

use super::buffers::Chain;
use super::executor::TaskId;
use super::op::{Fd, Lane, Token};
use super::timers::TimerId;

/// What a lane of a slot is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LaneState {
    Idle,
    /// An op is with the kernel.
    Armed,
    /// An op is with the kernel that only waits for data or for room.
    Polling,
    /// An op is with the kernel and was cancelled; its last completion is still to come.
    Cancelling,
    /// A receive that waits for buffers in the ring's FIFO.
    Starved,
    /// A send that is tried again later, because the kernel can't wait for room.
    Blocked,
}

impl LaneState {
    /// An op is with the kernel.
    pub(super) fn in_flight(self) -> bool {
        matches!(self, Self::Armed | Self::Polling | Self::Cancelling)
    }
}

/// What a descriptor receives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Receives {
    /// Bytes.
    Stream,
    /// Bytes, a buffer at a time: where data and the end come together, multishot receive takes the data,
    /// and no event is left for the end (unix sockets; for TCP the kernel counts FIN as data).
    StreamByBuffer,
    /// Datagrams, in buffers of that group.
    Datagrams,
}

impl Receives {
    /// `one_shot`: a buffer at a time.
    pub(super) fn stream(one_shot: bool) -> Self {
        match one_shot {
            true => Self::StreamByBuffer,
            false => Self::Stream,
        }
    }
}

/// How the bytes of a socket end, or why a listener stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// The other side sent FIN.
    Fin,
    /// An errno.
    Failed(i32),
}

/// Memory that only some ops need, on the heap while they do.
pub(super) enum Memory {
    /// Connect's address.
    Address(SockAddr),
    /// A vectored send's slices.
    Slices(Slices),
    /// What is being sent without having been received, and how much of it was taken.
    Bytes { bytes: Payload, taken: usize },
    /// Accepted descriptors that no task has taken yet.
    Accepted(VecDeque<Fd>),
    /// An eventfd's counter, and whether it was read since a task asked.
    Counter { counter: u64, signalled: bool },
}

/// Bytes that were not received: somebody made them.
pub(super) enum Payload {
    /// Sent more than once, by several sockets.
    Shared(Rc<[u8]>),
    /// Staged for this send; see [`Ring::staging`](super::Ring::staging).
    Staged(Vec<u8>),
}

impl std::ops::Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Shared(bytes) => bytes,
            Self::Staged(bytes) => bytes,
        }
    }
}

/// The slices of one vectored send.
pub(super) struct Slices {
    pub(super) vectors: [libc::iovec; MOST_SLICES],
    pub(super) header: libc::msghdr,
}

impl Slices {
    pub(super) fn new() -> Self {
        let empty = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        // SAFETY: msghdr is a C struct of integers and pointers, for which zero is a valid value.
        let header = unsafe { std::mem::zeroed() };
        Self {
            vectors: [empty; MOST_SLICES],
            header,
        }
    }
}

/// Buffers of one send at most; four are the default window.
pub(super) const MOST_SLICES: usize = 8;

/// A descriptor and its two lanes.
pub(super) struct Slot {
    pub(super) fd: Fd,
    pub(super) generation: u32,
    /// Woken by completions of either lane.
    pub(super) task: TaskId,
    pub(super) read: LaneState,
    pub(super) write: LaneState,
    /// The owner has let go: close at the last completion.
    pub(super) closing: bool,
    /// The last receive found the socket drained: wait for readiness before the next try.
    pub(super) drained: bool,
    /// The owner holds buffers already; in scarcity others come first.
    pub(super) holds: bool,
    /// The task wants to be polled when the send in flight is done, not only if it fails.
    pub(super) wants_sent: bool,
    pub(super) receives: Receives,
    /// How often in a row a send was tried again in vain.
    pub(super) retries: u8,
    /// Set while the write lane is blocked.
    pub(super) retry: TimerId,
    /// The receive that starves asked for this many bytes.
    pub(super) budget: u32,
    /// Received and not taken yet.
    pub(super) received: Chain,
    /// How receiving ended; the chain may still hold bytes from before.
    pub(super) ended: Option<End>,
    /// With the kernel, until the write lane is idle.
    pub(super) sending: Chain,
    /// How sending or connecting failed: an errno. Of the size it has there are two per session.
    failed: Option<NonZeroI32>,
    pub(super) memory: Option<Box<Memory>>,
}

impl Slot {
    fn new(fd: Fd, generation: u32) -> Self {
        Self {
            fd,
            generation,
            task: TaskId::NONE,
            read: LaneState::Idle,
            write: LaneState::Idle,
            closing: false,
            drained: false,
            holds: false,
            wants_sent: false,
            receives: Receives::Stream,
            retries: 0,
            retry: TimerId::NONE,
            budget: 0,
            received: Chain::EMPTY,
            ended: None,
            sending: Chain::EMPTY,
            failed: None,
            memory: None,
        }
    }

    pub(super) fn token(&self, lane: Lane, index: u32) -> Token {
        Token::new(lane, self.generation, index)
    }

    /// The errno with which sending or connecting failed.
    pub(super) fn failure(&self) -> Option<i32> {
        self.failed.map(NonZeroI32::get)
    }

    pub(super) fn fail(&mut self, errno: i32) {
        self.failed = NonZeroI32::new(errno);
    }

    pub(super) fn is_quiet(&self) -> bool {
        !self.read.in_flight() && !self.write.in_flight()
    }
}

/// The slab of slots. An index is used again with another generation.
#[derive(Default)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl Slots {
    pub(super) fn insert(&mut self, fd: Fd) -> u32 {
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            *slot = Slot::new(fd, slot.generation.wrapping_add(1) & 0xff_ffff);
            return index;
        }
        self.slots.push(Slot::new(fd, 0));
        u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 descriptors")
    }

    /// The slot is empty and quiet; its index may be used again.
    pub(super) fn remove(&mut self, index: u32) {
        let slot = &self.slots[index as usize];
        debug_assert!(slot.is_quiet() && slot.received.is_empty() && slot.sending.is_empty());
        self.free.push(index);
    }

    /// The slot of a completion has not been given to another descriptor.
    pub(super) fn is_current(&self, token: Token) -> bool {
        let slot = self.slots.get(token.slot() as usize);
        slot.is_some_and(|slot| slot.generation == token.generation())
    }

    /// The indexes of slots in use.
    pub(super) fn in_use(&self) -> Vec<u32> {
        let mut in_use = vec![true; self.slots.len()];
        for index in &self.free {
            in_use[*index as usize] = false;
        }
        (0u32..)
            .zip(in_use)
            .filter_map(|(index, in_use)| in_use.then_some(index))
            .collect()
    }

    /// Slots in use.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

impl std::ops::Index<u32> for Slots {
    type Output = Slot;

    fn index(&self, index: u32) -> &Slot {
        &self.slots[index as usize]
    }
}

impl std::ops::IndexMut<u32> for Slots {
    fn index_mut(&mut self, index: u32) -> &mut Slot {
        &mut self.slots[index as usize]
    }
}

/// A session has two slots: what they take counts for every idle connection.
const _: () = assert!(size_of::<Slot>() == 72);
