//! Parts of the process that the operator has ordered to drain: which, until when, and what is left of
//! them. What follows from an order is the process's business.
//!
//! ```text
//!   (not ordered) ──drain──▶ draining ──deadline──▶ aborting
//!         ▲                     │                      │
//!         └──────resume, or the part leaves the configuration
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::socket::Part;
use crate::config::Config;
use crate::ring;
use crate::time::Instant;
use crate::upstream::Order;

/// Every order that holds.
#[derive(Clone, Default)]
pub(super) struct Parts(Vec<Drain>);

/// One order. It goes with the process's state to a new process of this machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Drain {
    pub(super) part: Part,
    /// When its sessions are aborted, in nanoseconds of CLOCK_MONOTONIC.
    deadline: Option<u64>,
    /// They have been.
    #[serde(default)]
    aborted: bool,
}

impl Drain {
    /// How long its sessions may still go on.
    pub(super) fn left(&self) -> Option<Duration> {
        let deadline = Instant::from_nanos(self.deadline?);
        Some(deadline.since(ring::now()))
    }
}

impl Parts {
    /// Orders it, or orders it anew with another deadline.
    pub(super) fn order(&mut self, part: &Part, deadline: Option<Duration>) {
        self.remove(part);
        self.0.push(Drain {
            part: part.clone(),
            deadline: deadline.map(|deadline| (ring::now() + deadline).as_nanos()),
            aborted: false,
        });
    }

    /// Undoes the order; false if there is none.
    pub(super) fn remove(&mut self, part: &Part) -> bool {
        let before = self.0.len();
        self.0.retain(|drain| drain.part != *part);
        self.0.len() < before
    }

    /// Goes on with the orders that another process had.
    pub(super) fn restore(&mut self, orders: Vec<Drain>) {
        self.0 = orders;
    }

    /// All orders.
    pub(super) fn list(&self) -> &[Drain] {
        &self.0
    }

    /// Listeners that are not to be bound.
    pub(super) fn listeners(&self) -> BTreeSet<Arc<str>> {
        let parts = self.0.iter().map(|drain| &drain.part);
        let listeners = parts.filter_map(|part| match part {
            Part::Listener { listener } => Some(Arc::from(listener.as_str())),
            Part::Backend { .. } => None,
        });
        listeners.collect()
    }

    /// Forgets the orders for parts that the configuration does not have.
    pub(super) fn forget_unknown(&mut self, config: &Config) {
        self.0.retain(|drain| is_in(config, &drain.part));
    }

    /// What holds for this part.
    pub(super) fn of(&self, part: &Part) -> Order {
        match self.0.iter().find(|drain| drain.part == *part) {
            None => Order::Enabled,
            Some(drain) if drain.aborted => Order::Aborting,
            Some(_) => Order::Draining,
        }
    }

    /// The sessions of a part are to end.
    pub(super) fn any_aborting(&self) -> bool {
        self.0.iter().any(|drain| drain.aborted)
    }

    /// Waits for the next deadline.
    pub(super) async fn due(&self) {
        let waiting = self.0.iter().filter(|drain| !drain.aborted);
        match waiting.filter_map(Drain::left).min() {
            Some(left) => tokio::time::sleep(left).await,
            None => std::future::pending().await,
        }
    }

    /// Parts whose deadline is over, and whose sessions are to end from now on; each is told once.
    pub(super) fn take_due(&mut self) -> Vec<Part> {
        let is_due = |drain: &&mut Drain| !drain.aborted && drain.left() == Some(Duration::ZERO);
        let due = self.0.iter_mut().filter(is_due);
        due.map(|drain| {
            drain.aborted = true;
            drain.part.clone()
        })
        .collect()
    }
}

/// The configuration has this part.
pub(super) fn is_in(config: &Config, part: &Part) -> bool {
    match part {
        Part::Listener { listener } => config.listeners.iter().any(|it| *it.name == **listener),
        Part::Backend { upstream, backend } => config
            .upstreams
            .iter()
            .filter(|it| *it.name == **upstream)
            .any(|it| it.backends.iter().any(|it| *it.name == **backend)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, SystemResolver};

    fn listener(name: &str) -> Part {
        let listener = name.to_owned();
        Part::Listener { listener }
    }

    fn backend(name: &str) -> Part {
        Part::Backend {
            upstream: "app".to_owned(),
            backend: name.to_owned(),
        }
    }

    #[test]
    fn an_order_holds_until_it_is_undone_or_its_part_is_gone() {
        let text = "listeners.web = { bind = '127.0.0.1:80', upstream = 'app' }
            upstreams.app.backends = ['127.0.0.1:81']";
        let config = config::parse(text, "a.toml", &mut SystemResolver).unwrap();
        let mut parts = Parts::default();
        for part in [
            listener("web"),
            listener("gone"),
            backend("127.0.0.1:81"),
            backend("b2"),
        ] {
            parts.order(&part, None);
        }
        assert_eq!(
            parts.listeners(),
            BTreeSet::from(["gone".into(), "web".into()])
        );
        parts.forget_unknown(&config);
        assert_eq!(parts.of(&listener("gone")), Order::Enabled);
        assert_eq!(parts.of(&listener("web")), Order::Draining);
        assert!(parts.remove(&listener("web")));
        assert!(!parts.remove(&listener("web")));
        assert_eq!(parts.list().len(), 1);
    }

    #[test]
    fn a_deadline_is_due_once_and_a_new_order_has_a_new_one() {
        let mut parts = Parts::default();
        parts.order(&listener("web"), Some(Duration::ZERO));
        parts.order(&backend("b1"), Some(Duration::from_hours(1)));
        parts.order(&backend("b2"), None);
        assert_eq!(parts.take_due(), [listener("web")]);
        assert_eq!(parts.take_due(), []);
        assert_eq!(parts.of(&listener("web")), Order::Aborting);
        parts.order(&listener("web"), Some(Duration::ZERO));
        assert_eq!(parts.take_due(), [listener("web")]);
    }
}
