//! What comes before a backend is looked for: the header of the PROXY protocol, then the TLS handshake, or a
//! look at the ClientHello that is passed on. All of it within `timeouts.handshake`.
//!
//! ```text
//!   accepted ──[PROXY header]──▶ screened ──┬─[TLS handshake]───▶ routed by the name asked for
//!                                           ├─[ClientHello seen]─▶ routed by the name in it
//!                                           └────────────────────▶ the default upstream
//! ```

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::task::Poll;

use super::admission::{Admission, Policy};
use crate::proto::client_hello::{Hello, HelloReader};
use crate::proto::proxy_header::{Announced, HeaderReader, Progress};
use crate::ring::{BUFFER_BYTES, Flow, Ring, Socket};
use crate::telemetry::{Opening, Reason};
use crate::time::Instant;
use crate::tls::{Session, Version};
use crate::upstream::{Unsecured, handshake};

/// Why a session ends before it has begun.
pub(super) struct Refusal {
    pub(super) reason: Reason,
    /// More of it, for the log.
    pub(super) detail: Option<String>,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            detail: None,
        }
    }
}

/// What the client has begun with.
#[derive(Default)]
pub(super) struct Opened {
    /// Its TLS, where that is terminated.
    pub(super) tls: Option<Box<Session>>,
    /// How it began.
    pub(super) how: Option<Opening>,
    /// The name that it has asked for.
    pub(super) name: Option<Box<str>>,
}

/// Goes through what the listener wants to hear first. `policy` learns who the client is and where it goes.
pub(super) async fn open(
    ring: &Ring,
    admission: &Admission,
    policy: &mut Policy,
    client: &Socket,
) -> Result<Opened, Refusal> {
    let deadline = ring.now() + policy.listener.timeouts.handshake;
    let opening = Beginning {
        ring,
        admission,
        client,
        deadline,
    };
    client.belongs_to_this_task();
    if policy.listener.trusted.is_some() {
        opening.identify(policy).await?;
    }
    let listener = policy.listener.clone();
    if let Some(tls) = &listener.tls {
        let mut session = Box::new(tls.accept(ring.now()));
        let how = opening.secure(&mut session).await?;
        policy.route = session.name().and_then(|name| listener.route(name));
        return Ok(Opened {
            how,
            name: session.name().map(Box::from),
            tls: Some(session),
        });
    }
    if listener.routes.is_some() {
        let (how, hello) = opening.look().await?;
        let name = match hello {
            Some(Hello::Name(name)) => Some(name),
            _ => None,
        };
        policy.route = name.as_ref().and_then(|name| listener.route(name));
        return Ok(Opened {
            tls: None,
            how: Some(how),
            name,
        });
    }
    Ok(Opened::default())
}

/// A client at the door.
struct Beginning<'a> {
    ring: &'a Ring,
    admission: &'a Admission,
    client: &'a Socket,
    deadline: Instant,
}

impl Beginning<'_> {
    /// Takes the header and goes by what it says.
    async fn identify(&self, policy: &mut Policy) -> Result<(), Refusal> {
        let peer = self.ring.peer(self.client);
        let peer = peer.map_err(|_| Reason::ClientReset)?;
        let trusted = policy.listener.trusted.as_ref();
        let is_trusted = |ip: IpAddr| trusted.is_some_and(|trusted| trusted.contains(ip));
        // Who may connect to a unix socket is up to its permissions.
        if peer.is_some_and(|peer| !is_trusted(peer.ip())) {
            return Err(Reason::UntrustedProxy.into());
        }
        match self.header().await? {
            Announced::Own => policy.client = peer.map(|peer| peer.ip()),
            Announced::Client {
                source,
                destination,
            } => {
                policy.client = Some(source.ip());
                policy.announced = Some(Box::new((source, destination)));
            }
        }
        let listener = &self.admission.listener;
        let screened = policy
            .listener
            .screen(listener, policy.client, self.ring.now());
        screened.map_err(Refusal::from)
    }

    async fn header(&self) -> Result<Announced, Refusal> {
        let mut reader = HeaderReader::new();
        loop {
            self.more_than(0).await?;
            let mut used = 0;
            let mut known = Progress::More;
            self.client.peek(|bytes| {
                if matches!(known, Progress::More) {
                    let fed = reader.feed(bytes);
                    used += fed.used as u32;
                    known = fed.progress;
                }
            });
            match known {
                Progress::More => self.client.consume(used),
                Progress::Done(announced) => {
                    self.client.consume(used);
                    return Ok(announced);
                }
                Progress::Bad(fault) => {
                    return Err(Refusal {
                        reason: Reason::BadProxyHeader,
                        detail: Some(fault.to_string()),
                    });
                }
            }
        }
    }

    /// Terminates TLS.
    async fn secure(&self, session: &mut Session) -> Result<Option<Opening>, Refusal> {
        let gate = &self.admission.worker().local.gate;
        let secured = handshake(self.ring, gate, self.client, session, self.deadline).await;
        secured.map_err(|unsecured| Refusal {
            reason: match &unsecured {
                Unsecured::TimedOut => Reason::HandshakeTimeout,
                Unsecured::Gone(error) if error.raw_os_error().is_some() => Reason::ClientReset,
                Unsecured::Gone(_) => Reason::ClientLeft,
                Unsecured::Fault(_) | Unsecured::Early => Reason::ClientTls,
            },
            detail: Some(unsecured.to_string()),
        })?;
        let done = session.handshake();
        Ok(done.map(|done| {
            self.count(match (done.version, done.resumed) {
                (Version::Tls12, false) => Opening::Tls12,
                (Version::Tls12, true) => Opening::Tls12Resumed,
                (Version::Tls13, false) => Opening::Tls13,
                (Version::Tls13, true) => Opening::Tls13Resumed,
            })
        }))
    }

    /// Looks at the ClientHello without taking it; `None`: the client waits for the backend to speak first.
    async fn look(&self) -> Result<(Opening, Option<Hello>), Refusal> {
        let mut reader = HelloReader::new();
        let mut seen = 0;
        loop {
            match self.more_than(seen).await {
                Err(Reason::HandshakeTimeout) if seen == 0 => {
                    return Ok((self.count(Opening::Silent), None));
                }
                outcome => outcome?,
            }
            let mut skipped = 0;
            let mut known = None;
            self.client.peek(|bytes| {
                let known_before = (seen - skipped).min(bytes.len() as u32);
                skipped += known_before;
                let news = &bytes[known_before as usize..];
                if known.is_none() && !news.is_empty() {
                    known = reader.feed(news);
                }
            });
            seen = self.client.held();
            if let Some(hello) = known {
                let (how, hello) = self.judge(hello)?;
                return Ok((how, Some(hello)));
            }
        }
    }

    fn judge(&self, hello: Hello) -> Result<(Opening, Hello), Refusal> {
        let how = match &hello {
            Hello::Name(_) => self.count(Opening::Named),
            Hello::NoName => self.count(Opening::NoName),
            Hello::NotTls => self.count(Opening::NotTls),
            Hello::TooLong => return Err(Reason::LongHello.into()),
            Hello::Malformed(why) => {
                return Err(Refusal {
                    reason: Reason::BadHello,
                    detail: Some((*why).to_owned()),
                });
            }
        };
        Ok((how, hello))
    }

    /// Waits until more than `bytes` are there.
    async fn more_than(&self, bytes: u32) -> Result<(), Reason> {
        let timer = self.ring.timer();
        timer.set(self.deadline);
        poll_fn(|_| {
            if self.client.held() > bytes {
                return Poll::Ready(Ok(()));
            }
            if self.client.has_ended() {
                return Poll::Ready(Err(match self.client.flow(0) {
                    Flow::Failed { .. } | Flow::Broken(_) => Reason::ClientReset,
                    Flow::Open | Flow::Finished => Reason::ClientLeft,
                }));
            }
            if self.ring.now() >= self.deadline {
                return Poll::Ready(Err(Reason::HandshakeTimeout));
            }
            self.client.receive_rest(BUFFER_BYTES);
            Poll::Pending
        })
        .await
    }

    fn count(&self, opening: Opening) -> Opening {
        self.admission.listener.counters().open(opening);
        opening
    }
}

/// Who a backend is told is connected, and to what; `None` = that can't be said.
pub(super) fn addresses(
    ring: &Ring,
    policy: &Policy,
    client: &Socket,
) -> Option<(SocketAddr, SocketAddr)> {
    if let Some(announced) = &policy.announced {
        return Some(**announced);
    }
    let peer = ring.peer(client).ok()??;
    let own = ring.local(client).ok()??;
    Some((peer, own))
}
