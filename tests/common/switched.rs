//! A backend whose manner is changed while it runs, and that knows what reaches it and when.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::Socket;

use super::backend::{bound_for_life, echo_on};
use super::socket::set_patience;
use super::{PATIENCE, eventually, now, pass};

/// How it treats a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Manner {
    /// Sends back what comes, then FIN for FIN.
    Echo,
    /// Says [`GREETING`], then as `Echo`.
    Greet,
    /// Resets at once.
    Reset,
    /// Finishes at once.
    Close,
    /// Takes the first bytes and goes on when the manner is another.
    Hold,
}

pub(crate) const GREETING: &[u8] = b"220 hello\r\n";

/// A listening backend on 127.0.0.1. Its threads end with the test's process.
pub(crate) struct Switched {
    /// As a configuration names it.
    pub(crate) address: String,
    inside: Arc<Inside>,
}

struct Inside {
    listener: Socket,
    state: Mutex<State>,
    switched: Condvar,
}

struct State {
    manner: Manner,
    open: Vec<Arc<Socket>>,
    most: usize,
    arrivals: Vec<Instant>,
}

impl Switched {
    pub(crate) fn new(manner: Manner) -> Self {
        let (listener, address) = bound_for_life();
        listener.listen(4096).expect("it is bound");
        let state = State {
            manner,
            open: Vec::new(),
            most: 0,
            arrivals: Vec::new(),
        };
        let inside = Arc::new(Inside {
            listener,
            state: Mutex::new(state),
            switched: Condvar::new(),
        });
        let accepting = inside.clone();
        thread::spawn(move || accepting.accept());
        Self { address, inside }
    }

    /// From now on; who is held goes on with it.
    pub(crate) fn switch(&self, manner: Manner) {
        self.inside.state().manner = manner;
        self.inside.switched.notify_all();
    }

    /// When each connection was accepted.
    pub(crate) fn arrivals(&self) -> Vec<Instant> {
        self.inside.state().arrivals.clone()
    }

    /// Connections so far.
    pub(crate) fn accepted(&self) -> usize {
        self.inside.state().arrivals.len()
    }

    /// Connections that are open now.
    pub(crate) fn open(&self) -> usize {
        let mut state = self.inside.state();
        state.forget_ended();
        state.open.len()
    }

    /// The most connections that were open at once.
    pub(crate) fn most(&self) -> usize {
        self.inside.state().most
    }

    /// Sends FIN on every connection.
    pub(crate) fn finish_all(&self) {
        for socket in &self.inside.state().open {
            // It may be closed already.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Has every connection reset, soon.
    pub(crate) fn reset_all(&self) {
        self.begin_resets();
    }

    /// Resets every connection; nobody may be held.
    pub(crate) fn reset_all_at_once(&self) {
        let resets = self.begin_resets();
        eventually("all connections to be closed", || {
            let closed = resets.iter().all(|socket| socket.strong_count() == 0);
            closed.then_some(())
        });
    }

    fn begin_resets(&self) -> Vec<Weak<Socket>> {
        let state = self.inside.state();
        let reset = |socket: &Arc<Socket>| {
            // The thread that reads wakes up and closes it.
            let _ = socket.set_linger(Some(Duration::ZERO));
            let _ = socket.shutdown(Shutdown::Read);
            Arc::downgrade(socket)
        };
        state.open.iter().map(reset).collect()
    }

    /// Refuses from now on, with the port still its own.
    pub(crate) fn stop_listening(&self) {
        // Linux: accept(2) fails from here on, and what was in its queue is reset.
        let listener = &self.inside.listener;
        listener.shutdown(Shutdown::Both).expect("it listens");
    }

    pub(crate) fn listen_again(&self) {
        self.inside.listener.listen(4096).expect("it is bound");
    }
}

impl Inside {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: Arc<Self>) {
        loop {
            let Ok((socket, _)) = self.listener.accept() else {
                // It does not listen at the moment.
                pass(Duration::from_millis(1));
                continue;
            };
            set_patience(&socket, PATIENCE * 3);
            let socket = Arc::new(socket);
            self.state().note(&socket);
            let inside = self.clone();
            thread::Builder::new()
                .stack_size(128 * 1024)
                .spawn(move || {
                    inside.serve(&socket);
                    // Before it is closed, so that nobody can have its place and be counted beside it.
                    let mut state = inside.state();
                    state.open.retain(|open| !Arc::ptr_eq(open, &socket));
                    drop(socket);
                })
                .expect("a thread");
        }
    }

    fn serve(&self, mut socket: &Socket) {
        let manner = self.state().manner;
        match manner {
            Manner::Echo => echo_on(socket),
            Manner::Greet => {
                if socket.write_all(GREETING).is_ok() {
                    echo_on(socket);
                }
            }
            Manner::Reset => {
                let _ = socket.set_linger(Some(Duration::ZERO));
            }
            Manner::Close => {}
            Manner::Hold => self.hold(socket),
        }
    }

    fn hold(&self, mut socket: &Socket) {
        let mut byte = [0];
        if !socket.read(&mut byte).is_ok_and(|count| count == 1) {
            return;
        }
        let held = |state: &mut State| state.manner == Manner::Hold;
        let waited = self.switched.wait_while(self.state(), held);
        let manner = waited.unwrap_or_else(PoisonError::into_inner).manner;
        if manner == Manner::Reset {
            let _ = socket.set_linger(Some(Duration::ZERO));
        } else if socket.write_all(&byte).is_ok() {
            echo_on(socket);
        }
    }
}

impl State {
    fn note(&mut self, socket: &Arc<Socket>) {
        self.forget_ended();
        self.open.push(socket.clone());
        self.most = self.most.max(self.open.len());
        self.arrivals.push(now());
    }

    /// What the other end had closed by now counts no more, even if its thread has not noticed yet.
    fn forget_ended(&mut self) {
        self.open.retain(|socket| !has_ended(socket));
    }
}

/// Several may be bound to an address as long as one listens at most.
/// The other end has finished or reset, whatever is still to be read before that.
fn has_ended(socket: &Socket) -> bool {
    let mut polled = [PollFd::new(socket, PollFlags::RDHUP)];
    poll(&mut polled, Some(&Timespec::default())).expect("it can be polled");
    !polled[0].revents().is_empty()
}
