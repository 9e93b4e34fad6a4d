//! An upstream at run time: its backends' shared state and how a session gets a connection to one.

mod connect;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

pub use connect::{Connection, Failure, Leased, connect};

use crate::address::Address;
use crate::config;
use crate::policy::balance::{Balancer, Load, Member, identity};
use crate::ring::SocketOptions;

/// A named set of backends with one policy, shared by all workers.
#[derive(Debug)]
pub struct Upstream {
    name: Arc<str>,
    backends: Vec<Arc<Backend>>,
    balancer: Box<dyn Balancer>,
    weights: Vec<u16>,
    arrangement: Vec<u16>,
    connect_timeout: Duration,
    /// Tries of one session, the first included.
    tries: usize,
    options: SocketOptions,
    sources: Vec<IpAddr>,
    next_source: AtomicUsize,
}

/// One address of an upstream and what all workers know of it. Identity, over reloads, is the
/// upstream's name and the address.
#[derive(Debug)]
pub struct Backend {
    /// Its name in logs.
    pub name: Arc<str>,
    /// Where it is.
    pub address: Address,
    /// What all workers know of its work.
    pub load: Arc<Load>,
}

impl Upstream {
    /// Builds the run-time form of `model`. Backends and the cursor that `before` has are kept.
    pub fn new(model: &config::Upstream, before: Option<&Self>) -> Self {
        let weights: Vec<u16> = model
            .backends
            .iter()
            .map(|backend| backend.weight)
            .collect();
        let backends: Vec<_> = model
            .backends
            .iter()
            .map(|backend| Backend::kept_or_new(backend, before))
            .collect();
        let members: Vec<_> = backends
            .iter()
            .zip(&weights)
            .map(|(backend, weight)| Member {
                identity: identity(&backend.address.to_string()),
                weight: *weight,
                load: backend.load.clone(),
            })
            .collect();
        let resume = before.map_or(0, |before| before.balancer.resume());
        let balancer = (model.balance.build)(&members, resume);
        Self {
            name: model.name.clone(),
            backends,
            arrangement: balancer.arrange(&weights),
            balancer,
            weights,
            connect_timeout: model.connect_timeout,
            tries: model.retry.attempts as usize + 1,
            options: SocketOptions {
                keepalive: model.tcp_keepalive,
                user_timeout: Some(model.tcp_user_timeout),
            },
            sources: model.source.clone(),
            next_source: AtomicUsize::new(0),
        }
    }

    /// The name it has in the configuration.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// Its backends, in the order of the configuration.
    pub fn backends(&self) -> &[Arc<Backend>] {
        &self.backends
    }

    /// The next local address of the family of `to`.
    fn source(&self, to: &Address) -> Option<IpAddr> {
        let ip = to.as_ip()?.ip();
        let fitting = || {
            self.sources
                .iter()
                .filter(|source| source.is_ipv4() == ip.is_ipv4())
        };
        let count = fitting().count();
        if count == 0 {
            return None;
        }
        let turn = self.next_source.fetch_add(1, Ordering::Relaxed) % count;
        fitting().nth(turn).copied()
    }
}

impl Backend {
    fn kept_or_new(model: &config::Backend, before: Option<&Upstream>) -> Arc<Self> {
        let kept = before.and_then(|before| {
            before
                .backends
                .iter()
                .find(|kept| kept.address == model.address && kept.name == model.name)
        });
        kept.cloned().unwrap_or_else(|| {
            Arc::new(Self {
                name: model.name.clone(),
                address: model.address.clone(),
                load: Arc::default(),
            })
        })
    }
}
