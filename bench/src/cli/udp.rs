//! `ringress-bench udp ADDRESS`: datagrams to anything that echoes, or bursts to and from a backend.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU8, NonZeroU64, NonZeroUsize};
use std::time::Duration;

use serde::Serialize;

use super::{print, tcp};
use crate::load::Summary;
use crate::udp::{self, Bursts, Faults, HEAD_BYTES, MOST_BYTES, Outcome, Plan, Work};
use crate::{Error, local};

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// ip:port of a backend (`ringress-bench backend --udp` or `--udp-bursts`), or of a proxy in front of
    /// one
    address: SocketAddr,
    /// Sockets at once, each with a port of its own
    #[arg(long, default_value = "64")]
    sources: NonZeroUsize,
    /// Addresses that the sockets have in turn, such as 127.0.0.2-127.0.0.9
    #[arg(long, value_name = "IP[-IP]", value_parser = addresses)]
    from: Option<Range>,
    /// Time that is counted, such as 10s
    #[arg(long, default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Time before counting starts
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    warmup: Duration,
    /// Bytes of a datagram, 28 to 65507
    #[arg(long, default_value = "128", value_parser = size)]
    size: usize,
    /// Datagrams per second at fixed times, over all sockets; without it as many as go
    #[arg(long, conflicts_with_all = ["outstanding", "segments"])]
    rate: Option<NonZeroU64>,
    /// Datagrams, or with --segments bursts, that a socket has under way at once
    #[arg(long, default_value = "1")]
    outstanding: NonZeroUsize,
    /// Send bursts of so many datagrams, each with one call (backend --udp-bursts)
    #[arg(long)]
    segments: Option<NonZeroU8>,
    /// Have such bursts sent by the backend instead
    #[arg(long, requires = "segments")]
    download: bool,
    /// What has no answer after this long is lost
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Run on this CPU only
    #[arg(long)]
    cpu: Option<usize>,
    /// Print JSON with the whole histogram
    #[arg(long)]
    json: bool,
}

/// Addresses, both included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Range {
    first: IpAddr,
    last: IpAddr,
}

fn addresses(text: &str) -> Result<Range, String> {
    let parse = |text: &str| text.parse::<IpAddr>().map_err(|error| error.to_string());
    let Some((first, last)) = text.split_once('-') else {
        let only = parse(text)?;
        return Ok(Range {
            first: only,
            last: only,
        });
    };
    let (first, last) = (parse(first)?, parse(last)?);
    match (first, last) {
        (IpAddr::V4(_), IpAddr::V4(_)) if first <= last => Ok(Range { first, last }),
        _ => Err("must be IPv4 addresses in order".to_owned()),
    }
}

impl Range {
    fn all(self) -> Vec<IpAddr> {
        match (self.first, self.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => (first.to_bits()..=last.to_bits())
                .map(|bits| Ipv4Addr::from_bits(bits).into())
                .collect(),
            (first, _) => vec![first],
        }
    }
}

fn size(text: &str) -> Result<usize, String> {
    let size = text.parse().map_err(|_| "not a number".to_owned())?;
    match (HEAD_BYTES..=MOST_BYTES).contains(&size) {
        true => Ok(size),
        false => Err(format!("must be {HEAD_BYTES} to {MOST_BYTES}")),
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    load: Summary,
    datagrams: Faults,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Error> {
    tcp::pin(arguments.cpu)?;
    let room = local::room_for(1)?;
    if arguments.sources.get() as u64 > room {
        let text = format!("the limit of descriptors (ulimit -n) allows {room} sockets");
        return Err(Error::Failed(text));
    }
    let plan = Plan {
        target: arguments.address,
        sources: arguments.sources.get(),
        from: arguments.from.map_or_else(Vec::new, Range::all),
        warmup: arguments.warmup,
        duration: arguments.duration,
        timeout: arguments.timeout,
        work: work(arguments)?,
    };
    let outcome = udp::run(&plan, &mut [], &mut |_| {})?;
    if arguments.json {
        let report = Report {
            load: outcome.load.summary(),
            datagrams: outcome.faults,
        };
        let json =
            serde_json::to_string(&report).map_err(|error| Error::Failed(error.to_string()))?;
        return print(&format!("{json}\n"));
    }
    print(&text(arguments, &outcome))
}

fn work(arguments: &Arguments) -> Result<Work, Error> {
    let (size, outstanding) = (arguments.size, arguments.outstanding.get());
    let Some(segments) = arguments.segments else {
        return Ok(match arguments.rate {
            Some(per_second) => Work::Rate {
                size,
                per_second: per_second.get(),
            },
            None => Work::Saturate { size, outstanding },
        });
    };
    let bursts = Bursts {
        size,
        segments: segments.get(),
        window: outstanding,
    };
    if bursts.bytes() > MOST_BYTES {
        let bytes = bursts.bytes();
        let text = format!("a burst would have {bytes} B, {MOST_BYTES} are the most");
        return Err(Error::Failed(text));
    }
    Ok(match arguments.download {
        true => Work::Download(bursts),
        false => Work::Upload(bursts),
    })
}

fn text(arguments: &Arguments, Outcome { load, faults }: &Outcome) -> String {
    let latency = &load.latency;
    let what = match arguments.segments {
        Some(_) => "bursts    ",
        None => "datagrams ",
    };
    let share = faults.lost as f64 / faults.sent.max(1) as f64;
    let mut text = format!(
        "{what}  {} answered in {:.2} s\n\
         throughput  {:.0}/s, {:.1} MB/s\n\
         latency µs  p50 {:.1}  p90 {:.1}  p99 {:.1}  p99.9 {:.1}  max {:.1}\n\
         generator   {:.0} % of its core\n\
         loss        {} of {} datagrams, warm-up included ({:.4} %)\n",
        load.completed,
        load.elapsed.as_secs_f64(),
        load.throughput(),
        load.bytes as f64 / 1e6 / load.elapsed.as_secs_f64(),
        latency.quantile_us(0.5),
        latency.quantile_us(0.9),
        latency.quantile_us(0.99),
        latency.quantile_us(0.999),
        latency.max_us(),
        load.busy() * 100.0,
        faults.lost,
        faults.sent,
        share * 100.0,
    );
    for (kind, count) in faults.kinds().iter().filter(|(_, count)| *count > 0) {
        text.push_str(&format!("            {count} {kind}\n"));
    }
    if load.lateness.count() > 0 {
        text.push_str(&format!(
            "            p50 {:.1} µs, p99 {:.1} µs late with what was due\n",
            load.lateness.quantile_us(0.5),
            load.lateness.quantile_us(0.99),
        ));
    } else if load.busy() > 0.95 {
        text.push_str("the generator had no time left: it may be what limits the throughput\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_both_its_ends() {
        let range = addresses("127.0.0.254-127.0.1.1").expect("it is one");
        let all: Vec<String> = range.all().iter().map(IpAddr::to_string).collect();
        assert_eq!(
            all,
            ["127.0.0.254", "127.0.0.255", "127.0.1.0", "127.0.1.1"]
        );
        assert_eq!(addresses("::1").expect("it is one").all().len(), 1);
        assert!(addresses("127.0.0.2-127.0.0.1").is_err());
        assert!(addresses("::1-::5").is_err());
    }
}
