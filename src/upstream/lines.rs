//! The lines of one worker: who waits for which upstream, in order.

use std::collections::VecDeque;
use std::sync::Arc;

use super::queue::Waiter;
use super::state::UpstreamState;
use crate::ring::Waker;

/// One line per upstream that anybody waits for.
#[derive(Default)]
pub(super) struct Lines {
    lines: Vec<(Arc<UpstreamState>, VecDeque<Ticket>)>,
    tickets: u64,
}

struct Ticket {
    number: u64,
    waker: Waker,
    generation: usize,
    choosy: bool,
}

/// What there is when one has left its line.
#[derive(Default)]
pub(super) struct Left {
    pub(super) was_choosy: bool,
    /// Those that may look now.
    pub(super) looking: Vec<Waker>,
    /// One of them can use any place.
    pub(super) somebody_takes_any: bool,
}

impl Lines {
    fn line(&self, state: &Arc<UpstreamState>) -> Option<usize> {
        self.lines.iter().position(|(of, _)| Arc::ptr_eq(of, state))
    }

    /// Lines up. Those of another generation have become choosy by that: the ticket, and how many they
    /// were.
    pub(super) fn join(&mut self, waiter: &Waiter<'_>) -> (u64, usize) {
        self.tickets += 1;
        let line = self.line(waiter.state).unwrap_or_else(|| {
            let line = (waiter.state.clone(), VecDeque::new());
            self.lines.push(line);
            self.lines.len() - 1
        });
        let line = &mut self.lines[line].1;
        let mut older = 0;
        for ticket in line.iter_mut() {
            if !ticket.choosy && ticket.generation != waiter.generation {
                ticket.choosy = true;
                older += 1;
            }
        }
        line.push_back(Ticket {
            number: self.tickets,
            waker: waiter.ring.waker(),
            generation: waiter.generation,
            choosy: waiter.choosy,
        });
        (self.tickets, older)
    }

    /// Only choosy ones come before this ticket.
    pub(super) fn may_look(&self, state: &Arc<UpstreamState>, ticket: u64) -> bool {
        let Some(line) = self.line(state) else {
            return false;
        };
        looking(&self.lines[line].1).any(|looking| looking.number == ticket)
    }

    /// Leaves the line.
    pub(super) fn leave(&mut self, state: &Arc<UpstreamState>, ticket: u64) -> Left {
        let Some(place) = self.line(state) else {
            return Left::default();
        };
        let line = &mut self.lines[place].1;
        let at = line.iter().position(|waiting| waiting.number == ticket);
        let was_choosy = at
            .and_then(|at| line.remove(at))
            .is_some_and(|left| left.choosy);
        let left = Left {
            was_choosy,
            looking: looking(line).map(|ticket| ticket.waker.clone()).collect(),
            somebody_takes_any: line.iter().any(|ticket| !ticket.choosy),
        };
        if line.is_empty() {
            self.lines.swap_remove(place);
        }
        left
    }

    /// The bell was rung: whoever may look shall look.
    pub(super) fn wake(&self) {
        let all = self.lines.iter().flat_map(|(_, line)| looking(line));
        all.for_each(|ticket| ticket.waker.wake());
    }
}

/// The choosy ones at the front, and the first that is not.
fn looking(line: &VecDeque<Ticket>) -> impl Iterator<Item = &Ticket> {
    let choosy = line.iter().take_while(|ticket| ticket.choosy).count();
    line.iter().take(choosy + 1)
}
