//! `ringress-bench compare`: what `make bench` runs.

use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

use super::print;
use crate::Error;
use crate::compare::{self, Comparison, Wanted};
use crate::peers::{self, Peer, Place, Protocol};
use crate::report::{self, say};
use crate::scenario::Scenario;

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// These scenarios only
    #[arg(long, value_name = "SCENARIO", value_delimiter = ',')]
    only: Vec<Scenario>,
    /// All scenarios with datagrams, which otherwise take part only when they are named
    #[arg(long, conflicts_with = "only")]
    udp: bool,
    /// All scenarios with TLS; likewise
    #[arg(long, conflicts_with_all = ["only", "udp"])]
    tls: bool,
    /// These proxies only; ringress-policies takes part only when it is named
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = peers::NAMES)]
    peers: Vec<String>,
    /// Rounds of every scenario
    #[arg(long)]
    rounds: Option<NonZeroUsize>,
    /// Seconds of a round
    #[arg(long, value_parser = seconds)]
    seconds: Option<Duration>,
    /// ringress's binary; without it the one beside this program
    #[arg(long, value_name = "PATH")]
    ringress: Option<PathBuf>,
    /// Where the JSON goes; without it target/bench/TIME.json
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
    /// Print the proxies' configurations and end
    #[arg(long)]
    show_configs: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "must be more than 0".to_owned())
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Error> {
    let is_wanted = |name: &str| match arguments.peers.as_slice() {
        [] => peers::is_in_every_run(name),
        wanted => wanted.iter().any(|wanted| wanted == name),
    };
    let found = find(arguments.ringress.as_deref(), is_wanted)?;
    if arguments.show_configs {
        return show_configurations(&found);
    }
    let folder = std::env::temp_dir().join(format!("ringress-bench-{}", std::process::id()));
    let wanted = Wanted {
        scenarios: match arguments.only.as_slice() {
            [] if arguments.udp => Scenario::WITH_UDP.to_vec(),
            [] if arguments.tls => Scenario::WITH_TLS.to_vec(),
            [] => Scenario::WITH_TCP.to_vec(),
            only => only.to_vec(),
        },
        peers: found,
        rounds: arguments.rounds.map(NonZeroUsize::get),
        duration: arguments.seconds,
        folder,
    };
    let comparison = compare::compare(&wanted)?;
    compare::clear(&wanted.folder);
    let json = write_json(arguments, &comparison)?;
    print(&report::markdown(&comparison))?;
    say(&format!(
        "everything, with all histograms: {}",
        json.display()
    ));
    Ok(())
}

/// The proxies that are wanted and there. One that is not is named. Without `ringress` its binary is the
/// one beside this program.
pub(super) fn find(
    ringress: Option<&Path>,
    is_wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Peer>, Error> {
    let binary = match ringress {
        Some(path) => path.to_owned(),
        None => std::env::current_exe()
            .map_err(Error::while_doing("looking for this program"))?
            .with_file_name("ringress"),
    };
    let mut there = Vec::new();
    for found in peers::find(&binary) {
        match found {
            Ok(peer) if is_wanted(peer.name) => there.push(peer),
            Err(missing) if is_wanted(missing.name) => {
                say(&format!("without {}: {}", missing.name, missing.why));
            }
            _ => {}
        }
    }
    if there.is_empty() {
        return Err(Error::Failed("no proxy to measure".to_owned()));
    }
    Ok(there)
}

fn show_configurations(peers: &[Peer]) -> Result<(), Error> {
    let mut place = Place {
        folder: Path::new("FOLDER"),
        protocol: Protocol::Tcp,
        listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
        backends: &[1, 2].map(|host| SocketAddr::from(([127, 0, 0, host], 9000))),
        change: None,
    };
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Tls] {
        place.protocol = protocol;
        for peer in peers.iter().filter(|peer| peer.speaks(protocol)) {
            show_configuration(peer, &place)?;
        }
    }
    Ok(())
}

fn show_configuration(peer: &Peer, place: &Place<'_>) -> Result<(), Error> {
    let launch = peer.launch(place);
    let arguments: Vec<_> = launch
        .arguments
        .iter()
        .map(|argument| argument.to_string_lossy())
        .collect();
    print(&format!(
        "# {}: {}\n# {} {}\n{}\n",
        peer.name,
        peer.version,
        peer.program.display(),
        arguments.join(" "),
        launch.text
    ))
}

fn write_json(arguments: &Arguments, comparison: &Comparison) -> Result<PathBuf, Error> {
    let path = arguments.json.clone().unwrap_or_else(|| {
        #[expect(
            clippy::disallowed_methods,
            reason = "a file's name, by which nothing is measured"
        )]
        let now = clock_gettime(ClockId::Realtime).tv_sec.unsigned_abs();
        let time = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(now));
        PathBuf::from(format!("target/bench/{time}.json"))
    });
    let text = serde_json::to_string(comparison).map_err(|e| Error::Failed(e.to_string()))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let writing = || Error::while_doing(format!("writing {}", path.display()));
    fs::create_dir_all(folder).map_err(writing())?;
    fs::write(&path, text).map_err(writing())?;
    Ok(path)
}
