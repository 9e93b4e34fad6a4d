//! `ringress-bench tcp ADDRESS`: load on anything that echoes or serves downloads.

use std::net::SocketAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use ringress::ring::limits;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::print;
use crate::load::{self, Outcome, Plan, Target, Tls, Work};
use crate::{Error, local};

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// ip:port of an echo server (`ringress-bench backend`), or of a proxy in front of one
    address: SocketAddr,
    /// Connections at once
    #[arg(long, default_value = "64")]
    connections: NonZeroUsize,
    /// Time that is counted, such as 10s
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Time before counting starts
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    warmup: Duration,
    /// Bytes of a request, all of which must come back
    #[arg(long, default_value = "128")]
    size: NonZeroUsize,
    /// Requests per second at fixed times, over all connections; without it as many as go
    #[arg(long, conflicts_with_all = ["download", "idle"])]
    rate: Option<NonZeroU64>,
    /// A new connection for every request; with --rate as many at once as that takes
    #[arg(long, group = "work")]
    new_connections: bool,
    /// Download so many bytes again and again and compare each (`ringress-bench backend --download`)
    #[arg(long, value_name = "BYTES", group = "work")]
    download: Option<NonZeroU64>,
    /// One exchange per connection, then hold all of them for the duration
    #[arg(long, group = "work")]
    idle: bool,
    /// Speak TLS 1.3 with a server that has this certificate (PEM), which is for bench.test
    #[arg(long, value_name = "FILE")]
    tls: Option<PathBuf>,
    /// Resume sessions: each connection but the first of its place; what is not resumed is an error
    #[arg(long, requires_all = ["tls", "new_connections"], conflicts_with = "rate")]
    resume: bool,
    /// Run on this CPU only
    #[arg(long)]
    cpu: Option<usize>,
    /// Print JSON with the whole histogram
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Error> {
    pin(arguments.cpu)?;
    let room = local::room_for(1)?;
    if arguments.connections.get() as u64 > room {
        let text = format!("the limit of descriptors (ulimit -n) allows {room} connections");
        return Err(Error::Failed(text));
    }
    if arguments.idle {
        return hold(arguments);
    }
    let plan = Plan {
        target: target(arguments)?,
        connections: arguments.connections.get(),
        warmup: arguments.warmup,
        duration: arguments.duration,
        work: work(arguments),
    };
    let outcome = load::run(&local::ring()?, &plan, &mut |_| {})?;
    if arguments.json {
        let json = serde_json::to_string(&outcome.summary())
            .map_err(|error| Error::Failed(error.to_string()))?;
        return print(&format!("{json}\n"));
    }
    print(&text(&outcome))
}

/// Keeps this thread on one CPU, when one is named.
pub(super) fn pin(cpu: Option<usize>) -> Result<(), Error> {
    cpu.map_or(Ok(()), |cpu| {
        limits::pin_to(cpu).map_err(Error::while_doing(format!("using CPU {cpu}")))
    })
}

fn target(arguments: &Arguments) -> Result<Target, Error> {
    let mut target = Target::from(arguments.address);
    if let Some(file) = &arguments.tls {
        let certificate = CertificateDer::from_pem_file(file)
            .map_err(|error| Error::Failed(format!("{}: {error}", file.display())))?;
        let tls = Tls::new(&certificate)?;
        target.tls = Some(match arguments.resume {
            true => tls.resumed(),
            false => tls,
        });
    }
    Ok(target)
}

fn work(arguments: &Arguments) -> Work {
    let size = arguments.size.get();
    match (arguments.rate, arguments.download) {
        (Some(per_second), _) if arguments.new_connections => Work::NewConnectionsAtRate {
            size,
            per_second: per_second.get(),
        },
        (Some(per_second), _) => Work::Rate {
            size,
            per_second: per_second.get(),
        },
        (_, Some(bytes)) => Work::Download { bytes: bytes.get() },
        _ if arguments.new_connections => Work::NewConnections { size },
        _ => Work::Saturate { size },
    }
}

fn hold(arguments: &Arguments) -> Result<(), Error> {
    let ring = local::ring()?;
    let count = arguments.connections.get();
    let held = load::open(&ring, &target(arguments)?, count, arguments.size.get())?;
    print(&format!(
        "{count} connections are open and had one exchange each; held for {}\n",
        humantime::format_duration(arguments.duration)
    ))?;
    local::pass(&ring, arguments.duration)?;
    drop(held);
    Ok(())
}

fn text(outcome: &Outcome) -> String {
    let latency = &outcome.latency;
    let mut text = format!(
        "requests    {} in {:.2} s, {} errors, {} unanswered\n\
         throughput  {:.0} requests/s, {:.1} MB/s received\n\
         latency µs  p50 {:.1}  p90 {:.1}  p99 {:.1}  p99.9 {:.1}  max {:.1}\n\
         generator   {:.0} % of its core\n",
        outcome.completed,
        outcome.elapsed.as_secs_f64(),
        outcome.errors,
        outcome.unanswered,
        outcome.throughput(),
        outcome.bytes as f64 / 1e6 / outcome.elapsed.as_secs_f64(),
        latency.quantile_us(0.5),
        latency.quantile_us(0.9),
        latency.quantile_us(0.99),
        latency.quantile_us(0.999),
        latency.max_us(),
        outcome.busy() * 100.0,
    );
    for (kind, count) in outcome.losses.kinds() {
        if count > 0 {
            text.push_str(&format!("            {count} {kind}\n"));
        }
    }
    if outcome.lateness.count() > 0 {
        text.push_str(&format!(
            "            p50 {:.1} µs, p99 {:.1} µs late with what was due\n",
            outcome.lateness.quantile_us(0.5),
            outcome.lateness.quantile_us(0.99),
        ));
    } else if outcome.busy() > 0.95 {
        text.push_str("the generator had no time left: it may be what limits the throughput\n");
    }
    text
}
