//! Taking a ring apart after a panic, so that nothing of it stays behind: neither half-alive connections nor
//! memory that the kernel writes to after it was freed.
//!
//! ```text
//!   turning ──panic──▶ dismantling ──nothing is with the kernel──▶ empty
//!                           └─the ring itself is broken, or it takes too long──▶ wrecked
//! ```
//!
//! While a thread unwinds, and on a ring that is broken, handles that are dropped do nothing: what they left
//! is closed here. A ring is broken when the panic came out of its own tables, which can't be trusted then.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::core::Core;
use super::op::{Completion, Fd, Lane};
use super::runtime::Ring;
use super::slots::{LaneState, Memory, Receives};

/// What is not closed with the rest.
pub(super) struct Dismantling {
    keep: Vec<Fd>,
    /// Connections that the kernel has accepted and nobody has taken, each with its listening socket.
    accepted: Vec<(Fd, Fd)>,
}

impl Ring {
    /// Ends every task where it stands, whatever its parts do as they are dropped, and aborts every connection:
    /// the other ends see RST. The descriptors of `keep`, listening sockets and eventfds, stay open. The ring
    /// is to be turned until it [is dismantled](Ring::is_dismantled).
    pub fn dismantle(&self, keep: Vec<Fd>) {
        self.with(|core| {
            core.dismantling = Some(Box::new(Dismantling {
                keep,
                accepted: Vec::new(),
            }));
        });
        while let Some(task) = self.take_task() {
            // What one can't let go of is no reason to keep the others. It was told once why it came to this.
            let _ = catch_unwind(AssertUnwindSafe(|| drop(task)));
        }
        if !self.is_broken() {
            let sweep = || self.with(Core::let_go_of_all);
            let _ = catch_unwind(AssertUnwindSafe(sweep));
        }
    }

    /// Nothing of it is with the kernel any more, or it can't be turned.
    pub fn is_dismantled(&self) -> bool {
        self.is_broken() || self.usage().slots == 0
    }

    /// Closes what is left in any case; memory that the kernel may still write to is never freed. Returns the
    /// connections that were accepted and that nobody has taken, each with its listening socket.
    pub fn wreck(&self) -> Vec<(Fd, Fd)> {
        let last = self.take_last();
        self.with(|core| {
            if core.slots.len() > 0 {
                core.wreck(last);
            }
            let dismantling = core.dismantling.as_deref_mut();
            dismantling.map_or_else(Vec::new, |it| std::mem::take(&mut it.accepted))
        })
    }
}

impl Core {
    /// It stays open after the ring.
    pub(super) fn is_kept(&self, fd: Fd) -> bool {
        let dismantling = self.dismantling.as_deref();
        dismantling.is_some_and(|it| it.keep.contains(&fd))
    }

    /// Lets go of connections that were accepted on `listener` and that no task has taken.
    pub(super) fn let_go_of_accepted(&mut self, listener: Fd, accepted: impl Iterator<Item = Fd>) {
        match &mut self.dismantling {
            Some(dismantling) if dismantling.keep.contains(&listener) => {
                let of_it = accepted.map(|accepted| (listener, accepted));
                dismantling.accepted.extend(of_it);
            }
            _ => accepted.for_each(|unclaimed| self.driver.close(unclaimed)),
        }
    }

    /// Lets go of everything whose owner has not.
    fn let_go_of_all(&mut self) {
        for index in self.slots.in_use() {
            let slot = &self.slots[index];
            if slot.closing {
                continue;
            }
            let is_connection = slot.receives != Receives::Datagrams
                && !matches!(
                    slot.memory.as_deref(),
                    Some(Memory::Accepted(_) | Memory::Counter { .. })
                );
            match is_connection {
                true => self.close(index, true),
                false => self.forget(index),
            }
        }
    }

    /// What the kernel has accepted and nobody has heard of yet has no other owner. Nothing else is looked at. What
    /// was booked is still with its listener: no task has run since.
    fn take_last_accepted(&mut self, completions: impl Iterator<Item = Completion>) {
        for Completion { token, result, .. } in completions {
            if token.lane() != Some(Lane::Read) || !self.slots.is_current(token) || result < 0 {
                continue;
            }
            let slot = &self.slots[token.slot()];
            if let Some(Memory::Accepted(heard_of)) = slot.memory.as_deref()
                && !heard_of.contains(&Fd(result))
            {
                self.let_go_of_accepted(slot.fd, std::iter::once(Fd(result)));
            }
        }
    }

    /// Closes every descriptor but those to keep, while ops may be pending. The slots stay in use, so that
    /// their memory is leaked (`drop`). `last`: completions that may not have been booked.
    fn wreck(&mut self, last: Vec<Completion>) {
        let untold = self.driver.abandon();
        self.take_last_accepted(last.into_iter().chain(untold));
        for index in self.slots.in_use() {
            let slot = &mut self.slots[index];
            let fd = std::mem::replace(&mut slot.fd, Fd::NONE);
            slot.closing = true;
            (slot.read, slot.write) = (LaneState::Cancelling, LaneState::Cancelling);
            if let Some(Memory::Accepted(accepted)) = slot.memory.as_deref_mut() {
                let accepted = std::mem::take(accepted);
                self.let_go_of_accepted(fd, accepted.into_iter());
            }
            if fd != Fd::NONE && !self.is_kept(fd) {
                self.driver.linger_zero(fd);
                self.driver.close(fd);
            }
        }
    }
}
