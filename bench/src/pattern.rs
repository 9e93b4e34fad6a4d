//! The counted pattern: byte `n` of a stream is `n` modulo 251. 251 is a prime, so that a block
//! that is lost, doubled or swapped is seen whatever power of two its size is.

use std::rc::Rc;

/// After how many bytes it begins anew.
const PERIOD: usize = 251;
/// Bytes of a block: whole periods, so that one block follows upon another; about 1/4 MiB, so that
/// sending costs little per byte.
pub(crate) const BLOCK_BYTES: usize = PERIOD * 1024;

/// The pattern in memory.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    /// A block, and a period more, so that a block may be compared from any place of a period on.
    bytes: Rc<[u8]>,
    block: Rc<[u8]>,
}

impl Pattern {
    pub(crate) fn new() -> Self {
        Self {
            bytes: bytes(BLOCK_BYTES + PERIOD),
            block: bytes(BLOCK_BYTES),
        }
    }

    /// At most `left` bytes from a block's begin on, to be sent.
    pub(crate) fn block(&self, left: u64) -> Rc<[u8]> {
        match usize::try_from(left) {
            Ok(left) if left < BLOCK_BYTES => bytes(left),
            _ => self.block.clone(),
        }
    }

    /// Puts those from `position` on into `place`.
    pub(crate) fn fill(&self, position: u64, place: &mut [u8]) {
        let mut position = position;
        for chunk in place.chunks_mut(BLOCK_BYTES) {
            let at = (position % PERIOD as u64) as usize;
            position += chunk.len() as u64;
            chunk.copy_from_slice(&self.bytes[at..at + chunk.len()]);
        }
    }

    /// These bytes are those from `position` on.
    pub(crate) fn matches(&self, position: u64, received: &[u8]) -> bool {
        let mut position = position;
        received.chunks(BLOCK_BYTES).all(|chunk| {
            let at = (position % PERIOD as u64) as usize;
            position += chunk.len() as u64;
            self.bytes[at..at + chunk.len()] == *chunk
        })
    }
}

/// The first `count` bytes of the pattern.
pub(crate) fn bytes(count: usize) -> Rc<[u8]> {
    (0..count).map(|n| (n % PERIOD) as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_follow_upon_each_other_from_any_position() {
        let pattern = Pattern::new();
        let stream: Vec<u8> = (0..3 * BLOCK_BYTES).map(|n| (n % 251) as u8).collect();
        for position in [0, 1, 250, 251, 70_000, BLOCK_BYTES - 1, BLOCK_BYTES] {
            assert!(pattern.matches(position as u64, &stream[position..]));
            assert!(!pattern.matches(position as u64 + 1, &stream[position..]));
            let mut filled = vec![0; stream.len() - position];
            pattern.fill(position as u64, &mut filled);
            assert_eq!(filled, stream[position..]);
        }
        let sent: Vec<u8> = [pattern.block(u64::MAX), pattern.block(300)].concat();
        assert_eq!(sent.len(), BLOCK_BYTES + 300);
        assert!(pattern.matches(0, &sent));
    }

    #[test]
    fn one_wrong_byte_is_found() {
        let pattern = Pattern::new();
        let mut stream = pattern.block(u64::MAX).to_vec();
        stream[99_999] ^= 1;
        assert!(!pattern.matches(0, &stream));
    }
}
