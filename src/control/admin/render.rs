//! Renderings that are shared: whoever asks for one while it is under way, or has just been made, gets the
//! same, so that a thousand scrapes cost what one does.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::task::{spawn_blocking, spawn_local};
use tokio::time::Instant;

use super::ask::{Ask, Asking};
use super::metrics::{self, Format};

/// How old one may be.
const FRESH: Duration = Duration::from_millis(250);

/// The last rendering of each format. Who has the lock makes the next one.
pub(super) struct Renderings([Arc<Mutex<Option<Rendering>>>; Format::ALL.len()]);

struct Rendering {
    made: Instant,
    bytes: Bytes,
}

impl Renderings {
    pub(super) fn new() -> Self {
        Self(Format::ALL.map(|_| Arc::default()))
    }

    /// One that is fresh; `None` = the process is ending. Once begun it is made even if nobody waits for it
    /// any more, so that there is never more than one under way.
    pub(super) async fn get(&self, format: Format, asking: &Rc<Asking>) -> Option<Bytes> {
        let mut slot = self.0[format as usize].clone().lock_owned().await;
        if let Some(last) = slot.as_ref().filter(|it| it.made.elapsed() < FRESH) {
            return Some(last.bytes.clone());
        }
        let asking = asking.clone();
        let making = spawn_local(async move {
            let source = asking.ask(Ask::Source).await?;
            let made = spawn_blocking(move || metrics::render(&source, format));
            let bytes = made.await.ok()?;
            *slot = Some(Rendering {
                made: Instant::now(),
                bytes: bytes.clone(),
            });
            Some(bytes)
        });
        making.await.ok().flatten()
    }
}
