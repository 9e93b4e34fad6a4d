//! The write lane of a slot: connecting, sending what was received without copying it, sending
//! bytes of our own, and how a direction ends.

use std::rc::Rc;
use std::time::Duration;

use super::buffers::Chain;
use super::core::Core;
use super::op::{Completion, Lane, Op};
use super::slots::{End, LaneState, MOST_SLICES, Memory, Slices};
use super::socket::Flow;
use crate::time::Instant;

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
        match (ended, slot.failed) {
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

    /// Hands `chain` to the kernel as one send.
    fn push_send(&mut self, index: u32, chain: Chain) {
        debug_assert!(self.slots[index].write == LaneState::Idle && !chain.is_empty());
        let slot = &mut self.slots[index];
        slot.write = LaneState::Armed;
        slot.sending = chain;
        let token = slot.token(Lane::Write, index);
        let (fd, wait) = (slot.fd, slot.can_wait_for_room());
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

    /// Hands the kernel what is left of `bytes` after the first `taken`.
    pub(super) fn push_bytes(&mut self, index: u32, bytes: Rc<[u8]>, taken: usize) {
        let left = &bytes[taken..];
        let (data, len) = (left.as_ptr(), u32::try_from(left.len()).unwrap_or(u32::MAX));
        let slot = &mut self.slots[index];
        slot.write = LaneState::Armed;
        slot.memory = Some(Box::new(Memory::Bytes { bytes, taken }));
        let (fd, wait) = (slot.fd, slot.can_wait_for_room());
        let token = slot.token(Lane::Write, index);
        self.push(
            Op::Send {
                fd,
                data,
                len,
                wait,
            },
            token,
        );
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
        slot.write = LaneState::Idle;
        if let Some(Memory::Address(_)) = slot.memory.as_deref() {
            slot.memory = None;
            slot.failed = (completion.result < 0).then_some(-completion.result);
            self.after_completion(index, true);
            return;
        }
        if completion.result == -libc::EAGAIN && !slot.closing {
            self.block(index);
            return;
        }
        slot.blocked = 0;
        // Slices are rare, under backlog only: an idle connection shall not keep them.
        let memory = slot.memory.take().map(|memory| *memory);
        let took = usize::try_from(completion.result).unwrap_or(0);
        if let Some(Memory::Bytes { bytes, taken }) = memory
            && took > 0
            && taken + took < bytes.len()
            && !slot.closing
        {
            self.push_bytes(index, bytes, taken + took);
            return;
        }
        let slot = &mut self.slots[index];
        let mut sending = std::mem::replace(&mut slot.sending, Chain::EMPTY);
        let sent = u32::try_from(completion.result)
            .unwrap_or(0)
            .min(sending.bytes);
        self.buffers.consume(&mut sending, sent);
        if !sending.is_empty() && completion.result > 0 && !self.slots[index].closing {
            self.push_send(index, sending);
            return;
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
        let wake = slot.wants_sent || slot.failed.is_some();
        self.buffers.release(&mut sending);
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

    pub(super) fn retry_blocked(&mut self, now: Instant) {
        let due: Vec<_> = self.blocked.extract_if(.., |(at, ..)| *at <= now).collect();
        for (_, index, generation) in due {
            let slot = &mut self.slots[index];
            if slot.generation != generation || slot.write != LaneState::Blocked {
                continue;
            }
            slot.write = LaneState::Idle;
            match slot.memory.take().map(|memory| *memory) {
                Some(Memory::Bytes { bytes, taken }) => self.push_bytes(index, bytes, taken),
                _ => {
                    let sending = std::mem::replace(&mut slot.sending, Chain::EMPTY);
                    self.push_send(index, sending);
                }
            }
        }
    }

    pub(super) fn cancel_write(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        if slot.write == LaneState::Armed {
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
