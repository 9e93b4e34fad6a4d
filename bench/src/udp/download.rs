//! Bursts from a backend, each asked for with one datagram of the length that those of the burst have.

use std::collections::VecDeque;
use std::net::UdpSocket;
use std::time::Duration;

use ringress::ring;
use ringress::time::Instant;

use super::datagram::{Head, Kind};
use super::exchange::sent;
use super::run::Traffic;
use super::seen::{Arrival, Seen};
use super::sockets::{self, Batch};
use super::tally::Tally;
use super::{Bursts, Plan, Work};
use crate::error::Error;
use crate::pattern::Pattern;

/// All sources of a run.
pub(super) struct Downloads {
    run: u32,
    bursts: Bursts,
    timeout: Duration,
    is_asking: bool,
    sources: Vec<Source>,
    pattern: Pattern,
    batch: Batch,
}

struct Source {
    number: u32,
    socket: UdpSocket,
    /// Number of its next burst.
    next: u64,
    /// Bursts that are not all there, the oldest first.
    under_way: VecDeque<UnderWay>,
    seen: Seen,
}

#[derive(Clone, Copy, Debug)]
struct UnderWay {
    burst: u64,
    asked: Instant,
    /// Datagrams that have not arrived.
    missing: u64,
}

/// Datagrams, or bursts, per call.
const AT_ONCE: usize = 32;

impl Downloads {
    pub(super) fn new(
        run: u32,
        plan: &Plan,
        bursts: Bursts,
        sockets: Vec<UdpSocket>,
    ) -> Result<Self, Error> {
        let mut sources = Vec::new();
        for (socket, number) in sockets.into_iter().zip(0..) {
            sockets::take_segments_together(&socket)?;
            sources.push(Source {
                number,
                socket,
                next: 0,
                under_way: VecDeque::new(),
                seen: Seen::default(),
            });
        }
        Ok(Self {
            run,
            bursts,
            timeout: plan.timeout,
            is_asking: false,
            sources,
            pattern: Pattern::new(),
            batch: Batch::new(AT_ONCE, true),
        })
    }

    /// Asks for bursts until the window of a source is full.
    fn fill(&mut self, source: usize, tally: &mut Tally) {
        let source = &mut self.sources[source];
        let mut ask = vec![0; self.bursts.size];
        while self.is_asking && source.under_way.len() < self.bursts.window {
            let now = ring::now();
            let head = Head {
                run: self.run,
                kind: Kind::Ask,
                segments: self.bursts.segments,
                source: source.number,
                sequence: source.next,
                stamp: now.as_nanos(),
            };
            head.write(&self.pattern, &mut ask);
            let segments = u64::from(self.bursts.segments);
            source.under_way.push_back(UnderWay {
                burst: source.next,
                asked: now,
                missing: segments,
            });
            source.next += 1;
            tally.faults.sent += segments;
            if !sent(&source.socket, &ask) {
                tally.faults.refused += 1;
            }
        }
    }
}

impl Traffic for Downloads {
    fn begin(&mut self, _: Work, _: Instant, _: Instant, tally: &mut Tally) {
        self.is_asking = true;
        (0..self.sources.len()).for_each(|source| self.fill(source, tally));
    }

    fn stop(&mut self) {
        self.is_asking = false;
    }

    fn readable(&mut self, source: usize, tally: &mut Tally) {
        let place = &mut self.sources[source];
        // What can't be read is missed.
        let _ = self.batch.receive(&place.socket);
        for (received, bytes) in self.batch.received() {
            for segment in bytes.chunks(received.segment) {
                place.take((self.run, self.bursts.size), &self.pattern, segment, tally);
            }
        }
        self.fill(source, tally);
    }

    fn give_up(&mut self, tally: &mut Tally) {
        let now = ring::now();
        for number in 0..self.sources.len() {
            let under_way = &mut self.sources[number].under_way;
            while let Some(oldest) = under_way.front()
                && now - oldest.asked >= self.timeout
            {
                tally.faults.lost += oldest.missing;
                under_way.pop_front();
            }
            self.fill(number, tally);
        }
    }

    fn is_under_way(&self) -> bool {
        self.sources.iter().any(|it| !it.under_way.is_empty())
    }
}

impl Source {
    /// Books a datagram of a burst.
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
        let is_mine = (head.run, head.kind, head.source) == (run, Kind::Segment, self.number);
        if !intact {
            faults.corrupt += 1;
        } else if head.run != run {
            faults.stray += 1;
            return;
        } else if !is_mine {
            faults.foreign += 1;
            return;
        } else {
            match self.seen.note(head.sequence) {
                Arrival::Again => {
                    faults.duplicates += 1;
                    return;
                }
                Arrival::Overtaken => faults.reordered += 1,
                Arrival::Newest | Arrival::TooOld => {}
            }
        }
        let mut under_way = self.under_way.iter_mut();
        let place = under_way.position(|it| is_mine && it.burst == head.burst());
        let Some(place) = place else {
            faults.late += u64::from(intact);
            return;
        };
        let burst = &mut self.under_way[place];
        burst.missing -= 1;
        let (asked, is_whole) = (burst.asked, burst.missing == 0);
        if is_whole {
            self.under_way.remove(place);
            tally.answered(asked, now);
        }
        if intact {
            tally.carried(bytes.len() as u64, now);
        }
    }
}
