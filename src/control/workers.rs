//! The workers' threads: started one per CPU, told to drain or abort, waited for.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::Error;
use crate::address::Address;
use crate::config::Config;
use crate::proxy::{ListenerSocket, Message, Shared, Worker};
use crate::ring::net::{ListenOptions, into_fd, listen};
use crate::ring::{BUFFER_BYTES, Mailbox, Ring, Setup, Uring, Without, limits};
use crate::upstream::Bell;

/// The running workers.
pub(super) struct Workers {
    mailboxes: Vec<Arc<Mailbox<Message>>>,
    ended: UnboundedReceiver<(usize, io::Result<()>)>,
    running: usize,
}

/// What every worker is started with.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    pub(super) workers: usize,
    pub(super) pinned: bool,
    pub(super) buffer_memory: u64,
    pub(super) without: Without,
}

/// The listening sockets of one worker.
pub(super) type Sockets = Vec<(usize, OwnedFd, bool)>;

/// The listening sockets of a process.
pub(super) struct Bound {
    /// One entry per worker.
    pub(super) sockets: Vec<Sockets>,
    /// A listener's index and an address it got.
    pub(super) addresses: Vec<(usize, Address)>,
}

/// Binds every listener once per worker. Nothing is left bound when one can't be.
pub(super) fn bind(config: &Config, workers: usize) -> Result<Bound, Error> {
    let mut sockets: Vec<Sockets> = (0..workers).map(|_| Vec::new()).collect();
    let mut addresses = Vec::new();
    for (index, listener) in config.listeners.iter().enumerate() {
        let options = ListenOptions {
            backlog: listener.backlog.get(),
            keepalive: listener.tcp_keepalive,
            congestion: listener.congestion.as_deref(),
            ipv6_only: listener.ipv6_only,
            unix_mode: listener.unix_mode,
        };
        for address in &listener.bind {
            let (members, address) =
                listen(address, workers, &options).map_err(|error| Error::Bind {
                    listener: listener.name.clone(),
                    address: address.clone(),
                    error,
                })?;
            let shared = matches!(address, Address::Unix(_)) && workers > 1;
            for (worker, socket) in members.into_iter().enumerate() {
                sockets[worker].push((index, socket, shared));
            }
            addresses.push((index, address));
        }
    }
    Ok(Bound { sockets, addresses })
}

impl Workers {
    /// Starts one thread per worker, waits until each has its ring, and only then lets all of them
    /// accept.
    pub(super) fn start(
        plan: Plan,
        shared: &Arc<Shared>,
        sockets: Vec<Sockets>,
    ) -> Result<Self, Error> {
        let (ended_sender, ended) = unbounded_channel();
        let (ready_sender, ready) = mpsc::channel();
        let cpus = limits::usable_cpus();
        let mut mailboxes = Vec::new();
        let mut go_senders = Vec::new();
        for (index, sockets) in sockets.into_iter().enumerate() {
            let (mailbox, event) = Mailbox::new().map_err(Error::Resources)?;
            mailboxes.push(mailbox.clone());
            let start = Start {
                index,
                cpu: plan.pinned.then(|| cpus[index % cpus.len()]),
                plan,
                shared: shared.clone(),
                sockets,
                mailbox: (mailbox, event),
            };
            let (go, started) = mpsc::channel();
            go_senders.push(go);
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
        };
        for _ in 0..workers.running {
            ready
                .recv()
                .map_err(|_| Error::Worker("it ended while starting".to_owned()))??;
        }
        for go in go_senders {
            // A worker that has ended since is found by `next_end`.
            let _ = go.send(());
        }
        Ok(workers)
    }

    /// Tells every worker.
    pub(super) fn post(&self, message: Message) {
        for mailbox in &self.mailboxes {
            mailbox.post(message);
        }
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
    sockets: Sockets,
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
    let listeners: Vec<ListenerSocket> = start
        .sockets
        .into_iter()
        .map(|(listener, socket, shared)| ListenerSocket {
            listener,
            fd: into_fd(socket),
            shared,
        })
        .collect();
    Ok(Worker::new(
        ring,
        start.shared,
        start.index,
        &listeners,
        start.mailbox,
    ))
}
