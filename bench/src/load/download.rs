//! Downloads: the request is a number of bytes (eight, big-endian), the answer that many bytes of the
//! counted pattern, each of which is compared.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;

use super::link::{Caller, Link};
use super::run::Run;

/// Bytes that may come before the task looks at them: a few buffers, which stay in the cache.
const RECEIVE_BUDGET: u32 = 256 * 1024;

/// Downloads one after another until the run has ended. What was compared counts at once, so that
/// a download may be longer than the run.
pub(super) async fn downloads(run: Rc<Run>, number: u64, bytes: u64) {
    let caller = Caller::new(&run.ring, &run.plan.target);
    match caller.connect(number).await {
        Ok(link) => {
            run.connected.set(run.connected.get() + 1);
            link.belongs_to_this_task();
            poll_fn(|_| match run.rhythm.get() {
                None => Poll::Pending,
                Some(_) => Poll::Ready(()),
            })
            .await;
            while !run.ended.get() && download(&run, &link, bytes).await {}
            link.abort();
        }
        Err(error) => run.refused(error),
    }
    run.task_ended();
}

/// One download; false when the connection is of no more use.
async fn download(run: &Run, link: &Link, bytes: u64) -> bool {
    let began = run.ring.now();
    let mut received = 0;
    let mut right = link.send(&Rc::from(bytes.to_be_bytes()));
    let whole = poll_fn(|_| {
        let before = received;
        let (_, flow) = link.read(|slice| {
            right &= run.pattern.matches(received, slice);
            received += slice.len() as u64;
        });
        run.received(received - before);
        if !right || run.ended.get() || received > bytes {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        if received == bytes {
            return Poll::Ready(Ok(()));
        }
        if let Some(error) = link.broken(flow) {
            return Poll::Ready(Err(error));
        }
        link.receive(RECEIVE_BUDGET);
        Poll::Pending
    })
    .await;
    match &whole {
        Ok(()) => run.answered(began),
        Err(error) => run.lost(error),
    }
    whole.is_ok()
}
