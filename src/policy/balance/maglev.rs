//! The same client to the same backend, by a table: as in Google's Maglev (Eisenbud et al., NSDI 2016),
//! with weights. The shares are exact, the choice is a look at one entry, and every process that has the
//! same backends chooses alike, in whatever order they stand.
//!
//! The table is made of the configuration and doesn't change with the backends' state. The clients of
//! an entry whose backend may not be chosen go where rendezvous hashing sends them: by weight to all
//! others, and back as soon as it may.

use super::per_weight::PerWeight;
use super::rendezvous::Rendezvous;
use super::{Algorithm, Balancer, Candidates, Draw, Member, Request, hash};

pub(super) const ALGORITHM: Algorithm = Algorithm {
    name: "maglev",
    needs_client: true,
    needs_latency: false,
    build: |members, _| Box::new(Maglev::new(members)),
};

#[derive(Debug)]
struct Maglev {
    /// Backends; empty if none has a weight.
    table: Vec<u16>,
    /// As configured.
    weights: Vec<u16>,
    others: Rendezvous,
}

impl Balancer for Maglev {
    fn draw(&self, request: Request) -> Draw {
        hash::draw(request)
    }

    fn choose(&self, draw: &Draw, candidates: &Candidates<'_>) -> Option<usize> {
        let client = draw.number;
        self.entry(client)
            .filter(|&backend| candidates.fits(backend) && self.takes(backend, client, candidates))
            .or_else(|| self.others.choose(client, candidates))
    }

    /// The greatest share of its weight that a backend has at the moment: now, and in full. That is what
    /// the others' are measured by, since all may be scaled.
    fn arrange(&self, weights: &[u16]) -> Vec<u16> {
        let shares = weights.iter().zip(&self.weights);
        shares
            .filter(|(now, full)| **now > 0 && **full > 0)
            .max_by_key(|(now, full)| PerWeight::new(u64::from(**now), **full))
            .map_or_else(Vec::new, |(now, full)| vec![*now, *full])
    }
}

impl Maglev {
    fn new(members: &[Member]) -> Self {
        Self {
            table: table(members),
            weights: members.iter().map(|member| member.weight).collect(),
            others: Rendezvous::new(members),
        }
    }

    fn entry(&self, client: u64) -> Option<usize> {
        let place = (client % TABLE_LEN as u64) as usize;
        self.table.get(place).copied().map(usize::from)
    }

    /// A backend that starts slowly takes only a share of its clients, always the same ones.
    fn takes(&self, backend: usize, client: u64, candidates: &Candidates<'_>) -> bool {
        let &[now_most, full_most] = candidates.arrangement else {
            return true;
        };
        let now = u64::from(candidates.weights[backend]) * u64::from(full_most);
        let full = u64::from(self.weights[backend]) * u64::from(now_most);
        now >= full || {
            // Mixed once more, as `others` judges by the same pair those that are not taken.
            let lot = hash::mix(self.others.pair(client, backend) ^ SLOW_START);
            hash::below(full, lot) < now
        }
    }
}

/// A prime, so that every step leads through the whole table.
const TABLE_LEN: usize = 65_537;

/// Each backend claims entries along a path of its own, taking turns in proportion to its weight, until
/// the table is full.
fn table(members: &[Member]) -> Vec<u16> {
    let heaviest = members
        .iter()
        .map(|member| member.weight)
        .max()
        .unwrap_or(0);
    let mut paths: Vec<Path> = members.iter().enumerate().filter_map(Path::new).collect();
    paths.sort_by_key(|path| path.identity);
    // Half a turn ahead, so that turns are rounded to the nearest and not down for the light ones.
    paths
        .iter_mut()
        .for_each(|path| path.credit = u32::from(heaviest) / 2);
    let mut table = vec![None; if paths.is_empty() { 0 } else { TABLE_LEN }];
    let mut free = table.len();
    while free > 0 {
        for path in &mut paths {
            if free > 0 && path.has_turn(u32::from(heaviest)) {
                path.claim(&mut table);
                free -= 1;
            }
        }
    }
    table.into_iter().flatten().collect()
}

/// A backend's way through the table.
struct Path {
    backend: u16,
    identity: u64,
    weight: u32,
    /// What it has saved up for its next turn.
    credit: u32,
    place: usize,
    step: usize,
}

impl Path {
    fn new((backend, member): (usize, &Member)) -> Option<Self> {
        let [place, step] = [PLACE, STEP].map(|what| hash::mix(hash::mix(member.identity) ^ what));
        (member.weight > 0).then(|| Self {
            backend: u16::try_from(backend).expect("at most 65,536 backends"),
            identity: member.identity,
            weight: u32::from(member.weight),
            credit: 0,
            place: hash::below(TABLE_LEN as u64, place) as usize,
            step: hash::below(TABLE_LEN as u64 - 1, step) as usize + 1,
        })
    }

    fn has_turn(&mut self, heaviest: u32) -> bool {
        self.credit += self.weight;
        let has_turn = self.credit >= heaviest;
        if has_turn {
            self.credit -= heaviest;
        }
        has_turn
    }

    /// Takes the next entry of its path that is free; there is one.
    fn claim(&mut self, table: &mut [Option<u16>]) {
        while table[self.place].is_some() {
            self.place = (self.place + self.step) % TABLE_LEN;
        }
        table[self.place] = Some(self.backend);
    }
}

/// What tells the hashes of one identity apart.
const PLACE: u64 = 1;
const STEP: u64 = 2;
const SLOW_START: u64 = 3;

#[cfg(test)]
mod tests {
    use super::super::tests::{Stage, first_choices, request};
    use super::*;

    fn members(weights: &[u16]) -> Vec<Member> {
        Stage::new(ALGORITHM, weights).members
    }

    /// Different weights, the heaviest one being the first that goes.
    fn mixed_weights() -> Vec<u16> {
        (0..100).map(|backend| 9 - backend % 9).collect()
    }

    #[test]
    fn choices_have_their_golden_values() {
        let expected = [
            1, 1, 2, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 0, 1, 1, 1, 2, 2, 1, 1, 1,
        ];
        assert_eq!(first_choices(ALGORITHM), expected);
    }

    #[test]
    fn entries_are_shared_out_by_weight_to_the_last_one() {
        for weights in [mixed_weights(), vec![1; 100], vec![256, 1], vec![0, 7]] {
            let mut counts = vec![0_usize; weights.len()];
            for backend in table(&members(&weights)) {
                counts[usize::from(backend)] += 1;
            }
            assert_eq!(counts.iter().sum::<usize>(), TABLE_LEN);
            let sum: usize = weights.iter().copied().map(usize::from).sum();
            for (&count, &weight) in counts.iter().zip(&weights) {
                // In units of an entry / sum.
                let difference = (count * sum).abs_diff(TABLE_LEN * usize::from(weight));
                assert!(difference <= sum, "{count} of weight {weight}");
            }
        }
    }

    #[test]
    fn one_of_a_hundred_that_leaves_moves_its_entries_and_one_percent_of_the_others() {
        for weights in [mixed_weights(), vec![1; 100]] {
            let before = table(&members(&weights));
            for gone in [0, 1, 42, 99] {
                let mut others = weights.clone();
                others[gone] = 0;
                let after = table(&members(&others));
                let of_others = || {
                    before
                        .iter()
                        .zip(&after)
                        .filter(|(it, _)| usize::from(**it) != gone)
                };
                let moved = of_others()
                    .filter(|(before, after)| before != after)
                    .count();
                assert!(
                    moved * 100 <= of_others().count(),
                    "{moved} because of {gone}"
                );
            }
        }
    }

    #[test]
    fn more_backends_than_entries_can_be_built() {
        let stage = Stage::new(ALGORITHM, &[256; 65_536]);
        assert!(stage.choose(request(0), &[1; 65_536]).is_some());
    }
}
