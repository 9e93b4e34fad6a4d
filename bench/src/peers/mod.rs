//! The proxies that are compared: found, given equivalent configurations, started on one CPU, and
//! ended. Only processes that were started here are ever ended, by their ids.

mod certificate;
mod envoy;
mod haproxy;
mod nginx;
mod process;
mod ringress;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::Signal;

pub(crate) use certificate::Certificate;
pub(crate) use process::{Heir, LOG, Running, free_address};

/// A proxy that is installed.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// How it is called in tables and on the command line.
    pub(crate) name: &'static str,
    pub(crate) program: PathBuf,
    pub(crate) version: String,
    launch: fn(&Peer, &Place<'_>) -> Launch,
    /// What else `launch` needs to know: nginx's stream module.
    module: Option<PathBuf>,
}

/// One that is not, and what to do about it.
#[derive(Clone, Debug)]
pub(crate) struct Missing {
    pub(crate) name: &'static str,
    pub(crate) why: String,
}

/// What a proxy forwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    /// TLS on the clients' side, TCP on the backends'.
    Tls,
}

/// Where a proxy is put.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place<'a> {
    /// Its files are in here; with TLS, those of a [`Certificate`] too.
    pub(crate) folder: &'a Path,
    pub(crate) protocol: Protocol,
    pub(crate) listen: SocketAddr,
    pub(crate) backends: &'a [SocketAddr],
    /// It will be reloaded or upgraded.
    pub(crate) change: Option<Change>,
}

/// What changes from one configuration to the next, beside the backends.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Change {
    /// A second address to listen on.
    pub(crate) also: Option<SocketAddr>,
    /// ringress has two workers instead of one.
    pub(crate) second_worker: bool,
}

impl Place<'_> {
    /// The addresses to listen on.
    fn listens(&self) -> impl Iterator<Item = SocketAddr> {
        let also = self.change.and_then(|change| change.also);
        std::iter::once(self.listen).chain(also)
    }
}

/// How a proxy is started.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    /// The configuration file's name.
    pub(crate) file: &'static str,
    /// What stands in it.
    pub(crate) text: String,
    pub(crate) arguments: Vec<OsString>,
}

impl Peer {
    pub(crate) fn launch(&self, place: &Place<'_>) -> Launch {
        (self.launch)(self, place)
    }

    /// What makes it read its configuration again; `None` = it can't.
    pub(crate) fn reload_signal(&self) -> Option<Signal> {
        match self.name {
            ringress::NAME | ringress::NAME_WITH_POLICIES | nginx::NAME => Some(Signal::HUP),
            // To the master: it starts itself anew and takes the listening sockets from its worker.
            haproxy::NAME | haproxy::NAME_WITH_SPLICE => Some(Signal::USR2),
            _ => None,
        }
    }

    /// All others are its peers.
    pub(crate) fn is_ringress(&self) -> bool {
        is_ringress(self.name)
    }

    /// It can forward this.
    pub(crate) fn speaks(&self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Tcp => true,
            Protocol::Udp => WITH_UDP.contains(&self.name),
            Protocol::Tls => WITH_TLS.contains(&self.name),
        }
    }
}

/// Connections that each proxy is set up for: what the scenarios need, so that ordinary limits of
/// descriptors hold them.
const MOST_CONNECTIONS: usize = 6_000;

/// All names there are.
pub(crate) const NAMES: [&str; 6] = [
    ringress::NAME,
    ringress::NAME_WITH_POLICIES,
    nginx::NAME,
    haproxy::NAME,
    haproxy::NAME_WITH_SPLICE,
    envoy::NAME,
];

/// Those that forward datagrams; HAProxy's free version does not.
pub(crate) const WITH_UDP: [&str; 3] = [ringress::NAME, nginx::NAME, envoy::NAME];

/// Those that take part with TLS; splicing is not for what has to be encrypted.
pub(crate) const WITH_TLS: [&str; 5] = [
    ringress::NAME,
    ringress::NAME_WITH_POLICIES,
    nginx::NAME,
    haproxy::NAME,
    envoy::NAME,
];

/// With policies or without.
pub(crate) fn is_ringress(name: &str) -> bool {
    [ringress::NAME, ringress::NAME_WITH_POLICIES].contains(&name)
}

/// It takes part when nobody is named: it has peers to be compared with.
pub(crate) fn is_in_every_run(name: &str) -> bool {
    name != ringress::NAME_WITH_POLICIES
}

/// Looks for all of them. `binary` is ringress's own.
pub(crate) fn find(binary: &Path) -> Vec<Result<Peer, Missing>> {
    vec![
        ringress::find(binary, false),
        ringress::find(binary, true),
        nginx::find(),
        haproxy::find(false),
        haproxy::find(true),
        envoy::find(),
    ]
}

/// The program of this name in PATH, or where Debian keeps those of the system.
fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

/// What a program prints, on both streams; `None` when it can't be started or fails.
fn output(program: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = [output.stdout, output.stderr].concat();
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&text).into_owned())
}

/// The first line of what a program prints about itself.
fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planted(name: &'static str, launch: fn(&Peer, &Place<'_>) -> Launch) -> Peer {
        Peer {
            name,
            program: PathBuf::from(name),
            version: String::new(),
            launch,
            module: Some(PathBuf::from("modules/ngx_stream_module.so")),
        }
    }

    #[test]
    fn all_configurations_name_the_listener_and_every_backend_once() {
        let backends: Vec<SocketAddr> = (1..=3)
            .map(|host| SocketAddr::from(([127, 0, 0, host], 4000)))
            .collect();
        let place = Place {
            folder: Path::new("/tmp/x"),
            protocol: Protocol::Tcp,
            listen: SocketAddr::from(([127, 0, 0, 1], 5000)),
            backends: &backends,
            change: None,
        };
        for (name, launch) in [
            (
                ringress::NAME,
                ringress::launch as fn(&Peer, &Place<'_>) -> Launch,
            ),
            (ringress::NAME_WITH_POLICIES, ringress::launch),
            (nginx::NAME, nginx::launch),
            (haproxy::NAME, haproxy::launch),
            (haproxy::NAME_WITH_SPLICE, haproxy::launch),
            (envoy::NAME, envoy::launch),
        ] {
            let text = planted(name, launch).launch(&place).text;
            assert_eq!(text.matches("5000").count(), 1, "{text}");
            assert_eq!(text.matches("4000").count(), 3, "{text}");
            let splices = text.contains("splice");
            assert_eq!(splices, name == haproxy::NAME_WITH_SPLICE, "{text}");
        }
    }

    #[test]
    fn those_that_forward_datagrams_are_told_to() {
        let place = Place {
            folder: Path::new("/tmp/x"),
            protocol: Protocol::Udp,
            listen: SocketAddr::from(([127, 0, 0, 1], 5000)),
            backends: &[SocketAddr::from(([127, 0, 0, 1], 4000))],
            change: None,
        };
        for (name, launch) in [
            (
                ringress::NAME,
                ringress::launch as fn(&Peer, &Place<'_>) -> Launch,
            ),
            (nginx::NAME, nginx::launch),
            (envoy::NAME, envoy::launch),
        ] {
            let peer = planted(name, launch);
            let text = peer.launch(&place).text;
            assert!(peer.speaks(Protocol::Udp));
            assert_eq!(text.matches("5000").count(), 1, "{text}");
            assert_eq!(text.matches("4000").count(), 1, "{text}");
            assert!(text.to_lowercase().contains("udp"), "{text}");
            assert!(text.contains("60s") && !text.contains("backlog"), "{text}");
        }
        let haproxy = planted(haproxy::NAME, haproxy::launch);
        assert!(!haproxy.speaks(Protocol::Udp));
    }

    #[test]
    fn those_with_tls_show_the_certificate_and_speak_it_with_clients_only() {
        let place = Place {
            folder: Path::new("/tmp/x"),
            protocol: Protocol::Tls,
            listen: SocketAddr::from(([127, 0, 0, 1], 5000)),
            backends: &[SocketAddr::from(([127, 0, 0, 1], 4000))],
            change: None,
        };
        for (name, launch, files) in [
            (
                ringress::NAME,
                ringress::launch as fn(&Peer, &Place<'_>) -> Launch,
                ["certificate.pem", "key.pem"],
            ),
            (nginx::NAME, nginx::launch, ["certificate.pem", "key.pem"]),
            (haproxy::NAME, haproxy::launch, ["both.pem", "both.pem"]),
            (envoy::NAME, envoy::launch, ["certificate.pem", "key.pem"]),
        ] {
            let peer = planted(name, launch);
            let with = peer.launch(&place).text;
            assert!(peer.speaks(Protocol::Tls));
            for file in files.map(|file| format!("/tmp/x/{file}")) {
                assert_eq!(with.matches(&file).count(), 1, "{with}");
            }
            assert_eq!(with.matches("5000").count(), 1, "{with}");
            assert_eq!(with.matches("4000").count(), 1, "{with}");
            let bare = Place {
                protocol: Protocol::Tcp,
                ..place
            };
            let without = peer.launch(&bare).text;
            for word in [".pem", "ssl", "tls"] {
                assert!(!without.contains(word), "{without}");
            }
        }
        let splice = planted(haproxy::NAME_WITH_SPLICE, haproxy::launch);
        assert!(!splice.speaks(Protocol::Tls));
    }

    #[test]
    fn a_second_address_is_listened_on_by_all_that_reload() {
        let place = Place {
            folder: Path::new("/tmp/x"),
            protocol: Protocol::Tcp,
            listen: SocketAddr::from(([127, 0, 0, 1], 5000)),
            backends: &[SocketAddr::from(([127, 0, 0, 1], 4000))],
            change: Some(Change {
                also: Some(SocketAddr::from(([127, 0, 0, 2], 5001))),
                second_worker: true,
            }),
        };
        for (name, launch) in [
            (
                ringress::NAME,
                ringress::launch as fn(&Peer, &Place<'_>) -> Launch,
            ),
            (nginx::NAME, nginx::launch),
            (haproxy::NAME, haproxy::launch),
        ] {
            let peer = planted(name, launch);
            let text = peer.launch(&place).text;
            assert_eq!(text.matches("127.0.0.1:5000").count(), 1, "{text}");
            assert_eq!(text.matches("127.0.0.2:5001").count(), 1, "{text}");
            assert!(peer.reload_signal().is_some());
        }
    }

    #[test]
    fn ringress_takes_its_configuration() {
        let backends = [SocketAddr::from(([127, 0, 0, 1], 4000))];
        let place = Place {
            folder: Path::new("/tmp/x"),
            protocol: Protocol::Tcp,
            listen: SocketAddr::from(([127, 0, 0, 1], 5000)),
            backends: &backends,
            change: None,
        };
        let changed = Place {
            change: Some(Change {
                also: Some(SocketAddr::from(([127, 0, 0, 2], 5001))),
                second_worker: true,
            }),
            ..place
        };
        let text = planted(ringress::NAME, ringress::launch)
            .launch(&changed)
            .text;
        let mut resolver = ::ringress::config::SystemResolver;
        let config = ::ringress::config::parse(&text, "ringress.toml", &mut resolver)
            .unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(config.listeners.len(), 2, "{text}");
        for (name, has_policies) in [
            (ringress::NAME, false),
            (ringress::NAME_WITH_POLICIES, true),
        ] {
            let text = planted(name, ringress::launch).launch(&place).text;
            let mut resolver = ::ringress::config::SystemResolver;
            let config = ::ringress::config::parse(&text, "ringress.toml", &mut resolver)
                .unwrap_or_else(|errors| panic!("{errors}"));
            let upstream = &config.upstreams[0];
            let has = [
                upstream.balance.name == "least-connections",
                upstream.health_check.is_some(),
                upstream.outlier.is_some(),
                upstream.circuit_breaker.is_some(),
                config.listeners[0].rate_limit.connections_per_ip.is_some(),
            ];
            assert_eq!(has, [has_policies; 5], "{text}");
        }
    }
}
