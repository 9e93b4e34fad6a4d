//! What the operator has ordered of a backend. It holds the order and nothing of what follows from it:
//! rosters leave the backend out, keepers let go of their connections, sessions look at it themselves.

use std::sync::atomic::{AtomicU8, Ordering};

use serde::{Deserialize, Serialize};

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
