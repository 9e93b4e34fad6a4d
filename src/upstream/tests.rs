//! Leases, and what reloads make of them.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::backend::{Refusal, Slot};
use super::queue::Look;
use super::{Lease, Order, Surroundings, Upstream};
use crate::address::Address;
use crate::config;
use crate::policy::balance::{Passed, Request};
use crate::policy::breaker;
use crate::policy::share::Share;
use crate::telemetry::Reason;
use crate::telemetry::events::Events;
use crate::time::Instant;

const OPEN_FOR: Duration = Duration::from_secs(10);

/// One failure opens it, and one session at a time tries.
const TOUCHY: breaker::Settings = breaker::Settings {
    failure_ratio: Share::from_ppm(500_000),
    min_requests: NonZeroU32::MIN,
    window: OPEN_FOR,
    open_for: OPEN_FOR,
    half_open_requests: NonZeroU32::MIN,
};

pub(super) fn at(seconds: u64) -> Instant {
    Instant::default() + Duration::from_secs(seconds)
}

/// Backends on these ports.
pub(super) fn model(ports: &[u16]) -> config::Upstream {
    let backends = ports.iter().map(|port| {
        let address = Address::from(SocketAddr::from(([127, 0, 0, 1], *port)));
        config::Backend::new(address.to_string().into(), address)
    });
    config::Upstream {
        circuit_breaker: Some(TOUCHY),
        ..config::Upstream::new("app".into(), backends.collect())
    }
}

pub(super) fn around() -> Surroundings {
    Surroundings {
        workers: 1,
        bells: Arc::default(),
        events: Events::new().0,
        states: Arc::default(),
        names: Arc::default(),
    }
}

/// The generation after `before`.
fn reload(before: &Upstream, model: &config::Upstream, around: &Surroundings) -> Upstream {
    let after = Upstream::new(model, Some(before), around);
    before.retire(Some(&after));
    after
}

fn lease(upstream: &Upstream, now: Instant) -> Option<Lease> {
    Lease::take(&upstream.backends[0], None, now).ok()
}

#[test]
fn a_backend_that_is_taken_away_while_one_tries_it_can_be_tried_when_it_is_back() {
    let around = around();
    let first = Upstream::new(&model(&[1, 2]), None, &around);
    // Keeps the backend's state over the reloads.
    let other = lease(&first, at(1)).expect("it is closed");
    let failing = lease(&first, at(1)).expect("it is closed");
    failing.connect_failed(false, at(1));
    let mut trial = lease(&first, at(12)).expect("it is half-open");
    let second = reload(&first, &model(&[2]), &around);
    trial.ended(Reason::ClientReset, at(13));
    drop(trial);
    let third = reload(&second, &model(&[1, 2]), &around);
    assert!(lease(&third, at(60)).is_some());
    drop(other);
}

#[test]
fn a_connection_from_before_a_reload_is_used_by_the_rules_of_its_session() {
    let around = around();
    let without = config::Upstream {
        circuit_breaker: None,
        ..model(&[1])
    };
    let first = Upstream::new(&without, None, &around);
    let ahead = || Slot::take(&first.backends[0]).expect("there is no cap");
    let slots = [ahead(), ahead()];
    let second = reload(&first, &model(&[1]), &around);
    let backend = &second.backends[0];
    for (slot, now) in slots.into_iter().zip([at(1), at(12)]) {
        let mut session = Lease::take(backend, Some(slot), now).ok().expect("leave");
        session.ended(Reason::BackendReset, now);
        let next = Lease::take(backend, None, now);
        assert!(matches!(next, Err(Refusal::Broken)), "it opened");
    }
    assert!(lease(&second, at(23)).is_some(), "it is half-open again");
}

#[test]
fn a_lease_that_is_let_go_of_gives_its_permit_back() {
    let upstream = Upstream::new(&model(&[1]), None, &around());
    let failing = lease(&upstream, at(1)).expect("it is closed");
    failing.connect_failed(false, at(1));
    let trial = lease(&upstream, at(12)).expect("it is half-open");
    assert!(lease(&upstream, at(12)).is_none(), "one tries at a time");
    drop(trial);
    assert!(lease(&upstream, at(12)).is_some());
}

/// The backend that a session would get.
fn pick(upstream: &Upstream, now: Instant) -> Option<u16> {
    let draw = upstream.balancer.draw(Request {
        client: None,
        random: 0,
        now,
    });
    let Look::Found(choice) = upstream.pick(&draw, &Passed::default(), None, now) else {
        panic!("there is no cap");
    };
    let choice = choice?;
    let address = upstream.backends[choice.index].address.as_ip();
    address.map(|address| address.port())
}

/// Those that the next sessions get.
fn picks<const N: usize>(upstream: &Upstream) -> [Option<u16>; N] {
    std::array::from_fn(|_| pick(upstream, at(1)))
}

fn order(upstream: &Upstream, port: u16, order: Order) {
    let name = format!("127.0.0.1:{port}");
    let backend = upstream.order(&name, order, at(1));
    assert_eq!(backend.map(|backend| &*backend.name), Some(&*name));
}

#[test]
fn a_backend_that_is_ordered_out_is_not_picked_until_it_is_enabled() {
    let upstream = Upstream::new(&model(&[1, 2]), None, &around());
    order(&upstream, 1, Order::Draining);
    assert_eq!(picks(&upstream), [Some(2); 4]);
    order(&upstream, 2, Order::Aborting);
    assert_eq!(picks(&upstream), [None]);
    order(&upstream, 1, Order::Enabled);
    assert_eq!(picks(&upstream), [Some(1); 4]);
    assert!(
        upstream
            .order("127.0.0.1:3", Order::Draining, at(1))
            .is_none()
    );
}

#[test]
fn an_order_outlives_reloads_and_is_forgotten_with_its_backend() {
    let around = around();
    let first = Upstream::new(&model(&[1, 2]), None, &around);
    // Keeps the backend's state over the reloads.
    let other = lease(&first, at(1)).expect("it is closed");
    order(&first, 1, Order::Draining);
    let second = reload(&first, &model(&[2, 1]), &around);
    assert_eq!(picks(&second), [Some(2); 4]);
    let third = reload(&second, &model(&[2]), &around);
    let fourth = reload(&third, &model(&[1]), &around);
    assert_eq!(picks(&fourth), [Some(1)]);
    drop(other);
}

#[test]
fn sessions_of_the_generation_before_go_by_an_order_too() {
    let around = around();
    let first = Upstream::new(&model(&[1, 2]), None, &around);
    assert_eq!(picks::<2>(&first).iter().flatten().sum::<u16>(), 3);
    let second = reload(&first, &model(&[1, 2]), &around);
    order(&second, 1, Order::Draining);
    assert_eq!(picks(&first), [Some(2); 4]);
}
