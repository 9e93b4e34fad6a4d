//! The old process's side: it offers what it has, waits until the new process serves, and from then
//! on tells it what it still counts. It changes nothing of the old process.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::process::{self, ExitStatus};
use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;

use super::child::{Hostage, Launch, Newcomer};
use super::frame::encode;
use super::link::Link;
use super::{Error, FromNew, FromOld, Offer, Opening, Ready, VERSION};

/// How long a new process that says that it ends may take for it.
const FAREWELL: Duration = Duration::from_secs(1);

/// Starts the new process, hands it what is offered, and waits until it serves, for `patience` in
/// all. `sockets` are those of the bindings, in their order; `links` lead to older processes that
/// still drain, and are not to be read meanwhile. `state` is asked for when the new process is
/// ready. If this fails or is dropped, the new process is killed and reaped, and nothing has
/// changed; otherwise `links` are the new process's, to be dropped here.
///
/// # Errors
/// The new process does not serve.
///
/// # Panics
/// `sockets` are not as many as the bindings say.
pub(in crate::control) async fn hand_over<S: AsFd>(
    launch: &Launch,
    offer: Offer,
    sockets: &[S],
    links: &[Link],
    state: impl FnOnce(&Ready) -> Value,
    patience: Duration,
) -> Result<Successor, Failure> {
    refuse_first_process(process::id())?;
    let gift = Gift::new(offer, sockets, links);
    // Dropped, the child is killed before the link is closed: it must not take that for our end.
    let Newcomer {
        mut link,
        mut child,
    } = launch.start()?;
    let outcome = tokio::select! {
        // What it said before it ended says more than its status.
        biased;
        outcome = timeout(patience, negotiate(&mut link, &gift, state)) => {
            outcome.unwrap_or(Err(Failure::Late { patience }))
        }
        status = child.ended() => Err(status.map_or_else(Failure::Resources, Failure::Ended)),
    };
    match outcome {
        Ok(ready) => {
            child.release();
            Ok(Successor::new(&ready, link))
        }
        Err(failure) => Err(dismiss(child, failure).await),
    }
}

/// A container ends with its first process, whoever else is in it.
pub(super) fn refuse_first_process(pid: u32) -> Result<(), Failure> {
    match pid {
        1 => Err(Failure::FirstProcess),
        _ => Ok(()),
    }
}

/// All that the new process is given before it decides.
pub(super) struct Gift<'a> {
    opening: Opening,
    descriptors: Vec<BorrowedFd<'a>>,
}

impl<'a> Gift<'a> {
    pub(super) fn new<S: AsFd>(offer: Offer, sockets: &'a [S], links: &'a [Link]) -> Self {
        let offered: usize = offer.bindings.iter().map(|binding| binding.sockets).sum();
        let offered = offered + usize::from(offer.sessions);
        assert_eq!(offered, sockets.len(), "sockets of the offered bindings");
        let descriptors = sockets.iter().map(AsFd::as_fd);
        Self {
            opening: Opening {
                version: VERSION,
                offer,
                links: links.iter().map(Link::unread).collect(),
            },
            descriptors: descriptors.chain(links.iter().map(AsFd::as_fd)).collect(),
        }
    }
}

/// From the opening until the new process serves.
pub(super) async fn negotiate(
    link: &mut Link,
    gift: &Gift<'_>,
    state: impl FnOnce(&Ready) -> Value,
) -> Result<Ready, Failure> {
    unless_gone(give(link, gift).await)?;
    let FromNew::Ready(ready) = answer(link).await? else {
        return Err(unexpected("serving before it was ready"));
    };
    let offered = gift.opening.offer.bindings.len();
    if let Some(kept) = ready.kept.iter().find(|kept| **kept >= offered) {
        return Err(unexpected(&format!("keeps binding {kept} of {offered}")));
    }
    let state = state(&ready);
    unless_gone(link.send(&FromOld::Go { state }).await)?;
    match answer(link).await? {
        FromNew::Serving => Ok(ready),
        _ => Err(unexpected("ready twice")),
    }
}

async fn give(link: &mut Link, gift: &Gift<'_>) -> Result<(), Error> {
    link.send(&gift.opening).await?;
    link.send_descriptors(&gift.descriptors).await
}

/// A new process may refuse without hearing us out, and what it said is still to be read.
fn unless_gone(sent: Result<(), Error>) -> Result<(), Error> {
    match sent {
        Err(Error::Gone) => Ok(()),
        sent => sent,
    }
}

async fn answer(link: &mut Link) -> Result<FromNew, Failure> {
    match link.receive().await? {
        FromNew::Refused { error } => Err(Failure::Refused { error }),
        answer => Ok(answer),
    }
}

fn unexpected(what: &str) -> Failure {
    Error::Malformed(what.to_owned()).into()
}

/// Sees to it that the new process is no more. One that refused or closed the link is about to end
/// by itself, and has a log to write.
async fn dismiss(mut child: Hostage, failure: Failure) -> Failure {
    let ends = matches!(
        failure,
        Failure::Refused { .. } | Failure::Ended(_) | Failure::Link(Error::Gone)
    );
    if ends && let Ok(Ok(status)) = timeout(FAREWELL, child.ended()).await {
        return match failure {
            Failure::Link(Error::Gone) => Failure::Ended(status),
            failure => failure,
        };
    }
    child.kill().await;
    failure
}

/// The new process, which serves; this one drains.
#[derive(Debug)]
pub(in crate::control) struct Successor {
    /// Its number.
    pub(in crate::control) pid: u32,
    link: Link,
    outbox: Outbox,
}

impl Successor {
    pub(super) fn new(ready: &Ready, link: Link) -> Self {
        Self {
            pid: ready.pid,
            link,
            outbox: Outbox::default(),
        }
    }

    /// Tells the new process what has been counted in all. Never waits: what there is no room for
    /// goes out with a later call, or never, if there is something newer by then.
    ///
    /// # Errors
    /// The new process is gone, or the totals make no message.
    pub(in crate::control) fn counted(&mut self, totals: Value) -> Result<(), Error> {
        self.outbox.put(encode(&FromOld::Counted { totals })?);
        self.outbox.write(&self.link)
    }

    /// Tells the last totals and waits until they are out, for `patience` at most.
    ///
    /// # Errors
    /// The new process is gone or does not read, or the totals make no message.
    pub(in crate::control) async fn finish(
        mut self,
        totals: Value,
        patience: Duration,
    ) -> Result<(), Error> {
        self.counted(totals)?;
        let write = async {
            while !self.outbox.is_empty() {
                self.link.writable().await?;
                self.outbox.write(&self.link)?;
            }
            Ok(())
        };
        timeout(patience, write).await.unwrap_or(Err(Error::Silent))
    }
}

/// Frames on their way out: one that has been begun, and the newest.
#[derive(Debug, Default)]
struct Outbox {
    /// What is left of the one that has been begun.
    begun: Vec<u8>,
    newest: Option<Vec<u8>>,
}

impl Outbox {
    fn put(&mut self, frame: Vec<u8>) {
        self.newest = Some(frame);
    }

    fn is_empty(&self) -> bool {
        self.begun.is_empty() && self.newest.is_none()
    }

    /// Writes as long as there is room.
    fn write(&mut self, link: &Link) -> Result<(), Error> {
        loop {
            if self.begun.is_empty() {
                self.begun = self.newest.take().unwrap_or_default();
            }
            let written = match self.begun.as_slice() {
                [] => 0,
                rest => link.write_some(rest)?,
            };
            if written == 0 {
                return Ok(());
            }
            self.begun.drain(..written);
        }
    }
}

/// Why there is no new process, and the old one goes on.
#[derive(Debug)]
pub(in crate::control) enum Failure {
    /// This is the first process of its container or machine.
    FirstProcess,
    /// The binary can't be executed.
    NotExecuted {
        /// The file.
        executable: PathBuf,
        /// As execve(2).
        error: io::Error,
    },
    /// The new process ended before it served.
    Ended(ExitStatus),
    /// The new process can't serve.
    Refused {
        /// Why, in its words.
        error: String,
    },
    /// The new process did not serve in time.
    Late {
        /// How long it had.
        patience: Duration,
    },
    /// The new process can't be understood, or has closed the link.
    Link(Error),
    /// A descriptor could not be had, or a child not be waited for.
    Resources(io::Error),
}

impl std::error::Error for Failure {}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Link(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FirstProcess => f.write_str(
                "this is process 1, and its container ends with it: replace the container instead",
            ),
            Self::NotExecuted { executable, error } => {
                write!(f, "can't execute {}: {error}", executable.display())
            }
            Self::Ended(status) => {
                write!(f, "the new process ended before it was ready ({status})")
            }
            Self::Refused { error } => write!(f, "the new process refused: {error}"),
            Self::Late { patience } => {
                write!(f, "the new process was not ready within {patience:?}")
            }
            Self::Link(error) => write!(f, "the new process was given up: {error}"),
            Self::Resources(error) => write!(f, "can't start a new process: {error}"),
        }
    }
}
