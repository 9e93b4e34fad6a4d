//! The flight recorder: what a worker did last, in a ring that is written over. One thread writes, without
//! waiting for anybody; whoever reads takes a copy and leaves out what was written over meanwhile.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::Reason;
use crate::time::Instant;

/// Moments that are kept per worker.
pub const MOMENTS: usize = 4096;
const WORDS: usize = 4;

/// What has happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum What {
    /// A connection came in at a listener.
    Accept,
    /// A backend was chosen.
    Pick,
    /// It was connected to; value: microseconds.
    Connect,
    /// It could not be; value: microseconds.
    ConnectFailed,
    /// It has said something; value: microseconds since it was asked.
    FirstByte,
    /// The session ended; value: bytes in both directions.
    Close,
}

impl What {
    const ALL: [Self; 6] = [
        Self::Accept,
        Self::Pick,
        Self::Connect,
        Self::ConnectFailed,
        Self::FirstByte,
        Self::Close,
    ];

    /// As it stands in a dump.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accept => "accept",
            Self::Pick => "pick",
            Self::Connect => "connect",
            Self::ConnectFailed => "connect-failed",
            Self::FirstByte => "first-byte",
            Self::Close => "close",
        }
    }
}

/// Something that has happened to a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Moment {
    /// When.
    pub at: Instant,
    /// The session's number on its worker.
    pub session: u32,
    /// What.
    pub what: What,
    /// Why it ended, of [`What::Close`].
    pub reason: Option<Reason>,
    /// The [name](super::Names) of the listener or backend that it is about.
    pub subject: u32,
    /// As [`What`] says.
    pub value: u64,
}

/// The last moments of one worker. 128 KiB.
#[derive(Debug)]
pub struct Recorder {
    /// Moments whose writing has begun.
    begun: AtomicU64,
    /// Moments that are written; the next one's place is this modulo their number.
    count: AtomicU64,
    moments: Box<[[AtomicU64; WORDS]]>,
}

impl Default for Recorder {
    fn default() -> Self {
        let empty = || std::array::from_fn(|_| AtomicU64::new(0));
        Self {
            begun: AtomicU64::new(0),
            count: AtomicU64::new(0),
            moments: (0..MOMENTS).map(|_| empty()).collect(),
        }
    }
}

const NO_REASON: u64 = 0xff;

impl Recorder {
    /// Notes a moment. Only the owner calls this.
    pub fn note(&self, moment: &Moment) {
        let count = self.count.load(Ordering::Relaxed);
        let reason = moment.reason.map_or(NO_REASON, |reason| reason as u64);
        let words = [
            moment.at.as_nanos(),
            u64::from(moment.session) | (moment.what as u64) << 32 | reason << 40,
            u64::from(moment.subject),
            moment.value,
        ];
        // Who sees one of the words below sees this, too: the place is being written to.
        self.begun.store(count + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        let place = &self.moments[count as usize % MOMENTS];
        for (at, word) in place.iter().zip(words) {
            at.store(word, Ordering::Relaxed);
        }
        self.count.store(count + 1, Ordering::Release);
    }

    /// A copy of the moments that are still there, the oldest first.
    pub fn moments(&self) -> Vec<Moment> {
        let end = self.count.load(Ordering::Acquire);
        let begin = end.saturating_sub(MOMENTS as u64);
        let copies: Vec<_> = (begin..end)
            .map(|number| {
                let place = &self.moments[number as usize % MOMENTS];
                (
                    number,
                    place.each_ref().map(|word| word.load(Ordering::Relaxed)),
                )
            })
            .collect();
        fence(Ordering::Acquire);
        let oldest = self
            .begun
            .load(Ordering::Relaxed)
            .saturating_sub(MOMENTS as u64);
        copies
            .into_iter()
            .filter(|(number, _)| *number >= oldest)
            .filter_map(|(_, words)| read(words))
            .collect()
    }
}

fn read(words: [u64; WORDS]) -> Option<Moment> {
    let [at, who, subject, value] = words;
    let reason = who >> 40 & 0xff;
    Some(Moment {
        at: Instant::from_nanos(at),
        session: who as u32,
        what: *What::ALL.get((who >> 32 & 0xff) as usize)?,
        reason: Reason::ALL.get(reason as usize).copied(),
        subject: subject as u32,
        value,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(number: u64) -> Moment {
        Moment {
            at: Instant::from_nanos(number),
            session: number as u32,
            what: What::ALL[number as usize % What::ALL.len()],
            reason: number
                .is_multiple_of(2)
                .then(|| Reason::ALL[number as usize % Reason::ALL.len()]),
            subject: number as u32 * 3,
            value: number << 33,
        }
    }

    #[test]
    fn the_last_moments_are_kept_in_order_and_whole() {
        let recorder = Recorder::default();
        assert_eq!(recorder.moments(), []);
        let most = MOMENTS as u64;
        for (noted, kept) in [(3, 0), (most, 0), (2 * most + 5, most + 5)] {
            let recorder = Recorder::default();
            (0..noted).for_each(|number| recorder.note(&moment(number)));
            let expected: Vec<_> = (kept..noted).map(moment).collect();
            assert_eq!(recorder.moments(), expected);
        }
    }

    #[test]
    fn who_reads_while_it_is_written_sees_no_mixture() {
        let recorder = std::sync::Arc::new(Recorder::default());
        let writer = recorder.clone();
        let writes = std::thread::spawn(move || (0..200_000).for_each(|n| writer.note(&moment(n))));
        while !writes.is_finished() {
            for seen in recorder.moments() {
                assert_eq!(seen, moment(seen.at.as_nanos()));
            }
        }
        writes.join().expect("it wrote");
    }
}
