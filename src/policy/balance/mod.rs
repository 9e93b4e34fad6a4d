//! The seam of the balancing algorithms. A selection is an ordered sequence of candidates: the
//! first is the algorithm's choice, and whoever can't be used (tried already, full, unhealthy) is
//! passed over by the caller, so that the algorithm need not know why.

mod round_robin;

use std::fmt::Debug;

pub use round_robin::RoundRobin;

/// An algorithm over a fixed list of backends, named by their index. Shared by all workers.
pub trait Balancer: Debug + Send + Sync {
    /// Begins one selection. What is shared between selections moves on here, once.
    fn draw(&self) -> Draw;

    /// The candidate at `position` of the selection (0 = the first choice); `None` when there are
    /// no more. A backend may be named several times.
    fn candidate(&self, draw: Draw, position: usize) -> Option<usize>;
}

/// What makes one selection differ from the next. Its meaning is the algorithm's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Draw(pub u64);
