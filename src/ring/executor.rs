//! A small local executor: the tasks of one worker and the queue of those that have something to
//! do. It never polls from within a completion and polls a task at most once a turn.
//!
//! Leaf futures register the index of the running task with what they wait for, and a completion
//! names that index: no waker is cloned or dropped on the path of a byte. The `Context` a future
//! gets carries a waker that does nothing; a future that needs a real one has no place here yet.
//! A wake of a task that ended, or of its slot's next tenant, is a poll for nothing: every future
//! of this crate tolerates that.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Waker};

/// The index of a task; plain data that may be stale.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TaskId(u32);

impl TaskId {
    /// No task; waking it does nothing.
    pub(crate) const NONE: Self = Self(u32::MAX);
    /// What is not a task but a slot whose send is due again.
    const SLOT: u32 = 1 << 31;

    /// Names slot `index` where a task is expected to be named.
    pub(crate) const fn of_slot(index: u32) -> Self {
        Self(index | Self::SLOT)
    }

    /// The slot that is named, if it is one.
    pub(crate) const fn slot(self) -> Option<u32> {
        match self.0 != u32::MAX && self.0 & Self::SLOT != 0 {
            true => Some(self.0 & !Self::SLOT),
            false => None,
        }
    }

    #[cfg(test)]
    pub(crate) const fn from_index(index: u32) -> Self {
        Self(index)
    }

    #[cfg(test)]
    pub(crate) const fn index(self) -> u32 {
        self.0
    }
}

/// The tasks to poll, in the order in which they were woken; none stands there twice.
#[derive(Default)]
pub(crate) struct RunQueue {
    queue: VecDeque<TaskId>,
    queued: Vec<bool>,
}

impl RunQueue {
    /// Queues a task that isn't queued.
    pub(crate) fn wake(&mut self, task: TaskId) {
        if let Some(queued) = self.queued.get_mut(task.0 as usize)
            && !*queued
        {
            *queued = true;
            self.queue.push_back(task);
        }
    }

    /// Queues every task there is.
    pub(crate) fn wake_all(&mut self) {
        for index in 0..self.queued.len() {
            self.wake(TaskId(index as u32));
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }

    pub(crate) fn pop(&mut self) -> Option<TaskId> {
        let task = self.queue.pop_front()?;
        self.queued[task.0 as usize] = false;
        Some(task)
    }

    /// Makes room for a new task and queues it.
    pub(crate) fn admit(&mut self, task: TaskId) {
        let index = task.0 as usize;
        if self.queued.len() <= index {
            self.queued.resize(index + 1, false);
        }
        self.wake(task);
    }
}

pub(crate) type Task = Pin<Box<dyn Future<Output = ()>>>;

#[derive(Default)]
struct Slots {
    tasks: Vec<Option<Task>>,
    free: Vec<u32>,
    live: usize,
}

/// The tasks of one worker.
#[derive(Default)]
pub(crate) struct Executor {
    slots: RefCell<Slots>,
    /// A task is being polled.
    polling: Cell<bool>,
}

impl Executor {
    /// Takes in a task; the caller queues it.
    pub(crate) fn insert(&self, future: impl Future<Output = ()> + 'static) -> TaskId {
        let task: Task = Box::pin(future);
        let mut slots = self.slots.borrow_mut();
        slots.live += 1;
        if let Some(index) = slots.free.pop() {
            slots.tasks[index as usize] = Some(task);
            return TaskId(index);
        }
        slots.tasks.push(Some(task));
        TaskId(u32::try_from(slots.tasks.len() - 1).expect("fewer than 2^32 tasks"))
    }

    /// Tasks that have not ended.
    pub(crate) fn len(&self) -> usize {
        self.slots.borrow().live
    }

    /// Polls one task. No borrow is held meanwhile: it may spawn, wake and use the ring. If it panics it stays
    /// where it is: nothing of it is dropped before everything is.
    pub(crate) fn poll(&self, task: TaskId) {
        let polling = Polling::begin(&self.polling);
        let mut slots = self.slots.borrow_mut();
        let Some(Some(future)) = slots.tasks.get_mut(task.0 as usize) else {
            return;
        };
        // SAFETY: the future is not moved through this: it is pinned again below.
        let future: *mut dyn Future<Output = ()> = unsafe { future.as_mut().get_unchecked_mut() };
        drop(slots);
        // SAFETY: it stays in its box and the box in its place until `polling` goes: `insert` only uses places that
        // are free, nothing else is polled (`Polling::begin`), and `take` and `clear` refuse to go on.
        let future = unsafe { &mut *future };
        // SAFETY: it was pinned in its box, which is where it is.
        let future = unsafe { Pin::new_unchecked(future) };
        let done = future
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_ready();
        drop(polling);
        if !done {
            return;
        }
        let future = self.slots.borrow_mut().tasks[task.0 as usize].take();
        // What the future owned uses the ring as it goes, so it goes before the slot is borrowed.
        drop(future);
        let mut slots = self.slots.borrow_mut();
        slots.free.push(task.0);
        slots.live -= 1;
    }

    /// A task to be dropped, of those that are left. No other is polled or taken in from then on.
    pub(crate) fn take(&self) -> Option<Task> {
        assert!(!self.polling.get(), "a task can't end all of them");
        let mut slots = self.slots.borrow_mut();
        slots.free.clear();
        while let Some(task) = slots.tasks.pop() {
            if let Some(task) = task {
                slots.live -= 1;
                return Some(task);
            }
        }
        None
    }

    /// Ends every task where it stands.
    pub(crate) fn clear(&self) {
        assert!(!self.polling.get(), "a task can't end all of them");
        let tasks = std::mem::take(&mut *self.slots.borrow_mut()).tasks;
        drop(tasks);
    }
}

/// A task is being polled, which stays where it is meanwhile.
struct Polling<'a>(&'a Cell<bool>);

impl<'a> Polling<'a> {
    fn begin(polling: &'a Cell<bool>) -> Self {
        assert!(!polling.replace(true), "a task can't poll another one");
        Self(polling)
    }
}

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}
