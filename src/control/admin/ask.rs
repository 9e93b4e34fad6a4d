//! What visitors want of the control thread. They never touch the process: they ask, and are told.

use std::rc::Rc;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::{Notify, mpsc, oneshot};

use super::super::socket::{Part, Status};
use super::events::Heard;
use super::metrics::Source;
use crate::config::{Config, LogLevel};

/// Something to be told or done. Whoever drops it unanswered says that the process is ending.
pub(in crate::control) enum Ask {
    /// What the process tells about itself.
    Status(oneshot::Sender<Box<Status>>),
    /// Why it is not ready; nothing = it is.
    Readiness(oneshot::Sender<Vec<String>>),
    /// The configuration in effect.
    Config(oneshot::Sender<Box<Config>>),
    /// What metrics are rendered from.
    Source(oneshot::Sender<Source>),
    /// To look on: where the visitor hears; `None` = too many look on.
    LookOn {
        /// Notified when it has not read.
        cut: Rc<Notify>,
        answer: oneshot::Sender<Option<Heard>>,
    },
    /// To drain the whole process.
    End {
        /// In the place of `drain_timeout`.
        deadline: Option<Duration>,
        answer: oneshot::Sender<Ordered>,
    },
    /// To do something else.
    Order(Order, oneshot::Sender<Ordered>),
}

/// What can be ordered while the process goes on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::control) enum Order {
    /// To read the configuration again.
    Reload,
    /// To give a part no new sessions.
    Drain(Part, Option<Duration>),
    /// To undo that.
    Resume(Part),
    /// To use a backend with this weight, or with the configured one.
    Weight(Part, Option<u16>),
    /// To log from this level on, until the next reload.
    LogLevel(LogLevel),
}

impl Order {
    /// What it is about, if not the process.
    pub(in crate::control) fn part(&self) -> Option<&Part> {
        match self {
            Self::Drain(part, _) | Self::Resume(part) | Self::Weight(part, _) => Some(part),
            Self::Reload | Self::LogLevel(_) => None,
        }
    }
}

/// What came of an order: what was done, for programs.
pub(in crate::control) type Ordered = Result<Value, Refusal>;

/// Why an order was not carried out. Nothing has changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::control) enum Refusal {
    /// There is no such part.
    Unknown(Part),
    /// The process is draining.
    Ending,
    /// For this reason; may have several lines.
    Because(String),
}

/// The way to the control thread.
pub(super) struct Asking(mpsc::Sender<Ask>);

impl Asking {
    /// `most` may wait for an answer at once without waiting to ask.
    pub(super) fn new(most: usize) -> (Self, mpsc::Receiver<Ask>) {
        let (sender, receiver) = mpsc::channel(most);
        (Self(sender), receiver)
    }

    /// The answer; `None` = the process is ending.
    pub(super) async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        // If nobody takes it, it is dropped, which is an answer too.
        let _ = self.0.send(ask(answer)).await;
        answered.await.ok()
    }
}
