//! Renderings that are shared: whoever asks for one while it is under way, or has just been made, gets the
//! same, so that a thousand scrapes cost what one does. Whoever reads slowly keeps one alive, and of those
//! there are only so many.

use std::future::Future;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use rustix::process::setpriority_process;
use rustix::thread::gettid;
use tokio::sync::{Mutex, OwnedMutexGuard, oneshot};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

use super::answer;
use super::ask::{Ask, Asking};
use super::metrics::{self, Format};
use crate::config::effective;

/// For metrics: of ten thousand backends they are tens of MiB, and there may be a new one every 250 ms, so that
/// it is better to show an older one than to keep one for each who doesn't read.
const METRICS: Terms = Terms {
    fresh: Duration::from_millis(250),
    held_max: 4,
    old_will_do: true,
};

/// For what has to be as it is now: whoever has just ordered something sees what came of it.
const AS_IT_IS: Terms = Terms {
    fresh: Duration::ZERO,
    held_max: 16,
    old_will_do: false,
};

/// When the newest rendering will do.
#[derive(Clone, Copy)]
struct Terms {
    /// It was begun so shortly before it is asked for, or later.
    fresh: Duration,
    /// So many are still being read,
    held_max: usize,
    /// and an older one is right.
    old_will_do: bool,
}

/// How often it is looked whether a rendering is still of use.
const TIDY: Duration = Duration::from_secs(1);

/// How far the thread that renders stands back: where every core is taken, it gets a tenth of one.
const NICE: i32 = 10;

/// Why there is nothing to show.
#[derive(Debug)]
pub(super) enum Failure {
    /// The process is ending.
    Ending,
    /// There is no thread to be had that renders.
    Thread(io::Error),
    /// What renders has panicked.
    Panicked,
    /// As many as may be kept are being read.
    Held,
}

/// What `make` makes, on a thread that lets others in front: workers have the same cores.
async fn beside<T: Send + 'static>(
    make: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Failure> {
    let (tell, told) = oneshot::channel();
    let thread = thread::Builder::new().name("rendering".to_owned());
    let work = move || {
        // It is right without that, too.
        let _ = setpriority_process(Some(gettid()), NICE);
        // Whoever asked may have gone.
        let _ = tell.send(make());
    };
    thread.spawn(work).map_err(Failure::Thread)?;
    told.await.map_err(|_| Failure::Panicked)
}

/// The last ones of each kind. Who has the lock makes the next one.
pub(super) struct Renderings {
    metrics: [Slot; Format::ALL.len()],
    status: Slot,
    /// As TOML, and as JSON.
    config: [Slot; 2],
}

/// The newest last. The others are kept as long as somebody reads them, to be counted.
type Slot = Arc<Mutex<Vec<Rendering>>>;

struct Rendering {
    begun: Instant,
    bytes: Bytes,
}

impl Renderings {
    pub(super) fn new() -> Self {
        Self {
            metrics: Format::ALL.map(|_| Arc::default()),
            status: Arc::default(),
            config: [Arc::default(), Arc::default()],
        }
    }

    /// Metrics.
    ///
    /// # Errors
    /// As [`Failure`] says.
    pub(super) async fn metrics(
        &self,
        format: Format,
        asking: &Rc<Asking>,
    ) -> Result<Bytes, Failure> {
        let asking = asking.clone();
        let make = async move {
            let source = asking.ask(Ask::Source).await.ok_or(Failure::Ending)?;
            beside(move || metrics::render(&source, format)).await
        };
        shared(&self.metrics[format as usize], METRICS, make).await
    }

    /// The status as JSON, as of a moment after it was asked for: whoever has just ordered something sees what
    /// came of it.
    ///
    /// # Errors
    /// As [`Failure`] says.
    pub(super) async fn status(&self, asking: &Rc<Asking>) -> Result<Bytes, Failure> {
        let asking = asking.clone();
        let make = async move {
            let status = asking.ask(Ask::Status).await.ok_or(Failure::Ending)?;
            Ok(answer::json_line(&status))
        };
        shared(&self.status, AS_IT_IS, make).await
    }

    /// The configuration, as TOML or as `json`, as of a moment after it was asked for.
    ///
    /// # Errors
    /// As [`Failure`] says.
    pub(super) async fn config(&self, json: bool, asking: &Rc<Asking>) -> Result<Bytes, Failure> {
        let asking = asking.clone();
        let make = async move {
            let config = asking.ask(Ask::Config).await.ok_or(Failure::Ending)?;
            let write = move || {
                let table = effective::table(&config);
                match json {
                    true => answer::json_line(&table),
                    false => Bytes::from(table.to_string()),
                }
            };
            beside(write).await
        };
        shared(&self.config[usize::from(json)], AS_IT_IS, make).await
    }
}

/// The newest rendering, if it will do by the `terms`, or else what `make` makes. Those who wait meanwhile share
/// the next one, however long it takes. Once begun it is made even if nobody waits for it any more, so that
/// there is never more than one under way.
async fn shared(
    slot: &Slot,
    terms: Terms,
    make: impl Future<Output = Result<Bytes, Failure>> + 'static,
) -> Result<Bytes, Failure> {
    // Before the wait for the lock: who waits for a long one would find it old.
    let asked = Instant::now();
    let mut slot = slot.clone().lock_owned().await;
    // Who was given one has a part of it as long as not all is sent.
    slot.retain(|it| it.begun + terms.fresh >= asked || !it.bytes.is_unique());
    let are_held = slot.len() >= terms.held_max;
    match slot.last() {
        Some(last) if last.begun + terms.fresh >= asked => return Ok(last.bytes.clone()),
        Some(last) if are_held && terms.old_will_do => return Ok(last.bytes.clone()),
        Some(_) if are_held => return Err(Failure::Held),
        _ => {}
    }
    let making = spawn_local(async move {
        let begun = Instant::now();
        let bytes = make.await?;
        slot.push(Rendering {
            begun,
            bytes: bytes.clone(),
        });
        spawn_local(let_go(OwnedMutexGuard::mutex(&slot).clone(), begun));
        Ok(bytes)
    });
    making.await.unwrap_or(Err(Failure::Panicked))
}

/// Forgets the rendering that was begun then once it is of no use: nobody may ask again.
async fn let_go(slot: Slot, begun: Instant) {
    loop {
        sleep(TIDY).await;
        let mut slot = slot.lock().await;
        slot.retain(|it| it.begun > begun || !it.bytes.is_unique());
        if slot.iter().all(|it| it.begun != begun) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::task::LocalSet;

    use super::*;

    /// How long a rendering of the tests takes: longer than one is fresh.
    const SLOW: Duration = Duration::from_secs(1);

    /// Asks for metrics that are slow to make; `made` counts how often.
    async fn ask(slot: &Slot, made: &Rc<Cell<u8>>) -> Bytes {
        ask_for(slot, METRICS, made).await.unwrap()
    }

    async fn ask_for(slot: &Slot, terms: Terms, made: &Rc<Cell<u8>>) -> Result<Bytes, Failure> {
        let made = made.clone();
        let make = async move {
            made.set(made.get() + 1);
            sleep(SLOW).await;
            Ok(Bytes::from(vec![made.get()]))
        };
        shared(slot, terms, make).await
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_wait_for_a_slow_rendering_get_the_same() {
        let (slot, made) = (Slot::default(), Rc::new(Cell::new(0)));
        let waiter = || {
            let (slot, made) = (slot.clone(), made.clone());
            spawn_local(async move { ask(&slot, &made).await })
        };
        let all = async {
            let waiters: Vec<_> = (0..10).map(|_| waiter()).collect();
            for waiter in waiters {
                assert_eq!(waiter.await.unwrap(), [1][..]);
            }
            assert_eq!(made.get(), 1);
            assert_eq!(
                ask(&slot, &made).await,
                [2][..],
                "the first one is old by now"
            );
        };
        LocalSet::new().run_until(all).await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_when_the_one_under_way_is_old_waits_for_the_next() {
        let (slot, made) = (Slot::default(), Rc::new(Cell::new(0)));
        let all = async {
            let first = spawn_local({
                let (slot, made) = (slot.clone(), made.clone());
                async move { ask(&slot, &made).await }
            });
            sleep(METRICS.fresh + Duration::from_millis(1)).await;
            assert_eq!(ask(&slot, &made).await, [2][..]);
            assert_eq!(first.await.unwrap(), [1][..]);
        };
        LocalSet::new().run_until(all).await;
    }

    #[tokio::test(start_paused = true)]
    async fn those_who_dont_read_keep_four_renderings_and_no_more() {
        let (slot, made) = (Slot::default(), Rc::new(Cell::new(0)));
        let all = async {
            let mut held = Vec::new();
            for _ in 0..8 {
                // Each is older by then than one may be.
                sleep(SLOW).await;
                held.push(ask(&slot, &made).await);
            }
            let numbers: Vec<u8> = held.iter().map(|bytes| bytes[0]).collect();
            assert_eq!(numbers, [1, 2, 3, 4, 4, 4, 4, 4]);
            assert_eq!(slot.lock().await.len(), METRICS.held_max);
            // As soon as one of them is read to its end there is a new one.
            held.remove(1);
            assert_eq!(ask(&slot, &made).await, [5][..]);
            held.clear();
            assert_eq!(ask(&slot, &made).await, [6][..]);
            assert_eq!(slot.lock().await.len(), 1, "nobody has those before it");
        };
        LocalSet::new().run_until(all).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_to_be_as_it_is_is_refused_while_sixteen_are_held() {
        let (slot, made) = (Slot::default(), Rc::new(Cell::new(0)));
        let all = async {
            let mut held = Vec::new();
            for _ in 0..AS_IT_IS.held_max {
                held.push(ask_for(&slot, AS_IT_IS, &made).await.unwrap());
            }
            assert_eq!(held.last().unwrap()[..], [16]);
            let refused = ask_for(&slot, AS_IT_IS, &made).await;
            assert!(matches!(refused, Err(Failure::Held)));
            held.pop();
            assert_eq!(ask_for(&slot, AS_IT_IS, &made).await.unwrap(), [17][..]);
        };
        LocalSet::new().run_until(all).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_reads_any_more_is_let_go() {
        let (slot, made) = (Slot::default(), Rc::new(Cell::new(0)));
        let all = async {
            let held = ask(&slot, &made).await;
            drop(ask(&slot, &made).await);
            sleep(10 * TIDY).await;
            assert_eq!(slot.lock().await.len(), 1, "it is being read");
            drop(held);
            sleep(2 * TIDY).await;
            assert_eq!(slot.lock().await.len(), 0);
        };
        LocalSet::new().run_until(all).await;
    }

    #[tokio::test]
    async fn a_rendering_that_panics_is_told_from_a_process_that_ends() {
        let panicked = beside(|| panic!("on purpose")).await;
        assert!(matches!(panicked, Err::<(), _>(Failure::Panicked)));
        let (asking, asks) = Asking::new(1);
        drop(asks);
        let renderings = Renderings::new();
        let all = async {
            let ended = renderings.status(&Rc::new(asking)).await;
            assert!(matches!(ended, Err(Failure::Ending)));
        };
        LocalSet::new().run_until(all).await;
    }
}
