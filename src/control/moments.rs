//! What the flight recorders of the workers hold, told by name and in the order of time.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::socket::{ToldMoment, Wanted};
use crate::proxy::Shared;
use crate::ring;
use crate::telemetry::Names;
use crate::telemetry::recorder::{Moment, What};

/// Moments of a worker that the log tells after it has panicked. A process that panics over and over shall not
/// fill a disk with them; all that there are can be dumped.
pub(super) const TAIL: usize = 64;

/// The moments that are asked for, of all workers by time.
///
/// # Errors
/// There is no such worker.
pub(super) fn dump(shared: &Shared, wanted: &Wanted) -> Result<Vec<ToldMoment>, String> {
    let workers = shared.workers();
    if let Some(worker) = wanted.worker.filter(|worker| *worker >= workers) {
        let last = workers - 1;
        return Err(format!(
            "there is no worker {worker}: they are numbered from 0 to {last}"
        ));
    }
    let recorders = shared.recorders.iter().enumerate();
    let recorders = recorders.filter(|(worker, _)| wanted.worker.is_none_or(|it| it == *worker));
    let moments = recorders.flat_map(|(worker, recorder)| {
        let moments = recorder.moments().into_iter();
        moments.map(move |moment| (worker, moment))
    });
    let mut moments: Vec<_> = moments
        .filter(|(_, moment)| wanted.session.is_none_or(|it| it == moment.session))
        .collect();
    // Stable: what a worker notes within one turn has one time, and keeps its order.
    moments.sort_by_key(|(_, moment)| moment.at);
    let skipped = wanted
        .last
        .map_or(0, |last| moments.len().saturating_sub(last));
    let teller = Teller::new(&shared.around.names);
    let moments = moments.iter().skip(skipped);
    Ok(moments
        .map(|(worker, moment)| teller.tell(*worker, moment))
        .collect())
}

/// The last moments of a worker that has panicked, each as a line of JSON.
pub(super) fn tail(names: &Names, worker: usize, moments: &[Moment]) -> Vec<String> {
    let teller = Teller::new(names);
    let last = &moments[moments.len().saturating_sub(TAIL)..];
    last.iter()
        .map(|moment| {
            let told = teller.tell(worker, moment);
            serde_json::to_string(&told).expect("fields are words and numbers")
        })
        .collect()
}

/// Who knows names, and the time of day.
struct Teller {
    names: Vec<Arc<str>>,
    /// The clock of the moments began then.
    epoch: SystemTime,
}

impl Teller {
    fn new(names: &Names) -> Self {
        #[expect(
            clippy::disallowed_methods,
            reason = "people are told when it was, and nothing is decided by it"
        )]
        let now = SystemTime::now();
        let since = Duration::from_nanos(ring::now().as_nanos());
        Self {
            names: names.all(),
            epoch: now.checked_sub(since).unwrap_or(SystemTime::UNIX_EPOCH),
        }
    }

    fn tell(&self, worker: usize, moment: &Moment) -> ToldMoment {
        let monotonic_ns = moment.at.as_nanos();
        let at = self.epoch + Duration::from_nanos(monotonic_ns);
        let name = self.names.get(moment.subject as usize);
        // Names of listeners have no slash, those of backends stand behind their upstream's and one.
        let (backend, listener) = match name {
            Some(name) if name.contains('/') => (Some(name.to_string()), None),
            name => (None, name.map(ToString::to_string)),
        };
        let value = |of: &[What]| of.contains(&moment.what).then_some(moment.value);
        ToldMoment {
            at: humantime::format_rfc3339_micros(at).to_string(),
            monotonic_ns,
            worker: worker as u64,
            session: moment.session,
            what: moment.what.as_str().to_owned(),
            listener,
            backend,
            reason: moment.reason.map(|reason| reason.as_str().to_owned()),
            connect_us: value(&[What::Connect, What::ConnectFailed]),
            first_byte_us: value(&[What::FirstByte]),
            bytes: value(&[What::Close]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Reason;
    use crate::time::Instant;

    fn moment(nanos: u64, what: What, subject: u32) -> Moment {
        Moment {
            at: Instant::from_nanos(nanos),
            session: 7,
            what,
            reason: (what == What::Close).then_some(Reason::Idle),
            subject,
            value: 1500,
        }
    }

    fn names() -> Names {
        let names = Names::default();
        for name in ["web", "app/unix:/run/b.sock"] {
            names.number(name);
        }
        names
    }

    #[test]
    fn a_moment_says_what_its_numbers_are() {
        let teller = Teller::new(&names());
        let tell = |what, subject| {
            let told = teller.tell(3, &moment(5, what, subject));
            let told = serde_json::to_value(told).expect("it is told");
            let fields = told.as_object().expect("an object").clone();
            let own = fields.into_iter().filter(|(name, _)| {
                !["at", "monotonic_ns", "worker", "session"].contains(&name.as_str())
            });
            serde_json::Value::Object(own.collect())
        };
        for (what, subject, expected) in [
            (What::Accept, 0, r#"{"what":"accept","listener":"web"}"#),
            (
                What::Pick,
                1,
                r#"{"what":"pick","backend":"app/unix:/run/b.sock"}"#,
            ),
            (
                What::ConnectFailed,
                1,
                r#"{"what":"connect-failed","backend":"app/unix:/run/b.sock","connect_us":1500}"#,
            ),
            (
                What::Close,
                0,
                r#"{"what":"close","listener":"web","reason":"idle","bytes":1500}"#,
            ),
            (
                What::FirstByte,
                9,
                r#"{"what":"first-byte","first_byte_us":1500}"#,
            ),
        ] {
            let expected: serde_json::Value = serde_json::from_str(expected).expect("it is JSON");
            assert_eq!(tell(what, subject), expected);
        }
    }

    #[test]
    fn a_time_of_day_is_told_with_its_microseconds() {
        let teller = Teller {
            names: Vec::new(),
            epoch: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
        };
        let told = teller.tell(0, &moment(1_000_123_456, What::Accept, 0));
        assert_eq!(told.at, "2023-11-14T22:13:21.000123Z");
        assert_eq!(told.monotonic_ns, 1_000_123_456);
    }

    #[test]
    fn the_tail_is_the_last_ones_in_lines() {
        let moments: Vec<_> = (0..100)
            .map(|nanos| moment(nanos, What::Accept, 0))
            .collect();
        let tail = tail(&names(), 1, &moments);
        assert_eq!(tail.len(), TAIL);
        let first: ToldMoment = serde_json::from_str(&tail[0]).expect("it is JSON");
        assert_eq!((first.monotonic_ns, first.worker), (36, 1));
        assert!(tail.iter().all(|line| !line.contains('\n')));
    }
}
