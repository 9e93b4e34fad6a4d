//! A session that leaves for another process, or comes from one.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use super::{HAS_BACKEND, Session, Side};
use crate::proxy::admission::Admission;
use crate::proxy::listener::LocalListener;
use crate::proxy::snapshot::ListenerPolicy;
use crate::proxy::udp::Flows;
use crate::proxy::udp::succession::SessionImage;
use crate::proxy::udp::table::Key;
use crate::ring::DatagramSocket;
use crate::telemetry::Reason;
use crate::time::Instant;
use crate::upstream::Lease;

impl Session {
    /// Goes on with a session that another process has begun; `None` if its backend is not known.
    pub(in crate::proxy::udp) fn adopt(
        flows: &Rc<Flows>,
        listener: &Rc<LocalListener>,
        policy: &Arc<ListenerPolicy>,
        image: &SessionImage,
        socket: DatagramSocket,
    ) -> Option<Rc<Self>> {
        let mut backends = policy.upstream.backends().iter();
        let backend = backends.find(|it| it.address.to_string() == image.backend)?;
        let udp = policy.udp?;
        let mut key = Key::new(&udp, image.client, image.local());
        if udp.per_packet {
            key = key.with(backend);
        }
        let side = Side {
            announced: true,
            lost: image.lost,
            ..Side::new(socket, Lease::adopt(backend), policy.upstream.announce())
        };
        let now = flows.ring.now();
        let at = |nanos| Instant::from_nanos(nanos).min(now);
        let admission = Admission::adopt(listener);
        let session = Rc::new(Self {
            key,
            client: Cell::new(image.client),
            local: image.local(),
            destination: flows.destination(image.local()),
            listener: listener.clone(),
            admission: Cell::new(Some(admission)),
            policy: policy.clone(),
            backend: RefCell::new(Some(side)),
            last: Cell::new(at(image.last_nanos)),
            unanswered: RefCell::default(),
            heard: Cell::new(now),
            replies: Cell::new(image.replies),
            moved: Cell::new(false),
            over: Cell::new(None),
            offload: Cell::new(true),
            bytes_received: Cell::new(image.bytes_received),
            bytes_sent: Cell::new(image.bytes_sent),
            began: at(image.began_nanos),
            task: RefCell::new(None),
        });
        session.start(flows);
        Some(session)
    }

    /// Packs up for another process; false as long as something may still arrive. What can't be packed
    /// ends.
    pub(super) fn leave(self: &Rc<Self>, flows: &Flows) -> bool {
        if !self.side().socket.stop() {
            return false;
        }
        let image = self.image();
        let side = self.backend.take().expect(HAS_BACKEND);
        // Who leaves has no end here.
        let _ = self.admission.take().map(Admission::leave);
        flows.end(self);
        match side.socket.detach() {
            Ok(socket) => flows.left.borrow_mut().push((image, socket)),
            Err(_) => image.end(&self.listener, Reason::Drained),
        }
        true
    }

    fn image(&self) -> SessionImage {
        let side = self.side();
        SessionImage {
            client: self.client.get(),
            local: self.local.map(|local| (local.ip, local.interface)),
            backend: side.lease.backend().address.to_string(),
            replies: self.replies.get(),
            last_nanos: self.last.get().as_nanos(),
            began_nanos: self.began.as_nanos(),
            bytes_received: self.bytes_received.get(),
            bytes_sent: self.bytes_sent.get(),
            lost: side.lost,
        }
    }
}
