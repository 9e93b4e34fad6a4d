//! From an upstream to a socket for datagrams: nothing is waited for, as there is no handshake, and a
//! datagram does not queue.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use super::backend::{Backend, Lease};
use super::connect::{Failure, classify};
use super::local::Local;
use super::queue::Look;
use super::select::Choice;
use super::{Upstream, lacks_resources};
use crate::policy::balance::{Passed, Request};
use crate::ring::{DatagramSocket, Ring};

/// On whose behalf a backend is looked for.
#[derive(Clone, Copy)]
pub struct Sender<'a> {
    /// Who sends.
    pub address: IpAddr,
    /// A backend that will not do, as it has just refused.
    pub not: Option<&'a Backend>,
    /// Told of each try that has failed.
    pub failed: &'a dyn Fn(&Backend, &io::Error),
}

/// A choice, and the session's hold on it.
///
/// # Errors
/// None may be chosen, or all are full.
pub fn choose(
    ring: &Ring,
    local: &Local,
    upstream: &Arc<Upstream>,
    sender: Sender<'_>,
) -> Result<Lease, Failure> {
    let mut passed = Passed::default();
    if let Some(refused) = sender.not {
        let same = |it: &Arc<Backend>| Arc::ptr_eq(&it.state, &refused.state);
        upstream
            .backends
            .iter()
            .position(same)
            .into_iter()
            .for_each(|index| passed.insert(index));
    }
    let choice = upstream.choose_now(ring, local, sender.address, &passed)?;
    Ok(choice.lease)
}

/// A socket towards the balancer's choice, or towards the next one if there is no way to that.
///
/// # Errors
/// The last failure.
pub fn open(
    ring: &Ring,
    local: &Local,
    upstream: &Arc<Upstream>,
    sender: Sender<'_>,
) -> Result<(DatagramSocket, Lease), Failure> {
    let lease = choose(ring, local, upstream, sender)?;
    open_chosen(ring, local, upstream, (lease, sender))
}

/// The same, towards a backend that was chosen already.
///
/// # Errors
/// As [`open`].
pub fn open_chosen(
    ring: &Ring,
    local: &Local,
    upstream: &Arc<Upstream>,
    (mut lease, sender): (Lease, Sender<'_>),
) -> Result<(DatagramSocket, Lease), Failure> {
    let socket = match upstream.open_datagrams(ring, lease.backend()) {
        Ok(socket) => socket,
        Err(error) => {
            lease
                .counters(local.worker())
                .fail(classify(&error).fault());
            (sender.failed)(lease.backend(), &error);
            if lacks_resources(&error) || error.kind() == io::ErrorKind::WouldBlock {
                return Err(Failure::NoResources);
            }
            let refused = lease;
            let not = Some(refused.backend());
            lease = choose(ring, local, upstream, Sender { not, ..sender })?;
            let opened = upstream.open_datagrams(ring, lease.backend());
            refused.connect_failed(false, ring.now());
            opened.map_err(|error| {
                let failure = classify(&error);
                lease.counters(local.worker()).fail(failure.fault());
                failure
            })?
        }
    };
    lease.connected(ring.now());
    let counters = lease.counters(local.worker());
    counters.connections.add(1);
    counters.sessions.add(1);
    Ok((socket, lease))
}

impl Upstream {
    fn choose_now(
        &self,
        ring: &Ring,
        local: &Local,
        client: IpAddr,
        passed: &Passed,
    ) -> Result<Choice, Failure> {
        let now = ring.now();
        let draw = self.balancer.draw(Request {
            client: Some(client),
            random: local.random(),
            now,
        });
        match self.pick(&draw, passed, None, now) {
            Look::Found(Some(choice)) => Ok(choice),
            Look::Found(None) => Err(Failure::Refused),
            Look::NotYet(_) => Err(Failure::QueueFull),
        }
    }

    /// A socket towards one of its backends.
    ///
    /// # Errors
    /// As [`Ring::open_datagrams`].
    pub fn open_datagrams(&self, ring: &Ring, backend: &Backend) -> io::Result<DatagramSocket> {
        let Some(to) = backend.address.as_ip() else {
            return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
        };
        ring.open_datagrams(to, self.source(&backend.address))
    }
}
