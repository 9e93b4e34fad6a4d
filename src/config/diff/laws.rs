//! What holds for the difference of any two configurations: for tests and for the fuzzer.

use super::{Change, between};
use crate::config::Config;

/// Panics where the difference of `old` and `new` is not what every difference is.
#[doc(hidden)]
pub fn check_laws(old: &Config, new: &Config) {
    let there = between(old, new);
    assert_eq!(between(old, old), [], "from itself");
    assert_eq!(between(new, new), [], "from itself");
    let back: Vec<_> = between(new, old).into_iter().map(reversed).collect();
    assert_eq!(there, back, "there and back");
    for change in &there {
        let line = change.to_string();
        assert!(!line.contains(char::is_control), "{line:?}");
        assert_ne!(change.from, change.to, "{line}");
        let json = serde_json::to_string(change).expect("it is a plain struct");
        let read: Change = serde_json::from_str(&json).expect("it has just been written");
        assert_eq!(read, *change);
    }
}

fn reversed(change: Change) -> Change {
    Change {
        from: change.to,
        to: change.from,
        ..change
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::diff::tests::read;
    use crate::config::{Probe, effective};

    /// Lines of a valid file and what each may be instead, in the order of the tables.
    const CHOICES: &[&[&str]] = &[
        &["", "runtime.workers = 2", "runtime.workers = 3"],
        &["", "runtime.buffer_memory = '1MiB'"],
        &["", "runtime.user = 'none'", "runtime.user = 'www'"],
        &[
            "",
            "runtime.control_socket = 'off'",
            "runtime.control_socket = '/run/c'",
        ],
        &["", "log.level = 'debug'", "log.format = 'json'"],
        &[
            "",
            "log.access_log = 'stdout'",
            "log.access_log = './stdout'",
        ],
        &[
            "",
            "admin.listen = '127.0.0.1:9'",
            "admin.listen = '[::1]:9'",
        ],
        &["", "admin.token = 'a'", "admin.token = 'b'"],
        &[
            "",
            "listeners.a = { bind = '127.0.0.1:0', upstream = 'app' }",
            "listeners.a = { bind = '127.0.0.1:0', upstream = 'a-b', protocol = 'udp' }",
            "listeners.a = { bind = '127.0.0.1:0', upstream = 'a-b', protocol = 'udp', udp.responses = 1, rate_limit.datagrams_per_ip.rate = 5 }",
        ],
        &[
            "",
            "listeners.'a.timeouts' = { bind = '[::1]:2', upstream = 'a-b' }",
        ],
        &["[listeners.web]", "[listeners.api]"],
        &[
            "bind = '127.0.0.1:0'",
            "bind = ['127.0.0.1:0', '[::1]:80']",
            "bind = ['[::1]:80', '127.0.0.1:0']",
            "bind = ['127.0.0.1:0', '127.0.0.1:0']",
            "bind = 'unix:/a, unix:/b'",
            "bind = ['unix:/a', 'unix:/b']",
        ],
        &["upstream = 'app'", "upstream = 'a-b'"],
        &["", "timeouts.idle = '1s'", "timeouts.half_close = '1s'"],
        &[
            "",
            "rate_limit.connections = { rate = 5 }",
            "rate_limit.connections = { rate = 5, burst = 6 }",
            "rate_limit.bandwidth = { rate = '10KiB', burst = 1025 }",
        ],
        &[
            "",
            "accept_proxy_protocol = 'require'\ntrusted_proxies = ['::1', '10.0.0.0/8']",
            "accept_proxy_protocol = 'require'\ntrusted_proxies = ['10.0.0.0/8', '::1']",
            "accept_proxy_protocol = 'require'\ntrusted_proxies = '::1'",
        ],
        &[
            "",
            "tls.certificates = [{ cert = 'a.pem', key = 'a.key' }]",
            "tls.certificates = [{ cert = 'a.pem', key = 'a.key' }, { cert = 'b.pem', key = 'b.key' }]",
            "tls.certificates = [{ cert = 'b.pem', key = 'b.key' }, { cert = 'a.pem', key = 'a.key' }]",
            "tls = { certificates = { cert = 'a.pem', key = 'a.key' }, client_auth = 'required', client_ca = 'b.pem' }",
            "tls = { certificates = { cert = 'a.pem', key = 'a.key' }, alpn = ['a', 'b'] }",
            "tls = { certificates = { cert = 'a.pem', key = 'a.key' }, alpn = 'a, b' }",
        ],
        &[
            "",
            "routes = [{ sni = 'x', upstream = 'app' }]",
            "routes = [{ sni = ['x', '*.y'], upstream = 'a-b' }]",
            "routes = [{ sni = 'X', upstream = 'a-b' }, { sni = '*.y', upstream = 'a-b' }]",
            "routes = [{ sni = '*.y', upstream = 'a-b' }, { sni = 'x', upstream = 'a-b' }]",
        ],
        &["[upstreams.a-b]", "[upstreams.'a-b']"],
        &[
            "backends = ['10.0.0.1:1']",
            "backends = ['10.0.0.1:2']",
            "backends = [{ address = '10.0.0.1:1', name = 'b' }]",
            "backends = [{ address = 'host.example:1', name = 'b' }]",
        ],
        &["", "outlier = {}", "outlier.max_ejected = 0.25"],
        &["[upstreams.app]"],
        &[
            "backends = ['10.0.0.1:1', '10.0.0.2:1']",
            "backends = ['10.0.0.2:1', '10.0.0.1:1']",
            "backends = [{ address = '10.0.0.1:1', name = 'b' }, '10.0.0.2:1']",
            "backends = [{ address = '10.0.0.1:1', weight = 2 }, { address = '10.0.0.2:1', backup = true }]",
        ],
        &[
            "",
            "health_check = {}",
            "health_check.send = 'none'",
            "health_check = { type = 'udp', send = 'none' }",
            "health_check = { type = 'http', host = 'none', expect_status = [200, 201] }",
            "health_check = { type = 'http', expect_status = [201, 200] }",
        ],
        &["", "circuit_breaker = {}", "retry.budget = 0.3"],
        &[
            "",
            "source = '10.0.0.1'",
            "source = ['10.0.0.2', '10.0.0.1']",
            "source = ['10.0.0.1', '10.0.0.2']",
        ],
        &[
            "",
            "send_proxy_protocol = 'v1'",
            "send_proxy_protocol = 'v2'",
            "send_proxy_protocol = 'v2'\nproxy_protocol_datagrams = 'first'",
        ],
        &[
            "",
            "tls = {}",
            "tls.ca = 'b.pem'",
            "tls.verify = false",
            "tls.server_name = 'none'",
            "tls = { client_cert = 'b.pem', client_key = 'b.key' }",
        ],
    ];

    fn file(choices: &[prop::sample::Index]) -> String {
        let lines = CHOICES.iter().zip(choices);
        let lines: Vec<_> = lines.map(|(of, index)| *index.get(of)).collect();
        lines.join("\n")
    }

    /// The same for all that mean the same.
    fn in_one_order(config: &Config) -> (Config, Vec<String>) {
        let mut config = config.clone();
        let named = |index: usize| config.upstreams[index].name.to_string();
        config.listeners.sort_by(|a, b| a.name.cmp(&b.name));
        let mut upstreams = Vec::new();
        for listener in &config.listeners {
            upstreams.push(named(listener.upstream));
            // Which names share a table means nothing.
            for route in &listener.routes {
                let to = named(route.upstream);
                upstreams.extend(route.sni.iter().map(|name| format!("{name} {to}")));
            }
        }
        for listener in &mut config.listeners {
            listener.upstream = 0;
            listener.routes.clear();
            if let Some(trusted) = &mut listener.trusted_proxies {
                trusted.sort();
            }
            listener.bind.sort();
        }
        config.upstreams.sort_by(|a, b| a.name.cmp(&b.name));
        for upstream in &mut config.upstreams {
            upstream.backends.sort_by(|a, b| a.name.cmp(&b.name));
            upstream.source.sort();
            if let Some(check) = &mut upstream.health_check
                && let Probe::Http { expect_status, .. } = &mut check.probe
            {
                expect_status.sort_by_key(|it| *it.start());
            }
        }
        (config, upstreams)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn there_is_no_difference_between_those_that_mean_the_same_and_no_others(
            old in prop::collection::vec(any::<prop::sample::Index>(), CHOICES.len()),
            edits in prop::collection::vec((0..CHOICES.len(), any::<prop::sample::Index>()), 0..4),
        ) {
            let mut new = old.clone();
            for (line, choice) in edits {
                new[line] = choice;
            }
            let (old, new) = (read(&file(&old)), read(&file(&new)));
            check_laws(&old, &new);
            let same = in_one_order(&old) == in_one_order(&new);
            prop_assert_eq!(between(&old, &new).is_empty(), same);
        }

        #[test]
        fn what_is_in_effect_can_be_read_and_means_the_same(
            choices in prop::collection::vec(any::<prop::sample::Index>(), CHOICES.len()),
        ) {
            let mut config = read(&file(&choices));
            // Neither is in it, or not so that it can be read.
            config.admin.token = None;
            for backend in config.upstreams.iter_mut().flat_map(|it| &mut it.backends) {
                backend.host = None;
            }
            let again = read(&effective::table(&config).to_string());
            prop_assert_eq!(between(&config, &again), []);
            prop_assert_eq!(in_one_order(&config), in_one_order(&again));
        }
    }
}
