//! Active health checks: one prober per backend for all workers. It keeps no state of a backend: what
//! a result means is the policy's business, and who hears of it the upstream's.
//!
//! | file | owns |
//! |---|---|
//! | `prober` | one backend's task: intervals, results, the log |
//! | `probe`, `http` | one attempt |
//! | `tls` | a connection that TLS is spoken on |
//! | `failure` | why it failed |

mod failure;
mod http;
mod probe;
mod prober;
#[cfg(test)]
mod tests;
mod tls;

use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use self::failure::Failure;
use self::prober::{Lacks, Prober};
use self::tls::Tls;
use crate::address::Address;
use crate::config::{self, Announce, Config, HealthCheck};
use crate::proxy::Shared;
use crate::telemetry::tallies::Probed;
use crate::time::Instant;
use crate::upstream::{Backend, Upstream};

/// A backend to probe. Over reloads it is the same one if upstream and address are.
pub(super) struct Target {
    /// The upstream's name.
    pub(super) upstream: Arc<str>,
    /// The backend's name.
    pub(super) backend: Arc<str>,
    /// Where it is.
    pub(super) address: Address,
    /// The local address of probes; `None` = the kernel chooses.
    pub(super) source: Option<IpAddr>,
    /// How it is probed, and when.
    pub(super) check: HealthCheck,
    /// Connections begin with a header of the PROXY protocol, which says that nobody is behind them.
    pub(super) announce: Announce,
    /// TLS is spoken.
    pub(super) tls: Option<Tls>,
    /// Where results go.
    pub(super) record: Box<Record>,
}

/// Takes down what came of a probe, how long it took, and when it ended, on the workers' clock. If that
/// changed the backend's state: how many such results there have been in a row.
pub(super) type Record = dyn Fn(Result<(), &Failure>, Duration, Instant) -> Option<u32>;

/// The probers of a process. Dropping it ends them.
#[derive(Default)]
pub(super) struct Probers {
    running: HashMap<(Arc<str>, Address), Prober>,
    lacks: Rc<Lacks>,
}

impl Probers {
    /// Probes the backends of `wanted` and no other. One that is new, or of which anything has changed that
    /// probes go by, is probed at once; the others keep their time, and take the new names and records. Of
    /// what is given up no result is recorded any more. Runs within a `LocalSet`.
    pub(super) fn reconcile(&mut self, wanted: Vec<Target>) {
        let mut before = std::mem::take(&mut self.running);
        for target in wanted {
            let identity = (target.upstream.clone(), target.address.clone());
            let prober = match before.remove(&identity) {
                Some(prober) if prober.suits(&target) => {
                    prober.adopt(target);
                    prober
                }
                _ => Prober::start(target, self.lacks.clone()),
            };
            self.running.insert(identity, prober);
        }
    }
}

/// Every backend that is to be probed. A result is recorded in the state that all workers share, and when
/// it has changed they hear of it.
pub(super) fn targets(config: &Config, shared: &Arc<Shared>) -> Vec<Target> {
    let snapshot = shared.snapshot.load();
    let pairs = config.upstreams.iter().zip(&snapshot.upstreams);
    pairs
        .filter_map(|(model, upstream)| Some((model, model.health_check.as_ref()?, upstream)))
        .flat_map(|(model, check, upstream)| {
            let client = tls::client(model, &check.probe);
            let backends = upstream.backends().iter().zip(&model.backends);
            backends.map(move |(backend, of)| {
                let host = of.host.clone();
                let tls = client.clone().map(|client| Tls { client, host });
                let target = target(model, check, (upstream, backend), shared);
                Target { tls, ..target }
            })
        })
        .collect()
}

fn target(
    model: &config::Upstream,
    check: &HealthCheck,
    (upstream, backend): (&Arc<Upstream>, &Arc<Backend>),
    shared: &Arc<Shared>,
) -> Target {
    let settings = check.settings;
    let (of, probed) = (upstream.clone(), backend.clone());
    let bells = shared.around.bells.clone();
    let record = move |outcome: Result<(), &Failure>, took: Duration, now: Instant| {
        let (health, tallies) = (&probed.state.health, &probed.state.tallies);
        let what = match outcome {
            Ok(()) => Probed::Success,
            Err(Failure::NoResources(_)) => Probed::NoResources,
            Err(_) => Probed::Failure,
        };
        tallies.probed(what, outcome.err().map(ToString::to_string), took);
        if what == Probed::NoResources {
            return None;
        }
        health.record(&settings, outcome.is_ok(), now)?;
        of.changed(now);
        bells.ring_all();
        Some(health.streak())
    };
    Target {
        upstream: upstream.name().clone(),
        backend: backend.name.clone(),
        address: backend.address.clone(),
        source: source(&model.source, &backend.address),
        check: check.clone(),
        announce: model.announce,
        tls: None,
        record: Box::new(record),
    }
}

/// The local address of probes to `address`: the first of `sources` that is of its family.
fn source(sources: &[IpAddr], address: &Address) -> Option<IpAddr> {
    let to = address.as_ip()?;
    let mut sources = sources.iter().copied();
    sources.find(|source| source.is_ipv4() == to.is_ipv4())
}

#[cfg(test)]
mod reconcile_tests {
    use std::cell::Cell;
    use std::time::Duration;

    use tokio::net::TcpListener;
    use tokio::task::yield_now;

    use super::tests::{check, tcp};
    use super::*;

    const FAR: Duration = Duration::from_secs(3600);
    const SOON: Duration = Duration::from_secs(10);

    /// Counts results.
    #[derive(Clone, Default)]
    struct Results(Rc<Cell<u32>>);

    impl Results {
        fn target(&self, listener: &TcpListener, interval: Duration) -> Target {
            let results = self.0.clone();
            Target {
                upstream: "app".into(),
                backend: "b1".into(),
                address: listener.local_addr().unwrap().into(),
                source: None,
                check: check(tcp(None, None), interval, SOON),
                announce: Announce::Never,
                tls: None,
                record: Box::new(move |_, _, _| {
                    results.set(results.get() + 1);
                    None
                }),
            }
        }

        async fn until(&self, count: u32) {
            for _ in 0..5_000_000 {
                if self.0.get() >= count {
                    return;
                }
                yield_now().await;
            }
            panic!("no result");
        }
    }

    async fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").await.unwrap()
    }

    /// On the runtime of the control plane.
    fn run(test: impl AsyncFnOnce()) {
        tokio_uring::start(test());
    }

    #[test]
    fn every_backend_that_is_wanted_is_probed_at_once_and_no_other() {
        run(async || {
            let (first, second) = (listener().await, listener().await);
            let (a, b) = (Results::default(), Results::default());
            let mut probers = Probers::default();
            probers.reconcile(vec![a.target(&first, FAR)]);
            a.until(1).await;
            probers.reconcile(vec![b.target(&second, FAR)]);
            b.until(1).await;
            assert_eq!(Rc::strong_count(&a.0), 1, "its task is gone");
            drop(probers);
            yield_now().await;
            yield_now().await;
            assert_eq!(Rc::strong_count(&b.0), 1, "its task is gone");
        });
    }

    #[test]
    fn an_unchanged_backend_keeps_its_time_and_takes_the_new_record() {
        run(async || {
            let listener = listener().await;
            let (old, new) = (Results::default(), Results::default());
            tokio::time::pause();
            let mut probers = Probers::default();
            probers.reconcile(vec![old.target(&listener, FAR)]);
            old.until(1).await;
            probers.reconcile(vec![new.target(&listener, FAR)]);
            for _ in 0..1000 {
                yield_now().await;
            }
            assert_eq!(new.0.get(), 0, "not yet");
            tokio::time::advance(FAR * 2).await;
            new.until(1).await;
            assert_eq!(old.0.get(), 1);
        });
    }

    #[test]
    fn a_changed_check_or_source_is_probed_at_once() {
        run(async || {
            let listener = listener().await;
            let results = Results::default();
            let mut probers = Probers::default();
            probers.reconcile(vec![results.target(&listener, FAR)]);
            results.until(1).await;
            probers.reconcile(vec![results.target(&listener, FAR * 2)]);
            results.until(2).await;
            let mut target = results.target(&listener, FAR * 2);
            target.source = Some("127.0.0.9".parse().unwrap());
            probers.reconcile(vec![target]);
            results.until(3).await;
            assert_eq!(probers.running.len(), 1);
        });
    }

    #[test]
    fn the_source_is_the_first_of_the_family() {
        let sources: Vec<IpAddr> = ["::1", "127.0.0.2", "127.0.0.3"]
            .iter()
            .map(|source| source.parse().unwrap())
            .collect();
        let four = Address::Ip("10.0.0.1:80".parse().unwrap());
        assert_eq!(source(&sources, &four), Some(sources[1]));
        assert_eq!(source(&sources[..1], &four), None);
        let unix = Address::Unix(std::path::Path::new("/run/app.sock").into());
        assert_eq!(source(&sources, &unix), None);
    }
}
