//! Where TLS records end: their headers are type, version and length (RFC 8446 section 5.1). Nothing is
//! decrypted.

/// Bytes of a header.
const HEADER: u32 = 5;

/// What the longest record has behind its header (RFC 5246 section 6.2.3; TLS 1.3 allows less).
const LONGEST: u32 = (1 << 14) + 2048;

/// Bytes of the longest record there may be, its header included: who has room for fewer may wait for ever.
pub const RECORD_BYTES_MAX: u32 = LONGEST + HEADER;

/// Goes through the records of a stream, fed piece by piece.
#[derive(Default)]
pub struct Scan {
    /// Bytes of the whole records so far. What can't be a record counts as a whole one as soon as that shows: it
    /// is not waited for.
    pub whole: u32,
    /// Bytes since.
    since: u32,
    /// The length of the present record with its header, once that is known.
    record: Option<u32>,
    high: u8,
}

impl Scan {
    /// Looks at what comes next.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while let Some((byte, rest)) = bytes.split_first() {
            let step = match self.record {
                Some(record) => (record - self.since).min(bytes.len() as u32),
                None => {
                    self.note_header(*byte);
                    1
                }
            };
            self.since += step;
            if self.record == Some(self.since) {
                self.whole += self.since;
                self.since = 0;
                self.record = None;
            }
            bytes = match step {
                1 => rest,
                step => &bytes[step as usize..],
            };
        }
    }

    /// The next byte of a header.
    fn note_header(&mut self, byte: u8) {
        /// From change_cipher_spec to heartbeat.
        const TYPES: std::ops::RangeInclusive<u8> = 20..=24;
        let is_possible = match self.since {
            0 => TYPES.contains(&byte),
            1 => byte == 3,
            3 => {
                self.high = byte;
                true
            }
            4 => {
                let length = u32::from(u16::from_be_bytes([self.high, byte]));
                self.record = Some(HEADER + length);
                length <= LONGEST
            }
            _ => true,
        };
        if !is_possible {
            self.record = Some(self.since + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(pieces: &[&[u8]]) -> u32 {
        let mut scan = Scan::default();
        pieces.iter().for_each(|piece| scan.feed(piece));
        scan.whole
    }

    #[test]
    fn whole_records_are_counted_however_they_are_split() {
        let mut bytes = vec![23, 3, 3, 0, 2, 1, 2];
        bytes.extend([23, 3, 3, 1, 0]);
        bytes.extend([7; 256]);
        bytes.extend([21, 3, 3, 0, 0]);
        let all = bytes.len() as u32;
        for at in 0..=bytes.len() {
            let (first, second) = bytes.split_at(at);
            assert_eq!(whole(&[first, second]), all, "split at {at}");
            let expected = match at as u32 {
                at if at < 7 => 0,
                at if at < all - 5 => 7,
                at if at < all => all - 5,
                _ => all,
            };
            assert_eq!(whole(&[first]), expected, "the first {at}");
        }
        let single: Vec<_> = bytes.chunks(1).collect();
        assert_eq!(whole(&single), all);
    }

    #[test]
    fn what_is_no_record_is_not_waited_for() {
        assert_eq!(whole(&[b"GET / HTTP/1.1\r\n"]), 16);
        assert_eq!(whole(&[&[22, 2, 0]]), 3, "SSL 2");
        let most = (LONGEST as u16).to_be_bytes();
        assert_eq!(whole(&[&[23, 3, 3, most[0], most[1]]]), 0);
        let more = (LONGEST as u16 + 1).to_be_bytes();
        assert_eq!(whole(&[&[23, 3, 3, more[0], more[1]]]), 5);
    }
}
