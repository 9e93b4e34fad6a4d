//! The [`World`]'s calls that are about datagrams.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::super::World;
use super::super::kernel::Kernel;
use super::{
    DatagramBackendRecord, DatagramClientRecord, DatagramClientScript, DatagramScript, Traffic,
    loopback,
};
use crate::address::{Address, canonical};
use crate::ring::Fd;
use crate::time::Instant;

impl World {
    /// Datagrams to `address` go to so many sockets of one SO_REUSEPORT group, added to those that are
    /// there: which one gets them depends on both ends, and with `by_source` on the IP address alone that
    /// they come from. Each may be used by one driver. An unspecified IP address takes those to all
    /// addresses of its family that no group of their own takes, and `[::]` those of IPv4 after that.
    ///
    /// # Panics
    /// The address is a unix socket's, as everywhere here.
    pub fn listen_datagrams(&self, address: &Address, members: usize, by_source: bool) -> Vec<Fd> {
        let mut kernel = self.kernel.borrow_mut();
        let listen = |_| kernel.listen_datagrams(ip(address), by_source);
        (0..members).map(listen).collect()
    }

    /// What datagrams to `address` meet from now on. Also brings a backend back that was killed.
    pub fn datagram_backend(&self, address: &Address, script: DatagramScript) {
        let mut kernel = self.kernel.borrow_mut();
        kernel.set_datagram_host(ip(address), script, false);
    }

    /// Ends the backend's process as a signal does: what it has not said yet it never says, and datagrams
    /// to it are answered by ICMP until [`World::datagram_backend`].
    pub fn kill_datagram_backend(&self, address: &Address) {
        let mut kernel = self.kernel.borrow_mut();
        kernel.set_datagram_host(ip(address), DatagramScript::Closed, true);
    }

    /// A client that sends to `address` from `start_at` on. Returns its index in
    /// [`World::datagram_clients`], which is its number in what it sends, too.
    pub fn datagram_client(
        &self,
        start_at: Instant,
        address: &Address,
        script: DatagramClientScript,
    ) -> usize {
        let to = match canonical(ip(address)) {
            to if to.ip().is_unspecified() => SocketAddr::new(loopback(to.ip()), to.port()),
            to => to,
        };
        let mut kernel = self.kernel.borrow_mut();
        kernel.add_datagram_client(start_at.as_nanos(), to, script)
    }

    /// So many local ports there are for sockets towards backends (at first 28,232): one that is closed
    /// gives its port back, and those that were used last are used again last.
    pub fn set_local_ports(&self, count: u16) {
        let mut kernel = self.kernel.borrow_mut();
        kernel.net.ports.most = count.min(super::PORTS);
    }

    /// Local ports that are in use.
    pub fn local_ports(&self) -> usize {
        self.kernel.borrow().net.ports.used.len()
    }

    /// What became of the clients of datagrams, in the order in which they were added.
    pub fn datagram_clients(&self) -> Vec<DatagramClientRecord> {
        let kernel = self.kernel.borrow();
        let clients = kernel.net.clients.iter();
        clients.map(|client| client.record.clone()).collect()
    }

    /// What has reached the backend at `address`, by whom.
    pub fn datagram_record(&self, address: &Address) -> DatagramBackendRecord {
        let kernel = self.kernel.borrow();
        let host = kernel.net.hosts.get(&ip(address));
        host.map(|host| host.record.clone()).unwrap_or_default()
    }

    /// What was delivered to somebody whom it was not meant for: a socket that carried to a backend what
    /// two clients have said, or one client from two ports; a client that heard a reply to another, or
    /// from an address that it does not send to. Where sessions are `by_source`, clients with one IP
    /// address are as one.
    pub fn misdelivered(&self, by_source: bool) -> Vec<String> {
        self.kernel.borrow().misdelivered(by_source)
    }

    /// Where all datagrams have gone.
    pub fn traffic(&self) -> Traffic {
        let kernel = self.kernel.borrow();
        Traffic {
            under_way: kernel.net.on_their_way(),
            ..kernel.net.traffic
        }
    }
}

impl Kernel {
    fn misdelivered(&self, by_source: bool) -> Vec<String> {
        let clients = &self.net.clients;
        let ip_of = |client: usize| clients[client].record.from[0].ip();
        let mut found = Vec::new();
        for (address, host) in &self.net.hosts {
            for (session, carried) in host.record.sessions.iter().zip(&host.carried) {
                let ips: BTreeSet<IpAddr> = session.clients.iter().map(|one| ip_of(*one)).collect();
                if (carried.mixed && !by_source) || ips.len() > 1 {
                    let (source, of) = (session.source, &session.clients);
                    found.push(format!(
                        "{source} carried datagrams of several sessions to {address}: of {of:?}"
                    ));
                }
            }
        }
        for (number, client) in clients.iter().enumerate() {
            let is_stranger = |other: &&usize| !by_source || ip_of(**other) != ip_of(number);
            if let Some(other) = client.strangers.iter().find(is_stranger) {
                found.push(format!("client {number} heard a reply to client {other}"));
            }
            let (wrong, address) = (client.record.wrong_source, client.record.address);
            if wrong > 0 {
                found.push(format!(
                    "client {number} heard {wrong} datagrams from elsewhere than {address}"
                ));
            }
        }
        found
    }
}

fn ip(address: &Address) -> SocketAddr {
    address.as_ip().expect("datagrams have an IP address")
}
