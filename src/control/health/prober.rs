//! The task that probes one backend for all workers: when, what its result means, and the one line of
//! the log when that is news.

use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::sleep_until;

use super::Target;
use super::failure::Failure;
use super::probe::probe;
use crate::config::HealthCheck;
use crate::ring;
use crate::time::Instant;

/// A running task; it ends when this is dropped.
pub(super) struct Prober {
    target: Rc<RefCell<Rc<Target>>>,
    task: AbortHandle,
}

impl Prober {
    /// Begins with a probe at once. Runs within a `LocalSet`.
    pub(super) fn start(target: Target, lacks: Rc<Lacks>) -> Self {
        let target = Rc::new(RefCell::new(Rc::new(target)));
        let watch = watch(target.clone(), lacks, async |target| probe(target).await);
        Self {
            target,
            task: tokio::task::spawn_local(watch).abort_handle(),
        }
    }

    /// Whether it would probe `target` as it does its own.
    pub(super) fn suits(&self, target: &Target) -> bool {
        let own = self.target.borrow();
        own.source == target.source
            && own.check == target.check
            && own.announce == target.announce
            && own.tls == target.tls
    }

    /// Goes on with `target`, which it suits, in the place of its own.
    pub(super) fn adopt(&self, target: Target) {
        self.target.replace(Rc::new(target));
    }
}

impl Drop for Prober {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Probes `target`, whatever it is at the moment, for as long as this is polled.
async fn watch(
    target: Rc<RefCell<Rc<Target>>>,
    lacks: Rc<Lacks>,
    probe: impl AsyncFn(&Target) -> Result<(), Failure>,
) {
    // Its keys differ from task to task and from process to process, so that no two probe in step.
    let random = RandomState::new();
    for turn in 0_u64.. {
        let started = tokio::time::Instant::now();
        let probed = target.borrow().clone();
        let outcome = probe(&probed).await;
        // The place of its result may have changed meanwhile.
        let present = target.borrow().clone();
        log_probe(&present, &outcome);
        let ended = (started.elapsed(), ring::now());
        if let Some(news) = judge(&present, &lacks, &outcome, ended) {
            news.log(&present);
        }
        sleep_until(started + pause(&present.check, random.hash_one(turn))).await;
    }
}

/// From the start of a probe to the start of the next: evenly spread over the jitter's range as `random`
/// is over its own.
fn pause(check: &HealthCheck, random: u64) -> Duration {
    let interval = u64::try_from(check.interval.as_nanos()).unwrap_or(u64::MAX);
    let jitter = check.jitter.of(interval);
    let range = jitter.saturating_mul(2).saturating_add(1);
    let part = ((u128::from(random) * u128::from(range)) >> u64::BITS) as u64;
    Duration::from_nanos((interval - jitter).saturating_add(part))
}

fn log_probe(target: &Target, outcome: &Result<(), Failure>) {
    let (upstream, backend) = (&target.upstream, &target.backend);
    match outcome {
        Ok(()) => tracing::debug!(%upstream, %backend, "probe succeeded"),
        Err(why) => tracing::debug!(%upstream, %backend, %why, "probe failed"),
    }
}

/// Takes the outcome down, and says what of it is news.
fn judge(
    target: &Target,
    lacks: &Lacks,
    outcome: &Result<(), Failure>,
    (took, now): (Duration, Instant),
) -> Option<News> {
    let streak = (target.record)(outcome.as_ref().copied(), took, now);
    match outcome {
        Ok(()) => streak.map(|successes| News::Up { successes }),
        Err(failure @ Failure::NoResources(_)) => lacks.is_news(now).then(|| News::Lack {
            why: failure.to_string(),
        }),
        Err(failure) => streak.map(|failures| News::Down {
            why: failure.to_string(),
            failures,
        }),
    }
}

/// What a probe can bring about that people want to hear of.
#[derive(PartialEq, Eq, Debug)]
enum News {
    Up {
        successes: u32,
    },
    Down {
        why: String,
        failures: u32,
    },
    /// Nothing is known, since this machine could not probe.
    Lack {
        why: String,
    },
}

impl News {
    fn log(&self, target: &Target) {
        let (upstream, backend) = (&target.upstream, &target.backend);
        match self {
            Self::Up { successes } => {
                tracing::info!(%upstream, %backend, successes, "backend is up");
            }
            Self::Down { why, failures } => {
                tracing::warn!(%upstream, %backend, why, failures, "backend is down");
            }
            Self::Lack { why } => {
                tracing::warn!(%upstream, %backend, why, "a backend can't be probed and stays as it is");
            }
        }
    }
}

/// When it was last told that this machine lacks what a probe needs. What it lacks, it lacks for every
/// backend: it is told once in a while for all of them.
#[derive(Default)]
pub(super) struct Lacks(Cell<Option<Instant>>);

impl Lacks {
    fn is_news(&self, now: Instant) -> bool {
        const PERIOD: Duration = Duration::from_mins(1);
        let is_news = self.0.get().is_none_or(|told| now.since(told) >= PERIOD);
        if is_news {
            self.0.set(Some(now));
        }
        is_news
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tokio::sync::Notify;
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::control::health::tests::{check, tcp};
    use crate::policy::share::Share;

    const INTERVAL: Duration = Duration::from_secs(5);
    const TIMEOUT: Duration = Duration::from_secs(2);
    /// What tokio's timers round up to.
    const TICK: Duration = Duration::from_millis(1);

    fn refused() -> Result<(), Failure> {
        Err(Failure::Io(io::ErrorKind::ConnectionRefused.into()))
    }

    fn silent() -> Result<(), Failure> {
        let heard = Vec::new();
        Err(Failure::Silent {
            timeout: TIMEOUT,
            heard,
        })
    }

    fn target(
        check: HealthCheck,
        record: impl Fn(bool) -> Option<u32> + 'static,
    ) -> Rc<RefCell<Rc<Target>>> {
        Rc::new(RefCell::new(Rc::new(Target {
            upstream: "app".into(),
            backend: "b1".into(),
            address: crate::address::Address::Ip(([127, 0, 0, 1], 1).into()),
            source: None,
            check,
            announce: crate::config::Announce::Never,
            tls: None,
            record: Box::new(move |outcome, _, _| match outcome {
                Err(Failure::NoResources(_)) => None,
                outcome => record(outcome.is_ok()),
            }),
        })))
    }

    /// What the policy does with results, as far as it matters here.
    #[derive(Clone, Default)]
    struct State(Rc<Cell<(bool, u32)>>);

    impl State {
        /// Takes down a result; the count when it is the one that turns the state.
        fn record(&self, success: bool, rise: u32, fall: u32) -> Option<u32> {
            let (last, streak) = self.0.get();
            let streak = if last == success { streak + 1 } else { 1 };
            self.0.set((success, streak));
            (streak == if success { rise } else { fall }).then_some(streak)
        }
    }

    async fn starts(check: HealthCheck, takes: Duration, count: usize) -> Vec<Instant> {
        let starts = RefCell::new(Vec::new());
        let busy = Cell::new(false);
        let enough = Notify::new();
        let target = target(check, |_| None);
        let watch = watch(target, Rc::default(), async |_| {
            assert!(!busy.replace(true), "two probes at once");
            starts.borrow_mut().push(Instant::now());
            if starts.borrow().len() == count {
                enough.notify_one();
            }
            sleep(takes).await;
            busy.set(false);
            Ok(())
        });
        tokio::select! {
            () = watch => {}
            () = enough.notified() => {}
        }
        starts.into_inner()
    }

    fn gaps(starts: &[Instant]) -> impl Iterator<Item = Duration> {
        starts.windows(2).map(|pair| pair[1] - pair[0])
    }

    #[test]
    fn a_pause_is_the_interval_within_its_jitter() {
        let mut check = check(tcp(None, None), INTERVAL, TIMEOUT);
        assert_eq!(pause(&check, 0), Duration::from_secs(4));
        assert_eq!(pause(&check, u64::MAX / 2), INTERVAL);
        assert_eq!(pause(&check, u64::MAX), Duration::from_secs(6));
        check.jitter = Share::default();
        assert_eq!(
            (pause(&check, 0), pause(&check, u64::MAX)),
            (INTERVAL, INTERVAL)
        );
        check.jitter = Share::WHOLE;
        assert_eq!(pause(&check, 0), Duration::ZERO);
        check.interval = Duration::MAX;
        assert!(pause(&check, u64::MAX) > Duration::from_secs(1 << 32));
    }

    #[tokio::test(start_paused = true)]
    async fn starts_are_an_interval_apart_however_long_a_probe_takes() {
        let check = check(tcp(None, None), INTERVAL, TIMEOUT);
        let before = Instant::now();
        let starts = starts(check, TIMEOUT, 60).await;
        assert_eq!(starts[0], before, "the first is at once");
        let (low, high) = (Duration::from_secs(4), Duration::from_secs(6) + TICK);
        assert!(gaps(&starts).all(|gap| (low..=high).contains(&gap)));
        let (least, most) = (gaps(&starts).min(), gaps(&starts).max());
        assert!(least < Some(INTERVAL * 9 / 10) && most > Some(INTERVAL * 11 / 10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_waits_for_the_one_before_it() {
        let check = check(tcp(None, None), INTERVAL / 10, TIMEOUT);
        let starts = starts(check, TIMEOUT, 10).await;
        assert!(gaps(&starts).all(|gap| gap == TIMEOUT));
    }

    /// From the death of a backend to the moment when it is known.
    async fn detection(check: HealthCheck, dead_at: Duration, black_hole: bool) -> Duration {
        let dead_at = Instant::now() + dead_at;
        let (state, known) = (State::default(), Rc::new(Notify::new()));
        let (rise, fall) = (check.settings.rise.get(), check.settings.fall.get());
        let target = target(check, {
            let known = known.clone();
            move |success| {
                let change = state.record(success, rise, fall);
                if change.is_some() && !success {
                    known.notify_one();
                }
                change
            }
        });
        let watch = watch(target, Rc::default(), async |target| {
            if Instant::now() < dead_at {
                return Ok(());
            }
            if black_hole {
                sleep(target.check.timeout).await;
                return silent();
            }
            refused()
        });
        tokio::select! {
            () = watch => {}
            () = known.notified() => {}
        }
        Instant::now() - dead_at
    }

    #[tokio::test(start_paused = true)]
    async fn a_death_is_known_within_the_promised_time() {
        for interval in [INTERVAL, INTERVAL / 10] {
            let check = check(tcp(None, None), interval, TIMEOUT);
            let bound = 3 * (interval * 12 / 10 + TIMEOUT);
            for part in 0..12 {
                let dead_at = interval + interval * part / 12;
                for black_hole in [false, true] {
                    let took = detection(check.clone(), dead_at, black_hole).await;
                    assert!(
                        took <= bound,
                        "{took:?} > {bound:?}, black hole: {black_hole}"
                    );
                }
            }
        }
    }

    /// What is news of `results`, one interval apart.
    fn news_of(results: impl IntoIterator<Item = Result<(), Failure>>) -> Vec<News> {
        let state = State::default();
        let target = target(check(tcp(None, None), INTERVAL, TIMEOUT), move |success| {
            state.record(success, 2, 3)
        });
        let (target, lacks) = (target.borrow().clone(), Lacks::default());
        let mut now = crate::time::Instant::from_nanos(1);
        let judged = results.into_iter().filter_map(|outcome| {
            now = now + INTERVAL;
            judge(&target, &lacks, &outcome, (TIMEOUT, now))
        });
        judged.collect()
    }

    #[test]
    fn only_a_change_is_news_and_it_says_why() {
        let dying = [Ok(()), refused(), refused(), silent(), refused()];
        let rising = [Ok(()), refused(), Ok(()), Ok(()), Ok(())];
        assert_eq!(
            news_of(dying.into_iter().chain(rising)),
            [
                News::Down {
                    why: "no answer within 2s".to_owned(),
                    failures: 3
                },
                News::Up { successes: 2 },
            ]
        );
    }

    #[test]
    fn what_this_machine_lacks_is_no_result_and_told_once_a_minute() {
        let lacking = || io::Error::from_raw_os_error(libc::EMFILE);
        let results = (0..24).map(|_| Err(Failure::NoResources(lacking())));
        let why = lacking().to_string();
        assert_eq!(
            news_of(results),
            [News::Lack { why: why.clone() }, News::Lack { why }]
        );
    }
}
