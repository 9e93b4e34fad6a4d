//! Who looks on: subscribers of the event stream, who hear the pulse once a second. It is made once for all
//! of them; who does not read is cut off.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};

/// At once.
const SUBSCRIBERS_MAX: usize = 32;
/// Pulses that wait for a subscriber, beside what its socket holds.
const WAITING_MAX: usize = 4;

/// Those who look on.
#[derive(Default)]
pub(super) struct Subscribers(RefCell<Vec<Subscriber>>);

struct Subscriber {
    events: mpsc::Sender<Bytes>,
    /// Ends its connection.
    cut: Rc<Notify>,
}

impl Subscribers {
    /// One more, who hears `opening` first; `None` = there are as many as there may be. `cut` is notified when it
    /// has not read.
    pub(super) fn add(&self, cut: Rc<Notify>, opening: Bytes) -> Option<mpsc::Receiver<Bytes>> {
        if self.count() >= SUBSCRIBERS_MAX {
            return None;
        }
        let (events, receiver) = mpsc::channel(WAITING_MAX);
        // It is empty: there is room.
        let _ = events.try_send(opening);
        self.0.borrow_mut().push(Subscriber { events, cut });
        Some(receiver)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        let mut list = self.0.borrow_mut();
        list.retain(|it| !it.events.is_closed());
        list.len()
    }

    /// The streams end.
    pub(super) fn clear(&self) {
        self.0.borrow_mut().clear();
    }

    /// All of them hear it.
    pub(super) fn tell(&self, event: &Bytes) {
        self.0
            .borrow_mut()
            .retain(|it| match it.events.try_send(event.clone()) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    it.cut.notify_one();
                    false
                }
                Err(mpsc::error::TrySendError::Closed(_)) => false,
            });
    }
}
