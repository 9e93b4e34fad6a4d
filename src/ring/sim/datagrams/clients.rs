//! Clients of datagrams: they send by their scripts, and check all that they hear.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::super::kernel::Kernel;
use super::payload::{self, Kind, Label, Reading};
use super::record::DatagramClientRecord;
use super::script::DatagramClientScript;
use super::wire::{Due, Packet};
use super::{LONGEST, MOST_SEGMENTS, Net};
use crate::time::Instant;

/// A client, and the number of the address that it has sent from: what a session is for.
pub(super) type Flow = (usize, usize);

/// A client of datagrams.
pub(super) struct Client {
    script: DatagramClientScript,
    pub(super) record: DatagramClientRecord,
    /// What it has said that was too short for a label.
    short: BTreeSet<Vec<u8>>,
    heard: BTreeSet<(u32, Kind)>,
    /// Those whose replies it got.
    pub(super) strangers: BTreeSet<usize>,
}

impl Client {
    /// Which of its addresses a datagram came from.
    fn place(&self, sequence: u32) -> usize {
        usize::from(
            self.script
                .moves_after
                .is_some_and(|after| sequence >= after),
        )
    }

    fn has_said(&self, label: Label) -> bool {
        u64::from(label.sequence) < self.record.sent
    }

    fn size(&self, sequence: u32) -> usize {
        let sizes = &self.script.sizes;
        let at = sequence as usize % sizes.len().max(1);
        sizes
            .get(at)
            .map_or(0, |size| (*size as usize).min(LONGEST))
    }

    /// Sizes of the datagrams of the next send.
    fn next_sizes(&self) -> Vec<usize> {
        let first = self.record.sent as u32;
        let size = self.size(first);
        let room = LONGEST.checked_div(size).unwrap_or(1).min(MOST_SEGMENTS);
        let most = (self.script.joined as usize).clamp(1, room.max(1));
        let end = self.script.moves_after.filter(|end| *end > first);
        let end = end.unwrap_or(u32::MAX).min(self.script.count);
        let next = (first..end).map(|sequence| self.size(sequence));
        next.take(most).take_while(|next| *next == size).collect()
    }
}

impl Net {
    /// An address for a client, its own unless the script says otherwise.
    fn client_address(&mut self, script: &DatagramClientScript, to: SocketAddr) -> SocketAddr {
        let number = self.clients.len() as u32;
        let own = match to.ip() {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(FIRST_CLIENT + number)),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(FIRST_CLIENT_6 + u128::from(number))),
        };
        let from = script.from.unwrap_or(SocketAddr::new(own, 0));
        match from.port() {
            0 => self.free_address(from.ip()),
            _ => from,
        }
    }

    fn free_address(&self, ip: IpAddr) -> SocketAddr {
        let at = |port| SocketAddr::new(ip, port);
        let mut all = (FIRST_CLIENT_PORT..=u16::MAX).map(at);
        let free = all.find(|address| !self.client_at.contains_key(address));
        free.expect("a client's port is free")
    }

    /// Who could have said `payload` as a request; nobody = it is corrupt.
    pub(super) fn who_said(&self, payload: &[u8]) -> (Option<Label>, BTreeSet<Flow>) {
        match payload::read(payload) {
            Reading::Labelled(label) => {
                let client = self.clients.get(label.client as usize);
                let client = client.filter(|_| label.kind == Kind::Request);
                let flow = client
                    .filter(|client| client.has_said(label))
                    .map(|client| (label.client as usize, client.place(label.sequence)));
                (Some(label), flow.into_iter().collect())
            }
            Reading::Short => (None, self.short.get(payload).cloned().unwrap_or_default()),
            Reading::Corrupt => (None, BTreeSet::new()),
        }
    }
}

impl Kernel {
    /// A client that sends its first datagram at `start`; its index among the clients is its number.
    pub(super) fn add_datagram_client(
        &mut self,
        start: u64,
        to: SocketAddr,
        script: DatagramClientScript,
    ) -> usize {
        let from = self.net.client_address(&script, to);
        let number = self.net.clients.len();
        if self.net.client_at.insert(from, number).is_some() {
            self.violate(format!("two clients send from {from}"));
        }
        let record = DatagramClientRecord {
            address: to,
            from: vec![from],
            sent: 0,
            replies: 0,
            answered: 0,
            unsolicited: 0,
            duplicates: 0,
            foreign: 0,
            corrupt: 0,
            wrong_source: 0,
            last_heard_at: None,
        };
        self.net.clients.push(Client {
            script,
            record,
            short: BTreeSet::new(),
            heard: BTreeSet::new(),
            strangers: BTreeSet::new(),
        });
        self.schedule_datagrams(start.max(self.now), Due::Client(number));
        number
    }

    /// The client's next send.
    pub(super) fn client_speaks(&mut self, number: usize) {
        let client = &self.net.clients[number];
        let sizes = client.next_sizes();
        let first = client.record.sent as u32;
        let Some(size) = sizes.first() else {
            return;
        };
        let from = self.client_source(number, first);
        let mut bytes = Vec::new();
        for (sequence, size) in (first..).zip(&sizes) {
            let label = Label {
                client: number as u32,
                sequence,
                kind: Kind::Request,
            };
            let one = payload::write(label, *size);
            if *size < payload::LABEL {
                let place = self.net.clients[number].place(sequence);
                let who = self.net.short.entry(one.clone()).or_default();
                who.insert((number, place));
                self.net.clients[number].short.insert(one.clone());
            }
            bytes.extend(one);
        }
        let client = &mut self.net.clients[number];
        client.record.sent += sizes.len() as u64;
        let (to, interval) = (client.record.address, client.script.interval);
        let segment = (sizes.len() > 1).then_some(*size as u16);
        self.put_on_wire(Packet {
            from,
            to,
            bytes,
            segment,
            sender: None,
        });
        let next = self.now.saturating_add(interval.as_nanos() as u64);
        self.schedule_datagrams(next, Due::Client(number));
    }

    /// Where the client sends this one from: it moves when it is time.
    fn client_source(&mut self, number: usize, sequence: u32) -> SocketAddr {
        let client = &self.net.clients[number];
        let place = client.place(sequence);
        if let Some(from) = client.record.from.get(place) {
            return *from;
        }
        let from = self.net.free_address(client.record.from[0].ip());
        self.net.client_at.insert(from, number);
        self.net.clients[number].record.from.push(from);
        from
    }

    pub(super) fn client_hears(&mut self, number: usize, packet: &Packet) {
        for piece in packet.pieces() {
            self.note_heard(number as u64, piece);
            let record = &mut self.net.clients[number].record;
            record.last_heard_at = Some(Instant::from_nanos(self.now));
            record.wrong_source += u64::from(packet.from != record.address);
            match payload::read(piece) {
                Reading::Labelled(label) => self.client_hears_label(number, label, piece.len()),
                Reading::Short => self.client_hears_short(number, piece),
                Reading::Corrupt => self.client_hears_nonsense(number, piece.len()),
            }
        }
    }

    fn client_hears_label(&mut self, number: usize, label: Label, len: usize) {
        let client = &mut self.net.clients[number];
        if label.client as usize != number {
            client.record.foreign += 1;
            client.strangers.insert(label.client as usize);
            return;
        }
        if label.kind == Kind::Request || !client.has_said(label) {
            return self.client_hears_nonsense(number, len);
        }
        let before = (label.sequence, Kind::Reply(0))..=(label.sequence, Kind::Reply(u16::MAX));
        let is_first = client.heard.range(before).next().is_none();
        if !client.heard.insert((label.sequence, label.kind)) {
            client.record.duplicates += 1;
        } else if matches!(label.kind, Kind::Unsolicited(_)) {
            client.record.unsolicited += 1;
        } else {
            client.record.replies += 1;
            client.record.answered += u64::from(is_first);
        }
    }

    fn client_hears_short(&mut self, number: usize, payload: &[u8]) {
        let request = payload::short_reply(payload);
        let others = self.net.short.get(&request);
        let client = &mut self.net.clients[number];
        if client.short.contains(&request) {
            client.record.replies += 1;
        } else if let Some(others) = others {
            client.record.foreign += 1;
            client
                .strangers
                .extend(others.iter().map(|(other, _)| *other));
        } else {
            self.client_hears_nonsense(number, payload.len());
        }
    }

    fn client_hears_nonsense(&mut self, number: usize, len: usize) {
        self.net.clients[number].record.corrupt += 1;
        self.violate(format!(
            "datagram client {number} heard {len} bytes that no backend has said to it"
        ));
    }

    pub(super) fn note_heard(&mut self, who: u64, piece: &[u8]) {
        let first = piece
            .first_chunk()
            .map_or(0, |word| u64::from_le_bytes(*word));
        self.note(&[self.now, who, piece.len() as u64, first]);
    }
}

/// 10.0.0.1.
const FIRST_CLIENT: u32 = 0x0a00_0001;
/// fd00::1.
const FIRST_CLIENT_6: u128 = 0xfd00 << 112 | 1;
const FIRST_CLIENT_PORT: u16 = 20_000;
