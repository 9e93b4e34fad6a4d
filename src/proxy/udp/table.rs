//! Which session a datagram belongs to.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use super::session::Session;
use crate::config::{SessionKey, Udp};
use crate::proto::datagram::Local;
use crate::upstream::Backend;

/// What the datagrams of a session have in common.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Key {
    /// Without a port where that does not matter.
    client: SocketAddr,
    local: Option<Local>,
    /// The backend, where each datagram has one of its own: where its state is.
    backend: usize,
}

impl Key {
    pub(super) fn new(udp: &Udp, client: SocketAddr, local: Option<Local>) -> Self {
        let mut client = client;
        if udp.session_key == SessionKey::SourceIp {
            client.set_port(0);
        }
        Self {
            client,
            local,
            backend: 0,
        }
    }

    pub(super) fn with(self, backend: &Backend) -> Self {
        Self {
            backend: Arc::as_ptr(&backend.state) as usize,
            ..self
        }
    }
}

/// The sessions of a listener's socket. The kernel lets all datagrams of a client come to the same one.
pub(super) type Table = HashMap<Key, Rc<Session>>;
