//! Receiving datagrams as io_uring does it (io_recvmsg() and io_recvmsg_multishot() of io_uring/net.c):
//! a buffer is chosen before the socket is looked at, and the socket gives no hint whether there is more,
//! so that a multishot receive goes on until it finds nothing, or no buffer.

use std::net::SocketAddr;
use std::ptr;

use super::super::buffers::Buffer;
use super::super::kernel::{Kernel, Pending, Waiter};
use super::super::ops::{Outcome, RECEIVES_PER_TRY};
use super::control::{self, Control};
use super::{Arrived, Socket};
use crate::ring::{Completion, Op};

/// Where things go in a buffer.
struct Room {
    name: usize,
    control: usize,
    payload: usize,
}

impl Kernel {
    pub(in crate::ring::sim) fn try_receive_datagrams(
        &mut self,
        waiter: Waiter,
        pending: &mut Pending,
        id: usize,
    ) -> Outcome {
        let Op::ReceiveDatagrams {
            message,
            poll_first,
            ..
        } = pending.op
        else {
            unreachable!("no other op receives datagrams");
        };
        let waits_first = std::mem::take(&mut pending.fresh) && poll_first;
        if waits_first && !self.net.sockets[id].has_something() {
            return Outcome::Wait;
        }
        for _ in 0..RECEIVES_PER_TRY {
            let empty = self.workers[waiter.worker].datagram_buffers.is_empty();
            let result = match self.receive_fault(empty, true) {
                Some(errno) => Err(errno),
                None => self.receive_one(waiter, id, message),
            };
            match result {
                Ok(true) => {}
                Ok(false) => return Outcome::Done,
                Err(libc::EAGAIN) => return Outcome::Wait,
                Err(errno) => {
                    self.end(waiter, -errno);
                    return Outcome::Done;
                }
            }
        }
        Outcome::Again
    }

    /// Fills one buffer and posts it; true when the receive goes on. EAGAIN when there is nothing.
    fn receive_one(
        &mut self,
        waiter: Waiter,
        id: usize,
        message: *const libc::msghdr,
    ) -> Result<bool, i32> {
        let buffers = &mut self.workers[waiter.worker].datagram_buffers;
        let len = buffers.next_len().ok_or(libc::ENOBUFS)?;
        let room = Room::of(message, len).ok_or(libc::EFAULT)?;
        let socket = &mut self.net.sockets[id];
        let arrived = socket.take()?;
        let (number, buffer) = buffers.take().ok_or(libc::ENOBUFS)?;
        write_head(&buffer, &room, socket, &arrived);
        let fits = arrived.bytes.len().min(buffer.len - room.payload);
        write(&buffer, room.payload, &arrived.bytes[..fits]);
        self.net.traffic.received += arrived.count();
        // As io_recvmsg_multishot(): a datagram without bytes is taken for the end.
        let goes_on = !arrived.bytes.is_empty();
        let more = goes_on && !self.random.chance(self.faults.receive_ends);
        let completion = Completion {
            token: waiter.token,
            result: (room.payload + fits) as i32,
            more,
            buffer: Some(number),
            nonempty: false,
        };
        self.post(waiter.worker, completion);
        Ok(more)
    }
}

impl Socket {
    /// The oldest datagram, or the pending error, which comes first; EAGAIN when there is neither.
    fn take(&mut self) -> Result<Arrived, i32> {
        if let Some(errno) = self.error.take() {
            return Err(errno);
        }
        let arrived = self.queue.pop_front().ok_or(libc::EAGAIN)?;
        self.queued_bytes -= arrived.cost();
        Ok(arrived)
    }

    /// An address as this socket's family has it.
    fn as_told(&self, address: SocketAddr) -> SocketAddr {
        match address {
            SocketAddr::V4(v4) if self.local.is_ipv6() => {
                (v4.ip().to_ipv6_mapped(), v4.port()).into()
            }
            _ => address,
        }
    }

    fn control(&self, arrived: &Arrived, room: usize) -> Control {
        let mut control = Control::new(room);
        if arrived.lost > 0 {
            control.put_int(libc::SOL_SOCKET, libc::SO_RXQ_OVFL, arrived.lost);
        }
        if let Some(size) = arrived.segment {
            control.put_int(libc::SOL_UDP, libc::UDP_GRO, u32::from(size));
        }
        if self.local.ip().is_unspecified() {
            let to = self.as_told(SocketAddr::new(arrived.to, 0));
            control.put_local(to.ip(), INTERFACE);
        }
        control
    }
}

impl Room {
    /// In a buffer of `len` bytes; `None` when it is too short.
    fn of(message: *const libc::msghdr, len: usize) -> Option<Self> {
        // SAFETY: by the contract of `Driver::push` the header is valid until the last completion of its
        // op, which has not posted one.
        let header = unsafe { message.read() };
        let name = control::HEADER;
        let control = name + header.msg_namelen as usize;
        let payload = control + header.msg_controllen;
        (payload <= len).then_some(Self {
            name,
            control,
            payload,
        })
    }
}

/// `struct io_uring_recvmsg_out`, then name and control messages. What is not used of their room stays as
/// it was.
fn write_head(buffer: &Buffer, room: &Room, socket: &Socket, arrived: &Arrived) {
    let name_room = room.control - room.name;
    let name = match name_room {
        0 => Vec::new(),
        _ => control::name(socket.as_told(arrived.from)),
    };
    let control = socket.control(arrived, room.payload - room.control);
    let payload = arrived.bytes.len().min(buffer.len - room.payload);
    let mut flags = 0;
    if payload < arrived.bytes.len() {
        flags |= libc::MSG_TRUNC;
    }
    if control.is_cut {
        flags |= libc::MSG_CTRUNC;
    }
    let words = [name.len(), control.bytes.len(), payload, flags as usize];
    let head: Vec<u8> = words
        .iter()
        .flat_map(|word| (*word as u32).to_ne_bytes())
        .collect();
    write(buffer, 0, &head);
    write(buffer, room.name, &name[..name.len().min(name_room)]);
    write(buffer, room.control, &control.bytes);
}

fn write(buffer: &Buffer, at: usize, bytes: &[u8]) {
    assert!(at + bytes.len() <= buffer.len, "the buffer's end");
    // SAFETY: `at` is within the buffer or one past its end.
    let start = unsafe { buffer.start.as_ptr().add(at) };
    // SAFETY: `Driver::provide` gave `buffer.len` bytes for the kernel alone, until the completion is
    // returned that is posted after this.
    unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), start, bytes.len()) };
}

/// The loopback.
const INTERFACE: u32 = 1;
