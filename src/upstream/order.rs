//! What the operator has ordered of a backend: whether it is used, and with which weight. It holds the orders
//! and nothing of what follows from them: rosters leave the backend out, keepers let go of their connections,
//! sessions look at it themselves.

use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};

use serde::{Deserialize, Serialize};

use crate::config;

/// The operator's word on a backend, kept over reloads and upgrades. Any of them may follow any other.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Order {
    /// It may be chosen, as far as the operator goes.
    #[default]
    Enabled,
    /// No new sessions, whatever the state of the others; those that it has go on. Probes go on, too.
    Draining,
    /// No new sessions, and those that it has are to end now.
    Aborting,
}

impl Order {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Enabled, Self::Draining, Self::Aborting];

    /// As it stands in status and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Draining => "draining",
            Self::Aborting => "aborting",
        }
    }

    fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Draining,
            2 => Self::Aborting,
            _ => Self::Enabled,
        }
    }
}

/// The order of the moment, for all workers.
#[derive(Debug, Default)]
pub(super) struct Current(AtomicU8);

impl Current {
    /// Relaxed, so that sessions may look whenever they are woken: the order is a byte that no other
    /// memory goes with. Who must not miss it is told by a way of its own, and what comes that way is
    /// seen with what was written before: a roster is made anew after [`super::Upstream::changed`] has
    /// raised the number of changes (release), and a worker is signalled by its bell.
    pub(super) fn now(&self) -> Order {
        Order::from_number(self.0.load(Ordering::Relaxed))
    }

    pub(super) fn set(&self, order: Order) {
        self.0.store(order as u8, Ordering::Relaxed);
    }
}

/// The weight that the operator has ordered, in the place of the configured one.
#[derive(Debug)]
pub(super) struct OrderedWeight(AtomicU16);

impl OrderedWeight {
    /// No weight is as high.
    const NONE: u16 = u16::MAX;

    /// Relaxed, as [`Current::now`] is.
    pub(super) fn now(&self) -> Option<u16> {
        Some(self.0.load(Ordering::Relaxed)).filter(|weight| *weight != Self::NONE)
    }

    /// One that is too high is as good as the highest.
    pub(super) fn set(&self, weight: Option<u16>) {
        let weight = weight.map_or(Self::NONE, |weight| weight.min(config::WEIGHT_MAX));
        self.0.store(weight, Ordering::Relaxed);
    }
}

impl Default for OrderedWeight {
    fn default() -> Self {
        Self(AtomicU16::new(Self::NONE))
    }
}
