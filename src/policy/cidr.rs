//! Networks that clients may or may not come from. What a look-up costs depends on the length of an
//! address and not on that of the list. It never asks where a client's address is known from.

use std::net::IpAddr;

/// Who may come: everybody `allow` holds, or everybody if it is empty, but nobody that `deny` holds.
#[derive(Default, Debug)]
pub struct Acl {
    allow: Networks,
    deny: Networks,
}

impl Acl {
    /// Of networks as [`Networks::new`] takes them.
    pub fn new(
        allow: impl IntoIterator<Item = (IpAddr, u8)>,
        deny: impl IntoIterator<Item = (IpAddr, u8)>,
    ) -> Self {
        Self {
            allow: Networks::new(allow),
            deny: Networks::new(deny),
        }
    }

    /// This client may come.
    pub fn admits(&self, address: IpAddr) -> bool {
        !self.deny.contains(address) && (self.allow.is_empty() || self.allow.contains(address))
    }

    /// Everybody may come, so that nobody needs to ask who the client is.
    pub fn is_open(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }
}

/// A set of networks. IPv4 and IPv6 are apart; what is mapped, `::ffff:0:0/96`, is IPv4, in networks
/// as in addresses. So `::/0` is everybody over IPv6 and nobody over IPv4.
///
/// A trie that goes down by four bits of the address: a node is a cache line, and a look-up reads at
/// most 8 of them for IPv4 and 32 for IPv6, and one more to begin with.
#[derive(Debug)]
pub struct Networks {
    /// The first one has the roots, in [`IPV4`] and [`IPV6`].
    nodes: Vec<Node>,
}

/// What holds for the addresses that begin with the bits that led here, by their next four bits.
#[derive(Clone, Default, Debug)]
#[repr(align(64))]
struct Node([Slot; 1 << STRIDE]);

/// None of the addresses that lead here, all of them, or what the node says that has this place.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Slot(u32);

impl Slot {
    /// No node is below a slot that the first one would be below.
    const NONE: Self = Self(0);
    const ALL: Self = Self(u32::MAX);

    fn node(self) -> Option<usize> {
        (self != Self::NONE && self != Self::ALL).then_some(self.0 as usize)
    }
}

/// Bits of an address that a node is for.
const STRIDE: u8 = 4;

/// Places in the first node.
const IPV4: usize = 0;
const IPV6: usize = 1;

impl Networks {
    /// Of addresses and prefixes, in any order, repeated, and within each other. Bits of an address
    /// behind its prefix don't matter; a prefix longer than the address is the whole address.
    pub fn new(networks: impl IntoIterator<Item = (IpAddr, u8)>) -> Self {
        let mut networks: Vec<Network> = networks
            .into_iter()
            .map(|(address, prefix)| Network::new(address, prefix))
            .collect();
        // Wide ones first: those within them are then found to be there, and no node is made in vain.
        networks.sort_unstable_by_key(|network| network.prefix);
        let mut made = Self {
            nodes: vec![Node::default()],
        };
        for network in networks {
            made.insert(network);
        }
        made.nodes.shrink_to_fit();
        made
    }

    /// One of them holds this address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let Network { root, mut bits, .. } = Network::new(address, u8::MAX);
        let mut slot = self.nodes[0].0[root];
        while let Some(node) = slot.node() {
            slot = self.nodes[node].0[first_place(bits)];
            bits <<= STRIDE;
        }
        slot == Slot::ALL
    }

    /// It holds no address.
    pub fn is_empty(&self) -> bool {
        let roots = &self.nodes[0].0;
        roots[IPV4] == Slot::NONE && roots[IPV6] == Slot::NONE
    }

    fn insert(&mut self, network: Network) {
        let Network {
            root: mut place,
            mut bits,
            prefix: mut rest,
        } = network;
        let mut node = 0;
        while rest > 0 {
            let slot = self.nodes[node].0[place];
            if slot == Slot::ALL {
                return;
            }
            node = slot.node().unwrap_or_else(|| self.grow(node, place));
            place = first_place(bits);
            if rest < STRIDE {
                break;
            }
            bits <<= STRIDE;
            rest -= STRIDE;
        }
        // What is left of the prefix, less than a stride, names so many places side by side.
        let width = if rest == 0 { 1 } else { 1 << (STRIDE - rest) };
        let first = place - place % width;
        self.nodes[node].0[first..first + width].fill(Slot::ALL);
    }

    /// A new node, below this slot.
    fn grow(&mut self, node: usize, place: usize) -> usize {
        let new = self.nodes.len();
        let number = u32::try_from(new)
            .ok()
            .filter(|&number| number < Slot::ALL.0);
        self.nodes[node].0[place] = Slot(number.expect("so many nodes are 256 GiB"));
        self.nodes.push(Node::default());
        new
    }
}

impl Default for Networks {
    /// Without any.
    fn default() -> Self {
        Self::new([])
    }
}

/// The place in a node that these bits choose.
fn first_place(bits: u128) -> usize {
    (bits >> (u128::BITS - u32::from(STRIDE))) as usize
}

/// The addresses that begin with `prefix` bits of `bits`.
struct Network {
    /// Place in the first node.
    root: usize,
    /// The address, left-aligned.
    bits: u128,
    /// At most the length of the address.
    prefix: u8,
}

impl Network {
    fn new(address: IpAddr, prefix: u8) -> Self {
        let ipv4 = |address: u32, prefix: u8| Self {
            root: IPV4,
            bits: u128::from(address) << 96,
            prefix: prefix.min(32),
        };
        match address {
            IpAddr::V4(address) => ipv4(address.to_bits(), prefix),
            IpAddr::V6(address) => match address.to_ipv4_mapped() {
                Some(mapped) if prefix >= 96 => ipv4(mapped.to_bits(), prefix - 96),
                _ => Self {
                    root: IPV6,
                    bits: address.to_bits(),
                    prefix: prefix.min(128),
                },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    fn network(text: &str) -> (IpAddr, u8) {
        let (address, prefix) = text.split_once('/').expect(text);
        (ip(address), prefix.parse().expect(text))
    }

    fn networks(list: &[&str]) -> Networks {
        Networks::new(list.iter().map(|text| network(text)))
    }

    fn bytes(networks: &Networks) -> usize {
        networks.nodes.capacity() * size_of::<Node>()
    }

    /// The plainest way to say it.
    fn holds(network: (IpAddr, u8), address: IpAddr) -> bool {
        let begins = |a: u128, b: u128, prefix: u8| {
            u128::BITS - (a ^ b).leading_zeros() <= u128::BITS - u32::from(prefix)
        };
        match (network.0, address.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => begins(
                u128::from(a.to_bits()) << 96,
                u128::from(b.to_bits()) << 96,
                network.1,
            ),
            (IpAddr::V6(a), IpAddr::V6(b)) => begins(a.to_bits(), b.to_bits(), network.1),
            (IpAddr::V6(a), IpAddr::V4(b)) => {
                network.1 >= 96 && begins(a.to_bits(), b.to_ipv6_mapped().to_bits(), network.1)
            }
            (IpAddr::V4(_), IpAddr::V6(_)) => false,
        }
    }

    #[test]
    fn a_network_ends_where_its_prefix_says() {
        for (list, inside, outside) in [
            (
                "10.0.0.0/8",
                ["10.0.0.0", "10.255.255.255"],
                ["9.255.255.255", "11.0.0.0"],
            ),
            (
                "10.32.0.0/11",
                ["10.32.0.0", "10.63.255.255"],
                ["10.31.255.255", "10.64.0.0"],
            ),
            (
                "10.0.0.6/31",
                ["10.0.0.6", "10.0.0.7"],
                ["10.0.0.5", "10.0.0.8"],
            ),
            (
                "10.0.0.6/32",
                ["10.0.0.6", "::ffff:10.0.0.6"],
                ["10.0.0.5", "10.0.0.7"],
            ),
            (
                "128.0.0.0/1",
                ["128.0.0.0", "255.255.255.255"],
                ["127.255.255.255", "::1"],
            ),
            (
                "2001:db8::/33",
                ["2001:db8::", "2001:db8:7fff::1"],
                ["2001:db8:8000::", "2001:db7::"],
            ),
            ("::1/128", ["::1", "0:0::1"], ["::", "::2"]),
        ] {
            let networks = networks(&[list]);
            assert!(
                inside.iter().all(|text| networks.contains(ip(text))),
                "{list}"
            );
            assert!(
                !outside.iter().any(|text| networks.contains(ip(text))),
                "{list}"
            );
        }
    }

    #[test]
    fn prefix_0_is_a_whole_family() {
        let (ipv4, ipv6) = (networks(&["0.0.0.0/0"]), networks(&["::/0"]));
        for (text, is_ipv4) in [
            ("1.2.3.4", true),
            ("255.255.255.255", true),
            ("::ffff:1.2.3.4", true),
            ("::1", false),
            ("ffff::", false),
        ] {
            assert_eq!(ipv4.contains(ip(text)), is_ipv4, "{text}");
            assert_eq!(ipv6.contains(ip(text)), !is_ipv4, "{text}");
        }
    }

    #[test]
    fn mapped_networks_are_ipv4() {
        let list = networks(&["::ffff:10.0.0.0/104"]);
        assert!(list.contains(ip("10.1.2.3")));
        assert!(list.contains(ip("::ffff:10.1.2.3")));
        assert!(!list.contains(ip("11.1.2.3")));
        assert!(!list.contains(ip("::10.1.2.3")));
        assert!(networks(&["::ffff:0:0/96"]).contains(ip("1.2.3.4")));
        assert!(!networks(&["::ffff:0:0/95"]).contains(ip("1.2.3.4")));
    }

    #[test]
    fn what_is_within_another_network_takes_no_memory() {
        let wide = networks(&["10.0.0.0/9"]);
        let nested = networks(&["10.1.2.3/32", "10.1.0.0/16", "10.0.0.0/9", "10.0.0.0/9"]);
        assert_eq!(bytes(&wide), bytes(&nested));
    }

    #[test]
    fn without_networks_it_is_empty() {
        assert!(networks(&[]).is_empty());
        assert!(!Networks::default().contains(ip("10.0.0.1")));
        assert!(!networks(&["10.0.0.1/32"]).is_empty());
        assert!(!networks(&["0.0.0.0/0"]).is_empty());
    }

    #[test]
    fn deny_wins_and_no_allow_is_everybody() {
        let acl = |allow: &[&str], deny: &[&str]| {
            let list = |texts: &[&str]| texts.iter().map(|text| network(text)).collect::<Vec<_>>();
            Acl::new(list(allow), list(deny))
        };
        let admitted =
            |acl: &Acl| ["10.0.0.1", "10.1.0.1", "11.0.0.1"].map(|text| acl.admits(ip(text)));
        assert_eq!(admitted(&acl(&[], &[])), [true, true, true]);
        assert_eq!(admitted(&acl(&["10.0.0.0/8"], &[])), [true, true, false]);
        assert_eq!(admitted(&acl(&[], &["10.1.0.0/16"])), [true, false, true]);
        assert_eq!(
            admitted(&acl(&["10.0.0.0/8"], &["10.1.0.0/16"])),
            [true, false, false]
        );
        assert_eq!(
            admitted(&acl(&["10.0.0.0/16"], &["10.0.0.0/8"])),
            [false; 3]
        );
        assert!(acl(&[], &[]).is_open() && Acl::default().is_open());
        assert!(!acl(&["0.0.0.0/0", "::/0"], &[]).is_open());
        assert!(!acl(&[], &["::1/128"]).is_open());
    }

    #[test]
    fn ten_thousand_networks_fit_into_a_few_megabytes() {
        let spread = |number: u64| u128::from(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let ipv4 = (1..=10_000).map(|n| (Ipv4Addr::from_bits((spread(n) >> 32) as u32).into(), 24));
        let ipv6 = (1..=10_000).map(|n| (Ipv6Addr::from_bits(spread(n) << 64).into(), 48));
        let (ipv4, ipv6) = (Networks::new(ipv4), Networks::new(ipv6));
        assert!(bytes(&ipv4) < 2 << 20, "{}", bytes(&ipv4));
        assert!(bytes(&ipv6) < 6 << 20, "{}", bytes(&ipv6));
    }

    /// Close together, so that networks meet.
    fn any_address() -> impl Strategy<Value = IpAddr> {
        let bits = || (any::<u8>(), 0u32..128).prop_map(|(bits, shift)| u128::from(bits) << shift);
        prop_oneof![
            bits().prop_map(|bits| Ipv4Addr::from_bits((bits >> 32) as u32).into()),
            bits().prop_map(|bits| Ipv6Addr::from_bits(bits).into()),
            bits().prop_map(|bits| Ipv4Addr::from_bits(bits as u32).to_ipv6_mapped().into()),
            bits().prop_map(|bits| Ipv6Addr::from_bits(bits | 0xffff_0000_0000).into()),
        ]
    }

    fn any_network() -> impl Strategy<Value = (IpAddr, u8)> {
        (any_address(), 0u8..=128).prop_map(|(address, prefix)| match address {
            IpAddr::V4(_) => (address, prefix % 33),
            IpAddr::V6(_) => (address, prefix),
        })
    }

    proptest! {
        #[test]
        fn it_holds_what_one_of_its_networks_holds(
            list in prop::collection::vec(any_network(), 0..40),
            addresses in prop::collection::vec(any_address(), 1..40),
            near in prop::collection::vec((any::<prop::sample::Index>(), 0u32..128), 1..40),
        ) {
            let networks = Networks::new(list.clone());
            prop_assert_eq!(networks.is_empty(), list.is_empty());
            let neighbors = near.iter().filter(|_| !list.is_empty()).map(|(which, bit)| {
                match which.get(&list).0 {
                    IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() ^ 1 << (bit % 32)).into(),
                    IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() ^ 1 << bit).into(),
                }
            });
            for address in addresses.iter().copied().chain(neighbors) {
                let expected = list.iter().any(|&network| holds(network, address));
                prop_assert_eq!(networks.contains(address), expected, "{}", address);
            }
        }
    }
}
