//! What tasks hold of the ring's slots: streams, listeners and eventfds. Dropping one lets the
//! ring cancel, wait for the last completion, and close.
//!
//! A stream's bytes are moved by [`Socket::relay_to`], which never waits: it is called by a task
//! that the sockets' completions wake.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;

use super::core::Core;
use super::driver::Shutdown;
use super::op::Fd;
use super::runtime::Ring;
use super::slots::{End, LaneState, Memory, Payload, Receives};

/// A connected stream socket. Dropped, it closes in order: what the kernel has taken is delivered,
/// then FIN.
pub struct Socket {
    ring: Ring,
    index: u32,
    abort: bool,
}

/// What [`Socket::relay_to`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Relayed {
    /// Bytes whose send was started.
    pub moved: u32,
    /// Bytes are held and nothing is being received: the source's reset would go unnoticed.
    pub blocked: bool,
    /// Nothing is held, nothing is being received, and receiving has not ended.
    pub quiet: bool,
    /// How the direction stands.
    pub flow: Flow,
}

impl Relayed {
    /// The target takes no more; the errno says why.
    pub fn broken(moved: u32, errno: i32) -> Self {
        Self {
            moved,
            blocked: false,
            quiet: false,
            flow: Flow::Broken(errno),
        }
    }
}

impl Core {
    /// [`Socket::relay_to`]
    #[inline(always)]
    fn relay(&mut self, from: u32, to: u32, window: u32) -> Relayed {
        if let Some(errno) = self.slots[to].failure() {
            return Relayed::broken(0, errno);
        }
        let mut moved = 0;
        if self.slots[to].write == LaneState::Idle && !self.slots[from].received.is_empty() {
            moved = self.forward(from, to);
        }
        let waiting = self.slots[from].received.bytes;
        let in_flight = self.slots[to].sending.bytes;
        let held = waiting + in_flight;
        let window = self.window(window);
        if held <= window / 2 && window > 0 {
            self.arm(from, window - held, held > 0);
        }
        let source = &self.slots[from];
        let (ended, armed) = (source.ended, source.read.in_flight());
        let resting = source.read == LaneState::Idle && ended.is_none();
        if in_flight > 0 && (waiting > 0 || !armed) {
            self.slots[to].wants_sent = true;
        }
        Relayed {
            moved,
            blocked: held > 0 && !armed,
            quiet: resting && held == 0,
            flow: self.flow(from, ended, held),
        }
    }
}

/// One direction between two sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    /// Bytes may come, or are on their way.
    Open,
    /// The source sent FIN, and every byte that came before was taken by the target's kernel.
    Finished,
    /// The source was reset or is lost; the errno says which.
    Failed {
        /// Why.
        errno: i32,
        /// Every byte that came before was taken by the target's kernel.
        drained: bool,
    },
    /// The target takes no more; the errno says why.
    Broken(i32),
}

impl Socket {
    pub(super) fn new(ring: Ring, index: u32) -> Self {
        Self {
            ring,
            index,
            abort: false,
        }
    }

    pub(super) fn index(&self) -> u32 {
        self.index
    }

    /// The ring that it belongs to.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// The calling task is the one that completions of this socket wake.
    pub fn belongs_to_this_task(&self) {
        let task = self.ring.running();
        self.ring.with(|core| core.slots[self.index].task = task);
    }

    /// Keeps this socket's bytes flowing to `to`. It sends what has arrived straight from the
    /// buffers when no send is on its way, and keeps a receive armed while at most half a window is
    /// held. As long as there is more to do, something is on its way that wakes the task:
    ///
    /// | held | receive | woken by |
    /// |---|---|---|
    /// | all of it being sent, or nothing | armed | the receive |
    /// | some waits behind a send | armed | the receive, the send |
    /// | any | not armed: window full, starved, or ended | the send |
    /// | nothing | starved | the receive, once there are buffers |
    ///
    /// With a `window` of 0 no receive is armed: the direction comes to rest, and says so.
    pub fn relay_to(&self, to: &Self, window: u32) -> Relayed {
        // Written in place: what `with` returns is copied.
        let mut relayed = Relayed::broken(0, 0);
        self.ring
            .with(|core| relayed = core.relay(self.index, to.index, window));
        relayed
    }

    /// Keeps receiving: at most about `budget` bytes from now on. Nothing happens while a receive is
    /// on its way or after the end.
    pub fn receive(&self, budget: u32) {
        self.ring.with(|core| {
            let holds = !core.slots[self.index].received.is_empty();
            core.arm(self.index, budget, holds);
        });
    }

    /// The same for something that can't be used before it is whole: where buffers are scarce it waits behind
    /// nobody for holding the first part.
    pub fn receive_rest(&self, budget: u32) {
        self.ring.with(|core| core.arm(self.index, budget, false));
    }

    /// Bytes that have arrived and that nobody has taken.
    pub fn held(&self) -> u32 {
        self.ring.with(|core| core.slots[self.index].received.bytes)
    }

    /// The other end has finished, or the connection broke. Known only while a receive is armed, and
    /// from then on.
    pub fn has_ended(&self) -> bool {
        self.ring.with(|core| {
            let slot = &core.slots[self.index];
            slot.ended.is_some() || slot.failure().is_some()
        })
    }

    /// Shows `look` what has arrived, a slice per buffer, and forgets it. Returns the bytes and how
    /// the direction stands. `look` must not use the ring.
    pub fn read(&self, mut look: impl FnMut(&[u8])) -> (u32, Flow) {
        self.ring.with(|core| {
            let chain = core.slots[self.index].received;
            for (start, len) in core.buffers.slices(&chain) {
                // SAFETY: a slice of the chain lies in a buffer that this session holds, the kernel
                // has filled it, and it is given back only after this loop.
                look(unsafe { std::slice::from_raw_parts(start.as_ptr(), len as usize) });
            }
            core.discard_received(self.index);
            let ended = core.slots[self.index].ended;
            (chain.bytes, core.flow(self.index, ended, 0))
        })
    }

    /// Shows `look` what has arrived, a slice per buffer, and keeps it. `look` must not use the ring.
    pub fn peek(&self, mut look: impl FnMut(&[u8])) {
        self.ring.with(|core| {
            let chain = core.slots[self.index].received;
            for (start, len) in core.buffers.slices(&chain) {
                // SAFETY: a slice of the chain lies in a buffer that this session holds, the kernel
                // has filled it, and nothing gives it back while `core` is borrowed.
                look(unsafe { std::slice::from_raw_parts(start.as_ptr(), len as usize) });
            }
        });
    }

    /// Forgets the first `bytes` of what has arrived, which must be there.
    pub fn consume(&self, bytes: u32) {
        self.ring.with(|core| {
            let mut chain = core.slots[self.index].received;
            core.buffers.consume(&mut chain, bytes);
            core.slots[self.index].received = chain;
        });
    }

    /// How the direction that begins here stands. `held`: bytes of it that were taken and are still on
    /// their way.
    pub fn flow(&self, held: u32) -> Flow {
        self.ring.with(|core| {
            let slot = &core.slots[self.index];
            let (ended, held) = (slot.ended, slot.received.bytes + held);
            core.flow(self.index, ended, held)
        })
    }

    /// A receive is with the kernel.
    pub fn is_receiving(&self) -> bool {
        self.ring
            .with(|core| core.slots[self.index].read.in_flight())
    }

    /// Bytes of a staged send that the kernel has not taken yet.
    pub fn staged(&self) -> u32 {
        self.ring
            .with(|core| match core.slots[self.index].memory.as_deref() {
                Some(Memory::Bytes { bytes, taken }) => (bytes.len() - taken) as u32,
                _ => 0,
            })
    }

    /// What a direction may hold now: `most`, or less where much is held in all.
    pub fn window(&self, most: u32) -> u32 {
        self.ring.with(|core| core.window(most))
    }

    /// Starts sending `bytes`, of which there are some, as [`Socket::send`] does. They count as held
    /// until the kernel has taken them.
    pub fn send_staged(&self, bytes: Vec<u8>) -> bool {
        self.start_sending(Payload::Staged(bytes))
    }

    /// Starts sending `bytes`; false when a send is on its way or sending has failed. The task is
    /// woken when it fails, and after [`Socket::wake_when_sent`] when it is done.
    pub fn send(&self, bytes: Rc<[u8]>) -> bool {
        self.start_sending(Payload::Shared(bytes))
    }

    fn start_sending(&self, bytes: Payload) -> bool {
        self.ring.with(|core| {
            let slot = &core.slots[self.index];
            let ready =
                slot.write == LaneState::Idle && slot.failure().is_none() && !bytes.is_empty();
            if ready {
                core.push_bytes(self.index, bytes);
            }
            ready
        })
    }

    /// The task is woken when the send on its way is done.
    pub fn wake_when_sent(&self) {
        self.ring
            .with(|core| core.slots[self.index].wants_sent = true);
    }

    /// The errno with which sending failed, once it has.
    pub fn send_error(&self) -> Option<i32> {
        self.ring.with(|core| core.slots[self.index].failure())
    }

    /// A send is with the kernel.
    pub fn is_sending(&self) -> bool {
        self.ring
            .with(|core| core.slots[self.index].write != LaneState::Idle)
    }

    /// Sends FIN. Receiving goes on.
    pub fn finish(&self) {
        self.ring.with(|core| {
            let fd = core.slots[self.index].fd;
            core.driver.shutdown(fd, Shutdown::Write);
        });
    }

    /// The connection is gone, reset by either side.
    pub fn is_gone(&self) -> bool {
        self.ring.with(|core| {
            let fd = core.slots[self.index].fd;
            core.driver.is_gone(fd)
        })
    }

    /// Bytes that the other end has not acknowledged yet.
    pub fn unacknowledged(&self) -> u32 {
        self.ring.with(|core| {
            let fd = core.slots[self.index].fd;
            core.driver.unacknowledged(fd)
        })
    }

    /// A number that changes whenever the other end acknowledges bytes.
    pub fn progress(&self) -> u64 {
        self.ring.with(|core| {
            let fd = core.slots[self.index].fd;
            core.driver.progress(fd)
        })
    }

    /// Closes with RST; what was not delivered is forgotten.
    pub fn abort(mut self) {
        self.abort = true;
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.ring.let_go(|core| core.close(self.index, self.abort));
    }
}

/// A listening socket of this worker.
pub struct Listener {
    ring: Ring,
    index: u32,
    shared: bool,
}

impl Listener {
    pub(super) fn new(ring: Ring, index: u32, shared: bool) -> Self {
        Self {
            ring,
            index,
            shared,
        }
    }

    /// The next connection; the task is woken when there is one.
    ///
    /// # Errors
    /// As accept4(2). Accepting goes on with the next call; after EMFILE, ENFILE, ENOBUFS and
    /// ENOMEM not before something was freed.
    pub fn poll_accept(&self) -> Poll<io::Result<Socket>> {
        let task = self.ring.running();
        let accepted = self.ring.with(|core| {
            let slot = &mut core.slots[self.index];
            slot.task = task;
            if let Some(Memory::Accepted(accepted)) = slot.memory.as_deref_mut()
                && let Some(fd) = accepted.pop_front()
            {
                return Poll::Ready(Ok(fd));
            }
            if let Some(End::Failed(errno)) = slot.ended.take() {
                return Poll::Ready(Err(io::Error::from_raw_os_error(errno)));
            }
            core.arm_accept(self.index, self.shared);
            Poll::Pending
        });
        accepted.map_ok(|fd| self.take_over(fd))
    }

    /// Stops accepting and waits until the kernel has confirmed it.
    pub async fn stop(&self) {
        self.ring.with(|core| core.cancel_read(self.index));
        poll_fn(|_| {
            let task = self.ring.running();
            self.ring.with(|core| {
                let slot = &mut core.slots[self.index];
                slot.task = task;
                if slot.read.in_flight() {
                    Poll::Pending
                } else {
                    Poll::Ready(())
                }
            })
        })
        .await;
    }

    /// A connection that was accepted before [`Listener::stop`] or still stands in the kernel's
    /// queue; `None` when there are no more.
    ///
    /// # Errors
    /// As accept4(2); the queue may hold more.
    pub fn take_queued(&self) -> io::Result<Option<Socket>> {
        let taken = self.ring.with(|core| {
            let slot = &mut core.slots[self.index];
            if let Some(Memory::Accepted(accepted)) = slot.memory.as_deref_mut()
                && let Some(fd) = accepted.pop_front()
            {
                return Ok(fd);
            }
            core.driver.accept_now(slot.fd)
        });
        match taken {
            Ok(fd) => Ok(Some(self.take_over(fd))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// An accepted socket is of the listener's family.
    fn take_over(&self, fd: Fd) -> Socket {
        let receives = self.ring.with(|core| core.slots[self.index].receives);
        self.ring
            .take_over(fd, receives == Receives::StreamByBuffer)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.ring.let_go(|core| core.forget(self.index));
    }
}

/// An eventfd: how other threads reach this worker.
pub struct Event {
    ring: Ring,
    index: u32,
}

impl Event {
    pub(super) fn new(ring: Ring, index: u32) -> Self {
        Self { ring, index }
    }

    /// Waits until the eventfd was signalled since the last time.
    ///
    /// # Errors
    /// As read(2).
    pub async fn signalled(&self) -> io::Result<()> {
        poll_fn(|_| {
            let task = self.ring.running();
            self.ring.with(|core| {
                let slot = &mut core.slots[self.index];
                slot.task = task;
                if let Some(Memory::Counter { signalled, .. }) = slot.memory.as_deref_mut()
                    && std::mem::take(signalled)
                {
                    return Poll::Ready(Ok(()));
                }
                if let Some(End::Failed(errno)) = slot.ended.take() {
                    return Poll::Ready(Err(io::Error::from_raw_os_error(errno)));
                }
                core.arm_event(self.index);
                Poll::Pending
            })
        })
        .await
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.ring.let_go(|core| core.forget(self.index));
    }
}
