//! What datagrams carry: a label that says whose it is and which of his, its own length, and a pattern
//! that depends on the label, so that whatever was mixed up, cut, joined or changed is seen. One that is
//! too short for a label has bytes that follow from it; its reply has the complement of them.

use super::super::pattern::pattern;
use super::super::random::mix;

/// Whose a datagram is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Label {
    pub(super) client: u32,
    /// Which of the client's datagrams, or of them the one that is answered.
    pub(super) sequence: u32,
    pub(super) kind: Kind,
}

/// Who says it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    /// The client.
    Request,
    /// The backend, for so many times before.
    Reply(u16),
    /// The backend, of its own accord.
    Unsolicited(u16),
}

/// What a payload turns out to be.
pub(super) enum Reading {
    Labelled(Label),
    /// Too short to say it.
    Short,
    Corrupt,
}

/// The payload of `len` bytes with this label.
pub(super) fn write(label: Label, len: usize) -> Vec<u8> {
    if len < LABEL {
        let bytes = [mix(label.stream()), mix(!label.stream())].map(u64::to_le_bytes);
        return bytes.concat()[..len].to_vec();
    }
    let mut bytes = label.bytes(len).to_vec();
    while bytes.len() < len {
        let at = bytes.len();
        bytes.extend(pattern(label.stream(), at as u64, len - at));
    }
    bytes
}

/// What `payload` says; it is checked to the last byte.
pub(super) fn read(payload: &[u8]) -> Reading {
    let Some((head, _)) = payload.split_first_chunk::<LABEL>() else {
        return Reading::Short;
    };
    let label = Label::of(head).filter(|label| write(*label, payload.len()) == payload);
    label.map_or(Reading::Corrupt, Reading::Labelled)
}

/// The reply to a payload that is too short for a label.
pub(super) fn short_reply(payload: &[u8]) -> Vec<u8> {
    payload.iter().map(|byte| !byte).collect()
}

impl Label {
    fn bytes(self, len: usize) -> [u8; LABEL] {
        let kind = match self.kind {
            Kind::Request => 0,
            Kind::Reply(number) => number.saturating_add(1).min(LAST_REPLY),
            Kind::Unsolicited(number) => number.saturating_add(LAST_REPLY + 1),
        };
        let mut bytes = [0; LABEL];
        bytes[..4].copy_from_slice(&self.client.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[8..12].copy_from_slice(&(len as u32).to_le_bytes());
        bytes[12..14].copy_from_slice(&kind.to_le_bytes());
        let word = mix(self.stream() ^ len as u64);
        bytes[14..].copy_from_slice(&word.to_le_bytes()[..2]);
        bytes
    }

    fn of(bytes: &[u8; LABEL]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let kind = match u16::from_le_bytes([bytes[12], bytes[13]]) {
            0 => Kind::Request,
            number @ 1..=LAST_REPLY => Kind::Reply(number - 1),
            number => Kind::Unsolicited(number - LAST_REPLY - 1),
        };
        Some(Self {
            client: word(0)?,
            sequence: word(4)?,
            kind,
        })
    }

    /// The number of its pattern.
    fn stream(self) -> u64 {
        let kind = match self.kind {
            Kind::Request => 0,
            Kind::Reply(number) => 1 << 16 | u64::from(number),
            Kind::Unsolicited(number) => 2 << 16 | u64::from(number),
        };
        let whose = u64::from(self.client) << 32 | u64::from(self.sequence);
        mix(whose) ^ mix(kind)
    }
}

/// Bytes of a label: client, sequence, length, kind, and two that check them.
pub(super) const LABEL: usize = 16;
const LAST_REPLY: u16 = 0x7fff;

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL_OF_ONE: Label = Label {
        client: 3,
        sequence: 70_000,
        kind: Kind::Reply(2),
    };

    #[test]
    fn a_payload_says_whose_it_is() {
        for len in [LABEL, 17, 1_200, 65_507] {
            match read(&write(LABEL_OF_ONE, len)) {
                Reading::Labelled(label) => assert_eq!(label, LABEL_OF_ONE),
                _ => panic!("{len} bytes"),
            }
        }
        assert!(matches!(read(&write(LABEL_OF_ONE, 15)), Reading::Short));
    }

    #[test]
    fn whatever_is_changed_is_seen() {
        let whole = write(LABEL_OF_ONE, 300);
        let is_corrupt = |bytes: &[u8]| matches!(read(bytes), Reading::Corrupt);
        assert!(is_corrupt(&whole[..299]));
        assert!(is_corrupt(&[&whole[..], &[0]].concat()));
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            assert!(is_corrupt(&changed), "byte {at}");
        }
    }

    #[test]
    fn short_payloads_differ_by_their_label() {
        let other = Label {
            client: 4,
            ..LABEL_OF_ONE
        };
        assert_ne!(write(LABEL_OF_ONE, 8), write(other, 8));
        assert_eq!(write(other, 0), [0; 0]);
    }
}
