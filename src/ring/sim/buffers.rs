//! The buffers that one driver was provided with: whose each of them is, and whether the rules of
//! handing them to and fro are kept.

use std::collections::{BTreeMap, VecDeque};
use std::ptr::NonNull;

/// Handed out first in, first out, as the kernel's ring does.
#[derive(Default)]
pub(super) struct Buffers {
    ring: VecDeque<u16>,
    known: BTreeMap<u16, Buffer>,
    /// Memory that is the kernel's: start → length.
    spans: BTreeMap<usize, usize>,
    held: usize,
}

/// One buffer's memory.
#[derive(Clone, Copy)]
pub(super) struct Buffer {
    pub(super) start: NonNull<u8>,
    pub(super) len: usize,
    /// In the ring, or filled and not yet returned.
    in_kernel: bool,
}

impl Buffers {
    /// Takes a buffer from its user, or says which rule that breaks and takes nothing.
    pub(super) fn provide(&mut self, id: u16, start: NonNull<u8>, len: u32) -> Result<(), String> {
        let known = self.known.get(&id).copied();
        if known.is_some_and(|buffer| buffer.in_kernel) {
            return Err(format!(
                "buffer {id} was provided while the kernel holds it"
            ));
        }
        let (first, len) = (start.as_ptr().addr(), len as usize);
        let before = self.spans.range(..first + len).next_back();
        if before.is_some_and(|(start, len)| start + len > first) {
            return Err(format!("buffer {id} overlaps memory that the kernel holds"));
        }
        self.held -= usize::from(known.is_some());
        self.spans.insert(first, len);
        let in_kernel = true;
        let buffer = Buffer {
            start,
            len,
            in_kernel,
        };
        self.known.insert(id, buffer);
        self.ring.push_back(id);
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// Bytes of the next buffer to fill.
    pub(super) fn next_len(&self) -> Option<usize> {
        let id = self.ring.front()?;
        Some(self.known[id].len)
    }

    /// The next buffer to fill. Its memory stays the kernel's until [`Buffers::returned`].
    pub(super) fn take(&mut self) -> Option<(u16, Buffer)> {
        let id = self.ring.pop_front()?;
        Some((id, self.known[&id]))
    }

    /// The completion that carries the buffer was handed out.
    pub(super) fn returned(&mut self, id: u16) {
        let Some(buffer) = self.known.get_mut(&id) else {
            return;
        };
        buffer.in_kernel = false;
        self.spans.remove(&buffer.start.as_ptr().addr());
        self.held += 1;
    }

    /// How many are with their user.
    pub(super) fn held(&self) -> usize {
        self.held
    }
}
