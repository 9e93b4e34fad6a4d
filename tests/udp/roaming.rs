//! A protocol over datagrams whose client's port changes all the time, as QUIC's and WireGuard's may behind
//! a NAT: both sides number what they send and acknowledge what they hear.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::mpsc::{Receiver, channel};

use crate::common::datagrams::{DatagramBackend, udp_config};
use crate::common::{PATIENCE, Proxy, now};
use crate::listener;

const PACKETS: u64 = 20_000;
/// Packets from one port.
const PER_PORT: u64 = 50;
/// Packets that may be without an acknowledgement.
const WINDOW: usize = 20;

/// What either side sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Packet {
    /// Counts the sender's packets, from 1 on.
    number: u64,
    /// The packet of the other side that this one answers; the client says the highest that it has heard.
    acknowledges: u64,
    /// Which backend it is; 0 = the client.
    who: u64,
}

impl Packet {
    fn bytes(self) -> Vec<u8> {
        let words = [self.number, self.acknowledges, self.who];
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    fn read(bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<8>();
        assert!(rest.is_empty());
        let [number, acknowledges, who] = *words else {
            panic!("{} bytes are no packet", bytes.len());
        };
        let [number, acknowledges, who] = [number, acknowledges, who].map(u64::from_be_bytes);
        Self {
            number,
            acknowledges,
            who,
        }
    }
}

/// A backend that answers every packet with one of its own, and what it has heard.
fn backend(who: u64) -> (DatagramBackend, Receiver<Packet>) {
    let (tell, heard) = channel();
    let count = std::cell::Cell::new(0);
    let backend = DatagramBackend::start(move |bytes| {
        let packet = Packet::read(bytes);
        // The test may be over.
        let _ = tell.send(packet);
        count.set(count.get() + 1);
        let answer = Packet {
            number: count.get(),
            acknowledges: packet.number,
            who,
        };
        vec![answer.bytes()]
    });
    (backend, heard)
}

/// A client with the ports that it had lately.
struct Roaming {
    proxy: SocketAddr,
    /// The last one is in use.
    ports: Vec<UdpSocket>,
    sent: u64,
    waiting: BTreeSet<u64>,
    heard: Vec<Packet>,
}

impl Roaming {
    fn send(&mut self) {
        if self.sent.is_multiple_of(PER_PORT) {
            let port = UdpSocket::bind("127.0.0.1:0").expect("a port");
            port.set_nonblocking(true).expect("it can be set");
            self.ports.push(port);
            // What is on its way is to the last few ports at most.
            let old = self.ports.len().saturating_sub(3);
            self.ports.drain(..old);
        }
        self.sent += 1;
        let packet = Packet {
            number: self.sent,
            acknowledges: self.heard.last().map_or(0, |it| it.number),
            who: 0,
        };
        let port = self.ports.last().expect("there is one");
        port.send_to(&packet.bytes(), self.proxy)
            .expect("it is sent");
        self.waiting.insert(packet.number);
    }

    /// Takes what has come to any of its ports.
    fn take(&mut self) {
        let mut bytes = [0; 64];
        for port in &self.ports {
            while let Ok((len, from)) = port.recv_from(&mut bytes) {
                assert_eq!(from, self.proxy);
                let packet = Packet::read(&bytes[..len]);
                let was_sent = self.waiting.remove(&packet.acknowledges);
                assert!(was_sent, "an answer to nothing: {packet:?}");
                self.heard.push(packet);
            }
        }
    }
}

#[test]
fn a_client_that_changes_its_port_all_the_time_is_served_by_one_backend() {
    let backends: Vec<_> = (1..=3).map(backend).collect();
    let addresses: Vec<_> = backends.iter().map(|it| it.0.address.as_str()).collect();
    let key = "session_key = \"source-ip\"";
    let tables = "[runtime]\nworkers = 4\npin_workers = false\n";
    let proxy = Proxy::start(&udp_config(&addresses, "", key, tables));
    let mut client = Roaming {
        proxy: proxy.address("web").parse().expect("an address"),
        ports: Vec::new(),
        sent: 0,
        waiting: BTreeSet::new(),
        heard: Vec::new(),
    };
    let until = now() + PATIENCE;
    while client.sent < PACKETS || !client.waiting.is_empty() {
        if client.sent < PACKETS && client.waiting.len() < WINDOW {
            client.send();
        }
        client.take();
        assert!(now() < until, "never answered: {:?}", client.waiting);
    }
    let who = client.heard[0].who;
    assert!(client.heard.iter().all(|it| it.who == who));
    let mut numbers: Vec<_> = client.heard.iter().map(|it| it.number).collect();
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(1..=PACKETS), "lost or doubled");
    for (number, (_, heard)) in (1..).zip(&backends) {
        let heard: Vec<_> = heard.try_iter().map(|it| it.number).collect();
        let expected = if number == who { PACKETS } else { 0 };
        assert!(heard.into_iter().eq(1..=expected), "in another order");
    }
    let listener = listener(&proxy);
    assert_eq!(
        (&listener["sessions"], &listener["accepted"]),
        (&1.into(), &1.into())
    );
    assert_eq!(listener["datagrams"]["dropped"], serde_json::json!({}));
    proxy.end_now();
}
