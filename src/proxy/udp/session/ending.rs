//! The end of a session: told and counted once, also when its worker has panicked.

use std::rc::Rc;
use std::sync::Arc;

use super::Session;
use crate::proxy::udp::Flows;
use crate::proxy::udp::parcel::Parcel;
use crate::proxy::udp::table::canonical;
use crate::telemetry::sessions::SessionRecord;
use crate::telemetry::{Dropped, Reason};
use crate::time::Instant;

impl Session {
    /// Books the end.
    pub(super) fn finish(self: &Rc<Self>, flows: &Flows, reason: Reason) {
        let now = flows.ring.now();
        flows.end(self);
        let counters = self.listener.counters();
        while let Some(unwanted) = self.next() {
            counters.drop(Dropped::Unwanted, Parcel::of(&unwanted).count());
        }
        let (worker, duration) = (&self.listener.worker, now - self.began);
        let (backend, number) = {
            let lease = &mut self.side_mut().lease;
            lease.ended(reason, now);
            lease.count_end(worker.index, reason, duration);
            (lease.backend().name.clone(), lease.backend().number)
        };
        drop(self.admission.take());
        self.count_bytes();
        self.listener.counters().close(reason);
        self.listener.counters().duration.record(duration);
        let bytes = self.bytes_received.get() + self.bytes_sent.get();
        let local = &self.listener.worker.local;
        local.note_end((now, self.number), reason, number, bytes);
        self.tell(reason, Some(backend), now);
    }

    fn tell(&self, reason: Reason, backend: Option<Arc<str>>, now: Instant) {
        let worker = &self.listener.worker;
        let sessions = &worker.shared.around.events.sessions;
        if sessions.are_told() {
            sessions.send(Box::new(SessionRecord {
                at: now,
                worker: worker.index,
                session: self.number,
                listener: self.listener.state.name.clone(),
                client: Some(canonical(self.client.get())),
                upstream: Some(self.policy.upstream.name().clone()),
                route: None,
                backend,
                retries: 0,
                tls: None,
                sni: None,
                queued: None,
                connect: None,
                first_byte: None,
                duration: now - self.began,
                bytes_received: self.bytes_received.get(),
                bytes_sent: self.bytes_sent.get(),
                reason,
                detail: None,
            }));
        }
    }

    /// Counts for the backend what was said to it and by it.
    pub(super) fn count_bytes(&self) {
        let side = self.side();
        let counters = side.lease.counters(self.listener.worker.index);
        counters.bytes_received.add(side.received);
        counters.bytes_sent.add(side.sent);
    }
}

impl Drop for Session {
    /// Its worker may have panicked. The end is counted with the admission's.
    fn drop(&mut self) {
        if self.admission.get_mut().is_some() && self.listener.worker.is_falling() {
            let reason = Reason::WorkerPanicked;
            let Some(side) = self.backend.get_mut() else {
                return self.tell(reason, None, self.began);
            };
            let now = side.socket.ring().now();
            let worker = self.listener.worker.index;
            side.lease.count_end(worker, reason, now - self.began);
            let backend = side.lease.backend().name.clone();
            self.count_bytes();
            self.tell(reason, Some(backend), now);
        }
    }
}
