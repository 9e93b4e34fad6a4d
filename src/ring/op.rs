//! What is asked of the kernel and what it answers: [`Op`], [`Token`], [`Completion`].

use std::io;

use socket2::SockAddr;

/// A file descriptor's number. Plain data: the slot of the socket owns the descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Fd(pub i32);

impl Fd {
    /// No descriptor.
    pub(super) const NONE: Self = Self(-1);
}

/// An operation of a socket's slot. The memory behind every pointer is owned by that slot and
/// stays where it is until the last completion.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// Accept until cancelled or failed; one completion per connection, `result` = its descriptor.
    AcceptMulti {
        /// The listening socket.
        fd: Fd,
    },
    /// Accept one connection (listeners that several workers share).
    Accept {
        /// The listening socket.
        fd: Fd,
    },
    /// Receive into provided buffers. With `multishot`, one completion per buffer until the byte
    /// `budget` is used up (checked after each buffer, so that the last one may pass it), else one
    /// buffer. `result` = bytes; 0 = FIN; ENOBUFS = no buffer was left.
    Recv {
        /// The connected socket.
        fd: Fd,
        /// Bytes after which a multishot ends; `None` where the kernel has no budget.
        budget: Option<u32>,
        /// Go on after the first buffer.
        multishot: bool,
        /// Wait for readiness before the first try.
        poll_first: bool,
    },
    /// Receive datagrams into provided buffers of [`Group::Datagrams`], one each, as
    /// [`crate::proto::datagram`] describes, until the first failure or empty one. `result` = bytes of the
    /// buffer; ENOBUFS = no buffer was left. (Only multishot receive has this layout, Linux 6.0.)
    ReceiveDatagrams {
        /// The datagram socket.
        fd: Fd,
        /// The room for name and control messages.
        message: *const libc::msghdr,
        /// Wait for readiness before the first try.
        poll_first: bool,
    },
    /// Send without waiting: `result` = the bytes that there was room for, or EAGAIN. (Waiting for
    /// room within a send is not to be had: io_uring takes a peer's FIN for readiness to write, and
    /// after 128 tries in vain hands the send to a kernel thread.)
    Send {
        /// The connected socket.
        fd: Fd,
        /// The first byte.
        data: *const u8,
        /// Bytes.
        len: u32,
    },
    /// The same with several slices.
    SendVectored {
        /// The connected socket.
        fd: Fd,
        /// The message header; it names the slices.
        message: *const libc::msghdr,
    },
    /// Wait until there is room for a send. `result` = the events of poll(2); it ends without
    /// POLLOUT when the peer has sent FIN.
    WaitForRoom {
        /// The connected socket.
        fd: Fd,
    },
    /// Wait until there is something to receive, or the end. `result` = the events of poll(2).
    WaitForData {
        /// The connected socket.
        fd: Fd,
    },
    /// Connect a stream socket of the Internet families.
    Connect {
        /// The socket.
        fd: Fd,
        /// The backend's address.
        address: *const SockAddr,
    },
    /// Read the counter of an eventfd.
    ReadEvent {
        /// The eventfd.
        fd: Fd,
        /// Eight bytes.
        counter: *mut u64,
    },
    /// Cancel the op that was pushed with this token. Its own completion is of no interest; the
    /// target posts its last one.
    Cancel {
        /// The token of the op to end.
        target: Token,
    },
}

/// Which buffers: an op takes its buffer from one group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Group {
    /// For the bytes of streams.
    Stream = 0,
    /// For datagrams.
    Datagrams = 1,
}

/// Which op of a slot a completion belongs to. The two directions of a socket are different lanes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Lane {
    /// Recv, WaitForData, Accept, AcceptMulti and ReadEvent.
    Read = 1,
    /// Send, SendVectored, WaitForRoom and Connect.
    Write = 2,
    /// Cancel; its completions are dropped.
    Cancel = 3,
    /// ReceiveDatagrams.
    Datagrams = 4,
}

/// The user_data of an op: lane (8 bits), the slot's generation (24 bits), the slot (32 bits).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Token(u64);

impl Token {
    /// Builds a token; of `generation` the low 24 bits count.
    pub const fn new(lane: Lane, generation: u32, slot: u32) -> Self {
        Self((lane as u64) << 56 | ((generation & 0xff_ffff) as u64) << 32 | slot as u64)
    }

    /// The lane; `None` for a number that no token has.
    pub const fn lane(self) -> Option<Lane> {
        match self.0 >> 56 {
            1 => Some(Lane::Read),
            2 => Some(Lane::Write),
            3 => Some(Lane::Cancel),
            4 => Some(Lane::Datagrams),
            _ => None,
        }
    }

    /// The low 24 bits of the slot's generation.
    pub const fn generation(self) -> u32 {
        (self.0 >> 32) as u32 & 0xff_ffff
    }

    /// The slot's index.
    pub const fn slot(self) -> u32 {
        self.0 as u32
    }

    /// As the kernel carries it.
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// From what the kernel carried.
    pub const fn from_u64(user_data: u64) -> Self {
        Self(user_data)
    }
}

/// The kernel's answer to an op.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// The token the op was pushed with.
    pub token: Token,
    /// Bytes, a descriptor or zero; or a negated errno.
    pub result: i32,
    /// More completions of the same op will follow.
    pub more: bool,
    /// The provided buffer that was filled; it is the receiver's until it is provided again.
    pub buffer: Option<u16>,
    /// The socket had more to read after this one.
    pub nonempty: bool,
}

impl Completion {
    /// The result as the standard library says it.
    pub fn to_result(self) -> io::Result<u32> {
        u32::try_from(self.result).map_err(|_| io::Error::from_raw_os_error(-self.result))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_carries_its_three_parts_and_tells_the_lanes_apart() {
        for lane in [Lane::Read, Lane::Write, Lane::Cancel, Lane::Datagrams] {
            let token = Token::new(lane, 0x1ab_cdef, u32::MAX);
            assert_eq!(token.lane(), Some(lane));
            assert_eq!(token.generation(), 0xab_cdef);
            assert_eq!(token.slot(), u32::MAX);
            assert_eq!(Token::from_u64(token.as_u64()), token);
        }
        assert_eq!(Token::from_u64(0).lane(), None);
    }
}
