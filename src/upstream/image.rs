//! What is known of an upstream and its backends, in a form that goes to another process: the one that
//! takes over in an upgrade. It says what is written down and how; what it means, and whether it can be
//! true, is for the policies to say.
//!
//! The two processes may be of different versions. So everything has a default, and what one of them
//! doesn't know is left out. What changes its meaning gets another name.

use std::collections::HashMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Order, Upstream};
use crate::policy::balance::LatencyImage;
use crate::policy::{breaker, health, outlier, retry};
use crate::time::Instant;

/// What is known of an upstream. Some 700 bytes of JSON per backend.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct UpstreamImage {
    /// Its name in the configuration.
    pub name: String,
    /// Of retries.
    #[serde(with = "BudgetForm")]
    pub budget: retry::Image,
    /// In no order that matters; of several for one address the last counts.
    pub backends: Vec<BackendImage>,
}

/// What is known of a backend.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct BackendImage {
    /// As it is written in the configuration.
    pub address: String,
    /// What the operator says; an order that isn't known is none.
    #[serde(deserialize_with = "known_order")]
    pub order: Order,
    /// The weight that the operator has ordered.
    pub weight: Option<u16>,
    /// What the prober says.
    #[serde(with = "HealthForm")]
    pub health: health::Image,
    /// Failures of live sessions.
    #[serde(with = "OutlierForm")]
    pub outlier: outlier::Image,
    /// Their share.
    #[serde(with = "BreakerForm")]
    pub breaker: breaker::Image,
    /// How fast it is.
    #[serde(with = "LatencyForm")]
    pub latency: LatencyImage,
}

impl Upstream {
    /// What is known of it and of its backends. Each part of a moment of its own.
    pub fn image(&self) -> UpstreamImage {
        UpstreamImage {
            name: self.name.to_string(),
            budget: self.state.budget.image(),
            backends: self
                .backends
                .iter()
                .map(|backend| backend.image())
                .collect(),
        }
    }

    /// Goes on where `image` stands, before the first session and the first probe. Backends are known by
    /// their address; what is known of others is left out, and so is what nobody here asks for.
    pub fn restore(&self, image: &UpstreamImage, now: Instant) {
        let images = image.backends.iter();
        let images: HashMap<&str, _> = images.map(|image| (&*image.address, image)).collect();
        self.state.budget.restore(image.budget);
        for backend in &self.backends {
            if let Some(image) = images.get(&*backend.address.to_string()) {
                backend.restore(image, now);
            }
        }
        self.changed(now);
    }
}

/// Words of a window; the compiler sees to it that there are as many.
const WORDS: usize = 11;

/// How [`retry::Image`] is written down.
#[derive(Serialize, Deserialize)]
#[serde(remote = "retry::Image", default = "Default::default")]
struct BudgetForm {
    #[serde(serialize_with = "write_words", deserialize_with = "read_words")]
    window: [u64; WORDS],
}

/// How [`health::Image`] is written down.
#[derive(Serialize, Deserialize)]
#[serde(remote = "health::Image", default = "Default::default")]
struct HealthForm {
    #[serde(with = "StateForm")]
    state: health::State,
    success: bool,
    streak: u32,
    came_up_nanos: Option<u64>,
}

/// How [`health::State`] is. One that isn't known says nothing.
#[derive(Serialize, Deserialize)]
#[serde(remote = "health::State", rename_all = "kebab-case")]
enum StateForm {
    Up,
    Undecided,
    NotYetUp,
    Down,
    #[serde(other)]
    Unchecked,
}

/// How [`outlier::Image`] is written down.
#[derive(Serialize, Deserialize)]
#[serde(remote = "outlier::Image", default = "Default::default")]
struct OutlierForm {
    failures: u32,
    ejections: u32,
    ejected_until_nanos: Option<u64>,
    came_back_nanos: Option<u64>,
}

/// How [`breaker::Image`] is written down.
#[derive(Serialize, Deserialize)]
#[serde(remote = "breaker::Image", default = "Default::default")]
struct BreakerForm {
    #[serde(with = "KindForm")]
    kind: breaker::Kind,
    generation: u32,
    succeeded: u32,
    open_until_nanos: u64,
    #[serde(serialize_with = "write_words", deserialize_with = "read_words")]
    window: [u64; WORDS],
}

/// How [`breaker::Kind`] is. One that isn't known keeps nobody away.
#[derive(Serialize, Deserialize)]
#[serde(remote = "breaker::Kind", rename_all = "kebab-case")]
enum KindForm {
    Open,
    HalfOpen,
    #[serde(other)]
    Closed,
}

/// How [`LatencyImage`] is written down.
#[derive(Serialize, Deserialize)]
#[serde(remote = "LatencyImage", default = "Default::default")]
struct LatencyForm {
    average_nanos: u64,
    tick: u32,
}

fn write_words<S: Serializer>(words: &[u64; WORDS], to: S) -> Result<S::Ok, S::Error> {
    words.serialize(to)
}

/// A window of another length is an empty one.
fn read_words<'de, D: Deserializer<'de>>(from: D) -> Result<[u64; WORDS], D::Error> {
    let words = Vec::<u64>::deserialize(from)?;
    Ok(words.try_into().unwrap_or_default())
}

fn known_order<'de, D: Deserializer<'de>>(from: D) -> Result<Order, D::Error> {
    let name = String::deserialize(from)?;
    let known = Order::ALL.into_iter().find(|order| order.as_str() == name);
    Ok(known.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::tests::{around, at, model};
    use super::super::{Backend, Lease};
    use super::*;
    use crate::config::{self, Exchange, HealthCheck, Probe};
    use crate::policy::balance::ALGORITHMS;
    use crate::policy::roster::Standing;
    use crate::policy::share::Share;
    use crate::telemetry::Reason;

    const PROBES: health::Settings = health::Settings {
        rise: NonZeroU32::new(2).unwrap(),
        fall: NonZeroU32::new(2).unwrap(),
        start: health::Start::Up,
    };

    const OUTLIER: outlier::Settings = outlier::Settings {
        consecutive_failures: NonZeroU32::MIN,
        eject_for: Duration::from_secs(4),
        max_eject_for: Duration::from_secs(20),
        max_ejected: Share::from_ppm(500_000),
    };

    const PORTS: [u16; 4] = [1, 2, 3, 4];

    /// With all that there is to know, and half of the backends may be ejected.
    fn full(ports: &[u16]) -> config::Upstream {
        let measures = ALGORITHMS.iter().find(|algorithm| algorithm.needs_latency);
        config::Upstream {
            balance: *measures.expect("there is one"),
            slow_start: Duration::from_secs(30),
            outlier: Some(OUTLIER),
            health_check: Some(HealthCheck {
                probe: Probe::Tcp(Exchange::default()),
                interval: Duration::from_secs(5),
                jitter: Share::default(),
                timeout: Duration::from_secs(2),
                settings: PROBES,
            }),
            ..model(ports)
        }
    }

    /// In a process of its own.
    fn upstream(model: &config::Upstream) -> Upstream {
        Upstream::new(model, None, &around())
    }

    fn restored(model: &config::Upstream, image: &UpstreamImage, now: Instant) -> Upstream {
        let upstream = upstream(model);
        upstream.restore(image, now);
        upstream
    }

    fn written_and_read(image: &UpstreamImage) -> UpstreamImage {
        let text = serde_json::to_string(image).expect("it can be written");
        assert!(text.len() < 300 + 900 * image.backends.len(), "{text}");
        serde_json::from_str(&text).expect("it is understood")
    }

    fn standings(upstream: &Upstream) -> Vec<Standing> {
        let backends = upstream.backends.iter();
        backends.map(|backend| Backend::standing(backend)).collect()
    }

    fn ejected(upstream: &Upstream) -> usize {
        let backends = upstream.backends.iter();
        let until = backends.filter_map(|backend| backend.state.outlier.ejected_until());
        until.count()
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Session(Reason),
        Probe(bool),
        Order(Order),
        Retry,
        Pass(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
        let reason = prop::sample::select(vec![
            Reason::ClientClosed,
            Reason::BackendReset,
            Reason::ClientReset,
        ]);
        let step = prop_oneof![
            4 => reason.prop_map(Step::Session),
            2 => any::<bool>().prop_map(Step::Probe),
            1 => prop::sample::select(Order::ALL.to_vec()).prop_map(Step::Order),
            1 => Just(Step::Retry),
            2 => (0u64..8_000).prop_map(Step::Pass),
        ];
        prop::collection::vec((0..PORTS.len(), step), 0..60)
    }

    /// When it was at the end.
    fn take(upstream: &Upstream, steps: &[(usize, Step)], mut now: Instant) -> Instant {
        for &(index, step) in steps {
            let backend = &upstream.backends[index];
            match step {
                Step::Session(reason) => {
                    if let Ok(mut lease) = Lease::take(backend, None, now) {
                        lease.ended(reason, now + Duration::from_millis(3));
                    }
                }
                Step::Probe(success) => {
                    backend.state.health.record(&PROBES, success, now);
                }
                Step::Order(order) => {
                    upstream.order(&backend.name, order, now);
                }
                Step::Retry => {
                    upstream.state.budget.request(now);
                    let _ = upstream.state.budget.begin(&upstream.retry, now);
                }
                Step::Pass(millis) => now = now + Duration::from_millis(millis),
            }
            upstream.changed(now);
        }
        now
    }

    #[test]
    fn what_is_not_asked_for_here_and_who_is_not_here_is_left_out() {
        let full_one = upstream(&full(&PORTS));
        let steps = [0, 1].map(|backend| (backend, Step::Session(Reason::BackendReset)));
        take(&full_one, &steps, at(1));
        take(&full_one, &[(0, Step::Probe(false)); 2], at(1));
        let image = full_one.image();
        let plain = config::Upstream {
            circuit_breaker: None,
            ..model(&[9, 1])
        };
        let other = restored(&plain, &image, at(1));
        let untouched = upstream(&plain).image();
        assert_eq!(other.image().backends, untouched.backends);
        assert_eq!(other.state.ejected.now(), 0);
        assert!(other.is_ready(0, at(1)) && other.is_ready(1, at(1)));
    }

    #[test]
    fn no_more_are_ejected_than_may_be_here() {
        let there = upstream(&full(&PORTS));
        let steps = [0, 2].map(|backend| (backend, Step::Session(Reason::BackendReset)));
        take(&there, &steps, at(1));
        assert_eq!(there.state.ejected.now(), 2);
        let here = restored(&full(&[3, 1]), &there.image(), at(2));
        assert_eq!((here.state.ejected.now(), ejected(&here)), (1, 1));
    }

    #[test]
    fn another_versions_words_are_taken_as_far_as_they_are_known() {
        let newer = r#"{
            "name": "app", "mood": "good",
            "budget": {"window": [1, 2, 3]},
            "backends": [
                {"address": "127.0.0.1:1", "order": "draining", "health": {"state": "dozing"}},
                {"address": "127.0.0.1:2", "order": "pausing", "health": {"state": "down"}},
                {"address": "127.0.0.1:3", "breaker": {"kind": "ajar"}, "tide": []},
                {}
            ]
        }"#;
        let image: UpstreamImage = serde_json::from_str(newer).expect("it is understood");
        let here = restored(&full(&PORTS), &image, at(1));
        let ready = [0, 1, 2, 3].map(|index| here.is_ready(index, at(1)));
        assert_eq!(ready, [false, false, true, true]);
        let orders = [0, 1].map(|index| here.backends[index].state.order());
        assert_eq!(orders, [Order::Draining, Order::Enabled]);
        assert!(here.backends[0].state.health.is_healthy());
        assert_eq!(here.image().budget, retry::Image::default());
    }

    fn word() -> impl Strategy<Value = u64> {
        // Half of them mean the first minutes.
        prop_oneof![any::<u64>(), any::<u64>().prop_map(|word| word >> 22)]
    }

    fn backend_image() -> impl Strategy<Value = BackendImage> {
        let state = prop::sample::select(vec![
            health::State::Unchecked,
            health::State::Undecided,
            health::State::NotYetUp,
            health::State::Down,
        ]);
        let kind = prop::sample::select(vec![breaker::Kind::Open, breaker::Kind::HalfOpen]);
        let names = (
            0u16..6,
            prop::sample::select(Order::ALL.to_vec()),
            state,
            kind,
        );
        let instants = prop::array::uniform4(prop::option::of(word()));
        let numbers = prop::array::uniform6(any::<u32>());
        let words = (prop::array::uniform11(word()), word());
        (names, instants, numbers, words).prop_map(|(names, instants, numbers, words)| {
            BackendImage {
                address: format!("127.0.0.1:{}", names.0),
                order: names.1,
                weight: (names.0 > 2).then_some(names.0),
                health: health::Image {
                    state: names.2,
                    success: numbers[0] % 2 == 0,
                    streak: numbers[0],
                    came_up_nanos: instants[0],
                },
                outlier: outlier::Image {
                    failures: numbers[1],
                    ejections: numbers[2],
                    ejected_until_nanos: instants[1],
                    came_back_nanos: instants[2],
                },
                breaker: breaker::Image {
                    kind: names.3,
                    generation: numbers[3],
                    succeeded: numbers[4],
                    open_until_nanos: instants[3].unwrap_or(0),
                    window: words.0,
                },
                latency: LatencyImage {
                    average_nanos: words.1,
                    tick: numbers[5],
                },
            }
        })
    }

    fn image() -> impl Strategy<Value = UpstreamImage> {
        let backends = prop::collection::vec(backend_image(), 0..8);
        let budget = prop::array::uniform11(word());
        (budget, backends).prop_map(|(window, backends)| UpstreamImage {
            name: "app".to_owned(),
            budget: retry::Image { window },
            backends,
        })
    }

    proptest! {
        #[test]
        fn an_image_is_what_it_makes(
            before in steps(),
        ) {
            let there = upstream(&full(&PORTS));
            let now = take(&there, &before, at(1)) + Duration::from_millis(3);
            there.changed(now);
            let image = there.image();
            prop_assert_eq!(&written_and_read(&image), &image);
            let here = restored(&full(&PORTS), &image, now);
            prop_assert_eq!(here.image(), image);
            prop_assert_eq!(standings(&here), standings(&there));
            prop_assert_eq!(here.state.ejected.now(), there.state.ejected.now());
        }

        #[test]
        fn any_image_makes_an_upstream_that_recovers(
            image in image(),
            steps in steps(),
        ) {
            prop_assert_eq!(&written_and_read(&image), &image);
            let here = restored(&full(&PORTS), &image, at(1));
            prop_assert_eq!(here.state.ejected.now(), ejected(&here));
            prop_assert!(ejected(&here) <= PORTS.len() / 2);
            let again = restored(&full(&PORTS), &here.image(), at(1));
            prop_assert_eq!(again.image(), here.image());
            let mut now = take(&here, &steps, at(1));
            prop_assert_eq!(here.state.ejected.now(), ejected(&here));
            let good = [
                Step::Order(Order::Enabled),
                Step::Probe(true),
                Step::Probe(true),
                Step::Session(Reason::ClientClosed),
            ];
            for _ in 0..3 {
                now = now + Duration::from_secs(30);
                for index in 0..PORTS.len() {
                    now = take(&here, &good.map(|step| (index, step)), now);
                }
            }
            let standings = standings(&here);
            let ready = |standing: &Standing| standing.enabled && standing.healthy;
            prop_assert!(standings.iter().all(ready));
            prop_assert!((0..PORTS.len()).all(|index| here.is_ready(index, now)));
            prop_assert_eq!(here.state.ejected.now(), 0);
        }
    }
}
