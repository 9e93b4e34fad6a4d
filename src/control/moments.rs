//! What the flight recorders of the workers hold, told by name and in the order of time.

use super::socket::{Noted, Teller, Wanted};
use crate::proxy::Shared;
use crate::ring;
use crate::telemetry::Names;
use crate::telemetry::recorder::Moment;

/// Moments of a worker that the log tells after it has panicked. A process that panics over and over shall not
/// fill a disk with them; all that there are can be dumped.
pub(super) const TAIL: usize = 64;

/// The moments that are asked for, of all workers by time. They are put into words where they are written:
/// of many workers there are hundreds of thousands.
///
/// # Errors
/// There is no such worker.
pub(super) fn dump(shared: &Shared, wanted: &Wanted) -> Result<Noted, String> {
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
    if let Some(last) = wanted.last {
        moments.drain(..moments.len().saturating_sub(last));
    }
    let teller = Teller::new(&shared.around.names, ring::now());
    Ok(Noted { teller, moments })
}

/// The last moments of a worker that has panicked, each as a line of JSON.
pub(super) fn tail(names: &Names, worker: usize, moments: &[Moment]) -> Vec<String> {
    let teller = Teller::new(names, ring::now());
    let last = &moments[moments.len().saturating_sub(TAIL)..];
    last.iter()
        .map(|moment| {
            let told = teller.tell(worker, moment);
            serde_json::to_string(&told).expect("fields are words and numbers")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::socket::ToldMoment;
    use crate::telemetry::recorder::What;
    use crate::time::Instant;

    fn moment(nanos: u64) -> Moment {
        Moment {
            at: Instant::from_nanos(nanos),
            session: 7,
            what: What::Accept,
            reason: None,
            subject: 0,
            value: 0,
        }
    }

    #[test]
    fn the_tail_is_the_last_ones_in_lines() {
        let moments: Vec<_> = (0..100).map(moment).collect();
        let tail = tail(&Names::default(), 1, &moments);
        assert_eq!(tail.len(), TAIL);
        let first: ToldMoment = serde_json::from_str(&tail[0]).expect("it is JSON");
        assert_eq!((first.monotonic_ns, first.worker), (36, 1));
        assert!(tail.iter().all(|line| !line.contains('\n')));
    }
}
