//! The workers' threads: started one per CPU, told to drain or abort, waited for.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::Error;
use crate::proxy::{Adopted, BindingId, Left, Message, Shared, Worker};
use crate::ring::net::into_fd;
use crate::ring::{BUFFER_BYTES, Mailbox, Ring, Setup, Uring, Without, limits};
use crate::upstream::Bell;

/// The running workers.
pub(super) struct Workers {
    mailboxes: Vec<Arc<Mailbox<Message>>>,
    ended: UnboundedReceiver<(usize, io::Result<()>)>,
    running: usize,
    /// Workers that have everything and wait for the word to go.
    waiting: Vec<mpsc::Sender<()>>,
}

/// What every worker is started with.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    pub(super) workers: usize,
    pub(super) pinned: bool,
    pub(super) buffer_memory: u64,
    pub(super) without: Without,
}

impl Workers {
    /// Starts one thread per worker, and waits until each has its ring. They do nothing before
    /// [`Workers::go`].
    pub(super) fn start(plan: Plan, shared: &Arc<Shared>) -> Result<Self, Error> {
        let (ended_sender, ended) = unbounded_channel();
        let (ready_sender, ready) = mpsc::channel();
        let cpus = limits::usable_cpus();
        let mut mailboxes = Vec::new();
        let mut waiting = Vec::new();
        for index in 0..plan.workers {
            let (mailbox, event) = Mailbox::new().map_err(Error::Resources)?;
            mailboxes.push(mailbox.clone());
            let start = Start {
                index,
                cpu: plan.pinned.then(|| cpus[index % cpus.len()]),
                plan,
                shared: shared.clone(),
                mailbox: (mailbox, event),
            };
            let (go, started) = mpsc::channel();
            waiting.push(go);
            let guard = Ended {
                index,
                sender: ended_sender.clone(),
                outcome: None,
            };
            let ready = ready_sender.clone();
            thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || run(start, guard, &ready, &started))
                .map_err(Error::Resources)?;
        }
        shared.around.bells.hang(mailboxes.iter().map(|mailbox| {
            let mailbox = mailbox.clone();
            Box::new(move || mailbox.signal()) as Bell
        }));
        // So that a thread that ends without an answer is noticed.
        drop(ready_sender);
        let workers = Self {
            running: mailboxes.len(),
            mailboxes,
            ended,
            waiting,
        };
        for _ in 0..workers.running {
            ready
                .recv()
                .map_err(|_| Error::Worker("it ended while starting".to_owned()))??;
        }
        Ok(workers)
    }

    /// Lets all of them begin.
    pub(super) fn go(&mut self) {
        for go in self.waiting.drain(..) {
            // A worker that has ended since is found by `next_end`.
            let _ = go.send(());
        }
    }

    /// Tells every worker.
    pub(super) fn post(&self, message: impl Fn() -> Message) {
        for mailbox in &self.mailboxes {
            mailbox.post(message());
        }
    }

    /// The sessions of datagrams of one binding go on with the sockets of another, which waits for them.
    pub(super) fn hand_on(&self, from: BindingId, to: BindingId) {
        let (sender, receiver) = mpsc::channel::<Left>();
        self.post(|| Message::Leave(from, sender.clone()));
        drop(sender);
        let workers = self.posts();
        let hand_on = move || {
            for left in receiver {
                let sessions = left.sessions.into_iter();
                workers[left.socket % workers.len()].post(Message::Adopt(Adopted {
                    binding: to,
                    socket: left.socket,
                    lost: left.lost,
                    sessions: sessions.map(|(image, fd)| (image, into_fd(fd))).collect(),
                }));
            }
            workers
                .iter()
                .for_each(|worker| worker.post(Message::Begin));
        };
        let thread = thread::Builder::new().name("sessions".to_owned());
        if let Err(error) = thread.spawn(hand_on) {
            // Whoever waits for them begins without.
            tracing::error!(%error, "no thread to hand sessions of datagrams on");
        }
    }

    /// By which others can tell them, each its own.
    pub(super) fn posts(&self) -> Vec<Arc<Mailbox<Message>>> {
        self.mailboxes.clone()
    }

    /// Tells one of them.
    pub(super) fn post_to(&self, worker: usize, message: Message) {
        self.mailboxes[worker].post(message);
    }

    /// Not all have ended.
    pub(super) fn are_running(&self) -> bool {
        self.running > 0
    }

    /// Waits until a worker ends; `None` when all have.
    pub(super) async fn next_end(&mut self) -> Option<Result<(), Error>> {
        if self.running == 0 {
            return None;
        }
        let (index, outcome) = self.ended.recv().await?;
        self.running -= 1;
        Some(outcome.map_err(|error| Error::Worker(format!("worker {index}: {error}"))))
    }
}

/// What a worker's thread begins with.
struct Start {
    index: usize,
    cpu: Option<usize>,
    plan: Plan,
    shared: Arc<Shared>,
    mailbox: (Arc<Mailbox<Message>>, crate::ring::Fd),
}

/// Reports the end of a worker's thread, a panic's too.
struct Ended {
    index: usize,
    sender: UnboundedSender<(usize, io::Result<()>)>,
    outcome: Option<io::Result<()>>,
}

impl Drop for Ended {
    fn drop(&mut self) {
        let outcome = self
            .outcome
            .take()
            .unwrap_or_else(|| Err(io::Error::other("it panicked")));
        // Nobody listens when the process is on its way out.
        let _ = self.sender.send((self.index, outcome));
    }
}

fn run(
    start: Start,
    mut guard: Ended,
    ready: &mpsc::Sender<Result<(), Error>>,
    started: &mpsc::Receiver<()>,
) {
    let built = build(start);
    let (worker, answer) = match built {
        Ok(worker) => (Some(worker), Ok(())),
        Err(error) => (None, Err(error)),
    };
    let _ = ready.send(answer);
    // Without the word to go another worker could not start, and nobody may.
    guard.outcome = Some(match worker {
        Some(worker) if started.recv().is_ok() => worker.run(),
        _ => Ok(()),
    });
}

fn build(start: Start) -> Result<Worker, Error> {
    if let Some(cpu) = start.cpu {
        limits::pin_to(cpu).map_err(Error::Resources)?;
    }
    let buffers =
        usize::try_from(start.plan.buffer_memory / u64::from(BUFFER_BYTES)).unwrap_or(usize::MAX);
    let setup = Setup {
        buffers,
        without: start.plan.without,
        ..Setup::default()
    };
    let driver = Uring::new(&setup).map_err(|error| Error::Ring(error.into()))?;
    let ring = Ring::new(Box::new(driver), start.plan.buffer_memory);
    Ok(Worker::new(ring, start.shared, start.index, start.mailbox))
}
