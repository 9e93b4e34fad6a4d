//! Who looks on: subscribers of the event stream, who hear the pulse once a second. It is made once for all
//! of them. Who reads slowly misses some; who does not read is cut off.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

/// At once.
const SUBSCRIBERS_MAX: usize = 32;
/// Pulses that wait for a subscriber, beside what its socket holds.
const WAITING_MAX: usize = 4;
/// For a subscriber with so many to take some of it: over a slow line the first event alone may need minutes.
const READING_TIMEOUT: Duration = Duration::from_secs(10);

/// Those who look on.
#[derive(Default)]
pub(super) struct Subscribers(RefCell<Vec<Subscriber>>);

struct Subscriber {
    events: mpsc::Sender<Bytes>,
    /// It has taken something since it was told the last pulse.
    reads: Rc<Cell<bool>>,
    /// When it was last found to have.
    has_read: Instant,
    /// Ends its connection.
    cut: Rc<Notify>,
}

/// What a subscriber hears.
pub(in crate::control) struct Heard {
    pub(super) events: mpsc::Receiver<Bytes>,
    /// Set when some of it was taken.
    pub(super) reads: Rc<Cell<bool>>,
}

impl Subscribers {
    /// One more, who hears the `opening` first; `None` = there are as many as there may be. `cut` is notified when
    /// it has not read.
    pub(super) fn add(&self, cut: Rc<Notify>, opening: impl FnOnce() -> Bytes) -> Option<Heard> {
        if self.count() >= SUBSCRIBERS_MAX {
            return None;
        }
        let (sender, events) = mpsc::channel(WAITING_MAX);
        // It is empty: there is room.
        let _ = sender.try_send(opening());
        let heard = Heard {
            events,
            reads: Rc::default(),
        };
        self.0.borrow_mut().push(Subscriber {
            events: sender,
            reads: heard.reads.clone(),
            has_read: Instant::now(),
            cut,
        });
        Some(heard)
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

    /// All of them hear it who have room for it.
    pub(super) fn tell(&self, event: &Bytes) {
        self.0.borrow_mut().retain_mut(|it| it.hear(event));
    }
}

impl Subscriber {
    /// False if it has gone, or is to go.
    fn hear(&mut self, event: &Bytes) -> bool {
        if self.reads.take() {
            self.has_read = Instant::now();
        }
        match self.events.try_send(event.clone()) {
            Ok(()) => true,
            Err(TrySendError::Full(_)) if self.has_read.elapsed() < READING_TIMEOUT => true,
            Err(TrySendError::Full(_)) => {
                self.cut.notify_one();
                false
            }
            Err(TrySendError::Closed(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    /// A subscriber, and what is notified when it is cut off.
    fn one(subscribers: &Subscribers) -> (Heard, Rc<Notify>) {
        let cut = Rc::new(Notify::new());
        let heard = subscribers.add(cut.clone(), Bytes::new);
        (heard.expect("there is room"), cut)
    }

    /// Tells a pulse a second.
    async fn tell(subscribers: &Subscribers, seconds: u8) {
        for second in 0..seconds {
            advance(Duration::from_secs(1)).await;
            subscribers.tell(&Bytes::from(vec![second]));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_a_little_now_and_then_is_kept_and_misses_what_has_no_room() {
        let subscribers = Subscribers::default();
        let (mut slow, cut) = one(&subscribers);
        for _ in 0..10 {
            tell(&subscribers, 9).await;
            // As when a frame of something long is taken.
            slow.reads.set(true);
        }
        assert_eq!(subscribers.count(), 1);
        let mut waiting = Vec::new();
        while let Ok(event) = slow.events.try_recv() {
            waiting.extend(event);
        }
        assert_eq!(waiting, [0, 1, 2], "behind the opening, which is empty");
        tell(&subscribers, 1).await;
        assert_eq!(
            slow.events.try_recv().expect("there is room again"),
            [0][..]
        );
        drop((slow, cut));
        assert_eq!(subscribers.count(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_for_ten_seconds_is_cut_off() {
        let subscribers = Subscribers::default();
        let (_blind, cut) = one(&subscribers);
        tell(&subscribers, 9).await;
        assert_eq!(subscribers.count(), 1);
        tell(&subscribers, 1).await;
        assert_eq!(subscribers.count(), 0);
        cut.notified().await;
    }

    #[tokio::test]
    async fn who_finds_no_place_costs_no_opening() {
        let subscribers = Subscribers::default();
        let _there: Vec<_> = (0..SUBSCRIBERS_MAX).map(|_| one(&subscribers)).collect();
        let opening = || unreachable!("it is not made");
        assert!(subscribers.add(Rc::default(), opening).is_none());
    }
}
