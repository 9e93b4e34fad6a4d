//! Datagrams that the kernel joins and cuts apart on the way.

use std::io::IoSlice;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};

use crate::common::Proxy;
use crate::common::datagrams::{DatagramBackend, client, hear, udp_config};
use crate::{dropped, listener};

/// Sends `bytes` as datagrams of `segment` bytes, in one call.
pub(crate) fn send_segments(client: &UdpSocket, to: &str, bytes: &[u8], segment: u16) {
    let to: std::net::SocketAddr = to.parse().expect("an address");
    let sent = sendmsg(
        client.as_raw_fd(),
        &[IoSlice::new(bytes)],
        &[ControlMessage::UdpGsoSegments(&segment)],
        MsgFlags::empty(),
        Some(&SockaddrStorage::from(to)),
    );
    assert_eq!(sent.expect("the loopback takes it"), bytes.len());
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 7 % 253) as u8).collect()
}

/// Through a backend that says back each datagram as it came.
fn come_back(segment: u16, len: usize) {
    let backend = DatagramBackend::echo();
    let proxy = Proxy::start(&udp_config(&[&backend.address], "", "", ""));
    let address = proxy.address("web");
    let client = client();
    let bytes = pattern(len);
    send_segments(&client, &address, &bytes, segment);
    for expected in bytes.chunks(usize::from(segment)) {
        assert!(hear(&client, &address) == expected, "{segment} {len}");
    }
    let count = len.div_ceil(usize::from(segment)) as u64;
    assert_eq!(backend.received() as u64, count);
    let said = listener(&proxy)["datagrams"].clone();
    assert_eq!(
        (&said["received"], &said["sent"]),
        (&count.into(), &count.into())
    );
    proxy.end_now();
}

#[test]
fn joined_datagrams_arrive_as_they_were_sent() {
    come_back(1_200, 40 * 1_200);
    come_back(1_200, 10 * 1_200 + 77);
    come_back(1, 64);
    // More than older kernels take in one send.
    come_back(10, 1_280);
    come_back(30_000, 60_000);
}

#[test]
fn per_packet_joined_datagrams_are_balanced_each() {
    let backends: Vec<_> = (0..4).map(|_| DatagramBackend::echo()).collect();
    let addresses: Vec<_> = backends.iter().map(|it| it.address.as_str()).collect();
    let proxy = Proxy::start(&udp_config(&addresses, "", "mode = \"per-packet\"", ""));
    let address = proxy.address("web");
    let client = client();
    let bytes = pattern(20 * 100);
    send_segments(&client, &address, &bytes, 100);
    let mut heard: Vec<_> = (0..20).map(|_| hear(&client, &address)).collect();
    let mut expected: Vec<_> = bytes.chunks(100).map(<[u8]>::to_vec).collect();
    heard.sort();
    expected.sort();
    assert_eq!(heard, expected);
    assert!(backends.iter().all(|backend| backend.received() == 5));
    proxy.end_now();
}

#[test]
fn of_joined_datagrams_those_within_the_rate_pass() {
    let backend = DatagramBackend::echo();
    let limit = "[listeners.web.rate_limit]\ndatagrams_per_ip = { rate = 1, burst = 4 }\n";
    let proxy = Proxy::start(&udp_config(&[&backend.address], "", "", limit));
    let address = proxy.address("web");
    let client = client();
    let bytes = pattern(1_000);
    send_segments(&client, &address, &bytes, 100);
    for expected in bytes.chunks(100).take(4) {
        assert_eq!(hear(&client, &address), expected);
    }
    assert_eq!(dropped(&proxy, "datagram-rate-limit"), 6);
    proxy.end_now();
}
