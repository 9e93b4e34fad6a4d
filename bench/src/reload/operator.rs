//! Who gives the orders, and meanwhile looks at what the proxy takes up.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use ringress::ring::now;
use ringress::time::Instant;
use rustix::process::{Pid, kill_process};
use serde::Serialize;
use serde_json::Value;

use super::Footprint;
use crate::error::Error;
use crate::peers::{Heir, LOG, Peer, Place};
use crate::procstat;

/// What is ordered, how often, in which time. The orders are spread evenly.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Orders {
    pub(crate) kind: Kind,
    pub(crate) count: usize,
    pub(crate) over: Duration,
    /// A listener comes and goes as well.
    pub(crate) listener: bool,
}

/// What is ordered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// A signal.
    Reload,
    /// `ringress upgrade`, with one worker and with two in turn.
    Upgrade,
}

impl fmt::Display for Orders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            Kind::Reload => "reloads",
            Kind::Upgrade => "upgrades",
        };
        let seconds = self.over.as_secs_f64();
        write!(f, "{} {what} in {seconds} s", self.count)
    }
}

/// How often it looks at the proxy's processes; oftener when orders come faster.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The operator of one proxy.
pub(super) struct Operator {
    orders: Orders,
    peer: Peer,
    folder: PathBuf,
    /// The configuration file, and what stands in it after an odd and an even number of orders.
    file: PathBuf,
    texts: [String; 2],
    /// The process that was started and those that took over from it.
    roots: Vec<u32>,
    pub(super) heirs: Vec<Heir>,
    pub(super) given: usize,
    pub(super) complaints: Vec<String>,
    /// Every process that was seen once.
    seen: BTreeSet<u32>,
    seen_at_first: usize,
    pub(super) most_memory: u64,
    pub(super) most_processes: usize,
    /// Of the proxy, in the last watch.
    pub(super) cpu: Duration,
}

impl Operator {
    /// Of a proxy whose first process is `root`; it was started with the second of `places`.
    ///
    /// # Errors
    /// The configurations can't be written.
    pub(super) fn new(
        orders: Orders,
        peer: &Peer,
        places: [&Place<'_>; 2],
        root: u32,
    ) -> Result<Self, Error> {
        let launches = places.map(|place| peer.launch(place));
        let folder = places[0].folder.to_owned();
        let mut operator = Self {
            orders,
            peer: peer.clone(),
            file: folder.join(launches[0].file),
            folder,
            texts: launches.map(|launch| launch.text),
            roots: vec![root],
            heirs: Vec::new(),
            given: 0,
            complaints: Vec::new(),
            seen: BTreeSet::new(),
            seen_at_first: 0,
            most_memory: 0,
            most_processes: 0,
            cpu: Duration::ZERO,
        };
        for (turn, text) in operator.texts.iter().enumerate() {
            let ready = operator.ready(turn);
            let doing = format!("writing {}", ready.display());
            fs::write(ready, text).map_err(Error::while_doing(doing))?;
        }
        operator.look();
        operator.seen_at_first = operator.seen.len();
        Ok(operator)
    }

    /// Where a configuration waits for its turn.
    fn ready(&self, turn: usize) -> PathBuf {
        self.file.with_extension(turn.to_string())
    }

    /// The configurations that take turns.
    pub(super) fn configurations(&self) -> [String; 2] {
        self.texts.clone()
    }

    /// All processes of the proxy.
    pub(super) fn processes(&self) -> Vec<u32> {
        let families = self.roots.iter().flat_map(|root| procstat::family(*root));
        families.collect::<BTreeSet<u32>>().into_iter().collect()
    }

    /// CPU time of the proxy so far. A process that ends while it is looked at is missed, so that the most
    /// of some looks is nearest to the truth.
    fn cpu_so_far(&self) -> Duration {
        const LOOKS: usize = 3;
        let looks = (0..LOOKS).map(|_| procstat::cpu_with_ended(&self.processes()));
        looks.max().unwrap_or_default()
    }

    /// Looks on until `stopped` is, and gives its orders if it is to.
    pub(super) fn watch(mut self, gives_orders: bool, stopped: &Receiver<()>) -> Self {
        let cpu = self.cpu_so_far();
        let start = now();
        let count = if gives_orders { self.orders.count } else { 0 };
        (self.most_memory, self.most_processes) = (0, 0);
        loop {
            let wait = match self.due(start) {
                Some(due) if self.given < count => (due - now()).min(self.pause()),
                _ => self.pause(),
            };
            if stopped.recv_timeout(wait) != Err(RecvTimeoutError::Timeout) {
                break;
            }
            if self.given < count && self.due(start).is_some_and(|due| due <= now()) {
                self.give();
            }
            self.look();
        }
        self.cpu = self.cpu_so_far().saturating_sub(cpu);
        self
    }

    /// When the next order is due: in the middle of its share of the time.
    fn due(&self, start: Instant) -> Option<Instant> {
        let parts = 2 * u32::try_from(self.orders.count).ok()?;
        let place = 2 * u32::try_from(self.given).ok()? + 1;
        Some(start + self.orders.over * place / parts)
    }

    fn pause(&self) -> Duration {
        let parts = 2 * u32::try_from(self.orders.count).unwrap_or(u32::MAX / 2);
        LOOK_INTERVAL.min(self.orders.over / parts.max(1))
    }

    fn look(&mut self) {
        let living = procstat::living(&self.processes());
        let memory = procstat::anonymous_memory(&living);
        self.most_memory = self.most_memory.max(memory);
        self.most_processes = self.most_processes.max(living.len());
        self.seen.extend(living);
    }

    fn give(&mut self) {
        let next = self.ready(self.given % 2);
        self.given += 1;
        let done = put_in_place(&next, &self.file).and_then(|()| match self.orders.kind {
            Kind::Reload => self.signal(),
            Kind::Upgrade => self.upgrade(),
        });
        if let Err(what) = done {
            self.complaints
                .push(format!("order {}: {what}", self.given));
        }
    }

    fn signal(&self) -> Result<(), String> {
        let signal = self.peer.reload_signal().ok_or("it can't be reloaded")?;
        let root = self.roots.last().and_then(|root| i32::try_from(*root).ok());
        let root = root.and_then(Pid::from_raw).ok_or("it has no process")?;
        kill_process(root, signal).map_err(|error| error.to_string())
    }

    fn upgrade(&mut self) -> Result<(), String> {
        let heir = self.ask("upgrade")?["pid"].as_u64();
        let heir = heir.and_then(|id| u32::try_from(id).ok());
        let heir = Heir::new(heir.ok_or("the new process was not named")?)
            .map_err(|error| error.to_string())?;
        self.roots.push(heir.id);
        self.heirs.push(heir);
        Ok(())
    }

    /// What `ringress COMMAND` says.
    fn ask(&self, command: &str) -> Result<Value, String> {
        let output = Command::new(&self.peer.program)
            .args([command, "--format", "json", "-c"])
            .arg(&self.file)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| error.to_string())?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let value = serde_json::from_str(&said).map_err(|_| said.clone())?;
        match output.status.success() {
            true => Ok(value),
            false => Err(said),
        }
    }

    /// Orders that are known to have taken effect: ringress counts them, others have new processes for
    /// each.
    pub(super) fn took_effect(&mut self) -> usize {
        if self.orders.kind == Kind::Upgrade {
            return self.roots.len() - 1;
        }
        if !self.peer.is_ringress() {
            return self.seen.len() - self.seen_at_first;
        }
        match self.ask("status") {
            Ok(status) => {
                if let Some(error) = status["last_reload"]["error"].as_str() {
                    self.complaints.push(error.to_owned());
                }
                let generation = status["generation"].as_u64().unwrap_or(1);
                usize::try_from(generation).unwrap_or(0).saturating_sub(1)
            }
            Err(what) => {
                self.complaints.push(format!("status: {what}"));
                0
            }
        }
    }

    /// What it takes up now.
    pub(super) fn footprint(&self) -> Footprint {
        Footprint::of(&self.processes())
    }

    /// The first errors that the proxy has logged.
    pub(super) fn logged(&self) -> Vec<String> {
        const MOST: usize = 5;
        let text = [LOG, "error.log"].map(|name| {
            let text = fs::read(self.folder.join(name)).unwrap_or_default();
            String::from_utf8_lossy(&text).into_owned()
        });
        let lines = text.iter().flat_map(|text| text.lines());
        let errors = lines.filter(|line| {
            !["NOTICE", "WARNING"]
                .iter()
                .any(|level| line.contains(level))
        });
        errors.take(MOST).map(str::to_owned).collect()
    }
}

/// Puts another file in the place of `file`, at once and without writing: a file system that has bytes to
/// write when a name changes hands makes this thread wait.
fn put_in_place(next: &Path, file: &Path) -> Result<(), String> {
    let new = file.with_extension("new");
    fs::hard_link(next, &new)
        .and_then(|()| fs::rename(&new, file))
        .map_err(|error| format!("{}: {error}", file.display()))
}
