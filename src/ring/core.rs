//! The state of one ring: slots, buffers, timers and the run queue, and what a completion does to
//! them. No task runs in here: completions fill slots and name tasks, and the runtime polls those
//! afterwards. The write lane is in [`super::send`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::buffers::{
    BUFFER_BYTES, Buffers, Chain, DATAGRAM_BYTES, MOST_DATAGRAM_BUFFERS, TRIM_INTERVAL,
};
use super::dismantle::Dismantling;
use super::driver::{Capabilities, Driver, Shutdown};
use super::executor::{Executor, RunQueue};
use super::meter::{Meter, Reading};
use super::op::{Completion, Fd, Group, Lane, Op, Token};
use super::slots::{End, LaneState, Memory, Receives, Slots};
use super::splice::Pipes;
use super::staging::Staging;
use super::timers::{TimerId, Timers};
use super::udp::Templates;
use crate::time::Instant;

/// How often the meter is told, while anything happens.
const TELL_INTERVAL: Duration = Duration::from_millis(100);

/// Starved receivers looked at in one turn: the rest keep their place in the line.
const STARVED_PER_TURN: usize = 256;

pub(super) struct Core {
    pub(super) driver: Box<dyn Driver>,
    capabilities: Capabilities,
    pub(super) slots: Slots,
    pub(super) buffers: Buffers<BUFFER_BYTES>,
    /// Empty until there is a datagram socket.
    pub(super) datagrams: Buffers<DATAGRAM_BYTES>,
    pub(super) templates: Box<Templates>,
    pub(super) timers: Timers,
    pub(super) queue: RunQueue,
    pub(super) now: Instant,
    starved: VecDeque<(u32, u32)>,
    /// The kernel found no buffer for a receive.
    ran_short: bool,
    /// There are buffers, and receivers in the line that were not looked at.
    pub(super) hungry: bool,
    /// Receivers in the line that were looked at in vain since something has happened.
    passed_over: usize,
    trim_at: Option<Instant>,
    pub(super) pipes: Pipes,
    pub(super) staging: Staging,
    /// Turns so far.
    pub(super) turns: u64,
    /// Since the meter was told the last time.
    untold: Reading,
    tell_at: Option<Instant>,
    /// Of the driver, when they were last looked at.
    overflows: u64,
    /// What the thread had used when it was told last.
    cpu_nanos: u64,
    /// The next completion that is booked panics.
    #[cfg(debug_assertions)]
    pub(super) doomed: bool,
    pub(super) meter: Arc<Meter>,
    /// Slots whose blocked send is due; kept for its allocation.
    due: Vec<u32>,
    cancels: u32,
    /// The worker has panicked: connections are aborted.
    pub(super) dismantling: Option<Box<Dismantling>>,
}

impl Core {
    pub(super) fn new(mut driver: Box<dyn Driver>, most_buffers: usize) -> Self {
        let (now, cpu_nanos) = (driver.now(), driver.cpu_nanos());
        let capabilities = driver.capabilities();
        let mut core = Self {
            driver,
            capabilities,
            slots: Slots::default(),
            buffers: Buffers::new(most_buffers),
            datagrams: Buffers::empty(),
            templates: Templates::new(),
            timers: Timers::new(now),
            queue: RunQueue::default(),
            now,
            starved: VecDeque::new(),
            ran_short: false,
            hungry: false,
            passed_over: 0,
            trim_at: None,
            pipes: Pipes::default(),
            staging: Staging::default(),
            turns: 0,
            untold: Reading::default(),
            tell_at: None,
            overflows: 0,
            cpu_nanos,
            #[cfg(debug_assertions)]
            doomed: false,
            meter: Arc::default(),
            due: Vec::new(),
            cancels: 0,
            dismantling: None,
        };
        core.provide();
        core
    }

    /// When the loop has to turn next without a completion.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let timer = self.timers.next_deadline();
        [timer, self.trim_at, self.tell_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// Gives the kernel the buffers that are free again.
    pub(super) fn provide(&mut self) {
        provide(&mut *self.driver, Group::Stream, &mut self.buffers);
        provide(&mut *self.driver, Group::Datagrams, &mut self.datagrams);
    }

    /// There is a datagram socket: buffers for it, if this is the first.
    pub(super) fn begin_datagrams(&mut self) {
        if self.datagrams.limit() == 0 {
            self.datagrams = Buffers::new(MOST_DATAGRAM_BUFFERS);
        }
    }

    /// Everything that time alone brings about. All completions of the turn are booked by now:
    /// trimming must not forget what they filled.
    pub(super) fn tick(&mut self) {
        let now = self.now;
        let mut due = std::mem::take(&mut self.due);
        let queue = &mut self.queue;
        self.timers.expire(now, |task| match task.slot() {
            Some(index) => due.push(index),
            None => queue.wake(task),
        });
        for index in due.drain(..) {
            self.retry_send(index);
        }
        self.due = due;
        if self.trim_at.is_some_and(|at| at <= now) {
            let quiescent = self.driver.is_quiescent();
            self.buffers.trim(quiescent);
            self.datagrams.trim(quiescent);
            self.trim_at = None;
        }
        if self.trim_at.is_none() && (self.buffers.wants_trim() || self.datagrams.wants_trim()) {
            self.trim_at = Some(now + TRIM_INTERVAL);
        }
    }

    /// Takes down what this turn was like. It is told now and then: to do that every turn costs percents.
    #[inline(always)]
    pub(super) fn measure(&mut self, completions: usize, executor: &Executor) {
        self.untold.turns += 1;
        self.untold.completions += completions as u64;
        match self.tell_at {
            Some(at) if self.now >= at => self.tell(executor.len()),
            // A turn in which only time has passed is not worth another one.
            None if completions > 0 => self.tell_at = Some(self.now + TELL_INTERVAL),
            _ => {}
        }
    }

    #[cold]
    fn tell(&mut self, tasks: usize) {
        self.tell_at = None;
        let overflows = self.driver.overflows();
        let before = std::mem::replace(&mut self.overflows, overflows);
        let cpu_nanos = self.driver.cpu_nanos();
        let used_before = std::mem::replace(&mut self.cpu_nanos, cpu_nanos);
        let untold = std::mem::take(&mut self.untold);
        self.meter.note(&Reading {
            busy_nanos: cpu_nanos.saturating_sub(used_before),
            overflows: overflows - before,
            tasks: tasks as u64,
            descriptors: self.slots.len() as u64,
            buffers: (self.buffers.held() + self.datagrams.held()) as u64,
            starved: self.starved.len() as u64,
            timers: self.timers.len() as u64,
            ..untold
        });
    }

    /// Books one completion: fills its slot and wakes its task.
    pub(super) fn complete(&mut self, completion: &Completion) {
        #[cfg(debug_assertions)]
        assert!(!self.doomed, "asked to, while completions were booked");
        let token = completion.token;
        match token.lane() {
            Some(Lane::Read) if self.slots.is_current(token) => self.complete_read(completion),
            Some(Lane::Write) if self.slots.is_current(token) => self.complete_write(completion),
            Some(Lane::Datagrams) if self.slots.is_current(token) => {
                self.complete_datagram(completion);
            }
            // A stale completion still gives its buffer back; an accepted descriptor has no owner.
            lane => self.give_back(completion, lane),
        }
    }

    fn complete_read(&mut self, completion: &Completion) {
        let index = completion.token.slot();
        let slot = &mut self.slots[index];
        let polled = slot.read == LaneState::Polling;
        if !completion.more {
            slot.read = LaneState::Idle;
        }
        if polled {
            // Whoever waits looks for himself.
        } else if let Some(buffer) = completion.buffer {
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
            self.buffers.release(&mut one);
            return;
        }
        let mut chain = slot.received;
        self.buffers.append(&mut chain, one);
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
            Some(Memory::Counter { signalled, .. }) => *signalled = true,
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
                self.ran_short = true;
                self.untold.shortages += 1;
                if !slot.closing {
                    self.starve(index);
                }
            }
            errno => slot.ended = Some(End::Failed(errno)),
        }
    }

    pub(super) fn after_completion(&mut self, index: u32, wake: bool) {
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

    fn give_back(&mut self, completion: &Completion, lane: Option<Lane>) {
        let Some(buffer) = completion.buffer else {
            return;
        };
        if lane == Some(Lane::Datagrams) {
            let mut one = self.datagrams.filled(buffer, 0);
            self.datagrams.release(&mut one);
        } else {
            let mut one = self.buffers.filled(buffer, 0);
            self.buffers.release(&mut one);
        }
    }

    /// Buffers that sessions hold, what they have staged included: it was received into as many.
    fn in_use(&self) -> usize {
        self.buffers.held() + self.staging.in_use / BUFFER_BYTES as usize
    }

    /// More than three quarters of all buffers are with sessions: the rest is for those that hold
    /// none.
    fn is_scarce(&self) -> bool {
        self.in_use() * 4 >= self.buffers.limit() * 3
    }

    /// What a direction may hold at most: `most` while little of the pool is in use, half of it from
    /// an eighth on, and one buffer from a quarter on. So stalled readers fill the first quarter in
    /// bulk, and after that take one buffer each.
    pub(super) fn window(&self, most: u32) -> u32 {
        let (held, limit) = (self.in_use(), self.buffers.limit());
        let window = match held {
            _ if held * 8 < limit => most,
            _ if held * 4 < limit => most / 2,
            _ => BUFFER_BYTES,
        };
        let share = u32::try_from((limit / 4).max(1)).unwrap_or(u32::MAX);
        window.min(most).min(share.saturating_mul(BUFFER_BYTES))
    }

    /// Starts receiving `budget` bytes, one buffer more at most, unless a receive is on its way or
    /// receiving has ended. `holds`: the session has buffers of this direction already.
    pub(super) fn arm(&mut self, index: u32, budget: u32, holds: bool) {
        let slot = &self.slots[index];
        // Mostly so.
        if slot.ended.is_some() || slot.closing || slot.read.in_flight() {
            return;
        }
        self.begin_to_receive(index, budget, holds);
    }

    /// Apart from `arm`, which is inlined into every step of a relay without it.
    #[inline(never)]
    fn begin_to_receive(&mut self, index: u32, budget: u32, holds: bool) {
        let scarce = self.is_scarce();
        let slot = &mut self.slots[index];
        slot.budget = budget.max(1);
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
            multishot: multishot_recv && recv_budget && slot.receives == Receives::Stream,
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

    /// Arms starved receivers again, in order, as far as there are buffers; when buffers are scarce
    /// only those that hold none. `fresh`: something has happened since the last time, so that
    /// those that were passed over are worth another look.
    pub(super) fn feed_starved(&mut self, fresh: bool) {
        if fresh {
            self.passed_over = 0;
        }
        self.hungry = false;
        if self.starved.is_empty() {
            return;
        }
        if std::mem::take(&mut self.ran_short) || self.buffers.provided() == 0 {
            self.buffers.grow();
        }
        let mut free = self.buffers.provided();
        let scarce = self.is_scarce();
        for _ in 0..self.starved.len().min(STARVED_PER_TURN) {
            if free == 0 {
                return;
            }
            let Some((index, generation)) = self.starved.pop_front() else {
                return;
            };
            let slot = &self.slots[index];
            if slot.generation != generation || slot.read != LaneState::Starved {
                continue;
            }
            if slot.holds && scarce {
                self.starved.push_back((index, generation));
                self.passed_over += 1;
                continue;
            }
            self.push_recv(index);
            free -= 1;
        }
        self.hungry = self.passed_over < self.starved.len();
    }

    /// Cancels the op of the read lane, if one is with the kernel.
    pub(super) fn cancel_read(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        if slot.read == LaneState::Armed {
            slot.read = LaneState::Cancelling;
            let lane = match slot.receives {
                Receives::Datagrams => Lane::Datagrams,
                Receives::Stream | Receives::StreamByBuffer => Lane::Read,
            };
            let target = slot.token(lane, index);
            self.push_cancel(target);
        }
    }

    pub(super) fn push_cancel(&mut self, target: Token) {
        self.cancels = self.cancels.wrapping_add(1);
        self.push(
            Op::Cancel { target },
            Token::new(Lane::Cancel, 0, self.cancels),
        );
    }

    pub(super) fn push(&mut self, op: Op, token: Token) {
        // SAFETY: every pointer of an op leads into buffers or into memory that `token`'s slot
        // owns, and neither is given back before the last completion (`complete_read`,
        // `complete_write`, `release_slot`); what is still in use at the end is leaked (`drop`).
        unsafe { self.driver.push(op, token) }
    }

    /// The owner lets go of a stream. With `abort` the other side sees RST and what was not sent
    /// is forgotten; without, what the kernel has taken is still delivered, then FIN.
    pub(super) fn close(&mut self, index: u32, abort: bool) {
        let abort = abort || self.dismantling.is_some();
        let fd = self.slots[index].fd;
        self.slots[index].closing = true;
        if self.slots[index].read == LaneState::Starved {
            self.slots[index].read = LaneState::Idle;
        }
        if self.slots[index].write == LaneState::Blocked {
            self.unblock(index);
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

    /// Nobody wants what a datagram socket has received.
    fn discard_datagrams(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        if slot.receives == Receives::Datagrams {
            let mut received = std::mem::replace(&mut slot.received, Chain::EMPTY);
            self.datagrams.release(&mut received);
        }
    }

    /// The owner lets go of a datagram socket, a listener or an eventfd.
    pub(super) fn forget(&mut self, index: u32) {
        self.slots[index].closing = true;
        self.discard_datagrams(index);
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
        let (fd, retry, receives) = (slot.fd, slot.retry, slot.receives);
        if retry != TimerId::NONE {
            self.timers.remove(retry);
        }
        match receives {
            Receives::Datagrams => self.datagrams.release(&mut received),
            Receives::Stream | Receives::StreamByBuffer => self.buffers.release(&mut received),
        }
        self.buffers.release(&mut sending);
        match memory.map(|memory| *memory) {
            Some(Memory::Accepted(accepted)) => {
                self.let_go_of_accepted(fd, accepted.into_iter());
            }
            Some(Memory::Bytes { bytes, .. }) => self.staging.take_back(bytes),
            _ => {}
        }
        if fd != Fd::NONE && !self.is_kept(fd) {
            self.driver.close(fd);
        }
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
        let Some(Memory::Counter { counter, .. }) = slot.memory.as_deref_mut() else {
            unreachable!("an event's slot owns a counter");
        };
        let counter = &raw mut *counter;
        self.push(Op::ReadEvent { fd, counter }, token);
    }
}

/// Gives the kernel what of a pool is free again.
fn provide<const BYTES: u32>(driver: &mut dyn Driver, group: Group, pool: &mut Buffers<BYTES>) {
    for (buffer, start) in pool.take_outgoing() {
        // SAFETY: the pool hands over whole buffers of its mappings, each to the kernel or to a session at
        // a time; see `drop` for its mappings' end.
        unsafe { driver.provide(group, buffer, start, BYTES) };
    }
}

impl Drop for Core {
    /// Spare pipes are closed. A ring is torn down asynchronously: as long as an op may be pending the kernel may still
    /// write. Slots are in use until their last completion, so any that is left means leaking what
    /// it and the kernel have.
    fn drop(&mut self) {
        self.close_spare_pipes();
        if self.slots.len() > 0 {
            std::mem::forget(std::mem::replace(&mut self.buffers, Buffers::empty()));
            std::mem::forget(std::mem::replace(&mut self.datagrams, Buffers::empty()));
            std::mem::forget(std::mem::replace(&mut self.templates, Templates::new()));
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}
