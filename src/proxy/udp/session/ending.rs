//! The end of a session: booked once, also when its worker has panicked.

use std::rc::Rc;

use super::Session;
use crate::address::canonical;
use crate::proxy::listener::LocalListener;
use crate::proxy::record::{End, Record};
use crate::proxy::relay::Outcome;
use crate::proxy::udp::Flows;
use crate::proxy::udp::parcel::Parcel;
use crate::proxy::udp::succession::SessionImage;
use crate::telemetry::{Dropped, Reason};
use crate::time::Instant;

impl Session {
    /// It is over.
    pub(super) fn finish(self: &Rc<Self>, flows: &Flows, reason: Reason) {
        flows.end(self);
        let counters = self.listener.counters();
        while let Some(unwanted) = self.next() {
            counters.drop(Dropped::Unwanted, Parcel::of(&unwanted).count());
        }
        self.book(reason, flows.ring.now());
    }

    fn book(&self, reason: Reason, now: Instant) {
        let Some(admission) = self.admission.take() else {
            return;
        };
        let lasted = now - self.began;
        let worker = &self.listener.worker;
        let told = worker.shared.around.events.sessions.are_told();
        let (backend, names) = {
            let lease = &mut self.side_mut().lease;
            lease.ended(reason, now);
            lease.count_end(worker.index, reason, lasted);
            let backend = lease.backend();
            let names = (
                told.then(|| self.policy.upstream.name().clone()),
                told.then(|| backend.name.clone()),
            );
            (backend.number, names)
        };
        let (session, (listener, _)) = (admission.number, admission.leave());
        let outcome = Outcome {
            bytes_received: self.bytes_received.get(),
            bytes_sent: self.bytes_sent.get(),
            ..Outcome::nothing(reason)
        };
        let end = End {
            listener: &listener,
            session,
            at: now,
            lasted: Some(lasted),
            outcome: &outcome,
            backend: Some(backend),
            names,
        };
        end.book(told.then(|| Record::new(Some(canonical(self.client.get())))));
    }
}

impl SessionImage {
    /// The session has left one process, or one worker, and came to no other.
    pub(in crate::proxy::udp) fn end(&self, listener: &LocalListener, reason: Reason) {
        let worker = &listener.worker;
        let now = worker.ring.now();
        let outcome = Outcome {
            bytes_received: self.bytes_received,
            bytes_sent: self.bytes_sent,
            ..Outcome::nothing(reason)
        };
        let told = worker.shared.around.events.sessions.are_told();
        let end = End {
            listener,
            session: worker.number_session(),
            at: now,
            lasted: Some(now - Instant::from_nanos(self.began_nanos).min(now)),
            outcome: &outcome,
            backend: None,
            names: (None, told.then(|| self.backend.as_str().into())),
        };
        end.book(told.then(|| Record::new(Some(canonical(self.client)))));
    }
}

impl Drop for Session {
    /// Its worker may have panicked.
    fn drop(&mut self) {
        if self.listener.worker.is_falling() {
            self.book(Reason::WorkerPanicked, self.listener.worker.ring.now());
        }
    }
}
