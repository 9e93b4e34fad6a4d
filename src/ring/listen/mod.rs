//! Listening sockets: how they come to be, change while they live, change hands and end. It serves
//! none of them: a worker accepts, and control says what becomes of which socket.
//!
//! | what | start | reload | upgrade | drain |
//! |---|---|---|---|---|
//! | [`listen`] | new addresses | new addresses | | |
//! | [`listen_more`], [`bind_more`] | | | more workers than sockets were handed over | |
//! | [`listen_beside`] | | `ipv6_only` has changed | | |
//! | [`adjust`] | | an option of a socket that stays | sockets that were handed over | |
//! | [`refuse_new`] | | a listener is removed | | before the last accepts |
//! | [`steer`], [`unsteer`] | | | fewer workers than sockets were handed over | |
//! | [`steer_by_source`] | datagrams, where a client is an address | as `session_key` says | as at start | |
//! | [`inherit`], [`describe`] | systemd's sockets | | sockets that were handed over | |
//! | [`give_to`], [`own_path`] | before root is given up | | | |
//! | [`listen_unix`], [`Identity`], [`remove_path`] | unix listeners | unix listeners | | the path goes |
//!
//! Sockets of one address that share its connections (SO_REUSEPORT) are a *group*, and each is a
//! *member* of it. `group` says who is in one, in which order, and who gets what.

mod adjust;
mod group;
mod inherit;
mod unix;

#[cfg(test)]
mod clients;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};

pub use self::adjust::{AdjustError, Setting, adjust};
pub use self::group::{refuse_new, steer, steer_by_source, unsteer};
pub use self::inherit::{Inherited, describe, give_to, inherit};
pub use self::unix::{Identity, listen_unix, own_path, remove_path};
use super::datagrams;
use crate::address::Address;

/// What a listening socket is set to. Accepted sockets inherit keepalive, congestion control and
/// TCP_NODELAY, which is always on.
#[derive(Clone, Copy, Debug)]
pub struct ListenOptions<'a> {
    /// Length of the accept queue.
    pub backlog: u32,
    /// Idle time before keepalive probes; `None` = off.
    pub keepalive: Option<Duration>,
    /// Congestion control algorithm; `None` = the system's.
    pub congestion: Option<&'a str>,
    /// `[::]` takes IPv6 only.
    pub ipv6_only: bool,
    /// Permission bits of a unix socket.
    pub unix_mode: u32,
    /// What comes in; the options above, but for `ipv6_only`, are about connections.
    pub transport: Transport,
}

/// What a listening socket takes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Transport {
    /// Connections.
    Stream,
    /// Datagrams.
    Datagrams,
}

/// Listening sockets for `workers` workers on one address. IP: one member of a group each, after
/// a bind without SO_REUSEPORT has shown that the address is free (with it, a second instance would
/// share the address in silence). Unix: see [`listen_unix`].
///
/// Returns the sockets and the address they got (port 0 is replaced by the kernel's choice).
///
/// # Errors
/// As bind(2), listen(2) and setsockopt(2); EADDRINUSE when somebody listens there.
pub fn listen(
    address: &Address,
    workers: usize,
    options: &ListenOptions<'_>,
) -> io::Result<(Vec<OwnedFd>, Address)> {
    match address {
        Address::Ip(address) => {
            let bound = probe(*address, options)?;
            let sockets = listen_more(bound, workers, options)?;
            Ok((sockets, Address::Ip(bound)))
        }
        Address::Unix(path) => {
            let (sockets, _) = listen_unix(path, workers, options)?;
            Ok((sockets, Address::Unix(path.clone())))
        }
    }
}

/// So many more members for the group of an address that this process listens on already. Nobody else
/// is looked for there.
///
/// The kernel lets in only who belongs to the same user as the members that are there, and the user of
/// a socket is who made it: a process that gives up root has to [give](give_to) them along before.
///
/// # Errors
/// As bind(2), listen(2) and setsockopt(2); EADDRINUSE when the group belongs to another user.
pub fn listen_more(
    to: SocketAddr,
    count: usize,
    options: &ListenOptions<'_>,
) -> io::Result<Vec<OwnedFd>> {
    let sockets = bind_more(to, count, options)?;
    // All are bound before the first one listens: who gets an error has taken no connection.
    for socket in sockets.iter().filter(|_| options.listens()) {
        SockRef::from(socket).listen(queue_length(options))?;
    }
    Ok(sockets)
}

/// The same, but they don't listen yet, and get nothing: [`adjust`] lets them. Datagrams come from the
/// bind on.
///
/// # Errors
/// As bind(2) and setsockopt(2).
pub fn bind_more(
    to: SocketAddr,
    count: usize,
    options: &ListenOptions<'_>,
) -> io::Result<Vec<OwnedFd>> {
    let bind = |_| Ok(OwnedFd::from(bind_ip(to, true, options)?));
    (0..count).map(bind).collect()
}

/// A new group for an address of which this process has a part already: `[::]` with the other `ipv6_only`
/// than the one that listens there now (which can't be changed on a bound socket), or one address beside
/// all of them. Where `[::]` takes IPv4, too, `0.0.0.0` has to be free. Of groups that don't fit equally the
/// one for the single address gets its connections.
///
/// What Linux does while both are there, as tried on 6.18 and held by the tests of this file:
///
/// | old | new | bind | IPv6 goes to | IPv4 goes to |
/// |---|---|---|---|---|
/// | IPv6 only | both | succeeds | old | new |
/// | both | IPv6 only | succeeds | old | old |
///
/// Members that join either group later change nothing of it: of two groups that fit equally the one
/// whose first member listened first gets the connection. As soon as the last member of the old
/// group is closed the new one has what it is bound for. A SYN that the old group
/// [refuses](refuse_new) does not go to the new one instead; the client sends it again after a second.
///
/// # Errors
/// As [`listen_more`]; EADDRINUSE also when somebody, another listener of this process included, is at
/// `0.0.0.0` with this port.
pub fn listen_beside(
    to: SocketAddr,
    count: usize,
    options: &ListenOptions<'_>,
) -> io::Result<Vec<OwnedFd>> {
    if to.is_ipv6() && to.ip().is_unspecified() && !options.ipv6_only {
        // A group for both would bind beside another process' group for IPv4, and get nothing.
        probe((Ipv4Addr::UNSPECIFIED, to.port()).into(), options)?;
    }
    listen_more(to, count, options)
}

/// Finds out whether anybody is at `address`, and which port the kernel chooses for port 0.
fn probe(address: SocketAddr, options: &ListenOptions<'_>) -> io::Result<SocketAddr> {
    let probe = bind_ip(address, false, options)?;
    if options.listens() {
        // Listening is what conflicts with a socket that shares the port, so the probe listens too.
        probe.listen(1)?;
    }
    Ok(probe.local_addr()?.as_socket().unwrap_or(address))
}

fn bind_ip(
    address: SocketAddr,
    reuse_port: bool,
    options: &ListenOptions<'_>,
) -> io::Result<Socket> {
    let domain = Domain::for_address(address);
    let socket = match options.transport {
        Transport::Stream => {
            let tcp = Some(Protocol::TCP);
            let socket = Socket::new(domain, Type::STREAM.nonblocking(), tcp)?;
            // For datagrams it would let others in.
            socket.set_reuse_address(true)?;
            adjust::tune(&(&socket).into(), options)?;
            socket
        }
        Transport::Datagrams => {
            let socket = Socket::new(domain, Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
            datagrams::prepare_for_clients(&SockRef::from(&socket), address)?;
            socket
        }
    };
    if address.is_ipv6() {
        socket.set_only_v6(options.ipv6_only)?;
    }
    socket.set_reuse_port(reuse_port)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

impl ListenOptions<'_> {
    /// There is a queue of connections.
    fn listens(&self) -> bool {
        self.transport == Transport::Stream
    }
}

fn queue_length(options: &ListenOptions<'_>) -> i32 {
    i32::try_from(options.backlog).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::clients::{self, OPTIONS};
    use super::*;

    const DUAL: ListenOptions<'_> = ListenOptions {
        ipv6_only: false,
        ..OPTIONS
    };

    fn bound(sockets: &[OwnedFd]) -> SocketAddr {
        let address = describe(sockets[0].as_fd()).expect("a socket").address;
        address.as_ip().expect("an IP address")
    }

    /// At a port that is free in both families.
    fn any(options: &ListenOptions<'_>) -> Vec<OwnedFd> {
        let any = Address::Ip("[::]:0".parse().expect("an address"));
        let (_, free) = listen(&any, 1, &DUAL).expect("port 0");
        listen(&free, 2, options).expect("it is free").0
    }

    fn families(port: u16) -> [SocketAddr; 2] {
        [
            (std::net::Ipv6Addr::LOCALHOST, port).into(),
            (Ipv4Addr::LOCALHOST, port).into(),
        ]
    }

    fn is_in_use<T>(answer: io::Result<T>) -> bool {
        answer.err().and_then(|error| error.raw_os_error()) == Some(libc::EADDRINUSE)
    }

    #[test]
    fn a_second_instance_is_refused_and_more_members_are_not() {
        let first = clients::listening(1);
        let address = bound(&first);
        assert!(is_in_use(listen(&Address::Ip(address), 1, &OPTIONS)));
        let more = listen_more(address, 2, &OPTIONS).expect("it is ours");
        let members: Vec<_> = first.into_iter().chain(more).collect();
        let accepted = clients::accepted(&members, clients::connect(address, 200));
        assert_eq!(accepted.iter().sum::<usize>(), 200);
        assert!(accepted.iter().all(|&count| count > 20), "{accepted:?}");
    }

    #[test]
    fn beside_ipv6_only_a_group_for_both_gets_ipv4_until_the_old_one_is_closed() {
        let old = any(&OPTIONS);
        let to = bound(&old);
        let [ipv6, ipv4] = families(to.port());
        let mut new = listen_beside(to, 2, &DUAL).expect("0.0.0.0 is free");
        let mut old = old;
        old.extend(listen_more(to, 1, &OPTIONS).expect("it is ours"));
        new.extend(listen_more(to, 1, &DUAL).expect("it is ours"));
        clients::all_go_to(&old, &new, ipv6);
        clients::all_go_to(&new, &old, ipv4);
        drop(old);
        clients::all_go_to(&new, &[], ipv6);
        clients::all_go_to(&new, &[], ipv4);
    }

    #[test]
    fn beside_a_group_for_both_one_for_ipv6_only_gets_nothing_until_the_old_one_is_closed() {
        let old = any(&DUAL);
        let to = bound(&old);
        let [ipv6, ipv4] = families(to.port());
        let new = listen_beside(to, 2, &OPTIONS).expect("it is ours");
        clients::all_go_to(&old, &new, ipv6);
        clients::all_go_to(&old, &new, ipv4);
        drop(old);
        clients::all_go_to(&new, &[], ipv6);
        assert!(clients::is_refused(ipv4));
    }

    #[test]
    fn a_stranger_at_the_ipv4_address_is_found() {
        let ours = any(&OPTIONS);
        let to = bound(&ours);
        let stranger = listen_more((Ipv4Addr::UNSPECIFIED, to.port()).into(), 1, &OPTIONS);
        let stranger = stranger.expect("IPv6 is elsewhere");
        assert!(is_in_use(listen_beside(to, 1, &DUAL)));
        drop(stranger);
        listen_beside(to, 1, &DUAL).expect("it has gone");
    }
}
