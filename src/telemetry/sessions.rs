//! What is told of sessions at their end: one record each, in a bounded queue of its own. When it is full, a
//! record is counted and forgotten. Of clients that are refused only a few a second are told, and how many
//! were not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use super::tallies::Tally;
use super::{Opening, Reason};
use crate::time::Instant;

/// One session, told at its end.
#[derive(Debug)]
pub struct SessionRecord {
    /// When it ended.
    pub at: Instant,
    /// The worker that served it.
    pub worker: usize,
    /// Its number there, as in the flight recorder.
    pub session: u32,
    /// The listener's name.
    pub listener: Arc<str>,
    /// Who connected; `None` for unix sockets.
    pub client: Option<SocketAddr>,
    /// The upstream's name, once it was known where the session goes.
    pub upstream: Option<Arc<str>>,
    /// The route's place in the file, from 0; `None` = it took none.
    pub route: Option<usize>,
    /// The backend's name, once one was connected.
    pub backend: Option<Arc<str>>,
    /// Further tries after one that failed.
    pub retries: u32,
    /// How TLS with the client began.
    pub tls: Option<Opening>,
    /// The name that the client has asked for.
    pub sni: Option<Box<str>>,
    /// How long it waited for a place at a backend.
    pub queued: Option<Duration>,
    /// How long the connection to the backend took.
    pub connect: Option<Duration>,
    /// How long the backend took to say something once it was asked.
    pub first_byte: Option<Duration>,
    /// From accept to end.
    pub duration: Duration,
    /// Bytes towards the backend.
    pub bytes_received: u64,
    /// Bytes towards the client.
    pub bytes_sent: u64,
    /// Why it ended.
    pub reason: Reason,
    /// More of the reason, in words.
    pub detail: Option<String>,
}

/// The senders' side of the queue, shared by all workers.
#[derive(Debug)]
pub struct Sessions {
    queue: SyncSender<Box<SessionRecord>>,
    told: AtomicBool,
    /// What has no line; the writer's, too, which outlives those who send.
    pub losses: Arc<Losses>,
    refusals: Share,
    most_refusals: AtomicU64,
}

/// Records that may wait to be written.
const QUEUE: usize = 8192;

/// Refusals that are told in a second.
const REFUSALS: u64 = 100;

impl Sessions {
    /// A queue and its reading end.
    pub fn new() -> (Self, Receiver<Box<SessionRecord>>) {
        let (queue, receiver) = sync_channel(QUEUE);
        let sessions = Self {
            queue,
            told: AtomicBool::new(false),
            losses: Arc::default(),
            refusals: Share::default(),
            most_refusals: AtomicU64::new(REFUSALS),
        };
        (sessions, receiver)
    }

    /// Whether the end of sessions is told.
    pub fn are_told(&self) -> bool {
        self.told.load(Ordering::Relaxed)
    }

    /// Turns telling it on or off.
    pub fn tell(&self, on: bool) {
        self.told.store(on, Ordering::Relaxed);
    }

    /// So many refusals are told in a second.
    pub fn tell_refusals(&self, a_second: u32) {
        self.most_refusals.store(a_second.into(), Ordering::Relaxed);
    }

    /// Whether one more refusal is told; counted if not.
    pub fn tells_refusal(&self, now: Instant) -> bool {
        let tells = self.are_told()
            && self
                .refusals
                .admits(now, self.most_refusals.load(Ordering::Relaxed));
        if !tells && self.are_told() {
            self.losses.skipped.add();
        }
        tells
    }

    /// Leaves a record, or counts it when the queue is full.
    pub fn send(&self, record: Box<SessionRecord>) {
        if let Err(TrySendError::Full(_)) = self.queue.try_send(record) {
            self.losses.dropped.add();
        }
    }
}

/// Sessions that are not told, so far.
#[derive(Debug, Default)]
pub struct Losses {
    /// Refusals above the number for a second.
    pub skipped: Tally,
    /// Records that found the queue full.
    pub dropped: Tally,
    /// Records that could not be written.
    pub unwritten: Tally,
}

/// Lets so many through a second, whoever asks.
#[derive(Debug, Default)]
struct Share {
    /// The second, and how many there were in it.
    word: AtomicU64,
}

impl Share {
    fn admits(&self, now: Instant, most: u64) -> bool {
        const SECOND: u64 = 1_000_000_000;
        let second = now.as_nanos() / SECOND;
        let next = self
            .word
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
                let (of, count) = (word >> 32, word & 0xffff_ffff);
                match of == second & 0xffff_ffff {
                    true if count >= most => None,
                    true => Some(word + 1),
                    false => Some((second << 32) | 1),
                }
            });
        next.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_refusals_a_second_are_told_and_the_others_counted() {
        let (sessions, _records) = Sessions::new();
        let at = |millis: u64| Instant::from_nanos(millis * 1_000_000);
        assert!(!sessions.tells_refusal(at(0)));
        assert_eq!(
            sessions.losses.skipped.value(),
            0,
            "nobody wants to hear of them"
        );
        sessions.tell(true);
        for second in [0, 1, 7] {
            let told = (0..500).filter(|n| sessions.tells_refusal(at(second * 1000 + n)));
            assert_eq!(told.count() as u64, REFUSALS);
        }
        assert_eq!(sessions.losses.skipped.value(), 3 * 400);
    }
}
