//! A new connection for every request: connect, one exchange, close.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use ringress::ring::{Flow, Ring, Socket};

use super::connect;
use super::run::Run;

/// A backend that does not answer would stop the run for ever.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a refusal: errors shall be counted, not be the load.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// Visits one after another until the run has ended.
pub(super) async fn visits(run: Rc<Run>, number: u64) {
    let mut visit = number;
    while !run.ended.get() {
        let began = run.ring.now();
        match connect(&run.ring, run.plan.target, visit).await {
            Ok(socket) => match exchange(&run.ring, &socket, &run.request, &run.request).await {
                Ok(()) => {
                    run.received(run.request.len() as u64);
                    run.answered(began);
                }
                Err(_) => run.failed(),
            },
            Err(error) => {
                run.refused(error);
                run.ring.sleep_until(run.ring.now() + RETRY_PAUSE).await;
            }
        }
        visit += run.plan.connections as u64;
    }
    run.task_ended();
}

/// Sends `request` and waits until all of `answer` has come.
pub(super) async fn exchange(
    ring: &Ring,
    socket: &Socket,
    request: &Rc<[u8]>,
    answer: &[u8],
) -> io::Result<()> {
    socket.belongs_to_this_task();
    let deadline = ring.now() + PATIENCE;
    let timer = ring.timer();
    timer.set(deadline);
    let mut received = 0;
    let mut right = socket.send(Rc::clone(request));
    poll_fn(|_| {
        let (_, flow) = socket.read(|slice| {
            right &= answer.get(received..received + slice.len()) == Some(slice);
            received += slice.len();
        });
        if !right {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        if received == answer.len() {
            return Poll::Ready(Ok(()));
        }
        if flow != Flow::Open || socket.send_error().is_some() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if ring.now() >= deadline {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        socket.receive(answer.len() as u32);
        Poll::Pending
    })
    .await
}
