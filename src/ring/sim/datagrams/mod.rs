//! Datagrams as Linux has them: sockets that clients send to, in SO_REUSEPORT groups, and sockets that are
//! connected to a backend; a receive queue each, which loses what it can't hold, and one pending error
//! (sk_err). What is between sockets and peers is in `wire.rs`, what receives write in `receive.rs`, and who
//! speaks in `clients.rs` and `backends.rs`.
//!
//! Addresses are kept as they are on the wire: one of IPv4 is mapped into IPv6 only where a socket of that
//! family tells of it.

mod backends;
mod clients;
mod control;
mod payload;
mod receive;
mod record;
mod script;
mod wire;
mod world;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub use self::record::{DatagramBackendRecord, DatagramClientRecord, DatagramSession, Traffic};
pub use self::script::{DatagramClientScript, DatagramScript};

use self::backends::Host;
use self::clients::Client;
use self::wire::{Due, Packet};
use super::kernel::{Kernel, Object, Waiter, os_error};
use super::random::mix;
use crate::address::canonical;
use crate::proto::datagram::Local;
use crate::ring::{Datagram, Fd};

/// All that is about datagrams in a world.
pub(super) struct Net {
    sockets: Vec<Socket>,
    groups: BTreeMap<SocketAddr, Group>,
    /// By both ends, ours first.
    connected: BTreeMap<(SocketAddr, SocketAddr), usize>,
    ports: Ports,
    hosts: BTreeMap<SocketAddr, Host>,
    clients: Vec<Client>,
    /// Whose an address is, of those that clients send from.
    client_at: BTreeMap<SocketAddr, usize>,
    /// Who has said a datagram that is too short to say it itself: client and the number of its address.
    short: BTreeMap<Vec<u8>, BTreeSet<(usize, usize)>>,
    due: BTreeMap<u64, Due>,
    next_due: u64,
    traffic: Traffic,
    seed: u64,
}

/// A datagram socket of a worker.
struct Socket {
    /// Where it is bound; the IP address may be unspecified.
    local: SocketAddr,
    remote: Option<SocketAddr>,
    queue: VecDeque<Arrived>,
    queued_bytes: usize,
    /// What the queue could not take (sk_drops).
    lost: u32,
    /// What the next call fails with, once (sk_err).
    error: Option<i32>,
    reader: Option<Waiter>,
    /// Whether datagrams can be cut on the way to there; drawn once.
    offload: BTreeMap<SocketAddr, bool>,
}

/// What waits in a socket's queue.
struct Arrived {
    from: SocketAddr,
    to: IpAddr,
    bytes: Vec<u8>,
    segment: Option<u16>,
    /// What the socket had lost before.
    lost: u32,
}

/// The sockets of an address.
struct Group {
    members: Vec<usize>,
    /// The source's IP address alone says who gets a datagram.
    by_source: bool,
}

/// Local ports for sockets that are not bound to one.
struct Ports {
    used: BTreeSet<u16>,
    most: u16,
    last: u16,
}

impl Net {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            sockets: Vec::new(),
            groups: BTreeMap::new(),
            connected: BTreeMap::new(),
            ports: Ports {
                used: BTreeSet::new(),
                most: PORTS,
                last: 0,
            },
            hosts: BTreeMap::new(),
            clients: Vec::new(),
            client_at: BTreeMap::new(),
            short: BTreeMap::new(),
            due: BTreeMap::new(),
            next_due: 0,
            traffic: Traffic::default(),
            seed,
        }
    }

    /// The place where a waiting receive of socket `id` is kept.
    pub(super) fn reader(&mut self, id: usize) -> &mut Option<Waiter> {
        &mut self.sockets[id].reader
    }

    fn add(&mut self, local: SocketAddr, remote: Option<SocketAddr>) -> usize {
        self.sockets.push(Socket {
            local,
            remote,
            queue: VecDeque::new(),
            queued_bytes: 0,
            lost: 0,
            error: None,
            reader: None,
            offload: BTreeMap::new(),
        });
        self.sockets.len() - 1
    }
}

impl Ports {
    /// A free one; those that were used last come last.
    fn take(&mut self) -> Option<u16> {
        let after = |step| self.last.wrapping_add(step) % self.most.max(1);
        let place = (0..self.most)
            .map(after)
            .find(|place| !self.used.contains(place))?;
        self.used.insert(place);
        self.last = place.wrapping_add(1);
        Some(FIRST_PORT + place)
    }

    fn give_back(&mut self, port: u16) {
        self.used.remove(&port.wrapping_sub(FIRST_PORT));
    }
}

impl Kernel {
    /// Adds a member to the group of `address`.
    fn listen_datagrams(&mut self, address: SocketAddr, by_source: bool) -> Fd {
        let id = self.net.add(address, None);
        let group = self.net.groups.entry(address).or_insert(Group {
            members: Vec::new(),
            by_source,
        });
        group.by_source = by_source;
        group.members.push(id);
        self.new_fd(Object::Datagrams(id), None, false)
    }

    /// As [`crate::ring::Driver::open_datagrams`].
    pub(super) fn open_datagrams(
        &mut self,
        worker: usize,
        to: SocketAddr,
        source: Option<IpAddr>,
    ) -> io::Result<Fd> {
        if self.exhausted() {
            return Err(os_error(libc::EMFILE));
        }
        if source.is_some_and(|source| source.is_ipv4() != to.is_ipv4()) {
            return Err(os_error(libc::EAFNOSUPPORT));
        }
        // bind(2) of port 0 says that it is in use, connect(2) of a socket without a port to try again.
        let used_up = match source {
            Some(_) => libc::EADDRINUSE,
            None => libc::EAGAIN,
        };
        if self.random.chance(self.faults.no_port) {
            let errno = self.random.pick(&[used_up, libc::EADDRNOTAVAIL]);
            return Err(os_error(errno));
        }
        let port = self.net.ports.take().ok_or_else(|| os_error(used_up))?;
        let remote = canonical(to);
        let ip = source.unwrap_or(loopback(remote.ip())).to_canonical();
        let local = SocketAddr::new(ip, port);
        let id = self.net.add(local, Some(remote));
        self.net.connected.insert((local, remote), id);
        Ok(self.new_fd(Object::Datagrams(id), Some(worker), false))
    }

    /// As [`crate::ring::Driver::send_datagrams`]: what a later datagram meets is not told (sendmmsg(2)),
    /// and a pending error is gone with it.
    pub(super) fn send_datagrams(
        &mut self,
        worker: usize,
        fd: Fd,
        datagrams: &[Datagram<'_>],
    ) -> io::Result<usize> {
        let id = match self.object(worker, fd, "send") {
            Some(Object::Datagrams(id)) => id,
            Some(_) => return Err(os_error(libc::ENOTSOCK)),
            None => return Err(os_error(libc::EBADF)),
        };
        for (sent, datagram) in datagrams.iter().enumerate() {
            match self.send_datagram(id, datagram) {
                Ok(()) => self.progressed = true,
                Err(errno) if sent == 0 => return Err(os_error(errno)),
                Err(_) => return Ok(sent),
            }
        }
        Ok(datagrams.len())
    }

    /// In the order in which udp_sendmsg() finds what is wrong.
    fn send_datagram(&mut self, id: usize, datagram: &Datagram<'_>) -> Result<(), i32> {
        let socket = &mut self.net.sockets[id];
        let to = datagram.to.or(socket.remote).ok_or(libc::EDESTADDRREQ)?;
        if socket.local.is_ipv4() && to.is_ipv6() {
            return Err(libc::EAFNOSUPPORT);
        }
        if to.port() == 0 {
            return Err(libc::EINVAL);
        }
        let to = canonical(to);
        let from = socket.source(to, datagram.from)?;
        if datagram.bytes.len() > LONGEST {
            return Err(libc::EMSGSIZE);
        }
        if let Some(errno) = socket.error.take() {
            return Err(errno);
        }
        if self.random.chance(self.faults.send_full) {
            return Err(libc::EAGAIN);
        }
        if self.random.chance(self.faults.send_fails) {
            return Err(libc::ENOBUFS);
        }
        // A size of 0 asks for nothing.
        let segment = datagram.segment.filter(|size| *size > 0);
        if let Some(size) = segment {
            if datagram.bytes.len() > usize::from(size) * MOST_SEGMENTS {
                return Err(libc::EINVAL);
            }
            if !self.has_offload(id, to) {
                return Err(libc::EIO);
            }
        }
        self.put_on_wire(Packet {
            from,
            to,
            bytes: datagram.bytes.to_vec(),
            segment: segment.filter(|size| usize::from(*size) < datagram.bytes.len()),
            sender: Some(id),
        });
        Ok(())
    }

    fn has_offload(&mut self, id: usize, to: SocketAddr) -> bool {
        if let Some(known) = self.net.sockets[id].offload.get(&to) {
            return *known;
        }
        let has = !self.random.chance(self.faults.no_offload);
        self.net.sockets[id].offload.insert(to, has);
        has
    }

    /// close(2): what nobody has received is gone.
    pub(super) fn close_datagrams(&mut self, id: usize) {
        let net = &mut self.net;
        let socket = &mut net.sockets[id];
        let unread = std::mem::take(&mut socket.queue);
        socket.queued_bytes = 0;
        net.traffic.forgotten += unread.iter().map(Arrived::count).sum::<u64>();
        let local = socket.local;
        if let Some(remote) = socket.remote {
            net.connected.remove(&(local, remote));
            net.ports.give_back(local.port());
        } else if let Some(group) = net.groups.get_mut(&local) {
            // As reuseport_detach_sock(): the last one takes the place.
            let place = group.members.iter().position(|member| *member == id);
            place.map(|place| group.members.swap_remove(place));
            if group.members.is_empty() {
                net.groups.remove(&local);
            }
        }
    }
}

impl Socket {
    /// Where a datagram to `to` leaves from. A message for another family is not looked at, but for that of
    /// a mapped address, which has to be mapped, too.
    fn source(&self, to: SocketAddr, from: Option<Local>) -> Result<SocketAddr, i32> {
        let asked = from.map(|local| local.ip.to_canonical());
        let is_wrong = |ip: IpAddr| ip.is_ipv6() && to.is_ipv4() && self.local.is_ipv6();
        if asked.is_some_and(is_wrong) {
            return Err(libc::EINVAL);
        }
        let bound = Some(self.local.ip()).filter(|ip| !ip.is_unspecified());
        let asked = asked.filter(|ip| ip.is_ipv4() == to.is_ipv4());
        let ip = asked.or(bound).unwrap_or(loopback(to.ip()));
        Ok(SocketAddr::new(ip, self.local.port()))
    }

    fn has_something(&self) -> bool {
        self.error.is_some() || !self.queue.is_empty()
    }
}

impl Arrived {
    /// Datagrams, if it is several that were joined.
    fn count(&self) -> u64 {
        count(self.bytes.len(), self.segment)
    }
}

/// Datagrams of so many bytes in all.
fn count(bytes: usize, segment: Option<u16>) -> u64 {
    segment.map_or(1, |size| bytes.div_ceil(usize::from(size)).max(1) as u64)
}

/// The address of ours from which `ip` is reached.
const fn loopback(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

fn hash(address: SocketAddr) -> u64 {
    mix(hash_of_ip(address.ip()) ^ u64::from(address.port()))
}

fn hash_of_ip(ip: IpAddr) -> u64 {
    match ip {
        IpAddr::V4(ip) => mix(u64::from(ip.to_bits())),
        IpAddr::V6(ip) => mix(mix((ip.to_bits() >> 64) as u64) ^ ip.to_bits() as u64),
    }
}

/// The longest payload there is over IPv4.
pub(super) const LONGEST: usize = 65_507;
/// UDP_MAX_SEGMENTS, before Linux 6.9 made it 128.
const MOST_SEGMENTS: usize = 64;
/// net.ipv4.ip_local_port_range.
const FIRST_PORT: u16 = 32_768;
const PORTS: u16 = 28_232;
