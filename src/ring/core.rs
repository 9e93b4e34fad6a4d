//! The state of one ring: slots, buffers, timers and the run queue, and what a completion does to
//! them. No task runs in here: completions fill slots and name tasks, and the runtime polls those
//! afterwards.

use std::collections::VecDeque;
use std::time::Duration;

use super::buffers::{BUFFER_BYTES, Buffers, Chain, TRIM_INTERVAL};
use super::driver::{Capabilities, Driver, Shutdown};
use super::executor::RunQueue;
use super::op::{Completion, Fd, Lane, Op, Token};
use super::slots::{End, LaneState, MOST_SLICES, Memory, Slices, Slots};
use super::timers::Timers;
use crate::time::Instant;

/// Starved receivers looked at in one turn: the rest keep their place in the line.
const STARVED_PER_TURN: usize = 256;
/// The pauses of a blocked send grow from 1 ms to 64 ms.
const MOST_DOUBLINGS: u8 = 6;

pub(super) struct Core {
    // The driver goes first: once it is gone the kernel writes no buffer any more.
    pub(super) driver: Box<dyn Driver>,
    capabilities: Capabilities,
    pub(super) slots: Slots,
    pub(super) buffers: Buffers,
    pub(super) timers: Timers,
    pub(super) queue: RunQueue,
    pub(super) now: Instant,
    starved: VecDeque<(u32, u32)>,
    trim_at: Option<Instant>,
    /// Sends that found no room, each with the time of its next try.
    blocked: Vec<(Instant, u32, u32)>,
    cancels: u32,
}

/// Calls a method of the pool with the driver's `provide` as its last argument.
macro_rules! with_pool {
    ($core:expr, $method:ident $(, $argument:expr)*) => {{
        let driver = &mut $core.driver;
        $core.buffers.$method($($argument,)* |buffer, start| {
            // SAFETY: the pool hands over whole buffers of its mappings, each to the kernel or to
            // a session at a time, and outlives the driver (field order of `Core`).
            unsafe { driver.provide(buffer, start, BUFFER_BYTES) }
        })
    }};
}

impl Core {
    pub(super) fn new(mut driver: Box<dyn Driver>, most_buffers: usize) -> Self {
        let now = driver.now();
        let capabilities = driver.capabilities();
        let mut core = Self {
            driver,
            capabilities,
            slots: Slots::default(),
            buffers: Buffers::new(most_buffers),
            timers: Timers::new(now),
            queue: RunQueue::default(),
            now,
            starved: VecDeque::new(),
            trim_at: None,
            blocked: Vec::new(),
            cancels: 0,
        };
        with_pool!(core, fill);
        core
    }

    /// When the loop has to turn next without a completion.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let timer = self.timers.next_deadline();
        let blocked = self.blocked.iter().map(|(at, ..)| *at).min();
        [timer, self.trim_at, blocked].into_iter().flatten().min()
    }

    /// Everything that time alone brings about. All completions of the turn are booked by now:
    /// trimming must not forget what they filled.
    pub(super) fn tick(&mut self) {
        let now = self.now;
        let queue = &mut self.queue;
        self.timers.expire(now, |task| queue.wake(task));
        if self.trim_at.is_some_and(|at| at <= now) {
            self.buffers.trim(self.driver.is_quiescent());
            self.trim_at = self.buffers.has_grown().then(|| now + TRIM_INTERVAL);
        }
        self.retry_blocked(now);
    }

    /// Books one completion: fills its slot and wakes its task.
    pub(super) fn complete(&mut self, completion: &Completion) {
        let token = completion.token;
        match token.lane() {
            Some(Lane::Read) if self.slots.of_token(token).is_some() => {
                self.complete_read(completion);
            }
            Some(Lane::Write) if self.slots.of_token(token).is_some() => {
                self.complete_write(completion);
            }
            // A stale completion still gives its buffer back; an accepted descriptor has no owner.
            _ => self.give_back(completion),
        }
    }

    fn complete_read(&mut self, completion: &Completion) {
        let index = completion.token.slot();
        if !completion.more {
            self.slots[index].read = LaneState::Idle;
        }
        if let Some(buffer) = completion.buffer {
            self.book_buffer(index, buffer, completion);
        } else if completion.result >= 0 {
            self.book_number(index, completion);
        } else {
            self.book_read_error(index, -completion.result);
        }
        self.after_completion(index, true);
    }

    fn book_buffer(&mut self, index: u32, buffer: u16, completion: &Completion) {
        let bytes = u32::try_from(completion.result).unwrap_or(0);
        let mut one = self.buffers.filled(buffer, bytes);
        let slot = &mut self.slots[index];
        slot.drained = !completion.nonempty;
        if bytes == 0 && !slot.closing {
            slot.ended = Some(if completion.result < 0 {
                End::Failed(-completion.result)
            } else {
                End::Fin
            });
        }
        if bytes == 0 || slot.closing {
            with_pool!(self, release, &mut one);
            return;
        }
        let mut chain = slot.received;
        with_pool!(self, append, &mut chain, one);
        let slot = &mut self.slots[index];
        slot.received = chain;
        if chain.count > 1 && slot.read == LaneState::Armed && self.is_scarce() {
            self.cancel_read(index);
        }
    }

    /// A result without a buffer: FIN, an accepted descriptor, or an eventfd's eight bytes.
    fn book_number(&mut self, index: u32, completion: &Completion) {
        let slot = &mut self.slots[index];
        match slot.memory.as_deref_mut() {
            Some(Memory::Accepted(accepted)) => accepted.push_back(Fd(completion.result)),
            Some(Memory::Counter(_)) => slot.drained = true,
            _ => slot.ended = Some(End::Fin),
        }
    }

    fn book_read_error(&mut self, index: u32, errno: i32) {
        let slot = &mut self.slots[index];
        match errno {
            // A listener's errors are its task's business; a cancelled op is armed again by whoever
            // still wants it.
            libc::ECANCELED | libc::EAGAIN | libc::EINTR => {}
            libc::ENOBUFS if !matches!(slot.memory.as_deref(), Some(Memory::Accepted(_))) => {
                if !slot.closing {
                    self.starve(index);
                }
            }
            errno => slot.ended = Some(End::Failed(errno)),
        }
    }

    fn complete_write(&mut self, completion: &Completion) {
        let index = completion.token.slot();
        let slot = &mut self.slots[index];
        slot.write = LaneState::Idle;
        if let Some(Memory::Address(_)) = slot.memory.as_deref() {
            slot.memory = None;
            slot.failed = (completion.result < 0).then_some(-completion.result);
            self.after_completion(index, true);
            return;
        }
        // Slices are rare, under backlog only: an idle connection shall not keep them.
        slot.memory = None;
        let mut sending = std::mem::replace(&mut slot.sending, Chain::EMPTY);
        let sent = u32::try_from(completion.result)
            .unwrap_or(0)
            .min(sending.bytes);
        with_pool!(self, consume, &mut sending, sent);
        if !sending.is_empty() && !self.slots[index].closing {
            if completion.result > 0 {
                self.slots[index].blocked = 0;
                self.push_send(index, sending);
                return;
            }
            if completion.result == -libc::EAGAIN {
                self.slots[index].sending = sending;
                self.block(index);
                return;
            }
        }
        let slot = &mut self.slots[index];
        if completion.result <= 0 {
            let errno = if completion.result == 0 {
                libc::EPIPE
            } else {
                -completion.result
            };
            slot.failed = Some(errno);
        }
        slot.blocked = 0;
        let wake = slot.wants_sent || slot.failed.is_some();
        with_pool!(self, release, &mut sending);
        self.after_completion(index, wake);
    }

    /// io_uring takes a peer's FIN for readiness to write. Where there is no room for a send after
    /// FIN, it tries 128 times in a row, hands the send to a kernel thread, and that one fails with
    /// EAGAIN. So such a send is told not to wait, and is tried again after growing pauses.
    fn block(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        slot.write = LaneState::Blocked;
        let pause = Duration::from_millis(1 << slot.blocked);
        slot.blocked = (slot.blocked + 1).min(MOST_DOUBLINGS);
        self.blocked
            .push((self.now + pause, index, slot.generation));
    }

    fn retry_blocked(&mut self, now: Instant) {
        let due: Vec<_> = self.blocked.extract_if(.., |(at, ..)| *at <= now).collect();
        for (_, index, generation) in due {
            let slot = &mut self.slots[index];
            if slot.generation == generation && slot.write == LaneState::Blocked {
                let sending = std::mem::replace(&mut slot.sending, Chain::EMPTY);
                slot.write = LaneState::Idle;
                self.push_send(index, sending);
            }
        }
    }

    fn after_completion(&mut self, index: u32, wake: bool) {
        let slot = &mut self.slots[index];
        if !slot.closing {
            if wake {
                slot.wants_sent = false;
                self.queue.wake(slot.task);
            }
        } else if slot.is_quiet() {
            self.release_slot(index);
        }
    }

    fn give_back(&mut self, completion: &Completion) {
        if let Some(buffer) = completion.buffer {
            let mut one = self.buffers.filled(buffer, 0);
            with_pool!(self, release, &mut one);
        }
    }

    /// More than three quarters of all buffers are with sessions: the rest is for those that hold
    /// none.
    fn is_scarce(&self) -> bool {
        self.buffers.held() * 4 >= self.buffers.limit() * 3
    }

    /// Starts receiving at most about `window` bytes, unless a receive is on its way or receiving
    /// has ended. `holds`: the session has buffers of this direction already.
    pub(super) fn arm(&mut self, index: u32, window: u32, holds: bool) {
        let limit = self.buffers.limit();
        let share = u32::try_from(limit / 4)
            .unwrap_or(u32::MAX)
            .max(1)
            .saturating_mul(BUFFER_BYTES);
        let window = if self.buffers.held() * 2 > limit {
            BUFFER_BYTES.min(window)
        } else {
            window.min(share)
        };
        let scarce = self.is_scarce();
        let slot = &mut self.slots[index];
        if slot.ended.is_some() || slot.closing || slot.read.in_flight() {
            return;
        }
        slot.budget = window.max(1);
        slot.holds = holds;
        match slot.read {
            LaneState::Starved => {}
            _ if holds && scarce => self.starve(index),
            _ => self.push_recv(index),
        }
    }

    fn push_recv(&mut self, index: u32) {
        let Capabilities {
            multishot_recv,
            recv_budget,
            ..
        } = self.capabilities;
        let slot = &mut self.slots[index];
        let op = Op::Recv {
            fd: slot.fd,
            budget: recv_budget.then_some(slot.budget),
            multishot: multishot_recv && recv_budget,
            poll_first: slot.drained,
        };
        slot.read = LaneState::Armed;
        let token = slot.token(Lane::Read, index);
        self.push(op, token);
    }

    fn starve(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        slot.read = LaneState::Starved;
        self.starved.push_back((index, slot.generation));
    }

    /// Arms starved receivers again, in order, as far as there are buffers: those that hold none
    /// first when buffers are scarce.
    pub(super) fn feed_starved(&mut self) {
        if self.starved.is_empty() {
            return;
        }
        if self.buffers.provided() == 0 && with_pool!(self, grow) && self.trim_at.is_none() {
            self.trim_at = Some(self.now + TRIM_INTERVAL);
        }
        let mut free = self.buffers.provided();
        for _ in 0..self.starved.len().min(STARVED_PER_TURN) {
            if free == 0 {
                return;
            }
            let Some((index, generation)) = self.starved.pop_front() else {
                return;
            };
            let scarce = self.is_scarce();
            let slot = &self.slots[index];
            if slot.generation != generation || slot.read != LaneState::Starved {
                continue;
            }
            if slot.holds && scarce {
                self.starved.push_back((index, generation));
                continue;
            }
            self.push_recv(index);
            free -= 1;
        }
    }

    /// Sends what `from` has received on `to`, whose write lane is idle; returns the bytes.
    pub(super) fn forward(&mut self, from: u32, to: u32) -> u32 {
        let mut chain = self.slots[from].received;
        let front = self.buffers.split(&mut chain, MOST_SLICES as u16);
        self.slots[from].received = chain;
        self.push_send(to, front);
        front.bytes
    }

    /// A reset is told once: when a send on the same socket was told of it, receiving only sees an
    /// end, which must not pass for a FIN.
    pub(super) fn true_end(&mut self, index: u32, end: End) -> End {
        let slot = &self.slots[index];
        match (end, slot.failed) {
            (End::Fin, Some(errno)) => End::Failed(errno),
            (End::Fin, None) if slot.write.in_flight() && self.driver.is_gone(slot.fd) => {
                End::Failed(libc::ECONNRESET)
            }
            _ => end,
        }
    }

    /// Hands `chain` to the kernel as one send.
    fn push_send(&mut self, index: u32, chain: Chain) {
        debug_assert!(self.slots[index].write == LaneState::Idle && !chain.is_empty());
        let slot = &mut self.slots[index];
        slot.write = LaneState::Armed;
        slot.sending = chain;
        let token = slot.token(Lane::Write, index);
        let fd = slot.fd;
        let wait = slot.ended.is_none() && slot.blocked == 0;
        if chain.count == 1 {
            let (start, len) = self.buffers.slices(&chain).next().expect("one buffer");
            self.push(
                Op::Send {
                    fd,
                    data: start.as_ptr(),
                    len,
                    wait,
                },
                token,
            );
            return;
        }
        let message = self.fill_slices(index, &chain);
        self.push(Op::SendVectored { fd, message, wait }, token);
    }

    fn fill_slices(&mut self, index: u32, chain: &Chain) -> *const libc::msghdr {
        debug_assert!(usize::from(chain.count) <= MOST_SLICES);
        let memory = self.slots[index]
            .memory
            .insert(Box::new(Memory::Slices(Slices::boxed())));
        let Memory::Slices(slices) = &mut **memory else {
            unreachable!("inserted just above");
        };
        for (vector, (start, len)) in slices.vectors.iter_mut().zip(self.buffers.slices(chain)) {
            *vector = libc::iovec {
                iov_base: start.as_ptr().cast(),
                iov_len: len as usize,
            };
        }
        slices.header.msg_iov = slices.vectors.as_mut_ptr();
        slices.header.msg_iovlen = usize::from(chain.count);
        &raw const slices.header
    }

    /// Cancels the op of the read lane, if one is with the kernel.
    pub(super) fn cancel_read(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        if slot.read == LaneState::Armed {
            slot.read = LaneState::Cancelling;
            let target = slot.token(Lane::Read, index);
            self.push_cancel(target);
        }
    }

    fn cancel_write(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        if slot.write == LaneState::Armed {
            slot.write = LaneState::Cancelling;
            let target = slot.token(Lane::Write, index);
            self.push_cancel(target);
        }
    }

    fn push_cancel(&mut self, target: Token) {
        self.cancels = self.cancels.wrapping_add(1);
        self.push(
            Op::Cancel { target },
            Token::new(Lane::Cancel, 0, self.cancels),
        );
    }

    pub(super) fn push(&mut self, op: Op, token: Token) {
        // SAFETY: every pointer of an op leads into buffers or into memory that `token`'s slot
        // owns, and neither is given back before the last completion (`complete_read`,
        // `complete_write`, `release_slot`) or before the driver is gone (field order).
        unsafe { self.driver.push(op, token) }
    }

    /// The owner lets go of a stream. With `abort` the other side sees RST and what was not sent
    /// is forgotten; without, what the kernel has taken is still delivered, then FIN.
    pub(super) fn close(&mut self, index: u32, abort: bool) {
        let fd = self.slots[index].fd;
        self.slots[index].closing = true;
        if self.slots[index].read == LaneState::Starved {
            self.slots[index].read = LaneState::Idle;
        }
        if self.slots[index].write == LaneState::Blocked {
            self.slots[index].write = LaneState::Idle;
        }
        if self.slots[index].is_quiet() {
            if abort {
                self.driver.linger_zero(fd);
            }
            self.release_slot(index);
            return;
        }
        self.cancel_write(index);
        if abort {
            self.driver.linger_zero(fd);
            self.driver.shutdown(fd, Shutdown::Read);
        } else {
            self.driver.shutdown(fd, Shutdown::Both);
        }
    }

    /// The owner lets go of a listener or an eventfd.
    pub(super) fn forget(&mut self, index: u32) {
        self.slots[index].closing = true;
        if self.slots[index].is_quiet() {
            self.release_slot(index);
        } else {
            self.cancel_read(index);
        }
    }

    fn release_slot(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        let mut received = std::mem::replace(&mut slot.received, Chain::EMPTY);
        let mut sending = std::mem::replace(&mut slot.sending, Chain::EMPTY);
        let memory = slot.memory.take();
        let fd = slot.fd;
        with_pool!(self, release, &mut received);
        with_pool!(self, release, &mut sending);
        if let Some(Memory::Accepted(accepted)) = memory.map(|memory| *memory) {
            for unclaimed in accepted {
                self.driver.close(unclaimed);
            }
        }
        self.driver.close(fd);
        self.slots.remove(index);
    }

    /// Starts whichever accept this listener can have.
    pub(super) fn arm_accept(&mut self, index: u32, shared: bool) {
        let multishot = self.capabilities.multishot_accept && !shared;
        let slot = &mut self.slots[index];
        if slot.read != LaneState::Idle || slot.closing {
            return;
        }
        slot.read = LaneState::Armed;
        let (fd, token) = (slot.fd, slot.token(Lane::Read, index));
        self.push(
            if multishot {
                Op::AcceptMulti { fd }
            } else {
                Op::Accept { fd }
            },
            token,
        );
    }

    /// Starts reading an eventfd.
    pub(super) fn arm_event(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        if slot.read != LaneState::Idle {
            return;
        }
        slot.read = LaneState::Armed;
        let (fd, token) = (slot.fd, slot.token(Lane::Read, index));
        let Some(Memory::Counter(counter)) = slot.memory.as_deref_mut() else {
            unreachable!("an event's slot owns a counter");
        };
        let counter = &raw mut *counter;
        self.push(Op::ReadEvent { fd, counter }, token);
    }

    /// Starts connecting; the slot's memory holds the address.
    pub(super) fn arm_connect(&mut self, index: u32, address: socket2::SockAddr) {
        let slot = &mut self.slots[index];
        slot.write = LaneState::Armed;
        let (fd, token) = (slot.fd, slot.token(Lane::Write, index));
        let memory = slot.memory.insert(Box::new(Memory::Address(address)));
        let Memory::Address(address) = &**memory else {
            unreachable!("inserted just above");
        };
        let address = &raw const *address;
        self.push(Op::Connect { fd, address }, token);
    }
}

impl Slices {
    fn boxed() -> Box<Self> {
        let empty = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        // SAFETY: msghdr is a C struct of integers and pointers, for which zero is a valid value.
        let header = unsafe { std::mem::zeroed() };
        Box::new(Self {
            vectors: [empty; MOST_SLICES],
            header,
        })
    }
}
