//! Moving bytes between two sockets without copying them: from the source into a pipe, and from the
//! pipe into the target, by splice(2) called from the worker when a poll says that it is worth it.
//! (The ring's own splice op is always handed to a kernel thread.)

use super::core::Core;
use super::driver::PipeEnds;
use super::op::{Lane, Op};
use super::runtime::Ring;
use super::slots::{End, LaneState};
use super::socket::{Relayed, Socket};

/// Pipes of a worker at most, each two descriptors; directions beyond them go by buffers.
pub const MOST_PIPES: usize = 64;
/// Pipes kept for the next direction.
const MOST_SPARE: usize = 8;
/// Fills of a pipe in one turn at most, so that a bulk transfer does not hold others up.
const FILLS_PER_TURN: usize = 4;

/// The pipes of a worker.
#[derive(Default)]
pub(super) struct Pipes {
    spare: Vec<PipeEnds>,
    open: usize,
}

/// A pipe between two sockets, and how much is in it.
pub struct Pipe {
    ring: Ring,
    ends: PipeEnds,
    held: u32,
    /// A poll for data was armed for it.
    waits: bool,
    /// Splice can't go on here: only receive can tell an end from TCP's urgent mark, at which
    /// splice stops for good, with 0 after FIN and with EAGAIN before.
    stuck: bool,
}

/// What came of filling a pipe.
#[derive(PartialEq, Eq)]
enum Filled {
    Some,
    Nothing,
    /// splice(2) said 0.
    Zero,
}

impl Pipe {
    /// Splice can't go on, and nothing is left in the pipe: the direction has to go on by buffers.
    pub fn is_stuck(&self) -> bool {
        self.stuck && self.is_empty()
    }

    /// Nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let (ends, empty) = (self.ends, self.is_empty());
        self.ring.with(|core| core.give_pipe_back(ends, empty));
    }
}

impl Ring {
    /// A pipe for [`Socket::splice_to`]; `None` when the worker has as many as it may, or the
    /// system gives none.
    pub fn pipe(&self) -> Option<Pipe> {
        let ends = self.with(Core::take_pipe)?;
        Some(Pipe {
            ring: self.clone(),
            ends,
            held: 0,
            waits: false,
            stuck: false,
        })
    }
}

impl Socket {
    /// Does what [`Socket::relay_to`] does, through `pipe`. Nothing may be held in buffers.
    pub fn splice_to(&self, to: &Self, pipe: &mut Pipe) -> Relayed {
        self.ring().with(|core| {
            let (from, to) = (self.index(), to.index());
            let ready = pipe.waits && core.slots[from].read == LaneState::Idle;
            let mut moved = 0;
            for turn in 0..FILLS_PER_TURN {
                let filled = core.fill_pipe(from, pipe);
                let in_vain = turn == 0 && ready && filled == Filled::Nothing;
                pipe.stuck |= filled == Filled::Zero || (in_vain && pipe.is_empty());
                let drained = core.drain_pipe(to, pipe);
                moved += drained;
                if drained == 0 || !pipe.is_empty() {
                    break;
                }
            }
            core.after_splice(from, to, moved, pipe)
        })
    }
}

impl Core {
    fn take_pipe(&mut self) -> Option<PipeEnds> {
        if let Some(ends) = self.pipes.spare.pop() {
            return Some(ends);
        }
        if self.pipes.open >= MOST_PIPES {
            return None;
        }
        let ends = self.driver.open_pipe().ok()?;
        self.pipes.open += 1;
        Some(ends)
    }

    fn give_pipe_back(&mut self, ends: PipeEnds, empty: bool) {
        if empty && self.pipes.spare.len() < MOST_SPARE {
            self.pipes.spare.push(ends);
        } else {
            self.close_pipe(ends);
        }
    }

    /// Closes the pipes that nobody uses.
    pub(super) fn close_spare_pipes(&mut self) {
        while let Some(ends) = self.pipes.spare.pop() {
            self.close_pipe(ends);
        }
    }

    fn close_pipe(&mut self, ends: PipeEnds) {
        self.driver.close(ends.read);
        self.driver.close(ends.write);
        self.pipes.open -= 1;
    }

    fn fill_pipe(&mut self, from: u32, pipe: &mut Pipe) -> Filled {
        let source = &mut self.slots[from];
        let room = pipe.ends.capacity - pipe.held;
        if source.ended.is_some() || room == 0 || pipe.stuck {
            return Filled::Nothing;
        }
        match self.driver.splice(source.fd, pipe.ends.write, room) {
            Ok(0) => Filled::Zero,
            Ok(bytes) => {
                pipe.held += bytes;
                Filled::Some
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(0);
                if !matches!(errno, libc::EAGAIN | libc::EINTR) {
                    source.ended = Some(End::Failed(errno));
                }
                Filled::Nothing
            }
        }
    }

    fn drain_pipe(&mut self, to: u32, pipe: &mut Pipe) -> u32 {
        let target = &mut self.slots[to];
        if pipe.is_empty() || target.failure().is_some() || target.write != LaneState::Idle {
            return 0;
        }
        match self.driver.splice(pipe.ends.read, target.fd, pipe.held) {
            Ok(bytes) => {
                pipe.held -= bytes;
                bytes
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(0);
                if !matches!(errno, libc::EAGAIN | libc::EINTR) {
                    target.fail(errno);
                }
                0
            }
        }
    }

    /// Sees to it that something wakes the task: room when the pipe holds bytes, else data.
    fn after_splice(&mut self, from: u32, to: u32, moved: u32, pipe: &mut Pipe) -> Relayed {
        let held = pipe.held;
        if moved > 0 {
            self.slots[to].retries = 0;
        }
        if let Some(errno) = self.slots[to].failure() {
            return Relayed::broken(moved, errno);
        }
        if held > 0 {
            if self.slots[to].write == LaneState::Idle {
                self.wait_for_room(to);
            }
            self.slots[to].wants_sent = true;
        } else if !pipe.stuck {
            self.wait_for_data(from);
        }
        pipe.waits = self.slots[from].read == LaneState::Polling;
        let ended = self.slots[from].ended;
        Relayed {
            moved,
            blocked: held > 0,
            quiet: false,
            flow: self.flow(from, ended, held),
        }
    }

    fn wait_for_data(&mut self, index: u32) {
        let slot = &mut self.slots[index];
        if slot.ended.is_some() || slot.read != LaneState::Idle || slot.closing {
            return;
        }
        slot.read = LaneState::Polling;
        let (fd, token) = (slot.fd, slot.token(Lane::Read, index));
        self.push(Op::WaitForData { fd }, token);
    }
}
