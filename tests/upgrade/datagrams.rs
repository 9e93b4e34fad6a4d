//! Sessions of datagrams go to the new process, with nothing lost on the way.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::backend::free_address as free;
use crate::common::datagrams::{DatagramBackend, ask, ask_text, client, client_at};
use crate::common::lineage::Lineage;
use crate::common::{eventually, pass};
use crate::{QUIET, app, by_hand};

fn listener(address: &str, udp: &str) -> String {
    format!(
        "[listeners.web]\nbind = {address:?}\nprotocol = \"udp\"\nupstream = \"app\"\n\
         [listeners.web.udp]\n{udp}\n"
    )
}

/// A client that numbers what it says, every few milliseconds, and waits for no answer.
struct Talker {
    socket: UdpSocket,
    sent: u32,
}

impl Talker {
    fn say(&mut self, address: &str) {
        let number = self.sent.to_be_bytes();
        self.socket.send_to(&number, address).expect("it is sent");
        self.sent += 1;
    }

    /// How many of the answers came; each once and in order.
    fn heard(&self) -> u32 {
        let mut next = 0;
        let mut heard = [0; 64];
        self.socket
            .set_read_timeout(Some(Duration::from_millis(500)))
            .expect("a timeout");
        while next < self.sent {
            let Ok(len) = self.socket.recv(&mut heard) else {
                break;
            };
            assert_eq!(
                heard[..len],
                next.to_be_bytes(),
                "lost, doubled or out of order"
            );
            next += 1;
        }
        next
    }
}

#[test]
fn no_session_loses_a_datagram_over_upgrades() {
    let backends: Vec<_> = (0..3).map(|_| DatagramBackend::echo()).collect();
    let backends: Vec<_> = backends.iter().map(|it| it.address.as_str()).collect();
    let address = free();
    let config = |workers| {
        format!(
            "{}{}{QUIET}",
            listener(&address, ""),
            app(&backends, workers)
        )
    };
    let mut proxy = Lineage::start(&config(2));
    let mut talkers: Vec<_> = (0..100)
        .map(|_| Talker {
            socket: client(),
            sent: 0,
        })
        .collect();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let talking = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                talkers.iter_mut().for_each(|it| it.say(&address));
                pass(Duration::from_millis(20));
            }
        });
        pass(Duration::from_millis(200));
        // Another number of workers, more and fewer than there are sockets.
        for workers in [2, 3, 1, 2] {
            proxy.upgrade_to(&config(workers));
            proxy.wait_alone();
            pass(Duration::from_millis(100));
        }
        over.store(true, Ordering::Relaxed);
        talking.join().expect("it has sent everything");
    });
    for talker in &talkers {
        assert_eq!(talker.heard(), talker.sent);
    }
    let status = proxy.console.status();
    let listener = &status.listeners[0];
    assert_eq!((listener.sessions, listener.accepted), (100, 100));
    assert!(listener.closed.is_empty(), "{:?}", listener.closed);
    let said = listener.datagrams.clone().expect("it takes datagrams");
    let sent: u32 = talkers.iter().map(|it| it.sent).sum();
    assert_eq!((said.received, said.sent), (sent.into(), sent.into()));
    assert!(said.dropped.is_empty(), "{:?}", said.dropped);
}

#[test]
fn many_sessions_keep_their_backends_and_sockets() {
    let count = by_hand("RINGRESS_TEST_SESSIONS", 1_000);
    let (a, b) = (DatagramBackend::named("a"), DatagramBackend::named("b"));
    let address = free();
    let backends = [a.address.as_str(), b.address.as_str()];
    let config = format!("{}{}{QUIET}", listener(&address, ""), app(&backends, 2));
    let mut proxy = Lineage::start(&config);
    let clients: Vec<_> = (0..count)
        .map(|number| client_at(&format!("127.0.{}.{}:0", number / 250, 1 + number % 250)))
        .collect();
    let names: Vec<_> = clients.iter().map(|it| ask_text(it, &address)).collect();
    let before = [a.senders(), b.senders()];
    proxy.upgrade();
    proxy.wait_alone();
    for (client, name) in clients.iter().zip(&names) {
        assert_eq!(ask_text(client, &address), *name);
    }
    // From the same ports as before.
    for (before, after) in before.iter().zip([a.senders(), b.senders()]) {
        assert_eq!(after.len(), 2 * before.len());
        let mut again = after[before.len()..].to_vec();
        let mut before = before.clone();
        before.sort_unstable();
        again.sort_unstable();
        assert!(again == before, "sessions were begun anew");
    }
}

#[test]
fn a_session_whose_backend_is_gone_from_the_file_gets_another() {
    let (a, b) = (DatagramBackend::named("a"), DatagramBackend::named("b"));
    let address = free();
    let folder = tempfile::tempdir().expect("a folder");
    let log = folder.path().join("access.log");
    let config = |backend: &str| {
        let tables = format!("{}{}", listener(&address, ""), app(&[backend], 2));
        format!("{tables}{QUIET}access_log = {log:?}\n")
    };
    let mut proxy = Lineage::start(&config(&a.address));
    let client = client();
    assert_eq!(ask_text(&client, &address), "a");
    proxy.upgrade_to(&config(&b.address));
    proxy.wait_alone();
    assert_eq!(ask_text(&client, &address), "b");
    // Its end is told as it is counted.
    eventually("the first one's end", || {
        let lines = std::fs::read_to_string(&log).expect("it is there");
        let mut lines = lines
            .lines()
            .map(|it| serde_json::from_str(it).expect("JSON"));
        lines.find(|line: &serde_json::Value| {
            line["reason"] == "drained" && line["backend"] == a.address && line["bytes_sent"] == 1
        })
    });
}

#[test]
fn time_and_replies_go_on_counting() {
    let backend = DatagramBackend::echo();
    let address = free();
    let udp = "session_timeout = \"2s\"\nresponses = 2";
    let config = format!(
        "{}{}{QUIET}",
        listener(&address, udp),
        app(&[&backend.address], 2)
    );
    let mut proxy = Lineage::start(&config);
    let (twice, silent) = (client(), client());
    ask(&twice, &address, b"x");
    ask(&silent, &address, b"x");
    pass(Duration::from_secs(1));
    proxy.upgrade();
    proxy.wait_alone();
    ask(&twice, &address, b"x");
    eventually("the second reply to end the session", || {
        let closed = &proxy.console.status().listeners[0].closed;
        (closed.get("answered") == Some(&1)).then_some(())
    });
    pass(Duration::from_millis(1_300));
    let listener = &proxy.console.status().listeners[0];
    assert_eq!(listener.closed.get("idle"), Some(&1), "{listener:?}");
    assert_eq!(listener.sessions, 0);
    proxy.end();
}
