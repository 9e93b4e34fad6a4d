//! Backends of datagrams: they answer by their scripts, and check all that they hear.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::super::kernel::Kernel;
use super::clients::Flow;
use super::payload::{self, Kind, Label};
use super::record::{DatagramBackendRecord, DatagramSession};
use super::script::DatagramScript;
use super::wire::{Due, Packet};
use super::{LONGEST, MOST_SEGMENTS, Net, hash};
use crate::time::Instant;

/// A backend's process.
pub(super) struct Host {
    pub(super) script: DatagramScript,
    /// Which one it is at this address.
    pub(super) incarnation: u32,
    pub(super) record: DatagramBackendRecord,
    /// As the sessions of the record.
    pub(super) carried: Vec<Carried>,
    /// By source and the worker's socket that it belonged to.
    session_of: BTreeMap<(SocketAddr, Option<usize>), usize>,
    seen: BTreeSet<(u32, u32)>,
}

/// Whose datagrams have come from one socket.
#[derive(Default)]
pub(super) struct Carried {
    /// Who could have said all of them; `None` = anybody.
    candidates: Option<BTreeSet<Flow>>,
    /// Nobody could.
    pub(super) mixed: bool,
}

/// What a backend was asked.
struct Asked {
    label: Option<Label>,
    payload: Vec<u8>,
}

impl Asked {
    fn reply(&self, number: u16) -> Vec<u8> {
        match self.label {
            Some(label) => {
                let kind = Kind::Reply(number);
                payload::write(Label { kind, ..label }, self.payload.len())
            }
            None => payload::short_reply(&self.payload),
        }
    }
}

impl Net {
    pub(super) fn listens(&self, address: SocketAddr) -> bool {
        let host = self.hosts.get(&address);
        host.is_some_and(|host| host.script != DatagramScript::Closed)
    }
}

impl Kernel {
    /// Datagrams to `address` meet `script`. `reborn`: another process does so.
    pub(super) fn set_datagram_host(
        &mut self,
        address: SocketAddr,
        script: DatagramScript,
        reborn: bool,
    ) {
        let host = self.net.hosts.entry(address).or_insert_with(|| Host {
            script,
            incarnation: 0,
            record: DatagramBackendRecord::default(),
            carried: Vec::new(),
            session_of: BTreeMap::new(),
            seen: BTreeSet::new(),
        });
        host.script = script;
        host.incarnation += u32::from(reborn);
    }

    /// A backend that is there gets a packet.
    pub(super) fn host_hears(&mut self, packet: &Packet) {
        let asked: Vec<Asked> = packet
            .pieces()
            .filter_map(|piece| self.host_hears_one(packet, piece))
            .collect();
        self.answer(packet, &asked);
    }

    fn host_hears_one(&mut self, packet: &Packet, piece: &[u8]) -> Option<Asked> {
        self.note_heard(hash(packet.to), piece);
        let (label, flows) = self.net.who_said(piece);
        let now = Instant::from_nanos(self.now);
        let host = self.net.hosts.get_mut(&packet.to)?;
        let session = host.session(packet, now);
        host.record.received += 1;
        if flows.is_empty() {
            host.record.corrupt += 1;
            let (to, len) = (packet.to, piece.len());
            self.violate(format!(
                "datagram backend {to} heard {len} bytes that no client has said"
            ));
            return None;
        }
        if let Some(label) = label {
            let is_new = host.seen.insert((label.client, label.sequence));
            host.record.duplicates += u64::from(!is_new);
            let clients = &mut host.record.sessions[session].clients;
            if !clients.contains(&(label.client as usize)) {
                clients.push(label.client as usize);
            }
        }
        host.carried[session].add(flows);
        let payload = piece.to_vec();
        Some(Asked { label, payload })
    }

    fn answer(&mut self, packet: &Packet, asked: &[Asked]) {
        let Some(host) = self.net.hosts.get_mut(&packet.to) else {
            return;
        };
        let Some(session) = host.session_of.get(&(packet.from, packet.sender)).copied() else {
            return;
        };
        let (script, incarnation) = (host.script, host.incarnation);
        let replies = replies(script, packet, asked);
        let record = &mut host.record.sessions[session];
        let is_first = record.received == asked.len() as u64;
        record.replied += replies
            .iter()
            .map(|reply| reply.pieces().count() as u64)
            .sum::<u64>();
        for packet in replies {
            match script {
                DatagramScript::Late(time) => {
                    let at = self.now.saturating_add(time.as_nanos() as u64);
                    let reply = Due::Reply {
                        incarnation,
                        packet,
                    };
                    self.schedule_datagrams(at, reply);
                }
                _ => self.put_on_wire(packet),
            }
        }
        if let DatagramScript::Unsolicited { count, interval } = script
            && let Some(label) = asked.iter().find_map(|asked| asked.label)
            && is_first
        {
            let next = Due::Unsolicited {
                incarnation,
                from: packet.to,
                to: packet.from,
                label: Label {
                    kind: Kind::Unsolicited(0),
                    ..label
                },
                left: count,
            };
            let at = self.now.saturating_add(interval.as_nanos() as u64);
            self.schedule_datagrams(at, next);
        }
    }

    pub(super) fn reply_late(&mut self, incarnation: u32, packet: Packet) {
        let host = self.net.hosts.get(&packet.from);
        if host.is_some_and(|host| host.incarnation == incarnation) {
            self.put_on_wire(packet);
        }
    }

    pub(super) fn speak_unasked(
        &mut self,
        incarnation: u32,
        (from, to): (SocketAddr, SocketAddr),
        label: Label,
        left: u32,
    ) {
        let host = self.net.hosts.get(&from).filter(|_| left > 0);
        let Some(host) = host.filter(|host| host.incarnation == incarnation) else {
            return;
        };
        let (DatagramScript::Unsolicited { interval, .. }, Kind::Unsolicited(number)) =
            (host.script, label.kind)
        else {
            return;
        };
        self.put_on_wire(Packet {
            from,
            to,
            bytes: payload::write(label, UNSOLICITED_BYTES),
            segment: None,
            sender: None,
        });
        let next = Due::Unsolicited {
            incarnation,
            from,
            to,
            label: Label {
                kind: Kind::Unsolicited(number.wrapping_add(1)),
                ..label
            },
            left: left - 1,
        };
        let at = self.now.saturating_add(interval.as_nanos() as u64);
        self.schedule_datagrams(at, next);
    }
}

impl Host {
    /// The session that `packet` belongs to, which has heard one more datagram.
    fn session(&mut self, packet: &Packet, now: Instant) -> usize {
        let source = packet.from;
        let new = self.record.sessions.len();
        let session = *self
            .session_of
            .entry((source, packet.sender))
            .or_insert(new);
        if session == new {
            self.carried.push(Carried::default());
            self.record.sessions.push(DatagramSession {
                source,
                clients: Vec::new(),
                received: 0,
                replied: 0,
                began_at: now,
                last_heard_at: now,
            });
        }
        let record = &mut self.record.sessions[session];
        record.received += 1;
        record.last_heard_at = now;
        session
    }
}

impl Carried {
    /// One more datagram, which one of these has said.
    fn add(&mut self, flows: BTreeSet<Flow>) {
        let both = match &self.candidates {
            Some(candidates) => candidates & &flows,
            None => flows.clone(),
        };
        self.mixed |= both.is_empty();
        self.candidates = Some(if both.is_empty() { flows } else { both });
    }
}

/// What a backend with this script says at once, or later, to a packet.
fn replies(script: DatagramScript, packet: &Packet, asked: &[Asked]) -> Vec<Packet> {
    let from = match script {
        DatagramScript::Elsewhere => {
            SocketAddr::new(packet.to.ip(), packet.to.port().wrapping_add(1))
        }
        _ => packet.to,
    };
    let reply = |bytes: Vec<u8>, segment: Option<u16>| Packet {
        from,
        to: packet.from,
        segment: segment.filter(|size| usize::from(*size) < bytes.len()),
        bytes,
        sender: None,
    };
    match script {
        DatagramScript::Silent | DatagramScript::Closed => Vec::new(),
        DatagramScript::Replies(count) => {
            let numbers = |asked| (0..count as u16).map(move |number| Asked::reply(asked, number));
            let all = asked.iter().flat_map(numbers);
            all.map(|bytes| reply(bytes, None)).collect()
        }
        DatagramScript::JoinedReplies(count) => {
            let mut all = Vec::new();
            for asked in asked {
                let size = asked.payload.len();
                let most = LONGEST
                    .checked_div(size)
                    .unwrap_or(1)
                    .clamp(1, MOST_SEGMENTS);
                let numbers: Vec<u16> = (0..count as u16).collect();
                all.extend(numbers.chunks(most).map(|numbers| {
                    let bytes = numbers.iter().flat_map(|number| asked.reply(*number));
                    reply(bytes.collect(), Some(size as u16))
                }));
            }
            all
        }
        _ if asked.is_empty() => Vec::new(),
        _ => {
            let bytes = asked.iter().flat_map(|asked| asked.reply(0)).collect();
            vec![reply(bytes, packet.segment)]
        }
    }
}

const UNSOLICITED_BYTES: usize = 64;
