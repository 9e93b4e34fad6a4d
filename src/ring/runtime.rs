//! [`Ring`]: the handle that everything above holds. It spawns tasks, tells the time, opens
//! sockets, and turns.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use socket2::SockAddr;

use super::buffers::BUFFER_BYTES;
use super::core::Core;
use super::driver::{Driver, SocketOptions};
use super::executor::{Executor, Task, TaskId};
use super::meter::Meter;
use super::op::{Completion, Fd};
use super::slots::{LaneState, Memory, Receives};
use super::socket::{Event, Listener, Socket};
use super::timers::TimerId;
use crate::address::{Address, canonical};
use crate::time::Instant;

/// Completions booked in one turn: the ring's batching is at its best from 32 on, and timers and
/// accepts shall get their share.
const COMPLETIONS_PER_TURN: usize = 256;

/// A worker's runtime: one ring, its tasks, its timers. A clone is another handle to the same.
#[derive(Clone)]
pub struct Ring(Rc<Inner>);

struct Inner {
    core: RefCell<Core>,
    executor: Executor,
    running: Cell<TaskId>,
    completions: RefCell<Vec<Completion>>,
    /// A panic came out of the core.
    broken: Cell<bool>,
}

/// What a ring has in use; all zero after a complete shutdown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// Tasks that have not ended.
    pub tasks: usize,
    /// Descriptors with a slot.
    pub slots: usize,
    /// Receive buffers that sessions hold.
    pub buffers: usize,
    /// Timers that exist.
    pub timers: usize,
    /// Bytes that were made here and are being sent.
    pub staged: usize,
}

impl Ring {
    /// A runtime on `driver` with at most `buffer_memory` bytes of receive buffers.
    pub fn new(driver: Box<dyn Driver>, buffer_memory: u64) -> Self {
        let most_buffers =
            usize::try_from(buffer_memory / u64::from(BUFFER_BYTES)).unwrap_or(usize::MAX);
        let most_buffers = most_buffers.min(driver.most_buffers());
        Self(Rc::new(Inner {
            core: RefCell::new(Core::new(driver, most_buffers)),
            executor: Executor::default(),
            running: Cell::new(TaskId::NONE),
            completions: RefCell::new(Vec::with_capacity(COMPLETIONS_PER_TURN)),
            broken: Cell::new(false),
        }))
    }

    /// The time as of this turn.
    pub fn now(&self) -> Instant {
        self.0.core.borrow().now
    }

    /// Turns so far.
    pub fn turns(&self) -> u64 {
        self.0.core.borrow().turns
    }

    /// What is in use.
    pub fn usage(&self) -> Usage {
        let core = self.0.core.borrow();
        Usage {
            tasks: self.0.executor.len(),
            slots: core.slots.len(),
            buffers: core.buffers.held() + core.datagrams.held(),
            timers: core.timers.len(),
            staged: core.staging.in_use,
        }
    }

    /// Tells `meter` about its turns from now on.
    pub fn tell(&self, meter: Arc<Meter>) {
        self.with(|core| core.meter = meter);
    }

    /// Starts a task; it is polled in this turn or the next.
    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        let task = self.0.executor.insert(future);
        self.with(|core| core.queue.admit(task));
    }

    /// Polls every task once more, so that each can look at what changed.
    pub fn wake_all(&self) {
        self.with(|core| core.queue.wake_all());
    }

    /// One turn: submit, wait for a completion or the next timer, book, then poll each task that
    /// was woken once.
    ///
    /// # Errors
    /// The ring can't be used any more.
    pub fn turn(&self) -> io::Result<()> {
        self.turn_until(None)
    }

    /// A turn that waits no longer than until `latest`, for a loop that keeps a schedule of its own
    /// which is finer than a timer's tick. `None` = a plain turn.
    ///
    /// # Errors
    /// The ring can't be used any more.
    pub fn turn_until(&self, latest: Option<Instant>) -> io::Result<()> {
        let mut completions = self.0.completions.borrow_mut();
        self.with(|core| {
            core.provide();
            let wait = if core.queue.len() > 0 || core.hungry {
                Some(Duration::ZERO)
            } else {
                let deadline = core.next_deadline().into_iter().chain(latest).min();
                let now = core.driver.now();
                deadline.map(|deadline| deadline - now)
            };
            core.driver
                .turn(wait, COMPLETIONS_PER_TURN, &mut completions)?;
            core.now = core.driver.now();
            core.turns += 1;
            core.measure(completions.len(), &self.0.executor);
            for completion in &*completions {
                core.complete(completion);
            }
            core.tick();
            io::Result::Ok(())
        })?;
        let fresh = !completions.is_empty();
        completions.clear();
        drop(completions);
        self.poll_woken();
        self.with(|core| core.feed_starved(fresh));
        Ok(())
    }

    /// Polls each woken task once, then each that those have started or woken: a new session gets
    /// its first ops into this turn's submission.
    fn poll_woken(&self) {
        for _ in 0..2 {
            for _ in 0..self.with(|core| core.queue.len()) {
                let Some(task) = self.with(|core| core.queue.pop()) else {
                    break;
                };
                self.0.running.set(task);
                self.0.executor.poll(task);
            }
        }
        self.0.running.set(TaskId::NONE);
    }

    /// Ends every task where it stands. Every socket that a task owned is closed as soon as the
    /// kernel's last completions have come: that takes a few more turns.
    pub fn end_tasks(&self) {
        self.0.executor.clear();
        self.with(Core::close_spare_pipes);
    }

    /// Ends every task and turns until the kernel has nothing of ours, `most_turns` at most.
    ///
    /// # Errors
    /// The ring can't be used any more.
    pub fn shutdown(&self, most_turns: usize) -> io::Result<()> {
        self.end_tasks();
        for _ in 0..most_turns {
            if self.usage().slots == 0 {
                break;
            }
            self.turn()?;
        }
        Ok(())
    }

    /// How others on this worker wake the calling task.
    pub fn waker(&self) -> Waker {
        Waker {
            ring: self.clone(),
            task: self.running(),
        }
    }

    /// A timer of the calling task, not set.
    pub fn timer(&self) -> Timer {
        let id = self.with(|core| core.timers.create());
        Timer {
            ring: self.clone(),
            id,
        }
    }

    /// Waits until `deadline`.
    pub async fn sleep_until(&self, deadline: Instant) {
        let timer = self.timer();
        timer.set(deadline);
        poll_fn(|_| {
            if self.now() >= deadline {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Takes over an accepted or otherwise connected stream socket; it is closed when the
    /// [`Socket`] goes.
    pub fn adopt(&self, fd: Fd) -> Socket {
        let one_shot = self.with(|core| core.driver.loses_ends(fd));
        self.take_over(fd, one_shot)
    }

    /// [`Ring::adopt`], where it is known already whether to receive a buffer at a time.
    pub(super) fn take_over(&self, fd: Fd, one_shot: bool) -> Socket {
        let index = self.with(|core| {
            let index = core.slots.insert(fd);
            core.slots[index].receives = Receives::stream(one_shot);
            index
        });
        Socket::new(self.clone(), index)
    }

    /// Takes over a listening socket. `shared`: other workers accept from the same one.
    pub fn listener(&self, fd: Fd, shared: bool) -> Listener {
        self.listener_with(fd, shared, Vec::new())
    }

    /// The same, where connections were accepted already.
    pub fn listener_with(&self, fd: Fd, shared: bool, accepted: Vec<Fd>) -> Listener {
        let index = self.with(|core| {
            let index = core.slots.insert(fd);
            core.slots[index].receives = Receives::stream(core.driver.loses_ends(fd));
            core.slots[index].memory = Some(Box::new(Memory::Accepted(accepted.into())));
            index
        });
        Listener::new(self.clone(), index, shared)
    }

    /// Takes over an eventfd.
    pub fn event(&self, fd: Fd) -> Event {
        let index = self.with(|core| {
            let index = core.slots.insert(fd);
            core.slots[index].memory = Some(Box::new(Memory::Counter {
                counter: 0,
                signalled: false,
            }));
            index
        });
        Event::new(self.clone(), index)
    }

    /// Who is at the other end of an accepted socket; `None` = a unix socket. Over IPv4 it has an IPv4
    /// address, also where the listener takes both families and the kernel maps it into IPv6.
    ///
    /// # Errors
    /// The connection is gone already.
    pub fn peer(&self, socket: &Socket) -> io::Result<Option<SocketAddr>> {
        let peer = self.with(|core| {
            let fd = core.slots[socket.index()].fd;
            core.driver.peer(fd)
        })?;
        Ok(peer.map(canonical))
    }

    /// The address of this machine that an accepted socket is connected to; `None` = a unix socket. IPv4 as in
    /// [`Ring::peer`].
    ///
    /// # Errors
    /// As getsockname(2).
    pub fn local(&self, socket: &Socket) -> io::Result<Option<SocketAddr>> {
        let local = self.with(|core| {
            let fd = core.slots[socket.index()].fd;
            core.driver.local(fd)
        })?;
        Ok(local.map(canonical))
    }

    /// Connects a stream socket. Dropping the future gives up the attempt.
    ///
    /// # Errors
    /// As connect(2); ETIMEDOUT at `deadline`.
    pub async fn connect(
        &self,
        address: &Address,
        source: Option<IpAddr>,
        options: &SocketOptions,
        deadline: Instant,
    ) -> io::Result<Socket> {
        let fd = self.with(|core| core.driver.open(address, source, options))?;
        let socket = self.take_over(fd, matches!(address, Address::Unix(_)));
        let target = match address {
            Address::Unix(_) => {
                self.with(|core| core.driver.connect_unix(fd, address))?;
                return Ok(socket);
            }
            Address::Ip(target) => SockAddr::from(*target),
        };
        self.with(|core| core.arm_connect(socket.index(), target));
        let timer = self.timer();
        timer.set(deadline);
        poll_fn(|_| self.poll_connected(&socket, deadline)).await?;
        Ok(socket)
    }

    fn poll_connected(&self, socket: &Socket, deadline: Instant) -> Poll<io::Result<()>> {
        self.with(|core| {
            let now = core.now;
            let slot = &mut core.slots[socket.index()];
            slot.task = self.running();
            match slot.failure() {
                Some(errno) => Poll::Ready(Err(io::Error::from_raw_os_error(errno))),
                None if slot.write == LaneState::Idle => Poll::Ready(Ok(())),
                None if now >= deadline => {
                    Poll::Ready(Err(io::Error::from_raw_os_error(libc::ETIMEDOUT)))
                }
                None => Poll::Pending,
            }
        })
    }

    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Core) -> T) -> T {
        let entered = Entered(&self.0.broken);
        let done = work(&mut self.0.core.borrow_mut());
        std::mem::forget(entered);
        done
    }

    /// [`Ring::with`] for a handle that is dropped. While the thread unwinds, and once the ring is broken, the
    /// work is left to [`Ring::dismantle`].
    pub(super) fn let_go(&self, work: impl FnOnce(&mut Core)) {
        if !std::thread::panicking() && !self.is_broken() {
            self.with(work);
        }
    }

    /// A panic came out of its tables: they can't be trusted.
    pub(super) fn is_broken(&self) -> bool {
        self.0.broken.get()
    }

    /// Completions of a turn that a panic has cut short; nobody knows how many of them are booked.
    pub(super) fn take_last(&self) -> Vec<Completion> {
        self.0.completions.take()
    }

    pub(super) fn take_task(&self) -> Option<Task> {
        self.0.running.set(TaskId::NONE);
        self.0.executor.take()
    }

    /// Panics where nothing but the ring is to blame; for tests.
    #[cfg(debug_assertions)]
    pub fn break_down(&self) {
        self.with(|_| panic!("asked to, within the ring"));
    }

    /// The same in the midst of a turn's completions, as soon as there are some.
    #[cfg(debug_assertions)]
    pub fn break_down_booking(&self) {
        self.with(|core| core.doomed = true);
    }

    pub(super) fn running(&self) -> TaskId {
        self.0.running.get()
    }
}

/// The core is being worked on. Dropped, it is by a panic.
struct Entered<'a>(&'a Cell<bool>);

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

/// Wakes one task. A wake after the task's end may reach another task, which tolerates it.
#[derive(Clone)]
pub struct Waker {
    ring: Ring,
    task: TaskId,
}

impl Waker {
    /// The task is polled in this turn or the next.
    pub fn wake(&self) {
        self.ring.with(|core| core.queue.wake(self.task));
    }
}

/// A deadline that wakes the task that set it. Setting again moves it.
pub struct Timer {
    ring: Ring,
    id: TimerId,
}

impl Timer {
    /// Wakes the calling task at `deadline`, or within a tick or two after it.
    pub fn set(&self, deadline: Instant) {
        let task = self.ring.running();
        self.ring
            .with(|core| core.timers.set(self.id, deadline, task));
    }

    /// Wakes nobody.
    pub fn clear(&self) {
        self.ring.with(|core| core.timers.clear(self.id));
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.ring.let_go(|core| core.timers.remove(self.id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::sim::{Advance, Faults, World};

    #[test]
    fn a_meter_is_told_once_the_interval_is_over_and_an_idle_ring_rests_after_that() {
        let world = World::new(7, Faults::none());
        let ring = Ring::new(Box::new(world.driver()), 1 << 20);
        let meter = Arc::new(Meter::default());
        ring.tell(meter.clone());
        let (fd, handle) = world.event();
        let event = ring.event(fd);
        ring.spawn(async move {
            let _ = event.signalled().await;
            std::future::pending::<()>().await;
        });
        let rests = || {
            for _ in 0..100 {
                ring.turn().expect("the ring turns");
                if !world.progressed() && world.advance() == Advance::Quiet {
                    return;
                }
            }
            panic!("it never rests");
        };
        rests();
        assert_eq!(meter.reading(), Default::default());
        handle.signal();
        rests();
        let reading = meter.reading();
        assert_eq!((reading.completions, reading.tasks), (1, 1));
        assert!(ring.now().as_nanos() >= 100_000_000 && reading.turns >= 3);
    }

    #[test]
    fn a_turn_waits_until_its_callers_instant_and_not_for_the_next_tick() {
        let world = World::new(7, Faults::none());
        let ring = Ring::new(Box::new(world.driver()), 1 << 20);
        for micros in [1, 40, 5_000] {
            let latest = ring.now() + Duration::from_micros(micros);
            ring.turn_until(Some(latest)).expect("the ring turns");
            assert_eq!(world.advance(), Advance::Moved(latest));
            ring.turn_until(Some(latest)).expect("the ring turns");
            assert!(ring.now() >= latest);
        }
    }
}
