//! Certificates, keys and authorities change while the process runs: their files are watched, and what
//! they hold takes effect as soon as it can be used. A pair that doesn't fit, or can't be read, leaves what
//! was there in use, which is told once. No session notices any of that.
//!
//! | file | owns |
//! |---|---|
//! | `mod` | when files are looked at |
//! | `material` | what a configuration has from files, and how it is put in place |
//! | `reader` | the thread that looks at files |
//! | `watch`, `links` | which folders the kernel watches |
//! | `faults`, `expiry` | what people are told, and when |
//!
//! ```text
//!   idle ──a folder has changed, SETTLING later; every SLOW──▶ reading, on a thread ──▶ idle
//! ```

mod expiry;
mod faults;
mod links;
mod material;
mod reader;
#[cfg(test)]
mod tests;
mod watch;

use std::path::Path;
use std::thread;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};

use self::expiry::Expiry;
pub(super) use self::expiry::date;
use self::faults::Faults;
pub(super) use self::faults::log_wrong;
pub(super) use self::material::{Found, Material, materials, of_listener, of_upstream};
use self::reader::Reader;
use self::watch::{Event, Events};
use super::health;
use super::process::Process;
use crate::config::Config;
use crate::tls::LoadError;

/// From the first sign of a change to the look at the files: whoever changes one often changes another.
const SETTLING: Duration = Duration::from_millis(50);
/// From one look to the next where there is no sign: some file systems don't give any.
const SLOW: Duration = Duration::from_secs(30);

/// The files of the configuration in effect.
pub(super) struct Certificates {
    /// `None` = nothing is to be watched, or this kernel has no watch left for us.
    events: Option<Events>,
    stage: Stage,
    /// Another configuration has come meanwhile: its files.
    next: Option<Vec<Material>>,
    /// When they are looked at, or are looked at again.
    due: Instant,
    faults: Faults,
    expiry: Expiry,
}

enum Stage {
    /// There are none.
    Nothing,
    Idle(Reader),
    Reading(oneshot::Receiver<Reader>),
}

impl Certificates {
    /// Of no configuration.
    pub(super) fn new() -> Self {
        Self {
            events: None,
            stage: Stage::Nothing,
            next: None,
            due: Instant::now(),
            faults: Faults::default(),
            expiry: Expiry::default(),
        }
    }

    /// The files are those of `config` from now on, and are looked at soon. Runs within a runtime.
    pub(super) fn follow(&mut self, config: &Config) {
        let materials = material::distinct(config);
        self.due = Instant::now();
        match &mut self.stage {
            Stage::Reading(_) => self.next = Some(materials),
            Stage::Idle(reader) => reader.follow(materials),
            Stage::Nothing if materials.is_empty() => {}
            Stage::Nothing => {
                self.events = events();
                let watches = self.events.as_ref().map(Events::watches);
                self.stage = Stage::Idle(Reader::new(materials, watches));
            }
        }
    }

    /// Why the old content of these files is in use, if it is.
    pub(super) fn fault(&self, files: &[&Path]) -> Option<&LoadError> {
        self.faults.of(files)
    }

    /// These were told already.
    pub(super) fn told(&mut self, errors: &[LoadError]) {
        self.faults.told(errors);
    }

    /// Waits until files were looked at. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Found {
        loop {
            let soon = match &mut self.stage {
                Stage::Nothing => std::future::pending().await,
                Stage::Idle(reader) => tokio::select! {
                    () = changed(&mut self.events, |event| reader.is_about(event)) => true,
                    () = sleep_until(self.due) => {
                        self.begin();
                        false
                    }
                },
                Stage::Reading(reading) => tokio::select! {
                    // What is watched is changing, too: it may be about anything.
                    () = changed(&mut self.events, |_| true) => true,
                    reader = reading => match self.take(reader.ok()) {
                        Some(found) => return found,
                        None => false,
                    },
                },
            };
            if soon {
                self.due = self.due.min(Instant::now() + SETTLING);
            }
        }
    }

    /// Looks at the files, on a thread of its own: that may block.
    fn begin(&mut self) {
        self.due = Instant::now() + SLOW;
        let Stage::Idle(mut reader) = std::mem::replace(&mut self.stage, Stage::Nothing) else {
            return;
        };
        let (sender, receiver) = oneshot::channel();
        let read = move || {
            reader.read();
            // The receiver is gone when the process ends meanwhile.
            let _ = sender.send(reader);
        };
        let thread = thread::Builder::new().name("certificates".to_owned());
        self.stage = Stage::Reading(receiver);
        if let Err(error) = thread.spawn(read) {
            tracing::error!(%error, "no thread to read certificates");
        }
    }

    /// What came of a look; `None` if it was one at the files of another configuration.
    fn take(&mut self, reader: Option<Reader>) -> Option<Found> {
        let Some(mut reader) = reader else {
            tracing::error!("certificates are not looked at any more until the next reload");
            self.stage = Stage::Nothing;
            return None;
        };
        if let Some(materials) = self.next.take() {
            reader.follow(materials);
            self.stage = Stage::Idle(reader);
            self.due = Instant::now();
            return None;
        }
        let now = Instant::now();
        let found = reader.found();
        self.stage = Stage::Idle(reader);
        self.faults.note(&found, now).iter().for_each(faults::log);
        self.due = self.faults.due().map_or(self.due, |due| due.min(self.due));
        let unix = expiry::unix_seconds();
        let pairs = found.pairs();
        self.expiry.note(pairs, unix).iter().for_each(expiry::log);
        Some(found)
    }
}

fn events() -> Option<Events> {
    let events = Events::new().inspect_err(|error| {
        tracing::warn!(%error, every = ?SLOW, "files of certificates can't be watched, and are looked at now and then");
    });
    events.ok()
}

/// Waits for a sign that matters; for ever where there are none.
async fn changed(events: &mut Option<Events>, matters: impl Fn(&Event<'_>) -> bool) {
    match events {
        Some(events) => events.next(matters).await,
        None => std::future::pending().await,
    }
}

/// Says whose backends may be anybody.
pub(super) fn warn_of_unverified(config: &Config) {
    for upstream in &config.upstreams {
        let tls = upstream.tls.as_ref();
        if tls.is_some_and(|tls| tls.authorities.is_none()) {
            let name = &upstream.name;
            tracing::warn!(upstream = %name, "backends of upstream {name:?} are not verified");
        }
    }
}

impl Process {
    /// What was found takes effect for new sessions. The configuration is of no other generation.
    pub(super) fn renew_certificates(&mut self, found: &Found) {
        let renewed = found.put(&mut self.config);
        if renewed.is_empty() {
            return;
        }
        self.shared.renew_tls(&self.config);
        let targets = health::targets(&self.config, &self.shared);
        self.probers.reconcile(targets);
        renewed.iter().for_each(material::Renewal::log);
    }
}
