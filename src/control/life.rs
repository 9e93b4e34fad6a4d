//! The life of a worker's thread: it makes the ring and runs the worker. After a panic it takes what is left
//! apart, rests, and goes on with a new ring and the same sockets. It logs nothing: the control thread is told.
//!
//! ```text
//!   building ──▶ waiting for the word ──▶ running ──drained──▶ ended
//!      ▲                                    │ panic
//!      └──── resting ◀── falling ◀──────────┘
//! ```

use std::cell::RefCell;
use std::io;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Once};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use super::Error;
use super::workers::Plan;
use crate::policy::restart::Rests;
use crate::proxy::{Message, Remains, Shared, Worker};
use crate::ring::{self, BUFFER_BYTES, Fd, Mailbox, Ring, Setup, Uring, limits};
use crate::telemetry::recorder::Moment;

/// What a worker's thread begins with.
pub(super) struct Start {
    pub(super) index: usize,
    pub(super) cpu: Option<usize>,
    pub(super) plan: Plan,
    pub(super) shared: Arc<Shared>,
    pub(super) mailbox: (Arc<Mailbox<Message>>, Fd),
}

/// What the control thread hears of a worker.
#[derive(Debug)]
pub(super) enum News {
    /// It has panicked, and begins again after so long. What it did last, before its sessions were ended.
    Panicked(String, Duration, Vec<Moment>),
    /// The kernel gives no ring to begin again with; the next try is after so long.
    Refused(io::Error, Duration),
    /// It goes on, after a panic.
    Restarted,
    /// Its thread has ended, and why if that was not asked for.
    Ended(io::Result<()>),
}

/// By which the control thread hears.
pub(super) struct Teller {
    pub(super) index: usize,
    pub(super) sender: UnboundedSender<(usize, News)>,
    /// Told when this goes.
    pub(super) outcome: Option<io::Result<()>>,
}

impl Teller {
    fn tell(&self, news: News) {
        // Nobody listens when the process is on its way out.
        let _ = self.sender.send((self.index, news));
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        let failed = || {
            let heard = heard().unwrap_or_default();
            Err(io::Error::other(format!("it can't go on: {heard}")))
        };
        let outcome = self.outcome.take().unwrap_or_else(failed);
        self.tell(News::Ended(outcome));
    }
}

/// Lives. `ready` is answered once there is a ring; nothing is done before the first word of `words`, and a
/// later one ends a rest.
pub(super) fn live(
    start: Start,
    mut teller: Teller,
    ready: &Sender<Result<(), Error>>,
    words: &Receiver<()>,
) {
    hear_of_panics();
    let first = match begin(&start) {
        Ok(worker) => {
            let _ = ready.send(Ok(()));
            worker
        }
        Err(error) => {
            let _ = ready.send(Err(error));
            teller.outcome = Some(Ok(()));
            return;
        }
    };
    // Without the word to go another worker could not start, and nobody may.
    teller.outcome = match words.recv() {
        Ok(()) => Some(go_on(&start, first, &teller, words)),
        Err(_) => Some(Ok(())),
    };
}

/// Runs the worker and its successors.
fn go_on(start: &Start, first: Worker, teller: &Teller, words: &Receiver<()>) -> io::Result<()> {
    let mut worker = first;
    let mut rests = Rests::default();
    loop {
        let began = ring::now();
        let Err(message) = caught(|| worker.run()) else {
            return Ok(());
        };
        let message = match message {
            Stopped::Failed(error) => return Err(error),
            Stopped::Panicked(message) => message,
        };
        // Now: sessions that are ended for it would push out what led to it.
        let last = start.shared.recorders[start.index].moments();
        let remains = take_apart(worker);
        let message = match heard() {
            Some(next) => format!("{message}; and then {next}"),
            None => message,
        };
        let rest = rests.next(ring::now() - began);
        teller.tell(News::Panicked(message, rest, last));
        let _ = words.recv_timeout(rest);
        let driver = loop {
            match driver(start) {
                Ok(driver) => break driver,
                Err(error) => {
                    let rest = rests.next(Duration::ZERO);
                    teller.tell(News::Refused(error, rest));
                    let _ = words.recv_timeout(rest);
                }
            }
        };
        worker = succeed(start, driver, remains);
        teller.tell(News::Restarted);
    }
}

fn begin(start: &Start) -> Result<Worker, Error> {
    if let Some(cpu) = start.cpu {
        limits::pin_to(cpu).map_err(Error::Resources)?;
    }
    let driver = driver(start).map_err(|error| Error::Ring(error.into()))?;
    let ring = Ring::new(Box::new(driver), start.plan.buffer_memory);
    let mailbox = start.mailbox.clone();
    Ok(Worker::new(
        ring,
        start.shared.clone(),
        start.index,
        mailbox,
    ))
}

fn driver(start: &Start) -> io::Result<Uring> {
    let Plan {
        buffer_memory,
        without,
        ..
    } = start.plan;
    let buffers = buffer_memory / u64::from(BUFFER_BYTES);
    Uring::new(&Setup {
        buffers: usize::try_from(buffers).unwrap_or(usize::MAX),
        without,
        ..Setup::default()
    })
}

fn succeed(start: &Start, driver: Uring, remains: Remains) -> Worker {
    let ring = Ring::new(Box::new(driver), start.plan.buffer_memory);
    Worker::after(remains, ring, start.shared.clone(), start.index)
}

/// Ends what the worker had, and waits until the kernel has nothing of it any more, though not for ever.
fn take_apart(worker: Worker) -> Remains {
    /// The last completions need a turn or two.
    const PATIENCE: Duration = Duration::from_secs(1);
    let latest = ring::now() + PATIENCE;
    worker.fall();
    while !worker.has_fallen() && ring::now() < latest {
        if caught(|| worker.turn_until(latest)).is_err() {
            break;
        }
    }
    worker.into_remains()
}

/// Why a worker has stopped running.
enum Stopped {
    Failed(io::Error),
    Panicked(String),
}

fn caught(work: impl FnOnce() -> io::Result<()>) -> Result<(), Stopped> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(Stopped::Failed),
        Err(_) => {
            let silent = || "without a word".to_owned();
            Err(Stopped::Panicked(heard().unwrap_or_else(silent)))
        }
    }
}

thread_local! {
    /// On a worker's thread: what it has said as it panicked, until somebody has asked.
    static HEARD: RefCell<Option<Option<String>>> = const { RefCell::new(None) };
}

/// What this thread has said as it panicked.
fn heard() -> Option<String> {
    HEARD.with_borrow_mut(|heard| heard.as_mut().and_then(Option::take))
}

/// From now on a panic of this thread is not written to stderr but kept. One on top of another, which ends the
/// process, is written as ever.
fn hear_of_panics() {
    static HOOK: Once = Once::new();
    HEARD.set(Some(None));
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !is_kept(panic) {
                usual(panic);
            }
        }));
    });
}

fn is_kept(panic: &PanicHookInfo<'_>) -> bool {
    let keep = |heard: &RefCell<Option<Option<String>>>| match &mut *heard.borrow_mut() {
        Some(free @ None) => {
            *free = Some(describe(panic));
            true
        }
        _ => false,
    };
    HEARD.try_with(keep).unwrap_or(false)
}

/// One line.
fn describe(panic: &PanicHookInfo<'_>) -> String {
    let message = panic
        .payload_as_str()
        .unwrap_or("a panic")
        .replace('\n', " ");
    match panic.location() {
        Some(place) => format!("{message}, at {}:{}", place.file(), place.line()),
        None => message,
    }
}
