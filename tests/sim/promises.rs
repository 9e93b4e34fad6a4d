//! What must hold of every run.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ringress::ring::sim::{Ending, PeerRecord};
use ringress::telemetry::Reason;
use ringress::telemetry::sessions::SessionRecord;

use crate::run::Outcome;
use crate::security::{Clients, Security};

impl Outcome {
    pub(crate) fn sessions_of(&self, reason: Reason) -> usize {
        self.sessions
            .iter()
            .filter(|session| session.reason == reason)
            .count()
    }

    /// Why the session of a client ended.
    pub(crate) fn reason_of(&self, client: usize) -> Option<Reason> {
        let sessions = self.sessions_by_client(&mut Vec::new());
        let session = self.session_of(&self.clients[client], &sessions)?;
        Some(session.reason)
    }

    /// With scripts that come to their end, every session that got a backend does, in order, and
    /// without the idle timer having to nudge it on.
    pub(crate) fn check_lively(&mut self, longest: Duration) {
        // A connection ahead may have to be let go of first, and a descriptor to be waited for.
        if self.longest_neglect > Duration::from_millis(200) {
            let neglect = self.longest_neglect;
            self.broken
                .push(format!("a place was free beside a waiter for {neglect:?}"));
        }
        let in_order = [Reason::ClientClosed, Reason::BackendClosed];
        for session in &self.sessions {
            let nudged = session.duration >= longest;
            let turned_away = matches!(session.reason, Reason::QueueFull | Reason::QueueTimeout);
            let served = session.backend.is_some();
            if turned_away || served && (nudged || !in_order.contains(&session.reason)) {
                self.broken
                    .push(format!("nothing stalled, and yet: {session:?}"));
            }
        }
    }

    /// Everything that must hold of any run, said where it does not.
    pub(crate) fn broken_promises(&self) -> Vec<String> {
        let mut broken = self.broken.clone();
        let sessions = self.sessions_by_client(&mut broken);
        for (client, deaf) in self.clients.iter().zip(&self.deaf) {
            if client.ending == Ending::Open && !deaf {
                broken.push(format!("client {:?} never ended", client.stream));
            }
            if !client.intact {
                broken.push(format!("client {:?} heard wrong bytes", client.stream));
            }
            if let Some(session) = self.session_of(client, &sessions) {
                self.check_session(client, session, &mut broken);
            }
        }
        for backend in self.backends.iter().filter(|backend| !backend.intact) {
            broken.push(format!(
                "the backend of {:?} heard wrong bytes",
                backend.stream
            ));
        }
        self.check_told(&mut broken);
        self.check_layers(&mut broken);
        broken
    }

    /// The session that a client has had, by who it is or is said to be.
    fn session_of<'a>(
        &self,
        client: &PeerRecord,
        sessions: &BTreeMap<SocketAddr, &'a SessionRecord>,
    ) -> Option<&'a SessionRecord> {
        let accepts = self.plan.security.accepts.is_some();
        let stream = client.stream.filter(|_| accepts);
        let announced = stream.map(|stream| Security::announced(stream as usize));
        let session = announced.and_then(|announced| sessions.get(&announced));
        session.or_else(|| sessions.get(&client.local?)).copied()
    }

    /// Backends were told the truth about clients.
    fn check_told(&self, broken: &mut Vec<String>) {
        for (stream, source) in &self.told {
            let client = &self.clients[*stream as usize];
            let truth = match self.plan.security.accepts {
                Some(_) => Some(Security::announced(*stream as usize)),
                None => client.local,
            };
            if truth != Some(*source) {
                broken.push(format!("a backend was told {source} for {client:?}"));
            }
        }
    }

    /// Peers that keep to their protocols find nothing wrong with what they hear.
    fn check_layers(&self, broken: &mut Vec<String>) {
        let security = &self.plan.security;
        if !security.is_honest() {
            return;
        }
        let passed_on = security.client == Clients::PassedOn;
        let peers = self.clients.iter().chain(&self.backends);
        for peer in peers {
            // A connection ahead, or one that was given up, ends without ceremony.
            let unused = peer.received == 0 && peer.sent == 0;
            let truncated = peer.ending == Ending::Truncated && !passed_on && !unused;
            if truncated || peer.ending == Ending::Faulty {
                broken.push(format!("heard what nobody said: {peer:?}"));
            }
        }
        for session in &self.sessions {
            if session.reason == Reason::ClientTls {
                broken.push(format!("a client did nothing wrong: {session:?}"));
            }
        }
    }

    fn sessions_by_client(&self, broken: &mut Vec<String>) -> BTreeMap<SocketAddr, &SessionRecord> {
        let mut sessions = BTreeMap::new();
        for session in &self.sessions {
            if let Some(client) = session.client
                && sessions.insert(client, session).is_some()
            {
                broken.push(format!("the session of {client} ended twice"));
            }
        }
        sessions
    }

    /// What a session's reason promises about its two ends.
    fn check_session(
        &self,
        client: &PeerRecord,
        session: &SessionRecord,
        broken: &mut Vec<String>,
    ) {
        let backend = self
            .backends
            .iter()
            .find(|backend| backend.stream == client.stream);
        let mut claim = |holds: bool, what: &str| {
            if !holds {
                broken.push(format!(
                    "{what}\n  {session:?}\n  {client:?}\n  {backend:?}"
                ));
            }
        };
        let (kept, what) = self.promise(session.reason, client, backend);
        claim(kept, what);
        claim(
            client.received <= session.bytes_sent,
            "the client heard more than was sent",
        );
    }

    /// Whether what a reason promises is kept, and what is wrong if it isn't.
    fn promise(
        &self,
        reason: Reason,
        client: &PeerRecord,
        backend: Option<&PeerRecord>,
    ) -> (bool, &'static str) {
        let backend_saw_fin = backend.is_some_and(|backend| backend.saw_fin);
        match reason {
            Reason::ClientClosed | Reason::BackendClosed => (
                backend.is_none_or(|backend| self.is_delivered(client, backend)),
                "closed in order, but not every byte was delivered",
            ),
            Reason::NoBackend
            | Reason::ConnectTimeout
            | Reason::ProcessFull
            | Reason::ListenerFull
            | Reason::Denied
            | Reason::RateLimit
            | Reason::ClientRateLimit
            | Reason::QueueFull
            | Reason::QueueTimeout => (!client.saw_fin, "refused, but the client saw a clean end"),
            Reason::ClientLeft
            | Reason::HandshakeTimeout
            | Reason::UntrustedProxy
            | Reason::BadProxyHeader
            | Reason::BadHello
            | Reason::LongHello => (
                !client.saw_fin && backend.is_none(),
                "never begun, but the client saw a clean end, or a backend heard of it",
            ),
            // A backend's FIN may have come before the cut; then it came after all its bytes.
            Reason::BackendReset | Reason::Drained => {
                let whole = |backend: &PeerRecord| client.received == backend.sent;
                (
                    !client.saw_fin || backend.is_none_or(|it| it.unsaid || whole(it)),
                    "cut off, but the client saw a clean end",
                )
            }
            Reason::WorkerPanicked => {
                let whole = |from: &PeerRecord, to: &PeerRecord| {
                    !to.saw_fin || from.unsaid || to.received == from.sent
                };
                (
                    backend.is_none_or(|it| whole(it, client) && whole(client, it)),
                    "lost, but somebody saw a clean end",
                )
            }
            Reason::ClientReset => {
                let truncated = |backend: &PeerRecord| {
                    backend.ending == Ending::Fin && backend.received < client.sent
                };
                (
                    client.unsaid || !backend.is_some_and(truncated),
                    "the client reset, but the backend saw a clean end",
                )
            }
            // What one side was not told is over must not look so to the other.
            Reason::ClientTruncated | Reason::ClientTls => {
                let what = "cut short or broken, but the backend saw a clean end";
                (!backend_saw_fin, what)
            }
            Reason::BackendTruncated | Reason::BackendTls => {
                let what = "cut short or broken, but the client saw a clean end";
                (!client.saw_fin, what)
            }
            _ => (true, ""),
        }
    }

    fn is_delivered(&self, client: &PeerRecord, backend: &PeerRecord) -> bool {
        let whole = |from: &PeerRecord, to: &PeerRecord| {
            // Who closed or reset its end by itself may have left bytes unread. Who heard TLS cut short, end to
            // end, knows it.
            let knows = [Ending::Closed, Ending::Aborted, Ending::Truncated];
            to.received == from.sent || from.unsaid || knows.contains(&to.ending)
        };
        // Who goes round its script says what is not counted.
        let counted = self.plan.security.is_honest() || client.sent > 0;
        (!counted || whole(client, backend)) && whole(backend, client)
    }
}
