//! What would become of a client that came now: the rules of a session, gone through without one. Nothing is
//! taken by it, no token, no place, no turn and no permit.

use std::net::IpAddr;

use super::process::Process;
use super::pulse::standing;
use super::screen::some_of;
use super::socket::{
    BackendView, Check, Explained, Foresight, Outcome, ProcessState, Question, Reply, RouteView,
    Verdict,
};
use crate::config::{self, IpNet};
use crate::policy::balance;
use crate::policy::bucket::Rate;
use crate::policy::clients::Clients;
use crate::policy::routes::Routes;
use crate::proxy::{ListenerPolicy, ListenerState};
use crate::ring;
use crate::telemetry::{Dropped, Reason};
use crate::time::Instant;
use crate::upstream::{Hindrance, Outlook, Prospect, Upstream};

impl Process {
    /// Answers the question.
    pub(super) fn explain(&self, question: &Question) -> Reply {
        let snapshot = self.shared.snapshot.load();
        let name = &question.listener;
        let mut models = self.config.listeners.iter();
        let model = models.find(|model| *model.name == **name);
        let (Some(state), Some(model)) = (snapshot.listener(name), model) else {
            let names = snapshot.listeners.iter().map(|listener| &listener.name);
            let names = some_of(&names.collect::<Vec<_>>());
            return Reply::failed(format!("there is no listener \"{name}\": there is {names}"));
        };
        let policy = state.policy.load();
        let case = Case {
            process: self,
            state,
            policy: &policy,
            model,
            client: client(model, question.client),
            now: ring::now(),
        };
        let mut explained = case.explain(question);
        explained.generation = snapshot.generation;
        Reply::Done(Outcome::Explained(Box::new(explained)))
    }
}

/// Who a listener takes the client for: over unix sockets, for nobody, unless a header says who it is.
fn client(model: &config::Listener, client: IpAddr) -> Option<IpAddr> {
    let nameless = model.bind.iter().all(|address| address.as_ip().is_none());
    let client = client.to_canonical();
    (!nameless || model.trusted_proxies.is_some()).then_some(client)
}

/// A client at a listener.
struct Case<'a> {
    process: &'a Process,
    state: &'a ListenerState,
    policy: &'a ListenerPolicy,
    /// What `policy` was made of.
    model: &'a config::Listener,
    client: Option<IpAddr>,
    now: Instant,
}

impl Case<'_> {
    fn explain(&self, question: &Question) -> Explained {
        let checks = self.checks();
        let name = question.sni.as_ref().map(|name| name.to_ascii_lowercase());
        let heard = name.as_deref().filter(|_| self.hears_names());
        let route = heard.and_then(|name| self.policy.route(name));
        let upstream = self.policy.upstream(route);
        let outlook = upstream.outlook(self.client, self.now);
        let (verdict, reason) = match checks.iter().find(|check| !check.passes) {
            Some(check) => (Verdict::Refused, check.reason.clone()),
            None => self.verdict(&outlook),
        };
        let backend = match outlook.prospect {
            Prospect::Goes(index) => Some(upstream.backends()[index].name.to_string()),
            _ => None,
        };
        Explained {
            listener: self.state.name.to_string(),
            client: question.client.to_string(),
            verdict,
            reason,
            checks,
            routes: self.routes(name.as_deref(), route),
            sni: name,
            upstream: upstream.name().to_string(),
            balance: outlook.balance.to_owned(),
            foresight: match outlook.foresight {
                balance::Foresight::Certain => Foresight::Certain,
                balance::Foresight::Next => Foresight::Next,
                balance::Foresight::Chance => Foresight::Chance,
            },
            backend,
            backends: backends(upstream, &outlook, self.now),
            ..Explained::default()
        }
    }

    fn is_udp(&self) -> bool {
        self.policy.udp.is_some()
    }

    /// What stands in the ClientHello decides something.
    fn hears_names(&self) -> bool {
        !self.model.routes.is_empty()
    }

    /// In the order in which a session meets them.
    fn checks(&self) -> Vec<Check> {
        let limits = &self.policy.rate_limit;
        let of_listener = |rate| Some(self.state.bucket.tokens(rate, self.now));
        let datagrams = || {
            self.rate(
                "rate_limit.datagrams_per_ip",
                (limits.datagrams_per_ip, Dropped::DatagramRateLimit.as_str()),
                |rate| self.tokens_of_client(self.policy.datagram_clients.as_deref(), rate),
            )
        };
        let connections_per_ip = self.rate(
            "rate_limit.connections_per_ip",
            (limits.connections_per_ip, Reason::ClientRateLimit.as_str()),
            |rate| self.tokens_of_client(self.policy.clients.as_deref(), rate),
        );
        let connections = self.rate(
            "rate_limit.connections",
            (limits.connections, Reason::RateLimit.as_str()),
            of_listener,
        );
        [self.listening()]
            .into_iter()
            .chain(self.is_udp().then(datagrams))
            .chain([self.process_cap(), self.own_cap()])
            .chain(self.header())
            .chain([self.address(), connections_per_ip, connections])
            .collect()
    }

    /// `None`: nobody counts what this client does.
    fn tokens_of_client(&self, clients: Option<&Clients>, rate: Rate) -> Option<u64> {
        let prefix = self.policy.rate_limit.ipv6_prefix;
        Some(clients?.tokens(self.client?, prefix, rate, self.now))
    }

    fn listening(&self) -> Check {
        let mut addresses = self.process.bindings.addresses();
        let listens = addresses.any(|(name, _)| **name == *self.state.name);
        let why = match (self.process.state, listens) {
            (ProcessState::Draining, _) => "the process drains",
            (_, true) => "it accepts",
            (_, false) => "it was drained by order",
        };
        let passes = listens && self.process.state != ProcessState::Draining;
        check("listener", passes, None, why)
    }

    fn process_cap(&self) -> Check {
        let shared = &self.process.shared;
        let (now, most) = (shared.active.now(), shared.most_connections());
        let reason = Reason::ProcessFull.as_str();
        let why = format!("{now} of {most} sessions");
        check("runtime.max_connections", now < most, Some(reason), why)
    }

    fn own_cap(&self) -> Check {
        let (now, most) = (self.state.active.now(), self.policy.max_connections);
        let reason = Reason::ListenerFull.as_str();
        let why = match most {
            usize::MAX => format!("{now} sessions, no cap"),
            most => format!("{now} of {most} sessions"),
        };
        check("max_connections", now < most, Some(reason), why)
    }

    fn header(&self) -> Option<Check> {
        let trusted = self.model.trusted_proxies.as_ref()?;
        let why = match trusted.len() {
            0 => "the client is who the PROXY header says".to_owned(),
            count => format!(
                "the client is who the PROXY header says, if that comes from one of {count} trusted_proxies"
            ),
        };
        Some(check("accept_proxy_protocol", true, None, why))
    }

    /// By its address. The policy decides; the model says which network it was.
    fn address(&self) -> Check {
        let acl = &self.policy.acl;
        let passes = acl.is_open() || self.client.is_some_and(|client| acl.admits(client));
        let why = match self.client {
            _ if acl.is_open() => "everybody may come".to_owned(),
            None => "it has no address, as it comes over a unix socket".to_owned(),
            Some(client) => within(client, &self.model.allow, &self.model.deny),
        };
        check("allow, deny", passes, Some(Reason::Denied.as_str()), why)
    }

    /// `tokens`: how many there are; `None` = nothing is taken of this client.
    fn rate(
        &self,
        name: &str,
        (rate, reason): (Option<Rate>, &str),
        tokens: impl Fn(Rate) -> Option<u64>,
    ) -> Check {
        let Some(rate) = rate else {
            return check(name, true, None, "not set");
        };
        let Some(left) = tokens(rate) else {
            return check(name, true, None, "it has no address to count by");
        };
        let dry_run = self.policy.rate_limit.dry_run;
        let (per_second, burst) = (rate.per_second, rate.burst);
        let note = match left == 0 && dry_run {
            true => ", but dry_run is on",
            false => "",
        };
        let why = format!("{left} of {burst} tokens, which come back at {per_second}/s{note}");
        check(name, left > 0 || dry_run, Some(reason), why)
    }

    /// Each with whether it is the way that is taken.
    fn routes(&self, name: Option<&str>, taken: Option<usize>) -> Vec<RouteView> {
        let upstreams = &self.process.config.upstreams;
        let routes = self.model.routes.iter().enumerate().map(|(place, route)| {
            let names: Vec<_> = route.sni.iter().map(ToString::to_string).collect();
            let own = Routes::new([names.iter().map(String::as_str)]);
            let why = match (name, taken) {
                (None, _) => "there is no name".to_owned(),
                (Some(name), _) if own.find(name).is_none() => {
                    "none of its names matches".to_owned()
                }
                (Some(_), Some(taken)) if taken == place => {
                    "it is the first that matches".to_owned()
                }
                (Some(_), Some(taken)) => format!("it matches, but route {taken} comes before"),
                (Some(_), None) => "it matches".to_owned(),
            };
            RouteView {
                route: Some(place as u64),
                names,
                upstream: upstreams[route.upstream].name.to_string(),
                taken: taken == Some(place),
                why,
            }
        });
        let why = match (self.model.routes.is_empty(), taken) {
            (true, _) if name.is_some() => "there are no routes, so that names don't matter",
            (true, _) => "there are no routes",
            (false, None) => "no route matches",
            (false, Some(_)) => "a route matches",
        };
        let own = RouteView {
            route: None,
            names: Vec::new(),
            upstream: upstreams[self.model.upstream].name.to_string(),
            taken: taken.is_none(),
            why: why.to_owned(),
        };
        routes.chain([own]).collect()
    }

    /// Of a client that is let in.
    fn verdict(&self, outlook: &Outlook) -> (Verdict, Option<String>) {
        let refused = |reason: &str| (Verdict::Refused, Some(reason.to_owned()));
        let full = outlook.prospect == Prospect::Full;
        // Who comes while others wait lines up behind them; datagrams don't wait.
        let waits = full || outlook.waiting > 0;
        match outlook.prospect {
            Prospect::Nobody => refused(Reason::NoBackend.as_str()),
            _ if self.is_udp() && full => refused(Dropped::BackendsFull.as_str()),
            _ if self.is_udp() || !waits => (Verdict::Served, None),
            _ if outlook.waiting >= outlook.most_waiting => refused(Reason::QueueFull.as_str()),
            _ => (Verdict::Waits, None),
        }
    }
}

fn check(name: &str, passes: bool, reason: Option<&str>, why: impl Into<String>) -> Check {
    Check {
        name: name.to_owned(),
        passes,
        reason: reason.filter(|_| !passes).map(str::to_owned),
        why: why.into(),
    }
}

/// Which networks have decided on this client.
fn within(client: IpAddr, allow: &[IpNet], deny: &[IpNet]) -> String {
    let of = |networks: &[IpNet], list: &str| {
        let found = networks.iter().find(|network| network.contains(&client));
        found.map(|network| format!("in {network} of {list}"))
    };
    let none = |networks: &[IpNet], list: &str| match networks.len() {
        1 => format!("not in {} of {list}", networks[0]),
        count => format!("in none of the {count} networks of {list}"),
    };
    match (of(deny, "deny"), of(allow, "allow")) {
        (Some(denied), _) => denied,
        (None, Some(allowed)) => allowed,
        (None, None) if allow.is_empty() => none(deny, "deny"),
        (None, None) => none(allow, "allow"),
    }
}

/// Each with what keeps the client from it, or why it is the one.
fn backends(upstream: &Upstream, outlook: &Outlook, now: Instant) -> Vec<BackendView> {
    let backends = upstream.backends().iter().enumerate();
    backends
        .map(|(index, backend)| {
            let chosen = outlook.prospect == Prospect::Goes(index);
            let may = match &outlook.prospect {
                Prospect::Draws(among) => among.contains(&index),
                _ => chosen,
            };
            let standing = standing::of(backend, outlook.failing_open, now).in_words();
            let ready = || ready(index, chosen, outlook);
            let why = match outlook.hindrances[index] {
                Some(Hindrance::Backup) if may => "a backup: no other can be used".to_owned(),
                Some(Hindrance::Backup) => "a backup: others are ready".to_owned(),
                Some(Hindrance::BreakerBusy) => {
                    "its breaker is half-open, and as many sessions try it as may".to_owned()
                }
                Some(Hindrance::Full(open)) => {
                    format!("full: {open} open, which is its max_connections")
                }
                // What barred it may have ended just now.
                Some(Hindrance::Barred) => standing.unwrap_or_else(ready),
                None => match standing {
                    Some(standing) => format!("{}; {standing}", ready()),
                    None => ready(),
                },
            };
            BackendView {
                name: backend.name.to_string(),
                address: backend.address.to_string(),
                chosen,
                why,
            }
        })
        .collect()
}

fn ready(index: usize, chosen: bool, outlook: &Outlook) -> String {
    let balance = outlook.balance;
    let why = match (chosen, &outlook.prospect, outlook.foresight) {
        (true, _, balance::Foresight::Certain) => {
            "leads this client there, as long as the backends stay as they are"
        }
        (true, _, balance::Foresight::Next) => {
            "gives it the next session, of any client and worker; it moves on with each"
        }
        (true, _, balance::Foresight::Chance) => "has no other to draw",
        (false, Prospect::Draws(among), _) if among.contains(&index) => {
            let weight = |index: &usize| u64::from(outlook.weights[*index]);
            let all: u64 = among.iter().map(weight).sum();
            let own = weight(&index);
            return format!("ready: {balance} may draw it, weight {own} of {all}");
        }
        (false, _, balance::Foresight::Certain) => "leads this client to another",
        (false, _, _) => "gives another the next session",
    };
    format!("ready: {balance} {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(list: &[&str]) -> Vec<IpNet> {
        let parsed = list.iter().map(|network| network.parse());
        parsed.map(|network| network.expect("a network")).collect()
    }

    #[test]
    fn the_network_that_decides_is_named() {
        let client = "203.0.113.9".parse().expect("an address");
        for (allow, deny, expected) in [
            (
                &["203.0.113.0/24"][..],
                &["203.0.113.9/32"][..],
                "in 203.0.113.9/32 of deny",
            ),
            (
                &["10.0.0.0/8", "203.0.113.0/24"],
                &[],
                "in 203.0.113.0/24 of allow",
            ),
            (&["10.0.0.0/8"], &["::/0"], "not in 10.0.0.0/8 of allow"),
            (
                &[],
                &["10.0.0.0/8", "::/0"],
                "in none of the 2 networks of deny",
            ),
        ] {
            assert_eq!(within(client, &networks(allow), &networks(deny)), expected);
        }
    }
}
