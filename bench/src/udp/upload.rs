//! Bursts to a backend that counts them: each is one send, which the kernel cuts into datagrams. As many
//! are under way as the window says; the backend's acknowledgements close it.

use std::collections::VecDeque;
use std::net::UdpSocket;
use std::time::Duration;

use ringress::ring;
use ringress::time::Instant;

use super::datagram::{ACKNOWLEDGEMENT_BYTES, Head, Kind, Totals};
use super::exchange::{received, sent};
use super::run::Traffic;
use super::tally::Tally;
use super::{Bursts, Plan, Work, sockets};
use crate::error::Error;
use crate::pattern::Pattern;

/// All sources of a run.
pub(super) struct Uploads {
    run: u32,
    bursts: Bursts,
    timeout: Duration,
    is_sending: bool,
    sources: Vec<Source>,
    pattern: Pattern,
    buffer: Vec<u8>,
}

struct Source {
    number: u32,
    socket: UdpSocket,
    /// Number of its next burst.
    next: u64,
    /// Bursts that were not acknowledged, the oldest first, and when they were sent.
    under_way: VecDeque<(u64, Instant)>,
    /// As of the last acknowledgement.
    totals: Totals,
    ending: Ending,
}

/// How a source learns at the end what has arrived: a lost burst had no acknowledgement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    NotYet,
    Asked { times: u32, at: Instant },
    Answered,
}

/// The sequence of a query, which no burst has.
const QUERY: u64 = u64::MAX;
/// Times that a query is made.
const QUERIES: u32 = 5;
/// Time until it is made again.
const QUERY_PAUSE: Duration = Duration::from_millis(100);

impl Uploads {
    pub(super) fn new(
        run: u32,
        plan: &Plan,
        bursts: Bursts,
        sockets: Vec<UdpSocket>,
    ) -> Result<Self, Error> {
        let mut sources = Vec::new();
        for (socket, number) in sockets.into_iter().zip(0..) {
            sockets::send_in_segments(&socket, bursts.size)?;
            sources.push(Source {
                number,
                socket,
                next: 0,
                under_way: VecDeque::new(),
                totals: Totals::default(),
                ending: Ending::NotYet,
            });
        }
        Ok(Self {
            run,
            bursts,
            timeout: plan.timeout,
            is_sending: false,
            sources,
            pattern: Pattern::new(),
            buffer: vec![0; bursts.bytes()],
        })
    }

    /// Sends bursts until the window of a source is full.
    fn fill(&mut self, source: usize, tally: &mut Tally) {
        let source = &mut self.sources[source];
        let segments = u64::from(self.bursts.segments);
        while self.is_sending && source.under_way.len() < self.bursts.window {
            let now = ring::now();
            let datagrams = self.buffer.chunks_exact_mut(self.bursts.size);
            for (bytes, number) in datagrams.zip(0..) {
                let head = Head {
                    run: self.run,
                    kind: Kind::Segment,
                    segments: self.bursts.segments,
                    source: source.number,
                    sequence: source.next * segments + number,
                    stamp: now.as_nanos(),
                };
                head.write(&self.pattern, bytes);
            }
            source.under_way.push_back((source.next, now));
            source.next += 1;
            tally.faults.sent += segments;
            if !sent(&source.socket, &self.buffer) {
                tally.faults.refused += 1;
            }
        }
    }
}

impl Traffic for Uploads {
    fn begin(&mut self, _: Work, _: Instant, _: Instant, tally: &mut Tally) {
        self.is_sending = true;
        (0..self.sources.len()).for_each(|source| self.fill(source, tally));
    }

    fn stop(&mut self) {
        self.is_sending = false;
    }

    fn readable(&mut self, source: usize, tally: &mut Tally) {
        for _ in 0..=self.sources[source].under_way.len() {
            // A byte more, so that too long is seen.
            let mut bytes = [0; ACKNOWLEDGEMENT_BYTES + 1];
            let socket = &self.sources[source].socket;
            let Some(length) = received(socket, &mut bytes, tally) else {
                break;
            };
            self.sources[source].take(self.run, self.bursts, &bytes[..length], tally);
            self.fill(source, tally);
        }
    }

    fn give_up(&mut self, tally: &mut Tally) {
        let now = ring::now();
        for number in 0..self.sources.len() {
            let under_way = &mut self.sources[number].under_way;
            while under_way
                .front()
                .is_some_and(|(_, meant)| now - *meant >= self.timeout)
            {
                under_way.pop_front();
            }
            self.fill(number, tally);
            if !self.is_sending {
                self.sources[number].ask_for_totals(self.run, now);
            }
        }
    }

    fn is_under_way(&self) -> bool {
        let mut sources = self.sources.iter();
        sources.any(|it| it.ending != Ending::Answered)
    }

    fn finish(&mut self, tally: &mut Tally) {
        let faults = &mut tally.faults;
        for source in &self.sources {
            let sent = source.next * u64::from(self.bursts.segments);
            let came = source.totals.arrived + source.totals.corrupt;
            faults.lost += sent.saturating_sub(came);
            faults.reordered += source.totals.overtaken;
            faults.duplicates += source.totals.again;
            faults.corrupt += source.totals.corrupt;
        }
    }
}

impl Source {
    /// Books an acknowledgement.
    fn take(&mut self, run: u32, bursts: Bursts, bytes: &[u8], tally: &mut Tally) {
        let now = ring::now();
        let (Some(head), Some(totals)) = (Head::read(bytes), Totals::read(bytes)) else {
            tally.faults.corrupt += 1;
            return;
        };
        if (head.run, head.kind) != (run, Kind::Acknowledgement) {
            tally.faults.stray += 1;
            return;
        }
        if head.source != self.number {
            tally.faults.foreign += 1;
            return;
        }
        if totals.arrived > self.totals.arrived {
            let datagrams = totals.arrived - self.totals.arrived;
            tally.carried(datagrams * bursts.size as u64, now);
            self.totals = totals;
        }
        if head.sequence == QUERY {
            self.totals = totals;
            self.ending = Ending::Answered;
        }
        let place = self.under_way.iter().position(|(n, _)| *n == head.sequence);
        if let Some((_, meant)) = place.and_then(|place| self.under_way.remove(place)) {
            tally.answered(meant, now);
        }
    }

    /// Once nothing is under way.
    fn ask_for_totals(&mut self, run: u32, now: Instant) {
        let times = match self.ending {
            _ if !self.under_way.is_empty() => return,
            Ending::Answered => return,
            Ending::Asked { at, .. } if now - at < QUERY_PAUSE => return,
            Ending::Asked { times, .. } => times + 1,
            Ending::NotYet => 1,
        };
        if times > QUERIES {
            // What the last acknowledgement said has to do.
            self.ending = Ending::Answered;
            return;
        }
        self.ending = Ending::Asked { times, at: now };
        let head = Head {
            run,
            kind: Kind::Query,
            segments: 1,
            source: self.number,
            sequence: QUERY,
            stamp: now.as_nanos(),
        };
        let mut bytes = [0; ACKNOWLEDGEMENT_BYTES];
        head.write_head(&mut bytes);
        sent(&self.socket, &bytes);
    }
}
