//! Which member of a group gets a connection.
//!
//! The kernel keeps the members of a group in a row. What is known of its order, and held by the tests
//! of this file:
//!
//! - a member stands where listen(2), not bind(2), has put it: at the end; listening again moves nothing;
//! - when one is closed, the last of the row takes its place;
//! - who holds a duplicate of a member, in this process or another, keeps it in the row.
//!
//! Without a program a connection goes to the member that a hash of its four-tuple says, so that a SYN
//! that is sent again goes to the same one as long as the row stays as it is.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use socket2::{SockFilter, SockRef};

/// From now on no SYN gets through to this member: who connects hears nothing, sends again after a
/// second (then two, four), and is answered by whoever has the address by then: another member if
/// this one is closed, or a reset if that was the last. What has begun goes on: handshakes are ended,
/// and connections come into the queue and can be accepted. When nothing has come for as long as a
/// handshake takes, the socket can be closed without resetting anybody. SYNs of other members are not
/// affected, and none go to them instead.
///
/// Connections that are accepted inherit the filter. All that it does to them is to swallow a SYN from a
/// client that was restarted and has chosen the same port again.
///
/// # Errors
/// As setsockopt(2): ENOMEM.
pub fn refuse_new(fd: BorrowedFd<'_>) -> io::Result<()> {
    /// Offset of the flags in a TCP header, where the packet begins for a socket's filter.
    const FLAGS: u32 = 13;
    const SYN: u32 = 0x02;
    let program = [
        instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, FLAGS),
        SockFilter::new(
            (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16,
            0,
            1,
            SYN,
        ),
        instruction(libc::BPF_RET | libc::BPF_K, DROP),
        instruction(libc::BPF_RET | libc::BPF_K, WHOLE),
    ];
    SockRef::from(&fd).attach_filter(&program)
}

/// What a filter says of a packet: bytes to keep.
const DROP: u32 = 0;
const WHOLE: u32 = u32::MAX;

/// New connections of the group that `fd` is a member of go at random, evenly, to the first `count`
/// members only. The others stay open and idle, so that no queue is ever closed for being one too many;
/// what is in their queues already stays there. A later call takes the place of an earlier one, and the
/// program stays until [`unsteer`], whoever ends.
///
/// With fewer members than `count` a connection that is meant for one of the missing goes where the
/// hash says.
///
/// # Errors
/// As setsockopt(2): EINVAL when `count` is 0 or this is no SO_REUSEPORT socket.
pub fn steer(fd: BorrowedFd<'_>, count: u32) -> io::Result<()> {
    /// A random number, where a packet's bytes are not.
    const RANDOM: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_RANDOM) as u32;
    attach(
        fd,
        &mut [
            code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, RANDOM),
            code(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, count),
            code(libc::BPF_RET | libc::BPF_A, 0),
        ],
    )
}

/// Datagrams of the group that `fd` is a member of go to one of its `count` members by the source address
/// alone: those of a client whose port changes stay together. Otherwise as [`steer`].
///
/// # Errors
/// As [`steer`].
pub fn steer_by_source(fd: BorrowedFd<'_>, count: u32) -> io::Result<()> {
    let mut program = vec![
        code(LOAD_BYTE, IP_HEADER),
        code(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, 4),
        // IPv6 goes on behind the two instructions of IPv4.
        jump_if(6, 2),
        code(LOAD_WORD, IP_HEADER + 12),
        // Past all of IPv6 but the end, which loads what it has stored.
        code(libc::BPF_JMP | libc::BPF_JA, 1 + 3 * 4),
    ];
    program.push(code(LOAD_WORD, IP_HEADER + 8));
    for word in 1..4 {
        program.extend([
            code(libc::BPF_ST, 0),
            code(LOAD_WORD, IP_HEADER + 8 + 4 * word),
            code(libc::BPF_LDX | libc::BPF_W | libc::BPF_MEM, 0),
            code(libc::BPF_ALU | libc::BPF_XOR | libc::BPF_X, 0),
        ]);
    }
    /// 2^32 divided by the golden ratio: addresses that differ in a bit differ in the upper half.
    const SPREAD: u32 = 0x9e37_79b1;
    program.extend([
        code(libc::BPF_ALU | libc::BPF_MUL | libc::BPF_K, SPREAD),
        code(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, 16),
        code(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, count),
        code(libc::BPF_RET | libc::BPF_A, 0),
    ]);
    attach(fd, &mut program)
}

const LOAD_BYTE: u32 = libc::BPF_LD | libc::BPF_B | libc::BPF_ABS;
const LOAD_WORD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
/// Where the header of IP is for a program that is shown what is behind that of UDP.
const IP_HEADER: u32 = libc::SKF_NET_OFF as u32;

/// Goes so many instructions further if the accumulator is `value`.
fn jump_if(value: u32, further: u8) -> libc::sock_filter {
    libc::sock_filter {
        jt: further,
        ..code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value)
    }
}

/// Who of the group gets what is from now on for `program` to say.
fn attach(fd: BorrowedFd<'_>, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the kernel reads one sock_fprog, which `program` is, and the `len` instructions that it
    // names, which live until the end of this function.
    let answer = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    answered(answer)
}

/// New connections go to all members of the group again, as the hash says.
///
/// # Errors
/// As setsockopt(2): ENOENT when nothing was steered.
pub fn unsteer(fd: BorrowedFd<'_>) -> io::Result<()> {
    let unused: libc::c_int = 0;
    // SAFETY: the option reads one int at most, and `unused` is one.
    let answer = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_DETACH_REUSEPORT_BPF,
            (&raw const unused).cast(),
            size_of_val(&unused) as libc::socklen_t,
        )
    };
    answered(answer)
}

fn answered(answer: libc::c_int) -> io::Result<()> {
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn instruction(code: u32, k: u32) -> SockFilter {
    SockFilter::new(code as u16, 0, 0, k)
}

fn code(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, OwnedFd};

    use socket2::{Socket, Type};

    use super::super::clients::{self, OPTIONS};
    use super::super::listen_more;
    use super::*;

    /// Nobody but this one gets connections.
    fn first_is(member: usize, members: &[OwnedFd]) {
        let address = clients::address(members);
        let accepted = clients::accepted(members, clients::connect(address, 20));
        let expected: Vec<usize> = (0..members.len())
            .map(|index| if index == member { 20 } else { 0 })
            .collect();
        assert_eq!(accepted, expected);
    }

    #[test]
    fn what_was_queued_is_accepted_after_new_connections_are_refused() {
        let listener = clients::listening(1);
        let queued = clients::connect(clients::address(&listener), 10);
        refuse_new(listener[0].as_fd()).expect("a filter");
        assert_eq!(clients::accepted(&listener, queued), [10]);
    }

    #[test]
    fn who_comes_later_waits_and_is_refused_once_the_socket_is_closed() {
        let listener = clients::listening(1);
        let address = clients::address(&listener);
        refuse_new(listener[0].as_fd()).expect("a filter");
        let late = clients::begin(address);
        assert!(!clients::is_connected(&late, 200));
        assert_eq!(clients::accepted(&listener, Vec::new()), [0]);
        assert!(late.take_error().expect("a socket").is_none());
        drop(listener);
        // The SYN is sent again a second after the first.
        assert!(!clients::is_connected(&late, 5_000));
        let error = late.take_error().expect("a socket").expect("it has ended");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    /// A handshake ends no sooner than with the client's first bytes.
    fn defer(listener: &OwnedFd) {
        let seconds: libc::c_int = 5;
        // SAFETY: the option reads one int, and `seconds` is one.
        let answer = unsafe {
            libc::setsockopt(
                listener.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_DEFER_ACCEPT,
                (&raw const seconds).cast(),
                size_of_val(&seconds) as libc::socklen_t,
            )
        };
        answered(answer).expect("TCP takes it");
    }

    #[test]
    fn a_handshake_that_has_begun_ends_and_its_connection_works() {
        let listener = clients::listening(1);
        defer(&listener[0]);
        let client = clients::connect(clients::address(&listener), 1).remove(0);
        refuse_new(listener[0].as_fd()).expect("a filter");
        assert!(SockRef::from(&listener[0]).accept().is_err(), "too early");
        client.send(b"there").expect("connected");
        clients::wait(&listener[0]);
        let (server, _) = SockRef::from(&listener[0]).accept().expect("queued");
        drop(listener);
        for (from, to, word) in [(&client, &server, "there"), (&server, &client, "back")] {
            if word == "back" {
                from.send(word.as_bytes()).expect("connected");
            }
            from.shutdown(std::net::Shutdown::Write).expect("connected");
            to.set_nonblocking(false).expect("a socket");
            let mut heard = String::new();
            io::Read::read_to_string(&mut &*to, &mut heard).expect("connected");
            assert_eq!(heard, word);
        }
    }

    #[test]
    fn another_member_goes_on_and_gets_who_waits_once_this_one_is_closed() {
        let mut members = clients::listening(2);
        let address = clients::address(&members);
        refuse_new(members[0].as_fd()).expect("a filter");
        let begun: Vec<Socket> = (0..40).map(|_| clients::begin(address)).collect();
        let (through, waiting): (Vec<_>, Vec<_>) = begun
            .into_iter()
            .partition(|client| clients::is_connected(client, 20));
        let count = through.len();
        assert!((1..40).contains(&count), "{count}");
        assert_eq!(clients::accepted(&members, through), [0, count]);
        drop(members.remove(0));
        assert!(
            waiting
                .iter()
                .all(|client| clients::is_connected(client, 5_000))
        );
        assert_eq!(clients::accepted(&members, waiting), [40 - count]);
    }

    #[test]
    fn steered_connections_go_evenly_to_the_first_members_and_none_is_lost() {
        let members = clients::listening(4);
        let address = clients::address(&members);
        // Any member will do.
        steer(members[3].as_fd(), 2).expect("it is a group");
        let mut sum = [0; 4];
        for _ in 0..20 {
            let accepted = clients::accepted(&members, clients::connect(address, 100));
            for (sum, accepted) in sum.iter_mut().zip(accepted) {
                *sum += accepted;
            }
        }
        assert_eq!(sum[0] + sum[1], 2_000, "{sum:?}");
        // Of a fair coin it would be beyond this once in 10^10 tests.
        assert!(sum[0].abs_diff(sum[1]) < 300, "{sum:?}");
    }

    #[test]
    fn the_last_word_holds_until_it_is_taken_back() {
        let members = clients::listening(3);
        let address = clients::address(&members);
        steer(members[0].as_fd(), 3).expect("it is a group");
        steer(members[2].as_fd(), 1).expect("it is a group");
        first_is(0, &members);
        unsteer(members[1].as_fd()).expect("it is steered");
        let accepted = clients::accepted(&members, clients::connect(address, 200));
        assert!(accepted.iter().all(|&count| count > 20), "{accepted:?}");
        let again = unsteer(members[1].as_fd()).expect_err("nothing is steered");
        assert_eq!(again.raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn steering_to_more_than_there_are_loses_nothing() {
        let members = clients::listening(2);
        steer(members[0].as_fd(), 8).expect("it is a group");
        let address = clients::address(&members);
        let accepted = clients::accepted(&members, clients::connect(address, 200));
        assert_eq!(accepted.iter().sum::<usize>(), 200);
    }

    #[test]
    fn what_can_not_be_steered_is_an_invalid_argument() {
        let members = clients::listening(2);
        let nobody = steer(members[0].as_fd(), 0).expect_err("nobody would get anything");
        assert_eq!(nobody.raw_os_error(), Some(libc::EINVAL));
        let (alone, _) = std::os::unix::net::UnixStream::pair().expect("two sockets");
        let no_group = steer(alone.as_fd(), 1).expect_err("a group of none");
        assert!(no_group.raw_os_error().is_some(), "{no_group}");
    }

    #[test]
    fn members_stand_in_the_order_of_listening() {
        let first = clients::listening(1);
        let address = clients::address(&first);
        let bind = || {
            let socket = Socket::new(socket2::Domain::IPV4, Type::STREAM.nonblocking(), None)
                .expect("a socket");
            socket.set_reuse_port(true).expect("a socket");
            socket.bind(&address.into()).expect("it is ours");
            socket
        };
        let (bound_first, bound_last) = (bind(), bind());
        bound_last.listen(64).expect("it is bound");
        bound_first.listen(64).expect("it is bound");
        let mut members = first;
        members.extend([OwnedFd::from(bound_last), OwnedFd::from(bound_first)]);
        steer(members[0].as_fd(), 1).expect("it is a group");
        first_is(0, &members);
        SockRef::from(&members[0]).listen(64).expect("it is bound");
        first_is(0, &members);
        // Whoever is last comes to the place of the first.
        drop(members.remove(0));
        first_is(1, &members);
    }

    #[test]
    fn the_last_member_takes_the_place_of_one_that_is_closed() {
        let mut members = clients::listening(4);
        steer(members[0].as_fd(), 1).expect("it is a group");
        first_is(0, &members);
        drop(members.remove(0));
        // They were 0 to 3: 3 has come to the place of 0.
        first_is(2, &members);
        drop(members.remove(2));
        first_is(1, &members);
    }

    #[test]
    fn a_duplicate_keeps_a_member_in_its_place() {
        let mut members = clients::listening(2);
        steer(members[0].as_fd(), 1).expect("it is a group");
        let copy = members[0].try_clone().expect("a socket");
        drop(members.remove(0));
        members.insert(0, copy);
        first_is(0, &members);
        let late = listen_more(clients::address(&members), 1, &OPTIONS).expect("it is ours");
        members.extend(late);
        first_is(0, &members);
    }
}
