//! Many upgrades, one after the other, while clients of every kind come and go.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ringress::control::socket::client;
use ringress::control::socket::path::Folders;
use ringress::control::socket::protocol::{Command, Outcome};

use super::{QUIET, app, by_hand, listener, of_listener, wait_old_processes};
use crate::common::lineage::{Console, Lineage};
use crate::common::load::{Load, quick_backend};
use crate::common::{PATIENCE, eventually, pass, system};

/// What was counted on a listener: accepted, and closed by reason.
type Counts = (u64, BTreeMap<String, u64>);

/// What a process needs when nobody is there.
#[derive(Debug)]
struct Size {
    descriptors: usize,
    memory_kib: u64,
}

impl Size {
    fn of(line: &mut Lineage) -> Self {
        line.wait_alone();
        wait_old_processes(&line.console, 0);
        Self {
            descriptors: system::descriptors(line.pid()),
            memory_kib: system::anonymous_kib(line.pid()),
        }
    }
}

#[test]
fn upgrades_in_a_row_lose_nothing_and_leave_nothing_behind() {
    let upgrades = by_hand("RINGRESS_TEST_UPGRADES", 20);
    let backend = quick_backend();
    let text = |workers| {
        let app = app(&[&backend.address], workers);
        format!("{}{app}{QUIET}", listener("web", "127.0.0.1:0"))
    };
    let mut line = Lineage::start(&text(1));
    let address = line.proxy.address("web");
    // From now on there are two sockets, whoever uses them.
    line.upgrade_to(&text(2));
    line.upgrade_to(&text(1));
    let before = Size::of(&mut line);
    let (console, watching) = (line.console.clone(), AtomicBool::new(true));
    let connected = thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&console, &watching));
        let loads = [
            Load::kept(2, &address),
            Load::renewed(2, &address, 200),
            Load::fresh(4, &address),
            Load::knocking(1, &address),
        ];
        for number in 1..=upgrades {
            loads.iter().for_each(|load| load.goes_on(20));
            line.upgrade_to(&text(1 + number % 2));
        }
        loads.iter().for_each(|load| load.goes_on(20));
        let connected = loads.into_iter().map(Load::stop).sum::<u64>();
        watching.store(false, Ordering::Relaxed);
        let seen = watcher.join().expect("nothing was counted backwards");
        println!("{upgrades} upgrades, {connected} connections, {seen} looks");
        connected
    });
    let status = wait_old_processes(&line.console, 0);
    assert_eq!(status.workers, 1 + upgrades as u64 % 2);
    assert_eq!(status.generation, 3 + upgrades as u64);
    eventually("everybody to be counted", || {
        let status = line.console.status();
        let web = of_listener(&status, "web");
        let closed = web.closed.values().sum::<u64>();
        assert!(web.accepted <= connected && closed <= connected);
        (web.accepted == connected && closed == connected).then_some(())
    });
    line.upgrade_to(&text(1));
    let after = Size::of(&mut line);
    println!("{before:?}, then {after:?}");
    // A command's connection may be closing.
    eventually("as many descriptors as before", || {
        (system::descriptors(line.pid()) <= before.descriptors).then_some(())
    });
    assert!(after.memory_kib < before.memory_kib + before.memory_kib / 10 + 512);
    line.end();
}

/// Looks all the time at what is counted, which never gets less. How often it looked.
fn watch(console: &Console, watching: &AtomicBool) -> u64 {
    let (mut seen, mut last) = (0, Counts::default());
    while watching.load(Ordering::Relaxed) {
        if let Some(counts) = look(console) {
            assert!(!is_less(&counts, &last), "{last:?}, then {counts:?}");
            (seen, last) = (seen + 1, counts);
        }
        // Others need the processor, too.
        pass(Duration::from_millis(2));
    }
    seen
}

/// None while one process's control socket takes the place of another's.
fn look(console: &Console) -> Option<Counts> {
    let folders = Folders {
        service: Some(console.folder.clone()),
        system: console.folder.clone(),
        user: None,
    };
    let found = folders.of_process_with(&console.file).expect("a path");
    let Ok(Outcome::Status(status)) = client::ask(&found, &Command::Status, PATIENCE) else {
        return None;
    };
    let web = of_listener(&status, "web");
    Some((web.accepted, web.closed.clone()))
}

fn is_less((accepted, closed): &Counts, before: &Counts) -> bool {
    let now = |reason: &String| closed.get(reason).copied().unwrap_or_default();
    let mut reasons = before.1.iter();
    *accepted < before.0 || reasons.any(|(reason, count)| now(reason) < *count)
}

#[test]
fn a_change_of_workers_serves_what_waits_in_every_queue() {
    // Longer than the queue of each socket may get.
    let backend = quick_backend();
    let text = |workers| {
        let app = app(&[&backend.address], workers);
        format!("{}{app}{QUIET}", listener("web", "127.0.0.1:0"))
    };
    let mut line = Lineage::start(&text(3));
    let address = line.proxy.address("web");
    let load = Load::fresh(8, &address);
    for workers in [1, 2, 1, 3, 1] {
        load.goes_on(50);
        line.upgrade_to(&text(workers));
    }
    load.stop();
    line.end();
}
