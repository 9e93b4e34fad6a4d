//! The semantics of the simulated kernel, through the trait and nothing else.

mod datagrams;
mod distance;
mod hosts;

use std::net::SocketAddr;
use std::pin::Pin;
use std::ptr::NonNull;
use std::time::Duration;

use socket2::SockAddr;

use super::{Advance, BackendScript, ClientScript, Ending, Faults, SimDriver, Step, World};
use crate::address::Address;
use crate::ring::{
    Capabilities, Completion, Driver, Fd, Group, Lane, Op, Shutdown, SocketOptions, Token,
};
use crate::time::Instant;

/// A world with one driver, and the memory that was lent to it.
struct Rig {
    // Before the memory, because its drop ends the loan.
    driver: SimDriver,
    world: World,
    memory: Vec<Box<[u8]>>,
    addresses: Vec<Pin<Box<SockAddr>>>,
    next_slot: u32,
}

impl Rig {
    fn new(faults: Faults) -> Self {
        let world = World::new(7, faults);
        Self {
            driver: world.driver(),
            world,
            memory: Vec::new(),
            addresses: Vec::new(),
            next_slot: 0,
        }
    }

    /// Both ends of a connection of the driver with itself: connected, accepted.
    fn pair(&mut self) -> (Fd, Fd) {
        let listener = self.world.listen(&front(), 1)[0];
        let fd = self.open();
        let connect = self.connect(fd, &front());
        assert_eq!(result_of(&self.settle(), connect), [0]);
        let accept = self.push(Lane::Read, Op::Accept { fd: listener });
        let accepted = Fd(result_of(&self.turn(), accept)[0]);
        self.driver.close(listener);
        (fd, accepted)
    }

    fn open(&mut self) -> Fd {
        let options = SocketOptions::default();
        self.driver.open(&front(), None, &options).unwrap()
    }

    fn connect(&mut self, fd: Fd, to: &Address) -> Token {
        let address = Box::pin(SockAddr::from(to.as_ip().unwrap()));
        let op = Op::Connect {
            fd,
            address: &raw const *address,
        };
        self.addresses.push(address);
        self.push(Lane::Write, op)
    }

    fn push(&mut self, lane: Lane, op: Op) -> Token {
        self.next_slot += 1;
        let token = Token::new(lane, 1, self.next_slot);
        // SAFETY: what ops of these tests point to is kept in the rig, behind the driver.
        unsafe { self.driver.push(op, token) };
        token
    }

    fn cancel(&mut self, target: Token) -> Token {
        self.push(Lane::Cancel, Op::Cancel { target })
    }

    fn send(&mut self, fd: Fd, bytes: &[u8]) -> Token {
        let bytes: Box<[u8]> = bytes.into();
        let op = Op::Send {
            fd,
            data: bytes.as_ptr(),
            len: bytes.len() as u32,
        };
        self.memory.push(bytes);
        self.push(Lane::Write, op)
    }

    fn receive(&mut self, fd: Fd, budget: Option<u32>) -> Token {
        let op = Op::Recv {
            fd,
            budget,
            multishot: true,
            poll_first: false,
        };
        self.push(Lane::Read, op)
    }

    /// Provides `count` more buffers of `len` bytes, numbered on.
    fn provide(&mut self, count: u16, len: usize) {
        for number in 0..count {
            let mut memory = vec![0; len].into_boxed_slice();
            let start = NonNull::new(memory.as_mut_ptr()).unwrap();
            self.memory.push(memory);
            // SAFETY: the memory stays in the rig, behind the driver, and nobody touches it.
            unsafe {
                self.driver
                    .provide(Group::Stream, number, start, len as u32);
            };
        }
    }

    /// One turn without waiting.
    fn turn(&mut self) -> Vec<Completion> {
        let mut out = Vec::new();
        self.driver.turn(None, usize::MAX, &mut out).unwrap();
        out
    }

    /// Turns until nothing will happen any more.
    fn settle(&mut self) -> Vec<Completion> {
        let mut out = self.turn();
        while self.world.advance() != Advance::Quiet {
            out.extend(self.turn());
        }
        out
    }
}

fn front() -> Address {
    Address::Ip(SocketAddr::from(([127, 0, 0, 1], 80)))
}

fn back() -> Address {
    Address::Ip(SocketAddr::from(([127, 0, 0, 1], 8080)))
}

fn result_of(completions: &[Completion], token: Token) -> Vec<i32> {
    let of = completions.iter().filter(|c| c.token == token);
    of.map(|completion| completion.result).collect()
}

#[test]
fn fin_comes_after_the_bytes_and_ends_the_receive() {
    let mut rig = Rig::new(Faults::none());
    rig.provide(4, 4096);
    let (near, far) = rig.pair();
    let send = rig.send(near, &[1; 100]);
    assert_eq!(result_of(&rig.turn(), send), [100]);
    assert_eq!(rig.driver.unacknowledged(near), 100);
    rig.driver.shutdown(near, Shutdown::Write);
    assert_eq!(rig.driver.unacknowledged(near), 101);
    let receive = rig.receive(far, None);
    let completions = rig.settle();
    assert_eq!(result_of(&completions, receive), [100, 0]);
    assert!(!completions.last().unwrap().more);
    assert_eq!(rig.driver.unacknowledged(near), 0);
    let back = rig.send(far, &[2; 10]);
    assert_eq!(
        result_of(&rig.settle(), back),
        [10],
        "the other half is open"
    );
}

#[test]
fn bytes_stay_readable_after_a_reset_which_is_told_once() {
    let mut rig = Rig::new(Faults::none());
    rig.provide(4, 4096);
    let (near, far) = rig.pair();
    let _ = rig.send(far, &[9; 5]);
    let _ = rig.send(near, &[1; 100]);
    rig.settle();
    rig.driver.close(near); // with five bytes unread
    rig.settle();
    assert!(rig.driver.peer(far).is_err());
    let receive = rig.receive(far, None);
    assert_eq!(result_of(&rig.settle(), receive), [100, -libc::ECONNRESET]);
    let again = rig.receive(far, None);
    assert_eq!(result_of(&rig.settle(), again), [0]);
    let send = rig.send(far, &[1]);
    assert_eq!(result_of(&rig.settle(), send), [-libc::EPIPE]);
}

#[test]
fn linger_zero_forgets_what_has_not_arrived() {
    let mut rig = Rig::new(Faults::none());
    rig.provide(4, 4096);
    let (near, far) = rig.pair();
    let _ = rig.send(near, &[1; 100]);
    rig.turn();
    rig.driver.linger_zero(near);
    rig.driver.close(near);
    let receive = rig.receive(far, None);
    assert_eq!(result_of(&rig.settle(), receive), [-libc::ECONNRESET]);
}

#[test]
fn data_for_a_closed_socket_is_answered_with_a_reset() {
    let mut rig = Rig::new(Faults::none());
    rig.provide(4, 4096);
    let (near, far) = rig.pair();
    rig.driver.close(near);
    rig.settle();
    let _ = rig.send(far, &[1; 100]);
    rig.settle();
    let send = rig.send(far, &[1; 100]);
    assert_eq!(result_of(&rig.settle(), send), [-libc::EPIPE]);
}

#[test]
fn shutdown_for_reading_ends_a_pending_receive_and_sends_nothing() {
    let mut rig = Rig::new(Faults::none());
    rig.provide(4, 4096);
    let (near, far) = rig.pair();
    let (ends, stays) = (rig.receive(near, None), rig.receive(far, None));
    rig.settle();
    rig.driver.shutdown(near, Shutdown::Read);
    let completions = rig.settle();
    assert_eq!(result_of(&completions, ends), [0]);
    assert!(result_of(&completions, stays).is_empty());
}

#[test]
fn a_budget_ends_the_receive_after_the_buffer_that_passes_it() {
    let mut rig = Rig::new(Faults::none());
    rig.provide(8, 4096);
    let (near, far) = rig.pair();
    let _ = rig.send(near, &[1; 20_000]);
    rig.settle();
    let receive = rig.receive(far, Some(6000));
    let completions = rig.turn();
    assert_eq!(result_of(&completions, receive), [4096, 4096]);
    assert!(completions[0].more && !completions[1].more && completions[1].nonempty);
    assert_eq!(rig.world.buffers_held(), [2]);
}

#[test]
fn without_buffers_a_receive_fails_at_once_unless_it_polls_first() {
    let mut rig = Rig::new(Faults::none());
    let (near, far) = rig.pair();
    let blind = rig.receive(far, None);
    assert_eq!(result_of(&rig.turn(), blind), [-libc::ENOBUFS]);
    let op = Op::Recv {
        fd: far,
        budget: None,
        multishot: true,
        poll_first: true,
    };
    let waits = rig.push(Lane::Read, op);
    assert!(rig.settle().is_empty());
    let _ = rig.send(near, &[1; 10]);
    assert_eq!(result_of(&rig.settle(), waits), [-libc::ENOBUFS]);
    rig.provide(1, 4);
    let again = rig.receive(far, None);
    assert_eq!(result_of(&rig.settle(), again), [4, -libc::ENOBUFS]);
}

#[test]
fn a_cancelled_op_posts_its_own_last_completion() {
    let mut rig = Rig::new(Faults::none());
    rig.provide(4, 4096);
    let (near, far) = rig.pair();
    let receive = rig.receive(far, None);
    rig.turn();
    let cancel = rig.cancel(receive);
    let completions = rig.turn();
    assert_eq!(result_of(&completions, receive), [-libc::ECANCELED]);
    assert_eq!(result_of(&completions, cancel), [0]);
    let late = rig.cancel(receive);
    assert_eq!(result_of(&rig.turn(), late), [-libc::ENOENT]);

    let receive = rig.receive(far, None);
    let _ = rig.send(near, &[1; 10]);
    rig.turn();
    rig.world.advance();
    let _ = rig.cancel(receive);
    assert_eq!(
        result_of(&rig.turn(), receive),
        [10, -libc::ECANCELED],
        "what has come is delivered before"
    );
    assert_eq!(rig.world.pending_ops(), 0);
}

#[test]
fn a_send_takes_what_there_is_room_for_and_a_wait_ends_when_there_is_more() {
    let faults = Faults {
        receive_buffer: 4096,
        send_buffer: 8192,
        ..Faults::none()
    };
    let mut rig = Rig::new(faults);
    rig.provide(8, 4096);
    let (near, far) = rig.pair();
    let send = rig.send(near, &[1; 30_000]);
    assert_eq!(result_of(&rig.settle(), send), [8192]);
    let send = rig.send(near, &[1; 30_000]);
    assert_eq!(result_of(&rig.settle(), send), [4096]);
    let send = rig.send(near, &[1; 30_000]);
    assert_eq!(result_of(&rig.settle(), send), [-libc::EAGAIN]);
    let room = rig.push(Lane::Write, Op::WaitForRoom { fd: near });
    assert!(result_of(&rig.settle(), room).is_empty());
    let receive = rig.receive(far, Some(8192));
    let completions = rig.settle();
    assert_eq!(result_of(&completions, receive), [4096, 4096]);
    assert_eq!(result_of(&completions, room), [i32::from(libc::POLLOUT)]);
}

#[test]
fn a_wait_for_room_ends_with_the_peers_fin_though_there_is_none() {
    let faults = Faults {
        receive_buffer: 4096,
        send_buffer: 4096,
        ..Faults::none()
    };
    let mut rig = Rig::new(faults);
    let (near, far) = rig.pair();
    for _ in 0..2 {
        rig.send(near, &[1; 30_000]);
        rig.settle();
    }
    let room = rig.push(Lane::Write, Op::WaitForRoom { fd: near });
    assert!(result_of(&rig.settle(), room).is_empty());
    rig.driver.shutdown(far, Shutdown::Write);
    assert_eq!(result_of(&rig.settle(), room), [i32::from(libc::POLLRDHUP)]);
}

#[test]
fn a_reset_ends_a_wait_for_room_and_purges_what_was_not_sent() {
    let faults = Faults {
        receive_buffer: 4096,
        send_buffer: 4096,
        ..Faults::none()
    };
    let mut rig = Rig::new(faults);
    let (near, far) = rig.pair();
    for _ in 0..2 {
        rig.send(near, &[1; 30_000]);
        rig.settle();
    }
    let room = rig.push(Lane::Write, Op::WaitForRoom { fd: near });
    rig.settle();
    rig.driver.close(far); // with bytes unread
    let events = libc::POLLOUT | libc::POLLERR | libc::POLLHUP;
    assert_eq!(result_of(&rig.settle(), room), [i32::from(events)]);
    assert_eq!(rig.driver.unacknowledged(near), 0);
    let next = rig.send(near, &[1]);
    assert_eq!(result_of(&rig.settle(), next), [-libc::ECONNRESET]);
    let next = rig.send(near, &[1]);
    assert_eq!(result_of(&rig.settle(), next), [-libc::EPIPE]);
}

#[test]
fn sends_read_their_memory_when_bytes_move() {
    let mut rig = Rig::new(Faults::none());
    rig.world.backend(&back(), BackendScript::Sink);
    let fd = rig.open();
    let connect = rig.connect(fd, &back());
    assert_eq!(result_of(&rig.settle(), connect), [0]);
    let send = rig.send(fd, &[0; 8]);
    rig.memory.last_mut().unwrap()[0] = 5;
    assert_eq!(result_of(&rig.settle(), send), [8]);
    assert_eq!(rig.world.backend_sessions(&back())[0].stream, Some(5));
}

#[test]
fn vectored_sends_take_their_slices_in_order() {
    let mut rig = Rig::new(Faults::none());
    rig.world.backend(&back(), BackendScript::Sink);
    let fd = rig.open();
    rig.connect(fd, &back());
    rig.settle();
    let parts: [&[u8]; 3] = [&[3, 0, 0], &[], &[0, 0, 0, 0, 1]];
    let mut slices = parts.map(|part| libc::iovec {
        iov_base: part.as_ptr().cast_mut().cast(),
        iov_len: part.len(),
    });
    // SAFETY: all zeroes are a msghdr without anything.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = slices.as_mut_ptr();
    header.msg_iovlen = slices.len();
    let message = &raw const header;
    let send = rig.push(Lane::Write, Op::SendVectored { fd, message });
    assert_eq!(result_of(&rig.turn(), send), [8]);
    rig.settle();
    let stream = rig.world.backend_sessions(&back())[0].stream;
    assert_eq!(stream, Some(3 | 1 << 56));
}

#[test]
fn connecting_meets_what_the_backend_is() {
    let mut rig = Rig::new(Faults::none());
    let nobody = rig.open();
    let refused = rig.connect(nobody, &back());
    assert_eq!(result_of(&rig.settle(), refused), [-libc::ECONNREFUSED]);
    rig.world.backend(&back(), BackendScript::Unreachable);
    let fd = rig.open();
    let unreachable = rig.connect(fd, &back());
    assert_eq!(result_of(&rig.settle(), unreachable), [-libc::EHOSTUNREACH]);
    rig.world.backend(&back(), BackendScript::BlackHole);
    let fd = rig.open();
    let lost = rig.connect(fd, &back());
    assert!(rig.settle().is_empty());
    let _ = rig.cancel(lost);
    assert_eq!(result_of(&rig.settle(), lost), [-libc::ECANCELED]);
}

#[test]
fn a_full_accept_queue_drops_the_syn_which_comes_again() {
    let faults = Faults {
        backlog: 1,
        ..Faults::none()
    };
    let mut rig = Rig::new(faults);
    let listener = rig.world.listen(&front(), 1)[0];
    for _ in 0..2 {
        let script = ClientScript::new(vec![Step::Stall(None), Step::ReadToEnd]);
        rig.world.client(Instant::default(), &front(), script);
    }
    rig.world.advance();
    rig.world.advance();
    assert!(rig.driver.accept_now(listener).is_ok());
    assert!(rig.driver.accept_now(listener).is_err());
    let accept = rig.push(Lane::Read, Op::Accept { fd: listener });
    assert_eq!(result_of(&rig.settle(), accept).len(), 1);
    assert!(rig.world.now() > Instant::default() + Duration::from_secs(1));
}

#[test]
fn reuseport_members_share_the_connections_and_a_shared_multishot_does_not() {
    for (members, most) in [(4, 400), (1, 1000)] {
        let world = World::new(1, Faults::none());
        let listeners = world.listen(&front(), members);
        let mut drivers: Vec<_> = (0..4).map(|_| world.driver()).collect();
        for _ in 0..1000 {
            world.client(Instant::default(), &front(), ClientScript::new(Vec::new()));
        }
        for (at, driver) in drivers.iter_mut().enumerate() {
            let fd = listeners[at % members];
            // SAFETY: this op points to nothing.
            unsafe { driver.push(Op::AcceptMulti { fd }, Token::new(Lane::Read, 0, 0)) };
        }
        let mut taken = [0; 4];
        loop {
            for (driver, taken) in drivers.iter_mut().zip(&mut taken) {
                let mut out = Vec::new();
                driver.turn(None, 64, &mut out).unwrap();
                *taken += out.len();
            }
            if !world.progressed() && world.advance() == Advance::Quiet {
                break;
            }
        }
        assert_eq!(taken.iter().sum::<usize>(), 1000);
        assert!(*taken.iter().max().unwrap() <= most, "{taken:?}");
        assert_eq!(taken[0] == 1000, members == 1, "{taken:?}");
        assert!(world.violations().is_empty(), "{:?}", world.violations());
    }
}

#[test]
fn an_event_completes_a_pending_read_with_its_count() {
    let mut rig = Rig::new(Faults::none());
    let (fd, handle) = rig.world.event();
    let mut count = Box::new(0);
    let counter = &raw mut *count;
    let read = rig.push(Lane::Read, Op::ReadEvent { fd, counter });
    assert!(rig.settle().is_empty());
    handle.signal();
    handle.signal();
    assert_eq!(result_of(&rig.settle(), read), [8]);
    assert_eq!(*count, 2);
}

#[test]
fn the_clock_goes_to_the_deadline_of_a_waiting_worker() {
    let mut rig = Rig::new(Faults::none());
    let wait = Some(Duration::from_secs(3));
    rig.driver.turn(wait, 1, &mut Vec::new()).unwrap();
    let then = Instant::default() + Duration::from_secs(3);
    assert_eq!(rig.world.advance(), Advance::Moved(then));
    assert_eq!(rig.driver.now(), then);
    assert_eq!(rig.world.advance(), Advance::Quiet);
}

#[test]
fn a_unix_connection_has_no_other_end_by_name() {
    let mut rig = Rig::new(Faults::none());
    let path = Address::Unix(std::path::Path::new("/run/back.sock").into());
    let fd = rig.open();
    let refused = rig.driver.connect_unix(fd, &path).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ECONNREFUSED));
    rig.world
        .backend(&path, BackendScript::Greeting { bytes: 10 });
    rig.driver.connect_unix(fd, &path).unwrap();
    assert_eq!(rig.driver.peer(fd).unwrap(), None);
    rig.provide(1, 4096);
    let receive = rig.receive(fd, None);
    assert_eq!(result_of(&rig.settle(), receive), [10]);
}

#[test]
fn a_buffer_given_back_before_it_is_sent_shows_in_what_is_heard() {
    let mut rig = Rig::new(Faults::none());
    rig.world.backend(&back(), BackendScript::Echo);
    let fd = rig.open();
    rig.connect(fd, &back());
    rig.settle();
    rig.send(fd, &[0; 8]);
    rig.settle();
    rig.send(fd, &[0; 64]);
    let memory = rig.memory.last_mut().unwrap();
    let start = NonNull::new(memory.as_mut_ptr()).unwrap();
    // SAFETY: valid for 64 bytes; that they are being sent is the breach to be found.
    unsafe { rig.driver.provide(Group::Stream, 0, start, 64) };
    rig.settle();
    let session = &rig.world.backend_sessions(&back())[0];
    assert_eq!((session.received, session.intact), (72, false));
    assert_eq!(rig.world.violations().len(), 1);
}

#[test]
fn what_the_kernel_can_not_do_is_an_invalid_argument() {
    let mut rig = Rig::new(Faults::none());
    rig.provide(1, 64);
    let (_near, far) = rig.pair();
    rig.world.set_capabilities(Capabilities {
        multishot_recv: true,
        recv_budget: false,
        multishot_accept: false,
    });
    let budget = rig.receive(far, Some(100));
    let fd = rig.world.listen(&front(), 1)[0];
    let accept = rig.push(Lane::Read, Op::AcceptMulti { fd });
    let completions = rig.turn();
    assert_eq!(result_of(&completions, budget), [-libc::EINVAL]);
    assert_eq!(result_of(&completions, accept), [-libc::EINVAL]);
}

#[test]
fn without_descriptors_neither_open_nor_accept_succeeds() {
    let mut rig = Rig::new(Faults::none());
    let listener = rig.world.listen(&front(), 1)[0];
    rig.world.set_faults(Faults {
        exhausted: 10_000,
        ..Faults::none()
    });
    let opened = rig
        .driver
        .open(&back(), None, &SocketOptions::default())
        .unwrap_err();
    assert_eq!(opened.raw_os_error(), Some(libc::EMFILE));
    let accept = rig.push(Lane::Read, Op::AcceptMulti { fd: listener });
    assert_eq!(result_of(&rig.turn(), accept), [-libc::EMFILE]);
}

#[test]
fn breaches_of_the_contract_are_recorded() {
    let mut rig = Rig::new(Faults::none());
    let (near, far) = rig.pair();
    rig.provide(1, 64);
    rig.provide(1, 64); // the same number again
    let receive = rig.receive(far, None);
    rig.turn();
    let op = Op::Recv {
        fd: far,
        budget: None,
        multishot: false,
        poll_first: false,
    };
    // SAFETY: this op points to nothing.
    unsafe { rig.driver.push(op, receive) };
    let mut other = rig.world.driver();
    other.shutdown(near, Shutdown::Write);
    rig.driver.close(far);
    rig.driver.close(far);
    let found = rig.world.violations();
    let expected = [
        "while the kernel holds it",
        "in flight already",
        "of worker 0",
        "ops pending",
        "close on closed",
    ];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.contains(expected), "{found}");
    }
}
