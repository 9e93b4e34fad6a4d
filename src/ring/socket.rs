//! What tasks hold of the ring's slots: streams, listeners and eventfds. Dropping one lets the
//! ring cancel, wait for the last completion, and close.
//!
//! A stream's bytes are moved by [`Socket::relay_to`], which never waits: it is called by a task
//! that the sockets' completions wake.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use super::driver::Shutdown;
use super::op::Fd;
use super::runtime::Ring;
use super::slots::{End, LaneState, Memory};

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
    /// How the direction stands.
    pub state: Flow,
}

/// One direction between two sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flow {
    /// Bytes may come.
    Open,
    /// Receiving ended, and every byte that came before was taken by the target's kernel.
    Ended(End),
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

    /// The calling task is the one that completions of this socket wake.
    pub fn belongs_to_this_task(&self) {
        let task = self.ring.running();
        self.ring.with(|core| core.slots[self.index].task = task);
    }

    /// Keeps this socket's bytes flowing to `to`: sends what has arrived straight from the buffers
    /// when no send is on its way, and keeps a receive armed as long as fewer than `window` bytes
    /// are held. The task is woken when there is more to do.
    pub fn relay_to(&self, to: &Self, window: u32) -> Relayed {
        self.ring.with(|core| {
            let target = &core.slots[to.index];
            if let Some(errno) = target.failed {
                return Relayed {
                    moved: 0,
                    state: Flow::Broken(errno),
                };
            }
            let mut moved = 0;
            if target.write == LaneState::Idle && !core.slots[self.index].received.is_empty() {
                moved = core.forward(self.index, to.index);
            }
            let source = &core.slots[self.index];
            let waiting = source.received.bytes;
            let in_flight = core.slots[to.index].sending.bytes;
            let held = waiting + in_flight;
            let ended = source.ended.filter(|_| held == 0);
            let armed = source.read.in_flight() || source.ended.is_some();
            if !armed && held <= window / 2 {
                core.arm(self.index, window - held, held > 0);
            } else if in_flight > 0 && (waiting > 0 || !armed || source.ended.is_some()) {
                core.slots[to.index].wants_sent = true;
            }
            let state = ended.map_or(Flow::Open, |end| {
                Flow::Ended(core.true_end(self.index, end))
            });
            Relayed { moved, state }
        })
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
        self.ring.with(|core| core.close(self.index, self.abort));
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
        accepted.map_ok(|fd| self.ring.adopt(fd))
    }

    /// Stops accepting and waits until the kernel has confirmed it; connections that were accepted
    /// by then and those that still stand in the kernel's queue are returned.
    pub async fn stop(self) -> Vec<Socket> {
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
        let mut left = Vec::new();
        while let Some(fd) = self.take_queued() {
            left.push(self.ring.adopt(fd));
        }
        left
    }

    fn take_queued(&self) -> Option<Fd> {
        self.ring.with(|core| {
            let slot = &mut core.slots[self.index];
            if let Some(Memory::Accepted(accepted)) = slot.memory.as_deref_mut()
                && let Some(fd) = accepted.pop_front()
            {
                return Some(fd);
            }
            core.driver.accept_now(slot.fd).ok()
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.ring.with(|core| core.forget(self.index));
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
                if std::mem::take(&mut slot.drained) {
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
        self.ring.with(|core| core.forget(self.index));
    }
}
