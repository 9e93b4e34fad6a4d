//! Reading the configuration again, on a thread of its own: reading and resolving names may block for as
//! long as they like without holding up a signal.
//!
//! ```text
//!   idle ──request──▶ loading ──the file is read──▶ loaded ──taken──▶ idle, or loading if it was asked
//!                        └─request: once more after this──┘              for again meanwhile
//! ```

use std::path::Path;
use std::thread;

use tokio::sync::oneshot;

use super::socket::Reply;
use crate::config::{self, Config, Diagnostics, KeepingResolver};
use crate::tls::LoadError;

/// Where the reading stands.
#[derive(Default)]
pub(super) struct Reload {
    stage: Stage,
    /// Who waits for the outcome.
    asking: Vec<Answer>,
    /// It was asked for again while the file was being read, by signal or by these.
    again: Option<Vec<Answer>>,
}

#[derive(Default)]
enum Stage {
    #[default]
    Idle,
    Loading(oneshot::Receiver<Loaded>),
    Loaded(Loaded),
}

/// What the file holds; `None` if the thread that read it failed.
pub(super) type Loaded = Option<Result<Box<Read>, Box<Diagnostics>>>;

/// A configuration, and what it goes by.
pub(super) struct Read {
    pub(super) config: Config,
    /// What is wrong with files of certificates whose old content is used.
    pub(super) kept: Vec<LoadError>,
}

/// How somebody is told the outcome.
pub(super) type Answer = oneshot::Sender<Reply>;

impl Reload {
    /// Begins to read `source`, which is to follow `present`, or to read it again after the present reading,
    /// which may have begun before the file was changed. A storm of requests is two readings.
    pub(super) fn request(&mut self, source: &Path, present: &Config, answer: Option<Answer>) {
        if self.is_under_way() {
            self.again.get_or_insert_default().extend(answer);
            return;
        }
        self.asking.extend(answer);
        let path = source.to_owned();
        let resolver = KeepingResolver::new(present);
        let (sender, receiver) = oneshot::channel();
        // The receiver is gone when the process ends meanwhile.
        let load = move || drop(sender.send(Some(read(&path, resolver))));
        let thread = thread::Builder::new().name("reload".to_owned());
        self.stage = match thread.spawn(load) {
            Ok(_) => Stage::Loading(receiver),
            Err(error) => {
                tracing::error!(%error, "no thread to read the configuration");
                Stage::Loaded(None)
            }
        };
    }

    /// Something is being read, or was and is not taken yet.
    pub(super) fn is_under_way(&self) -> bool {
        !matches!(self.stage, Stage::Idle)
    }

    /// The file has been read, and is to be taken.
    pub(super) fn is_loaded(&self) -> bool {
        matches!(self.stage, Stage::Loaded(_))
    }

    /// Waits until the file has been read; for ever when nothing was asked for. It is then to be taken.
    pub(super) async fn loaded(&mut self) {
        match &mut self.stage {
            Stage::Idle => std::future::pending().await,
            Stage::Loading(loading) => {
                let loaded = loading.await.ok().flatten();
                self.stage = Stage::Loaded(loaded);
            }
            Stage::Loaded(_) => {}
        }
    }

    /// What was read, and who waits for what becomes of it. What was asked for meanwhile is begun by
    /// [`Reload::go_on`].
    pub(super) fn take(&mut self) -> (Loaded, Vec<Answer>) {
        let loaded = match std::mem::take(&mut self.stage) {
            Stage::Loaded(loaded) => loaded,
            Stage::Idle | Stage::Loading(_) => None,
        };
        (loaded, std::mem::take(&mut self.asking))
    }

    /// Begins to read again if that was asked for while the file was being read. `present` is what came of
    /// that.
    pub(super) fn go_on(&mut self, source: &Path, present: &Config) {
        if let Some(again) = self.again.take() {
            self.request(source, present, None);
            self.asking.extend(again);
        }
    }
}

fn read(path: &Path, mut resolver: KeepingResolver) -> Result<Box<Read>, Box<Diagnostics>> {
    let config = config::load_with(path, &mut resolver)?;
    Ok(Box::new(Read {
        config,
        kept: resolver.into_kept(),
    }))
}
