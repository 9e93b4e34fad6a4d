//! Bindings that were stopped, until the workers have closed their sockets: those for connections, which take
//! a moment, and those for datagrams, whose sessions hear their clients through them as long as they live.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::sockets::{Extent, Sockets};
use crate::address::Address;
use crate::config::Listener;
use crate::proxy::BindingId;

/// How long an address that is given up is waited for when it is wanted again.
const PATIENCE: Duration = Duration::from_secs(5);

/// Ready, with an error, when the last socket is closed: nobody sends.
pub(super) type IsClosed = oneshot::Receiver<()>;

/// Bindings for connections.
#[derive(Default)]
pub(super) struct Closings(Vec<Closing>);

struct Closing {
    is_closed: IsClosed,
    /// When not to wait for it any more.
    deadline: Instant,
}

impl Closings {
    pub(super) fn push(&mut self, is_closed: IsClosed) {
        self.0.push(Closing {
            is_closed,
            deadline: Instant::now() + PATIENCE,
        });
    }

    /// Waits until all sockets are closed, so that their addresses can be bound again; but not for ever, as
    /// workers without a free descriptor can't serve what is queued. May be dropped and called again.
    pub(super) async fn closed(&mut self) {
        while let Some(closing) = self.0.last_mut() {
            let _ = timeout_at(closing.deadline, &mut closing.is_closed).await;
            self.0.pop();
        }
    }
}

/// Bindings for datagrams. Should an address be wanted again, its sockets are there.
#[derive(Default)]
pub(super) struct Lingering(Vec<Lingers>);

struct Lingers {
    id: BindingId,
    sockets: Sockets,
    is_closed: IsClosed,
}

impl Lingering {
    pub(super) fn push(&mut self, id: BindingId, sockets: Sockets, is_closed: IsClosed) {
        self.0.push(Lingers {
            id,
            sockets,
            is_closed,
        });
    }

    /// The one that has what the configuration means with this address of `listener`, but for those that
    /// are `taken`.
    pub(super) fn find(
        &self,
        listener: &Listener,
        address: &Address,
        taken: impl Fn(BindingId) -> bool,
    ) -> Option<(BindingId, &Sockets)> {
        let mut all = self.0.iter();
        let found = all.find(|it| it.sockets.serves(listener, address) && !taken(it.id))?;
        Some((found.id, &found.sockets))
    }

    /// Another binding goes on with its sessions.
    pub(super) fn remove(&mut self, id: BindingId) {
        self.0.retain(|lingers| lingers.id != id);
    }

    /// What they take.
    pub(super) fn extents(&self) -> impl Iterator<Item = Extent<'_>> {
        self.0.iter().map(|lingers| lingers.sockets.extent())
    }

    /// Waits until the last session of one has ended, and lets go of its sockets. May be dropped and
    /// called again.
    pub(super) async fn emptied(&mut self) {
        let place = poll_fn(|context| {
            let mut all = self.0.iter_mut();
            let ended = all.position(|it| Pin::new(&mut it.is_closed).poll(context).is_ready());
            ended.map_or(Poll::Pending, Poll::Ready)
        });
        let place = place.await;
        self.0.remove(place);
    }
}
