//! What an op becomes in the submission queue, and the allow-list of a ring: it may do what is built
//! here and nothing else. It owns neither the queue nor what an entry points to.

use io_uring::opcode;
use io_uring::register::Restriction;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{self, CancelBuilder};

use super::op::{Group, Op};
use super::setup;

/// Builds the entry of an op. What is new here goes into [`SQE_OPERATIONS`], too.
pub(super) fn entry(op: Op) -> Entry {
    const STREAM: i32 = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    match op {
        Op::AcceptMulti { fd } => opcode::AcceptMulti::new(types::Fd(fd.0))
            .flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)
            .build(),
        Op::Accept { fd } => {
            opcode::Accept::new(types::Fd(fd.0), std::ptr::null_mut(), std::ptr::null_mut())
                .flags(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK)
                .build()
        }
        Op::Recv {
            fd,
            budget,
            multishot: true,
            poll_first,
        } => {
            let entry = opcode::RecvMulti::new(types::Fd(fd.0), Group::Stream as u16).build();
            with_receive_fields(entry, poll_first, budget.unwrap_or(0))
        }
        Op::Recv { fd, poll_first, .. } => {
            let entry = opcode::Recv::new(types::Fd(fd.0), std::ptr::null_mut(), 0)
                .buf_group(Group::Stream as u16)
                .build();
            with_receive_fields(entry.flags(Flags::BUFFER_SELECT), poll_first, 0)
        }
        Op::ReceiveDatagrams {
            fd,
            message,
            poll_first,
        } => opcode::RecvMsgMulti::new(types::Fd(fd.0), message, Group::Datagrams as u16)
            .ioprio(if poll_first { POLL_FIRST } else { 0 })
            .build(),
        Op::Send { fd, data, len } => opcode::Send::new(types::Fd(fd.0), data, len)
            .flags(STREAM)
            .build(),
        Op::SendVectored { fd, message } => opcode::SendMsg::new(types::Fd(fd.0), message)
            .flags(STREAM as u32)
            .build(),
        Op::WaitForRoom { fd } => {
            opcode::PollAdd::new(types::Fd(fd.0), libc::POLLOUT as u32).build()
        }
        Op::WaitForData { fd } => {
            opcode::PollAdd::new(types::Fd(fd.0), libc::POLLIN as u32).build()
        }
        Op::Connect { fd, address } => {
            // SAFETY: the contract of `Driver::push`: the address lives until the last completion.
            let address = unsafe { &*address };
            opcode::Connect::new(types::Fd(fd.0), address.as_ptr().cast(), address.len()).build()
        }
        Op::ReadEvent { fd, counter } => {
            opcode::Read::new(types::Fd(fd.0), counter.cast(), 8).build()
        }
        Op::Cancel { target } => {
            opcode::AsyncCancel2::new(CancelBuilder::user_data(target.as_u64())).build()
        }
    }
}

/// The operations of [`entry`].
pub(super) const SQE_OPERATIONS: [u8; 9] = [
    opcode::Accept::CODE,
    opcode::Recv::CODE,
    opcode::RecvMsg::CODE,
    opcode::Send::CODE,
    opcode::SendMsg::CODE,
    opcode::PollAdd::CODE,
    opcode::Connect::CODE,
    opcode::Read::CODE,
    opcode::AsyncCancel::CODE,
];

/// The flags of [`entry`].
const SQE_FLAGS: Flags = Flags::BUFFER_SELECT;

/// What a ring may do once it is enabled.
pub(super) fn allowed() -> Vec<Restriction> {
    /// IORING_REGISTER_ENABLE_RINGS, which does nothing to a ring that is enabled. A list without any
    /// register op could be read as one that doesn't speak of them.
    const ENABLE_RINGS: u8 = 12;
    /// IORING_UNREGISTER_RING_FDS, which the ring's end needs.
    const UNREGISTER_RING_FDS: u8 = setup::UNREGISTER_RING_FDS as u8;
    let operations = SQE_OPERATIONS.into_iter().map(Restriction::sqe_op);
    let rest = [
        Restriction::sqe_flags_allowed(SQE_FLAGS.bits()),
        Restriction::register_op(ENABLE_RINGS),
        Restriction::register_op(UNREGISTER_RING_FDS),
    ];
    operations.chain(rest).collect()
}

/// IORING_RECVSEND_POLL_FIRST.
const POLL_FIRST: u16 = 1;

const _: () = assert!(size_of::<Entry>() == size_of::<[u8; 64]>());

/// The crate's multishot receive has no field for `ioprio` (POLL_FIRST) nor for the byte budget,
/// which the kernel reads from `optlen`: both are set in the entry's bytes.
fn with_receive_fields(entry: Entry, poll_first: bool, budget: u32) -> Entry {
    const IOPRIO: usize = 2;
    const OPTLEN: usize = 44;
    // SAFETY: an Entry is the 64 bytes of io_uring_sqe (checked above), plain data in both views.
    let mut bytes: [u8; 64] = unsafe { std::mem::transmute(entry) };
    let ioprio = u16::from_ne_bytes([bytes[IOPRIO], bytes[IOPRIO + 1]])
        | if poll_first { POLL_FIRST } else { 0 };
    bytes[IOPRIO..IOPRIO + 2].copy_from_slice(&ioprio.to_ne_bytes());
    bytes[OPTLEN..OPTLEN + 4].copy_from_slice(&budget.to_ne_bytes());
    // SAFETY: as above, and every value of these two fields is one that the kernel checks.
    unsafe { std::mem::transmute(bytes) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ptr;

    use super::*;
    use crate::ring::op::{Fd, Token};

    const FD: Fd = Fd(0);

    /// One of each kind; a new kind doesn't compile until it has a place here.
    fn after(op: Option<&Op>) -> Option<Op> {
        let recv = |multishot| Op::Recv {
            fd: FD,
            budget: Some(1),
            multishot,
            poll_first: true,
        };
        Some(match op {
            None => Op::AcceptMulti { fd: FD },
            Some(Op::AcceptMulti { .. }) => Op::Accept { fd: FD },
            Some(Op::Accept { .. }) => recv(true),
            Some(Op::Recv {
                multishot: true, ..
            }) => recv(false),
            Some(Op::Recv { .. }) => Op::ReceiveDatagrams {
                fd: FD,
                message: ptr::null(),
                poll_first: true,
            },
            Some(Op::ReceiveDatagrams { .. }) => Op::Send {
                fd: FD,
                data: ptr::null(),
                len: 0,
            },
            Some(Op::Send { .. }) => Op::SendVectored {
                fd: FD,
                message: ptr::null(),
            },
            Some(Op::SendVectored { .. }) => Op::WaitForRoom { fd: FD },
            Some(Op::WaitForRoom { .. }) => Op::WaitForData { fd: FD },
            Some(Op::WaitForData { .. }) => Op::Connect {
                fd: FD,
                address: ptr::from_ref(Box::leak(Box::new(socket2::SockAddr::from(
                    std::net::SocketAddr::from(([127, 0, 0, 1], 1)),
                )))),
            },
            Some(Op::Connect { .. }) => Op::ReadEvent {
                fd: FD,
                counter: ptr::null_mut(),
            },
            Some(Op::ReadEvent { .. }) => Op::Cancel {
                target: Token::from_u64(0),
            },
            Some(Op::Cancel { .. }) => return None,
        })
    }

    /// The first two bytes of `io_uring_sqe`: opcode and flags.
    fn head(entry: Entry) -> (u8, u8) {
        // SAFETY: an Entry is the 64 bytes of io_uring_sqe (checked above), plain data in both views.
        let bytes: [u8; 64] = unsafe { std::mem::transmute(entry) };
        (bytes[0], bytes[1])
    }

    #[test]
    fn what_can_be_built_is_what_is_allowed() {
        let ops = std::iter::successors(after(None), |op| after(Some(op)));
        let (operations, flags): (BTreeSet<u8>, Vec<u8>) = ops.map(|op| head(entry(op))).unzip();
        assert_eq!(operations, BTreeSet::from(SQE_OPERATIONS));
        let flags = flags.into_iter().fold(0, |all, flags| all | flags);
        assert_eq!(flags, SQE_FLAGS.bits());
    }
}
