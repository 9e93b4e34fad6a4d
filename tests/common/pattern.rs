//! Bytes that tell their place in a stream, so that a lost, doubled or swapped one is seen.

use std::io::{self, Read, Write};

/// The byte at `place`. The period is a prime, so that no buffer's size hides a shift.
fn byte(place: u64) -> u8 {
    (place % 251) as u8
}

/// One chunk to write or compare with; any chunk of a stream is a slice of it.
fn ruler() -> Vec<u8> {
    (0..CHUNK as u64 + 251).map(byte).collect()
}

/// A writer or a checker of the pattern.
pub(crate) struct Pattern {
    ruler: Vec<u8>,
    buffer: Vec<u8>,
    /// Bytes written or checked so far.
    pub(crate) place: u64,
}

impl Pattern {
    pub(crate) fn new() -> Self {
        Self {
            ruler: ruler(),
            buffer: vec![0; CHUNK],
            place: 0,
        }
    }

    /// Writes the next `count` bytes.
    pub(crate) fn write(&mut self, to: &mut impl Write, count: u64) -> io::Result<()> {
        let end = self.place + count;
        while self.place < end {
            let most = (end - self.place).min(CHUNK as u64) as usize;
            let written = to.write(&self.expected()[..most])?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.place += written as u64;
        }
        Ok(())
    }

    /// Reads once, at most `most` bytes, and compares; 0 = the end.
    pub(crate) fn check_some(&mut self, from: &mut impl Read, most: usize) -> io::Result<usize> {
        let mut buffer = std::mem::take(&mut self.buffer);
        let read = from.read(&mut buffer[..most.min(CHUNK)]);
        if let Ok(count) = read {
            assert!(
                buffer[..count] == self.expected()[..count],
                "a wrong byte within {count} from {}",
                self.place
            );
            self.place += count as u64;
        }
        self.buffer = buffer;
        read
    }

    /// Reads the next `count` bytes.
    pub(crate) fn check(&mut self, from: &mut impl Read, count: u64) -> io::Result<()> {
        let end = self.place + count;
        while self.place < end {
            let most = (end - self.place).min(CHUNK as u64) as usize;
            if self.check_some(from, most)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Reads to the end, whatever kind of end it is.
    pub(crate) fn check_to_end(&mut self, from: &mut impl Read) -> io::Result<()> {
        while self.check_some(from, CHUNK)? > 0 {}
        Ok(())
    }

    fn expected(&self) -> &[u8] {
        let start = (self.place % 251) as usize;
        &self.ruler[start..start + CHUNK]
    }
}

const CHUNK: usize = 64 * 1024;
