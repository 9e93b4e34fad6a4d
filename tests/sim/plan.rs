//! What a run is made of, drawn from a seed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::Path;
use std::time::Duration;

use ringress::address::Address;
use ringress::config::{
    AccessLog, Admin, Announce, Backend, Config, Exchange, HealthCheck, IpNet, Listener, Log,
    LogFormat, LogLevel, Pool, Probe, Queue, RateLimit, Runtime, Timeouts, Upstream,
};
use ringress::policy::balance::{ALGORITHMS, Algorithm};
use ringress::policy::bucket::Rate;
use ringress::policy::share::Share;
use ringress::policy::{breaker, health, outlier, retry};
#[cfg(debug_assertions)]
use ringress::proxy::Spot;
use ringress::ring::Capabilities;
use ringress::ring::sim::{BackendScript, ClientScript, Faults, Step};
use ringress::tls::Version;
use ringress::upstream::Order;

use crate::security::{Clients, Security};

/// A run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) faults: Faults,
    pub(crate) capabilities: Capabilities,
    pub(crate) workers: usize,
    /// Receive buffers per worker.
    pub(crate) buffers: u64,
    pub(crate) backends: Vec<BackendScript>,
    pub(crate) clients: Vec<ClientScript>,
    /// Some of the clients come by the unix listener.
    pub(crate) unix_clients: usize,
    pub(crate) max_connections: usize,
    pub(crate) listener_cap: Option<NonZeroUsize>,
    pub(crate) idle: Duration,
    pub(crate) half_close: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) retries: u32,
    /// What is around the payload.
    pub(crate) security: Security,
    pub(crate) handshake: Duration,
    /// What else there is to the upstream and the listener.
    pub(crate) policies: Policies,
    /// What happens to backends, by time.
    pub(crate) turns: Vec<(Duration, usize, Turn)>,
    /// One way to each backend; `None` = drawn for each packet.
    pub(crate) distance: Option<Duration>,
    /// When each client begins; those that are left out come within 50 ms.
    pub(crate) starts: Vec<Duration>,
    /// Every script comes to its end by itself, so that nothing may ever stall.
    pub(crate) lively: bool,
    /// How long all workers' turns take; zero = time stands still while there is something to do.
    pub(crate) turn_takes: Duration,
    /// Tell the workers to drain at this time, and to abort a while later.
    pub(crate) drain_at: Option<Duration>,
}

/// Something that happens to a backend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Turn {
    /// A prober says so.
    Healthy(bool),
    /// The operator says so.
    Ordered(Order),
    /// Its process is killed.
    Killed,
    /// From now on new connections meet this.
    Becomes(BackendScript),
    /// Not a backend but the worker of this number panics, there.
    #[cfg(debug_assertions)]
    Panicked(Spot),
}

/// Traffic policy.
#[derive(Clone, Debug)]
pub(crate) struct Policies {
    pub(crate) balance: Algorithm,
    /// Of every backend.
    pub(crate) backend_cap: Option<NonZeroUsize>,
    /// The last backend is one.
    pub(crate) backup: bool,
    pub(crate) slow_start: Duration,
    pub(crate) fail_open_below: Share,
    pub(crate) outlier: Option<outlier::Settings>,
    pub(crate) circuit_breaker: Option<breaker::Settings>,
    pub(crate) queue: Queue,
    pub(crate) preconnect: u32,
    pub(crate) idle_timeout: Duration,
    pub(crate) rate_limit: RateLimit,
    pub(crate) deny: Vec<IpNet>,
}

impl Default for Policies {
    fn default() -> Self {
        let upstream = Upstream::new("app".into(), Vec::new());
        Self {
            balance: upstream.balance,
            backend_cap: None,
            backup: false,
            slow_start: upstream.slow_start,
            fail_open_below: upstream.fail_open_below,
            outlier: None,
            circuit_breaker: None,
            queue: upstream.queue,
            preconnect: 0,
            idle_timeout: upstream.pool.idle_timeout,
            rate_limit: RateLimit::default(),
            deny: Vec::new(),
        }
    }
}

pub(crate) const FRONT: &str = "192.0.2.1:80";

impl Plan {
    /// No faults, no limits in the way.
    pub(crate) fn quiet(workers: usize, backends: Vec<BackendScript>) -> Self {
        Self {
            seed: 1,
            faults: Faults::none(),
            capabilities: Capabilities {
                multishot_recv: true,
                recv_budget: true,
                multishot_accept: true,
            },
            workers,
            buffers: 256,
            backends,
            clients: Vec::new(),
            unix_clients: 0,
            max_connections: 1000,
            listener_cap: None,
            idle: Duration::from_secs(60),
            half_close: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(5),
            retries: 1,
            security: Security::default(),
            handshake: Duration::from_secs(10),
            policies: Policies::default(),
            turns: Vec::new(),
            distance: None,
            starts: Vec::new(),
            lively: false,
            turn_takes: Duration::ZERO,
            drain_at: None,
        }
    }

    /// Everything drawn.
    pub(crate) fn from_seed(seed: u64) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed);
        let workers = 1 + dice.below(3) as usize;
        let lively = dice.below(3) == 0;
        let backends = (0..=dice.below(4)).map(|_| match lively {
            true => dice.lively_backend(),
            false => dice.backend(),
        });
        let backends = backends.collect();
        let clients = (0..4 + dice.below(16)).map(|_| match lively {
            true => dice.lively_client(),
            false => dice.client(),
        });
        let mut clients: Vec<ClientScript> = clients.collect();
        if dice.below(3) == 0 {
            let one = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9));
            clients
                .iter_mut()
                .for_each(|client| client.from = Some(one));
        }
        let backends: Vec<BackendScript> = backends;
        let (policies, turns) = match dice.below(2) {
            0 => (Policies::default(), Vec::new()),
            _ => (dice.policies(lively), dice.turns(lively, &backends)),
        };
        let mut faults = Faults::from_seed(seed);
        if lively {
            faults.peer_reset = 0;
        }
        Self {
            seed,
            faults,
            buffers: dice.pick(&[4, 8, 40, 256]),
            clients,
            unix_clients: dice.pick(&[0, 0, 3]),
            max_connections: dice.pick(&[1000, 1000, 1000, 5]),
            listener_cap: dice.pick(&[None, None, None, NonZeroUsize::new(4)]),
            retries: dice.below(3) as u32,
            policies,
            turns,
            lively,
            drain_at: match lively {
                true => None,
                false => dice.pick(&[None, None, None, Some(Duration::from_millis(40))]),
            },
            ..Self::quiet(workers, backends)
        }
    }

    /// The same with something around the payload.
    pub(crate) fn secured(seed: u64) -> Self {
        let plan = Self::from_seed(seed);
        let mut dice = Dice(seed.wrapping_add(0x7e15));
        let client = dice.pick(&[
            Clients::Plain,
            Clients::LookedAt,
            Clients::Terminated,
            Clients::Terminated,
            Clients::PassedOn,
        ]);
        let backend = client != Clients::PassedOn && dice.below(2) == 0;
        let accepts = dice.pick(&[None, None, Some(1), Some(2)]);
        // What has come with a header or a hello stays in its buffer while the session waits for a backend: with
        // fewer buffers than clients, those who wait would stop those who don't.
        let opens = client != Clients::Plain || accepts.is_some();
        let least = if opens { 2 * plan.clients.len() + 4 } else { 0 };
        Self {
            buffers: plan.buffers.max(least as u64),
            security: Security {
                client,
                backend,
                accepts,
                announce: dice.pick(&[
                    Announce::Never,
                    Announce::Never,
                    Announce::V1,
                    Announce::V2First,
                ]),
                version: dice.pick(&[Version::Tls12, Version::Tls13, Version::Tls13]),
                fragment: dice.pick(&[None, None, Some(1_000), Some(40)]),
                ..Security::default()
            },
            ..plan
        }
    }

    pub(crate) fn backend_address(index: usize) -> Address {
        let ip = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10));
        match index {
            3 => Address::Unix(Path::new("/run/backend.sock").into()),
            index => SocketAddr::new(ip, 8000 + index as u16).into(),
        }
    }

    pub(crate) fn front() -> Address {
        FRONT.parse::<SocketAddr>().expect("an address").into()
    }

    pub(crate) fn unix_front() -> Address {
        Address::Unix(Path::new("/run/front.sock").into())
    }

    pub(crate) fn config(&self) -> Config {
        let last = self.backends.len() - 1;
        let policies = &self.policies;
        let backends = (0..=last).map(|index| Backend {
            weight: 1 + index as u16 % 2,
            max_connections: policies.backend_cap,
            backup: policies.backup && index == last && index > 0,
            ..Backend::new(format!("b{index}").into(), Self::backend_address(index))
        });
        let default = Upstream::new("app".into(), backends.collect());
        Config {
            runtime: Runtime {
                workers: NonZeroUsize::new(self.workers),
                pin_workers: false,
                max_connections: NonZeroUsize::new(self.max_connections),
                ..Runtime::default()
            },
            log: Log {
                level: LogLevel::Debug,
                format: LogFormat::Text,
            },
            access_log: AccessLog::Off,
            admin: Admin::default(),
            listeners: vec![self.listener()],
            upstreams: vec![self.security.upstream(Upstream {
                connect_timeout: self.connect_timeout,
                tcp_keepalive: None,
                balance: policies.balance,
                slow_start: policies.slow_start,
                fail_open_below: policies.fail_open_below,
                outlier: policies.outlier,
                circuit_breaker: policies.circuit_breaker,
                queue: policies.queue,
                // Whoever says what a prober would say is in `turns`.
                health_check: Some(HealthCheck {
                    probe: Probe::Tcp(Exchange::default()),
                    interval: Duration::from_secs(5),
                    jitter: Share::default(),
                    timeout: Duration::from_secs(2),
                    settings: health::Settings {
                        rise: NonZeroU32::MIN,
                        fall: NonZeroU32::MIN,
                        start: health::Start::Up,
                    },
                }),
                pool: Pool {
                    preconnect: policies.preconnect,
                    idle_timeout: policies.idle_timeout,
                    ..default.pool
                },
                retry: retry::Settings {
                    attempts: self.retries,
                    ..default.retry
                },
                ..default
            })],
        }
    }

    fn listener(&self) -> Listener {
        self.security.listener(Listener {
            backlog: NonZeroU32::MIN,
            max_connections: self.listener_cap,
            tcp_keepalive: None,
            timeouts: Timeouts {
                idle: self.idle,
                half_close: self.half_close,
                handshake: self.handshake,
            },
            rate_limit: self.policies.rate_limit,
            deny: self.policies.deny.clone(),
            ..Listener::new("web".into(), vec![Self::front(), Self::unix_front()], 0)
        })
    }
}

const OUTLIER: outlier::Settings = outlier::Settings {
    consecutive_failures: NonZeroU32::new(2).unwrap(),
    eject_for: Duration::from_millis(40),
    max_eject_for: Duration::from_millis(100),
    max_ejected: Share::from_ppm(600_000),
};

const BREAKER: breaker::Settings = breaker::Settings {
    failure_ratio: Share::from_ppm(400_000),
    min_requests: NonZeroU32::new(3).unwrap(),
    window: Duration::from_millis(200),
    open_for: Duration::from_millis(30),
    half_open_requests: NonZeroU32::new(2).unwrap(),
};

fn nonzero(number: u64) -> NonZeroU64 {
    NonZeroU64::new(number).expect("not zero")
}

/// Deterministic choices.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn pick<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize].clone()
    }

    /// With `lively`, nothing that may turn a session away.
    fn policies(&mut self, lively: bool) -> Policies {
        let default = Policies::default();
        let balance = self.pick(ALGORITHMS);
        let shared = Policies {
            balance,
            backend_cap: self.pick(&[None, None, NonZeroUsize::new(4), NonZeroUsize::new(1)]),
            queue: Queue {
                max: 1000,
                timeout: Duration::from_hours(1),
            },
            slow_start: self.pick(&[Duration::ZERO, Duration::from_millis(80)]),
            preconnect: self.pick(&[0, 0, 2]),
            idle_timeout: self.pick(&[Duration::from_mins(1), Duration::from_millis(30)]),
            ..default.clone()
        };
        if lively {
            return shared;
        }
        let rate = Rate {
            per_second: self.pick(&[nonzero(1), nonzero(100), nonzero(1_000_000)]),
            burst: self.pick(&[nonzero(1), nonzero(10), nonzero(100_000)]),
        };
        let connections = self.pick(&[None, None, Some(rate)]);
        let connections_per_ip = self.pick(&[None, None, Some(rate)]);
        let per_second = nonzero(1_000_000);
        let bandwidth = Some(Rate { per_second, ..rate });
        Policies {
            backup: self.below(3) == 0,
            fail_open_below: self.pick(&[Share::default(), Share::from_ppm(500_000)]),
            outlier: self.pick(&[None, Some(OUTLIER)]),
            circuit_breaker: self.pick(&[None, Some(BREAKER)]),
            queue: Queue {
                max: self.pick(&[0, 2, 1000]),
                timeout: self.pick(&[Duration::from_millis(20), Duration::from_secs(1)]),
            },
            rate_limit: RateLimit {
                connections,
                connections_per_ip,
                bandwidth: self.pick(&[None, None, bandwidth]),
                dry_run: self.below(4) == 0,
                ..default.rate_limit
            },
            deny: self.pick(&[vec![], vec!["10.0.0.0/31".parse().expect("a network")]]),
            ..shared
        }
    }

    fn turns(&mut self, lively: bool, backends: &[BackendScript]) -> Vec<(Duration, usize, Turn)> {
        let count = if lively { 0 } else { self.below(6) };
        let mut turns: Vec<_> = (0..count)
            .map(|_| {
                let at = Duration::from_millis(self.below(200));
                let backend = self.below(backends.len() as u64) as usize;
                let turn = self.pick(&[
                    Turn::Healthy(true),
                    Turn::Healthy(false),
                    Turn::Healthy(false),
                    Turn::Ordered(Order::Enabled),
                    Turn::Ordered(Order::Draining),
                    Turn::Killed,
                    Turn::Becomes(backends[backend].clone()),
                ]);
                (at, backend, turn)
            })
            .collect();
        turns.sort_by_key(|(at, ..)| *at);
        turns
    }

    fn lively_backend(&mut self) -> BackendScript {
        let bytes = self.pick(&[1, 3_000, 100_000, 400_000]);
        self.pick(&[
            BackendScript::Echo,
            BackendScript::Echo,
            BackendScript::Download { bytes },
            BackendScript::Sink,
            BackendScript::SlowReader {
                bytes: 20_000,
                interval: Duration::from_millis(100),
            },
        ])
    }

    fn lively_client(&mut self) -> ClientScript {
        let bytes = self.pick(&[8, 500, 20_000, 200_000]);
        let dribble = Step::Send {
            bytes: 400,
            chunk: 3,
            pause: Duration::from_millis(1),
        };
        let slowly = Step::ReadSlowly {
            bytes: 30_000,
            interval: Duration::from_millis(50),
        };
        let stall = Step::Stall(Some(Duration::from_secs(2)));
        let mut steps = vec![Step::send(bytes)];
        steps.extend(self.pick(&[vec![], vec![dribble], vec![slowly], vec![stall]]));
        steps.extend([Step::Finish, Step::ReadToEnd]);
        ClientScript::new(steps)
    }

    fn backend(&mut self) -> BackendScript {
        let bytes = self.pick(&[1, 3_000, 100_000, 400_000, 4_000_000]);
        self.pick(&[
            BackendScript::Echo,
            BackendScript::Echo,
            BackendScript::Download { bytes },
            BackendScript::Download { bytes },
            BackendScript::Sink,
            BackendScript::Refuse,
            BackendScript::BlackHole,
            BackendScript::Unreachable,
            BackendScript::NeverAccepts { backlog: 1 },
            BackendScript::ResetAfter { bytes: bytes / 2 },
            BackendScript::NeverReads,
            BackendScript::CloseAtOnce,
            BackendScript::SlowReader {
                bytes: 20_000,
                interval: Duration::from_millis(100),
            },
            BackendScript::Steps(vec![Step::Expect(8), Step::send(bytes), Step::Reset]),
            BackendScript::Steps(vec![Step::Expect(8), Step::send(bytes), Step::Close]),
        ])
    }

    fn client(&mut self) -> ClientScript {
        let bytes = self.pick(&[8, 500, 20_000, 200_000]);
        let dribble = Step::Send {
            bytes: 400,
            chunk: 3,
            pause: Duration::from_millis(1),
        };
        let pause = Duration::from_millis(self.below(300));
        let steps = self.pick(&[
            vec![Step::send(bytes), Step::Finish, Step::ReadToEnd],
            vec![Step::send(bytes), Step::Finish, Step::ReadToEnd],
            vec![Step::send(bytes), Step::ReadToEnd],
            vec![dribble, Step::Finish, Step::ReadToEnd],
            vec![Step::send(bytes), Step::Reset],
            vec![Step::send(bytes), Step::Close],
            vec![
                Step::send(bytes),
                Step::Stall(Some(Duration::from_secs(2))),
                Step::Finish,
                Step::ReadToEnd,
            ],
            vec![Step::send(bytes), Step::Stall(None), Step::ReadToEnd],
            vec![Step::send(bytes), Step::Pause(pause), Step::Reset],
            vec![Step::ReadToEnd],
            vec![Step::Reset],
        ]);
        ClientScript::new(steps)
    }
}
