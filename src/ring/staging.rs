//! Memory for bytes that are made here and not received: what TLS makes of them. A send owns its memory as
//! long as it lasts; a few large pieces are kept for the next one, since allocating them anew for every send
//! would cost more than filling them.

use super::runtime::Ring;
use super::slots::Payload;

/// Pieces that are kept.
const MOST_SPARE: usize = 8;
/// From this size on a piece is worth keeping: smaller ones come cheap from the heap, and are as long as they
/// need to be.
const LARGE: usize = 40 << 10;
/// Capacity of a large piece: a window, with room for what encryption adds.
const PIECE: usize = 72 << 10;

/// The pieces of a worker.
#[derive(Default)]
pub(super) struct Staging {
    spare: Vec<Vec<u8>>,
    /// Bytes of memory that sends have, as long as they last.
    pub(super) in_use: usize,
}

impl Staging {
    fn take(&mut self, expected: usize) -> Vec<u8> {
        if expected < LARGE {
            return Vec::with_capacity(expected);
        }
        let spare = self.spare.pop();
        spare.unwrap_or_else(|| Vec::with_capacity(PIECE.max(expected)))
    }

    /// A send is over.
    pub(super) fn take_back(&mut self, payload: Payload) {
        if let Payload::Staged(bytes) = payload {
            self.in_use -= bytes.capacity();
            self.keep(bytes);
        }
    }

    fn keep(&mut self, mut bytes: Vec<u8>) {
        let is_large = (LARGE..=2 * PIECE).contains(&bytes.capacity());
        if is_large && self.spare.len() < MOST_SPARE {
            bytes.clear();
            self.spare.push(bytes);
        }
    }
}

impl Ring {
    /// Empty memory for about so many bytes, for [`Socket::send_staged`](super::Socket::send_staged) or for
    /// work in between.
    pub fn staging(&self, expected: usize) -> Vec<u8> {
        self.with(|core| core.staging.take(expected))
    }

    /// Gives memory back that was not sent.
    pub fn unstage(&self, bytes: Vec<u8>) {
        self.with(|core| core.staging.keep(bytes));
    }
}
