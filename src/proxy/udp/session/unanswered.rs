//! Datagrams that a backend has not answered. Nobody knows of one whether it has arrived; but ICMP says
//! soon if nobody is there.

use std::time::Duration;

use crate::proxy::udp::parcel::Parcel;
use crate::time::Instant;

/// How long ICMP is waited for: it takes a round trip.
pub(super) const ICMP: Duration = Duration::from_secs(1);

/// Of a backend that has shown that it is there, the last datagram is kept if it fits into a packet.
const LONGEST: usize = 1500;
/// Of one that has not, as much.
const MOST: usize = 64 << 10;

/// What was sent to a backend since it has said something.
#[derive(Default)]
pub(super) struct Unanswered {
    /// Datagrams.
    count: u64,
    /// What may be sent again, in order.
    kept: Vec<Kept>,
    /// The backend is there: it has said something, or nobody has denied it for long enough.
    proven: bool,
    /// When the first of them was sent.
    since: Option<Instant>,
}

/// A copy of a parcel.
pub(super) struct Kept {
    bytes: Box<[u8]>,
    segment: Option<u16>,
}

impl Kept {
    pub(super) fn parcel(&self) -> Parcel<'_> {
        Parcel {
            bytes: &self.bytes,
            segment: self.segment,
        }
    }
}

impl Unanswered {
    /// `parcel` was sent. `again`: there is another backend that it may be sent to.
    pub(super) fn sent(&mut self, parcel: Parcel<'_>, again: bool, now: Instant) {
        self.forget_old(now);
        self.since.get_or_insert(now);
        if self.proven {
            self.count = 0;
            self.kept.clear();
        }
        self.count += parcel.count();
        let most = match self.proven {
            true if parcel.segment.is_some() => 0,
            true => LONGEST,
            false => MOST - self.bytes(),
        };
        if again && parcel.bytes.len() <= most {
            self.kept.push(Kept {
                bytes: parcel.bytes.into(),
                segment: parcel.segment,
            });
        }
    }

    fn bytes(&self) -> usize {
        self.kept.iter().map(|kept| kept.bytes.len()).sum()
    }

    /// The backend has said something.
    pub(super) fn answered(&mut self) {
        *self = Self {
            proven: true,
            ..Self::default()
        };
    }

    /// Nobody has said for long that the backend isn't there.
    pub(super) fn forget_old(&mut self, now: Instant) {
        if self.until().is_some_and(|until| now >= until) {
            self.answered();
        }
    }

    /// Until when there is something to forget.
    pub(super) fn until(&self) -> Option<Instant> {
        self.since.map(|since| since + ICMP)
    }

    /// The backend is not there: what is to be sent again, and how many datagrams can't be.
    pub(super) fn take(&mut self) -> (Vec<Kept>, u64) {
        let Self { kept, count, .. } = std::mem::take(self);
        let again: u64 = kept.iter().map(|kept| kept.parcel().count()).sum();
        (kept, count.saturating_sub(again))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    fn parcel(bytes: &[u8], segment: Option<u16>) -> Parcel<'_> {
        Parcel { bytes, segment }
    }

    #[test]
    fn of_a_new_backend_all_is_kept_that_there_is_room_for() {
        let mut unanswered = Unanswered::default();
        unanswered.sent(parcel(&[1; 40_000], Some(1_000)), true, at(0));
        unanswered.sent(parcel(&[2; 30_000], Some(1_000)), true, at(0));
        unanswered.sent(parcel(&[3; 9], None), true, at(1));
        let (kept, lost) = unanswered.take();
        let first: Vec<_> = kept.iter().map(|kept| kept.parcel().bytes[0]).collect();
        assert_eq!((first, lost), (vec![1, 3], 30));
        assert_eq!(unanswered.take().1, 0);
    }

    #[test]
    fn of_one_that_is_there_the_last_datagram_is_kept() {
        let mut unanswered = Unanswered::default();
        unanswered.sent(parcel(b"x", None), true, at(0));
        unanswered.answered();
        for bytes in [&[4; 20][..], &[5; 1_500]] {
            unanswered.sent(parcel(bytes, None), true, at(1));
        }
        let (kept, lost) = unanswered.take();
        assert_eq!((kept.len(), kept[0].parcel().bytes[0], lost), (1, 5, 0));
        unanswered.answered();
        unanswered.sent(parcel(&[6; 1_501], None), true, at(2));
        assert_eq!(unanswered.take().1, 1);
    }

    #[test]
    fn silence_shows_that_a_backend_is_there() {
        let mut unanswered = Unanswered::default();
        assert_eq!(unanswered.until(), None);
        unanswered.sent(parcel(b"a", None), true, at(0));
        assert_eq!(unanswered.until(), Some(at(1_000)));
        unanswered.forget_old(at(999));
        assert_eq!(unanswered.until(), Some(at(1_000)));
        unanswered.sent(parcel(b"b", None), true, at(1_500));
        let (kept, lost) = unanswered.take();
        assert_eq!(
            (kept[0].parcel().bytes, kept.len(), lost),
            (&b"b"[..], 1, 0)
        );
    }

    #[test]
    fn without_another_backend_nothing_is_kept_and_all_is_counted() {
        let mut unanswered = Unanswered::default();
        for _ in 0..5 {
            unanswered.sent(parcel(b"a", None), false, at(0));
        }
        let (kept, lost) = unanswered.take();
        assert!(kept.is_empty());
        assert_eq!(lost, 5);
    }
}
