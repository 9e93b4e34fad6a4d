//! Who looks on: subscribers of the event stream, who hear the status once a second. It is made once for all
//! of them, and only while there are any; who does not read is cut off.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_local;
use tokio::time::{MissedTickBehavior, interval};

use super::ask::{Ask, Asking};

/// At once.
const SUBSCRIBERS_MAX: usize = 32;
const PERIOD: Duration = Duration::from_secs(1);
/// Events that wait for a subscriber, beside what its socket holds.
const WAITING_MAX: usize = 4;

/// Those who look on.
#[derive(Default)]
pub(super) struct Subscribers {
    list: RefCell<Vec<Subscriber>>,
    /// For who comes between two ticks; none while nobody looks on.
    last: RefCell<Option<Bytes>>,
}

struct Subscriber {
    events: mpsc::Sender<Bytes>,
    /// Ends its connection.
    cut: Rc<Notify>,
}

impl Subscribers {
    /// One more; `None` = there are as many as there may be. `cut` is notified when it has not read.
    pub(super) fn add(
        self: &Rc<Self>,
        cut: Rc<Notify>,
        asking: &Rc<Asking>,
    ) -> Option<mpsc::Receiver<Bytes>> {
        let mut list = self.list.borrow_mut();
        list.retain(|it| !it.events.is_closed());
        if list.len() >= SUBSCRIBERS_MAX {
            return None;
        }
        let (events, receiver) = mpsc::channel(WAITING_MAX);
        if let Some(last) = &*self.last.borrow() {
            // It is empty: there is room.
            let _ = events.try_send(last.clone());
        }
        let is_first = list.is_empty();
        list.push(Subscriber { events, cut });
        if is_first {
            spawn_local(tick(self.clone(), asking.clone()));
        }
        Some(receiver)
    }

    /// The streams end.
    pub(super) fn clear(&self) {
        self.list.borrow_mut().clear();
    }

    /// False when nobody looks on any more.
    fn tell(&self, event: &Bytes) -> bool {
        let mut list = self.list.borrow_mut();
        list.retain(|it| match it.events.try_send(event.clone()) {
            Ok(()) => true,
            Err(mpsc::error::TrySendError::Full(_)) => {
                it.cut.notify_one();
                false
            }
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        });
        *self.last.borrow_mut() = Some(event.clone()).filter(|_| !list.is_empty());
        !list.is_empty()
    }
}

async fn tick(subscribers: Rc<Subscribers>, asking: Rc<Asking>) {
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(status) = asking.ask(Ask::Status).await else {
            return subscribers.clear();
        };
        // It has no keys that are no text.
        let data = serde_json::to_string(&status).unwrap_or_default();
        let event = format!("event: status\ndata: {data}\n\n");
        if !subscribers.tell(&event.into()) {
            return;
        }
    }
}
