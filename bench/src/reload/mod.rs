//! What reloads and upgrades cost and lose: one proxy after another under a fixed rate of new connections
//! (and, if wanted, exchanges on kept ones), first in quiet, then while it is reloaded again and again.
//!
//! Proxies and load are placed as in [`crate::compare`]. The orders are given from a thread of their own on
//! the generator's CPU, so that no command stands between a due connection and its begin; what that costs
//! the generator is in its lateness.

mod operator;
mod table;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use ringress::ring::{Ring, limits};
use serde::Serialize;

use crate::backend::{self, Service};
use crate::error::Error;
use crate::load::{self, Edge, Outcome, Plan, Summary, Work};
use crate::machine::Machine;
use crate::peers::{Change, Peer, Place, Protocol, Running, free_address};
use crate::report::say;
use crate::{local, procstat};
use operator::Operator;

pub(crate) use operator::{Kind, Orders};
pub(crate) use table::markdown;

/// What is to be measured.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) peers: Vec<Peer>,
    /// New connections per second.
    pub(crate) rate: u64,
    /// Connections that are kept, and the exchanges per second on all of them together.
    pub(crate) kept: Option<(usize, u64)>,
    pub(crate) orders: Orders,
    /// Where configurations and logs of the proxies go.
    pub(crate) folder: PathBuf,
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    machine: Machine,
    proxy_cpu: usize,
    load_cpu: usize,
    orders: Orders,
    rate: u64,
    kept: Option<(usize, u64)>,
    versions: BTreeMap<&'static str, String>,
    contenders: Vec<Contender>,
}

/// One proxy.
#[derive(Debug, Serialize)]
struct Contender {
    name: &'static str,
    measured: Option<Measured>,
    /// Why it was not.
    failure: Option<String>,
}

/// What was seen of one proxy.
#[derive(Debug, Serialize)]
struct Measured {
    /// The configurations that took turns.
    configurations: [String; 2],
    quiet: Phase,
    /// The same while the orders were given.
    orders: Phase,
    /// At rest.
    before: Footprint,
    /// The most at once, while the orders were given.
    most_memory: u64,
    most_processes: usize,
    /// At rest.
    after: Footprint,
    given: usize,
    /// Orders that are known to have taken effect. Some may coalesce.
    took_effect: usize,
    /// What went wrong with an order.
    complaints: Vec<String>,
}

/// The load between two edges.
#[derive(Debug, Serialize)]
struct Phase {
    fresh: Summary,
    kept: Option<Summary>,
    /// User and system, of all the proxy's processes, those that have ended included.
    proxy_cpu_us: f64,
}

/// What a proxy takes up: all its processes together.
#[derive(Clone, Copy, Debug, Serialize)]
struct Footprint {
    memory: u64,
    processes: usize,
    descriptors: usize,
}

impl Footprint {
    fn of(processes: &[u32]) -> Self {
        let living = procstat::living(processes);
        Self {
            memory: procstat::anonymous_memory(&living),
            processes: living.len(),
            descriptors: procstat::descriptors(&living),
        }
    }
}

/// Bytes of a request and of its answer.
const SIZE: usize = 128;
/// Backends on as many addresses (see [`crate::compare`]), and one more in every other configuration.
const BACKEND_ADDRESSES: u8 = 8;
/// Where the second listener is: no outgoing connection has this address for its own, whose port would be
/// in the way.
const SECOND_ADDRESS: [u8; 4] = [127, 0, 0, 64];
/// Before counting starts in a phase.
const WARMUP: Duration = Duration::from_millis(200);
/// Without load, before what a proxy takes up is looked at: time for buffers to be given back and for
/// processes to end that have nothing to do any more.
const REST: Duration = Duration::from_secs(3);

/// Measures everything that is wanted.
pub(crate) fn measure(wanted: &Wanted) -> Result<Report, Error> {
    let cpus = limits::usable_cpus();
    let (proxy_cpu, load_cpu) = (cpus[0], cpus[cpus.len() - 1]);
    let machine = Machine::here();
    if proxy_cpu == load_cpu {
        say("one usable CPU: proxy and generator share it, the numbers mean little");
    }
    limits::pin_to(load_cpu).map_err(Error::while_doing("choosing a CPU"))?;
    local::room_for(2)?;
    // Processes that an upgrade has left without a parent stay ours, to be looked at and ended.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(|error| Error::while_doing("becoming a subreaper")(error.into()))?;
    let ring = local::ring()?;
    let any = SocketAddr::from(([0, 0, 0, 0], 0));
    let stage = Stage {
        wanted,
        port: backend::start(&ring, any, Service::Echo)?.port(),
        ring,
        proxy_cpu,
    };
    Ok(Report {
        machine,
        proxy_cpu,
        load_cpu,
        orders: wanted.orders,
        rate: wanted.rate,
        kept: wanted.kept,
        versions: wanted
            .peers
            .iter()
            .map(|peer| (peer.name, peer.version.clone()))
            .collect(),
        contenders: wanted
            .peers
            .iter()
            .map(|peer| stage.contend(peer))
            .collect(),
    })
}

/// What all proxies share.
struct Stage<'a> {
    wanted: &'a Wanted,
    ring: Ring,
    /// The backend's, on every address.
    port: u16,
    proxy_cpu: usize,
}

impl Stage<'_> {
    fn contend(&self, peer: &Peer) -> Contender {
        let (measured, failure) = match self.measure(peer) {
            Ok(measured) => (Some(measured), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let name = peer.name;
        Contender {
            name,
            measured,
            failure,
        }
    }

    fn measure(&self, peer: &Peer) -> Result<Measured, Error> {
        let folder = self.wanted.folder.join(peer.name);
        let backends: Vec<SocketAddr> = (1..=BACKEND_ADDRESSES + 1)
            .map(|host| SocketAddr::from(([127, 0, 0, host], self.port)))
            .collect();
        let plain = Place {
            folder: &folder,
            protocol: Protocol::Tcp,
            listen: free_address(Protocol::Tcp)?,
            backends: &backends[1..],
            change: Some(Change::default()),
        };
        let changed = Place {
            backends: &backends,
            change: Some(self.change(plain.listen)),
            ..plain
        };
        let (ring, cpu) = (&self.ring, self.proxy_cpu);
        let mut running = Running::start(ring, peer, cpu, &plain, &mut |address| {
            load::ask_once(ring, &address.into(), Service::Echo)
        })?;
        let orders = self.wanted.orders;
        let operator = Operator::new(orders, peer, [&changed, &plain], running.id())?;
        say(&format!("{}: quiet; process {}", peer.name, running.id()));
        let (quiet, operator) = self.phase(&mut running, operator, false)?;
        local::pass(&self.ring, REST)?;
        let before = operator.footprint();
        let (busy, mut operator) = self.phase(&mut running, operator, true)?;
        local::pass(&self.ring, REST)?;
        let after = operator.footprint();
        Ok(Measured {
            configurations: operator.configurations(),
            quiet,
            orders: busy,
            before,
            most_memory: operator.most_memory,
            most_processes: operator.most_processes,
            after,
            given: operator.given,
            took_effect: operator.took_effect(),
            complaints: [operator.complaints.clone(), operator.logged()].concat(),
        })
    }

    /// How every other configuration differs, beside its backends.
    fn change(&self, listen: SocketAddr) -> Change {
        let orders = self.wanted.orders;
        let also = SocketAddr::from((SECOND_ADDRESS, listen.port()));
        Change {
            also: orders.listener.then_some(also),
            second_worker: orders.kind == Kind::Upgrade,
        }
    }

    /// Puts the load on the proxy while the operator looks on, and gives orders if it is to.
    fn phase(
        &self,
        running: &mut Running,
        operator: Operator,
        gives_orders: bool,
    ) -> Result<(Phase, Operator), Error> {
        let (stop, stopped) = mpsc::channel::<()>();
        let (mut stop, mut idle) = (Some(stop), Some((operator, stopped)));
        let mut watching = None;
        let outcomes = load::run_all(
            &self.ring,
            &self.plans(running.listen),
            &mut |edge| match edge {
                Edge::Begin => {
                    if gives_orders {
                        say(&self.wanted.orders.to_string());
                    }
                    watching = idle.take().map(|(operator, stopped)| {
                        thread::spawn(move || operator.watch(gives_orders, &stopped))
                    });
                }
                Edge::End => drop(stop.take()),
            },
        );
        drop(stop);
        let mut operator = watching.map(|thread| thread.join().expect("looking on does not panic"));
        let heirs = operator.as_mut().map(|it| std::mem::take(&mut it.heirs));
        running.inherited_by(heirs.unwrap_or_default());
        let outcomes = outcomes?;
        let operator = operator.expect("a run that ends has begun");
        let phase = Phase {
            fresh: outcomes[0].summary(),
            kept: outcomes.get(1).map(Outcome::summary),
            proxy_cpu_us: operator.cpu.as_secs_f64() * 1e6,
        };
        Ok((phase, operator))
    }

    /// The load: new connections, and exchanges on kept ones.
    fn plans(&self, target: SocketAddr) -> Vec<Plan> {
        let plan = |connections, work| Plan {
            target: target.into(),
            connections,
            warmup: WARMUP,
            duration: self.wanted.orders.over,
            work,
        };
        let per_second = self.wanted.rate;
        let size = SIZE;
        let fresh = Work::NewConnectionsAtRate { size, per_second };
        let kept = self
            .wanted
            .kept
            .map(|(connections, per_second)| plan(connections, Work::Rate { size, per_second }));
        [plan(0, fresh)].into_iter().chain(kept).collect()
    }
}
