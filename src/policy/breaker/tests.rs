//! The breaker by arithmetic, and over threads.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::AtomicU32;

use proptest::prelude::*;

use super::super::atomic::{cuts, interleave};
use super::*;

const SETTINGS: Settings = Settings {
    failure_ratio: Share::from_ppm(500_000),
    min_requests: NonZeroU32::new(4).unwrap(),
    window: Duration::from_secs(10),
    open_for: Duration::from_secs(5),
    half_open_requests: NonZeroU32::new(3).unwrap(),
};

fn with_places(places: u32) -> Settings {
    Settings {
        half_open_requests: NonZeroU32::new(places).unwrap(),
        ..SETTINGS
    }
}

fn at(millis: u64) -> Instant {
    Instant::from_nanos(millis * 1_000_000)
}

/// A permit and its verdict in the same moment.
fn result(breaker: &Breaker, verdict: Verdict, millis: u64) -> Option<Transition> {
    let permit = breaker.admit(&SETTINGS, at(millis)).expect("a permit");
    breaker.report(&SETTINGS, permit, verdict, at(millis))
}

/// Opened at 0 by as few failures as it takes.
fn opened() -> Breaker {
    let breaker = Breaker::default();
    for _ in 0..3 {
        assert_eq!(result(&breaker, Verdict::Failure, 0), None);
    }
    let last = result(&breaker, Verdict::Failure, 0);
    assert_eq!(last, Some(Transition::Opened));
    breaker
}

fn permits(breaker: &Breaker, millis: u64) -> Vec<Permit> {
    std::iter::from_fn(|| breaker.admit(&SETTINGS, at(millis))).collect()
}

#[test]
fn a_permit_takes_eight_bytes() {
    assert_eq!(size_of::<Permit>(), 8);
}

#[test]
fn it_opens_at_the_ratio_and_not_below() {
    let breaker = Breaker::default();
    for _ in 0..3 {
        assert_eq!(result(&breaker, Verdict::Success, 0), None);
        assert_eq!(result(&breaker, Verdict::Success, 0), None);
        assert_eq!(result(&breaker, Verdict::Failure, 0), None);
    }
    assert_eq!(result(&breaker, Verdict::Failure, 0), None);
    assert_eq!(result(&breaker, Verdict::Failure, 0), None);
    assert_eq!(breaker.open_until(), None);
    let sixth_of_twelve = result(&breaker, Verdict::Failure, 0);
    assert_eq!(sixth_of_twelve, Some(Transition::Opened));
    assert_eq!(breaker.open_until(), Some(at(5_000)));
}

#[test]
fn a_ratio_that_has_no_exact_fraction_is_compared_exactly() {
    let third = Settings {
        failure_ratio: Share::from_ppm(333_334),
        min_requests: NonZeroU32::MIN,
        ..SETTINGS
    };
    let counts = |part, whole| Counts { whole, part };
    assert!(!trips(&third, counts(1, 3)));
    assert!(trips(&third, counts(166_667, 500_000)));
    assert!(!trips(&third, counts(166_666, 500_000)));
    let all = Settings {
        failure_ratio: Share::WHOLE,
        ..third
    };
    assert!(trips(&all, counts(1 << 40, 1 << 40)));
    assert!(!trips(&all, counts((1 << 40) - 1, 1 << 40)));
}

#[test]
fn a_success_can_complete_the_results_that_it_needs() {
    let breaker = Breaker::default();
    for _ in 0..3 {
        assert_eq!(result(&breaker, Verdict::Failure, 0), None);
    }
    let fourth = result(&breaker, Verdict::Success, 0);
    assert_eq!(fourth, Some(Transition::Opened));
}

#[test]
fn results_leave_the_window_and_abandoned_sessions_never_enter_it() {
    let breaker = Breaker::default();
    for _ in 0..3 {
        assert_eq!(result(&breaker, Verdict::Failure, 0), None);
    }
    assert_eq!(result(&breaker, Verdict::Abandoned, 0), None);
    assert_eq!(result(&breaker, Verdict::Failure, 11_000), None);
    assert_eq!(result(&breaker, Verdict::Failure, 11_000), None);
    assert_eq!(result(&breaker, Verdict::Failure, 11_000), None);
    let fourth = result(&breaker, Verdict::Failure, 20_999);
    assert_eq!(fourth, Some(Transition::Opened));
}

#[test]
fn open_it_admits_nobody_and_then_as_many_as_half_open_requests() {
    let breaker = opened();
    assert_eq!(permits(&breaker, 4_999), []);
    let permits = permits(&breaker, 5_000);
    let transitions: Vec<_> = permits.iter().map(|permit| permit.transition()).collect();
    assert_eq!(transitions, [Some(Transition::HalfOpened), None, None]);
    assert_eq!(breaker.open_until(), None);
    assert_eq!(breaker.admit(&SETTINGS, at(1_000_000)), None);
}

#[test]
fn when_all_have_succeeded_it_closes_with_an_empty_window() {
    let breaker = opened();
    let permits = permits(&breaker, 5_000);
    let reports: Vec<_> = permits
        .iter()
        .map(|&permit| breaker.report(&SETTINGS, permit, Verdict::Success, at(5_000)))
        .collect();
    assert_eq!(reports, [None, None, Some(Transition::Closed)]);
    for _ in 0..3 {
        assert_eq!(result(&breaker, Verdict::Failure, 5_000), None);
    }
    let fourth = result(&breaker, Verdict::Failure, 5_000);
    assert_eq!(fourth, Some(Transition::Opened));
}

#[test]
fn one_failure_opens_it_again_and_the_others_count_for_nothing() {
    let breaker = opened();
    let old = permits(&breaker, 5_000);
    let report = |permit, verdict| breaker.report(&SETTINGS, permit, verdict, at(6_000));
    assert_eq!(report(old[0], Verdict::Success), None);
    assert_eq!(report(old[1], Verdict::Failure), Some(Transition::Opened));
    assert_eq!(breaker.open_until(), Some(at(11_000)));
    let new = permits(&breaker, 11_000);
    assert_eq!(new.len(), 3);
    for verdict in [Verdict::Failure, Verdict::Abandoned, Verdict::Success] {
        assert_eq!(report(old[2], verdict), None);
    }
    assert_eq!(breaker.admit(&SETTINGS, at(11_000)), None);
    assert_eq!(report(new[0], Verdict::Success), None);
    assert_eq!(report(new[1], Verdict::Success), None);
    assert_eq!(report(new[2], Verdict::Success), Some(Transition::Closed));
}

#[test]
fn one_who_leaves_while_half_open_gives_the_place_back() {
    let breaker = opened();
    let first = permits(&breaker, 5_000);
    breaker.report(&SETTINGS, first[0], Verdict::Abandoned, at(5_000));
    breaker.report(&SETTINGS, first[1], Verdict::Success, at(5_000));
    let second = permits(&breaker, 5_000);
    assert_eq!(second.len(), 1);
    assert_eq!(second[0].transition(), None);
    breaker.report(&SETTINGS, first[2], Verdict::Success, at(5_000));
    let last = breaker.report(&SETTINGS, second[0], Verdict::Success, at(5_000));
    assert_eq!(last, Some(Transition::Closed));
}

#[test]
fn a_late_failure_of_an_earlier_closed_state_does_not_count() {
    let breaker = Breaker::default();
    let late: Vec<_> = (0..9)
        .filter_map(|_| breaker.admit(&SETTINGS, at(0)))
        .collect();
    for permit in &late[..4] {
        breaker.report(&SETTINGS, *permit, Verdict::Failure, at(0));
    }
    for permit in permits(&breaker, 5_000) {
        breaker.report(&SETTINGS, permit, Verdict::Success, at(5_000));
    }
    for permit in &late[4..] {
        let report = breaker.report(&SETTINGS, *permit, Verdict::Failure, at(5_000));
        assert_eq!(report, None);
    }
    assert_eq!(result(&breaker, Verdict::Failure, 5_000), None);
}

#[test]
fn a_reload_that_asks_for_fewer_successes_than_there_were_closes_it() {
    let breaker = opened();
    let permits = permits(&breaker, 5_000);
    for &permit in &permits[..2] {
        breaker.report(&SETTINGS, permit, Verdict::Success, at(5_000));
    }
    breaker.report(&SETTINGS, permits[2], Verdict::Abandoned, at(5_000));
    let permit = breaker.admit(&with_places(2), at(5_000)).unwrap();
    assert_eq!(permit.transition(), Some(Transition::Closed));
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Admit,
    Report(prop::sample::Index, Verdict),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let verdict = prop_oneof![
        Just(Verdict::Success),
        Just(Verdict::Failure),
        Just(Verdict::Abandoned)
    ];
    let report = (any::<prop::sample::Index>(), verdict);
    let step = prop_oneof![
        4 => Just(Step::Admit),
        4 => report.prop_map(|(which, verdict)| Step::Report(which, verdict)),
        1 => (0u64..4_000).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 1..STEPS)
}

const STEPS: usize = 150;

/// A breaker, and what its users know of it.
struct World {
    settings: Settings,
    breaker: Breaker,
    millis: Cell<u64>,
    permits: RefCell<Vec<Permit>>,
    /// By generation: permits that were given and not given back, and the most of them.
    held: RefCell<BTreeMap<u32, (u32, u32)>>,
    /// With the generation of the permit, and when.
    transitions: RefCell<Vec<(Transition, u32, Instant)>>,
}

impl World {
    fn new(places: u32) -> Self {
        Self {
            settings: Settings {
                min_requests: NonZeroU32::MIN,
                ..with_places(places)
            },
            breaker: Breaker::default(),
            millis: Cell::default(),
            permits: RefCell::default(),
            held: RefCell::default(),
            transitions: RefCell::default(),
        }
    }

    fn take(&self, step: Step) -> bool {
        let now = at(self.millis.get());
        match step {
            Step::Admit => {
                let permit = self.breaker.admit(&self.settings, now);
                permit
                    .into_iter()
                    .for_each(|permit| self.given(permit, now));
                return permit.is_some();
            }
            Step::Report(which, verdict) => self.report(which, verdict, now),
            Step::Pass(millis) => self.millis.set(self.millis.get() + millis),
        }
        true
    }

    fn given(&self, permit: Permit, now: Instant) {
        self.permits.borrow_mut().push(permit);
        let mut held = self.held.borrow_mut();
        let (count, most) = held.entry(permit.generation).or_default();
        *count += 1;
        *most = (*most).max(*count);
        self.changed(permit.transition, permit, now);
    }

    fn report(&self, which: prop::sample::Index, verdict: Verdict, now: Instant) {
        let permits = self.permits.borrow().len();
        if permits == 0 {
            return;
        }
        let permit = self.permits.borrow_mut().swap_remove(which.index(permits));
        if verdict == Verdict::Abandoned {
            self.held
                .borrow_mut()
                .entry(permit.generation)
                .or_default()
                .0 -= 1;
        }
        let transition = self.breaker.report(&self.settings, permit, verdict, now);
        self.changed(transition, permit, now);
    }

    fn changed(&self, transition: Option<Transition>, permit: Permit, now: Instant) {
        let mut transitions = self.transitions.borrow_mut();
        transitions.extend(transition.map(|transition| (transition, permit.generation, now)));
    }

    fn held(&self, generation: u32) -> (u32, u32) {
        self.held
            .borrow()
            .get(&generation)
            .copied()
            .unwrap_or_default()
    }

    /// The generation and the time of each such transition.
    fn all(&self, transition: Transition) -> BTreeMap<u32, Instant> {
        let transitions = self.transitions.borrow();
        let such = transitions
            .iter()
            .filter(|(which, ..)| *which == transition);
        such.map(|&(_, generation, now)| (generation, now))
            .collect()
    }
}

proptest! {
    #[test]
    fn whoever_cuts_in_never_more_than_half_open_requests_are_admitted_and_not_too_early(
        places in 1u32..5,
        steps in steps(),
        cuts in cuts(STEPS, 8),
    ) {
        let world = Rc::new(World::new(places));
        let taking = world.clone();
        interleave(cuts, steps, move |step| {
            taking.take(step);
        });
        let is_open = world.breaker.stage().state == State::Open;
        let (opened, half_opened) = (world.all(Transition::Opened), world.all(Transition::HalfOpened));
        prop_assert_eq!(opened.len(), half_opened.len() + usize::from(is_open));
        for (generation, now) in half_opened {
            prop_assert!(world.held(generation).1 <= places);
            // A permit of the state before the open one made it open.
            prop_assert!(now >= opened[&(generation - 2)] + SETTINGS.open_for);
        }
    }

    #[test]
    fn half_open_it_turns_nobody_away_before_all_places_are_taken(
        places in 1u32..5,
        steps in steps(),
    ) {
        let world = World::new(places);
        for step in steps {
            let refused = !world.take(step);
            let stage = world.breaker.stage();
            if refused && stage.state != State::Open {
                prop_assert_eq!(world.held(stage.generation).0, places);
            }
        }
    }
}

#[test]
fn over_threads_exactly_half_open_requests_are_admitted() {
    let breaker = opened();
    let admitted = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1_000 {
                    let permit = breaker.admit(&SETTINGS, at(5_000));
                    admitted.fetch_add(u32::from(permit.is_some()), Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(admitted.into_inner(), 3);
}
