//! A run: sockets, warm up, count between two edges, wait for what is still under way.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use ringress::ring;
use ringress::time::Instant;

use super::backend::Backend;
use super::download::Downloads;
use super::exchange::Exchanges;
use super::sockets::{self, Poller};
use super::tally::Tally;
use super::upload::Uploads;
use super::{Outcome, Plan, Work};
use crate::error::Error;
use crate::load::{self, Edge, Losses};

/// What the sources of a run do.
pub(super) trait Traffic {
    /// Sending begins at `start`; what is due at fixed times is due until `end`.
    fn begin(&mut self, work: Work, start: Instant, end: Instant, tally: &mut Tally);

    /// Sees to what has become due; returns when the next is. At saturation nothing is.
    fn hand_over(&mut self, _: &mut Tally) -> Option<Instant> {
        None
    }

    /// A source can read something.
    fn readable(&mut self, source: usize, tally: &mut Tally);

    /// Gives up what has been under way for too long.
    fn give_up(&mut self, tally: &mut Tally);

    /// Nothing is sent any more but what was due.
    fn stop(&mut self);

    /// Something that was sent or due may still come.
    fn is_under_way(&self) -> bool;

    /// Nothing more comes.
    fn finish(&mut self, _: &mut Tally) {}
}

/// What turns: the sources, and the backends that are served by the same thread.
struct Field<'a> {
    traffic: &'a mut dyn Traffic,
    backends: &'a mut [Backend],
    poller: Poller,
    ready: Vec<u64>,
    tally: Tally,
    next_look: Instant,
}

/// From here on a token is that of a backend.
const BACKENDS: u64 = 1 << 32;
/// How often it is looked for what is to be given up.
const LOOK_PAUSE: Duration = Duration::from_millis(5);
/// What is due so soon is waited for awake: a sleeper comes too late by about as much.
const AWAKE: Duration = Duration::from_micros(100);

/// Carries out `plan` and serves `backends` meanwhile. `observe` is called when counting starts and
/// when it ends.
///
/// # Errors
/// There are no sockets to be had.
pub fn run(
    plan: &Plan,
    backends: &mut [Backend],
    observe: &mut dyn FnMut(Edge),
) -> Result<Outcome, Error> {
    let poller = Poller::new()?;
    let sockets = open_sources(plan)?;
    let mut of_sources = Vec::new();
    for (socket, token) in sockets.iter().zip(0..) {
        poller.add(socket, token)?;
        of_sources.push(sockets::inode(socket)?);
    }
    let mut of_backends = Vec::new();
    for (backend, token) in backends.iter().zip(BACKENDS..) {
        poller.add(&backend.socket, token)?;
        of_backends.push(sockets::inode(&backend.socket)?);
    }
    of_sources.sort_unstable();
    of_backends.sort_unstable();
    let dropped_before = sockets::drops(&of_backends);
    // The clock's microseconds, which no two runs begin in.
    let run = (ring::now().as_nanos() / 1_000) as u32;
    let mut traffic: Box<dyn Traffic> = match plan.work {
        Work::Saturate { size, .. } | Work::Rate { size, .. } => {
            Box::new(Exchanges::new(run, plan, size, sockets))
        }
        Work::Upload(bursts) => Box::new(Uploads::new(run, plan, bursts, sockets)?),
        Work::Download(bursts) => Box::new(Downloads::new(run, plan, bursts, sockets)?),
    };
    let mut field = Field {
        traffic: traffic.as_mut(),
        backends,
        poller,
        ready: Vec::new(),
        tally: Tally::new(matches!(plan.work, Work::Rate { .. })),
        next_look: ring::now() + LOOK_PAUSE,
    };
    let (elapsed, own_cpu) = field.measure(plan, observe)?;
    let mut tally = field.tally;
    traffic.finish(&mut tally);
    tally.faults.dropped_at_generator = sockets::drops(&of_sources);
    tally.faults.dropped_at_backend = sockets::drops(&of_backends) - dropped_before;
    Ok(outcome(tally, elapsed, own_cpu))
}

fn outcome(tally: Tally, elapsed: Duration, own_cpu: Duration) -> Outcome {
    Outcome {
        load: load::Outcome {
            completed: tally.completed,
            errors: tally.faults.wrong(),
            losses: Losses::default(),
            unanswered: tally.faults.lost,
            bytes: tally.bytes,
            elapsed,
            own_cpu,
            latency: tally.latency,
            lateness: tally.lateness,
        },
        faults: tally.faults,
    }
}

/// A socket for each source, connected: from each of the addresses in turn.
fn open_sources(plan: &Plan) -> Result<Vec<UdpSocket>, Error> {
    let any = [sockets::any_like(plan.target)];
    let from: &[IpAddr] = match plan.from.as_slice() {
        [] => &any,
        from => from,
    };
    let open = |address: &IpAddr| {
        let socket = sockets::open(SocketAddr::new(*address, 0))?;
        let doing = format!("connecting to {}", plan.target);
        socket
            .connect(plan.target)
            .map_err(Error::while_doing(doing))?;
        Ok(socket)
    };
    from.iter().cycle().take(plan.sources).map(open).collect()
}

impl Field<'_> {
    /// From the first datagram to the last; returns the time between the edges and the CPU time of this
    /// thread between them.
    fn measure(
        &mut self,
        plan: &Plan,
        observe: &mut dyn FnMut(Edge),
    ) -> Result<(Duration, Duration), Error> {
        let start = ring::now();
        let begin = start + plan.warmup;
        let end = begin + plan.duration;
        let is_open = matches!(plan.work, Work::Rate { .. });
        // A closed loop counts what it sees from now on, an open one what was due from then on.
        let edge = |planned: Instant| if is_open { planned } else { ring::now() };
        if is_open {
            self.tally.begin = begin;
            self.tally.end = end;
        }
        self.traffic.begin(plan.work, start, end, &mut self.tally);
        self.drive(begin)?;
        observe(Edge::Begin);
        let cpu = load::thread_cpu();
        self.tally.begin = edge(begin);
        self.drive(end)?;
        self.tally.end = edge(end);
        let elapsed = self.tally.end - self.tally.begin;
        let own_cpu = load::thread_cpu().saturating_sub(cpu);
        observe(Edge::End);
        self.traffic.stop();
        while self.traffic.is_under_way() {
            self.turn(ring::now() + LOOK_PAUSE)?;
        }
        Ok((elapsed, own_cpu))
    }

    fn drive(&mut self, until: Instant) -> Result<(), Error> {
        while ring::now() < until {
            self.turn(until)?;
        }
        Ok(())
    }

    /// Sends what is due, waits until `latest` at most for what can be read, and reads it.
    fn turn(&mut self, latest: Instant) -> Result<(), Error> {
        let due = self.traffic.hand_over(&mut self.tally);
        let until = due
            .map_or(latest, |due| due.min(latest))
            .min(self.next_look);
        let patience = (until - ring::now()).saturating_sub(AWAKE);
        self.poller.wait(patience, &mut self.ready)?;
        for token in &self.ready {
            match token.checked_sub(BACKENDS) {
                Some(backend) => self.backends[backend as usize].serve()?,
                None => self.traffic.readable(*token as usize, &mut self.tally),
            }
        }
        let now = ring::now();
        if now >= self.next_look {
            self.next_look = now + LOOK_PAUSE;
            self.traffic.give_up(&mut self.tally);
        }
        Ok(())
    }
}
