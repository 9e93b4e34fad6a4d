//! A connection of the generator: a socket, with TLS on it if that is wanted. Whoever puts load on it
//! need not know which.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use ringress::address::Address;
use ringress::ring::{Flow, Ring, Socket, SocketOptions};
use ringress::time::Instant;

use super::loss;
use super::tls::{Client, Session, Tls};

/// Who is asked.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where.
    pub address: SocketAddr,
    /// What is wanted of TLS there; `None` = bare TCP.
    pub tls: Option<Tls>,
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self { address, tls: None }
    }
}

/// How long connecting may take, with the handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What a receive is armed for beyond the answer: a handshake's messages, tickets, what records add.
const TLS_BYTES: u32 = 4096;

/// Makes connections one after another, as one client does.
pub(super) struct Caller {
    ring: Ring,
    address: SocketAddr,
    client: Option<Client>,
}

impl Caller {
    pub(super) fn new(ring: &Ring, target: &Target) -> Self {
        Self {
            ring: ring.clone(),
            address: target.address,
            client: target.tls.as_ref().map(Client::new),
        }
    }

    /// Connects; on the loopback from the `number`th of 16 addresses. A connection that the client
    /// closes leaves its port unusable for a while (TIME_WAIT), and one address has 28 thousand
    /// ports: that is a few seconds' worth of new connections. More addresses are chosen over closing
    /// with a reset, because a FIN is how clients end and what a proxy should be measured with.
    pub(super) async fn connect(&self, number: u64) -> io::Result<Link> {
        let deadline = self.ring.now() + CONNECT_TIMEOUT;
        self.connect_until(number, deadline).await
    }

    /// As [`connect`](Self::connect). The handshake is a part of it.
    pub(super) async fn connect_until(&self, number: u64, deadline: Instant) -> io::Result<Link> {
        const SOURCES: u64 = 16;
        let source = match self.address {
            SocketAddr::V4(target) if target.ip().is_loopback() => {
                Some(IpAddr::from([127, 0, 1, (1 + number % SOURCES) as u8]))
            }
            _ => None,
        };
        let (to, options) = (Address::from(self.address), SocketOptions::default());
        let connecting = self.ring.connect(&to, source, &options, deadline);
        let socket = connecting.await?;
        let Some(client) = &self.client else {
            return Ok(Link { socket, tls: None });
        };
        let tls = Layer {
            session: RefCell::new(client.begin()?),
            finishes: Cell::new(false),
        };
        let link = Link {
            socket,
            tls: Some(tls),
        };
        link.shake_hands(deadline).await?;
        Ok(link)
    }

    /// `link` had its exchange.
    ///
    /// # Errors
    /// It was to be resumed, and was not.
    pub(super) fn had(&self, link: &Link) -> io::Result<()> {
        match (&self.client, &link.tls) {
            (Some(client), Some(tls)) => client.had(&tls.session.borrow()),
            _ => Ok(()),
        }
    }
}

/// An open connection; with TLS, the handshake is over. Dropped, it closes its socket in order.
pub(super) struct Link {
    socket: Socket,
    tls: Option<Layer>,
}

/// What TLS adds to a socket.
struct Layer {
    session: RefCell<Session>,
    /// FIN follows when everything is sent.
    finishes: Cell<bool>,
}

impl Link {
    async fn shake_hands(&self, deadline: Instant) -> io::Result<()> {
        self.belongs_to_this_task();
        let ring = self.socket.ring();
        let timer = ring.timer();
        timer.set(deadline);
        poll_fn(|_| {
            let (bytes, flow) = self.read(|_| {});
            if bytes > 0 {
                // Whoever is asked speaks when it was asked.
                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
            }
            if let Some(error) = self.broken(flow) {
                return Poll::Ready(Err(error));
            }
            if !self.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            if ring.now() >= deadline {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            self.receive(0);
            Poll::Pending
        })
        .await
    }

    fn is_handshaking(&self) -> bool {
        let tls = self.tls.as_ref();
        tls.is_some_and(|tls| tls.session.borrow().is_handshaking())
    }

    /// TLS is on it.
    pub(super) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// The calling task is the one that is woken.
    pub(super) fn belongs_to_this_task(&self) {
        self.socket.belongs_to_this_task();
    }

    /// Sends `bytes`. Bare, it is false when a send is on its way: [`wake_when_sent`](Self::wake_when_sent)
    /// tells when it is not. With TLS they wait for their turn.
    pub(super) fn send(&self, bytes: &Rc<[u8]>) -> bool {
        match &self.tls {
            None => self.socket.send(Rc::clone(bytes)),
            Some(tls) => {
                tls.session.borrow_mut().say(bytes);
                self.flush(tls);
                true
            }
        }
    }

    /// The task is woken when the send on its way is done.
    pub(super) fn wake_when_sent(&self) {
        self.socket.wake_when_sent();
    }

    /// Shows `look` what has arrived, and forgets it. Returns its bytes, without what TLS adds, and how the
    /// direction stands.
    pub(super) fn read(&self, mut look: impl FnMut(&[u8])) -> (u64, Flow) {
        let Some(tls) = &self.tls else {
            let (bytes, flow) = self.socket.read(look);
            return (bytes.into(), flow);
        };
        let mut bytes = 0;
        let (_, flow) = self.socket.read(|slice| {
            tls.session.borrow_mut().feed(slice, |plain| {
                bytes += plain.len() as u64;
                look(plain);
            });
        });
        self.flush(tls);
        (bytes, flow)
    }

    /// Keeps receiving about `budget` bytes, and what TLS adds to them.
    pub(super) fn receive(&self, budget: u32) {
        let more = if self.is_tls() { TLS_BYTES } else { 0 };
        self.socket.receive(budget.saturating_add(more));
    }

    /// Ends what is sent: close_notify with TLS, then FIN. With TLS it takes further reads until all is
    /// sent.
    pub(super) fn finish(&self) {
        match &self.tls {
            None => self.socket.finish(),
            Some(tls) => {
                tls.session.borrow_mut().say_end();
                tls.finishes.set(true);
                self.flush(tls);
            }
        }
    }

    /// Sends what TLS has to say when the socket is free for it, and wakes the task when it will be.
    fn flush(&self, tls: &Layer) {
        if !self.socket.is_sending() {
            let records = tls.session.borrow_mut().records();
            if !records.is_empty() {
                // One that fails is seen by whoever looks whether the link is broken.
                self.socket.send(Rc::from(records));
            } else if tls.finishes.take() {
                self.socket.finish();
            }
        }
        if tls.finishes.get() || tls.session.borrow().has_records() {
            self.socket.wake_when_sent();
        }
    }

    /// Why it is of no more use, though it should be; `None` = it is.
    pub(super) fn broken(&self, flow: Flow) -> Option<io::Error> {
        let tls = self.tls.as_ref();
        tls.and_then(|tls| tls.session.borrow().failure())
            .or_else(|| loss::broken(&self.socket, flow))
    }

    /// Closes with RST.
    pub(super) fn abort(self) {
        self.socket.abort();
    }
}
