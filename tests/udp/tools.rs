//! Servers and clients that others have made, through the proxy.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::backend::free_address;
use crate::common::tools::{Server, printed};
use crate::common::{Proxy, eventually, now};
use crate::questions::{Question, Questions};
use crate::{closed, listener, wait_sessions};

/// Listener and upstream of name servers, as in conf/udp.toml, with faster checks.
fn resolvers(servers: &[&str]) -> String {
    format!(
        "[listeners.web]\nbind = \"127.0.0.1:0\"\nprotocol = \"udp\"\nupstream = \"resolvers\"\n\
         [listeners.web.udp]\nsession_timeout = \"5s\"\nresponses = 1\n\
         [upstreams.resolvers]\nbackends = {servers:?}\n\
         [upstreams.resolvers.health_check]\ntype = \"udp\"\ninterval = \"200ms\"\nfall = 2\nrise = 1\n\
         send = \"\\u0012\\u0034\\u0001\\u0000\\u0000\\u0001\\u0000\\u0000\\u0000\\u0000\\u0000\\u0000\
         \\u0000\\u0000\\u0002\\u0000\\u0001\"\n\
         expect = \"\\u0012\\u0034\"\n\
         [upstreams.resolvers.outlier]\nconsecutive_failures = 1\neject_for = \"500ms\"\n\
         [runtime]\nworkers = 2\n[log]\nlevel = \"info\"\nformat = \"json\"\n"
    )
}

/// A name server that gives the address 192.0.2.`number` for every name below `test`.
fn name_server(address: &str, number: u8) -> Server {
    let port = address.rsplit_once(':').expect("a port").1;
    Server::start(
        "dnsmasq",
        &format!(
            "--no-daemon --conf-file=/dev/null --no-resolv --no-hosts --listen-address=127.0.0.1 \
             --bind-interfaces --port={port} --address=/test/192.0.2.{number} --dns-forward-max=10000"
        ),
    )
}

/// What `dig` is told of this name.
fn dig(address: &str, words: &str) -> Option<String> {
    let port = address.rsplit_once(':').expect("a port").1;
    printed(
        "dig",
        &format!("@127.0.0.1 -p {port} +tries=1 +timeout=2 +short {words}"),
    )
}

fn wait_answers(questions: &Questions, server: u8, more: usize) {
    let before = questions.answered_by(server);
    eventually("answers", || {
        (questions.answered_by(server) >= before + more).then_some(())
    });
}

#[test]
fn of_a_name_server_that_dies_only_the_questions_in_its_hands_are_lost() {
    let addresses = [free_address(), free_address()];
    let [one, two] = [1, 2].map(|number| {
        let address = &addresses[usize::from(number) - 1];
        let server = name_server(address, number);
        let expected = Some(format!("192.0.2.{number}\n"));
        eventually("the name server", || {
            (dig(address, "a.test A") == expected).then_some(())
        });
        server
    });
    let proxy = Proxy::start(&resolvers(&addresses.each_ref().map(String::as_str)));
    let address = proxy.address("web");
    let mut told: Vec<_> = (0..4).filter_map(|_| dig(&address, "b.test A")).collect();
    told.sort();
    assert_eq!(
        told.concat(),
        "192.0.2.1\n192.0.2.1\n192.0.2.2\n192.0.2.2\n"
    );
    assert_eq!(dig(&address, "b.test AAAA").as_deref(), Some(""));

    let questions = Questions::to(&address);
    wait_answers(&questions, 1, 200);
    let killed = now();
    two.kill();
    let gone = now();
    wait_answers(&questions, 1, 1_500);
    let again = name_server(&addresses[1], 2);
    wait_answers(&questions, 2, 200);
    let all = questions.stop();
    only_these_are_lost(&all, killed, gone);
    assert!(all.len() > 1_900, "{}", all.len());
    let answered = all.iter().filter(|it| it.answered.is_some()).count() as u64;
    eventually("the sessions to end", || {
        (closed(&proxy, "answered") == answered + 5).then_some(())
    });
    drop((one, again));
    proxy.end_now();
}

/// What is on its way to a server, or waits in its queue, when it dies: on loopback that takes less.
const ON_ITS_WAY: Duration = Duration::from_millis(1);

/// A question that had been handed over before the server's socket was closed is lost, as nobody can know
/// that it was not answered. Every other one met a closed port, which answers.
fn only_these_are_lost(all: &[Question], killed: Instant, gone: Instant) {
    let lost: Vec<_> = all.iter().filter(|it| it.answered.is_none()).collect();
    let window = killed - ON_ITS_WAY..gone;
    let in_its_hands = all.iter().filter(|it| window.contains(&it.asked)).count();
    println!(
        "{} questions, {} lost, {in_its_hands} in the {:?} in which the server died",
        all.len(),
        lost.len(),
        gone - killed
    );
    for question in lost {
        assert!(
            window.contains(&question.asked),
            "lost, though asked {:?} before and {:?} after it died",
            gone.saturating_duration_since(question.asked),
            question.asked.saturating_duration_since(gone),
        );
    }
}

/// Bytes of each of iperf3's datagrams.
const IPERF_BYTES: u64 = 1_400;

/// Runs iperf3 through the proxy, two seconds at 200 Mbit/s. Returns what it says at the end, the
/// listener, and bytes of the biggest session in either direction.
fn iperf3(direction: &str) -> (Value, Value, [u64; 2]) {
    let (server, address) = (free_address(), free_address());
    let port = |address: &str| address.rsplit_once(':').expect("a port").1.to_owned();
    let serving = Server::start("iperf3", &format!("-s -B 127.0.0.1 -p {}", port(&server)));
    eventually("iperf3's server", || TcpStream::connect(&server).ok());
    let proxy = Proxy::start(&format!(
        "[listeners.control]\nbind = {address:?}\nupstream = \"app\"\n\
         [listeners.web]\nbind = {address:?}\nupstream = \"app\"\nprotocol = \"udp\"\n\
         [listeners.web.udp]\nsession_timeout = \"1s\"\n\
         [upstreams.app]\nbackends = [{server:?}]\n"
    ));
    // The queues of iperf3's own sockets are where datagrams are lost when it has to wait for its turn.
    let most = std::fs::read_to_string("/proc/sys/net/core/rmem_max").expect("it can be read");
    let queue = most.trim().parse::<u64>().expect("a number").min(2 << 20);
    let words = format!(
        "-c 127.0.0.1 -p {} -u -b 200M -l {IPERF_BYTES} -t 2 -w {queue} -J {direction}",
        port(&address)
    );
    // The connection that has found the server keeps it busy for a moment.
    let said = eventually("iperf3's server to be free", || printed("iperf3", &words));
    drop(serving);
    wait_sessions(&proxy, 0);
    let listener = listener(&proxy);
    let sessions = proxy
        .lines()
        .into_iter()
        .filter(|line| line["message"] == "session closed" && line["listener"] == "web");
    let bytes = ["bytes_received", "bytes_sent"].map(|key| {
        let of = |line: &Value| line[key].as_u64().expect("a number");
        sessions.clone().map(|line| of(&line)).max().unwrap_or(0)
    });
    proxy.end_now();
    let said: Value = serde_json::from_str(&said).expect("it is JSON");
    (said["end"].clone(), listener, bytes)
}

/// At most one in twenty is lost, and that only in queues of the kernel: iperf3's own lose 1 % without any
/// proxy when the machine has something else to do for a few milliseconds. Returns how many the proxy has
/// found to be missing.
fn next_to_nothing_is_lost(end: &Value, listener: &Value) -> u64 {
    let dropped = &listener["datagrams"]["dropped"];
    let overflow = dropped["overflow"].as_u64().unwrap_or(0);
    let reasons = dropped.as_object().expect("a table").len();
    assert_eq!(reasons, usize::from(overflow > 0), "{dropped}");
    let number = |key: &str| end["sum"][key].as_u64().expect("a number");
    let (lost, packets) = (number("lost_packets"), number("packets"));
    println!("{lost} of {packets} lost, {overflow} before the proxy");
    assert!(packets > 30_000 && lost <= packets / 20, "{end}");
    overflow
}

#[test]
fn iperf3_sends_every_datagram() {
    let (end, listener, [received, _]) = iperf3("");
    every_datagram_is_known(&end, &listener, "received", received);
}

#[test]
fn iperf3_gets_every_datagram() {
    let (end, listener, [_, sent]) = iperf3("-R");
    every_datagram_is_known(&end, &listener, "sent", sent);
}

/// What was sent to the proxy is what it counts and what it misses; of the former it has every byte.
fn every_datagram_is_known(end: &Value, listener: &Value, key: &str, bytes: u64) {
    let overflow = next_to_nothing_is_lost(end, listener);
    let passed = listener["datagrams"][key].as_u64().expect("a number");
    // Beside the load there is a word of four bytes in either direction, to begin with.
    assert_eq!(bytes, (passed - 1) * IPERF_BYTES + 4);
    let offered = end["sum_sent"]["bytes"].as_u64().expect("a number");
    assert_eq!((passed - 1 + overflow) * IPERF_BYTES, offered);
}
