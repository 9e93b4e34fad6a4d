//! [`SimDriver`]: the simulated kernel as one worker sees it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::rc::Rc;
use std::time::Duration;

use super::kernel::{Kernel, Object, Waiter, Worker, os_error};
use super::ops::op_fd;
use super::tcp::{Phase, Readable};
use crate::address::Address;
use crate::ring::{
    Capabilities, Completion, Datagram, Driver, Fd, Group, Lane, Op, PipeEnds, Shutdown,
    SocketOptions, Token,
};
use crate::time::Instant;

/// One worker's kernel. Dropping it forgets its ops and its buffers, not its descriptors.
pub struct SimDriver {
    kernel: Rc<RefCell<Kernel>>,
    worker: usize,
}

impl SimDriver {
    pub(super) fn new(kernel: Rc<RefCell<Kernel>>) -> Self {
        let worker = {
            let workers = &mut kernel.borrow_mut().workers;
            workers.push(Worker::default());
            workers.len() - 1
        };
        Self { kernel, worker }
    }

    /// Which of the world's drivers this is, counted from 0.
    pub const fn index(&self) -> usize {
        self.worker
    }

    fn stream(&self, fd: Fd, what: &str) -> io::Result<usize> {
        self.kernel.borrow_mut().stream(self.worker, fd, what)
    }
}

impl Drop for SimDriver {
    fn drop(&mut self) {
        drop(self.abandon());
        // What is open may be another's from here on.
        let descriptors = &mut self.kernel.borrow_mut().descriptors;
        for descriptor in descriptors.values_mut() {
            descriptor.owner = descriptor.owner.filter(|owner| *owner != self.worker);
        }
    }
}

impl Driver for SimDriver {
    fn capabilities(&self) -> Capabilities {
        self.kernel.borrow().capabilities
    }

    fn now(&mut self) -> Instant {
        Instant::from_nanos(self.kernel.borrow().now)
    }

    /// Nothing takes any time.
    fn cpu_nanos(&mut self) -> u64 {
        0
    }

    fn most_buffers(&self) -> usize {
        usize::from(u16::MAX)
    }

    unsafe fn push(&mut self, op: Op, token: Token) {
        let mut kernel = self.kernel.borrow_mut();
        kernel.progressed = true;
        let worker = self.worker;
        // The completions of cancels are dropped, so that their tokens need not differ.
        let lanes = match op {
            Op::ReceiveDatagrams { .. } => [Lane::Datagrams; 2],
            _ => [Lane::Read, Lane::Write],
        };
        let lane = token.lane().filter(|lane| lanes.contains(lane));
        if let (Some(fd), Some(_)) = (op_fd(&op), lane) {
            kernel.object(worker, fd, "op");
            if !kernel.workers[worker].push(op, token, fd) {
                kernel.violate(format!("worker {worker}: {token:?} is in flight already"));
            } else if let Some(descriptor) = kernel.descriptors.get_mut(&fd) {
                descriptor.pending += 1;
            }
        } else if matches!(op, Op::Cancel { .. }) && token.lane() == Some(Lane::Cancel) {
            kernel.workers[worker].queued.push((op, token));
        } else {
            kernel.violate(format!("worker {worker}: {op:?} with {token:?}"));
        }
        if kernel.workers[worker].queued.len() >= QUEUE_ENTRIES {
            kernel.submit(worker);
        }
    }

    fn turn(
        &mut self,
        wait: Option<Duration>,
        max: usize,
        out: &mut Vec<Completion>,
    ) -> io::Result<()> {
        let mut kernel = self.kernel.borrow_mut();
        kernel.submit(self.worker);
        kernel.retry(self.worker);
        let got_some = kernel.reap(self.worker, max, out);
        // A wait of nothing ends in the future all the same, or the clock would stand still.
        let end = wait.map(|wait| Instant::from_nanos(kernel.now) + wait.max(SHORTEST_WAIT));
        let end = end.filter(|_| !got_some);
        kernel.workers[self.worker].deadline = end.map(Instant::as_nanos);
        Ok(())
    }

    unsafe fn provide(&mut self, group: Group, buffer: u16, start: NonNull<u8>, len: u32) {
        let mut kernel = self.kernel.borrow_mut();
        let worker = &mut kernel.workers[self.worker];
        let buffers = match group {
            Group::Stream => &mut worker.buffers,
            Group::Datagrams => &mut worker.datagram_buffers,
        };
        if let Err(what) = buffers.provide(buffer, start, len) {
            return kernel.violate(format!("worker {}: {what}", self.worker));
        }
        // Whoever still sends from this memory shall be found out.
        // SAFETY: by this function's contract the memory is valid for writes and only ours.
        unsafe { start.write_bytes(POISON, len as usize) };
    }

    fn is_quiescent(&mut self) -> bool {
        let kernel = self.kernel.borrow();
        kernel.workers[self.worker]
            .ready
            .values()
            .all(|completion| completion.buffer.is_none())
    }

    fn open(
        &mut self,
        to: &Address,
        source: Option<IpAddr>,
        _options: &SocketOptions,
    ) -> io::Result<Fd> {
        let mut kernel = self.kernel.borrow_mut();
        if kernel.exhausted() {
            return Err(os_error(libc::EMFILE));
        }
        if let (Some(to), Some(source)) = (to.as_ip(), source)
            && to.is_ipv4() != source.is_ipv4()
        {
            return Err(os_error(libc::EAFNOSUPPORT));
        }
        let latency = kernel.draw_latency();
        let endpoint = kernel.new_endpoint(latency, None);
        kernel.endpoints[endpoint].local = source.map(|ip| SocketAddr::new(ip, 0));
        Ok(kernel.new_fd(Object::Stream(endpoint), Some(self.worker), false))
    }

    fn open_datagrams(&mut self, to: SocketAddr, source: Option<IpAddr>) -> io::Result<Fd> {
        let mut kernel = self.kernel.borrow_mut();
        kernel.open_datagrams(self.worker, to, source)
    }

    fn send_datagrams(&mut self, fd: Fd, datagrams: &[Datagram<'_>]) -> io::Result<usize> {
        let mut kernel = self.kernel.borrow_mut();
        kernel.send_datagrams(self.worker, fd, datagrams)
    }

    fn connect_unix(&mut self, fd: Fd, address: &Address) -> io::Result<()> {
        let endpoint = self.stream(fd, "connect")?;
        let mut kernel = self.kernel.borrow_mut();
        kernel.connect_now(endpoint, address).map_err(os_error)
    }

    fn accept_now(&mut self, fd: Fd) -> io::Result<Fd> {
        let mut kernel = self.kernel.borrow_mut();
        match kernel.object(self.worker, fd, "accept") {
            Some(Object::Listener(member)) => {
                let accepted = kernel.accept_one(self.worker, member);
                accepted.map_err(os_error)
            }
            Some(_) => Err(os_error(libc::ENOTSOCK)),
            None => Err(os_error(libc::EBADF)),
        }
    }

    fn loses_ends(&mut self, _: Fd) -> bool {
        false
    }

    fn peer(&mut self, fd: Fd) -> io::Result<Option<SocketAddr>> {
        let endpoint = self.stream(fd, "peer")?;
        let kernel = self.kernel.borrow();
        let end = &kernel.endpoints[endpoint];
        match end.phase {
            Phase::Established => Ok(end.remote.as_ref().and_then(Address::as_ip)),
            // As inet_getname(): a connection that was reset has no other end.
            _ => Err(os_error(libc::ENOTCONN)),
        }
    }

    fn local(&mut self, fd: Fd) -> io::Result<Option<SocketAddr>> {
        let endpoint = self.stream(fd, "local")?;
        Ok(self.kernel.borrow().endpoints[endpoint].local)
    }

    fn open_pipe(&mut self) -> io::Result<PipeEnds> {
        let mut kernel = self.kernel.borrow_mut();
        if kernel.exhausted() {
            return Err(os_error(libc::EMFILE));
        }
        kernel.pipes.push(VecDeque::new());
        let pipe = Object::Pipe(kernel.pipes.len() - 1);
        let read = kernel.new_fd(pipe, Some(self.worker), false);
        let write = kernel.new_fd(pipe, Some(self.worker), false);
        Ok(PipeEnds {
            read,
            write,
            capacity: PIPE_BYTES,
        })
    }

    fn splice(&mut self, from: Fd, to: Fd, most: u32) -> io::Result<u32> {
        let mut kernel = self.kernel.borrow_mut();
        let from = kernel.object(self.worker, from, "splice");
        let to = kernel.object(self.worker, to, "splice");
        let moved = match (from, to) {
            (Some(Object::Stream(id)), Some(Object::Pipe(pipe))) => {
                kernel.splice_in(id, pipe, most as usize)
            }
            (Some(Object::Pipe(pipe)), Some(Object::Stream(id))) => {
                kernel.splice_out(pipe, id, most as usize)
            }
            _ => Err(libc::EINVAL),
        };
        kernel.progressed |= moved.is_ok();
        moved.map(|bytes| bytes as u32).map_err(os_error)
    }

    fn shutdown(&mut self, fd: Fd, how: Shutdown) {
        if let Ok(endpoint) = self.stream(fd, "shutdown") {
            self.kernel.borrow_mut().shutdown(endpoint, how);
        }
    }

    fn linger_zero(&mut self, fd: Fd) {
        if let Ok(endpoint) = self.stream(fd, "linger_zero") {
            self.kernel.borrow_mut().endpoints[endpoint].linger_zero = true;
        }
    }

    fn unacknowledged(&mut self, fd: Fd) -> u32 {
        let endpoint = self.stream(fd, "unacknowledged");
        endpoint.map_or(0, |id| self.kernel.borrow().unacknowledged(id))
    }

    fn progress(&mut self, fd: Fd) -> u64 {
        let endpoint = self.stream(fd, "progress");
        endpoint.map_or(0, |id| self.kernel.borrow().acknowledged(id))
    }

    fn is_gone(&mut self, fd: Fd) -> bool {
        let endpoint = self.stream(fd, "is_gone");
        endpoint.is_ok_and(|id| self.kernel.borrow().endpoints[id].phase == Phase::Dead)
    }

    fn abandon(&mut self) -> Vec<Completion> {
        let mut kernel = self.kernel.borrow_mut();
        // From here on the memory behind ops and buffers may be gone.
        let worker = std::mem::take(&mut kernel.workers[self.worker]);
        for op in worker.in_flight.values() {
            if let Some(descriptor) = kernel.descriptors.get_mut(&op.fd) {
                descriptor.pending -= 1;
            }
        }
        for (token, pending) in &worker.ops {
            let waiter = Waiter {
                worker: self.worker,
                token: Token::from_u64(*token),
            };
            kernel.leave(waiter, pending);
        }
        worker.ready.into_values().collect()
    }

    fn detach(&mut self, fd: Fd) -> io::Result<OwnedFd> {
        self.close(fd);
        Err(io::ErrorKind::Unsupported.into())
    }

    fn close(&mut self, fd: Fd) {
        let mut kernel = self.kernel.borrow_mut();
        let object = kernel.object(self.worker, fd, "close");
        let pending = kernel.descriptors.remove(&fd).map_or(0, |fd| fd.pending);
        if pending > 0 {
            kernel.violate(format!("{fd:?} was closed with {pending} ops pending"));
        }
        match object {
            Some(Object::Stream(id)) => kernel.close_endpoint(id),
            Some(Object::Listener(member)) => kernel.close_listener(member),
            Some(Object::Datagrams(id)) => kernel.close_datagrams(id),
            Some(Object::Signal(_) | Object::Pipe(_)) | None => {}
        }
    }
}

impl Kernel {
    /// Moves at most `max` completions that are due to `out`; whether there were any.
    fn reap(&mut self, worker: usize, max: usize, out: &mut Vec<Completion>) -> bool {
        let first = out.len();
        while out.len() - first < max
            && let Some(entry) = self.workers[worker].ready.first_entry()
            && entry.key().0 <= self.now
        {
            out.push(entry.remove());
        }
        let taken = &mut out[first..];
        self.disorder(taken, |one, next| one.token != next.token);
        for completion in taken.iter() {
            self.returned(worker, completion);
        }
        self.progressed |= !taken.is_empty();
        !taken.is_empty()
    }

    fn returned(&mut self, worker: usize, completion: &Completion) {
        let side = &mut self.workers[worker];
        if let Some(buffer) = completion.buffer {
            match completion.token.lane() {
                Some(Lane::Datagrams) => side.datagram_buffers.returned(buffer),
                _ => side.buffers.returned(buffer),
            }
        }
        if !completion.more
            && let Some(op) = side.in_flight.remove(&completion.token.as_u64())
            && let Some(descriptor) = self.descriptors.get_mut(&op.fd)
        {
            descriptor.pending -= 1;
        }
        let flags = u64::from(completion.more) << 1 | u64::from(completion.nonempty);
        let buffer = completion.buffer.map_or(u64::MAX, u64::from);
        let result = completion.result as u64;
        self.note(&[
            self.now,
            worker as u64,
            completion.token.as_u64(),
            result,
            flags,
            buffer,
        ]);
    }

    fn splice_in(&mut self, id: usize, pipe: usize, most: usize) -> Result<usize, i32> {
        match self.look(id) {
            Readable::Nothing => Err(libc::EAGAIN),
            Readable::End => Ok(0),
            Readable::Error(errno) => Err(errno),
            Readable::Bytes(available) => {
                let len = available.min(most);
                let bytes = self.endpoints[id].incoming.bytes.range(..len).copied();
                self.pipes[pipe].extend(bytes);
                self.consume(id, len);
                Ok(len)
            }
        }
    }

    fn splice_out(&mut self, pipe: usize, id: usize, most: usize) -> Result<usize, i32> {
        if let Some(errno) = self.send_error(id) {
            return Err(errno);
        }
        let len = self.space(id).min(most).min(self.pipes[pipe].len());
        if len == 0 {
            return Err(libc::EAGAIN);
        }
        let bytes: Vec<u8> = self.pipes[pipe].drain(..len).collect();
        self.put(id, &bytes);
        self.transmit(id);
        Ok(len)
    }

    /// connect(2) of a unix socket, or the errno.
    fn connect_now(&mut self, from: usize, to: &Address) -> Result<(), i32> {
        if self.endpoints[from].phase != Phase::Fresh {
            return Err(libc::EISCONN);
        }
        self.count_attempt(to);
        self.admit(from, to).map_err(|errno| match errno {
            libc::ETIMEDOUT => libc::EAGAIN,
            libc::EHOSTUNREACH => libc::ENOENT,
            other => other,
        })?;
        let end = &mut self.endpoints[from];
        end.remote = Some(to.clone());
        end.phase = Phase::Established;
        Ok(())
    }
}

/// What a pipe holds.
const PIPE_BYTES: u32 = 64 << 10;
/// Ops that fit before they are handed over; small, so that this happens in tests.
const QUEUE_ENTRIES: usize = 64;
/// What a buffer holds until it is filled.
const POISON: u8 = 0xdb;
const SHORTEST_WAIT: Duration = Duration::from_micros(1);
