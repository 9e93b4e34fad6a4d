//! What ops do, as io_uring does it: tried when they are submitted, and again whenever what they
//! wait for has changed. Memory is read and written at the moment in which bytes move.

use std::ptr;
use std::slice;

use socket2::SockAddr;

use super::kernel::{Kernel, Object, Pending, Waiter};
use super::tcp::{Fin, Phase, Readable};
use crate::address::Address;
use crate::ring::{Completion, Fd, Op, Token};

/// How a try ended.
pub(super) enum Outcome {
    /// The last completion was posted.
    Done,
    /// To be tried again when something changed.
    Wait,
    /// To be tried again in the next turn, after others had theirs.
    Again,
}

/// The terms of a receive.
#[derive(Clone, Copy)]
struct Terms {
    budget: Option<u32>,
    multishot: bool,
    poll_first: bool,
}

impl Kernel {
    /// Hands the queued ops over, in order.
    pub(super) fn submit(&mut self, worker: usize) {
        for (op, token) in std::mem::take(&mut self.workers[worker].queued) {
            let waiter = Waiter { worker, token };
            if let Op::Cancel { target } = op {
                let result = self.cancel(Waiter {
                    worker,
                    token: target,
                });
                self.end(waiter, result);
                continue;
            }
            let descriptor = op_fd(&op).and_then(|fd| self.descriptors.get(&fd));
            let Some(object) = descriptor.map(|descriptor| descriptor.object) else {
                self.end(waiter, -libc::EBADF);
                continue;
            };
            let pending = Pending {
                op,
                object,
                done: 0,
                fresh: true,
                woken: false,
            };
            self.attempt(waiter, pending);
        }
    }

    /// Tries the ops again for which something has changed.
    pub(super) fn retry(&mut self, worker: usize) {
        let mut woken = std::mem::take(&mut self.workers[worker].woken);
        self.disorder(&mut woken, |_, _| true);
        for token in woken {
            let ops = &mut self.workers[worker].ops;
            let token = Token::from_u64(token);
            if ops.get(&token.as_u64()).is_some_and(|op| op.woken)
                && let Some(pending) = ops.remove(&token.as_u64())
            {
                self.progressed = true;
                self.attempt(Waiter { worker, token }, pending);
            }
        }
    }

    fn attempt(&mut self, waiter: Waiter, mut pending: Pending) {
        let outcome = self.try_op(waiter, &mut pending);
        pending.fresh = false;
        pending.woken = matches!(outcome, Outcome::Again);
        if matches!(outcome, Outcome::Done) {
            return self.leave(waiter, &pending);
        }
        self.enter(waiter, &pending);
        let worker = &mut self.workers[waiter.worker];
        worker.ops.insert(waiter.token.as_u64(), pending);
        if pending.woken {
            worker.woken.push(waiter.token.as_u64());
        }
    }

    fn try_op(&mut self, waiter: Waiter, pending: &mut Pending) -> Outcome {
        if !self.supports(&pending.op) {
            self.end(waiter, -libc::EINVAL);
            return Outcome::Done;
        }
        match (pending.op, pending.object) {
            (Op::AcceptMulti { .. } | Op::Accept { .. }, Object::Listener(member)) => {
                self.try_accept(waiter, pending, member)
            }
            (
                Op::Recv {
                    budget,
                    multishot,
                    poll_first,
                    ..
                },
                Object::Stream(id),
            ) => {
                let budget = budget.filter(|budget| *budget > 0);
                let terms = Terms {
                    budget,
                    multishot,
                    poll_first,
                };
                self.try_receive(waiter, pending, id, terms)
            }
            (Op::ReceiveDatagrams { .. }, Object::Datagrams(id)) => {
                self.try_receive_datagrams(waiter, pending, id)
            }
            (Op::Send { data, len, .. }, Object::Stream(id)) => {
                let slice = libc::iovec {
                    iov_base: data.cast_mut().cast(),
                    iov_len: len as usize,
                };
                self.try_send(waiter, id, &[slice])
            }
            (Op::SendVectored { message, .. }, Object::Stream(id)) => {
                // SAFETY: by the contract of `Driver::push` the header is valid until the last
                // completion, which this op, not being done, has not posted.
                let header = unsafe { message.read() };
                // SAFETY: the header of a sendmsg names `msg_iovlen` slices, as valid as itself.
                let slices = unsafe { slice::from_raw_parts(header.msg_iov, header.msg_iovlen) };
                self.try_send(waiter, id, slices)
            }
            (Op::WaitForRoom { .. }, Object::Stream(id)) => self.try_room(waiter, id),
            (Op::WaitForData { .. }, Object::Stream(id)) => {
                if !self.has_something(id) {
                    return Outcome::Wait;
                }
                self.end(waiter, i32::from(libc::POLLIN));
                Outcome::Done
            }
            (Op::Connect { address, .. }, Object::Stream(id)) => {
                self.try_connect(waiter, pending, id, address)
            }
            (Op::ReadEvent { counter, .. }, Object::Signal(id)) => {
                self.try_read_event(waiter, id, counter)
            }
            _ => {
                self.end(waiter, -libc::ENOTSOCK);
                Outcome::Done
            }
        }
    }

    fn supports(&self, op: &Op) -> bool {
        let can = self.capabilities;
        match op {
            Op::AcceptMulti { .. } => can.multishot_accept,
            Op::Recv {
                budget, multishot, ..
            } => (can.multishot_recv || !multishot) && (can.recv_budget || budget.is_none()),
            _ => true,
        }
    }

    fn try_receive(
        &mut self,
        waiter: Waiter,
        pending: &mut Pending,
        id: usize,
        terms: Terms,
    ) -> Outcome {
        for _ in 0..RECEIVES_PER_TRY {
            // The first try selects its buffer before it looks at the socket, the later ones
            // come when there is something.
            let blind = std::mem::take(&mut pending.fresh) && !terms.poll_first;
            if !blind && !self.has_something(id) {
                return Outcome::Wait;
            }
            let empty = self.workers[waiter.worker].buffers.is_empty();
            let errno = self.receive_fault(empty, terms.multishot);
            let result = match errno.map_or_else(|| self.look(id), Readable::Error) {
                Readable::Nothing => return Outcome::Wait,
                Readable::Bytes(available) if self.fill(waiter, pending, id, available, terms) => {
                    continue;
                }
                Readable::Bytes(_) => return Outcome::Done,
                Readable::End => 0,
                Readable::Error(errno) => -errno,
            };
            self.end(waiter, result);
            return Outcome::Done;
        }
        Outcome::Again
    }

    /// What keeps a receive from looking at its socket. `empty`: there are no buffers.
    pub(super) fn receive_fault(&mut self, empty: bool, multishot: bool) -> Option<i32> {
        if empty || self.random.chance(self.faults.no_buffers) {
            return Some(libc::ENOBUFS);
        }
        let cancelled = multishot && self.random.chance(self.faults.receive_cancelled);
        cancelled.then_some(libc::ECANCELED)
    }

    /// Fills one buffer and posts it; true when the receive goes on.
    fn fill(
        &mut self,
        waiter: Waiter,
        pending: &mut Pending,
        id: usize,
        available: usize,
        terms: Terms,
    ) -> bool {
        let Some((number, buffer)) = self.workers[waiter.worker].buffers.take() else {
            return false;
        };
        let mut len = available.min(buffer.len);
        if self.random.chance(self.faults.short_receive) {
            len = 1 + self.random.below(len as u64) as usize;
        }
        let bytes = &self.endpoints[id].incoming.bytes;
        let (first, second) = bytes.as_slices();
        let first = &first[..first.len().min(len)];
        let second = &second[..len - first.len()];
        // SAFETY: `Driver::provide` gave `buffer.len` ≥ `len` bytes for the kernel alone, until
        // the completion posted below is returned.
        unsafe { ptr::copy_nonoverlapping(first.as_ptr(), buffer.start.as_ptr(), first.len()) };
        // SAFETY: `first.len()` ≤ `len` ≤ `buffer.len`: within the buffer or one past its end.
        let rest = unsafe { buffer.start.as_ptr().add(first.len()) };
        // SAFETY: as the first copy; `first` and `second` are `len` bytes together.
        unsafe { ptr::copy_nonoverlapping(second.as_ptr(), rest, second.len()) };
        self.consume(id, len);
        pending.done += len;
        let used_up = terms
            .budget
            .is_some_and(|budget| pending.done >= budget as usize);
        let more = terms.multishot && !used_up && !self.random.chance(self.faults.receive_ends);
        let completion = Completion {
            token: waiter.token,
            result: len as i32,
            more,
            buffer: Some(number),
            nonempty: self.endpoints[id].incoming.hints_more(),
        };
        self.post(waiter.worker, completion);
        more
    }

    fn try_send(&mut self, waiter: Waiter, id: usize, slices: &[libc::iovec]) -> Outcome {
        if let Some(errno) = self.send_error(id) {
            self.end(waiter, -errno);
            return Outcome::Done;
        }
        let mut took = 0;
        for one in slices {
            let mut len = one.iov_len.min(self.space(id));
            if len > 0 && self.random.chance(self.faults.short_send) {
                len = 1 + self.random.below(len as u64) as usize;
            }
            // SAFETY: by the contract of `Driver::push` the slices are valid until the last
            // completion, which is posted only below.
            let all = unsafe { slice::from_raw_parts(one.iov_base.cast::<u8>(), one.iov_len) };
            self.put(id, &all[..len]);
            took += len;
            if len < one.iov_len {
                break;
            }
        }
        self.transmit(id);
        self.end(waiter, sent_or(took, libc::EAGAIN));
        Outcome::Done
    }

    /// As tcp_poll() with the events that io_uring always adds: an error or a FIN ends it, too.
    fn try_room(&mut self, waiter: Waiter, id: usize) -> Outcome {
        let end = &self.endpoints[id];
        let gone = end.phase != Phase::Established;
        let finished = end.incoming.fin == Fin::Arrived;
        let mut events = 0;
        if gone {
            events |= libc::POLLERR | libc::POLLHUP;
        }
        if finished {
            events |= libc::POLLRDHUP;
        }
        if gone || self.space(id) > 0 {
            events |= libc::POLLOUT;
        }
        if events == 0 {
            return Outcome::Wait;
        }
        self.end(waiter, i32::from(events));
        Outcome::Done
    }

    fn try_connect(
        &mut self,
        waiter: Waiter,
        pending: &Pending,
        id: usize,
        address: *const SockAddr,
    ) -> Outcome {
        let end = &mut self.endpoints[id];
        let result = match end.phase {
            Phase::Fresh => {
                // SAFETY: by the contract of `Driver::push` the address is valid until the last
                // completion, which this op, not being done, has not posted.
                let address = unsafe { &*address };
                let source = end.local.map(|local| local.ip());
                match address.as_socket() {
                    Some(to) => {
                        self.start_connecting(id, Address::Ip(to), source);
                        return Outcome::Wait;
                    }
                    None => -libc::EAFNOSUPPORT,
                }
            }
            Phase::Connecting if pending.fresh => -libc::EALREADY,
            Phase::Connecting => return Outcome::Wait,
            Phase::Established if pending.fresh => -libc::EISCONN,
            Phase::Established => 0,
            Phase::Dead => -end.error.take().unwrap_or(libc::ECONNABORTED),
        };
        self.end(waiter, result);
        Outcome::Done
    }

    fn try_read_event(&mut self, waiter: Waiter, id: usize, counter: *mut u64) -> Outcome {
        let count = std::mem::take(&mut self.signals[id].count);
        if count == 0 {
            return Outcome::Wait;
        }
        // SAFETY: by the contract of `Driver::push` the eight bytes are valid until the last
        // completion, which is posted only below.
        unsafe { counter.write(count) };
        self.end(waiter, size_of::<u64>() as i32);
        Outcome::Done
    }

    /// The result of a cancel; its target posts its own last completion.
    fn cancel(&mut self, target: Waiter) -> i32 {
        let key = target.token.as_u64();
        let Some(pending) = self.workers[target.worker].ops.remove(&key) else {
            return -libc::ENOENT;
        };
        if pending.woken {
            // What has come before the cancel is delivered before it.
            self.attempt(target, pending);
            let Some(still) = self.workers[target.worker].ops.remove(&key) else {
                return -libc::EALREADY;
            };
            self.end_cancelled(target, &still);
        } else {
            self.end_cancelled(target, &pending);
        }
        0
    }

    fn end_cancelled(&mut self, target: Waiter, pending: &Pending) {
        self.leave(target, pending);
        self.end(target, -libc::ECANCELED);
    }

    /// Starts to wait at the op's object.
    fn enter(&mut self, waiter: Waiter, pending: &Pending) {
        let place = match pending.object {
            Object::Listener(member) => {
                let waiters = &mut self.listeners[member].waiters;
                if !waiters.contains(&waiter) {
                    waiters.push_back(waiter);
                }
                return;
            }
            _ => self.place(pending),
        };
        if place.replace(waiter).is_some_and(|old| old != waiter) {
            self.violate(format!("two ops wait for one direction: {:?}", pending.op));
        }
    }

    /// Waits no longer.
    pub(super) fn leave(&mut self, waiter: Waiter, pending: &Pending) {
        if let Object::Listener(member) = pending.object {
            let waiters = &mut self.listeners[member].waiters;
            return waiters.retain(|other| *other != waiter);
        }
        let place = self.place(pending);
        if *place == Some(waiter) {
            *place = None;
        }
    }

    fn place(&mut self, pending: &Pending) -> &mut Option<Waiter> {
        match (pending.object, pending.op) {
            (Object::Signal(id), _) => &mut self.signals[id].reader,
            (Object::Datagrams(id), _) => self.net.reader(id),
            (Object::Stream(id), Op::Recv { .. } | Op::WaitForData { .. }) => {
                &mut self.endpoints[id].reader
            }
            (Object::Stream(id) | Object::Listener(id) | Object::Pipe(id), _) => {
                &mut self.endpoints[id].writer
            }
        }
    }
}

/// The descriptor an op works on; a cancel has none.
pub(super) fn op_fd(op: &Op) -> Option<Fd> {
    match *op {
        Op::AcceptMulti { fd }
        | Op::Accept { fd }
        | Op::Recv { fd, .. }
        | Op::ReceiveDatagrams { fd, .. }
        | Op::Send { fd, .. }
        | Op::SendVectored { fd, .. }
        | Op::WaitForRoom { fd }
        | Op::WaitForData { fd }
        | Op::Connect { fd, .. }
        | Op::ReadEvent { fd, .. } => Some(fd),
        Op::Cancel { .. } => None,
    }
}

fn sent_or(done: usize, errno: i32) -> i32 {
    if done > 0 { done as i32 } else { -errno }
}

/// MULTISHOT_MAX_RETRY of io_uring/net.c.
pub(super) const RECEIVES_PER_TRY: u32 = 32;
