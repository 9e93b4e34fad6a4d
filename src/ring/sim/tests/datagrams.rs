//! Datagram sockets through the trait: what receives and sends do, as Linux 6.18 was seen to do it.

mod faults;
mod peers;
mod relay;

use super::*;
use crate::proto::datagram::{self, Layout, Local, Received};
use crate::ring::Datagram;
use crate::ring::sim::{DatagramClientScript, DatagramScript};

const FAR: [u8; 4] = [10, 0, 7, 7];

impl Rig {
    /// A socket that anybody may send to.
    fn hears_at(&mut self, address: &Address) -> Fd {
        self.world.listen_datagrams(address, 1, false)[0]
    }

    /// A socket to the backend.
    fn towards(&mut self, to: &Address) -> Fd {
        self.driver
            .open_datagrams(to.as_ip().unwrap(), None)
            .unwrap()
    }

    /// Provides buffers of `len` bytes with these numbers. No other memory is in the rig, so that
    /// [`Rig::read`] finds them.
    fn lend(&mut self, numbers: std::ops::Range<u16>, len: usize) {
        for number in numbers {
            assert_eq!(self.memory.len(), usize::from(number));
            let mut memory = vec![0; len].into_boxed_slice();
            let start = NonNull::new(memory.as_mut_ptr()).unwrap();
            self.memory.push(memory);
            // SAFETY: the memory stays in the rig, behind the driver, and nobody touches it.
            unsafe {
                self.driver
                    .provide(Group::Datagrams, number, start, len as u32);
            };
        }
    }

    fn receive_datagrams(&mut self, fd: Fd, layout: Layout) -> Token {
        self.push(Lane::Datagrams, receive(fd, layout, false))
    }

    /// The datagrams of an op's completions.
    fn read(&self, completions: &[Completion], token: Token) -> Vec<(Received, Vec<u8>)> {
        let of = completions.iter().filter(|c| c.token == token);
        of.filter_map(|completion| {
            let buffer = &self.memory[usize::from(completion.buffer?)];
            let bytes = &buffer[..completion.result as usize];
            let header = datagram::parse(bytes, Layout::ANYBODY).unwrap();
            let payload = bytes[header.payload.clone()].to_vec();
            Some((header, payload))
        })
        .collect()
    }

    /// What comes out of `fd` until nothing happens any more.
    fn all(&mut self, fd: Fd) -> Vec<(Received, Vec<u8>)> {
        let token = self.receive_datagrams(fd, Layout::ANYBODY);
        let completions = self.settle();
        self.read(&completions, token)
    }

    fn say(&mut self, fd: Fd, datagrams: &[Datagram<'_>]) -> Result<usize, i32> {
        let sent = self.driver.send_datagrams(fd, datagrams);
        sent.map_err(|error| error.raw_os_error().unwrap())
    }

    /// One client's datagrams of these sizes, all at once.
    fn client_says(&mut self, to: &Address, sizes: &[u32]) -> usize {
        let script = DatagramClientScript {
            sizes: sizes.to_vec(),
            ..DatagramClientScript::new(sizes.len() as u32, 0, Duration::ZERO)
        };
        self.world.datagram_client(self.world.now(), to, script)
    }
}

/// Nothing but bytes.
fn plain(bytes: &[u8]) -> Datagram<'_> {
    Datagram {
        bytes,
        to: None,
        from: None,
        segment: None,
    }
}

fn receive(fd: Fd, layout: Layout, poll_first: bool) -> Op {
    // SAFETY: all zeroes are a msghdr without anything.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_namelen = layout.name as u32;
    header.msg_controllen = layout.control;
    Op::ReceiveDatagrams {
        fd,
        // Two words that stay for as long as the test runs.
        message: Box::leak(Box::new(header)),
        poll_first,
    }
}

fn at(ip: impl Into<std::net::IpAddr>, port: u16) -> Address {
    Address::Ip(SocketAddr::new(ip.into(), port))
}

fn overhead() -> i32 {
    Layout::ANYBODY.overhead() as i32
}

#[test]
fn a_buffer_has_the_sender_and_the_payload() {
    let mut rig = Rig::new(Faults::none());
    rig.lend(0..2, 2048);
    let fd = rig.hears_at(&front());
    rig.client_says(&front(), &[20]);
    let all = rig.all(fd);
    let from = rig.world.datagram_clients()[0].from[0];
    let expected = Received {
        sender: Some(from),
        local: None,
        segment: None,
        lost: None,
        truncated: false,
        payload: Layout::ANYBODY.overhead()..Layout::ANYBODY.overhead() + 20,
    };
    assert_eq!(all[0].0, expected);
    assert_eq!(all[0].1.len(), 20);
    assert_eq!(rig.world.buffers_held(), [1]);
}

#[test]
fn bound_to_all_addresses_a_socket_tells_which_one_was_meant() {
    let both = std::net::Ipv6Addr::UNSPECIFIED;
    let v4 = std::net::Ipv4Addr::UNSPECIFIED;
    let far = std::net::Ipv4Addr::from(FAR);
    let far6 = "2001:db8::7".parse::<std::net::Ipv6Addr>().unwrap();
    let cases: [(Address, Address, std::net::IpAddr); 3] = [
        (at(v4, 53), at(far, 53), far.into()),
        (at(both, 53), at(far6, 53), far6.into()),
        (at(both, 53), at(far, 53), far.to_ipv6_mapped().into()),
    ];
    for (bound, to, told) in cases {
        let mut rig = Rig::new(Faults::none());
        rig.lend(0..2, 2048);
        let fd = rig.hears_at(&bound);
        rig.client_says(&to, &[20]);
        let (header, _) = rig.all(fd).remove(0);
        let local = Local {
            ip: told,
            interface: 0,
        };
        assert_eq!(header.local, Some(local));
        let from = rig.world.datagram_clients()[0].from[0];
        let sender = header.sender.unwrap();
        assert_eq!(sender.ip().to_canonical(), from.ip());
        assert_eq!(sender.is_ipv6(), bound.as_ip().unwrap().is_ipv6());
    }
}

#[test]
fn the_group_of_one_address_comes_before_that_of_all() {
    let mut rig = Rig::new(Faults::none());
    rig.lend(0..4, 2048);
    let all = rig.hears_at(&at([0, 0, 0, 0], 80));
    let one = rig.hears_at(&front());
    rig.client_says(&front(), &[20]);
    rig.client_says(&at(FAR, 80), &[21]);
    rig.settle();
    assert_eq!(rig.all(one)[0].1.len(), 20);
    assert_eq!(rig.all(all)[0].1.len(), 21);
}

#[test]
fn datagrams_that_were_sent_joined_come_joined() {
    let mut rig = Rig::new(Faults::none());
    rig.lend(0..2, 65_536 + 256);
    let fd = rig.hears_at(&front());
    let script = DatagramClientScript {
        joined: 64,
        ..DatagramClientScript::new(5, 1_200, Duration::ZERO)
    };
    rig.world.datagram_client(rig.world.now(), &front(), script);
    let all = rig.all(fd);
    assert_eq!(all.len(), 1);
    assert_eq!((all[0].0.segment, all[0].1.len()), (Some(1_200), 6_000));
    assert_eq!(rig.world.traffic().received, 5);
}

#[test]
fn what_the_queue_can_not_hold_is_lost_and_counted_in_what_comes_after() {
    let mut rig = Rig::new(Faults {
        datagram_queue: 2_000,
        ..Faults::none()
    });
    rig.lend(0..8, 2048);
    let fd = rig.hears_at(&front());
    rig.client_says(&front(), &[100; 5]);
    rig.settle();
    let lost: Vec<_> = rig.all(fd).iter().map(|(header, _)| header.lost).collect();
    assert_eq!(lost, [None; 3], "they came before the loss");
    rig.client_says(&front(), &[100]);
    rig.settle();
    // The multishot of before takes it.
    assert_eq!(rig.world.traffic().overflowed, 2);
    rig.client_says(&front(), &[100]);
    let (completions, mut told) = (rig.settle(), Vec::new());
    for completion in completions {
        told.extend(rig.read(&[completion], completion.token));
    }
    assert_eq!(told[0].0.lost, Some(2));
}

#[test]
fn a_buffer_that_is_too_small_cuts_the_payload_and_says_so() {
    let mut rig = Rig::new(Faults::none());
    rig.lend(0..1, Layout::ANYBODY.overhead() + 50);
    let fd = rig.hears_at(&front());
    rig.client_says(&front(), &[50, 51]);
    rig.settle();
    let (header, payload) = rig.all(fd).remove(0);
    assert!(!header.truncated && payload.len() == 50);
    rig.lend(1..2, Layout::ANYBODY.overhead() + 50);
    let (header, payload) = rig.all(fd).remove(0);
    assert!(header.truncated && payload.len() == 50);
}

#[test]
fn a_buffer_without_room_for_the_head_is_an_error_and_loses_nothing() {
    let mut rig = Rig::new(Faults::none());
    rig.lend(0..1, Layout::ANYBODY.overhead() - 1);
    let fd = rig.hears_at(&front());
    rig.client_says(&front(), &[0]);
    rig.settle();
    let token = rig.receive_datagrams(fd, Layout::ANYBODY);
    assert_eq!(result_of(&rig.settle(), token), [-libc::EFAULT]);
    assert_eq!(rig.world.traffic().under_way, 1);
}

#[test]
fn a_receive_without_buffers_fails_at_once_unless_it_polls_first() {
    let mut rig = Rig::new(Faults::none());
    let fd = rig.hears_at(&front());
    let blind = rig.receive_datagrams(fd, Layout::ANYBODY);
    assert_eq!(result_of(&rig.turn(), blind), [-libc::ENOBUFS]);
    let polls = receive(fd, Layout::ANYBODY, true);
    let waits = rig.push(Lane::Datagrams, polls);
    assert!(rig.settle().is_empty());
    rig.client_says(&front(), &[20]);
    assert_eq!(result_of(&rig.settle(), waits), [-libc::ENOBUFS]);
}

#[test]
fn the_last_buffer_is_followed_by_a_failure_though_nothing_is_left() {
    let mut rig = Rig::new(Faults::none());
    rig.lend(0..2, 2048);
    let fd = rig.hears_at(&front());
    rig.client_says(&front(), &[1, 2]);
    rig.settle();
    let token = rig.receive_datagrams(fd, Layout::ANYBODY);
    let completions = rig.turn();
    let expected = [overhead() + 1, overhead() + 2, -libc::ENOBUFS];
    assert_eq!(result_of(&completions, token), expected);
    let more: Vec<_> = completions.iter().map(|one| one.more).collect();
    assert_eq!(more, [true, true, false]);
    assert!(completions.iter().all(|one| !one.nonempty), "never told");
}

#[test]
fn an_empty_datagram_ends_a_multishot() {
    let mut rig = Rig::new(Faults::none());
    rig.lend(0..4, 2048);
    let fd = rig.hears_at(&front());
    rig.client_says(&front(), &[10, 0, 30]);
    rig.settle();
    let token = rig.receive_datagrams(fd, Layout::ANYBODY);
    let completions = rig.turn();
    assert_eq!(
        result_of(&completions, token),
        [overhead() + 10, overhead()]
    );
    assert!(completions[0].more && !completions[1].more);
    assert_eq!(rig.all(fd)[0].1.len(), 30);
}

#[test]
fn after_thirty_two_in_a_row_others_have_their_turn() {
    let mut rig = Rig::new(Faults::none());
    rig.lend(0..64, 512);
    let fd = rig.hears_at(&front());
    rig.client_says(&front(), &[9; 40]);
    rig.settle();
    let token = rig.receive_datagrams(fd, Layout::ANYBODY);
    rig.world.kernel.borrow_mut().submit(0);
    assert_eq!(rig.world.kernel.borrow().workers[0].ready.len(), 32);
    let completions = rig.turn();
    assert_eq!(result_of(&completions, token).len(), 40);
    assert!(completions.iter().all(|one| one.more));
}

#[test]
fn a_cancel_comes_after_what_was_there_before_it() {
    let mut rig = Rig::new(Faults::none());
    rig.lend(0..4, 2048);
    let fd = rig.hears_at(&front());
    let token = rig.receive_datagrams(fd, Layout::ANYBODY);
    rig.turn();
    rig.client_says(&front(), &[10, 11]);
    for _ in 0..4 {
        rig.world.advance();
    }
    let _ = rig.cancel(token);
    let expected = [overhead() + 10, overhead() + 11, -libc::ECANCELED];
    assert_eq!(result_of(&rig.turn(), token), expected);
    assert_eq!(rig.world.pending_ops(), 0);
}

#[test]
fn an_icmp_error_ends_the_receive_before_what_waits_is_seen() {
    let mut rig = Rig::new(Faults::none());
    rig.lend(0..4, 2048);
    rig.world.datagram_backend(&back(), DatagramScript::Echo);
    let listener = rig.hears_at(&front());
    rig.client_says(&front(), &[40]);
    let (_, payload) = rig.all(listener).remove(0);
    let fd = rig.towards(&back());
    assert_eq!(rig.say(fd, &[plain(&payload)]), Ok(1));
    rig.settle();
    rig.world.kill_datagram_backend(&back());
    assert_eq!(rig.say(fd, &[plain(&payload)]), Ok(1));
    rig.settle();
    let token = rig.receive_datagrams(fd, Layout::ANYBODY);
    assert_eq!(result_of(&rig.settle(), token), [-libc::ECONNREFUSED]);
    assert_eq!(rig.all(fd)[0].1.len(), 40, "told once");
    assert_eq!(rig.say(fd, &[plain(&payload)]), Ok(1));
}

#[test]
fn an_icmp_error_is_told_by_the_next_send_if_that_comes_first() {
    let mut rig = Rig::new(Faults::none());
    rig.lend(0..4, 2048);
    let fd = rig.towards(&back());
    assert_eq!(rig.say(fd, &[plain(&[])]), Ok(1));
    rig.settle();
    let two = [plain(&[]), plain(&[])];
    assert_eq!(rig.say(fd, &two), Err(libc::ECONNREFUSED));
    assert_eq!(rig.say(fd, &two), Ok(2));
    let token = rig.receive_datagrams(fd, Layout::ANYBODY);
    assert_eq!(result_of(&rig.settle(), token), [-libc::ECONNREFUSED]);
}

#[test]
fn who_is_not_connected_hears_of_no_icmp_error() {
    let mut rig = Rig::new(Faults::none());
    let fd = rig.hears_at(&front());
    let nobody = Datagram {
        to: back().as_ip(),
        ..plain(&[1; 8])
    };
    for _ in 0..2 {
        assert_eq!(rig.say(fd, &[nobody]), Ok(1));
        rig.settle();
    }
    assert_eq!(rig.world.traffic().unheard, 2);
    assert_eq!(rig.say(fd, &[plain(&[1])]), Err(libc::EDESTADDRREQ));
}

#[test]
fn a_send_has_its_limits() {
    let mut rig = Rig::new(Faults::none());
    let fd = rig.towards(&back());
    let bytes = vec![0; 65_508];
    let cut = |bytes, segment| Datagram {
        segment: Some(segment),
        ..plain(bytes)
    };
    assert_eq!(rig.say(fd, &[plain(&bytes)]), Err(libc::EMSGSIZE));
    assert_eq!(rig.say(fd, &[cut(&bytes, 1_200)]), Err(libc::EMSGSIZE));
    assert_eq!(rig.say(fd, &[plain(&bytes[1..])]), Ok(1));
    assert_eq!(rig.say(fd, &[cut(&bytes[1..], 1_200)]), Ok(1));
    assert_eq!(rig.say(fd, &[cut(&bytes[..6_401], 100)]), Err(libc::EINVAL));
    assert_eq!(rig.say(fd, &[cut(&bytes[..6_400], 100)]), Ok(1));
    assert_eq!(rig.say(fd, &[cut(&bytes[..10], 0)]), Ok(1));
    assert_eq!(rig.world.traffic().sent, 1 + 55 + 64 + 1);
    let ipv6 = Datagram {
        to: "[::1]:53".parse().ok(),
        ..plain(&[])
    };
    assert_eq!(rig.say(fd, &[ipv6]), Err(libc::EAFNOSUPPORT));
    assert_eq!(rig.say(fd, &[]), Ok(0));
}

#[test]
fn what_a_later_datagram_meets_is_not_told() {
    let mut rig = Rig::new(Faults::none());
    let fd = rig.towards(&back());
    let long = vec![0; 65_508];
    let three = [plain(&[1]), plain(&long), plain(&[1])];
    assert_eq!(rig.say(fd, &three), Ok(1));
    assert_eq!(rig.say(fd, &three[1..]), Err(libc::EMSGSIZE));
    assert_eq!(rig.world.traffic().sent, 1);
}

#[test]
fn a_group_is_shared_by_flow_or_by_source() {
    for by_source in [false, true] {
        let mut rig = Rig::new(Faults::none());
        let members = rig.world.listen_datagrams(&front(), 4, by_source);
        for client in 0..60 {
            let ip = [10, 1, 0, client % 6];
            let script = DatagramClientScript {
                from: Some((ip, 3_000 + u16::from(client)).into()),
                ..DatagramClientScript::new(3, 20, Duration::from_millis(1))
            };
            rig.world.datagram_client(rig.world.now(), &front(), script);
        }
        rig.lend(0..200, 512);
        let mut member_of = std::collections::BTreeMap::new();
        let mut used = std::collections::BTreeSet::new();
        rig.settle();
        for member in members {
            for (header, _) in rig.all(member) {
                let sender = header.sender.unwrap();
                let key = SocketAddr::new(sender.ip(), if by_source { 0 } else { sender.port() });
                assert_eq!(*member_of.entry(key).or_insert(member), member);
                used.insert(member);
            }
        }
        assert_eq!(member_of.len(), if by_source { 6 } else { 60 });
        assert!(used.len() > 1);
        assert_eq!(rig.world.traffic().received, 180);
    }
}

#[test]
fn a_connected_socket_hears_its_peer_only() {
    let mut rig = Rig::new(Faults::none());
    rig.lend(0..4, 2048);
    rig.world
        .datagram_backend(&back(), DatagramScript::Elsewhere);
    let fd = rig.towards(&back());
    rig.client_says(&front(), &[40]);
    let listener = rig.hears_at(&front());
    let (_, payload) = rig.all(listener).remove(0);
    assert_eq!(rig.say(fd, &[plain(&payload)]), Ok(1));
    assert!(rig.all(fd).is_empty());
    assert_eq!(rig.world.traffic().unheard, 1);
    rig.world.datagram_backend(&back(), DatagramScript::Echo);
    assert_eq!(rig.say(fd, &[plain(&payload)]), Ok(1));
    rig.settle();
    assert_eq!(rig.world.traffic().received, 2);
}

#[test]
fn a_reply_leaves_from_the_address_that_is_asked_for() {
    for (from, wrong) in [(Some(FAR), 0), (None, 1)] {
        let mut rig = Rig::new(Faults::none());
        rig.lend(0..2, 2048);
        rig.world.datagram_backend(&back(), DatagramScript::Echo);
        let fd = rig.hears_at(&at([0, 0, 0, 0], 80));
        rig.client_says(&at(FAR, 80), &[40]);
        let (header, _) = rig.all(fd).remove(0);
        let reply = Datagram {
            to: header.sender,
            from: from.map(|ip| Local {
                ip: ip.into(),
                interface: 0,
            }),
            ..plain(&[1, 2, 3])
        };
        assert_eq!(rig.say(fd, &[reply]), Ok(1));
        rig.settle();
        let client = &rig.world.datagram_clients()[0];
        assert_eq!((client.wrong_source, client.corrupt), (wrong, 1));
        assert_eq!(rig.world.misdelivered(false).len(), wrong as usize);
    }
}

#[test]
fn local_ports_are_distinct_and_come_to_an_end() {
    let mut rig = Rig::new(Faults::none());
    rig.world.set_local_ports(2);
    let to = back().as_ip().unwrap();
    let first = rig.towards(&back());
    let _second = rig.towards(&back());
    let errno = |result: std::io::Result<Fd>| result.unwrap_err().raw_os_error().unwrap();
    assert_eq!(errno(rig.driver.open_datagrams(to, None)), libc::EAGAIN);
    let source = Some([127, 0, 0, 9].into());
    let bound = rig.driver.open_datagrams(to, source);
    assert_eq!(errno(bound), libc::EADDRINUSE, "as bind(2) says it");
    rig.driver.close(first);
    assert!(rig.driver.open_datagrams(to, source).is_ok());
    assert_eq!(rig.world.local_ports(), 2);
    let other = rig.driver.open_datagrams(to, Some([0; 16].into()));
    assert_eq!(errno(other), libc::EAFNOSUPPORT);
}

#[test]
fn breaches_of_the_contract_are_recorded_for_datagrams() {
    let mut rig = Rig::new(Faults::none());
    let fd = rig.towards(&back());
    let (stream, _) = rig.pair();
    assert_eq!(rig.say(stream, &[plain(&[])]), Err(libc::ENOTSOCK));
    rig.memory.clear();
    rig.lend(0..1, 64);
    rig.memory.clear();
    rig.lend(0..1, 64); // the same number again
    let polls = receive(fd, Layout::ONE_PEER, true);
    let first = rig.push(Lane::Datagrams, polls);
    let _second = rig.push(Lane::Datagrams, polls);
    rig.turn();
    // SAFETY: the header is leaked.
    unsafe { rig.driver.push(polls, first) };
    rig.push(Lane::Read, polls);
    let mut other = rig.world.driver();
    let _ = other.send_datagrams(fd, &[plain(&[])]);
    rig.driver.close(fd);
    assert_eq!(rig.say(fd, &[plain(&[])]), Err(libc::EBADF));
    let found = rig.world.violations();
    let expected = [
        "while the kernel holds it",
        "two ops wait",
        "in flight already",
        "ReceiveDatagrams",
        "of worker 0",
        "ops pending",
        "send on closed",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.contains(expected), "{found}");
    }
}
