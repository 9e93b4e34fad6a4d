//! A set of the table: a few entries that are looked through one by one. An entry is two words that
//! can't be changed together, who it belongs to (its *tenant*) and the bucket. Many workers change
//! them at once and none ever waits for another.
//!
//! What keeps an entry together is its *tenancy*, a number that both words carry:
//!
//! ```text
//!            take: bucket
//!               ┌──┐
//!               │  ▼   vacate: bucket, tenancy + 1
//!            occupied ─────────────────────────────► vacant
//!            tenant.tenancy = bucket.tenancy          tenant.tenancy ≠ bucket.tenancy
//!               ▲                                      │
//!               └──────────────────────────────────────┘
//!                 claim: newest, then tenant, with the tenancy of the bucket
//! ```
//!
//! - **Take** changes the bucket by compare-and-swap, tenancy included. It can't fall into the hands
//!   of another tenant, and vacating is told exactly what was taken before.
//! - **Vacate** puts a full bucket in place of the last tenant's. From here on the old tenant has no
//!   entry, and its pending takes fail and look again. If the bucket wasn't full, that was an eviction.
//! - **Claim** puts a new tenant in. This is where a client could win a second bucket: two workers that
//!   don't find it may claim two entries. So all claims of a set go through one word, `newest`,
//!   which names the tenant that came last, with its place. A claim is a compare-and-swap of that word
//!   against what it was before the worker looked through the set. If it succeeds, nobody has come in
//!   meanwhile, and the client still isn't there; if not, the worker looks again.
//!
//! The new tenant then has to be written to its entry, which anybody does who comes by (*settles*)
//! before doing anything else. So all tenants but the newest are always in their entries when somebody
//! looks through them. To settle twice is harmless, as an entry only takes the tenancy that follows
//! its own.
//!
//! What is not excluded: tenancies repeat, in tenants after 65,536 and in buckets after 16. If a worker
//! is held up between two neighboring instructions while an entry changes hands exactly so often, a client
//! gets a second bucket, or a token from the bucket of another.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::policy::bucket::Meter;

/// Two cache lines: who there is, and what they have.
#[derive(Default, Debug)]
#[repr(align(128))]
pub(super) struct Set {
    /// The tenant that came last; 0 = none yet.
    newest: AtomicU64,
    tenants: [AtomicU64; Set::ENTRIES],
    buckets: [AtomicU64; Set::ENTRIES],
}

impl Set {
    /// What fits beside `newest`.
    pub(super) const ENTRIES: usize = 7;

    /// Takes a token from the bucket of the client with this hash; false when there is none. A client
    /// that is not here yet comes in. Counts who is evicted for it.
    pub(super) fn take(&self, hash: u64, meter: &Meter, evicted: &AtomicU64) -> bool {
        let client = Tenant::client_of(hash);
        // Whenever this goes round, another worker has vacated or claimed an entry.
        loop {
            let newest = self.settle();
            match self.find(client) {
                None => self.admit(client, newest, meter, evicted),
                Some(tenant) => {
                    if let Some(got) = self.take_from(tenant, meter) {
                        return got;
                    }
                }
            }
        }
    }

    /// How many tokens the client with this hash could take; whoever isn't here has a full bucket.
    pub(super) fn tokens(&self, hash: u64, meter: &Meter) -> u64 {
        self.settle();
        let tenant = self.find(Tenant::client_of(hash));
        // Evicted meanwhile: a full one, as it would be found the next time.
        let bucket = tenant
            .map(|tenant| (tenant, self.bucket(tenant.place())))
            .filter(|(tenant, bucket)| bucket.is_of(*tenant));
        meter.tokens(bucket.map_or(0, |(_, bucket)| bucket.full_at()))
    }

    /// The entries whose bucket is not full: place, client, and when it is full.
    pub(super) fn taken(&self, meter: &Meter) -> impl Iterator<Item = (usize, u64, u64)> {
        self.settle();
        let entries = (0..Self::ENTRIES).map(|place| self.entry(place));
        let taken = entries.filter(|(tenant, bucket)| {
            let is_there = tenant.client() != 0 && bucket.is_of(*tenant);
            is_there && !meter.is_full(bucket.full_at())
        });
        taken.map(|(tenant, bucket)| (tenant.place(), tenant.client(), bucket.full_at()))
    }

    /// Puts a client in before anybody takes, as a tenant of the first tenancy. Nothing happens when the
    /// entry has one, the client has an entry, or there can't be such a client or bucket.
    pub(super) fn put(&self, place: usize, client: u64, full_at: u64) {
        let (tenant, _) = self.entry(place);
        let bucket = Bucket::new(0, tenant.tenancy().into()).with(full_at);
        let is_one = Tenant::client_of(client) == client && self.find(client).is_none();
        if let Some(bucket) = bucket.filter(|_| is_one && tenant.client() == 0) {
            self.buckets[place].store(bucket.0, Ordering::Relaxed);
            // Release: see `settle`.
            let tenant = Tenant::new(client, tenant.tenancy(), place);
            self.tenants[place].store(tenant.0, Ordering::Release);
        }
    }

    /// Who came last, written to its entry.
    fn settle(&self) -> Tenant {
        // Acquire: whoever claimed had settled what came before and seen its entry vacant, so that we
        // do too.
        let newest = Tenant(self.newest.load(Ordering::Acquire));
        let entry = &self.tenants[newest.place()];
        let there = Tenant(entry.load(Ordering::Acquire));
        if there.tenancy().wrapping_add(1) == newest.tenancy() {
            // If it fails, somebody else has settled. Release: whoever finds the tenant in the entry
            // finds its bucket there too, and not the one before.
            let _ = entry.compare_exchange(there.0, newest.0, Ordering::Release, Ordering::Relaxed);
        }
        newest
    }

    fn find(&self, client: u64) -> Option<Tenant> {
        let mut entries = (0..Self::ENTRIES).map(|place| self.entry(place));
        let (tenant, _) =
            entries.find(|(tenant, bucket)| bucket.is_of(*tenant) && tenant.client() == client)?;
        Some(tenant)
    }

    /// `None`: the tenant was evicted meanwhile.
    fn take_from(&self, tenant: Tenant, meter: &Meter) -> Option<bool> {
        let word = &self.buckets[tenant.place()];
        let mut bucket = Bucket(word.load(Ordering::Relaxed));
        while bucket.is_of(tenant) {
            let Some(after) = meter
                .take(bucket.full_at())
                .and_then(|full_at| bucket.with(full_at))
            else {
                return Some(false);
            };
            // Relaxed, as in a bucket of its own.
            match word.compare_exchange_weak(
                bucket.0,
                after.0,
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(true),
                Err(now) => bucket = Bucket(now),
            }
        }
        None
    }

    /// Tries to put a client in that was not found after `newest` had come.
    fn admit(&self, client: u64, newest: Tenant, meter: &Meter, evicted: &AtomicU64) {
        if let Some(last) = self.vacancy(client, meter, evicted) {
            self.claim(newest, last.followed_by(client));
        }
    }

    /// If it fails, somebody has come in, maybe the same client; the entry stays vacant for whoever
    /// comes next.
    fn claim(&self, newest: Tenant, tenant: Tenant) {
        // Release: see `settle`.
        let (success, failure) = (Ordering::Release, Ordering::Relaxed);
        let _ = self
            .newest
            .compare_exchange(newest.0, tenant.0, success, failure);
    }

    /// The last tenant of an entry that is vacant: one that was, or else the stalest. `None`: another
    /// worker was faster.
    fn vacancy(&self, client: u64, meter: &Meter, evicted: &AtomicU64) -> Option<Tenant> {
        let entries: [_; Self::ENTRIES] = array::from_fn(|place| self.entry(place));
        // Somebody else has put it in, and nobody need go for it.
        if entries
            .iter()
            .any(|(tenant, bucket)| bucket.is_of(*tenant) && tenant.client() == client)
        {
            return None;
        }
        let (tenant, bucket) = entries
            .into_iter()
            .min_by_key(|(tenant, bucket)| bucket.rank(*tenant))?;
        if bucket.is_of(tenant) {
            // Relaxed: the claim publishes it.
            self.buckets[tenant.place()]
                .compare_exchange(
                    bucket.0,
                    bucket.vacated().0,
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .ok()?;
            if !meter.is_full(bucket.full_at()) {
                evicted.fetch_add(1, Ordering::Relaxed);
            }
        }
        Some(tenant)
    }

    fn entry(&self, place: usize) -> (Tenant, Bucket) {
        let tenant = Tenant(self.tenants[place].load(Ordering::Acquire)).at(place);
        (tenant, self.bucket(place))
    }

    fn bucket(&self, place: usize) -> Bucket {
        Bucket(self.buckets[place].load(Ordering::Relaxed))
    }
}

/// Who an entry belongs to: 45 bits of the client, 16 of the tenancy, 3 of the place. An entry that
/// was never claimed has no client, which is 0.
#[derive(Clone, Copy, Debug)]
struct Tenant(u64);

impl Tenant {
    const PLACE: u32 = 3;
    const TENANCY: u32 = u16::BITS;

    fn new(client: u64, tenancy: u16, place: usize) -> Self {
        let client = client << (Self::PLACE + Self::TENANCY);
        Self(client | (u64::from(tenancy) << Self::PLACE) | place as u64)
    }

    /// What is kept of a hash; not 0. As the hash chose the set too, two clients are taken for one
    /// once in some 10^13 encounters.
    fn client_of(hash: u64) -> u64 {
        (hash & (u64::MAX >> (Self::PLACE + Self::TENANCY))) | 1
    }

    fn client(self) -> u64 {
        self.0 >> (Self::PLACE + Self::TENANCY)
    }

    fn tenancy(self) -> u16 {
        (self.0 >> Self::PLACE) as u16
    }

    fn place(self) -> usize {
        (self.0 & ((1 << Self::PLACE) - 1)) as usize
    }

    /// The same for an entry that was never claimed, which doesn't know its place.
    fn at(self, place: usize) -> Self {
        Self::new(self.client(), self.tenancy(), place)
    }

    fn followed_by(self, client: u64) -> Self {
        Self::new(client, self.tenancy().wrapping_add(1), self.place())
    }
}

/// When a bucket is full again, in 60 bits (36 years of uptime at a tick per nanosecond, 18 at two, which
/// no rate exceeds), and the last 4 bits of its tenancy.
#[derive(Clone, Copy, Debug)]
struct Bucket(u64);

impl Bucket {
    const TENANCY: u32 = 4;
    const TENANCIES: u64 = (1 << Self::TENANCY) - 1;

    fn new(full_at: u64, tenancy: u64) -> Self {
        Self((full_at << Self::TENANCY) | (tenancy & Self::TENANCIES))
    }

    fn full_at(self) -> u64 {
        self.0 >> Self::TENANCY
    }

    /// `None` at the end of time.
    fn with(self, full_at: u64) -> Option<Self> {
        (full_at >> (u64::BITS - Self::TENANCY) == 0).then(|| Self::new(full_at, self.0))
    }

    fn is_of(self, tenant: Tenant) -> bool {
        (self.0 ^ u64::from(tenant.tenancy())) & Self::TENANCIES == 0
    }

    /// Full, and of the tenancy that follows.
    fn vacated(self) -> Self {
        Self::new(0, self.0.wrapping_add(1))
    }

    /// The lowest goes first: a vacant entry, then by how long it has been full. Last comes one that
    /// was claimed this moment and not yet taken from, so that workers don't evict each other's clients
    /// before they have had their first token.
    fn rank(self, tenant: Tenant) -> u64 {
        let is_new = self.full_at() == 0 && tenant.client() != 0;
        match self.is_of(tenant) {
            true if is_new => u64::MAX,
            true => self.full_at(),
            false => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::policy::bucket::Rate;
    use crate::time::Instant;

    const SECOND: u64 = 1_000_000_000;

    /// One per second, so that none comes back while threads race at one instant.
    fn meter(burst: u64, now: u64) -> Meter {
        let rate = Rate {
            per_second: NonZeroU64::MIN,
            burst: NonZeroU64::new(burst).expect("above zero"),
        };
        Meter::new(rate, Instant::from_nanos(now))
    }

    /// Hashes of different clients.
    fn hash(client: u64) -> u64 {
        (client + 1) << 1
    }

    /// What a worker does that is held up before its claim.
    fn vacate(set: &Set, place: usize) -> Tenant {
        let (tenant, bucket) = set.entry(place);
        set.buckets[place].store(bucket.vacated().0, Ordering::Relaxed);
        tenant
    }

    /// Those who have an entry; twice if they have two.
    fn present(set: &Set) -> Vec<u64> {
        set.settle();
        let mut present: Vec<u64> = (0..Set::ENTRIES)
            .map(|place| set.entry(place))
            .filter(|(tenant, bucket)| tenant.client() != 0 && bucket.is_of(*tenant))
            .map(|(tenant, _)| tenant.client())
            .collect();
        present.sort_unstable();
        present
    }

    /// `race` in as many threads as there are, told apart by their number, each time on a new set.
    fn races(count: usize, race: impl Fn(&Set, &AtomicU64, u64) + Sync, check: impl Fn(&Set, u64)) {
        const THREADS: usize = 3;
        let sets: Vec<(Set, AtomicU64)> = (0..count).map(|_| Default::default()).collect();
        let begun: Vec<AtomicUsize> = (0..count).map(|_| AtomicUsize::new(0)).collect();
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (sets, begun, race) = (&sets, &begun, &race);
                scope.spawn(move || {
                    for ((set, evicted), begun) in sets.iter().zip(begun) {
                        begun.fetch_add(1, Ordering::Relaxed);
                        while begun.load(Ordering::Relaxed) < THREADS {
                            std::thread::yield_now();
                        }
                        race(set, evicted, thread as u64);
                    }
                });
            }
        });
        for (set, evicted) in &sets {
            check(set, evicted.load(Ordering::Relaxed));
        }
    }

    #[test]
    fn a_set_is_two_cache_lines() {
        assert_eq!(size_of::<Set>(), 128);
    }

    #[test]
    fn words_keep_their_parts() {
        let tenant = Tenant::new(Tenant::client_of(u64::MAX), u16::MAX, 6);
        assert_eq!(
            (tenant.client(), tenant.tenancy(), tenant.place()),
            (u64::MAX >> 19, u16::MAX, 6)
        );
        let next = tenant.followed_by(5);
        assert_eq!((next.client(), next.tenancy(), next.place()), (5, 0, 6));
        let bucket = Bucket::new((1 << 60) - 1, 15);
        assert_eq!(bucket.full_at(), (1 << 60) - 1);
        assert!(bucket.is_of(tenant) && !bucket.vacated().is_of(tenant));
        assert!(bucket.vacated().is_of(next));
        assert!(bucket.with(1 << 60).is_none());
    }

    #[test]
    fn the_stalest_goes_and_is_counted_if_it_had_taken() {
        let (set, evicted) = (Set::default(), AtomicU64::new(0));
        let take = |client, now| set.take(hash(client), &meter(9, now), &evicted);
        let entries = Set::ENTRIES as u64;
        assert!((0..entries).all(|client| take(client, client)));
        assert!(take(0, entries), "now it is not the stalest any more");
        assert!(take(100, entries));
        assert_eq!(evicted.load(Ordering::Relaxed), 1);
        assert!(!present(&set).contains(&Tenant::client_of(hash(1))));
        let later = 3 * SECOND;
        assert!((200..200 + entries).all(|client| take(client, later)));
        assert_eq!(
            evicted.load(Ordering::Relaxed),
            1,
            "all of them were full again"
        );
    }

    #[test]
    fn tenancies_go_round() {
        let (set, evicted) = (Set::default(), AtomicU64::new(0));
        for client in 0..200_000 {
            let meter = meter(2, client);
            let taken = (0..3)
                .filter(|_| set.take(hash(client), &meter, &evicted))
                .count();
            assert_eq!(taken, 2, "{client}");
        }
        assert_eq!(evicted.into_inner(), 200_000 - Set::ENTRIES as u64);
    }

    #[test]
    fn a_claim_made_on_old_knowledge_fails() {
        let (set, evicted, meter) = (Set::default(), AtomicU64::new(0), meter(1, 0));
        let (before, last) = (set.settle(), vacate(&set, 6));
        assert!(set.take(hash(1), &meter, &evicted));
        set.claim(before, last.followed_by(Tenant::client_of(hash(1))));
        assert_eq!(present(&set), [Tenant::client_of(hash(1))]);
        set.claim(set.settle(), last.followed_by(Tenant::client_of(hash(2))));
        assert_eq!(
            present(&set),
            [1, 2].map(|client| Tenant::client_of(hash(client)))
        );
    }

    #[test]
    fn a_take_that_was_overtaken_by_an_eviction_looks_again() {
        let (set, evicted, meter) = (Set::default(), AtomicU64::new(0), meter(2, 0));
        assert!(set.take(hash(1), &meter, &evicted));
        let tenant = set.find(Tenant::client_of(hash(1))).expect("it is there");
        vacate(&set, tenant.place());
        assert_eq!(set.take_from(tenant, &meter), None);
        assert!(present(&set).is_empty());
    }

    #[test]
    fn an_entry_that_was_vacated_and_never_claimed_is_used_first() {
        let (set, evicted, meter) = (Set::default(), AtomicU64::new(0), meter(2, 0));
        let entries = Set::ENTRIES as u64;
        assert!((0..entries).all(|client| set.take(hash(client), &meter, &evicted)));
        let tenant = set.find(Tenant::client_of(hash(3))).expect("it is there");
        vacate(&set, tenant.place());
        let taken = (0..3).filter(|_| set.take(hash(3), &meter, &evicted));
        assert_eq!(taken.count(), 2);
        assert_eq!(present(&set).len() as u64, entries);
        assert_eq!(evicted.into_inner(), 0);
    }

    #[test]
    fn a_client_that_has_just_come_in_is_not_the_stalest() {
        let (set, evicted) = (Set::default(), AtomicU64::new(0));
        let entries = Set::ENTRIES as u64;
        assert!((1..entries).all(|client| set.take(hash(client), &meter(1, client), &evicted)));
        let now = meter(1, entries);
        set.admit(Tenant::client_of(hash(0)), set.settle(), &now, &evicted);
        assert!(set.take(hash(99), &now, &evicted));
        let present = present(&set);
        assert!(present.contains(&Tenant::client_of(hash(0))));
        assert!(!present.contains(&Tenant::client_of(hash(1))));
    }

    #[test]
    fn clients_who_come_in_on_many_workers_at_once_get_one_bucket_each() {
        let given: Vec<AtomicU64> = (0..7).map(|_| AtomicU64::new(0)).collect();
        let count = 3_000;
        let meter = meter(3, SECOND);
        let race = |set: &Set, evicted: &AtomicU64, thread: u64| {
            for turn in 0..7 * 3 {
                // In an order of each thread's own, so that they meet over claims of different clients.
                let client = (turn * (thread + 1) + thread) % 7;
                if set.take(hash(client), &meter, evicted) {
                    given[client as usize].fetch_add(1, Ordering::Relaxed);
                }
            }
        };
        races(count, race, |set, evicted| {
            let everybody: Vec<u64> = (0..7)
                .map(|client| Tenant::client_of(hash(client)))
                .collect();
            assert_eq!(present(set), everybody);
            assert_eq!(evicted, 0);
        });
        for given in given {
            assert_eq!(given.into_inner(), 3 * count as u64);
        }
    }

    #[test]
    fn nobody_is_in_a_set_twice_however_it_is_fought_for() {
        let meter = meter(1, SECOND);
        let given = AtomicU64::new(0);
        let forgotten = AtomicU64::new(0);
        let race = |set: &Set, evicted: &AtomicU64, thread: u64| {
            for turn in 0..40 {
                let client = (turn * (thread + 1) + thread / 2) % 11;
                given.fetch_add(
                    set.take(hash(client), &meter, evicted).into(),
                    Ordering::Relaxed,
                );
            }
        };
        let left = AtomicU64::new(0);
        races(2_000, race, |set, evicted| {
            let mut present = present(set);
            left.fetch_add(present.len() as u64, Ordering::Relaxed);
            let entries = present.len();
            present.dedup();
            assert_eq!(present.len(), entries);
            forgotten.fetch_add(evicted, Ordering::Relaxed);
        });
        // Each token was given to somebody who is still there or was evicted.
        assert_eq!(
            given.into_inner(),
            forgotten.into_inner() + left.into_inner()
        );
    }
}
