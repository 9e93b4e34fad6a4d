//! Renderings that are shared: whoever asks for one while it is under way, or has just been made, gets the
//! same, so that a thousand scrapes cost what one does.

use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use rustix::process::setpriority_process;
use rustix::thread::gettid;
use tokio::sync::{Mutex, oneshot};
use tokio::task::spawn_local;
use tokio::time::Instant;

use super::ask::{Ask, Asking};
use super::metrics::{self, Format};

/// How old one may be.
const FRESH: Duration = Duration::from_millis(250);

/// How far the thread that renders stands back: where every core is taken, it gets a tenth of one.
const NICE: i32 = 10;

/// What `make` makes, on a thread that lets others in front: workers have the same cores. `None` = there is no
/// such thread to be had.
async fn beside<T: Send + 'static>(make: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (tell, told) = oneshot::channel();
    let thread = thread::Builder::new().name("rendering".to_owned());
    let work = move || {
        // It is right without that, too.
        let _ = setpriority_process(Some(gettid()), NICE);
        // Whoever asked may have gone.
        let _ = tell.send(make());
    };
    thread.spawn(work).ok()?;
    told.await.ok()
}

/// The last ones. Who has the lock makes the next one.
pub(super) struct Renderings {
    metrics: [Slot; Format::ALL.len()],
    status: Slot,
}

type Slot = Arc<Mutex<Option<Rendering>>>;

struct Rendering {
    begun: Instant,
    bytes: Bytes,
}

impl Renderings {
    pub(super) fn new() -> Self {
        Self {
            metrics: Format::ALL.map(|_| Arc::default()),
            status: Arc::default(),
        }
    }

    /// One that is fresh; `None` = the process is ending. Once begun it is made even if nobody waits for it
    /// any more, so that there is never more than one under way.
    pub(super) async fn get(&self, format: Format, asking: &Rc<Asking>) -> Option<Bytes> {
        let mut slot = self.metrics[format as usize].clone().lock_owned().await;
        if let Some(last) = slot.as_ref().filter(|it| it.begun.elapsed() < FRESH) {
            return Some(last.bytes.clone());
        }
        let asking = asking.clone();
        let making = spawn_local(async move {
            let begun = Instant::now();
            let source = asking.ask(Ask::Source).await?;
            let bytes = beside(move || metrics::render(&source, format)).await?;
            let shared = bytes.clone();
            *slot = Some(Rendering {
                begun,
                bytes: shared,
            });
            Some(bytes)
        });
        making.await.ok().flatten()
    }

    /// The status as JSON, as of a moment after it was asked for: whoever has just ordered something sees what
    /// came of it. Those who wait at the same time get the same.
    pub(super) async fn status(&self, asking: &Rc<Asking>) -> Option<Bytes> {
        let asked = Instant::now();
        let mut slot = self.status.lock().await;
        if let Some(last) = slot.as_ref().filter(|it| it.begun >= asked) {
            return Some(last.bytes.clone());
        }
        let begun = Instant::now();
        let status = asking.ask(Ask::Status).await?;
        let mut json = serde_json::to_vec(&status).unwrap_or_default();
        json.push(b'\n');
        let bytes = Bytes::from(json);
        let shared = bytes.clone();
        *slot = Some(Rendering {
            begun,
            bytes: shared,
        });
        Some(bytes)
    }
}
