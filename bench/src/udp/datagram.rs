//! What the generator's datagrams look like, numbers big-endian:
//!
//! ```text
//!   0     4      5          6     8        12         20      28
//!   │ run │ kind │ segments │  0  │ source │ sequence │ stamp │ the counted pattern …
//! ```
//!
//! The pattern begins where the head says, so that a body under another datagram's head is found, and
//! a head that was changed as well (but for one change in 251).

use crate::pattern::Pattern;

/// The most that UDP over IPv4 carries.
pub const MOST_BYTES: usize = 65_507;
/// A datagram that is nothing but a head.
pub const HEAD_BYTES: usize = 28;

/// What a datagram is there for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    /// To come back as it is.
    Echo = 1,
    /// A part of a burst; its sequence is that of its first datagram and where it stands in it.
    Segment = 2,
    /// Asks for a burst of as many datagrams as `segments` says, each as long as this one.
    Ask = 3,
    /// Asks what has arrived so far.
    Query = 4,
    /// Says what has arrived so far ([`Totals`]); its sequence is the number of a burst that is through.
    Acknowledgement = 5,
}

impl Kind {
    const ALL: [Self; 5] = [
        Self::Echo,
        Self::Segment,
        Self::Ask,
        Self::Query,
        Self::Acknowledgement,
    ];
}

/// What a datagram begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Head {
    /// Tells the datagrams of one run from those of another that come late.
    pub(super) run: u32,
    pub(super) kind: Kind,
    /// Datagrams of the burst that this one belongs to or is about; at least 1.
    pub(super) segments: u8,
    /// The socket that it is from, or for.
    pub(super) source: u32,
    pub(super) sequence: u64,
    /// When it was meant to go out.
    pub(super) stamp: u64,
}

impl Head {
    /// `None` when it can't be one.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEAD_BYTES] = bytes.first_chunk()?;
        let kind = Kind::ALL.into_iter().find(|kind| *kind as u8 == bytes[4])?;
        Some(Self {
            run: number(bytes, 0, 4) as u32,
            kind,
            segments: bytes[5].max(1),
            source: number(bytes, 8, 12) as u32,
            sequence: number(bytes, 12, 20),
            stamp: number(bytes, 20, 28),
        })
    }

    /// Makes a datagram of `bytes`: this head, then the pattern.
    pub(super) fn write(&self, pattern: &Pattern, bytes: &mut [u8]) {
        let body = self.write_head(bytes);
        pattern.fill(self.pattern_begin(), body);
    }

    /// Puts the head at the beginning and returns the rest.
    pub(super) fn write_head<'a>(&self, bytes: &'a mut [u8]) -> &'a mut [u8] {
        let (head, body) = bytes.split_at_mut(HEAD_BYTES);
        head[..4].copy_from_slice(&self.run.to_be_bytes());
        head[4..8].copy_from_slice(&[self.kind as u8, self.segments, 0, 0]);
        head[8..12].copy_from_slice(&self.source.to_be_bytes());
        head[12..20].copy_from_slice(&self.sequence.to_be_bytes());
        head[20..].copy_from_slice(&self.stamp.to_be_bytes());
        body
    }

    /// The body of `bytes` is the one that belongs to this head.
    pub(super) fn is_intact(&self, pattern: &Pattern, bytes: &[u8]) -> bool {
        pattern.matches(self.pattern_begin(), &bytes[HEAD_BYTES..])
    }

    fn pattern_begin(&self) -> u64 {
        let mixed = u64::from(self.run)
            .wrapping_add(u64::from(self.source).wrapping_mul(7))
            .wrapping_add(self.sequence.wrapping_mul(13))
            .wrapping_add(self.stamp.wrapping_mul(17));
        // Far from the end of numbers, so that a position within the body is one as well.
        mixed & 0xffff_ffff
    }

    /// The number of the burst that a segment belongs to.
    pub(super) fn burst(&self) -> u64 {
        self.sequence / u64::from(self.segments)
    }
}

/// What has arrived from a source since its run began.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Totals {
    /// Each datagram once.
    pub(super) arrived: u64,
    pub(super) overtaken: u64,
    pub(super) again: u64,
    pub(super) corrupt: u64,
}

/// An acknowledgement: its head and four numbers.
pub(super) const ACKNOWLEDGEMENT_BYTES: usize = HEAD_BYTES + 32;

impl Totals {
    /// `None` when these bytes are no acknowledgement.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; ACKNOWLEDGEMENT_BYTES] = bytes.try_into().ok()?;
        let at = |place: usize| {
            let from = HEAD_BYTES + 8 * place;
            number(bytes, from, from + 8)
        };
        Some(Self {
            arrived: at(0),
            overtaken: at(1),
            again: at(2),
            corrupt: at(3),
        })
    }

    pub(super) fn acknowledgement(&self, head: &Head) -> [u8; ACKNOWLEDGEMENT_BYTES] {
        let mut bytes = [0; ACKNOWLEDGEMENT_BYTES];
        let body = head.write_head(&mut bytes);
        let numbers = [self.arrived, self.overtaken, self.again, self.corrupt];
        for (place, number) in body.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_be_bytes());
        }
        bytes
    }
}

fn number(bytes: &[u8], from: usize, to: usize) -> u64 {
    let digits = bytes[from..to].iter();
    digits.fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head {
            run: 0xfedc_ba98,
            kind: Kind::Segment,
            segments: 40,
            source: 63,
            sequence: 4_000_000_007,
            stamp: 1 << 50,
        }
    }

    #[test]
    fn what_is_written_is_read_again_and_a_change_is_found() {
        let (head, pattern) = (head(), Pattern::new());
        let mut bytes = vec![0; 1_200];
        head.write(&pattern, &mut bytes);
        assert_eq!(Head::read(&bytes), Some(head));
        assert!(head.is_intact(&pattern, &bytes));
        assert_eq!(head.burst(), 100_000_000);
        bytes[600] ^= 4;
        assert!(!head.is_intact(&pattern, &bytes));
        assert_eq!(Head::read(&bytes[..HEAD_BYTES - 1]), None);
        assert_eq!(Head::read(&[0; HEAD_BYTES]), None);
    }

    #[test]
    fn totals_travel_in_an_acknowledgement() {
        let totals = Totals {
            arrived: 1,
            overtaken: 2,
            again: 3,
            corrupt: u64::MAX,
        };
        let bytes = totals.acknowledgement(&head());
        assert_eq!(Head::read(&bytes), Some(head()));
        assert_eq!(Totals::read(&bytes), Some(totals));
        assert_eq!(Totals::read(&bytes[1..]), None);
    }
}
