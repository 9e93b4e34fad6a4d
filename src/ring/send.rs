//! The write lane of a slot: connecting, sending what was received without copying it, sending
//! bytes of our own, and how a direction ends.

use std::time::Duration;

use super::buffers::Chain;
use super::core::Core;
use super::executor::TaskId;
use super::op::{Completion, Lane, Op};
use super::slots::{End, LaneState, MOST_SLICES, Memory, Payload, Slices};
use super::socket::Flow;
use super::timers::TimerId;

/// The pauses of a blocked send grow from 1 ms to 64 ms.
const MOST_DOUBLINGS: u8 = 6;

impl Core {
    /// Sends what `from` has received on `to`, whose write lane is idle; returns the bytes.
    pub(super) fn forward(&mut self, from: u32, to: u32) -> u32 {
        let mut chain = self.slots[from].received;
        let front = self.buffers.split(&mut chain, MOST_SLICES as u16);
        self.slots[from].received = chain;
        self.push_send(to, front);
        front.bytes
    }

    /// How the direction that begins at `index` stands with `held` bytes on their way. A reset is
    /// told once: when a send on the same socket was told of it, receiving only sees an end, which
    /// must not pass for a FIN.
    pub(super) fn flow(&mut self, index: u32, ended: Option<End>, held: u32) -> Flow {
        let drained = held == 0;
        let slot = &self.slots[index];
        match (ended, slot.failure()) {
            (None, _) => Flow::Open,
            (Some(End::Failed(errno)), _) | (Some(End::Fin), Some(errno)) => {
                Flow::Failed { errno, drained }
            }
            (Some(End::Fin), None) if !drained => Flow::Open,
            (Some(End::Fin), None) if slot.write.in_flight() && self.driver.is_gone(slot.fd) => {
                Flow::Failed {
                    errno: libc::ECONNRESET,
                    drained,
                }
            }
            (Some(End::Fin), None) => Flow::Finished,
        }
    }

    /// Sends `chain`; the write lane is idle.
    fn push_send(&mut self, index: u32, chain: Chain) {
        debug_assert!(self.slots[index].write == LaneState::Idle && !chain.is_empty());
        self.slots[index].sending = chain;
        self.push_rest(index);
    }

    /// Sends `bytes`; the write lane is idle.
    pub(super) fn push_bytes(&mut self, index: u32, bytes: Payload) {
        if let Payload::Staged(bytes) = &bytes {
            self.staging.in_use += bytes.capacity();
        }
        self.slots[index].memory = Some(Box::new(Memory::Bytes { bytes, taken: 0 }));
        self.push_rest(index);
    }

    /// Hands the kernel what is left to be sent.
    fn push_rest(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        slot.write = LaneState::Armed;
        let (fd, token, chain) = (slot.fd, slot.token(Lane::Write, index), slot.sending);
        let op = if let Some(Memory::Bytes { bytes, taken }) = slot.memory.as_deref() {
            let left = &bytes[*taken..];
            let len = u32::try_from(left.len()).unwrap_or(u32::MAX);
            Op::Send {
                fd,
                data: left.as_ptr(),
                len,
            }
        } else if chain.count == 1 {
            let (start, len) = self.buffers.slices(&chain).next().expect("one buffer");
            Op::Send {
                fd,
                data: start.as_ptr(),
                len,
            }
        } else {
            let message = self.fill_slices(index, &chain);
            Op::SendVectored { fd, message }
        };
        self.push(op, token);
    }

    /// Releases what was received, once it has been looked at.
    pub(super) fn discard_received(&mut self, index: u32) {
        let mut chain = std::mem::replace(&mut self.slots[index].received, Chain::EMPTY);
        self.buffers.release(&mut chain);
    }

    fn fill_slices(&mut self, index: u32, chain: &Chain) -> *const libc::msghdr {
        debug_assert!(usize::from(chain.count) <= MOST_SLICES);
        let memory = self.slots[index]
            .memory
            .insert(Box::new(Memory::Slices(Slices::new())));
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

    pub(super) fn complete_write(&mut self, completion: &Completion) {
        let index = completion.token.slot();
        let slot = &mut self.slots[index];
        let polled = slot.write == LaneState::Polling;
        slot.write = LaneState::Idle;
        if let Some(Memory::Address(_)) = slot.memory.as_deref() {
            slot.memory = None;
            slot.fail(-completion.result.min(0));
            self.after_completion(index, true);
        } else if polled && !slot.closing {
            self.complete_wait(index, completion.result);
        } else {
            self.complete_send(index, completion.result);
        }
    }

    fn complete_send(&mut self, index: u32, result: i32) {
        let left = self.book_sent(index, usize::try_from(result).unwrap_or(0));
        let slot = &mut self.slots[index];
        if left && !slot.closing {
            if result > 0 {
                slot.retries = 0;
                self.push_rest(index);
                return;
            }
            if result == -libc::EAGAIN {
                self.wait_for_room(index);
                return;
            }
        }
        if result <= 0 {
            slot.fail(if result == 0 { libc::EPIPE } else { -result });
        }
        let wake = slot.wants_sent || slot.failure().is_some();
        self.drop_send(index);
        self.after_completion(index, wake);
    }

    /// The kernel took so many bytes; true when there are more to send.
    fn book_sent(&mut self, index: u32, took: usize) -> bool {
        let slot = &mut self.slots[index];
        if let Some(Memory::Bytes { bytes, taken }) = slot.memory.as_deref_mut() {
            *taken += took;
            return *taken < bytes.len();
        }
        let took = u32::try_from(took)
            .unwrap_or(u32::MAX)
            .min(slot.sending.bytes);
        self.buffers.consume(&mut slot.sending, took);
        !slot.sending.is_empty()
    }

    /// The send is over: nothing of it is kept. An idle connection holds neither slices nor a timer.
    #[inline(always)]
    fn drop_send(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        if slot.memory.is_some() {
            self.drop_memory(index);
        }
        let slot = &mut self.slots[index];
        slot.retries = 0;
        self.buffers.release(&mut slot.sending);
        if slot.retry != TimerId::NONE {
            self.timers.remove(slot.retry);
            slot.retry = TimerId::NONE;
        }
    }

    #[inline(never)]
    fn drop_memory(&mut self, index: u32) {
        if let Some(memory) = self.slots[index].memory.take()
            && let Memory::Bytes { bytes, .. } = *memory
        {
            self.staging.take_back(bytes);
        }
    }

    pub(super) fn wait_for_room(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        if slot.ended.is_some() {
            self.block(index);
            return;
        }
        slot.write = LaneState::Polling;
        let (fd, token) = (slot.fd, slot.token(Lane::Write, index));
        self.push(Op::WaitForRoom { fd }, token);
    }

    fn complete_wait(&mut self, index: u32, result: i32) {
        const TRY: i32 = (libc::POLLOUT | libc::POLLERR | libc::POLLHUP) as i32;
        if result < 0 || result & TRY != 0 {
            self.try_rest(index);
        } else {
            self.block(index);
        }
    }

    /// io_uring reports a peer's FIN whatever it is asked to wait for, so that there is no waiting
    /// for room after FIN: such a send is tried again after growing pauses.
    fn block(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        slot.write = LaneState::Blocked;
        let pause = Duration::from_millis(1 << slot.retries);
        slot.retries = (slot.retries + 1).min(MOST_DOUBLINGS);
        if slot.retry == TimerId::NONE {
            slot.retry = self.timers.create();
        }
        self.timers
            .set(slot.retry, self.now + pause, TaskId::of_slot(index));
    }

    /// The pause of a blocked send is over.
    pub(super) fn retry_send(&mut self, index: u32) {
        if self.slots[index].write == LaneState::Blocked {
            self.slots[index].write = LaneState::Idle;
            self.try_rest(index);
        }
    }

    /// There may be room again: for what is left to be sent, or for whoever else waited for it.
    fn try_rest(&mut self, index: u32) {
        let slot = &self.slots[index];
        if slot.sending.is_empty() && slot.memory.is_none() {
            self.after_completion(index, true);
        } else {
            self.push_rest(index);
        }
    }

    /// Gives a blocked send up.
    pub(super) fn unblock(&mut self, index: u32) {
        self.slots[index].write = LaneState::Idle;
        self.drop_send(index);
    }

    pub(super) fn cancel_write(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        if matches!(slot.write, LaneState::Armed | LaneState::Polling) {
            slot.write = LaneState::Cancelling;
            let target = slot.token(Lane::Write, index);
            self.push_cancel(target);
        }
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
