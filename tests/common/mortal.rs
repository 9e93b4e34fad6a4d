//! Backends that fall ill, die and come back at the same address, and keep count of who comes.
//!
//! A probe is known by its first bytes, `PING` or `GET`. Any other connection is a session once it has
//! sent its question: a line, which is answered with the backend's name in a line, as often as it comes.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use socket2::Socket;

use super::backend::bound_for_life;
use super::socket::{parse, set_patience, unconnected};
use super::{PATIENCE, now, pass};

/// A backend with a life.
pub(crate) struct Mortal {
    /// As a configuration names it, and what it calls itself.
    pub(crate) address: String,
    listener: Socket,
    shared: Arc<Shared>,
    accepting: Mutex<Option<JoinHandle<()>>>,
    filling: Mutex<Vec<Socket>>,
}

/// What probes get.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// These bytes, and FIN.
    Says(&'static str),
    /// Nothing, for as long as this is so.
    Nothing,
}

/// What the probes of [`PING`] like.
pub(crate) const PONG: Answer = Answer::Says("PONG");
pub(crate) const SICK: Answer = Answer::Says("-ERR no disk");

/// A check with a question, in which probes are told from sessions.
pub(crate) const PING: &str = "type = \"tcp\"\nsend = \"PING\\r\\n\"\nexpect = \"PONG\"\n";

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Grows with every death.
    life: usize,
    answer: Answer,
    /// Sessions wait for their answers.
    holds: bool,
    delay: Duration,
    connections: HashMap<u64, Socket>,
    counts: Counts,
    question: Vec<u8>,
}

/// What came so far.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Counts {
    pub(crate) connections: u64,
    pub(crate) probes: u64,
    pub(crate) sessions: u64,
    /// Connections at the moment. One that has sent FIN is counted out before it gets FIN.
    pub(crate) open: u64,
    pub(crate) most_open: u64,
}

impl Default for State {
    fn default() -> Self {
        Self {
            life: 0,
            answer: PONG,
            holds: false,
            delay: Duration::ZERO,
            connections: HashMap::new(),
            counts: Counts::default(),
            question: Vec::new(),
        }
    }
}

impl Mortal {
    /// A healthy one on 127.0.0.1.
    pub(crate) fn new() -> Self {
        let (listener, address) = bound_for_life();
        listener.listen(BACKLOG).expect("it is bound");
        let born = Self {
            address,
            listener,
            shared: Arc::default(),
            accepting: Mutex::default(),
            filling: Mutex::default(),
        };
        born.accept();
        born
    }

    pub(crate) fn many<const COUNT: usize>() -> [Self; COUNT] {
        std::array::from_fn(|_| Self::new())
    }

    /// As an entry of `backends` with this weight.
    pub(crate) fn weighing(&self, weight: u16) -> String {
        self.with(&format!("weight = {weight}"))
    }

    /// As an entry of `backends` with these keys.
    pub(crate) fn with(&self, keys: &str) -> String {
        format!("{{ address = {:?}, {keys} }}", self.address)
    }

    pub(crate) fn counts(&self) -> Counts {
        self.locked().counts
    }

    /// What the last probe has sent.
    pub(crate) fn question(&self) -> String {
        String::from_utf8_lossy(&self.locked().question).into_owned()
    }

    /// From now on, also for probes that wait for an answer.
    pub(crate) fn answer_probes(&self, answer: Answer) {
        self.locked().answer = answer;
        self.shared.changed.notify_all();
    }

    /// Answers to sessions wait until it no longer holds.
    pub(crate) fn hold(&self, holds: bool) {
        self.locked().holds = holds;
        self.shared.changed.notify_all();
    }

    /// Answers to sessions take so long.
    pub(crate) fn slow_down(&self, delay: Duration) {
        self.locked().delay = delay;
    }

    /// Waits until what came is as it should be.
    pub(crate) fn wait(&self, what: &str, is: impl Fn(&Counts) -> bool) {
        let until = now() + PATIENCE;
        let mut state = self.locked();
        while !is(&state.counts) {
            let left = until.saturating_duration_since(now());
            assert!(
                !left.is_zero(),
                "waited in vain: {what}: {:?}",
                state.counts
            );
            state = self.shared.wait(state, left);
        }
    }

    /// As if its process were killed: nobody listens, and its connections are reset.
    pub(crate) fn kill(&self) {
        self.locked().life += 1;
        self.stop_accepting();
        let connections = std::mem::take(&mut self.locked().connections);
        for connection in connections.into_values() {
            // The client may have been faster.
            let _ = connection.set_linger(Some(Duration::ZERO));
            let _ = connection.shutdown(Shutdown::Read);
        }
        self.shared.changed.notify_all();
        self.wait("its connections to be reset", |counts| counts.open == 0);
    }

    /// As if its process were stopped: its accept queue is full, and the kernel drops every SYN.
    pub(crate) fn become_black_hole(&self) {
        self.stop_accepting();
        self.listener.listen(0).expect("it is bound");
        let (address, mut filling) = (parse(&self.address).1, self.filling());
        loop {
            let socket = unconnected(&self.address);
            if socket.connect_timeout(&address, FULL_AFTER).is_err() {
                return;
            }
            filling.push(socket);
        }
    }

    /// Listens again.
    pub(crate) fn revive(&self) {
        self.stop_accepting();
        self.filling().clear();
        self.listener.listen(BACKLOG).expect("it is bound");
        self.accept();
    }

    fn accept(&self) {
        let listener = self.listener.try_clone().expect("a descriptor");
        let (shared, name) = (self.shared.clone(), self.address.clone());
        let task = thread::spawn(move || {
            while let Ok((connection, _)) = listener.accept() {
                let Some((id, life)) = shared.register(&connection) else {
                    continue;
                };
                let (shared, name) = (shared.clone(), name.clone());
                thread::Builder::new()
                    .stack_size(256 * 1024)
                    .spawn(move || {
                        // Who connects may be gone at any time.
                        let _ = shared.serve(&connection, &name, life);
                        shared.forget(id, life, connection);
                    })
                    .expect("a thread");
            }
        });
        *self.accepting.lock().expect("nobody panicked") = Some(task);
    }

    /// A listening socket that is shut down is only bound, and so its port stays its own. One that is only
    /// bound must not be shut down: what it accepts later would be shut down as well.
    fn stop_accepting(&self) {
        let task = self.accepting.lock().expect("nobody panicked").take();
        if let Some(task) = task {
            self.listener.shutdown(Shutdown::Both).expect("it listens");
            task.join().expect("it accepts without panic");
        }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.shared.locked()
    }

    fn filling(&self) -> MutexGuard<'_, Vec<Socket>> {
        self.filling.lock().expect("nobody panicked")
    }
}

impl Shared {
    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, most: Duration) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, most);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// None if it can't be served.
    fn register(&self, connection: &Socket) -> Option<(u64, usize)> {
        set_patience(connection, PATIENCE);
        let kept = connection.try_clone().ok()?;
        let mut state = self.locked();
        let counts = &mut state.counts;
        counts.connections += 1;
        counts.open += 1;
        counts.most_open = counts.most_open.max(counts.open);
        let id = counts.connections;
        state.connections.insert(id, kept);
        self.changed.notify_all();
        Some((id, state.life))
    }

    /// Counts it out, and only then closes: with FIN, or with RST if it was killed.
    fn forget(&self, id: u64, life: usize, connection: Socket) {
        let mut state = self.locked();
        drop(state.connections.remove(&id));
        state.counts.open -= 1;
        if state.life != life {
            // It may have been reset already.
            let _ = connection.set_linger(Some(Duration::ZERO));
            // Nobody is told before it is closed.
            drop(connection);
        }
        self.changed.notify_all();
    }

    fn serve(&self, connection: &Socket, name: &str, life: usize) -> io::Result<()> {
        let mut reader = BufReader::new(connection);
        let head = reader.fill_buf()?;
        if head.starts_with(b"PING") || head.starts_with(b"GET ") {
            return self.serve_probe(&mut reader);
        }
        if !head.is_empty() {
            self.note(|counts| counts.sessions += 1);
        }
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 {
            self.wait_to_answer(life);
            let mut connection = connection;
            connection.write_all(format!("{name}\n").as_bytes())?;
            line.clear();
        }
        Ok(())
    }

    fn serve_probe(&self, reader: &mut BufReader<&Socket>) -> io::Result<()> {
        let mut question = Vec::new();
        while !question.ends_with(b"\r\n\r\n") && question != b"PING\r\n" {
            if reader.read_until(b'\n', &mut question)? == 0 {
                return Ok(());
            }
        }
        self.locked().question = question;
        self.note(|counts| counts.probes += 1);
        let until = now() + PATIENCE;
        let mut state = self.locked();
        while state.answer == Answer::Nothing && now() < until {
            state = self.wait(state, PATIENCE);
        }
        let answer = state.answer.clone();
        drop(state);
        if let Answer::Says(answer) = answer {
            reader.get_mut().write_all(answer.as_bytes())?;
            reader.get_mut().shutdown(Shutdown::Write)?;
            // Closing before the other end would reset it if it sends more.
            reader.read_to_end(&mut Vec::new())?;
        }
        Ok(())
    }

    fn note(&self, change: impl Fn(&mut Counts)) {
        change(&mut self.locked().counts);
        self.changed.notify_all();
    }

    fn wait_to_answer(&self, life: usize) {
        let mut state = self.locked();
        while state.holds && state.life == life {
            state = self.wait(state, PATIENCE);
        }
        let delay = state.delay;
        drop(state);
        if !delay.is_zero() {
            pass(delay);
        }
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        self.hold(false);
        self.answer_probes(SICK);
        self.stop_accepting();
    }
}

/// A whole session: a question, its answer, FIN both ways. Who answered, or how it failed.
pub(crate) fn visit(address: &str) -> io::Result<String> {
    visit_from(None, address)
}

/// The same, from a local address.
pub(crate) fn visit_from(source: Option<IpAddr>, address: &str) -> io::Result<String> {
    let socket = unconnected(address);
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.connect(&parse(address).1)?;
    let who = ask(&socket)?;
    socket.shutdown(Shutdown::Write)?;
    match (&socket).read(&mut [0])? {
        0 => Ok(who),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Asks within a session, which stays open.
pub(crate) fn ask(mut socket: &Socket) -> io::Result<String> {
    socket.write_all(b"\n")?;
    let mut answer = String::new();
    BufReader::new(socket).read_line(&mut answer)?;
    match answer.pop() {
        Some('\n') => Ok(answer),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// How many of `names` are each of these backends; every one is some.
pub(crate) fn shares<const COUNT: usize>(
    backends: &[Mortal; COUNT],
    names: &[String],
) -> [usize; COUNT] {
    let shares = backends.each_ref().map(|backend| {
        names
            .iter()
            .filter(|name| **name == backend.address)
            .count()
    });
    assert_eq!(shares.iter().sum::<usize>(), names.len(), "{names:?}");
    shares
}

/// A configuration with one listener, `web`, and one upstream, `app`, on two workers. `backends` are
/// entries of its list, `upstream` further lines of it, `tables` whole tables.
pub(crate) fn behind_two_workers(backends: &[String], upstream: &str, tables: &str) -> String {
    let tables = format!("[runtime]\nworkers = 2\n{tables}");
    let list = format!("backends = [{}]", backends.join(", "));
    super::config(&[], "", upstream, &tables).replace("backends = []", &list)
}

const BACKLOG: i32 = 4096;
/// On the loopback a SYN that isn't dropped is answered at once, even by a busy machine.
const FULL_AFTER: Duration = Duration::from_millis(300);
