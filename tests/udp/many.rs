//! Thousands of sessions: what they take, that all of it comes back, and what a flood does to them.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::crowd::Crowd;
use crate::common::datagrams::{DatagramBackend, udp_config};
use crate::common::system::{anonymous_kib, descriptors};
use crate::common::{Proxy, by_hand, eventually, now, pass};
use crate::{closed, listener, wait_sessions};

/// Two workers, and no line for every session: the lines wait in the memory that is looked at.
const TABLES: &str = "[runtime]\nworkers = 2\n[log]\nlevel = \"info\"\nformat = \"json\"\n";

/// What one of the crowd says.
const BYTES: [u8; 64] = [7; 64];

/// Questions on their way at once.
const AT_ONCE: usize = 50;

/// When somebody has spoken last, at the earliest and at the latest.
type Spoke = Range<Instant>;

/// Each of these sends and hears its bytes again. Returns when.
fn exchange(crowd: &Crowd, who: Range<u32>) -> Vec<Spoke> {
    let who: Vec<_> = who.collect();
    let ask = |who: &[u32]| {
        let asked = now();
        let mut waiting: HashSet<u32> = who.iter().copied().collect();
        who.iter().for_each(|it| crowd.send(*it, &BYTES));
        eventually("the answers", || {
            while let Some((who, bytes)) = crowd.take() {
                assert_eq!(bytes, BYTES);
                assert!(waiting.remove(&who), "{who} has not asked");
            }
            waiting.is_empty().then_some(())
        });
        vec![asked..now(); who.len()]
    };
    who.chunks(AT_ONCE).flat_map(ask).collect()
}

/// More than the pulses of a test take, which the process keeps for whoever looks.
const HISTORY_KIB: u64 = 64;

#[test]
fn thousands_of_sessions_are_small_and_leave_nothing_behind() {
    let count = by_hand("RINGRESS_TEST_SESSIONS", 3_000);
    let backend = DatagramBackend::echo();
    let text = "session_timeout = \"3s\"";
    let proxy = Proxy::start(&udp_config(&[&backend.address], "", text, TABLES));
    let crowd = Crowd::to(&proxy.address("web"));
    let before = descriptors(proxy.pid());
    // The first ones touch buffers that all use.
    let (first, all) = (0..100, 100..100 + count as u32);
    exchange(&crowd, first.clone());
    let kib = || anonymous_kib(proxy.pid());
    let before_kib = kib();

    let waves = [first.len(), 0].map(|others| {
        let spoke = exchange(&crowd, all.clone());
        let most_kib = kib();
        assert!(descriptors(proxy.pid()) >= before + others + count);
        while end_in_time(&proxy, &spoke, others) > 0 {
            pass(Duration::from_millis(50));
        }
        wait_sessions(&proxy, 0);
        // The connection that has asked for the sessions may be there for a moment more.
        eventually("every descriptor", || {
            (descriptors(proxy.pid()) == before).then_some(())
        });
        (most_kib, kib())
    });
    assert_eq!(closed(&proxy, "idle"), (first.len() + 2 * count) as u64);
    println!("{count} sessions; KiB: {before_kib} before, with and after them {waves:?}");
    let [(first_kib, _), (again_kib, after_kib)] = waves;
    assert!(first_kib - before_kib <= count as u64, "a KiB for each");
    // What is kept is of use to the next ones, but for how they are shared out among the workers.
    assert!(again_kib <= first_kib + count as u64 / 4);
    assert!(after_kib <= again_kib + HISTORY_KIB);
    proxy.end();
}

/// `session_timeout` of the listener.
const TIMEOUT: Duration = Duration::from_secs(3);

/// None ends before its time, and none is there a second later; of so many others that is not known.
/// Returns how many have not reached their time.
fn end_in_time(proxy: &Proxy, spoke: &[Spoke], others: usize) -> usize {
    const LATEST: Duration = TIMEOUT.saturating_add(Duration::from_secs(1));
    let late = |it: &&Spoke| it.end.elapsed() < LATEST;
    let most = spoke.iter().filter(late).count() + others;
    let sessions = listener(proxy)["sessions"].as_u64().expect("a number") as usize;
    let early = |it: &&Spoke| it.start.elapsed() < TIMEOUT;
    let least = spoke.iter().filter(early).count();
    assert!(
        (least..=most).contains(&sessions),
        "{least} {sessions} {most}"
    );
    least
}

/// Sessions that are all that the listener takes.
const LIVE: u32 = 1_000;
/// Datagrams of others.
const FLOOD: u32 = 60_000;

/// The sessions, which speak all the time.
struct Speakers<'a> {
    crowd: &'a Crowd,
    sent: u64,
    lost: u64,
    /// By its number, when a datagram was sent that nobody has answered.
    waiting: BTreeMap<u64, Instant>,
}

impl Speakers<'_> {
    /// Takes what has come, and sends what may be sent.
    fn speak(&mut self, at_once: usize) {
        /// Far more than any queue holds it up.
        const LOST_AFTER: Duration = Duration::from_secs(2);
        while let Some((who, bytes)) = self.crowd.take() {
            let number = u64::from_be_bytes(bytes.try_into().expect("it was sent so"));
            assert_eq!(u64::from(who), number % u64::from(LIVE), "another's answer");
            assert!(self.waiting.remove(&number).is_some(), "twice, or too late");
        }
        self.waiting.retain(|_, sent| {
            let is_lost = sent.elapsed() > LOST_AFTER;
            self.lost += u64::from(is_lost);
            !is_lost
        });
        while self.waiting.len() < at_once {
            let who = (self.sent % u64::from(LIVE)) as u32;
            self.waiting.insert(self.sent, now());
            self.crowd.send(who, &self.sent.to_be_bytes());
            self.sent += 1;
        }
    }

    /// Waits for all that may still come.
    fn finish(&mut self) {
        while !self.waiting.is_empty() {
            self.speak(0);
            pass(Duration::from_millis(1));
        }
    }
}

/// What became of all datagrams.
struct Endured {
    datagrams: Value,
    sent: u64,
    lost: u64,
}

impl Endured {
    fn dropped(&self, reason: &str) -> u64 {
        self.datagrams["dropped"][reason].as_u64().unwrap_or(0)
    }
}

/// The sessions speak while others send `burst` datagrams at once every millisecond. No session of the
/// others begins, and each of their datagrams is counted.
fn endure(burst: u32) -> Endured {
    let backend = DatagramBackend::echo();
    let cap = format!("max_sessions = {LIVE}");
    let proxy = Proxy::start(&udp_config(&[&backend.address], "", &cap, TABLES));
    let [live, strangers] = [0, 0].map(|_| Crowd::to(&proxy.address("web")));
    exchange(&live, 0..LIVE);
    let mut speakers = Speakers {
        crowd: &live,
        sent: 0,
        lost: 0,
        waiting: BTreeMap::new(),
    };
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            flood(&strangers, burst);
            over.store(true, Ordering::Relaxed);
        });
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                assert_eq!(listener(&proxy)["sessions"], LIVE);
                pass(Duration::from_millis(20));
            }
        });
        while !over.load(Ordering::Relaxed) {
            speakers.speak(AT_ONCE);
        }
    });
    speakers.finish();
    // With its next datagram a socket tells what it has lost.
    exchange(&live, 0..LIVE);
    assert!(strangers.take().is_none(), "a stranger was served");
    let listener = listener(&proxy);
    assert_eq!(
        (&listener["sessions"], &listener["accepted"]),
        (&LIVE.into(), &LIVE.into())
    );
    proxy.end_now();
    let endured = Endured {
        datagrams: listener["datagrams"].clone(),
        sent: speakers.sent + 2 * u64::from(LIVE),
        lost: speakers.lost,
    };
    println!(
        "{} sent, {} lost: {}",
        endured.sent, endured.lost, endured.datagrams
    );
    let of_flood = endured.dropped("listener-full") + endured.dropped("overflow") - endured.lost;
    assert_eq!(of_flood, u64::from(FLOOD));
    assert_eq!(endured.datagrams["sent"], endured.sent - endured.lost);
    endured
}

fn flood(strangers: &Crowd, burst: u32) {
    let began = now();
    let mut due = began;
    for who in 0..FLOOD {
        strangers.send(who, &BYTES);
        if who % burst == burst - 1 {
            due += Duration::from_millis(1);
            pass(due.saturating_duration_since(now()));
        }
    }
    println!("a flood of {FLOOD} datagrams took {:?}", began.elapsed());
}

#[test]
fn a_flood_of_strangers_costs_the_sessions_nothing() {
    let endured = endure(20);
    assert_eq!(endured.lost, 0);
}

/// What the listener's queue has no room for can't be told apart: sessions lose some, too. All of it is
/// counted, and afterwards everything is as it was.
#[test]
fn a_flood_that_is_too_fast_is_counted_and_passes() {
    endure(FLOOD);
}
