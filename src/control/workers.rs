//! The workers' threads: started one per CPU, told to drain or abort, waited for.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::Error;
use super::life::{self, News, Start, Teller};
use super::moments;
use crate::proxy::{Adopted, BindingId, Left, Message, Shared};
use crate::ring::net::into_fd;
use crate::ring::{Mailbox, Without, limits};
use crate::telemetry::Names;
use crate::upstream::Bell;

/// The running workers.
pub(super) struct Workers {
    mailboxes: Vec<Arc<Mailbox<Message>>>,
    news: UnboundedReceiver<(usize, News)>,
    running: usize,
    /// By which a worker is told to go, and later not to rest any longer.
    words: Vec<mpsc::Sender<()>>,
    /// How often one has begun again after a panic.
    restarts: u64,
    /// What their flight recorders number.
    names: Arc<Names>,
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
        let (news_sender, news) = unbounded_channel();
        let (ready_sender, ready) = mpsc::channel();
        let cpus = limits::usable_cpus();
        let mut mailboxes = Vec::new();
        let mut words = Vec::new();
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
            let (word, heard) = mpsc::channel();
            words.push(word);
            let teller = Teller {
                index,
                sender: news_sender.clone(),
                outcome: None,
            };
            let ready = ready_sender.clone();
            thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || life::live(start, teller, &ready, &heard))
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
            news,
            words,
            restarts: 0,
            names: shared.around.names.clone(),
        };
        for _ in 0..workers.running {
            ready
                .recv()
                .map_err(|_| Error::Worker("it ended while starting".to_owned()))??;
        }
        Ok(workers)
    }

    /// Lets all of them begin, or those go on that rest after a panic. One that does not rest now will not the
    /// next time.
    pub(super) fn go(&self) {
        for word in &self.words {
            // A worker that has ended since is found by `next_end`.
            let _ = word.send(());
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

    /// Waits for news of a worker, and logs them. When one ends, that is the outcome.
    pub(super) async fn next_end(&mut self) -> Option<Result<(), Error>> {
        while self.running > 0 {
            let (worker, news) = self.news.recv().await?;
            match news {
                News::Panicked(what, rest, last) => {
                    tracing::error!(worker, ?rest, "worker {worker} panicked: {what}");
                    for moment in moments::tail(&self.names, worker, &last) {
                        tracing::error!(%moment, "before the panic");
                    }
                }
                News::Refused(error, rest) => {
                    tracing::error!(worker, %error, ?rest, "no ring to restart the worker with");
                }
                News::Restarted => {
                    self.restarts += 1;
                    tracing::warn!(worker, "worker restarted");
                }
                News::Ended(outcome) => {
                    self.running -= 1;
                    let failed = |error| Error::Worker(format!("worker {worker}: {error}"));
                    return Some(outcome.map_err(failed));
                }
            }
        }
        None
    }

    /// How often a worker has begun again after a panic.
    pub(super) fn restarts(&self) -> u64 {
        self.restarts
    }
}
