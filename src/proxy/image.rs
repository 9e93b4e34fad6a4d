//! What a process knows and has counted, in a form that goes to another process: the one that takes over
//! in an upgrade. Versions may differ: everything has a default, and what is not known is left out.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::snapshot::{Shared, Snapshot};
use super::state::ListenerState;
use crate::policy::clients;
use crate::telemetry::counters;
use crate::time::Instant;
use crate::tls::tickets;
use crate::upstream::UpstreamImage;

/// What is known.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Image {
    /// Number of the generation.
    pub generation: u64,
    listeners: Vec<ListenerImage>,
    upstreams: Vec<UpstreamImage>,
}

/// What is known of a listener.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
struct ListenerImage {
    name: String,
    /// Of `rate_limit.connections`.
    bucket: u64,
    /// Of `rate_limit.connections_per_ip`, if there is one.
    clients: Option<ClientsImage>,
    totals: counters::Totals,
    /// By which sessions of TLS are resumed; `None` = by keys of the other process's own.
    tickets: Option<TicketsImage>,
}

/// How [`tickets::Image`] is written down. It goes over a link that only the two processes have.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
struct TicketsImage {
    since: u64,
    keys: Vec<Vec<u8>>,
}

impl fmt::Debug for TicketsImage {
    /// Without the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TicketsImage {{ since: {} }}", self.since)
    }
}

/// How [`clients::Image`] is written down: an entry is place, client and instant.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(default)]
struct ClientsImage {
    capacity: u64,
    seal: u64,
    evicted: u64,
    entries: Vec<[u64; 3]>,
}

/// What was counted on each listener.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Totals(BTreeMap<String, counters::Totals>);

impl Totals {
    /// What was counted after `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let listeners = self.0.iter().map(|(name, totals)| {
            let earlier = earlier.0.get(name).copied().unwrap_or_default();
            (name.clone(), totals.since(&earlier))
        });
        Self(listeners.collect())
    }
}

impl Image {
    /// What had been counted.
    pub fn totals(&self) -> Totals {
        let listeners = self.listeners.iter();
        Totals(listeners.map(|it| (it.name.clone(), it.totals)).collect())
    }
}

impl Shared {
    /// What is known at `now`. Each part of a moment of its own.
    pub fn image(&self, now: Instant) -> Image {
        let snapshot = self.snapshot.load();
        Image {
            generation: snapshot.generation,
            listeners: snapshot.listeners.iter().map(|it| it.image(now)).collect(),
            upstreams: snapshot.upstreams.iter().map(|it| it.image()).collect(),
        }
    }

    /// Goes on where `image` stands, before the first session. Listeners and upstreams are known by their
    /// names.
    pub fn restore(&self, image: &Image, now: Instant) {
        let before = self.snapshot.load();
        for listener in &image.listeners {
            if let Some(known) = before.listener(&listener.name) {
                known.restore(listener, now);
            }
        }
        for upstream in &image.upstreams {
            if let Some(known) = before.upstream(&upstream.name) {
                known.restore(upstream, now);
            }
        }
        // The configuration was read anew: another generation.
        self.snapshot.store(Arc::new(Snapshot {
            generation: image.generation.saturating_add(1),
            listeners: before.listeners.clone(),
            upstreams: before.upstreams.clone(),
        }));
    }

    /// What was counted so far on the listeners that there are.
    pub fn totals(&self) -> Totals {
        let snapshot = self.snapshot.load();
        let listeners = snapshot.listeners.iter();
        Totals(
            listeners
                .map(|it| (it.name.to_string(), it.totals()))
                .collect(),
        )
    }

    /// Adds what was counted by another process. Only the control thread calls this.
    pub fn add(&self, more: &Totals) {
        let snapshot = self.snapshot.load();
        for (name, totals) in &more.0 {
            if let Some(listener) = snapshot.listener(name) {
                listener.elsewhere.add(totals);
            }
        }
    }
}

impl ListenerState {
    fn image(&self, now: Instant) -> ListenerImage {
        let policy = self.policy.load();
        let rate = policy.rate_limit.connections_per_ip;
        let clients = policy.clients.as_ref().zip(rate);
        ListenerImage {
            name: self.name.to_string(),
            bucket: self.bucket.image(),
            clients: clients.map(|(clients, rate)| clients.image(rate, now).into()),
            totals: self.totals(),
            tickets: Some(policy.tickets.image().into()),
        }
    }

    fn restore(&self, image: &ListenerImage, now: Instant) {
        if let Some(tickets) = &image.tickets {
            self.policy
                .load()
                .tickets
                .restore(&tickets.clone().into(), now);
        }
        self.bucket.restore(image.bucket);
        if let (Some(clients), Some(image)) = (&self.policy.load().clients, &image.clients) {
            // A table of another size begins anew.
            clients.restore(&image.clone().into());
        }
        self.elsewhere.add(&image.totals);
    }
}

impl From<tickets::Image> for TicketsImage {
    fn from(image: tickets::Image) -> Self {
        let tickets::Image { since, keys } = image;
        Self { since, keys }
    }
}

impl From<TicketsImage> for tickets::Image {
    fn from(image: TicketsImage) -> Self {
        let TicketsImage { since, keys } = image;
        Self { since, keys }
    }
}

impl From<clients::Image> for ClientsImage {
    fn from(image: clients::Image) -> Self {
        let entries = image.entries.iter();
        Self {
            capacity: image.capacity,
            seal: image.seal,
            evicted: image.evicted,
            entries: entries
                .map(|it| [it.place, it.client, it.full_at])
                .collect(),
        }
    }
}

impl From<ClientsImage> for clients::Image {
    fn from(image: ClientsImage) -> Self {
        let entries = image.entries.iter();
        Self {
            capacity: image.capacity,
            seal: image.seal,
            evicted: image.evicted,
            entries: entries
                .map(|[place, client, full_at]| clients::Entry {
                    place: *place,
                    client: *client,
                    full_at: *full_at,
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::telemetry::events::Events;

    fn process() -> Arc<Shared> {
        let text = "[listeners.web]\nbind = \"127.0.0.1:1\"\nupstream = \"app\"\n\
                    [upstreams.app]\nbackends = [\"127.0.0.1:2\"]\n";
        let config = config::parse(text, "a.toml", &mut config::SystemResolver).unwrap();
        let (events, _receiver) = Events::new();
        Shared::new(&config, 1, 10, events, 7)
    }

    fn tickets(process: &Shared) -> tickets::Image {
        process.snapshot.load().listeners[0]
            .policy
            .load()
            .tickets
            .image()
    }

    /// As it goes to another process.
    fn sent(image: &Image) -> Image {
        serde_json::from_value(serde_json::to_value(image).unwrap()).unwrap()
    }

    #[test]
    fn the_keys_of_tickets_go_to_the_next_process() {
        let now = Instant::from_nanos(1 << 60);
        let (old, new) = (process(), process());
        assert_ne!(tickets(&old).keys, tickets(&new).keys);
        // The second one is for tickets that were issued before.
        old.snapshot.load().listeners[0]
            .policy
            .load()
            .tickets
            .tend(now);
        let image = sent(&old.image(now));
        new.restore(&image, now);
        assert_eq!(tickets(&new), tickets(&old));
        assert_eq!(tickets(&new).keys.len(), 2);
        assert!(!format!("{image:?}").contains("keys"), "{image:?}");
    }

    #[test]
    fn a_process_that_knows_no_tickets_leaves_the_next_one_its_own() {
        let now = Instant::from_nanos(1 << 60);
        let new = process();
        let before = tickets(&new);
        let mut image = sent(&process().image(now));
        image.listeners[0].tickets = None;
        new.restore(&image, now);
        let nonsense = TicketsImage {
            since: u64::MAX,
            keys: vec![vec![1; 47]],
        };
        image.listeners[0].tickets = Some(nonsense);
        new.restore(&sent(&image), now);
        assert_eq!(tickets(&new), before);
    }
}
