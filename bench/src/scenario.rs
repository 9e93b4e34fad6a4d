//! What is compared: the scenarios, and what is looked at in each.

use std::time::Duration;

use crate::backend::Service;
use crate::load::{Summary, Work};
use crate::peers::{self, Protocol};
use crate::statistics::Better;
use crate::udp::{self, Bursts, Faults};

/// Bytes of a request and of its answer.
const SIZE: usize = 128;
/// Bytes of a download.
const DOWNLOAD_BYTES: u64 = 64 << 20;
/// Bytes of a datagram and of its answer.
const DATAGRAM: usize = 64;
/// What a sender of QUIC gives the kernel at once.
const BURSTS: Bursts = Bursts {
    size: 1_200,
    segments: 40,
    window: 1,
};
/// Connections that are held idle.
pub(crate) const IDLE_CONNECTIONS: usize = 5_000;

/// The ceiling moves less than a proxy: its rounds are shorter by so much.
pub(crate) const CEILING_SHARE: u32 = 3;

/// A kind of work that proxies are compared by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Scenario {
    /// Echo of 128 B on 64 connections, as much as goes
    #[value(name = "echo-64")]
    Echo64,
    /// Echo of 128 B on 512 connections, as much as goes
    #[value(name = "echo-512")]
    Echo512,
    /// Echo of 128 B on 64 connections at half of what the best peer can do
    Rate,
    /// A new connection for every exchange, 32 at once
    NewConnections,
    /// 5,000 connections that had one exchange
    Idle,
    /// Downloads of 64 MiB on 4 connections, every byte compared
    Download,
    /// Datagrams of 64 B that come back, 64 sessions, as much as goes
    #[value(name = "udp-64")]
    Udp64,
    /// The same at half of what the best peer can do
    UdpRate,
    /// Bursts of 40 datagrams of 1,200 B to the backend, two under way
    UdpBulk,
    /// The same, sixteen under way
    #[value(name = "udp-bulk-16")]
    UdpBulk16,
    /// Datagrams of 64 B that come back, at half of what ringress can do: nothing may be lost
    UdpLoss,
    /// A new TLS connection with a full handshake for every exchange, 32 at once
    TlsHandshakes,
    /// The same with resumed handshakes
    TlsResumed,
    /// Downloads of 64 MiB on 4 TLS connections, every byte compared
    TlsDownload,
    /// Echo of 128 B on 64 TLS connections, as much as goes
    #[value(name = "tls-echo-64")]
    TlsEcho64,
    /// 5,000 TLS connections that had one exchange
    TlsIdle,
}

/// What a scenario consists of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Task {
    /// Connections that are held: no load.
    Idle,
    /// Load on connections.
    Connections(Work),
    /// Load with datagrams.
    Datagrams(udp::Work),
}

/// What backends do in a scenario.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Serving {
    /// They take connections.
    Connections(Service),
    /// They take connections, and clients speak TLS with the proxy.
    Tls(Service),
    /// They take datagrams.
    Datagrams(udp::Service),
}

impl Serving {
    pub(crate) fn protocol(self) -> Protocol {
        match self {
            Self::Connections(_) => Protocol::Tcp,
            Self::Tls(_) => Protocol::Tls,
            Self::Datagrams(_) => Protocol::Udp,
        }
    }
}

/// How a scenario is carried out when nothing else is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    pub(crate) rounds: usize,
    pub(crate) duration: Duration,
}

impl Scenario {
    pub(crate) const WITH_TCP: [Self; 6] = [
        Self::Echo64,
        Self::Echo512,
        Self::Rate,
        Self::NewConnections,
        Self::Idle,
        Self::Download,
    ];
    pub(crate) const WITH_UDP: [Self; 5] = [
        Self::Udp64,
        Self::UdpRate,
        Self::UdpBulk,
        Self::UdpBulk16,
        Self::UdpLoss,
    ];
    pub(crate) const WITH_TLS: [Self; 5] = [
        Self::TlsHandshakes,
        Self::TlsResumed,
        Self::TlsDownload,
        Self::TlsEcho64,
        Self::TlsIdle,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Echo64 => "echo-64",
            Self::Echo512 => "echo-512",
            Self::Rate => "rate",
            Self::NewConnections => "new-connections",
            Self::Idle => "idle",
            Self::Download => "download",
            Self::Udp64 => "udp-64",
            Self::UdpRate => "udp-rate",
            Self::UdpBulk => "udp-bulk",
            Self::UdpBulk16 => "udp-bulk-16",
            Self::UdpLoss => "udp-loss",
            Self::TlsHandshakes => "tls-handshakes",
            Self::TlsResumed => "tls-resumed",
            Self::TlsDownload => "tls-download",
            Self::TlsEcho64 => "tls-echo-64",
            Self::TlsIdle => "tls-idle",
        }
    }

    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Echo64 => "echo of 128 B, 64 connections, as much as goes",
            Self::Echo512 => "echo of 128 B, 512 connections, as much as goes",
            Self::Rate => "echo of 128 B, 64 connections, half the rate of the best peer",
            Self::NewConnections => "a new connection for every echo of 128 B, 32 at once",
            Self::Idle => "5,000 connections, one echo of 128 B each, then idle",
            Self::Download => "downloads of 64 MiB, 4 connections, every byte compared",
            Self::Udp64 => "echo of datagrams of 64 B, 64 sessions, as much as goes",
            Self::UdpRate => {
                "echo of datagrams of 64 B, 64 sessions, half the rate of the best peer"
            }
            Self::UdpBulk => "bursts of 40 datagrams of 1,200 B to the backend, 2 under way",
            Self::UdpBulk16 => "bursts of 40 datagrams of 1,200 B to the backend, 16 under way",
            Self::UdpLoss => {
                "echo of datagrams of 64 B, 64 sessions, half of ringress's own maximum"
            }
            Self::TlsHandshakes => {
                "a new TLS connection, full handshake, for every echo of 128 B, 32 at once"
            }
            Self::TlsResumed => {
                "a new TLS connection, resumed handshake, for every echo of 128 B, 32 at once"
            }
            Self::TlsDownload => "downloads of 64 MiB, 4 TLS connections, every byte compared",
            Self::TlsEcho64 => "echo of 128 B, 64 TLS connections, as much as goes",
            Self::TlsIdle => "5,000 TLS connections, one echo of 128 B each, then idle",
        }
    }

    pub(crate) fn serving(self) -> Serving {
        match self {
            Self::Download => Serving::Connections(Service::Download),
            Self::Udp64 | Self::UdpRate | Self::UdpLoss => Serving::Datagrams(udp::Service::Echo),
            Self::UdpBulk | Self::UdpBulk16 => Serving::Datagrams(udp::Service::Bursts),
            Self::TlsDownload => Serving::Tls(Service::Download),
            Self::TlsHandshakes | Self::TlsResumed | Self::TlsEcho64 | Self::TlsIdle => {
                Serving::Tls(Service::Echo)
            }
            _ => Serving::Connections(Service::Echo),
        }
    }

    /// Connections, or sources of datagrams, at once.
    pub(crate) fn connections(self) -> usize {
        match self {
            Self::Echo64 | Self::Rate | Self::TlsEcho64 => 64,
            Self::Echo512 => 512,
            Self::NewConnections | Self::TlsHandshakes | Self::TlsResumed => 32,
            Self::Idle | Self::TlsIdle => IDLE_CONNECTIONS,
            Self::Download | Self::TlsDownload => 4,
            Self::Udp64 | Self::UdpRate | Self::UdpLoss => 64,
            // nginx loses nothing of two bursts with the receive buffers that sockets have; of four it does.
            Self::UdpBulk => 2,
            Self::UdpBulk16 => 16,
        }
    }

    /// With the rate that was found for it, if it has one.
    pub(crate) fn task(self, per_second: u64) -> Task {
        match self {
            Self::Echo64 | Self::Echo512 | Self::TlsEcho64 => {
                Task::Connections(Work::Saturate { size: SIZE })
            }
            Self::Rate => Task::Connections(Work::Rate {
                size: SIZE,
                per_second,
            }),
            Self::NewConnections | Self::TlsHandshakes | Self::TlsResumed => {
                Task::Connections(Work::NewConnections { size: SIZE })
            }
            Self::Download | Self::TlsDownload => Task::Connections(Work::Download {
                bytes: DOWNLOAD_BYTES,
            }),
            Self::Idle | Self::TlsIdle => Task::Idle,
            Self::Udp64 => Task::Datagrams(udp::Work::Saturate {
                size: DATAGRAM,
                outstanding: 1,
            }),
            Self::UdpRate | Self::UdpLoss => Task::Datagrams(udp::Work::Rate {
                size: DATAGRAM,
                per_second,
            }),
            Self::UdpBulk | Self::UdpBulk16 => Task::Datagrams(udp::Work::Upload(BURSTS)),
        }
    }

    /// The scenario whose best throughput this one has half of as its rate.
    pub(crate) fn half_of(self) -> Option<Self> {
        match self {
            Self::Rate => Some(Self::Echo64),
            Self::UdpRate | Self::UdpLoss => Some(Self::Udp64),
            _ => None,
        }
    }

    /// Connections are held, and no load is put on them.
    pub(crate) fn is_idle(self) -> bool {
        self.task(0) == Task::Idle
    }

    /// Handshakes are to be resumed ones.
    pub(crate) fn resumes(self) -> bool {
        self == Self::TlsResumed
    }

    /// There is load without a proxy, too. The backends speak no TLS, so that without a proxy the work
    /// would be another.
    pub(crate) fn has_ceiling(self) -> bool {
        !self.is_idle() && self.serving().protocol() != Protocol::Tls
    }

    /// Long enough that the medians hold still, short enough that all of it takes less than five
    /// minutes with all proxies.
    pub(crate) fn extent(self) -> Extent {
        let (rounds, millis) = match self {
            Self::Echo64 | Self::Echo512 | Self::Rate => (5, 3000),
            Self::NewConnections => (5, 700),
            Self::Download => (5, 500),
            Self::Idle => (3, 0),
            Self::Udp64 | Self::UdpRate => (5, 2000),
            Self::UdpBulk | Self::UdpBulk16 => (5, 500),
            Self::UdpLoss => (3, 2000),
            Self::TlsHandshakes | Self::TlsResumed | Self::TlsEcho64 => (5, 1500),
            Self::TlsDownload => (5, 1000),
            Self::TlsIdle => (3, 0),
        };
        Extent {
            rounds,
            duration: Duration::from_millis(millis),
        }
    }

    /// Splicing is a matter of bulk, and not all forward datagrams.
    pub(crate) fn wants(self, peer: &str) -> bool {
        match self {
            Self::Download => true,
            Self::UdpLoss => peers::WITH_UDP.contains(&peer) && peers::is_ringress(peer),
            Self::Udp64 | Self::UdpRate | Self::UdpBulk | Self::UdpBulk16 => {
                peers::WITH_UDP.contains(&peer)
            }
            _ if self.serving().protocol() == Protocol::Tls => peers::WITH_TLS.contains(&peer),
            _ => !peer.contains("splice"),
        }
    }

    pub(crate) fn metrics(self) -> &'static [Metric] {
        match self {
            Self::Idle | Self::TlsIdle => &[Metric::MemoryPerConnection],
            Self::Download | Self::TlsDownload => &[Metric::CpuPerMb, Metric::MbPerSecond],
            Self::UdpBulk | Self::UdpBulk16 => {
                &[Metric::CpuPerMb, Metric::MbPerSecond, Metric::Lost]
            }
            // Who does not keep the rate is named; nobody can exceed it.
            Self::UdpRate | Self::UdpLoss => &[
                Metric::CpuPerRequest,
                Metric::P50,
                Metric::P99,
                Metric::P999,
                Metric::Lost,
            ],
            Self::Rate => &[
                Metric::CpuPerRequest,
                Metric::P50,
                Metric::P99,
                Metric::P999,
            ],
            Self::TlsHandshakes | Self::TlsResumed => &[
                Metric::CpuPerConnection,
                Metric::Throughput,
                Metric::P50,
                Metric::P99,
                Metric::P999,
            ],
            _ => &[
                Metric::CpuPerRequest,
                Metric::Throughput,
                Metric::P50,
                Metric::P99,
                Metric::P999,
            ],
        }
    }
}

/// What is looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Metric {
    CpuPerRequest,
    /// The same where each request has a connection of its own.
    CpuPerConnection,
    Throughput,
    P50,
    P99,
    P999,
    MemoryPerConnection,
    CpuPerMb,
    MbPerSecond,
    Lost,
}

impl Metric {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::CpuPerRequest => "CPU µs per request",
            Self::CpuPerConnection => "CPU µs per connection",
            Self::Throughput => "requests/s",
            Self::P50 => "p50 µs",
            Self::P99 => "p99 µs",
            Self::P999 => "p99.9 µs",
            Self::MemoryPerConnection => "KiB per connection",
            Self::CpuPerMb => "CPU ms per MB",
            Self::MbPerSecond => "MB/s",
            Self::Lost => "lost of 10⁶",
        }
    }

    pub(crate) fn better(self) -> Better {
        match self {
            Self::Throughput | Self::MbPerSecond => Better::Higher,
            _ => Better::Lower,
        }
    }

    /// Digits behind the point that mean something.
    pub(crate) fn digits(self) -> usize {
        match self {
            Self::Throughput | Self::MbPerSecond | Self::P999 => 0,
            Self::P50 | Self::P99 | Self::Lost => 1,
            Self::CpuPerRequest | Self::CpuPerConnection | Self::MemoryPerConnection => 2,
            Self::CpuPerMb => 3,
        }
    }
}

/// What one round showed of one contender.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Sample {
    /// CPU time of the proxy's processes, kernel workers included.
    pub(crate) proxy_cpu_us: f64,
    /// io_uring's kernel workers of the proxy at the end.
    pub(crate) kernel_workers: usize,
    /// Anonymous memory of the proxy's processes, before and at the end.
    pub(crate) memory_before: u64,
    pub(crate) memory_after: u64,
    /// Connections at once.
    pub(crate) connections: usize,
    /// What the generator counted; idle connections are not counted.
    pub(crate) load: Option<Summary>,
    /// What became of datagrams, where there were any.
    pub(crate) datagrams: Option<Faults>,
}

impl Sample {
    /// 0 where there is none.
    pub(crate) fn value(&self, metric: Metric) -> f64 {
        let per = |whole: f64, count: f64| if count > 0.0 { whole / count } else { 0.0 };
        let load = |value: fn(&Summary) -> f64| self.load.as_ref().map_or(0.0, value);
        let seconds = load(|load| load.seconds);
        let mb = load(|load| load.bytes as f64 / 1e6);
        match metric {
            Metric::CpuPerRequest | Metric::CpuPerConnection => {
                per(self.proxy_cpu_us, load(|load| load.requests as f64))
            }
            Metric::Throughput => load(|load| load.requests_per_second),
            Metric::P50 => load(|load| load.p50_us),
            Metric::P99 => load(|load| load.p99_us),
            Metric::P999 => load(|load| load.p999_us),
            Metric::MemoryPerConnection => {
                let grown = self.memory_after.saturating_sub(self.memory_before);
                per(grown as f64 / 1024.0, self.connections as f64)
            }
            Metric::CpuPerMb => per(self.proxy_cpu_us / 1e3, mb),
            Metric::MbPerSecond => per(mb, seconds),
            Metric::Lost => self.datagrams.as_ref().map_or(0.0, |datagrams| {
                per(datagrams.lost as f64 * 1e6, datagrams.sent as f64)
            }),
        }
    }

    /// Share of its core that the proxy was busy.
    pub(crate) fn proxy_busy(&self) -> f64 {
        let seconds = self.load.as_ref().map_or(0.0, |load| load.seconds);
        if seconds > 0.0 {
            self.proxy_cpu_us / 1e6 / seconds
        } else {
            0.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::{NAMES, is_in_every_run};

    fn seconds(scenarios: &[Scenario]) -> f64 {
        scenarios
            .iter()
            .map(|scenario| {
                let Extent { rounds, duration } = scenario.extent();
                let takes_part = |name: &&&str| is_in_every_run(name) && scenario.wants(name);
                let proxies = NAMES.iter().filter(takes_part).count() as f64;
                // Beside what is counted: warm-up and connecting; an idle round starts a proxy.
                let each = match scenario {
                    Scenario::Idle => 1.6,
                    // As many handshakes in the generator.
                    Scenario::TlsIdle => 4.0,
                    _ => duration.as_secs_f64() + 0.3,
                };
                let ceiling = match scenario.has_ceiling() {
                    true => (duration / CEILING_SHARE).as_secs_f64() + 0.3,
                    false => 0.0,
                };
                rounds as f64 * (proxies * each + ceiling)
            })
            .sum()
    }

    #[test]
    fn five_minutes_hold_all_scenarios_with_all_proxies() {
        let seconds = seconds(&Scenario::WITH_TCP);
        assert!(seconds < 290.0, "{seconds}");
    }

    #[test]
    fn two_and_a_half_minutes_hold_those_with_datagrams() {
        let seconds = seconds(&Scenario::WITH_UDP);
        assert!(seconds < 145.0, "{seconds}");
    }

    #[test]
    fn little_more_than_three_minutes_hold_those_with_tls() {
        let seconds = seconds(&Scenario::WITH_TLS);
        assert!(seconds < 190.0, "{seconds}");
    }

    #[test]
    fn memory_is_what_was_added_per_connection() {
        let sample = Sample {
            proxy_cpu_us: 0.0,
            kernel_workers: 0,
            memory_before: 1 << 20,
            memory_after: (1 << 20) + 5_000 * 512,
            connections: 5_000,
            load: None,
            datagrams: None,
        };
        assert!((sample.value(Metric::MemoryPerConnection) - 0.5).abs() < 1e-9);
        assert!(sample.value(Metric::CpuPerRequest) < 1e-9);
    }

    #[test]
    fn splice_takes_part_in_bulk_only() {
        assert!(Scenario::Download.wants("haproxy-splice"));
        assert!(!Scenario::Echo64.wants("haproxy-splice"));
        assert!(Scenario::Echo64.wants("haproxy"));
        assert!(!Scenario::TlsDownload.wants("haproxy-splice"));
        assert!(Scenario::TlsDownload.wants("haproxy"));
        assert!(!Scenario::Udp64.wants("haproxy") && Scenario::Udp64.wants("envoy"));
        assert!(!Scenario::UdpLoss.wants("envoy") && Scenario::UdpLoss.wants("ringress"));
    }
}
