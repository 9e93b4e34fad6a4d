//! The admin endpoint: what operators and their tools ask over HTTP. It listens, says who may, and asks the
//! control thread; it changes nothing itself, and no worker knows of it.
//!
//! | file | owns |
//! |---|---|
//! | `mod` | where it listens, over reloads and upgrades |
//! | `listen` | the socket |
//! | `server` | connections, and what is asked on each |
//! | `guard` | who may |
//! | `routes` | what there is |
//! | `answer` | bodies and headers |
//! | `ask`, `attend` | what the control thread is asked, and what it makes of that |
//! | `ready` | whether the process is ready |
//! | `events` | who looks on |
//! | `render`, `metrics` | what is scraped |
//! | `page` | the live page |

mod answer;
mod ask;
mod attend;
mod events;
mod guard;
mod listen;
mod metrics;
mod page;
mod ready;
mod render;
mod routes;
mod server;

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

pub(super) use self::ask::Ask;
pub(super) use self::events::Heard;
pub(super) use self::listen::Bound;
pub use self::listen::ListenError;
pub(super) use self::metrics::Reloads;
use self::server::Endpoint;
use super::upgrade::OfferedBinding;
use crate::address::Address;
use crate::config;

/// For the last answers, when the process ends.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// The endpoint as the control thread has it.
pub(super) struct Admin {
    /// `None` = it listens nowhere.
    bound: Option<Bound>,
    /// The one task that accepts; ends with the set.
    accepting: JoinSet<()>,
    endpoint: Rc<Endpoint>,
    asks: mpsc::Receiver<Ask>,
}

/// What is to become of it with another configuration; dropped, it was nothing.
pub(super) enum Prepared {
    /// It goes on listening where it does.
    Same,
    /// It listens here from then on.
    Other(Option<Bound>),
}

/// Listens where `wanted` says, with what another process has handed over if that is the same. `owner` is who
/// the process is about to become.
///
/// # Errors
/// The address can't be had.
pub(super) fn listen(
    wanted: Option<&Address>,
    inherited: Option<Bound>,
    owner: Option<(u32, u32)>,
) -> Result<Option<Bound>, ListenError> {
    let Some(wanted) = wanted else {
        return Ok(None);
    };
    match inherited {
        Some(inherited) if inherited.serves(wanted) => Ok(Some(inherited)),
        _ => Bound::new(wanted, owner).map(Some),
    }
}

impl Admin {
    /// Nobody is accepted yet.
    pub(super) fn new(bound: Option<Bound>, settings: &config::Admin) -> Self {
        let (endpoint, asks) = Endpoint::new(settings);
        Self {
            bound,
            accepting: JoinSet::new(),
            endpoint,
            asks,
        }
    }

    /// Begins to accept, once the process serves. Within a `LocalSet`.
    pub(super) fn open(&mut self) {
        self.accepting = JoinSet::new();
        let Some(mut bound) = self.bound.take() else {
            return;
        };
        bound.settle();
        match bound.acceptor() {
            Ok(acceptor) => {
                let accept = self.endpoint.clone().accept(acceptor);
                self.accepting.spawn_local(accept);
                tracing::info!(address = %bound.address(), "admin endpoint");
                self.bound = Some(bound);
            }
            // It is given up, so that a reload doesn't find it there already.
            Err(error) => {
                tracing::error!(%error, "no admin endpoint: no descriptor left; a reload tries again");
            }
        }
    }

    /// Binds what another configuration wants.
    ///
    /// # Errors
    /// The address can't be had.
    pub(super) fn prepare(&self, settings: &config::Admin) -> Result<Prepared, ListenError> {
        let wanted = settings.listen.as_ref();
        let same = match (&self.bound, wanted) {
            (Some(bound), Some(wanted)) => bound.serves(wanted),
            (None, None) => true,
            _ => false,
        };
        match same {
            true => Ok(Prepared::Same),
            false => listen(wanted, None, None).map(Prepared::Other),
        }
    }

    /// Goes by it from now on. Who was accepted is served.
    pub(super) fn commit(&mut self, prepared: Prepared, settings: &config::Admin) {
        self.endpoint.set(settings);
        if let Prepared::Other(bound) = prepared {
            self.bound = bound;
            self.open();
        }
    }

    /// Waits for the next visitor who wants something. If it is dropped before that, none is lost.
    pub(super) async fn next(&mut self) -> Ask {
        match self.asks.recv().await {
            Some(ask) => ask,
            // The endpoint, which asks, is ours.
            None => std::future::pending().await,
        }
    }

    /// Somebody looks on.
    pub(super) fn is_looked_at(&self) -> bool {
        self.endpoint.subscribers.count() > 0
    }

    /// One more looks on, and hears the `opening` first; `None` = there are as many as there may be. `cut` is
    /// notified when it has not read.
    pub(super) fn look_on(
        &self,
        cut: Rc<Notify>,
        opening: impl FnOnce() -> Bytes,
    ) -> Option<Heard> {
        self.endpoint.subscribers.add(cut, opening)
    }

    /// Those who look on hear it.
    pub(super) fn tell(&self, event: &Bytes) {
        self.endpoint.subscribers.tell(event);
    }

    /// For a new process, if there is something.
    pub(super) fn offer(&self) -> io::Result<Option<(OfferedBinding, OwnedFd)>> {
        self.bound.as_ref().map(Bound::offer).transpose()
    }

    /// A new process serves, and goes on with the socket if it has `kept` it. Who was accepted is still
    /// answered; who looks on does so at the new one.
    pub(super) fn hand_over(&mut self, kept: bool) {
        self.accepting.abort_all();
        if let Some(bound) = self.bound.take().as_mut().filter(|_| kept) {
            bound.leave();
        }
        self.endpoint.subscribers.clear();
    }

    /// Takes no more visitors, and waits, for a second at most, until everybody has an answer.
    pub(super) async fn finish(self) {
        let Self {
            bound,
            accepting,
            endpoint,
            asks,
        } = self;
        // In this order: while the socket is open nobody else's file has its inode's number.
        drop((accepting, asks, bound));
        endpoint.subscribers.clear();
        // Who has not taken the answer by then doesn't read.
        let _ = timeout(FAREWELL_TIMEOUT, endpoint.emptied()).await;
    }
}
