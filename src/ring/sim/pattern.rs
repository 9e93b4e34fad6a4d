//! The bytes that peers say: a counted pattern, made and compared by the slice. A byte depends on
//! its stream and its offset, so that a lost, doubled, swapped or foreign one is seen.

use std::sync::{Arc, OnceLock};

use super::random::{Random, mix};

/// Bytes that carry the stream's number in front of what a client says.
pub(super) const PREFIX: usize = 8;

/// What is said in one direction of a connection: a greeting that depends on nothing, an opening, the
/// stream's number, and then the stream's pattern.
#[derive(Clone, Debug)]
pub(super) struct Voice {
    /// Bytes of the greeting.
    pub(super) greeting: u64,
    /// Bytes that are known beforehand; empty = none.
    pub(super) opening: Arc<[u8]>,
    /// Little endian; only clients say it.
    pub(super) prefix: Option<[u8; PREFIX]>,
    /// `None` until it was learned.
    pub(super) stream: Option<u64>,
}

impl Voice {
    /// The longest piece of at most `len` bytes at `offset`; empty when the stream isn't known.
    pub(super) fn piece(&self, offset: u64, len: usize) -> &[u8] {
        if let Some(rest) = self.greeting.checked_sub(offset).filter(|rest| *rest > 0) {
            return pattern(GREETING, offset, len.min(rest as usize));
        }
        let offset = offset - self.greeting;
        let opening = self.opening.len() as u64;
        if offset < opening {
            let rest = &self.opening[offset as usize..];
            return &rest[..len.min(rest.len())];
        }
        let offset = offset - opening;
        if let Some(prefix) = &self.prefix
            && offset < PREFIX as u64
        {
            let rest = &prefix[offset as usize..];
            return &rest[..len.min(rest.len())];
        }
        self.stream
            .map_or(&[], |stream| pattern(stream, offset, len))
    }

    /// Whether `bytes` are what is said at `offset`.
    pub(super) fn says(&self, mut offset: u64, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let piece = self.piece(offset, bytes.len());
            if piece.is_empty() || !bytes.starts_with(piece) {
                return false;
            }
            offset += piece.len() as u64;
            bytes = &bytes[piece.len()..];
        }
        true
    }
}

/// The number of the stream that answers `stream`.
pub(super) const fn reply(stream: u64) -> u64 {
    !stream
}

/// At most `len` bytes of a stream's pattern, from `offset` on.
pub(super) fn pattern(stream: u64, offset: u64, len: usize) -> &'static [u8] {
    let table = table();
    let start = (mix(stream) % PERIOD + offset) % PERIOD;
    let start = start as usize;
    &table[start..table.len().min(start + len)]
}

fn table() -> &'static [u8] {
    static TABLE: OnceLock<Vec<u8>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut random = Random::new(GREETING);
        (0..PERIOD).map(|_| random.next() as u8).collect()
    })
}

/// A prime, so that no buffer's or window's size is a multiple of it.
const PERIOD: u64 = 262_139;
const GREETING: u64 = 0x6772_6565_7469_6e67;
