//! What the tests of listening sockets share: clients on loopback, and who got them.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, SockRef, Socket, Type};

use super::{ListenOptions, Transport, describe, listen};
use crate::address::Address;

pub(super) const OPTIONS: ListenOptions<'_> = ListenOptions {
    backlog: 1024,
    keepalive: None,
    congestion: None,
    ipv6_only: true,
    unix_mode: 0o600,
    transport: Transport::Stream,
};

/// A group of so many at a port of their own.
pub(super) fn listening(members: usize) -> Vec<OwnedFd> {
    let any = Address::Ip((Ipv4Addr::LOCALHOST, 0).into());
    listen(&any, members, &OPTIONS).expect("port 0").0
}

pub(super) fn address(members: &[OwnedFd]) -> SocketAddr {
    let address = describe(members[0].as_fd()).expect("a socket").address;
    address.as_ip().expect("an IP address")
}

/// Clients that are connected.
pub(super) fn connect(to: SocketAddr, count: usize) -> Vec<Socket> {
    let clients: Vec<Socket> = (0..count).map(|_| begin(to)).collect();
    assert!(clients.iter().all(|client| is_connected(client, 5_000)));
    clients
}

/// A client that has sent its SYN. It ends with a reset, which leaves nothing behind.
pub(super) fn begin(to: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), None);
    let socket = socket.expect("a socket");
    socket.set_linger(Some(Duration::ZERO)).expect("a socket");
    // In progress, or what `is_connected` will find out.
    let _ = socket.connect(&to.into());
    socket
}

/// It is established, or becomes so within so many milliseconds.
pub(super) fn is_connected(client: &Socket, millis: u64) -> bool {
    ready(client, PollFlags::OUT, millis) && client.peer_addr().is_ok()
}

pub(super) fn is_refused(to: SocketAddr) -> bool {
    let client = begin(to);
    !is_connected(&client, 5_000)
        && client.take_error().is_ok_and(|error| {
            error.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
        })
}

/// Waits for a connection in the queue.
pub(super) fn wait(listener: &OwnedFd) {
    assert!(ready(listener, PollFlags::IN, 5_000), "nobody has come");
}

/// How many of `clients`, which are connected, each member has in its queue. They are gone then.
pub(super) fn accepted(members: &[OwnedFd], clients: Vec<Socket>) -> Vec<usize> {
    let mut counts = vec![0; members.len()];
    let take = |member: &OwnedFd| SockRef::from(member).accept().is_ok();
    loop {
        for (count, member) in counts.iter_mut().zip(members) {
            *count += std::iter::repeat_with(|| take(member))
                .take_while(|&taken| taken)
                .count();
        }
        if counts.iter().sum::<usize>() >= clients.len() {
            return counts;
        }
        // The last packet of a handshake is behind its client.
        let mut all: Vec<_> = members
            .iter()
            .map(|member| PollFd::new(member, PollFlags::IN))
            .collect();
        let ready = poll(&mut all, Some(&timeout(5_000))).expect("poll");
        assert!(
            ready > 0,
            "{} came, and {counts:?} were found",
            clients.len()
        );
    }
}

/// `these` get all connections to an address, and `others` none.
pub(super) fn all_go_to(these: &[OwnedFd], others: &[OwnedFd], to: SocketAddr) {
    let all = these
        .iter()
        .chain(others)
        .map(|fd| fd.try_clone().expect("a socket"));
    let accepted = accepted(&all.collect::<Vec<_>>(), connect(to, 40));
    assert_eq!(
        accepted[..these.len()].iter().sum::<usize>(),
        40,
        "{accepted:?}"
    );
}

fn ready(socket: &impl AsFd, what: PollFlags, millis: u64) -> bool {
    let mut one = [PollFd::new(socket, what)];
    poll(&mut one, Some(&timeout(millis))).expect("poll") > 0
}

fn timeout(millis: u64) -> Timespec {
    Timespec::try_from(Duration::from_millis(millis)).expect("it is short")
}
