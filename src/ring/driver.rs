//! The seam to the kernel. Two implementations: [`crate::ring::uring`] (an io_uring) and
//! [`crate::ring::sim`] (a simulated kernel with its own clock and a seed). Nothing above `ring/`
//! may assume which of them it runs on.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::time::Duration;

use super::op::{Completion, Fd, Group, Op, Token};
use crate::address::Address;
use crate::proto::datagram::Local;
use crate::time::Instant;

/// What the kernel under a driver can do; a missing one has a slower way round it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capabilities {
    /// Multishot receive (without: one op per buffer).
    pub multishot_recv: bool,
    /// A byte budget for multishot receive, Linux 6.17 (without: one op per buffer).
    pub recv_budget: bool,
    /// Multishot accept (without: one op per connection).
    pub multishot_accept: bool,
}

/// What a stream socket to a backend is set to before it is used. TCP_NODELAY is always on. (An
/// accepted socket inherits the options of its listener.)
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct SocketOptions {
    /// Idle time before keepalive probes; `None` = off.
    pub keepalive: Option<Duration>,
    /// Unacknowledged data for this long is an error; `None` = the system's.
    pub user_timeout: Option<Duration>,
}

/// A datagram to be sent, or several of one size.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// The payload.
    pub bytes: &'a [u8],
    /// To whom; `None` where the socket is connected.
    pub to: Option<SocketAddr>,
    /// The address of ours that it leaves from; `None` = what the socket is bound to.
    pub from: Option<Local>,
    /// `bytes` are datagrams of this size, the last of which may be smaller.
    pub segment: Option<u16>,
}

/// The two ends of a pipe.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PipeEnds {
    /// Bytes come out here.
    pub read: Fd,
    /// Bytes go in here.
    pub write: Fd,
    /// Bytes it holds.
    pub capacity: u32,
}

/// Which direction of a socket ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Shutdown {
    /// Sends FIN; receiving goes on.
    Write,
    /// Ends a pending receive with 0; nothing is sent.
    Read,
    /// Both.
    Both,
}

/// A kernel, as one worker sees it: ops that complete, buffers it may fill, and the few system
/// calls that are better made directly. Not shared between threads.
pub trait Driver {
    /// What this kernel can do.
    fn capabilities(&self) -> Capabilities;

    /// Buffers of [`Group::Stream`] that it can be provided with at once; of the other group,
    /// [`MOST_DATAGRAM_BUFFERS`](super::MOST_DATAGRAM_BUFFERS).
    fn most_buffers(&self) -> usize;

    /// The time now. Never goes back.
    fn now(&mut self) -> Instant;

    /// Nanoseconds that this thread was on a CPU, in user space and in the kernel, since it began.
    fn cpu_nanos(&mut self) -> u64;

    /// Queues `op`; it reaches the kernel at the latest with the next [`Driver::turn`]. When the
    /// queue is full it is handed over at once.
    ///
    /// # Safety
    /// All memory that `op` points to stays valid and where it is until the last completion
    /// (`more` = false) with `token` was returned by `turn`, or until the driver is dropped.
    unsafe fn push(&mut self, op: Op, token: Token);

    /// Submits what is queued, waits until there is a completion or `wait` is over (`None` = for
    /// ever, zero = not at all), and appends at most `max` completions to `out`. What is left over
    /// comes with the next turn. Being interrupted is not an error.
    ///
    /// # Errors
    /// The ring can't be used any more.
    fn turn(
        &mut self,
        wait: Option<Duration>,
        max: usize,
        out: &mut Vec<Completion>,
    ) -> io::Result<()>;

    /// Gives the kernel a buffer of `group` to receive into. It comes back in a completion's `buffer`.
    ///
    /// # Safety
    /// `start..start + len` is valid for writes and used by nobody else until the buffer comes
    /// back, or until the driver is dropped.
    unsafe fn provide(&mut self, group: Group, buffer: u16, start: NonNull<u8>, len: u32);

    /// No provided buffer has bytes in it whose completion has not been returned, and until the
    /// next turn none will. False when that can't be told.
    fn is_quiescent(&mut self) -> bool;

    /// A stream socket for `to`, non-blocking, close-on-exec, bound to `source` when given (with the port
    /// chosen at connect).
    ///
    /// # Errors
    /// As socket(2), bind(2) and setsockopt(2).
    fn open(
        &mut self,
        to: &Address,
        source: Option<IpAddr>,
        options: &SocketOptions,
    ) -> io::Result<Fd>;

    /// A datagram socket that is connected to `to`, and bound to `source` when given, that tells of
    /// datagrams joined by the kernel and of those it has lost.
    ///
    /// # Errors
    /// As socket(2), bind(2), connect(2) and setsockopt(2); when no local port is left EAGAIN, with a
    /// `source` EADDRINUSE.
    fn open_datagrams(&mut self, to: SocketAddr, source: Option<IpAddr>) -> io::Result<Fd>;

    /// Sends datagrams without waiting, in order. Returns how many were taken; fewer than all when one
    /// was not.
    ///
    /// # Errors
    /// As sendmsg(2), of the first one; EAGAIN when there is no room. What an earlier datagram has met
    /// (ICMP) may come up here, too.
    fn send_datagrams(&mut self, fd: Fd, datagrams: &[Datagram<'_>]) -> io::Result<usize>;

    /// Connects a unix socket, without waiting.
    ///
    /// # Errors
    /// As connect(2); EAGAIN when the backend's accept queue is full.
    fn connect_unix(&mut self, fd: Fd, address: &Address) -> io::Result<()>;

    /// One connection of a listening socket's queue, without waiting.
    ///
    /// # Errors
    /// As accept4(2); EAGAIN when the queue is empty.
    fn accept_now(&mut self, fd: Fd) -> io::Result<Fd>;

    /// The other end of an accepted or connected socket; `None` for unix sockets.
    ///
    /// # Errors
    /// As getpeername(2).
    fn peer(&mut self, fd: Fd) -> io::Result<Option<SocketAddr>>;

    /// The address of this machine that a stream socket has; `None` for unix sockets.
    ///
    /// # Errors
    /// As getsockname(2).
    fn local(&mut self, fd: Fd) -> io::Result<Option<SocketAddr>>;

    /// It is a unix socket whose end a multishot receive may miss.
    fn loses_ends(&mut self, fd: Fd) -> bool;

    /// A pipe, non-blocking, for [`Driver::splice`].
    ///
    /// # Errors
    /// As pipe2(2).
    fn open_pipe(&mut self) -> io::Result<PipeEnds>;

    /// Moves at most `most` bytes between a socket and a pipe without copying them and without
    /// waiting; 0 = FIN.
    ///
    /// # Errors
    /// As splice(2); EAGAIN when there is nothing to move, or no room.
    fn splice(&mut self, from: Fd, to: Fd, most: u32) -> io::Result<u32>;

    /// Ends one or both directions. An error is of no consequence: the socket is gone already.
    fn shutdown(&mut self, fd: Fd, how: Shutdown);

    /// From now on closing sends RST and forgets unsent data (SO_LINGER with 0 s).
    fn linger_zero(&mut self, fd: Fd);

    /// Bytes sent that the other end has not acknowledged (SIOCOUTQ); 0 when that can't be told.
    fn unacknowledged(&mut self, fd: Fd) -> u32;

    /// A number that changes whenever the other end acknowledges bytes (TCP_INFO).
    fn progress(&mut self, fd: Fd) -> u64;

    /// The connection is gone: TCP's state is CLOSE (TCP_INFO). False where there is no such state.
    fn is_gone(&mut self, fd: Fd) -> bool;

    /// No completion will be asked for any more: descriptors may be closed while ops are pending on them. All
    /// that ops and buffers point to has to stay. Returns what there is in completions.
    fn abandon(&mut self) -> Vec<Completion>;

    /// Lets go of the descriptor: it is the caller's from here on. No op is pending on it.
    ///
    /// # Errors
    /// It can't leave this kernel, which is a simulated one; it is closed.
    fn detach(&mut self, fd: Fd) -> io::Result<OwnedFd>;

    /// Closes the descriptor. No op is pending on it.
    fn close(&mut self, fd: Fd);

    /// Turns so far after which completions were waiting that the queue had no room for.
    fn overflows(&self) -> u64 {
        0
    }
}
