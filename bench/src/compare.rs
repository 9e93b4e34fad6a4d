//! The comparison: every proxy in turn, round after round, on the same CPU; generator and backends
//! together on another one, in one thread, so that neither waits for the other to be scheduled.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ringress::ring::{Ring, limits};
use serde::Serialize;

use crate::backend::{self, Service};
use crate::error::Error;
use crate::load::{self, Edge, Plan, Target, Tls};
use crate::machine::Machine;
use crate::peers::{Certificate, Peer, Place, Protocol, Running, free_address};
use crate::procstat::{self, CpuTime};
use crate::scenario::{CEILING_SHARE, IDLE_CONNECTIONS, Metric, Sample, Scenario, Serving, Task};
use crate::statistics::{Better, Spread};
use crate::{local, report, udp};

/// What is to be compared.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) scenarios: Vec<Scenario>,
    pub(crate) peers: Vec<Peer>,
    /// Instead of each scenario's own.
    pub(crate) rounds: Option<usize>,
    /// Instead of each scenario's own.
    pub(crate) duration: Option<Duration>,
    /// Where configurations and logs of the proxies go.
    pub(crate) folder: PathBuf,
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    pub(crate) machine: Machine,
    pub(crate) proxy_cpu: usize,
    pub(crate) load_cpu: usize,
    pub(crate) versions: BTreeMap<&'static str, String>,
    /// By name and protocol.
    pub(crate) configurations: BTreeMap<String, String>,
    pub(crate) scenarios: Vec<Measured>,
}

/// One scenario.
#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    #[serde(serialize_with = "by_name")]
    pub(crate) scenario: Scenario,
    pub(crate) what: &'static str,
    pub(crate) rounds: usize,
    pub(crate) seconds_per_round: f64,
    /// Requests per second that were due, in the scenario that has a rate.
    pub(crate) rate: Option<u64>,
    pub(crate) contenders: Vec<Contender>,
    /// The generator and its backend without a proxy between them.
    pub(crate) ceiling: Vec<Sample>,
}

/// One proxy in one scenario.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    pub(crate) is_ringress: bool,
    pub(crate) samples: Vec<Sample>,
    /// Why it has no, or not all, rounds.
    pub(crate) failure: Option<String>,
}

fn by_name<S: serde::Serializer>(scenario: &Scenario, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(scenario.name())
}

impl Contender {
    pub(crate) fn values(&self, metric: Metric) -> Vec<f64> {
        self.samples.iter().map(|s| s.value(metric)).collect()
    }
}

/// Backends on as many addresses: those of a proxy's connections that wait in TIME_WAIT keep their
/// ports, and one address would run out of them.
const BACKEND_ADDRESSES: u8 = 8;
/// Before counting starts in a round.
const WARMUP: Duration = Duration::from_millis(200);
/// How long a proxy may be at work behind the last exchange before its memory is read.
const SETTLE: Duration = Duration::from_millis(300);
/// Datagrams that have no answer after this long are lost: stalls of a busy machine are shorter.
const DATAGRAM_TIMEOUT: Duration = Duration::from_millis(500);
/// For finding out what half the peers' maximum is when the run has not measured it.
const CALIBRATION: Duration = Duration::from_secs(1);

/// Measures everything that is wanted.
pub(crate) fn compare(wanted: &Wanted) -> Result<Comparison, Error> {
    let cpus = limits::usable_cpus();
    let (proxy_cpu, load_cpu) = (cpus[0], cpus[cpus.len() - 1]);
    let machine = Machine::here();
    if proxy_cpu == load_cpu {
        report::say("one usable CPU: proxy and generator share it, the numbers mean little");
    }
    limits::pin_to(load_cpu).map_err(Error::while_doing("choosing a CPU"))?;
    let room = local::room_for(2)?;
    if room < IDLE_CONNECTIONS as u64 && wanted.scenarios.iter().any(|it| it.is_idle()) {
        let text = format!("ulimit -n leaves room for {room} connections, idle needs 5,000");
        return Err(Error::Failed(text));
    }
    let stage = Stage::new(wanted, proxy_cpu)?;
    let mut scenarios: Vec<Measured> = Vec::new();
    for &scenario in &wanted.scenarios {
        if !wanted.peers.iter().any(|peer| scenario.wants(peer.name)) {
            let name = scenario.name();
            report::say(&format!("{name}: no proxy takes part, left out"));
            continue;
        }
        let half_of = |base| stage.half_of(base, scenario, &scenarios);
        let rate = match scenario.half_of().map(half_of).transpose() {
            Ok(rate) => rate,
            Err(error) => {
                // What was measured so far is worth its while.
                report::say(&format!("{}: {error}, left out", scenario.name()));
                continue;
            }
        };
        scenarios.push(stage.measure(scenario, rate)?);
    }
    Ok(Comparison {
        machine,
        proxy_cpu,
        load_cpu,
        versions: wanted
            .peers
            .iter()
            .map(|peer| (peer.name, peer.version.clone()))
            .collect(),
        configurations: stage.configurations(),
        scenarios,
    })
}

/// What all scenarios share.
struct Stage<'a> {
    wanted: &'a Wanted,
    ring: Ring,
    proxy_cpu: usize,
    echo: SocketAddr,
    download: SocketAddr,
    certificate: Certificate,
    /// The backends of datagrams: the one that echoes, the one that takes bursts.
    datagrams: RefCell<[udp::Backend; 2]>,
}

/// A proxy that takes part in a scenario.
struct Entrant<'a> {
    peer: &'a Peer,
    /// `None` between the rounds of a scenario that needs a fresh process for each.
    running: Option<Running>,
}

impl<'a> Stage<'a> {
    fn new(wanted: &'a Wanted, proxy_cpu: usize) -> Result<Self, Error> {
        let ring = local::ring()?;
        let any = SocketAddr::from(([0, 0, 0, 0], 0));
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        Ok(Self {
            wanted,
            echo: backend::start(&ring, any, Service::Echo)?,
            download: backend::start(&ring, any, Service::Download)?,
            certificate: Certificate::new()?,
            datagrams: RefCell::new([
                udp::Backend::new(loopback, udp::Service::Echo)?,
                udp::Backend::new(loopback, udp::Service::Bursts)?,
            ]),
            ring,
            proxy_cpu,
        })
    }

    /// The addresses of the backend that serves like this. Sessions of datagrams leave nothing behind
    /// that would take more than one.
    fn backends(&self, serving: Serving) -> Vec<SocketAddr> {
        let port = match serving {
            Serving::Connections(Service::Download) | Serving::Tls(Service::Download) => {
                self.download.port()
            }
            Serving::Connections(_) | Serving::Tls(_) => self.echo.port(),
            Serving::Datagrams(udp::Service::Bursts) => {
                return vec![self.datagrams.borrow()[1].address()];
            }
            Serving::Datagrams(_) => return vec![self.datagrams.borrow()[0].address()],
        };
        let address = |host| SocketAddr::from(([127, 0, 0, host], port));
        (1..=BACKEND_ADDRESSES).map(address).collect()
    }

    fn start(&self, peer: &Peer, serving: Serving) -> Result<Running, Error> {
        let folder = self.wanted.folder.join(peer.name);
        if serving.protocol() == Protocol::Tls {
            self.certificate.write(&folder)?;
        }
        let place = Place {
            folder: &folder,
            protocol: serving.protocol(),
            listen: free_address(serving.protocol())?,
            backends: &self.backends(serving),
            change: None,
        };
        let ring = &self.ring;
        Running::start(
            ring,
            peer,
            self.proxy_cpu,
            &place,
            &mut |address| match serving {
                Serving::Connections(service) | Serving::Tls(service) => {
                    load::ask_once(ring, &self.target(serving, address), service)
                }
                Serving::Datagrams(service) => {
                    let mut backends = self.datagrams.borrow_mut();
                    udp::ask_once(address, service, backends.as_mut_slice())
                }
            },
        )
    }

    /// An address, and what is spoken there.
    fn target(&self, serving: Serving, address: SocketAddr) -> Target {
        let tls = match serving {
            Serving::Tls(_) => Some(self.certificate.tls().clone()),
            _ => None,
        };
        Target { address, tls }
    }

    /// The proxies' configurations but for the ports, which are chosen anew for each start.
    fn configurations(&self) -> BTreeMap<String, String> {
        let mut texts = BTreeMap::new();
        for scenario in &self.wanted.scenarios {
            let serving = scenario.serving();
            let protocol = serving.protocol();
            let place = Place {
                folder: &self.wanted.folder,
                protocol,
                listen: SocketAddr::from(([127, 0, 0, 1], 0)),
                backends: &self.backends(serving),
                change: None,
            };
            for peer in self.wanted.peers.iter().filter(|it| it.speaks(protocol)) {
                let name = match protocol {
                    Protocol::Tcp => peer.name.to_owned(),
                    Protocol::Udp => format!("{} (udp)", peer.name),
                    Protocol::Tls => format!("{} (tls)", peer.name),
                };
                texts
                    .entry(name)
                    .or_insert_with(|| peer.launch(&place).text);
            }
        }
        texts
    }

    /// One scenario: its rounds, in each all proxies and the ceiling; who begins changes.
    fn measure(&self, scenario: Scenario, rate: Option<u64>) -> Result<Measured, Error> {
        let extent = scenario.extent();
        let rounds = self.wanted.rounds.unwrap_or(extent.rounds);
        let duration = match scenario.is_idle() {
            true => Duration::ZERO,
            false => self.wanted.duration.unwrap_or(extent.duration),
        };
        report::say(&format!(
            "{}: {}; {rounds} rounds of {} s",
            scenario.name(),
            scenario.what(),
            duration.as_secs_f64()
        ));
        let mut measured = Measured {
            scenario,
            what: scenario.what(),
            rounds,
            seconds_per_round: duration.as_secs_f64(),
            rate,
            contenders: Vec::new(),
            ceiling: Vec::new(),
        };
        let mut entrants = self.enter(scenario, &mut measured);
        for round in 0..rounds {
            let count = entrants.len();
            for turn in 0..count {
                let place = (round + turn) % count;
                let contender = &mut measured.contenders[place];
                if contender.failure.is_some() {
                    continue;
                }
                match self.round(scenario, &mut entrants[place], rate, duration) {
                    Ok(sample) => contender.samples.push(sample),
                    Err(error) => contender.failure = Some(error.to_string()),
                }
            }
            if scenario.has_ceiling() {
                let target = self.backends(scenario.serving())[0];
                let duration = duration / CEILING_SHARE;
                let ceiling = self.load(scenario, target, rate, duration, &[])?;
                measured.ceiling.push(ceiling);
            }
        }
        Ok(measured)
    }

    /// The proxies of a scenario; those that load is put on are started.
    fn enter(&self, scenario: Scenario, measured: &mut Measured) -> Vec<Entrant<'a>> {
        let peers = self.wanted.peers.iter();
        peers
            .filter(|peer| scenario.wants(peer.name))
            .map(|peer| {
                let mut contender = Contender {
                    name: peer.name,
                    is_ringress: peer.is_ringress(),
                    samples: Vec::new(),
                    failure: None,
                };
                let running = match scenario.is_idle() {
                    true => None,
                    false => self
                        .start(peer, scenario.serving())
                        .map_err(|error| contender.failure = Some(error.to_string()))
                        .ok(),
                };
                measured.contenders.push(contender);
                Entrant { peer, running }
            })
            .collect()
    }

    fn round(
        &self,
        scenario: Scenario,
        entrant: &mut Entrant<'_>,
        rate: Option<u64>,
        duration: Duration,
    ) -> Result<Sample, Error> {
        if scenario.is_idle() {
            let running = self.start(entrant.peer, scenario.serving())?;
            return self.idle(scenario, &running);
        }
        let running = entrant.running.as_ref().expect("it was started for load");
        let (target, processes) = (running.listen, &running.processes);
        self.load(scenario, target, rate, duration, processes)
    }

    /// One run, with an eye on the proxy's processes.
    fn load(
        &self,
        scenario: Scenario,
        target: SocketAddr,
        rate: Option<u64>,
        duration: Duration,
        processes: &[u32],
    ) -> Result<Sample, Error> {
        let memory_before = procstat::anonymous_memory(processes);
        let (mut begin, mut end) = (CpuTime::default(), CpuTime::default());
        let mut observe = |edge| match edge {
            Edge::Begin => begin = CpuTime::of(processes),
            Edge::End => end = CpuTime::of(processes),
        };
        let (outcome, datagrams) = match scenario.task(rate.unwrap_or(0)) {
            Task::Idle => return Err(Error::Failed("idle connections are no load".to_owned())),
            Task::Connections(work) => {
                let mut target = self.target(scenario.serving(), target);
                if scenario.resumes() {
                    target.tls = target.tls.as_ref().map(Tls::resumed);
                }
                let plan = plan(scenario, target, duration, work);
                (load::run(&self.ring, &plan, &mut observe)?, None)
            }
            Task::Datagrams(work) => {
                let plan = datagram_plan(scenario, target, duration, work);
                let mut backends = self.datagrams.borrow_mut();
                let outcome = udp::run(&plan, backends.as_mut_slice(), &mut observe)?;
                (outcome.load, Some(outcome.faults))
            }
        };
        Ok(Sample {
            proxy_cpu_us: end.since(&begin).as_secs_f64() * 1e6,
            kernel_workers: procstat::kernel_workers(processes),
            memory_before,
            memory_after: procstat::anonymous_memory(processes),
            connections: scenario.connections(),
            load: Some(outcome.summary()),
            datagrams,
        })
    }

    /// Holds idle connections to a proxy that has had none before.
    fn idle(&self, scenario: Scenario, running: &Running) -> Result<Sample, Error> {
        const SIZE: usize = 128;
        let processes = &running.processes;
        local::pass(&self.ring, SETTLE)?;
        let (memory_before, begin) = (
            procstat::anonymous_memory(processes),
            CpuTime::of(processes),
        );
        let target = self.target(scenario.serving(), running.listen);
        let held = load::open(&self.ring, &target, IDLE_CONNECTIONS, SIZE)?;
        local::pass(&self.ring, SETTLE)?;
        let sample = Sample {
            proxy_cpu_us: CpuTime::of(processes).since(&begin).as_secs_f64() * 1e6,
            kernel_workers: procstat::kernel_workers(processes),
            memory_before,
            memory_after: procstat::anonymous_memory(processes),
            connections: IDLE_CONNECTIONS,
            load: None,
            datagrams: None,
        };
        drop(held);
        local::pass(&self.ring, SETTLE)?;
        Ok(sample)
    }

    /// Half of what the best peer that `scenario` wants does in `base`: as this run has measured it, or
    /// else in one short round. Where there is no peer, ringress has to do.
    fn half_of(
        &self,
        base: Scenario,
        scenario: Scenario,
        measured: &[Measured],
    ) -> Result<u64, Error> {
        let known = measured.iter().find(|measured| measured.scenario == base);
        if let Some(best) = known.and_then(|known| best_throughput(known, scenario)) {
            return Ok((best / 2.0) as u64);
        }
        report::say("finding out what the peers can do");
        let peers = self.wanted.peers.iter();
        let short = Wanted {
            rounds: Some(1),
            duration: Some(CALIBRATION),
            peers: peers
                .filter(|peer| scenario.wants(peer.name))
                .cloned()
                .collect(),
            ..self.wanted.clone()
        };
        let stage = Stage::new(&short, self.proxy_cpu)?;
        let calibration = stage.measure(base, None)?;
        best_throughput(&calibration, scenario)
            .map(|best| (best / 2.0) as u64)
            .ok_or_else(|| Error::Failed("no proxy could be measured".to_owned()))
    }
}

fn plan(scenario: Scenario, target: Target, duration: Duration, work: load::Work) -> Plan {
    Plan {
        target,
        connections: scenario.connections(),
        warmup: WARMUP,
        duration,
        work,
    }
}

fn datagram_plan(
    scenario: Scenario,
    target: SocketAddr,
    duration: Duration,
    work: udp::Work,
) -> udp::Plan {
    udp::Plan {
        target,
        sources: scenario.connections(),
        from: Vec::new(),
        warmup: WARMUP,
        duration,
        timeout: DATAGRAM_TIMEOUT,
        work,
    }
}

/// The median of requests per second of the best peer that `scenario` wants; ringress's where there is no
/// peer.
fn best_throughput(measured: &Measured, scenario: Scenario) -> Option<f64> {
    let medians = |of_ringress: bool| -> Vec<f64> {
        let contenders = measured.contenders.iter();
        contenders
            .filter(|contender| scenario.wants(contender.name))
            .filter(|contender| contender.is_ringress == of_ringress)
            .filter_map(|contender| Spread::of(&contender.values(Metric::Throughput)))
            .map(|spread| spread.median)
            .collect()
    };
    let best = |medians: Vec<f64>| Better::Higher.best(&medians).map(|place| medians[place]);
    best(medians(false)).or_else(|| best(medians(true)))
}

/// Removes what the proxies wrote, when all went well.
pub(crate) fn clear(folder: &std::path::Path) {
    // What is left in a temporary folder harms nobody.
    let _ = fs::remove_dir_all(folder);
}
