//! Handshakes cost a worker thousands of times what a relayed byte does, and clients may begin any number of
//! them at once. A step of one needs a pass, of which a turn has a few; the others wait in line, and whoever
//! is established has its turn in between.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use crate::ring::{Ring, Waker};

/// Steps in a turn: less than a millisecond's work.
const PER_TURN: u32 = 4;

/// The gate of a worker.
#[derive(Default)]
pub struct Gate {
    /// The turn that `left` is of.
    turn: Cell<u64>,
    left: Cell<u32>,
    line: RefCell<VecDeque<(u64, Waker)>>,
    next: Cell<u64>,
}

/// A task at the gate; it leaves the line when this goes.
pub struct Visitor<'a> {
    gate: &'a Gate,
    ring: &'a Ring,
    ticket: Option<u64>,
}

impl Gate {
    /// The calling task comes to the gate.
    pub fn visit<'a>(&'a self, ring: &'a Ring) -> Visitor<'a> {
        Visitor {
            gate: self,
            ring,
            ticket: None,
        }
    }

    /// A pass of this turn.
    fn take(&self, turn: u64) -> bool {
        if self.turn.replace(turn) != turn {
            self.left.set(PER_TURN);
        }
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        left > 0
    }

    fn leads(&self, ticket: u64) -> bool {
        let line = self.line.borrow();
        line.front().is_some_and(|(first, _)| *first == ticket)
    }

    /// Those who stand in front look whether there is a pass, one after the other.
    fn wake_first(&self) {
        for (_, first) in self.line.borrow().iter().take(PER_TURN as usize) {
            first.wake();
        }
    }
}

impl Visitor<'_> {
    /// A pass for one step, to be used at once. If there is none the task is woken in a later turn, to ask
    /// again.
    pub fn may_pass(&mut self) -> bool {
        let gate = self.gate;
        let first = match self.ticket {
            Some(ticket) => gate.leads(ticket),
            None => gate.line.borrow().is_empty(),
        };
        if first && gate.take(self.ring.turns()) {
            self.leave();
            return true;
        }
        if self.ticket.is_none() {
            let ticket = gate.next.get();
            gate.next.set(ticket + 1);
            let entry = (ticket, self.ring.waker());
            gate.line.borrow_mut().push_back(entry);
            self.ticket = Some(ticket);
        }
        if self.ticket.is_some_and(|ticket| gate.leads(ticket)) {
            gate.wake_first();
        }
        false
    }

    /// There is nothing to pass for any more.
    pub fn leave(&mut self) {
        let Some(ticket) = self.ticket.take() else {
            return;
        };
        if self.gate.leads(ticket) {
            self.gate.line.borrow_mut().pop_front();
            self.gate.wake_first();
        } else {
            let mut line = self.gate.line.borrow_mut();
            line.retain(|(other, _)| *other != ticket);
        }
    }
}

impl Drop for Visitor<'_> {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::rc::Rc;
    use std::task::Poll;

    use super::*;
    use crate::ring::sim::{Faults, World};

    fn ring() -> Ring {
        let world = World::new(1, Faults::none());
        Ring::new(Box::new(world.driver()), 1 << 20)
    }

    fn turn(ring: &Ring) {
        ring.turn().expect("a simulated ring does not fail");
    }

    /// The turn and the number of who passed, in order.
    type Passes = Rc<RefCell<Vec<(u64, usize)>>>;

    async fn pass(ring: &Ring, gate: &Gate) {
        let mut visitor = gate.visit(ring);
        poll_fn(|_| match visitor.may_pass() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }

    /// So many tasks that want to pass so often, each.
    fn crowd(ring: &Ring, gate: &Rc<Gate>, tasks: usize, times: usize) -> Passes {
        let passes = Passes::default();
        for number in 0..tasks {
            let (own, gate, passes) = (ring.clone(), gate.clone(), passes.clone());
            ring.spawn(async move {
                for _ in 0..times {
                    pass(&own, &gate).await;
                    passes.borrow_mut().push((own.turns(), number));
                }
            });
        }
        passes
    }

    #[test]
    fn a_turn_has_a_few_passes_and_they_go_by_the_line() {
        let (ring, gate) = (ring(), Rc::default());
        let passes = crowd(&ring, &gate, 50, 3);
        for _ in 0..60 {
            turn(&ring);
        }
        let passes = passes.borrow();
        assert_eq!(passes.len(), 150);
        let first: Vec<_> = passes.iter().take(50).map(|(_, number)| *number).collect();
        assert!(first.iter().take(PER_TURN as usize).is_sorted());
        for turn in 0..70 {
            let count = passes.iter().filter(|(at, _)| *at == turn).count();
            assert!(count <= PER_TURN as usize, "{count} in turn {turn}");
        }
        let last = passes.last().expect("there are some").0;
        assert!(
            u64::from(PER_TURN) * last <= 150 + 4 * u64::from(PER_TURN),
            "{last}"
        );
        assert!(gate.line.borrow().is_empty());
        assert_eq!(ring.usage().tasks, 0);
    }

    #[test]
    fn who_does_not_come_to_the_gate_has_its_turn_in_between() {
        let (ring, gate) = (ring(), Rc::default());
        let passes = crowd(&ring, &gate, 200, 2);
        let (own, polls) = (ring.clone(), Rc::new(Cell::new(0)));
        let counted = polls.clone();
        ring.spawn(poll_fn(move |_| {
            counted.set(counted.get() + 1);
            own.waker().wake();
            Poll::<()>::Pending
        }));
        while passes.borrow().len() < 400 {
            let before = polls.get();
            turn(&ring);
            assert!(polls.get() > before);
            assert!(ring.turns() < 150, "the line does not move");
        }
    }

    #[test]
    fn who_leaves_the_line_stops_nobody() {
        let (ring, gate) = (ring(), Gate::default());
        turn(&ring);
        let mut visitors: Vec<_> = (0..PER_TURN + 5).map(|_| gate.visit(&ring)).collect();
        let passed = visitors
            .iter_mut()
            .filter_map(|it| it.may_pass().then_some(()));
        assert_eq!(passed.count(), PER_TURN as usize);
        assert_eq!(gate.line.borrow().len(), 5);
        // The first of the line, and one in its middle.
        let rest = visitors.split_off(PER_TURN as usize);
        let mut rest: Vec<_> = rest.into_iter().map(Some).collect();
        rest[0] = None;
        rest[2] = None;
        turn(&ring);
        for number in [1, 3, 4] {
            let visitor = rest[number].as_mut().expect("it has not left");
            assert!(visitor.may_pass(), "{number}");
        }
        drop(rest);
        assert!(gate.line.borrow().is_empty());
    }

    #[test]
    fn who_comes_late_does_not_overtake_the_line() {
        let (ring, gate) = (ring(), Gate::default());
        turn(&ring);
        let mut early: Vec<_> = (0..=PER_TURN).map(|_| gate.visit(&ring)).collect();
        for visitor in &mut early {
            visitor.may_pass();
        }
        turn(&ring);
        let mut late = gate.visit(&ring);
        assert!(!late.may_pass());
        assert!(early[PER_TURN as usize].may_pass());
        assert!(late.may_pass());
    }
}
