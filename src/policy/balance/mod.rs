//! The seam of the balancing algorithms, and their registry. An algorithm gives its order of
//! preference over the backends that fit; why one does not fit (unhealthy, full, tried already) it
//! need not know.
//!
//! A new algorithm is a file beside this one, with a constant `ALGORITHM`, and a line in
//! [`ALGORITHMS`].

#[cfg(test)]
mod example;
mod hash;
mod ip_hash;
mod latency;
mod least_connections;
mod load;
mod lots;
mod maglev;
mod peak_ewma;
mod per_weight;
mod power_of_two;
mod random;
mod rendezvous;
mod round_robin;
#[cfg(test)]
mod tests;
mod turns;

use std::fmt::{self, Debug};
use std::net::IpAddr;
use std::sync::Arc;

pub use latency::{Image as LatencyImage, Latency};
pub use load::{Load, identity};

use crate::time::Instant;

/// Every algorithm there is. The first one is the default.
pub const ALGORITHMS: &[Algorithm] = &[
    round_robin::ALGORITHM,
    least_connections::ALGORITHM,
    ip_hash::ALGORITHM,
    maglev::ALGORITHM,
    random::ALGORITHM,
    power_of_two::ALGORITHM,
    peak_ewma::ALGORITHM,
];

/// An algorithm, before it is given backends. Two are equal if they have the same name.
#[derive(Clone, Copy)]
pub struct Algorithm {
    /// As it stands in the configuration.
    pub name: &'static str,
    /// It chooses by the client's address: of no use where clients have none.
    pub needs_client: bool,
    /// It goes by [`Load::latency`], which is only measured where it is asked for.
    pub needs_latency: bool,
    /// Makes a balancer over `members`. `resume` is what [`Balancer::resume`] of the balancer said
    /// that this one takes the place of, or 0.
    pub build: fn(members: &[Member], resume: u64) -> Box<dyn Balancer>,
}

/// A backend, as an algorithm sees it.
#[derive(Clone, Debug)]
pub struct Member {
    /// The same in every process that has a backend of this address.
    pub identity: u64,
    /// As configured, 0..=256.
    pub weight: u16,
    /// What all workers know of its work.
    pub load: Arc<Load>,
}

/// An algorithm over a fixed list of backends, named by their index. Shared by all workers.
pub trait Balancer: Debug + Send + Sync {
    /// Begins one selection. What is shared between selections moves on here, once.
    fn draw(&self, request: Request) -> Draw {
        Draw {
            number: request.random,
            request,
        }
    }

    /// The first backend in the order of this selection that fits; `None` when none does. Called
    /// again with more backends passed over, it gives the next one.
    fn choose(&self, draw: &Draw, candidates: &Candidates<'_>) -> Option<usize>;

    /// What is worth computing once per set of weights instead of once per selection; it comes back
    /// as [`Candidates::arrangement`]. `weights` as in [`Candidates::weights`].
    fn arrange(&self, _weights: &[u16]) -> Vec<u16> {
        Vec::new()
    }

    /// Where it stands, for the one that takes its place after a reload.
    fn resume(&self) -> u64 {
        0
    }

    /// One that stands where this one does, to see what it would choose without having chosen. `None`:
    /// selections leave nothing behind, and this one may as well be asked.
    fn rehearsal(&self) -> Option<Box<dyn Balancer>> {
        None
    }

    /// How far its choice can be told before it is made.
    fn foresight(&self) -> Foresight {
        Foresight::Certain
    }
}

/// How far a choice can be told before it is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Foresight {
    /// It is the same for all sessions of a client, as long as the candidates are the same.
    Certain,
    /// It is that of the next session, on whichever worker. The one after it may get another.
    Next,
    /// It is drawn.
    Chance,
}

/// What a selection is made for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Who connects; `None` = not asked for, or a unix socket.
    pub client: Option<IpAddr>,
    /// Drawn for this selection.
    pub random: u64,
    /// When.
    pub now: Instant,
}

/// What makes one selection differ from the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Draw {
    /// Its meaning is the algorithm's.
    pub number: u64,
    /// What it is made for.
    pub request: Request,
}

/// The backends that may be chosen at the moment.
#[derive(Clone, Copy, Debug)]
pub struct Candidates<'a> {
    /// By backend: 0 = may not be chosen. The others stand in the proportion in which they are to
    /// be chosen now; all may be scaled up by a common factor, so that the weight of one that is
    /// starting slowly can be a fraction.
    pub weights: &'a [u16],
    /// What [`Balancer::arrange`] made of `weights`.
    pub arrangement: &'a [u16],
    /// Those that this selection has passed over.
    pub passed: &'a Passed,
}

impl Candidates<'_> {
    /// This backend may be chosen.
    pub fn fits(&self, backend: usize) -> bool {
        self.weights[backend] > 0 && !self.passed.contains(backend)
    }

    /// All that may be chosen, with their weights.
    pub fn fitting(&self) -> impl Iterator<Item = (usize, u16)> {
        let weights = self.weights.iter().copied().enumerate();
        weights.filter(|&(backend, weight)| weight > 0 && !self.passed.contains(backend))
    }
}

/// A set of backends; empty, it takes no memory.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Passed(Vec<u64>);

impl Passed {
    /// Adds one.
    pub fn insert(&mut self, backend: usize) {
        let word = backend / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (backend % 64);
    }

    /// It has none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// It is one of them.
    pub fn contains(&self, backend: usize) -> bool {
        let word = self.0.get(backend / 64).copied().unwrap_or(0);
        word & (1 << (backend % 64)) != 0
    }
}

impl PartialEq for Algorithm {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for Algorithm {}

impl Debug for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl Default for Algorithm {
    fn default() -> Self {
        ALGORITHMS[0]
    }
}
