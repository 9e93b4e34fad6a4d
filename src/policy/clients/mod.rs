//! A bucket per client address, for all workers: a table of fixed size. It counts clients and not what
//! they do; whether an address can be believed is not its business.
//!
//! An address belongs to one set of the table, and to nobody else's: which one, is decided by a hash
//! that takes a seed, so that nobody who doesn't know it can aim at a set. See `set` for what
//! happens within one.
//!
//! A client that isn't in the table has a full bucket, and one that has a full bucket need not be in
//! the table. So an entry is free again as soon as its bucket is full. If all entries of a set are
//! taken, an eviction forgets what the stalest one of them has taken: that client has a full bucket
//! again. This is counted, and it is the only way to win a token: [`Clients::take`] is otherwise as
//! exact as [`Bucket::take`](super::bucket::Bucket::take), whatever workers a client spreads over, and
//! while it is put into the table too.

mod set;

use std::hash::{DefaultHasher, Hasher};
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};

use self::set::Set;
use super::bucket::{Meter, Rate};
use crate::time::Instant;

/// The buckets of the clients of one limit.
#[derive(Debug)]
pub struct Clients {
    sets: Box<[Set]>,
    seed: u64,
    evicted: AtomicU64,
}

/// The clients of a table whose buckets are not full, to be handed to another process.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Image {
    /// [`Clients::capacity`] of the table. In one of another size clients have other places.
    pub capacity: u64,
    /// The same for the same seed.
    pub seal: u64,
    /// [`Clients::evicted`]
    pub evicted: u64,
    /// In the order of their places.
    pub entries: Vec<Entry>,
}

/// One of them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Entry {
    /// Below the capacity.
    pub place: u64,
    /// What is kept of the hash of its address.
    pub client: u64,
    /// When its bucket is full, in ticks of its rate.
    pub full_at: u64,
}

impl Clients {
    /// A table with room for at least `max_clients` at once. `seed` is to be drawn, and kept from
    /// clients.
    pub fn new(max_clients: NonZeroU32, seed: u64) -> Self {
        let entries = u64::from(max_clients.get()) * SPARE;
        let sets = entries.div_ceil(Set::ENTRIES as u64);
        Self {
            sets: (0..sets).map(|_| Set::default()).collect(),
            seed,
            evicted: AtomicU64::new(0),
        }
    }

    /// Takes a token of this client; false when it has none. Of an IPv6 address the leading
    /// `ipv6_prefix` bits are the client, an IPv4 address is one as a whole, mapped to IPv6 or not.
    ///
    /// For a client that stays in the table it is true at most burst + rate × time times over any
    /// interval, over all workers; each eviction of that client gives it up to a burst more. If
    /// workers' clocks differ, a bucket counts as full, and its entry as free, as soon as one of them
    /// says so.
    pub fn take(&self, client: IpAddr, ipv6_prefix: u8, rate: Rate, now: Instant) -> bool {
        let hash = self.hash(client, ipv6_prefix);
        let meter = Meter::new(rate, now);
        self.set_of(hash).take(hash, &meter, &self.evicted)
    }

    /// How many tokens this client could take, one after the other. Takes none, and puts nobody into the
    /// table.
    pub fn tokens(&self, client: IpAddr, ipv6_prefix: u8, rate: Rate, now: Instant) -> u64 {
        let hash = self.hash(client, ipv6_prefix);
        self.set_of(hash).tokens(hash, &Meter::new(rate, now))
    }

    /// The high bits choose the set: hash / 2^64 of the way through the table.
    fn set_of(&self, hash: u64) -> &Set {
        let set = (u128::from(hash) * self.sets.len() as u128) >> u64::BITS;
        &self.sets[set as usize]
    }

    /// What there is at `now`, to be handed to another process: at most an entry per [`Clients::capacity`].
    pub fn image(&self, rate: Rate, now: Instant) -> Image {
        let meter = Meter::new(rate, now);
        let sets = self.sets.iter().enumerate();
        let entries = sets.flat_map(|(set, entries)| {
            let taken = entries.taken(&meter);
            taken.map(move |(place, client, full_at)| Entry {
                place: (set * Set::ENTRIES + place) as u64,
                client,
                full_at,
            })
        });
        Image {
            capacity: self.capacity() as u64,
            seal: self.seal(),
            evicted: self.evicted(),
            entries: entries.collect(),
        }
    }

    /// Goes on with `image`, before anybody takes: the table is new. False when it is of another seed or
    /// capacity, and so of no use here. Entries that can't be are left out.
    pub fn restore(&self, image: &Image) -> bool {
        if (image.capacity, image.seal) != (self.capacity() as u64, self.seal()) {
            return false;
        }
        for entry in &image.entries {
            let set = usize::try_from(entry.place / Set::ENTRIES as u64).ok();
            let set = set.and_then(|set| self.sets.get(set));
            let place = (entry.place % Set::ENTRIES as u64) as usize;
            if let Some(set) = set {
                set.put(place, entry.client, entry.full_at);
            }
        }
        self.evicted.store(image.evicted, Ordering::Relaxed);
        true
    }

    /// Tells seeds apart without giving them away.
    fn seal(&self) -> u64 {
        self.hash(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0)
    }

    /// Clients that were forgotten before their bucket was full again.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Entries, more than `max_clients`.
    pub fn capacity(&self) -> usize {
        self.sets.len() * Set::ENTRIES
    }

    /// All the memory it takes; it takes it at once.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.sets)
    }

    /// SipHash, as a stranger chooses the addresses. The seed goes first, as its key is not for us to
    /// set.
    fn hash(&self, client: IpAddr, ipv6_prefix: u8) -> u64 {
        // No IPv6 client begins as the mapped ones do: they have become IPv4.
        let bits = match client.to_canonical() {
            IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
            IpAddr::V6(address) => {
                let behind = u128::BITS.saturating_sub(ipv6_prefix.into());
                address.to_bits() & u128::MAX.checked_shl(behind).unwrap_or(0)
            }
        };
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(self.seed);
        hasher.write_u128(bits);
        hasher.finish()
    }
}

/// Entries per client that is to have room. Clients don't spread evenly over sets: with twice as many
/// entries, 99 of 100 have one even when there are `max_clients` at once.
const SPARE: u64 = 2;

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::policy::bucket::Bucket;
    use crate::policy::bucket::rate;

    const SECOND: u64 = 1_000_000_000;

    fn clients(max_clients: u32) -> Clients {
        Clients::new(NonZeroU32::new(max_clients).expect("above zero"), 7)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    fn nth(number: u32) -> IpAddr {
        IpAddr::from(number.to_be_bytes())
    }

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    /// A token of the first client, and then one of the second, is a token each.
    fn are_apart(first: &str, second: &str, ipv6_prefix: u8) -> bool {
        let (clients, rate) = (clients(10), rate(1, 1));
        assert!(clients.take(ip(first), ipv6_prefix, rate, at(0)));
        clients.take(ip(second), ipv6_prefix, rate, at(0))
    }

    #[test]
    fn years_of_uptime_change_nothing() {
        const YEAR: u64 = 365 * 86_400 * SECOND;
        for (per_second, uptime) in [(20, 35 * YEAR), (600_000_000, 17 * YEAR)] {
            let clients = clients(64);
            let rate = rate(per_second, 5);
            let drain = |now| {
                (0..40)
                    .filter(|_| clients.take(nth(1), 64, rate, at(now)))
                    .count()
            };
            assert!((4..=5).contains(&drain(uptime)), "{per_second}/s");
            assert_eq!(drain(uptime + SECOND), 5, "{per_second}/s");
            assert_eq!(clients.evicted(), 0);
        }
    }

    #[test]
    fn a_client_has_as_many_tokens_as_are_told() {
        let (clients, rate) = (clients(10), rate(1, 5));
        let tokens = |client, now| clients.tokens(ip(client), 64, rate, at(now));
        assert_eq!(tokens("10.0.0.1", 0), 5);
        for left in (0..5).rev() {
            assert!(clients.take(ip("10.0.0.1"), 64, rate, at(0)));
            assert_eq!(tokens("10.0.0.1", 0), left);
            assert_eq!(tokens("::ffff:10.0.0.1", 0), left);
        }
        assert_eq!(
            (tokens("10.0.0.1", 2 * SECOND), tokens("10.0.0.2", 0)),
            (2, 5)
        );
    }

    #[test]
    fn an_ipv4_address_is_a_client_under_either_name() {
        assert!(are_apart("10.0.0.1", "10.0.0.2", 1));
        assert!(!are_apart("10.0.0.1", "::ffff:10.0.0.1", 64));
        assert!(are_apart("::ffff:10.0.0.2", "10.0.0.1", 64));
        assert!(are_apart("10.0.0.1", "::10.0.0.1", 128));
    }

    #[test]
    fn an_ipv6_client_is_its_prefix() {
        assert!(!are_apart("2001:db8::1", "2001:db8::ffff:0:0:1", 64));
        assert!(are_apart("2001:db8::1", "2001:db8:0:1::1", 64));
        assert!(are_apart("2001:db8::1", "2001:db8::2", 128));
        assert!(!are_apart("2001:db8::2", "2001:db8::3", 127));
        assert!(are_apart("7fff::", "8000::", 1));
        assert!(!are_apart("8000::", "ffff::", 1));
        assert!(!are_apart("::1", "ffff::", 0));
        assert!(are_apart("2001:db8::1", "2001:db8::2", 200));
    }

    #[test]
    fn a_hundred_thousand_clients_cost_at_most_64_bytes_each_and_nearly_all_stay() {
        let (clients, rate) = (clients(100_000), rate(1, 2));
        assert!(clients.bytes() / 100_000 <= 64, "{}", clients.bytes());
        assert!(clients.capacity() >= 100_000);
        for number in 0..100_000 {
            assert!(clients.take(nth(number), 64, rate, at(number.into())));
        }
        assert!(clients.evicted() < 2_000, "{}", clients.evicted());
        let in_vain = (0..100_000).filter(|&number| {
            let taken = [100_000; 2].map(|now| clients.take(nth(number), 64, rate, at(now)));
            assert!(taken[0]);
            !taken[1]
        });
        assert!(in_vain.count() > 90_000);
    }

    #[test]
    fn the_smallest_table_has_room_for_its_clients() {
        assert!(clients(1).capacity() >= 1);
        assert!(clients(8).capacity() >= 8);
    }

    #[test]
    fn clients_that_are_full_again_make_room_without_an_eviction() {
        let (clients, rate) = (clients(100), rate(10, 1));
        for second in 0..100 {
            for number in 0..50 {
                let now = at(second * SECOND + u64::from(number));
                assert!(clients.take(nth(1_000 * second as u32 + number), 64, rate, now));
            }
        }
        assert!(
            clients.evicted() < 100,
            "only what didn't fit into a set: {}",
            clients.evicted()
        );
    }

    #[test]
    fn another_process_goes_on_with_the_buckets_that_are_not_full() {
        let (table, rate) = (clients(300), rate(1, 3));
        for number in 0..300u32 {
            for _ in 0..number % 4 {
                table.take(nth(number), 64, rate, at(0));
            }
        }
        let now = at(2 * SECOND);
        let (image, other) = (table.image(rate, now), clients(300));
        assert!(
            image.entries.len() <= 75,
            "those of three tokens are not full"
        );
        assert!(other.restore(&image));
        assert_eq!(other.image(rate, now), image);
        for round in 0..4 {
            for number in 0..300 {
                let take = |table: &Clients| table.take(nth(number), 64, rate, now);
                assert_eq!(take(&other), take(&table), "{number} in round {round}");
            }
        }
    }

    #[test]
    fn a_table_of_another_seed_or_size_is_of_no_use() {
        let (table, rate) = (clients(300), rate(1, 3));
        table.take(nth(1), 64, rate, at(0));
        let image = table.image(rate, at(0));
        let seeded = |seed| Clients::new(NonZeroU32::new(300).expect("above zero"), seed);
        for other in [clients(200), clients(400), seeded(8)] {
            assert!(!other.restore(&image));
            assert!(other.image(rate, at(0)).entries.is_empty());
        }
        assert!(seeded(7).restore(&image));
    }

    #[test]
    fn the_seed_chooses_the_set() {
        let set_of = |seed| {
            let clients = Clients::new(NonZeroU32::new(1_000_000).expect("above zero"), seed);
            let hash = clients.hash(ip("10.0.0.1"), 64);
            hash >> 52
        };
        assert_ne!(set_of(1), set_of(2));
    }

    #[test]
    fn exact_over_threads() {
        let (clients, rate) = (clients(1_000), rate(1_000, 5));
        let taken: Vec<AtomicU64> = (0..100).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for now in (0..=SECOND / 10).step_by(200_000) {
                        for (number, taken) in taken.iter().enumerate() {
                            let got = clients.take(nth(number as u32), 64, rate, at(now));
                            taken.fetch_add(got.into(), Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(clients.evicted(), 0);
        for (number, taken) in taken.into_iter().enumerate() {
            let rest =
                (0..6).filter(|_| clients.take(nth(number as u32), 64, rate, at(SECOND / 10)));
            assert_eq!(taken.into_inner() + rest.count() as u64, 5 + 100);
        }
    }

    /// Some of them one table's, others anything.
    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let number = || prop_oneof![0u64..40, any::<u64>()];
        let entry = (number(), number(), number()).prop_map(|(place, client, full_at)| Entry {
            place,
            client,
            full_at,
        });
        prop::collection::vec(entry, 0..40)
    }

    proptest! {
        #[test]
        fn any_entries_make_a_table_that_keeps_its_promises(
            entries in entries(),
            takes in prop::collection::vec((0u32..30, 0u64..SECOND), 0..100),
        ) {
            let (table, rate) = (clients(20), rate(1, 3));
            let image = Image { entries, ..table.image(rate, at(0)) };
            prop_assert!(table.restore(&image));
            let nobody_twice = |now| {
                let image = table.image(rate, at(now));
                let entries = image.entries.iter();
                let homes = entries.map(|entry| (entry.place / Set::ENTRIES as u64, entry.client));
                homes.collect::<HashSet<_>>().len() == image.entries.len()
            };
            prop_assert!(nobody_twice(0));
            let again = clients(20);
            prop_assert!(again.restore(&table.image(rate, at(0))));
            prop_assert_eq!(again.image(rate, at(0)), table.image(rate, at(0)));
            let mut now = 0;
            for (number, later) in takes {
                now += later;
                table.take(nth(number), 64, rate, at(now));
            }
            let later = now + 30 * SECOND;
            for number in 0..15 {
                prop_assert!(table.take(nth(number), 64, rate, at(later)));
            }
            prop_assert!(nobody_twice(later));
        }

        #[test]
        fn a_client_that_stays_has_a_bucket_like_any_other(
            per_second in 1u64..2_000_000,
            burst in 1u64..20,
            takes in prop::collection::vec((0u32..7, 0u64..3_000_000), 1..200),
        ) {
            let rate = rate(per_second, burst);
            let clients = clients(1);
            let alone: Vec<Bucket> = (0..7).map(|_| Bucket::default()).collect();
            let mut now = 0;
            for (number, later) in takes {
                now += later;
                let expected = alone[number as usize].take(rate, at(now));
                prop_assert_eq!(clients.take(nth(number), 64, rate, at(now)), expected);
            }
            prop_assert_eq!(clients.evicted(), 0);
        }
    }
}
