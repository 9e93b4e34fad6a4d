//! Connections that are kept: one exchange after another, at saturation or at a fixed rate.
//!
//! ```text
//!   Away ── connected ──► Idle ── a request is due ──► Waiting
//!    ▲                     ▲                             │ │
//!    │                     └──── the whole answer ───────┘ │
//!    └───────────── connection lost, wrong bytes ──────────┘
//! ```

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use ringress::time::Instant;

use super::link::{Caller, Link};
use super::run::{Rhythm, Run};

/// Bytes that one arming of a receive is good for: thousands of answers.
const RECEIVE_BUDGET: u32 = 1 << 20;
/// A connection that was lost is made anew after this long: errors shall be counted, not be the
/// load.
const RECONNECT_PAUSE: Duration = Duration::from_millis(10);

/// One connection's place in a run. It survives the connection.
pub(super) struct Lane {
    number: u64,
    /// Requests of this lane that were sent.
    sent: Cell<u64>,
    state: Cell<State>,
    link: RefCell<Option<Link>>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// There is no connection.
    Away,
    /// The next request may go out.
    Idle,
    /// For the answer to a request.
    Waiting { meant: Instant, received: usize },
}

impl Lane {
    pub(super) fn new(number: u64) -> Self {
        Self {
            number,
            sent: Cell::new(0),
            state: Cell::new(State::Away),
            link: RefCell::new(None),
        }
    }

    /// When the next request of this lane is meant to go out, unless that is after the last one.
    fn next_meant(&self, run: &Run) -> Option<Instant> {
        match run.rhythm.get()? {
            Rhythm::Closed => Some(run.ring.now()),
            Rhythm::Open { schedule, last } => {
                let lanes = run.plan.connections as u64;
                let due = schedule.due(self.number + self.sent.get() * lanes);
                (due < last).then_some(due)
            }
        }
    }

    /// Sends the next request if it is due and the connection is free.
    pub(super) fn advance(&self, run: &Run) {
        let State::Idle = self.state.get() else {
            return;
        };
        let Some(meant) = self
            .next_meant(run)
            .filter(|meant| *meant <= run.ring.now())
        else {
            return;
        };
        let link = self.link.borrow();
        let Some(link) = link.as_ref() else {
            return;
        };
        if link.send(&run.request) {
            self.sent.set(self.sent.get() + 1);
            self.state.set(State::Waiting { meant, received: 0 });
        } else {
            // The kernel has not said yet that it took the last request, though its answer is here.
            link.wake_when_sent();
        }
    }

    /// A request was due before the end and has no answer.
    pub(super) fn is_due(&self, run: &Run) -> bool {
        let waiting = matches!(self.state.get(), State::Waiting { .. });
        waiting || self.next_meant(run).is_some()
    }

    /// Names when each request was meant to go out that was due and has no answer.
    pub(super) fn open_requests(&self, run: &Run, mut each: impl FnMut(Instant)) {
        if let State::Waiting { meant, .. } = self.state.get() {
            each(meant);
        }
        while let Some(meant) = self.next_meant(run) {
            each(meant);
            self.sent.set(self.sent.get() + 1);
        }
    }

    /// Takes what came; `Ready` when the run has ended or the connection is of no more use.
    fn poll(&self, run: &Run) -> Poll<io::Result<()>> {
        if run.ended.get() {
            return Poll::Ready(Ok(()));
        }
        let mut right = true;
        let flow = {
            let link = self.link.borrow();
            let link = link.as_ref().expect("a lane is polled while connected");
            let mut state = self.state.get();
            let (bytes, flow) = link.read(|slice| right &= take(&mut state, &run.request, slice));
            run.received(bytes);
            self.state.set(state);
            flow
        };
        if let State::Waiting { meant, received } = self.state.get()
            && received == run.request.len()
            && right
        {
            run.answered(meant);
            self.state.set(State::Idle);
        }
        self.advance(run);
        let link = self.link.borrow();
        let link = link.as_ref().expect("a lane is polled while connected");
        if !right {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        if let Some(error) = link.broken(flow) {
            return Poll::Ready(Err(error));
        }
        link.receive(RECEIVE_BUDGET);
        Poll::Pending
    }
}

/// Books bytes of an answer; false when they are not what was sent.
fn take(state: &mut State, request: &[u8], slice: &[u8]) -> bool {
    let State::Waiting { received, .. } = state else {
        return false;
    };
    let from = *received;
    *received += slice.len();
    request.get(from..*received) == Some(slice)
}

/// Keeps a lane connected and busy until the run has ended.
pub(super) async fn lane(run: Rc<Run>, lane: Rc<Lane>) {
    let caller = Caller::new(&run.ring, &run.plan.target);
    while !run.ended.get() {
        match caller.connect(lane.number).await {
            Ok(link) => {
                link.belongs_to_this_task();
                lane.link.replace(Some(link));
                lane.state.set(State::Idle);
                run.connected.set(run.connected.get() + 1);
                if let Err(error) = poll_fn(|_| lane.poll(&run)).await {
                    run.lost(&error);
                }
            }
            Err(error) => run.refused(error),
        }
        if let Some(link) = lane.link.take() {
            link.abort();
        }
        if run.ended.get() {
            break;
        }
        lane.state.set(State::Away);
        run.ring.sleep_until(run.ring.now() + RECONNECT_PAUSE).await;
    }
    run.task_ended();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting() -> State {
        State::Waiting {
            meant: Instant::from_nanos(1),
            received: 0,
        }
    }

    #[test]
    fn an_answer_may_come_in_pieces() {
        let mut state = waiting();
        assert!(take(&mut state, b"request", b"req"));
        assert!(take(&mut state, b"request", b"uest"));
        assert!(matches!(state, State::Waiting { received: 7, .. }));
    }

    #[test]
    fn wrong_bytes_and_too_many_are_found() {
        assert!(!take(&mut waiting(), b"request", b"rex"));
        assert!(!take(&mut waiting(), b"request", b"requests"));
        assert!(!take(&mut State::Idle, b"request", b"r"));
    }
}
