//! A client of name servers that asks all the time: every question has a socket, a number and a name of its
//! own, and every answer has to be that question's.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::common::{now, pass};

/// From one question to the next.
const EVERY: Duration = Duration::from_millis(1);
/// How long an answer is waited for: it comes within a millisecond, or not at all.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);

/// Questions on their way, from a thread of its own.
pub(crate) struct Questions {
    shared: Arc<Shared>,
    thread: JoinHandle<Vec<Question>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Answers of each server, by the last byte of the address that it gives for every name.
    answers: [AtomicUsize; 4],
}

/// One question, and what came of it.
pub(crate) struct Question {
    number: u16,
    socket: UdpSocket,
    pub(crate) asked: Instant,
    pub(crate) answered: Option<Instant>,
}

impl Questions {
    pub(crate) fn to(address: &str) -> Self {
        let shared = Arc::new(Shared::default());
        let (address, tell) = (address.to_owned(), shared.clone());
        Self {
            shared,
            thread: thread::spawn(move || ask_on(&address, &tell)),
        }
    }

    /// How many this server has answered so far.
    pub(crate) fn answered_by(&self, server: u8) -> usize {
        self.shared.answers[usize::from(server)].load(Ordering::Relaxed)
    }

    /// Asks no more, waits for the last answers, and returns all questions.
    pub(crate) fn stop(self) -> Vec<Question> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("every answer is right")
    }
}

fn ask_on(address: &str, shared: &Shared) -> Vec<Question> {
    let (mut open, mut closed) = (Vec::new(), Vec::new());
    let began = now();
    let mut count = 0;
    while !shared.stop.load(Ordering::Relaxed) {
        // Those that are due: the rate holds, also when this thread had to wait for its turn.
        while began.elapsed() > EVERY * count {
            open.push(Question::ask(address, (count % 65_536) as u16));
            count += 1;
        }
        take_answers(&mut open, &mut closed, shared);
        pass(EVERY / 4);
    }
    while let Some(last) = open.last()
        && last.asked.elapsed() < ANSWERED_WITHIN
    {
        take_answers(&mut open, &mut closed, shared);
        pass(EVERY);
    }
    closed.append(&mut open);
    closed
}

fn take_answers(open: &mut Vec<Question>, closed: &mut Vec<Question>, shared: &Shared) {
    closed.extend(open.extract_if(.., |question| question.take_answer(shared)));
}

impl Question {
    fn ask(address: &str, number: u16) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        socket.set_nonblocking(true).expect("it can be set");
        socket.connect(address).expect("a way there");
        let asked = now();
        socket.send(&query(number)).expect("it is sent");
        Self {
            number,
            socket,
            asked,
            answered: None,
        }
    }

    /// Whether the answer is there.
    fn take_answer(&mut self, shared: &Shared) -> bool {
        let mut heard = [0; 512];
        let Ok(len) = self.socket.recv(&mut heard) else {
            return false;
        };
        self.answered = Some(now());
        let server = self.server_in(&heard[..len]);
        shared.answers[usize::from(server)].fetch_add(1, Ordering::Relaxed);
        true
    }

    /// The last byte of the address in the answer, which has to be that of this question.
    fn server_in(&self, answer: &[u8]) -> u8 {
        let query = query(self.number);
        assert_eq!(answer[..2], query[..2], "the answer to another question");
        // A response without an error, to one question, with one answer (RFC 1035, section 4.1.1).
        assert_eq!((answer[2] & 0x80, answer[3] & 0x0f), (0x80, 0));
        assert_eq!(answer[4..8], [0, 1, 0, 1]);
        assert_eq!(answer[12..query.len()], query[12..], "another name");
        let address = answer[query.len()..].last_chunk::<4>();
        let [192, 0, 2, server] = address.expect("an address") else {
            panic!("{address:?} is none that a server was told to give");
        };
        *server
    }
}

/// A query for the IPv4 address of `qNUMBER.test` (RFC 1035, section 4.1).
fn query(number: u16) -> Vec<u8> {
    const RECURSION_DESIRED: u8 = 1;
    let mut bytes = number.to_be_bytes().to_vec();
    bytes.extend([RECURSION_DESIRED, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in [format!("q{number}"), "test".to_owned()] {
        bytes.push(label.len() as u8);
        bytes.extend(label.bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}
