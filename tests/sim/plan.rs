//! What a run is made of, drawn from a seed.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::Path;
use std::time::Duration;

use ringress::address::Address;
use ringress::config::{
    Backend, Config, Listener, Log, LogFormat, LogLevel, Runtime, Timeouts, Upstream,
};
use ringress::policy::retry;
use ringress::ring::Capabilities;
use ringress::ring::sim::{BackendScript, ClientScript, Faults, Step};

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
    /// Every script comes to its end by itself, so that nothing may ever stall.
    pub(crate) lively: bool,
    /// Tell the workers to drain at this time, and to abort a while later.
    pub(crate) drain_at: Option<Duration>,
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
            lively: false,
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
        let clients = clients.collect();
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
            lively,
            drain_at: match lively {
                true => None,
                false => dice.pick(&[None, None, None, Some(Duration::from_millis(40))]),
            },
            ..Self::quiet(workers, backends)
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
        let backends = (0..self.backends.len()).map(|index| Backend {
            weight: 1 + index as u16 % 2,
            ..Backend::new(format!("b{index}").into(), Self::backend_address(index))
        });
        let default = Upstream::new("app".into(), backends.collect());
        Config {
            runtime: Runtime {
                workers: NonZeroUsize::new(self.workers),
                pin_workers: false,
                max_connections: NonZeroUsize::new(self.max_connections),
                drain_timeout: Duration::from_secs(60),
                buffer_memory: None,
            },
            log: Log {
                level: LogLevel::Debug,
                format: LogFormat::Text,
            },
            listeners: vec![self.listener()],
            upstreams: vec![Upstream {
                connect_timeout: self.connect_timeout,
                tcp_keepalive: None,
                retry: retry::Settings {
                    attempts: self.retries,
                    ..default.retry
                },
                ..default
            }],
        }
    }

    fn listener(&self) -> Listener {
        Listener {
            backlog: NonZeroU32::MIN,
            max_connections: self.listener_cap,
            tcp_keepalive: None,
            timeouts: Timeouts {
                idle: self.idle,
                half_close: self.half_close,
            },
            ..Listener::new("web".into(), vec![Self::front(), Self::unix_front()], 0)
        }
    }
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
