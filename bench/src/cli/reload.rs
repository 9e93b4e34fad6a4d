//! `ringress-bench reload`: what reloads and upgrades cost and lose.

use std::fs;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use super::{compare, print};
use crate::Error;
use crate::peers;
use crate::reload::{self, Kind, Orders, Wanted};

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// These proxies only; without it those that can be reloaded
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = peers::NAMES)]
    peers: Vec<String>,
    /// New connections per second at fixed times
    #[arg(long, default_value = "9000")]
    rate: NonZeroU64,
    /// Connections that are kept beside them
    #[arg(long, default_value = "0")]
    kept: usize,
    /// Exchanges per second on all kept connections together
    #[arg(long, default_value = "2000")]
    kept_rate: NonZeroU64,
    /// Reloads; every other one adds a backend, the next one removes it
    #[arg(long, default_value = "10", group = "orders")]
    reloads: NonZeroUsize,
    /// Instead of reloads: upgrades of ringress, with one worker and two in turn
    #[arg(long, group = "orders")]
    upgrades: Option<NonZeroUsize>,
    /// A listener comes and goes with the backend
    #[arg(long)]
    listener: bool,
    /// Time over which reloads or upgrades are spread, such as 12s; before them is as much quiet
    #[arg(long, default_value = "12s", value_parser = humantime::parse_duration)]
    over: Duration,
    /// ringress's binary; without it the one beside this program
    #[arg(long, value_name = "PATH")]
    ringress: Option<PathBuf>,
    /// Write everything, with all histograms, to this file as well
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Error> {
    if arguments.over.is_zero() {
        return Err(Error::Failed("--over must be more than 0".to_owned()));
    }
    let (kind, count) = match arguments.upgrades {
        Some(count) => (Kind::Upgrade, count),
        None => (Kind::Reload, arguments.reloads),
    };
    let is_wanted = |name: &str| match (arguments.peers.as_slice(), kind) {
        ([], Kind::Upgrade) => name == DEFAULT_PEERS[0],
        ([], Kind::Reload) => DEFAULT_PEERS.contains(&name),
        (wanted, _) => wanted.iter().any(|wanted| wanted == name),
    };
    let wanted = Wanted {
        peers: compare::find(arguments.ringress.as_deref(), is_wanted)?,
        rate: arguments.rate.get(),
        kept: (arguments.kept > 0).then_some((arguments.kept, arguments.kept_rate.get())),
        orders: Orders {
            kind,
            count: count.get(),
            over: arguments.over,
            listener: arguments.listener,
        },
        folder: std::env::temp_dir().join(format!("ringress-bench-{}", std::process::id())),
    };
    let others = wanted.peers.iter().filter(|peer| match kind {
        Kind::Upgrade => !peer.is_ringress(),
        Kind::Reload => peer.reload_signal().is_none(),
    });
    if let Some(other) = others.map(|peer| peer.name).next() {
        return Err(Error::Failed(format!("{other} can't do that")));
    }
    let report = reload::measure(&wanted)?;
    // What is left in a temporary folder harms nobody.
    let _ = fs::remove_dir_all(&wanted.folder);
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string(&report).map_err(|e| Error::Failed(e.to_string()))?;
        let doing = format!("writing {}", path.display());
        fs::write(path, text).map_err(Error::while_doing(doing))?;
    }
    print(&reload::markdown(&report))
}

/// ringress, and those that it is compared with here.
const DEFAULT_PEERS: [&str; 3] = ["ringress", "nginx", "haproxy"];
