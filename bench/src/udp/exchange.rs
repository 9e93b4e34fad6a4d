//! Echo: datagrams that have to come back, at saturation or at fixed times.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::time::Duration;

use ringress::ring;
use ringress::time::Instant;

use super::datagram::{Head, Kind, MOST_BYTES};
use super::run::Traffic;
use super::seen::{Arrival, Seen};
use super::tally::Tally;
use super::{Plan, Work};
use crate::pattern::Pattern;
use crate::schedule::Schedule;

/// All sources of a run.
pub(super) struct Exchanges {
    run: u32,
    size: usize,
    timeout: Duration,
    rhythm: Rhythm,
    sources: Vec<Source>,
    pattern: Pattern,
    buffer: Box<[u8]>,
}

/// When a source sends.
#[derive(Clone, Copy, Debug)]
enum Rhythm {
    /// Not any more.
    Stopped,
    /// When it has fewer than so many under way.
    Closed { outstanding: usize },
    /// When the schedule says so, until `last`. `next` is the first that was not sent yet.
    Open {
        schedule: Schedule,
        last: Instant,
        next: u64,
    },
}

struct Source {
    number: u32,
    socket: UdpSocket,
    /// Of its next datagram.
    sequence: u64,
    /// Those under way, the oldest first.
    under_way: VecDeque<UnderWay>,
    seen: Seen,
}

#[derive(Clone, Copy, Debug)]
struct UnderWay {
    sequence: u64,
    meant: Instant,
}

/// Sends per turn: those that wait for an answer shall have theirs taken meanwhile.
const SENDS_PER_TURN: usize = 32;

impl Exchanges {
    /// Nothing is sent before it begins.
    pub(super) fn new(run: u32, plan: &Plan, size: usize, sockets: Vec<UdpSocket>) -> Self {
        let sources = sockets.into_iter().zip(0..).map(|(socket, number)| Source {
            number,
            socket,
            sequence: 0,
            under_way: VecDeque::new(),
            seen: Seen::default(),
        });
        Self {
            run,
            size,
            timeout: plan.timeout,
            rhythm: Rhythm::Stopped,
            sources: sources.collect(),
            pattern: Pattern::new(),
            // A byte more than may come, so that too long is seen.
            buffer: vec![0; MOST_BYTES + 1].into(),
        }
    }

    fn send(&mut self, source: usize, meant: Instant, tally: &mut Tally) {
        let source = &mut self.sources[source];
        let sequence = source.sequence;
        source.sequence += 1;
        let head = Head {
            run: self.run,
            kind: Kind::Echo,
            segments: 1,
            source: source.number,
            sequence,
            stamp: meant.as_nanos(),
        };
        let bytes = &mut self.buffer[..self.size];
        head.write(&self.pattern, bytes);
        tally.faults.sent += 1;
        source.under_way.push_back(UnderWay { sequence, meant });
        if !sent(&source.socket, bytes) {
            tally.faults.refused += 1;
        }
    }

    /// Fills up what a source may have under way.
    fn fill(&mut self, source: usize, tally: &mut Tally) {
        let Rhythm::Closed { outstanding } = self.rhythm else {
            return;
        };
        while self.sources[source].under_way.len() < outstanding {
            self.send(source, ring::now(), tally);
        }
    }
}

/// How many bytes came, if any did. A refusal is counted.
pub(super) fn received(socket: &UdpSocket, buffer: &mut [u8], tally: &mut Tally) -> Option<usize> {
    match socket.recv(buffer) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            tally.faults.refused += u64::from(error.kind() == ErrorKind::ConnectionRefused);
            None
        }
    }
}

/// Sends, once more when what the kernel says is that an earlier one was refused.
pub(super) fn sent(socket: &UdpSocket, bytes: &[u8]) -> bool {
    socket.send(bytes).or_else(|_| socket.send(bytes)).is_ok()
}

impl Traffic for Exchanges {
    fn begin(&mut self, work: Work, start: Instant, end: Instant, tally: &mut Tally) {
        self.rhythm = match work {
            Work::Rate { per_second, .. } => Rhythm::Open {
                schedule: Schedule::new(start, per_second),
                last: end,
                next: 0,
            },
            Work::Saturate { outstanding, .. } => Rhythm::Closed { outstanding },
            Work::Upload(_) | Work::Download(_) => Rhythm::Stopped,
        };
        (0..self.sources.len()).for_each(|source| self.fill(source, tally));
    }

    fn hand_over(&mut self, tally: &mut Tally) -> Option<Instant> {
        let Rhythm::Open {
            schedule,
            last,
            mut next,
        } = self.rhythm
        else {
            return None;
        };
        let mut due = schedule.due(next);
        for _ in 0..SENDS_PER_TURN {
            let now = ring::now();
            if due >= last || due > now {
                break;
            }
            tally.handed_over(due, now);
            let source = (next % self.sources.len() as u64) as usize;
            self.send(source, due, tally);
            next += 1;
            due = schedule.due(next);
        }
        if due >= last {
            self.rhythm = Rhythm::Stopped;
            return None;
        }
        self.rhythm = Rhythm::Open {
            schedule,
            last,
            next,
        };
        Some(due)
    }

    fn stop(&mut self) {
        if let Rhythm::Closed { .. } = self.rhythm {
            self.rhythm = Rhythm::Stopped;
        }
    }

    fn readable(&mut self, source: usize, tally: &mut Tally) {
        // As many as can be there; another one that is (a duplicate) is told of again.
        for _ in 0..self.sources[source].under_way.len().max(1) {
            let Some(bytes) = received(&self.sources[source].socket, &mut self.buffer, tally)
            else {
                break;
            };
            let received = &self.buffer[..bytes];
            let (run, size) = (self.run, self.size);
            self.sources[source].take((run, size), &self.pattern, received, tally);
            self.fill(source, tally);
        }
    }

    fn give_up(&mut self, tally: &mut Tally) {
        let now = ring::now();
        for number in 0..self.sources.len() {
            let source = &mut self.sources[number];
            while let Some(oldest) = source.under_way.front()
                && now - oldest.meant >= self.timeout
            {
                tally.faults.lost += 1;
                tally.given_up(oldest.meant, now);
                source.under_way.pop_front();
            }
            self.fill(number, tally);
        }
    }

    fn is_under_way(&self) -> bool {
        let is_due = matches!(self.rhythm, Rhythm::Open { .. });
        is_due || self.sources.iter().any(|it| !it.under_way.is_empty())
    }
}

impl Source {
    /// Books what came, when it is what was sent.
    fn take(
        &mut self,
        (run, size): (u32, usize),
        pattern: &Pattern,
        bytes: &[u8],
        tally: &mut Tally,
    ) {
        let now = ring::now();
        let faults = &mut tally.faults;
        let Some(head) = Head::read(bytes) else {
            faults.corrupt += 1;
            return;
        };
        let intact = bytes.len() == size && head.is_intact(pattern, bytes);
        let is_mine = (head.run, head.kind, head.source) == (run, Kind::Echo, self.number);
        let place = self.under_way.iter().position(|it| {
            is_mine && (it.sequence, it.meant.as_nanos()) == (head.sequence, head.stamp)
        });
        if !intact {
            // Its head says that it is nevertheless the answer: not lost as well.
            place.and_then(|place| self.under_way.remove(place));
            faults.corrupt += 1;
            return;
        }
        if head.run != run {
            faults.stray += 1;
            return;
        }
        if !is_mine {
            faults.foreign += 1;
            return;
        }
        match self.seen.note(head.sequence) {
            Arrival::Again => {
                faults.duplicates += 1;
                return;
            }
            Arrival::Overtaken => faults.reordered += 1,
            Arrival::Newest | Arrival::TooOld => {}
        }
        match place.and_then(|place| self.under_way.remove(place)) {
            Some(answered) => {
                tally.answered(answered.meant, now);
                tally.carried(bytes.len() as u64, now);
            }
            None => faults.late += 1,
        }
    }
}
