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

use crate::config::{self, Config, Diagnostics};

/// Where the reading stands.
#[derive(Default)]
pub(super) struct Reload {
    stage: Stage,
    /// It was asked for again while the file was being read.
    again: bool,
}

#[derive(Default)]
enum Stage {
    #[default]
    Idle,
    Loading(oneshot::Receiver<Loaded>),
    Loaded(Loaded),
}

/// What the file holds; `None` if the thread that read it failed.
pub(super) type Loaded = Option<Result<Config, Box<Diagnostics>>>;

impl Reload {
    /// Begins to read `source`, or to read it again after the present reading. A storm of requests is
    /// two readings.
    pub(super) fn request(&mut self, source: &Path) {
        if !matches!(self.stage, Stage::Idle) {
            self.again = true;
            return;
        }
        let path = source.to_owned();
        let (sender, receiver) = oneshot::channel();
        // The receiver is gone when the process ends meanwhile.
        let load = move || drop(sender.send(Some(config::load(&path).map_err(Box::new))));
        let thread = thread::Builder::new().name("reload".to_owned());
        self.stage = match thread.spawn(load) {
            Ok(_) => Stage::Loading(receiver),
            Err(error) => {
                tracing::error!(%error, "no thread to read the configuration");
                Stage::Loaded(None)
            }
        };
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

    /// What was read, and begins to read again if that was asked for meanwhile.
    pub(super) fn take(&mut self, source: &Path) -> Loaded {
        let Stage::Loaded(loaded) = std::mem::take(&mut self.stage) else {
            return None;
        };
        if std::mem::take(&mut self.again) {
            self.request(source);
        }
        loaded
    }
}
