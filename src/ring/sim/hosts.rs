//! What listens at a backend's address: the script for new connections, the sessions there were,
//! and how many at once. How a session speaks is in `peers.rs`.

use std::sync::Arc;

use super::kernel::Kernel;
use super::script::{BackendScript, Ending};
use super::tcp::Phase;
use crate::address::Address;
use crate::time::Instant;

/// A backend's process.
pub(super) struct Host {
    pub(super) script: BackendScript,
    pub(super) sessions: Vec<usize>,
    /// What clients say before their stream's number.
    pub(super) opening: Arc<[u8]>,
    /// Sessions that have begun and not ended.
    open: usize,
    /// The most there were of these.
    pub(super) most_open: usize,
}

impl Kernel {
    /// New connections meet `script`; those that are there keep theirs.
    pub(super) fn set_host(&mut self, address: &Address, script: BackendScript) {
        if let Some(host) = self.hosts.get_mut(address) {
            host.script = script;
            return;
        }
        let host = Host {
            script,
            sessions: Vec::new(),
            opening: Arc::from([]),
            open: 0,
            most_open: 0,
        };
        self.hosts.insert(address.clone(), host);
    }

    /// New connections have to begin with `opening`.
    pub(super) fn expect_opening(&mut self, address: &Address, opening: Arc<[u8]>) {
        if let Some(host) = self.hosts.get_mut(address) {
            host.opening = opening;
        }
    }

    /// Ends the process, which closes what it has, and nobody listens any more.
    pub(super) fn kill_host(&mut self, address: &Address) {
        let Some(host) = self.hosts.get_mut(address) else {
            return;
        };
        host.script = BackendScript::Refuse;
        for peer in host.sessions.clone() {
            let one = &self.peers[peer];
            let established = self.endpoints[one.endpoint].phase == Phase::Established;
            match one.record.ending {
                // As inet_csk_listen_stop(): what nobody has accepted is reset, a handshake that
                // goes on is forgotten.
                Ending::Open if established && !one.accepted => self.reset_peer(peer),
                // As tcp_close(): RST when there are bytes that nobody has read, FIN otherwise.
                Ending::Open => self.close_peer(peer),
                _ => {}
            }
        }
    }

    pub(super) fn open_sessions(&self, host: &Host) -> usize {
        let open = |peer: &&usize| self.peers[**peer].record.ending == Ending::Open;
        host.sessions.iter().filter(open).count()
    }

    /// A connection attempt has reached `address`, whatever it meets there.
    pub(super) fn count_attempt(&mut self, address: &Address) {
        *self.attempts.entry(address.clone()).or_default() += 1;
    }

    /// A session's or a client's connection is established, as the peer sees it.
    pub(super) fn peer_began(&mut self, peer: usize) {
        let one = &mut self.peers[peer];
        one.record.began_at = Some(Instant::from_nanos(self.now));
        if !one.is_client
            && let Some(host) = self.hosts.get_mut(&one.record.address)
        {
            host.open += 1;
            host.most_open = host.most_open.max(host.open);
        }
    }

    /// The peer has ended, after it began or before.
    pub(super) fn peer_ended(&mut self, peer: usize) {
        let one = &self.peers[peer];
        if !one.is_client
            && one.record.began_at.is_some()
            && let Some(host) = self.hosts.get_mut(&one.record.address)
        {
            host.open -= 1;
        }
    }
}
