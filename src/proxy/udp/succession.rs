//! Sessions of datagrams on their way to another process, and from one: what is known of each, with its
//! socket towards the backend. What arrives in between waits in the kernel.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::mpsc::Sender;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::proto::datagram::Local;
use crate::proxy::worker::BindingId;
use crate::ring::Fd;

/// How long another process's sessions are waited for.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// What of an acceptor is about other processes.
pub(in crate::proxy) struct Succession {
    /// Sessions are to come before anything is received.
    pub(in crate::proxy) waits: Cell<bool>,
    /// Those that have come, and are still to be taken in.
    pub(in crate::proxy) adopted: RefCell<Vec<Adopted>>,
    /// Another process wants the sessions.
    pub(in crate::proxy) leave_to: RefCell<Option<Sender<Left>>>,
    /// Datagrams that the socket had lost when that was counted last: the kernel tells the sum of its life.
    pub(in crate::proxy) lost: Cell<u32>,
}

impl Succession {
    pub(in crate::proxy) fn new(waits: bool) -> Self {
        Self {
            waits: Cell::new(waits),
            adopted: RefCell::default(),
            leave_to: RefCell::default(),
            lost: Cell::default(),
        }
    }

    /// All of it, for another worker.
    pub(in crate::proxy) fn take(&self) -> Self {
        Self {
            waits: self.waits.clone(),
            adopted: RefCell::new(self.adopted.take()),
            leave_to: RefCell::new(self.leave_to.take()),
            lost: self.lost.clone(),
        }
    }
}

/// All sessions of a listening socket, as they leave the process.
#[derive(Debug)]
pub struct Left {
    /// What the socket belongs to.
    pub binding: BindingId,
    /// Its number there.
    pub socket: usize,
    /// Datagrams that it has lost.
    pub lost: u32,
    /// Each with its socket towards the backend.
    pub sessions: Vec<(SessionImage, OwnedFd)>,
}

/// Sessions of a listening socket that another process has begun.
#[derive(Debug)]
pub struct Adopted {
    /// What the socket belongs to.
    pub binding: BindingId,
    /// Its number there.
    pub socket: usize,
    /// Datagrams that it had lost.
    pub lost: u32,
    /// Each with its socket towards the backend, the worker's own from here on.
    pub sessions: Vec<(SessionImage, Fd)>,
}

/// What is known of a session. Instants are those of the machine's clock.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SessionImage {
    pub(super) client: SocketAddr,
    pub(super) local: Option<(IpAddr, u32)>,
    /// Its address.
    pub(super) backend: String,
    #[serde(default)]
    pub(super) replies: u32,
    /// When something was said last.
    pub(super) last_nanos: u64,
    pub(super) began_nanos: u64,
    #[serde(default)]
    pub(super) bytes_received: u64,
    #[serde(default)]
    pub(super) bytes_sent: u64,
    /// Datagrams that the socket has lost.
    #[serde(default)]
    pub(super) lost: u32,
}

impl SessionImage {
    pub(super) fn local(&self) -> Option<Local> {
        self.local.map(|(ip, interface)| Local { ip, interface })
    }
}
