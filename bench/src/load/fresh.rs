//! A new connection for every request: connect, one exchange, close. At saturation, or each when it is
//! due.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use ringress::ring::{Flow, Ring};
use ringress::time::Instant;

use super::link::{Caller, Link};
use super::run::Run;

/// A backend that does not answer would stop the run for ever.
const PATIENCE: Duration = Duration::from_secs(5);
/// After a refusal: errors shall be counted, not be the load.
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// Visits one after another until the run has ended.
pub(super) async fn visits(run: Rc<Run>, number: u64) {
    let caller = Caller::new(&run.ring, &run.plan.target);
    let mut visit = number;
    while !run.ended.get() {
        let began = run.ring.now();
        match caller.connect(visit).await {
            Ok(link) => {
                if let Err(error) = ask_and_end(&run, &caller, &link, began).await {
                    run.lost(&error);
                }
            }
            Err(error) => {
                run.refused(error);
                run.ring.sleep_until(run.ring.now() + RETRY_PAUSE).await;
            }
        }
        visit += run.plan.connections as u64;
    }
    run.task_ended();
}

/// What follows in a visit that began at `began`, once it is connected.
async fn ask_and_end(run: &Run, caller: &Caller, link: &Link, began: Instant) -> io::Result<()> {
    exchange(&run.ring, link, &run.request, &run.request).await?;
    run.received(run.request.len() as u64);
    match caller.had(link) {
        Ok(()) => run.answered(began),
        Err(error) => run.lost(&error),
    }
    end(&run.ring, link).await
}

/// Ends what was in order. With TLS that is close_notify, and waiting until the other side has ended, too:
/// whoever closes before would answer its close_notify with RST.
async fn end(ring: &Ring, link: &Link) -> io::Result<()> {
    if !link.is_tls() {
        return Ok(());
    }
    link.finish();
    finished(ring, link, ring.now() + PATIENCE).await
}

/// One visit that was due at `due`. It is lost if anything but the whole answer and FIN comes.
pub(super) async fn visit(run: Rc<Run>, number: u64, due: Instant) {
    match whole_visit(&run, number).await {
        Ok(answered) => {
            run.received(run.request.len() as u64);
            run.answered_at(due, answered);
        }
        Err(error) => run.visit_lost(due, &error),
    }
    run.task_ended();
}

/// Returns when the answer was there; what follows is the connection's end.
async fn whole_visit(run: &Run, number: u64) -> io::Result<Instant> {
    let deadline = run.ring.now() + PATIENCE;
    let caller = Caller::new(&run.ring, &run.plan.target);
    let link = caller.connect_until(number, deadline).await?;
    exchange_until(&run.ring, &link, &run.request, &run.request, deadline).await?;
    let answered = run.ring.now();
    link.finish();
    finished(&run.ring, &link, deadline).await?;
    Ok(answered)
}

/// Sends `request` and waits until all of `answer` has come.
pub(super) async fn exchange(
    ring: &Ring,
    link: &Link,
    request: &Rc<[u8]>,
    answer: &[u8],
) -> io::Result<()> {
    exchange_until(ring, link, request, answer, ring.now() + PATIENCE).await
}

async fn exchange_until(
    ring: &Ring,
    link: &Link,
    request: &Rc<[u8]>,
    answer: &[u8],
    deadline: Instant,
) -> io::Result<()> {
    link.belongs_to_this_task();
    let timer = ring.timer();
    timer.set(deadline);
    let mut received = 0;
    let mut right = link.send(request);
    poll_fn(|_| {
        let (_, flow) = link.read(|slice| {
            right &= answer.get(received..received + slice.len()) == Some(slice);
            received += slice.len();
        });
        if !right {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        if received == answer.len() {
            return Poll::Ready(Ok(()));
        }
        if let Some(error) = link.broken(flow) {
            return Poll::Ready(Err(error));
        }
        if ring.now() >= deadline {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        link.receive(answer.len() as u32);
        Poll::Pending
    })
    .await
}

/// Waits for FIN; anything else is an error.
async fn finished(ring: &Ring, link: &Link, deadline: Instant) -> io::Result<()> {
    let timer = ring.timer();
    timer.set(deadline);
    poll_fn(|_| {
        let (bytes, flow) = link.read(|_| {});
        Poll::Ready(match flow {
            _ if bytes > 0 => Err(io::ErrorKind::InvalidData.into()),
            Flow::Finished => Ok(()),
            Flow::Open if ring.now() < deadline => {
                link.receive(1);
                return Poll::Pending;
            }
            Flow::Open => Err(io::ErrorKind::TimedOut.into()),
            Flow::Failed { .. } | Flow::Broken(_) => Err(link
                .broken(flow)
                .unwrap_or(io::ErrorKind::ConnectionReset.into())),
        })
    })
    .await
}
