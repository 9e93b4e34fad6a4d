//! The end of a session: counted, noted and told, once. And what a TCP session remembers only because it is
//! told: an idle one has it for as long as it lasts, so it is small, and what most never have is apart.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::listener::LocalListener;
use super::relay::Outcome;
use crate::ring::{Ring, Socket};
use crate::telemetry::Opening;
use crate::telemetry::sessions::SessionRecord;
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

/// What few have.
#[derive(Default)]
struct Rare {
    opening: Option<Opening>,
    sni: Option<Box<str>>,
    queued: Option<Duration>,
    /// What a [`Span`] can't hold.
    late: Option<Duration>,
    /// What `Record::route` can't hold.
    route: Option<usize>,
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
    pub(super) at: Instant,
    /// How long it lasted; `None` = it was not let in.
    pub(super) lasted: Option<Duration>,
    pub(super) outcome: &'a Outcome,
    /// The backend's number.
    pub(super) backend: Option<u32>,
    /// Only of use where there is a record.
    pub(super) names: Names,
}

/// Of the upstream and of the backend, as far as they are known.
pub(super) type Names = (Option<Arc<str>>, Option<Arc<str>>);

impl End<'_> {
    /// Counts it, notes it, and tells it where there is a record. Whoever hears of it shall find the session's
    /// places free.
    pub(super) fn book(self, record: Option<Box<Record>>) {
        let (listener, outcome) = (self.listener, self.outcome);
        listener.counters().close(outcome.reason);
        if let Some(lasted) = self.lasted {
            listener.counters().duration.record(lasted);
        }
        let subject = self.backend.unwrap_or(listener.state.number);
        let bytes = outcome.bytes_received + outcome.bytes_sent;
        let local = &listener.worker.local;
        local.note_end((self.at, self.session), outcome.reason, subject, bytes);
        if let Some(record) = record {
            record.tell(self);
        }
    }
}

impl Record {
    /// Of a session with this client.
    pub(super) fn new(client: Option<SocketAddr>) -> Box<Self> {
        Box::new(Self {
            rare: None,
            connect: Span::NONE,
            first_byte: Span::NONE,
            client: client.map(|client| (client.ip(), client.port())),
            retries: 0,
            route: u16::MAX,
        })
    }

    /// The same of a connection.
    pub(super) fn of(ring: &Ring, client: &Socket) -> Box<Self> {
        Self::new(ring.peer(client).ok().flatten())
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

    /// The backend has said something, so long after it was asked.
    pub(super) fn answered(&mut self, after: Duration) {
        self.first_byte = Span::of(after);
        if self.first_byte == Span::NONE {
            self.rare().late = Some(after);
        }
    }

    fn tell(self, end: End<'_>) {
        let rare = self.rare.map_or_else(Rare::default, |rare| *rare);
        let (listener, worker) = (end.listener, &end.listener.worker);
        let sessions = &worker.shared.around.events.sessions;
        sessions.send(Box::new(SessionRecord {
            at: end.at,
            worker: worker.index,
            session: end.session,
            listener: listener.state.name.clone(),
            client: self.client.map(SocketAddr::from),
            upstream: end.names.0,
            route: rare
                .route
                .or((self.route != u16::MAX).then_some(self.route.into())),
            backend: end.names.1,
            retries: self.retries.into(),
            tls: rare.opening,
            sni: rare.sni,
            queued: rare.queued,
            connect: self.connect.get(),
            first_byte: rare.late.or(self.first_byte.get()),
            duration: end.lasted.unwrap_or_default(),
            bytes_received: end.outcome.bytes_received,
            bytes_sent: end.outcome.bytes_sent,
            reason: end.outcome.reason,
            detail: end.outcome.detail.clone(),
        }));
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
