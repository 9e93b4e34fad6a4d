//! What a TCP session remembers only because its end is told. An idle session has it for as long as it lasts,
//! so it is small: what most sessions never have is apart.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::admission::Admission;
use super::listener::LocalListener;
use super::relay::Outcome;
use crate::ring::{Ring, Socket};
use crate::telemetry::sessions::SessionRecord;
use crate::telemetry::{Opening, Reason};
use crate::time::Instant;
use crate::upstream::Story;

/// A session, for its line in the access log. 40 bytes.
pub(super) struct Record {
    rare: Option<Box<Rare>>,
    connect: Span,
    first_byte: Span,
    client: Option<(IpAddr, u16)>,
    retries: u16,
    /// `u16::MAX` = it took none, or `Rare` has it.
    route: u16,
}

/// What few have, or only for a while.
#[derive(Default)]
struct Rare {
    /// Until there is a backend.
    early: Option<Early>,
    opening: Option<Opening>,
    sni: Option<Box<str>>,
    queued: Option<Duration>,
    /// What a [`Span`] can't hold.
    late: Option<Duration>,
    /// What `Record::route` can't hold.
    route: Option<usize>,
}

impl Rare {
    fn is_empty(&self) -> bool {
        let Self {
            early,
            opening,
            sni,
            queued,
            late,
            route,
        } = self;
        let named = opening.is_some() || sni.is_some() || route.is_some();
        !named && early.is_none() && queued.is_none() && late.is_none()
    }
}

/// By which a session is told that its worker has lost before it had a backend.
struct Early {
    ring: Ring,
    listener: Rc<LocalListener>,
    /// The session's number on its worker.
    session: u32,
    began: Instant,
}

/// Microseconds, which is what the log has, of up to 71 minutes; the most = none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Span(u32);

impl Span {
    const NONE: Self = Self(u32::MAX);

    /// None where it does not fit.
    fn of(time: Duration) -> Self {
        u32::try_from(time.as_micros()).map_or(Self::NONE, Self)
    }

    fn get(self) -> Option<Duration> {
        (self != Self::NONE).then(|| Duration::from_micros(self.0.into()))
    }
}

/// A session's end.
pub(super) struct End<'a> {
    pub(super) listener: &'a LocalListener,
    /// The session's number on its worker.
    pub(super) session: u32,
    /// When it ended, and how long it lasted.
    pub(super) at: Instant,
    pub(super) duration: Duration,
    pub(super) outcome: &'a Outcome,
    /// Names of upstream and backend, as far as they are known.
    pub(super) upstream: Option<Arc<str>>,
    pub(super) backend: Option<Arc<str>>,
}

impl Record {
    /// For a session that has just been let in; `None` = it won't be told.
    pub(super) fn begin(ring: &Ring, admission: &Admission, client: &Socket) -> Option<Box<Self>> {
        let listener = &admission.listener;
        let sessions = &listener.worker.shared.around.events.sessions;
        sessions.are_told().then(|| {
            let early = Early {
                ring: ring.clone(),
                listener: listener.clone(),
                session: admission.number,
                began: ring.now(),
            };
            let mut record = Self::of(ring, client);
            record.rare().early = Some(early);
            record
        })
    }

    /// For a session that ends at once.
    pub(super) fn of(ring: &Ring, client: &Socket) -> Box<Self> {
        let client = ring.peer(client).ok().flatten();
        Box::new(Self {
            rare: None,
            connect: Span::NONE,
            first_byte: Span::NONE,
            client: client.map(|client| (client.ip(), client.port())),
            retries: 0,
            route: u16::MAX,
        })
    }

    fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Another proxy says who the client is.
    pub(super) fn announced(&mut self, client: SocketAddr) {
        self.client = Some((client.ip(), client.port()));
    }

    /// How the session began.
    pub(super) fn opened(&mut self, how: Option<Opening>, sni: Option<Box<str>>) {
        if how.is_some() || sni.is_some() {
            let rare = self.rare();
            rare.opening = how;
            rare.sni = sni;
        }
    }

    /// Which route it took, and how the look for a backend went.
    pub(super) fn went(&mut self, route: Option<usize>, story: &Story) {
        let short = route.and_then(|route| u16::try_from(route).ok());
        self.route = short.unwrap_or(u16::MAX);
        if self.route == u16::MAX && route.is_some() {
            self.rare().route = route;
        }
        self.retries = u16::try_from(story.retries.get()).unwrap_or(u16::MAX);
        // The kernel gives up long before that is too little.
        self.connect = story.connect.get().map_or(Span::NONE, Span::of);
        if let Some(queued) = story.queued.get() {
            self.rare().queued = Some(queued);
        }
    }

    /// There is a backend: from now on its session sees to it that it is told.
    pub(super) fn settle(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.early = None;
            if rare.is_empty() {
                self.rare = None;
            }
        }
    }

    /// The backend has said something, so long after it was asked.
    pub(super) fn answered(&mut self, after: Duration) {
        self.first_byte = Span::of(after);
        if self.first_byte == Span::NONE {
            self.rare().late = Some(after);
        }
    }

    /// Tells of the session.
    pub(super) fn tell(&mut self, end: End<'_>) {
        let rare = self.rare.take().map_or_else(Rare::default, |rare| *rare);
        let (listener, worker) = (end.listener, &end.listener.worker);
        let sessions = &worker.shared.around.events.sessions;
        sessions.send(Box::new(SessionRecord {
            at: end.at,
            worker: worker.index,
            session: end.session,
            listener: listener.state.name.clone(),
            client: self.client.map(SocketAddr::from),
            upstream: end.upstream,
            route: rare
                .route
                .or((self.route != u16::MAX).then_some(self.route.into())),
            backend: end.backend,
            retries: self.retries.into(),
            tls: rare.opening,
            sni: rare.sni,
            queued: rare.queued,
            connect: self.connect.get(),
            first_byte: rare.late.or(self.first_byte.get()),
            duration: end.duration,
            bytes_received: end.outcome.bytes_received,
            bytes_sent: end.outcome.bytes_sent,
            reason: end.outcome.reason,
            detail: end.outcome.detail.clone(),
        }));
    }
}

impl Drop for Record {
    /// A session that had no backend yet when its worker panicked.
    fn drop(&mut self) {
        let rare = self.rare.as_mut();
        if let Some(early) = rare.and_then(|rare| rare.early.take())
            && early.listener.worker.is_falling()
        {
            self.tell(End {
                listener: &early.listener,
                session: early.session,
                at: early.ring.now(),
                duration: early.ring.now() - early.began,
                outcome: &Outcome::nothing(Reason::WorkerPanicked),
                upstream: None,
                backend: None,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_as_small_as_it_says() {
        assert!(size_of::<Record>() <= 40, "{}", size_of::<Record>());
    }

    #[test]
    fn a_span_is_microseconds_that_fit() {
        let hour = Duration::from_hours(1);
        assert_eq!(Span::of(hour).get(), Some(hour));
        assert_eq!(Span::of(Duration::ZERO).get(), Some(Duration::ZERO));
        assert_eq!(Span::of(2 * hour).get(), None);
    }
}
