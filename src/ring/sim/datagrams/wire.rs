//! The way from socket to socket: how long it takes, what gets lost, doubled or delayed on it, who is at
//! its end, and the ICMP error that comes back when nobody is.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::super::kernel::{Event, Kernel};
use super::super::random::mix;
use super::payload::Label;
use super::{Arrived, Net, count, hash, hash_of_ip};
use crate::address::Address;

/// A datagram on its way, or several that are joined.
#[derive(Clone)]
pub(super) struct Packet {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) bytes: Vec<u8>,
    /// Bytes of each of those that are joined.
    pub(super) segment: Option<u16>,
    /// The worker's socket that sent it: a port may be another socket's by the time it arrives.
    pub(super) sender: Option<usize>,
}

/// What will happen at its time.
pub(super) enum Due {
    Arrival(Packet),
    /// To the socket at the first address: nobody is at the second.
    Unreachable(SocketAddr, SocketAddr),
    /// A client says what comes next.
    Client(usize),
    /// What a backend's process says, if it is still the same one.
    Reply {
        incarnation: u32,
        packet: Packet,
    },
    /// A backend speaks of its own accord, so many times more.
    Unsolicited {
        incarnation: u32,
        from: SocketAddr,
        to: SocketAddr,
        label: Label,
        left: u32,
    },
}

impl Packet {
    /// Datagrams.
    fn count(&self) -> u64 {
        count(self.bytes.len(), self.segment)
    }

    /// The payloads of the datagrams.
    pub(super) fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let size = self.segment.map_or(self.bytes.len(), usize::from).max(1);
        // One without bytes is one, too.
        let empty = self.bytes.is_empty().then_some(&[][..]);
        self.bytes.chunks(size).chain(empty)
    }

    fn is_joined(&self) -> bool {
        self.segment.is_some()
    }
}

impl Arrived {
    /// What it takes of a queue's room: some of it for the kernel's own notes (skb->truesize).
    pub(super) fn cost(&self) -> usize {
        self.bytes.len() + NOTES
    }
}

impl Kernel {
    pub(super) fn schedule_datagrams(&mut self, at: u64, due: Due) {
        let key = self.net.next_due;
        self.net.next_due += 1;
        self.net.due.insert(key, due);
        self.schedule(at, Event::Datagrams(key));
    }

    /// It is time for what was scheduled under this number.
    pub(in crate::ring::sim) fn datagrams_due(&mut self, key: u64) {
        let Some(due) = self.net.due.remove(&key) else {
            return;
        };
        match due {
            Due::Arrival(packet) => self.packet_arrives(packet),
            Due::Unreachable(local, remote) => self.unreachable(local, remote),
            Due::Client(client) => self.client_speaks(client),
            Due::Reply {
                incarnation,
                packet,
            } => self.reply_late(incarnation, packet),
            Due::Unsolicited {
                incarnation,
                from,
                to,
                label,
                left,
            } => self.speak_unasked(incarnation, (from, to), label, left),
        }
    }

    /// Puts a packet on the wire, in pieces if chance will have it.
    pub(super) fn put_on_wire(&mut self, packet: Packet) {
        self.net.traffic.sent += packet.count();
        if !packet.is_joined() || !self.random.chance(self.faults.split) {
            return self.depart(packet);
        }
        for piece in packet.pieces() {
            self.depart(Packet {
                bytes: piece.to_vec(),
                segment: None,
                ..packet
            });
        }
    }

    fn depart(&mut self, packet: Packet) {
        if self.random.chance(self.faults.datagram_lost) {
            self.net.traffic.lost += packet.count();
            return;
        }
        if self.random.chance(self.faults.datagram_doubled) {
            self.net.traffic.doubled += packet.count();
            self.fly(packet.clone());
        }
        self.fly(packet);
    }

    fn fly(&mut self, packet: Packet) {
        let mut at = self.now + self.way(packet.from, packet.to);
        if self.random.chance(self.faults.datagram_late) {
            at += self.random.below(LONGEST_DELAY);
        }
        self.schedule_datagrams(at, Due::Arrival(packet));
    }

    /// The time from one to the other, the same in both directions, so that without faults nothing
    /// overtakes.
    fn way(&self, from: SocketAddr, to: SocketAddr) -> u64 {
        let far = |address| self.distances.get(&Address::Ip(address)).copied();
        if let Some(way) = far(to).or(far(from)) {
            return way;
        }
        let (least, most) = self.faults.latency;
        let spread = most.saturating_sub(least).as_nanos() as u64;
        let chance = mix(hash(from).wrapping_add(hash(to)) ^ self.net.seed);
        // Nothing arrives in the instant in which it was sent.
        (least.as_nanos() as u64).max(1) + chance % (spread + 1)
    }

    fn packet_arrives(&mut self, packet: Packet) {
        let (from, to) = (packet.from, packet.to);
        let net = &self.net;
        let socket = net.connected.get(&(to, from)).copied();
        if let Some(id) = socket.or_else(|| net.member_for(from, to)) {
            self.queue(id, packet);
        } else if let Some(client) = net.client_at.get(&to).copied() {
            self.net.traffic.heard += packet.count();
            self.client_hears(client, &packet);
        } else if net.listens(to) {
            self.net.traffic.heard += packet.count();
            self.host_hears(&packet);
        } else {
            self.net.traffic.unheard += packet.count();
            if !self.random.chance(self.faults.unreachable_lost) {
                let at = self.now + self.way(to, from);
                self.schedule_datagrams(at, Due::Unreachable(from, to));
            }
        }
    }

    /// A socket that is connected hears of it, others don't (__udp4_lib_err()).
    fn unreachable(&mut self, local: SocketAddr, remote: SocketAddr) {
        if let Some(id) = self.net.connected.get(&(local, remote)) {
            let socket = &mut self.net.sockets[*id];
            socket.error = Some(libc::ECONNREFUSED);
            let reader = socket.reader;
            self.wake(None, reader);
        }
    }

    /// As __udp_enqueue_schedule_skb(): one is always taken by an empty queue.
    fn queue(&mut self, id: usize, packet: Packet) {
        let most = self.faults.datagram_queue as usize;
        let count = packet.count();
        let socket = &mut self.net.sockets[id];
        if socket.queued_bytes > most {
            socket.lost = socket.lost.wrapping_add(1);
            self.net.traffic.overflowed += count;
            return;
        }
        let arrived = Arrived {
            from: packet.from,
            to: packet.to.ip(),
            bytes: packet.bytes,
            segment: packet.segment,
            lost: socket.lost,
        };
        socket.queued_bytes += arrived.cost();
        socket.queue.push_back(arrived);
        let reader = socket.reader;
        self.wake(None, reader);
    }
}

impl Net {
    /// Who of the group at `to` gets what comes from there: the group of the one address comes before
    /// those of all addresses.
    fn member_for(&self, from: SocketAddr, to: SocketAddr) -> Option<usize> {
        let port = to.port();
        let same = match to.ip() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let both = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
        let places = [to.ip(), same, both].map(|ip| SocketAddr::new(ip, port));
        let group = places.iter().find_map(|place| self.groups.get(place))?;
        let hash = match group.by_source {
            true => hash_of_ip(from.ip()),
            false => mix(hash(from).rotate_left(1) ^ hash(to)),
        };
        Some(group.members[(hash % group.members.len() as u64) as usize])
    }

    /// Datagrams in sockets' queues, and on their way.
    pub(super) fn on_their_way(&self) -> u64 {
        let queues = self.sockets.iter().map(|socket| &socket.queue);
        let queued = queues.flat_map(VecDeque::iter).map(Arrived::count);
        let flying = self.due.values().map(|due| match due {
            Due::Arrival(packet) => packet.count(),
            _ => 0,
        });
        queued.chain(flying).sum()
    }
}

/// How late a datagram is at most that others overtake.
const LONGEST_DELAY: u64 = 50_000_000;
/// About what an skb takes beside its bytes.
const NOTES: usize = 768;
