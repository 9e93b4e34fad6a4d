//! Who gets sessions for what is known of health: at the start, after a return, when few are left.

use std::time::Duration;

use crate::common::mortal::{Answer, Mortal, PING, PONG, SICK, behind_two_workers, visit};
use crate::common::{Proxy, eventually, now, pass};
use crate::{check, checked, comes_up, goes_down, visits};

/// A proxy in front of a backend that does not answer probes yet.
fn undecided(backend: &Mortal, start: &str) -> Proxy {
    backend.answer_probes(Answer::Nothing);
    let check = format!(
        "[upstreams.app.health_check]\n{PING}\
         interval = \"50ms\"\ntimeout = \"20s\"\nfall = 2\nrise = 2\nstart = {start:?}\n"
    );
    let proxy = Proxy::start(&behind_two_workers(&[backend.weighing(1)], "", &check));
    backend.wait("the first probe", |counts| counts.probes == 1);
    proxy
}

#[test]
fn no_session_comes_before_the_first_round() {
    for (start, successes) in [("checked", 1), ("down", 2)] {
        let backends = Mortal::many::<1>();
        let [backend] = &backends;
        let mut proxy = undecided(backend, start);
        for _ in 0..5 {
            assert!(visit(&proxy.address("web")).is_err());
            assert_eq!(proxy.next_session().reason, "no-backend");
        }
        assert_eq!(backend.counts().sessions, 0);
        backend.answer_probes(PONG);
        let line = comes_up(&proxy, 0, backend);
        assert_eq!(line["successes"], successes, "{start}");
        assert_eq!(visits(&proxy, &backends, 5), [5]);
        proxy.end();
    }
}

#[test]
fn one_that_is_up_from_the_start_need_not_be_probed_first() {
    let backends = Mortal::many::<1>();
    let proxy = undecided(&backends[0], "up");
    assert_eq!(visits(&proxy, &backends, 5), [5]);
    backends[0].answer_probes(PONG);
    proxy.end();
}

#[test]
fn a_backend_that_came_back_starts_slowly() {
    const SLOW_START: Duration = Duration::from_secs(4);
    let backends = Mortal::many::<2>();
    let [back, other] = &backends;
    let upstream = format!("slow_start = \"{SLOW_START:?}\"");
    let proxy = checked(&backends, &upstream, "type = \"tcp\"");
    // The first start is not a return.
    assert_eq!(visits(&proxy, &backends, 20), [10, 10]);
    let from = proxy.lines().len();
    back.kill();
    goes_down(&proxy, from, back);
    back.revive();
    comes_up(&proxy, from, back);
    let began = now();
    let first = visits(&proxy, &backends, 44)[0];
    // The weights were 1:10, then 2:10 and so on, for as long as that took; and it had come up a little
    // before that was read in the log.
    let steps = 2 + (began.elapsed().as_secs_f64() / SLOW_START.as_secs_f64() * 10.0) as usize;
    let most = 44 * steps / (10 + steps) + 1;
    assert!(
        (3..=most).contains(&first),
        "{first} of 44, not more than {most}"
    );
    pass(SLOW_START.saturating_sub(began.elapsed()) + Duration::from_millis(100));
    assert_eq!(visits(&proxy, &backends, 40), [20, 20]);
    assert!(other.counts().sessions > back.counts().sessions);
    proxy.end();
}

#[test]
fn a_backup_is_used_only_while_no_other_is_ready() {
    let backends = Mortal::many::<3>();
    let [first, second, backup] = &backends;
    let list = [
        first.weighing(1),
        second.weighing(1),
        backup.with("backup = true"),
    ];
    let proxy = Proxy::start(&behind_two_workers(&list, "", &check(PING)));
    let expect = |shares: [usize; 3]| assert_eq!(visits(&proxy, &backends, 20), shares);
    let becomes = |backend: &Mortal, answer: Answer| {
        let from = proxy.lines().len();
        let well = answer == PONG;
        backend.answer_probes(answer);
        match well {
            true => comes_up(&proxy, from, backend),
            false => goes_down(&proxy, from, backend),
        };
    };
    expect([10, 10, 0]);
    becomes(first, SICK);
    expect([0, 20, 0]);
    becomes(second, SICK);
    expect([0, 0, 20]);
    becomes(backup, SICK);
    assert!(visit(&proxy.address("web")).is_err());
    becomes(backup, PONG);
    becomes(first, PONG);
    expect([20, 0, 0]);
    becomes(second, PONG);
    expect([10, 10, 0]);
    proxy.end();
}

#[test]
fn with_too_few_healthy_ones_health_is_ignored_and_the_log_says_so() {
    const BEGINS: &str = "too few backends are healthy: health is ignored";
    const ENDS: &str = "enough backends are healthy again";
    let backends = Mortal::many::<3>();
    let [first, second, third] = &backends;
    let proxy = checked(&backends, "fail_open_below = 0.5", PING);
    let told = |message: &str| {
        let lines = proxy.lines();
        let about = lines.iter().filter(|line| line["message"] == message);
        about
            .inspect(|line| assert_eq!(line["upstream"], "app"))
            .count()
    };
    let sick = |backend: &Mortal| {
        let from = proxy.lines().len();
        backend.answer_probes(SICK);
        goes_down(&proxy, from, backend);
    };
    for round in 1..=2 {
        sick(first);
        assert_eq!(visits(&proxy, &backends, 20), [0, 10, 10]);
        assert_eq!((told(BEGINS), told(ENDS)), (round - 1, round - 1));
        sick(second);
        assert_eq!(visits(&proxy, &backends, 30), [10, 10, 10]);
        eventually("it to be told", || (told(BEGINS) == round).then_some(()));
        sick(third);
        assert_eq!(visits(&proxy, &backends, 30), [10, 10, 10]);
        for backend in [third, second] {
            let from = proxy.lines().len();
            backend.answer_probes(PONG);
            comes_up(&proxy, from, backend);
        }
        assert_eq!(visits(&proxy, &backends, 20), [0, 10, 10]);
        eventually("it to be told", || (told(ENDS) == round).then_some(()));
        assert_eq!((told(BEGINS), told(ENDS)), (round, round));
        let from = proxy.lines().len();
        first.answer_probes(PONG);
        comes_up(&proxy, from, first);
        assert_eq!(visits(&proxy, &backends, 30), [10, 10, 10]);
    }
    proxy.end();
}
