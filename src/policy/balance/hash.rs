//! The hashes that tie clients to backends. They must never change: processes of different versions
//! behind the same address have to choose alike, and a client has to find its backend again after
//! an upgrade. The golden values of the tests hold them to that.

use std::net::IpAddr;

use super::{Draw, Request};

/// A step of SplitMix64 (Steele, Lea and Flood 2014): every bit of the result depends on every bit of `number`.
pub(super) const fn mix(number: u64) -> u64 {
    let mixed = number.wrapping_add(GAMMA);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The `index`-th number of the SplitMix64 sequence of `seed`.
pub(super) const fn nth(seed: u64, index: u64) -> u64 {
    mix(seed.wrapping_add(index.wrapping_mul(GAMMA)))
}

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The hash of a client's address, which is mixed as one number (IPv4) or as two, the upper half
/// first (IPv6). An IPv4-mapped IPv6 address is the IPv4 address.
pub(super) fn of_client(client: IpAddr) -> u64 {
    match client.to_canonical() {
        IpAddr::V4(address) => mix(u64::from(address.to_bits())),
        IpAddr::V6(address) => {
            let [upper, lower] = [64, 0].map(|shift| (address.to_bits() >> shift) as u64);
            mix(mix(upper) ^ lower)
        }
    }
}

/// A selection whose number is the hash of the client; by chance where the client has no address.
pub(super) fn draw(request: Request) -> Draw {
    let number = request
        .client
        .map_or_else(|| mix(request.random), of_client);
    Draw { number, request }
}

/// `hash` brought into 0..`bound`, in proportion; 0 if there is nothing to choose from.
pub(super) fn below(bound: u64, hash: u64) -> u64 {
    ((u128::from(hash) * u128::from(bound)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_have_their_golden_values() {
        // The first numbers of SplitMix64 for the seed 1234567, as in Rosetta Code and others.
        let first: Vec<u64> = (0..3).map(|index| nth(1_234_567, index)).collect();
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ];
        assert_eq!(first, expected);
        let of = |client: &str| of_client(client.parse().unwrap());
        assert_eq!(of("192.0.2.1"), 10_801_868_193_361_724_956);
        assert_eq!(of("2001:db8::1"), 5_613_903_895_206_896_597);
    }

    #[test]
    fn a_mapped_address_is_the_same_client() {
        let of = |client: &str| of_client(client.parse().unwrap());
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("::192.0.2.1"), of("192.0.2.1"));
    }

    #[test]
    fn a_bound_is_kept_in_proportion() {
        assert_eq!((below(0, 7), below(10, 0), below(10, u64::MAX)), (0, 0, 9));
        assert_eq!(below(10, u64::MAX / 2), 4);
    }
}
