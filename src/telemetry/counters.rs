//! Counters of one listener on one worker. Only that worker writes them; readers add the workers
//! up. Nothing is contended. What they say can be carried on by another process, as totals.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::latency::Times;
use super::{Dropped, Opening, Reason};

/// A number that one thread raises and any thread reads.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `amount`. Only the owner calls this: a plain store is enough.
    pub fn add(&self, amount: u64) {
        self.0.store(
            self.0.load(Ordering::Relaxed).wrapping_add(amount),
            Ordering::Relaxed,
        );
    }

    /// The sum so far.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What happened on a listener.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct ListenerCounters {
    /// Connections that were accepted, refused ones included.
    pub accepted: Counter,
    /// Bytes from clients towards backends.
    pub bytes_received: Counter,
    /// Bytes from backends towards clients.
    pub bytes_sent: Counter,
    /// Failed tries to connect to a backend, of sessions that may have found another.
    pub connect_failures: Counter,
    /// Times accepting had to pause because the system had no descriptor or memory.
    pub accept_pauses: Counter,
    /// Connections that `rate_limit` would have refused, had it not been a dry run.
    pub rate_limit_dry_run: Counter,
    /// Datagrams from clients, dropped ones included.
    pub datagrams_received: Counter,
    /// Datagrams that were sent to clients.
    pub datagrams_sent: Counter,
    /// From accept to end, of sessions that were let in; of this process only.
    pub duration: Times,
    closed: [Counter; REASONS],
    dropped: [Counter; DROPPED],
    opened: [Counter; OPENINGS],
}

const REASONS: usize = Reason::ALL.len();
const DROPPED: usize = Dropped::ALL.len();
const OPENINGS: usize = Opening::ALL.len();

impl ListenerCounters {
    /// A session ended.
    pub fn close(&self, reason: Reason) {
        self.closed[reason as usize].add(1);
    }

    /// Sessions that ended for `reason`.
    pub fn closed(&self, reason: Reason) -> u64 {
        self.closed[reason as usize].value()
    }

    /// A session has begun in this way.
    pub fn open(&self, opening: Opening) {
        self.opened[opening as usize].add(1);
    }

    /// So many datagrams went no further.
    pub fn drop(&self, dropped: Dropped, count: u64) {
        self.dropped[dropped as usize].add(count);
    }

    /// All of them, each at its own moment.
    pub fn totals(&self) -> Totals {
        Totals {
            accepted: self.accepted.value(),
            bytes_received: self.bytes_received.value(),
            bytes_sent: self.bytes_sent.value(),
            connect_failures: self.connect_failures.value(),
            accept_pauses: self.accept_pauses.value(),
            rate_limit_dry_run: self.rate_limit_dry_run.value(),
            datagrams_received: self.datagrams_received.value(),
            datagrams_sent: self.datagrams_sent.value(),
            closed: self.closed.each_ref().map(Counter::value),
            dropped: self.dropped.each_ref().map(Counter::value),
            opened: self.opened.each_ref().map(Counter::value),
        }
    }

    /// Adds what was counted elsewhere. Only the owner calls this.
    pub fn add(&self, more: &Totals) {
        self.accepted.add(more.accepted);
        self.bytes_received.add(more.bytes_received);
        self.bytes_sent.add(more.bytes_sent);
        self.connect_failures.add(more.connect_failures);
        self.accept_pauses.add(more.accept_pauses);
        self.rate_limit_dry_run.add(more.rate_limit_dry_run);
        self.datagrams_received.add(more.datagrams_received);
        self.datagrams_sent.add(more.datagrams_sent);
        let closed = self.closed.iter().zip(more.closed);
        let dropped = self.dropped.iter().zip(more.dropped);
        let opened = self.opened.iter().zip(more.opened);
        for (counter, more) in closed.chain(dropped).chain(opened) {
            counter.add(more);
        }
    }
}

/// What was counted on a listener, by any number of workers and processes: the numbers of
/// [`ListenerCounters`] at one time. What another version counts and this one doesn't is left out.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// [`ListenerCounters::accepted`]
    pub accepted: u64,
    /// [`ListenerCounters::bytes_received`]
    pub bytes_received: u64,
    /// [`ListenerCounters::bytes_sent`]
    pub bytes_sent: u64,
    /// [`ListenerCounters::connect_failures`]
    pub connect_failures: u64,
    /// [`ListenerCounters::accept_pauses`]
    pub accept_pauses: u64,
    /// [`ListenerCounters::rate_limit_dry_run`]
    pub rate_limit_dry_run: u64,
    /// [`ListenerCounters::datagrams_received`]
    pub datagrams_received: u64,
    /// [`ListenerCounters::datagrams_sent`]
    pub datagrams_sent: u64,
    /// Sessions that ended, in the order of [`Reason::ALL`]; by name where they are written down.
    #[serde(with = "closed")]
    pub closed: [u64; REASONS],
    /// Datagrams that were dropped, in the order of [`Dropped::ALL`]; likewise.
    #[serde(with = "dropped")]
    pub dropped: [u64; DROPPED],
    /// Sessions by how they began, in the order of [`Opening::ALL`]; likewise.
    #[serde(with = "opened")]
    pub opened: [u64; OPENINGS],
}

impl Totals {
    /// Sessions that ended for `reason`.
    pub fn closed(&self, reason: Reason) -> u64 {
        self.closed[reason as usize]
    }

    /// Sessions that were refused: [`Reason::is_refusal`].
    pub fn refused(&self) -> u64 {
        self.closed_as(true)
    }

    /// Sessions that ended without having been refused.
    pub fn ended(&self) -> u64 {
        self.closed_as(false)
    }

    fn closed_as(&self, refused: bool) -> u64 {
        let reasons = Reason::ALL.into_iter();
        let of_kind = reasons.filter(|reason| reason.is_refusal() == refused);
        of_kind.map(|reason| self.closed(reason)).sum()
    }

    /// Datagrams that were dropped for this reason.
    pub fn dropped(&self, reason: Dropped) -> u64 {
        self.dropped[reason as usize]
    }

    /// Sessions that have begun in this way.
    pub fn opened(&self, opening: Opening) -> u64 {
        self.opened[opening as usize]
    }

    /// Adds what was counted elsewhere.
    pub fn add(&mut self, more: &Self) {
        *self = self.with(more, u64::saturating_add);
    }

    /// What was counted after `earlier`. Nothing, rather than less, of what was higher then.
    pub fn since(&self, earlier: &Self) -> Self {
        self.with(earlier, u64::saturating_sub)
    }

    fn with(&self, other: &Self, both: fn(u64, u64) -> u64) -> Self {
        Self {
            accepted: both(self.accepted, other.accepted),
            bytes_received: both(self.bytes_received, other.bytes_received),
            bytes_sent: both(self.bytes_sent, other.bytes_sent),
            connect_failures: both(self.connect_failures, other.connect_failures),
            accept_pauses: both(self.accept_pauses, other.accept_pauses),
            rate_limit_dry_run: both(self.rate_limit_dry_run, other.rate_limit_dry_run),
            datagrams_received: both(self.datagrams_received, other.datagrams_received),
            datagrams_sent: both(self.datagrams_sent, other.datagrams_sent),
            closed: std::array::from_fn(|reason| both(self.closed[reason], other.closed[reason])),
            dropped: std::array::from_fn(|it| both(self.dropped[it], other.dropped[it])),
            opened: std::array::from_fn(|it| both(self.opened[it], other.opened[it])),
        }
    }
}

/// Numbers by the name of what they count.
macro_rules! by_name {
    ($module:ident, $kind:ident) => {
        mod $module {
            use super::{BTreeMap, Deserialize, Deserializer, Serializer};
            use crate::telemetry::$kind;

            const COUNT: usize = $kind::ALL.len();

            pub(super) fn serialize<S: Serializer>(
                counts: &[u64; COUNT],
                to: S,
            ) -> Result<S::Ok, S::Error> {
                let named = $kind::ALL.iter().map(|kind| kind.as_str());
                to.collect_map(named.zip(counts))
            }

            pub(super) fn deserialize<'de, D: Deserializer<'de>>(
                from: D,
            ) -> Result<[u64; COUNT], D::Error> {
                let named = BTreeMap::<String, u64>::deserialize(from)?;
                let of = |kind: $kind| named.get(kind.as_str()).copied();
                Ok($kind::ALL.map(|kind| of(kind).unwrap_or(0)))
            }
        }
    };
}

by_name!(closed, Reason);
by_name!(dropped, Dropped);
by_name!(opened, Opening);

#[cfg(test)]
mod tests {
    use super::*;

    /// Every number of it another one.
    fn counters() -> ListenerCounters {
        let counters = ListenerCounters::default();
        counters.accepted.add(1);
        counters.bytes_received.add(2);
        counters.bytes_sent.add(3);
        counters.connect_failures.add(4);
        counters.accept_pauses.add(5);
        counters.rate_limit_dry_run.add(6);
        counters.datagrams_received.add(7);
        counters.datagrams_sent.add(8);
        for reason in Reason::ALL {
            (0..9 + reason as u64).for_each(|_| counters.close(reason));
        }
        for dropped in Dropped::ALL {
            counters.drop(dropped, 40 + dropped as u64);
        }
        for opening in Opening::ALL {
            (0..70 + opening as u64).for_each(|_| counters.open(opening));
        }
        counters
    }

    #[test]
    fn totals_hold_every_number_and_go_on_from_there() {
        let before = counters().totals();
        assert_eq!((before.accepted, before.rate_limit_dry_run), (1, 6));
        assert_eq!(before.closed(Reason::Drained), 9 + Reason::Drained as u64);
        assert_eq!(
            before.dropped(Dropped::Draining),
            40 + Dropped::Draining as u64
        );
        let here = ListenerCounters::default();
        here.add(&before);
        assert_eq!(here.totals(), before);
        here.add(&before);
        assert_eq!(here.totals().since(&before), before);
        let mut sum = before;
        sum.add(&before);
        assert_eq!(sum, here.totals());
    }

    #[test]
    fn who_was_refused_is_not_among_those_that_ended() {
        let counters = ListenerCounters::default();
        (0..3).for_each(|_| counters.close(Reason::Denied));
        (0..5).for_each(|_| counters.close(Reason::ClientClosed));
        counters.close(Reason::QueueFull);
        let totals = counters.totals();
        assert_eq!((totals.refused(), totals.ended()), (4, 5));
    }

    #[test]
    fn totals_never_go_backwards_nor_round() {
        let before = counters().totals();
        assert_eq!(Totals::default().since(&before), Totals::default());
        let mut most = Totals {
            accepted: u64::MAX,
            ..before
        };
        most.add(&before);
        assert_eq!((most.accepted, most.bytes_received), (u64::MAX, 4));
    }

    #[test]
    fn totals_are_written_by_name_and_read_as_far_as_they_are_known() {
        let totals = counters().totals();
        let text = serde_json::to_string(&totals).expect("numbers");
        assert!(text.contains(r#""closed":{"client-closed":9,"backend-closed":10,"#));
        let read = |text: &str| serde_json::from_str::<Totals>(text).expect("it is understood");
        assert_eq!(read(&text), totals);
        let newer = r#"{"accepted": 3, "datagrams": 9, "closed": {"idle": 2, "bored": 5}}"#;
        let mut expected = Totals {
            accepted: 3,
            ..Totals::default()
        };
        expected.closed[Reason::Idle as usize] = 2;
        assert_eq!(read(newer), expected);
    }
}
