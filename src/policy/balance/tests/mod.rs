//! The stage on which the algorithms are tested: backends, clients, and sessions that take their time.

mod every;
mod hashing;
mod serving;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use super::{
    Algorithm, Balancer, Candidates, Draw, Foresight, Member, Passed, Request, hash, identity,
};
use crate::time::Instant;

/// A balancer and the backends that it balances over: `10.0.0.0:80`, `10.0.0.1:80` and so on.
pub(super) struct Stage {
    pub(super) members: Vec<Member>,
    balancer: Box<dyn Balancer>,
}

impl Stage {
    pub(super) fn new(algorithm: Algorithm, weights: &[u16]) -> Self {
        let members = weights.iter().enumerate().map(|(backend, &weight)| Member {
            identity: identity(&format!("{}:80", ipv4([10, 0, 0, 0], backend))),
            weight,
            load: Arc::default(),
        });
        Self::over(algorithm, members.collect())
    }

    pub(super) fn over(algorithm: Algorithm, members: Vec<Member>) -> Self {
        Self {
            balancer: (algorithm.build)(&members, 0),
            members,
        }
    }

    /// The same backends, and a balancer that stands where this one does.
    pub(super) fn rehearsal(&self) -> Option<Self> {
        let members = self.members.clone();
        let balancer = self.balancer.rehearsal()?;
        Some(Self { members, balancer })
    }

    pub(super) fn foresight(&self) -> Foresight {
        self.balancer.foresight()
    }

    /// The choice of one selection with these weights.
    pub(super) fn choose(&self, request: Request, weights: &[u16]) -> Option<usize> {
        self.order(request, weights, Passed::default()).next()
    }

    /// The choices of one selection, each of which is passed over after those in `passed`.
    pub(super) fn order(
        &self,
        request: Request,
        weights: &[u16],
        mut passed: Passed,
    ) -> impl Iterator<Item = usize> {
        let arrangement = self.balancer.arrange(weights);
        let draw = self.balancer.draw(request);
        std::iter::from_fn(move || {
            let choice = self.next(&draw, weights, &arrangement, &passed)?;
            passed.insert(choice);
            Some(choice)
        })
    }

    fn next(
        &self,
        draw: &Draw,
        weights: &[u16],
        arrangement: &[u16],
        passed: &Passed,
    ) -> Option<usize> {
        let candidates = Candidates {
            weights,
            arrangement,
            passed,
        };
        self.balancer.choose(draw, &candidates)
    }

    /// How often each backend is the first choice of `count` clients who aren't in `passed`. Their
    /// sessions end at once, or after all others.
    pub(super) fn counts(
        &self,
        weights: &[u16],
        passed: &[usize],
        count: usize,
        sessions_last: bool,
    ) -> Vec<usize> {
        let arrangement = self.balancer.arrange(weights);
        let passed = passed_of(passed);
        let mut counts = vec![0; weights.len()];
        for client in 0..count {
            let draw = self.balancer.draw(request(client));
            let choice = self
                .next(&draw, weights, &arrangement, &passed)
                .expect("one fits");
            counts[choice] += 1;
            if sessions_last {
                self.members[choice].load.active.enter(usize::MAX);
            }
        }
        counts
    }

    /// Every backend has been measured, and found to be as fast as any other.
    pub(super) fn measured(self) -> Self {
        for member in &self.members {
            member
                .load
                .latency
                .observe(Duration::from_millis(5), Instant::from_nanos(0));
        }
        self
    }
}

/// The choices of 24 clients among backends of weights 1, 2, 3 and 0, which another version or another
/// process must make as well.
pub(super) fn first_choices(algorithm: Algorithm) -> Vec<usize> {
    let weights = [1, 2, 3, 0];
    let stage = Stage::new(algorithm, &weights);
    let choose = |client| stage.choose(request(client), &weights);
    (1..25).filter_map(choose).collect()
}

fn passed_of(backends: &[usize]) -> Passed {
    let mut passed = Passed::default();
    backends.iter().for_each(|&backend| passed.insert(backend));
    passed
}

/// The selection of the `number`-th client.
pub(super) fn request(number: usize) -> Request {
    Request {
        client: Some(ipv4([192, 0, 2, 0], number).into()),
        random: hash::mix(number as u64),
        now: Instant::from_nanos(0),
    }
}

fn ipv4(first: [u8; 4], number: usize) -> Ipv4Addr {
    let number = u32::try_from(number).unwrap();
    Ipv4Addr::from_bits(Ipv4Addr::from(first).to_bits() + number)
}

/// Each count is off its weight's share of all by at most 5 % of it.
pub(super) fn assert_shares(counts: &[usize], weights: &[u16], what: &str) {
    let all: usize = counts.iter().sum();
    let sum: usize = weights.iter().map(|&weight| usize::from(weight)).sum();
    for (&count, &weight) in counts.iter().zip(weights) {
        let share = all * usize::from(weight) / sum;
        let differs = count.abs_diff(share);
        assert!(
            differs * 20 <= share,
            "{what}: {counts:?} instead of {weights:?}"
        );
    }
}
