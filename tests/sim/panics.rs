//! Workers that panic in the middle of a run: what they had ends, nothing of it stays, and their successors go
//! on with the same sockets. The usual promises are looked after to the end of the run.

use std::time::Duration;

use ringress::proxy::Spot;
use ringress::ring::sim::{BackendScript, ClientScript, Ending, Step};
use ringress::telemetry::Reason;

use crate::plan::{Plan, Turn};
use crate::run::run;
use crate::seeds_of;

const SPOTS: [Spot; 4] = [Spot::Order, Spot::Session, Spot::Ring, Spot::Completion];
const MILLI: Duration = Duration::from_millis(1);

/// Of a worker, some time in the first 200 ms.
fn panics(seed: u64, workers: usize) -> Vec<(Duration, usize, Turn)> {
    let mut turns: Vec<_> = (0..1 + seed % 3)
        .map(|number| {
            let at = Duration::from_micros((seed * 7919 + number * 60_013) % 200_000);
            let spot = SPOTS[((seed / workers as u64 + number) % SPOTS.len() as u64) as usize];
            let worker = (seed + number) as usize % workers;
            (at, worker, Turn::Panicked(spot))
        })
        .collect();
    turns.sort_by_key(|(at, ..)| *at);
    turns
}

#[test]
fn whatever_a_worker_is_doing_when_it_panics_nothing_of_it_stays() {
    let (mut panicked, mut lost) = (0, 0);
    for seed in seeds_of(300) {
        let mut plan = Plan::from_seed(seed);
        plan.lively = false;
        plan.turns.extend(panics(seed, plan.workers));
        plan.turns.sort_by_key(|(at, ..)| *at);
        let outcome = run(&plan);
        let broken = outcome.broken_promises();
        assert!(broken.is_empty(), "seed {seed}: {broken:#?}\n{outcome:#?}");
        panicked += outcome.panics;
        lost += outcome.sessions_of(Reason::WorkerPanicked);
    }
    assert!(
        panicked > 100 && lost > 100,
        "{panicked} panics, {lost} sessions"
    );
}

#[test]
fn sessions_of_other_workers_go_on_and_clients_in_the_queue_are_served() {
    for spot in SPOTS {
        for seed in 0..20 {
            let mut plan = Plan::quiet(2, vec![BackendScript::Echo]);
            plan.seed = seed;
            let early = ClientScript::new(vec![
                Step::send(1000),
                Step::Pause(100 * MILLI),
                Step::send(1000),
                Step::Finish,
                Step::ReadToEnd,
            ]);
            plan.clients = vec![early; 20];
            plan.clients.extend(vec![ClientScript::exchange(1000); 20]);
            plan.starts = vec![MILLI; 20];
            // Some of them come in the very moment.
            plan.starts
                .extend((0..20).map(|it| 50 * MILLI + it * MILLI / 10));
            plan.turns = vec![(51 * MILLI, 0, Turn::Panicked(spot))];
            let outcome = run(&plan);
            assert_eq!(outcome.broken_promises(), [""; 0], "{spot:?}, seed {seed}");
            assert_eq!(outcome.panics, 1);
            let lost = outcome.sessions_of(Reason::WorkerPanicked);
            assert!((1..40).contains(&lost), "{lost}");
            for client in &outcome.clients {
                match client.ending {
                    Ending::Fin => assert!([1000, 2000].contains(&client.received)),
                    ending => assert_eq!(ending, Ending::Reset),
                }
            }
            let reset = outcome
                .clients
                .iter()
                .filter(|it| it.ending == Ending::Reset);
            assert_eq!(reset.count(), lost);
        }
    }
}

#[test]
fn places_and_the_queue_are_free_again_after_a_panic() {
    let stays = ClientScript::new(vec![Step::send(10), Step::ReadToEnd]);
    let mut plan = Plan::quiet(1, vec![BackendScript::Echo]);
    plan.policies.backend_cap = std::num::NonZeroUsize::new(2);
    plan.policies.queue.max = 2;
    plan.policies.queue.timeout = Duration::from_mins(10);
    plan.listener_cap = std::num::NonZeroUsize::new(4);
    // Two are served and two wait, for ever; then others come who want it all.
    plan.clients = vec![stays; 4];
    plan.clients.extend(vec![ClientScript::exchange(1000); 4]);
    plan.starts = vec![MILLI; 4];
    plan.starts.extend(vec![100 * MILLI; 4]);
    for spot in SPOTS {
        plan.turns = vec![(50 * MILLI, 0, Turn::Panicked(spot))];
        let outcome = run(&plan);
        assert_eq!(outcome.broken_promises(), [""; 0], "{spot:?}");
        assert_eq!(outcome.sessions_of(Reason::WorkerPanicked), 4);
        assert_eq!(outcome.sessions_of(Reason::ClientClosed), 4);
    }
}
