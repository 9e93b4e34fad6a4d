//! Limits of sessions in time, in number and in memory, through the real binary.

mod common;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::backend::{Refusing, drain, echo};
use common::essentials::{self, MIB, there_and_back};
use common::pattern::Pattern;
use common::socket::{connect_with_small_window, ending_of, finish};
use common::system::{anonymous_kib, cpu_ticks, descriptors, threads};
use common::{
    Backend, Ending, Proxy, config, connect, ending, eventually, now, pass, plain, read_to_end,
    reset,
};
use rustix::process::{Resource, Rlimit, prlimit};

fn timeouts(lines: &str) -> String {
    format!("[listeners.web.timeouts]\n{lines}\n")
}

fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

#[test]
fn silence_ends_a_session_and_traffic_keeps_it() {
    let backend = Backend::echo();
    let tables = timeouts("idle = \"500ms\"");
    let mut proxy = Proxy::start(&config(&[&backend.address], "", "", &tables));
    let mut client = proxy.connect();
    for _ in 0..8 {
        pass(millis(150));
        client.write_all(b"x").expect("it lives");
        client.read_exact(&mut [0]).expect("it lives");
    }
    let began = now();
    assert_eq!(ending(&mut client), Ending::Fin);
    let took = began.elapsed();
    assert!((millis(450)..millis(2000)).contains(&took), "{took:?}");
    let session = proxy.next_session();
    assert_eq!(session.reason, "idle");
    assert_eq!((session.bytes_received, session.bytes_sent), (8, 8));
    proxy.end();
}

#[test]
fn bytes_in_one_direction_are_enough_to_stay() {
    let backend = Backend::start(|mut connection| {
        for _ in 0..10 {
            connection.write_all(b"x").expect("it is taken");
            pass(millis(100));
        }
    });
    let tables = timeouts("idle = \"400ms\"");
    let mut proxy = Proxy::start(&config(&[&backend.address], "", "", &tables));
    assert_eq!(read_to_end(&mut proxy.connect()).len(), 10);
    assert_eq!(proxy.next_session().reason, "backend-closed");
    proxy.end();
}

#[test]
fn a_half_closed_session_ends_with_reset_when_nothing_comes() {
    // It holds its answer back until the proxy gives up.
    let backend = Backend::start(|mut connection| {
        let _ = drain(&mut connection);
        let _ = connection.read(&mut [0]);
        pass(millis(2000));
    });
    let tables = timeouts("half_close = \"300ms\"");
    let mut proxy = Proxy::start(&config(&[&backend.address], "", "", &tables));
    let mut client = proxy.connect();
    finish(&client);
    let began = now();
    assert_eq!(ending(&mut client), Ending::Reset);
    let took = began.elapsed();
    assert!((millis(250)..millis(1800)).contains(&took), "{took:?}");
    assert_eq!(proxy.next_session().reason, "half-close");
    proxy.end();
}

/// Reads the pattern a little at a time, so that it takes about `time`.
fn read_slowly(client: &mut socket2::Socket, pattern: &mut Pattern, total: u64, time: Duration) {
    const STEPS: u64 = 40;
    for _ in 0..STEPS {
        pattern.check(client, total / STEPS).expect("it goes on");
        pass(time / STEPS as u32);
    }
}

#[test]
fn a_slow_reader_that_takes_bytes_is_not_idle() {
    let total = 16 * MIB;
    let backend = Backend::start(move |mut connection| {
        Pattern::new()
            .write(&mut connection, total)
            .expect("it is taken in the end");
    });
    let tables = timeouts("idle = \"500ms\"\nhalf_close = \"500ms\"");
    let mut proxy = Proxy::start(&config(&[&backend.address], "", "", &tables));
    let mut client = connect_with_small_window(&proxy.address("web"), 64 * 1024);
    let mut pattern = Pattern::new();
    read_slowly(&mut client, &mut pattern, total, millis(2000));
    pattern.check_to_end(&mut client).expect("FIN at the end");
    drop(client);
    let session = proxy.next_session();
    assert_eq!(
        (session.reason.as_str(), session.bytes_sent),
        ("backend-closed", total)
    );
    proxy.end();
}

#[test]
fn a_reader_that_takes_nothing_is_reset_when_the_timeout_is_over() {
    let backend = Backend::start(|mut connection| {
        // The proxy gives up in the middle.
        let _ = Pattern::new().write(&mut connection, 64 * MIB);
    });
    let tables = timeouts("idle = \"400ms\"");
    let mut proxy = Proxy::start(&config(&[&backend.address], "", "", &tables));
    let mut client = connect_with_small_window(&proxy.address("web"), 64 * 1024);
    assert_eq!(proxy.next_session().reason, "idle");
    let end = Pattern::new().check_to_end(&mut client);
    let end = end.expect_err("a truncation must not look like an end");
    assert_eq!(ending_of(&end), Ending::Reset);
    proxy.end();
}

/// Fills the cap, sees it hold, and sees a place that was left taken again.
fn cap_is_exact(mut proxy: Proxy, cap: usize, full: &str) {
    let refused = |proxy: &mut Proxy| {
        assert_eq!(ending(&mut proxy.connect()), Ending::Reset);
        assert_eq!(proxy.next_session().reason, full);
    };
    let serve = |client: &mut socket2::Socket| {
        client.write_all(b"x").expect("it is taken");
        client.read_exact(&mut [0]).expect("the echo comes");
    };
    for _ in 0..3 {
        let mut clients: Vec<_> = (0..cap).map(|_| proxy.connect()).collect();
        clients.iter_mut().for_each(serve);
        for _ in 0..5 {
            refused(&mut proxy);
        }
        clients.pop();
        assert_eq!(proxy.next_session().reason, "client-closed");
        let mut next = proxy.connect();
        serve(&mut next);
        refused(&mut proxy);
        drop((clients, next));
        for session in proxy.next_sessions(cap) {
            assert_eq!(session.reason, "client-closed");
        }
    }
    proxy.end();
}

#[test]
fn the_process_takes_max_connections_exactly() {
    let backend = Backend::echo();
    let tables = "[runtime]\nmax_connections = 10\nworkers = 2\n";
    cap_is_exact(
        Proxy::start(&config(&[&backend.address], "", "", tables)),
        10,
        "process-full",
    );
}

#[test]
fn a_listener_takes_max_connections_exactly() {
    let backend = Backend::echo();
    let tables = "[runtime]\nworkers = 2\n";
    let cap = "max_connections = 7";
    cap_is_exact(
        Proxy::start(&config(&[&backend.address], cap, "", tables)),
        7,
        "listener-full",
    );
}

#[test]
fn a_full_listener_leaves_another_alone() {
    let backend = Backend::echo();
    let other = "[listeners.other]\nbind = \"127.0.0.1:0\"\nupstream = \"app\"\n";
    let cap = "max_connections = 1";
    let proxy = Proxy::start(&config(&[&backend.address], cap, "", other));
    let mut only = proxy.connect();
    only.write_all(b"x").expect("it is taken");
    only.read_exact(&mut [0]).expect("the echo comes");
    assert_eq!(ending(&mut proxy.connect()), Ending::Reset);
    there_and_back(&connect(&proxy.address("other")), 1000);
    drop(only);
    proxy.end();
}

fn limit_descriptors(proxy: &Proxy, current: u64) {
    let limit = Rlimit {
        current: Some(current),
        maximum: Some(4096),
    };
    prlimit(Some(proxy.rustix_pid()), Resource::Nofile, limit).expect("it is our child");
}

/// Whether the client was served; else it was reset.
fn answered_or_reset(mut client: socket2::Socket) -> bool {
    let exchange = client
        .write_all(b"x")
        .and_then(|()| client.read_exact(&mut [0]));
    if let Err(error) = &exchange {
        assert_eq!(ending_of(error), Ending::Reset);
    }
    exchange.is_ok()
}

#[test]
fn accepting_pauses_without_descriptors_and_goes_on_by_itself() {
    let backend = Backend::echo();
    let tables = "[runtime]\nworkers = 2\n";
    // A multishot accept keeps to the limit of the time it was armed; a plain one sees the new one.
    let text = config(&[&backend.address], "", "", tables);
    let proxy = Proxy::start_without(&text, "multishot_accept");
    // Standard streams take these three, so that not one more can be opened.
    limit_descriptors(&proxy, 3);
    let clients: Vec<_> = (0..30).map(|_| proxy.connect()).collect();
    proxy.wait_message(0, "accepting pauses");
    let (ticks, began) = (cpu_ticks(proxy.pid()), now());
    pass(millis(2500));
    let (ticks, took) = (cpu_ticks(proxy.pid()) - ticks, began.elapsed());
    // A worker that spins takes all of a CPU: a hundred ticks a second.
    assert!(ticks < 25, "{ticks} ticks in {took:?}");
    let lines = proxy.lines();
    let pauses = lines
        .iter()
        .filter(|line| line["message"] == "accepting pauses")
        .count();
    assert!((2..=4).contains(&pauses), "{pauses} lines in {took:?}");
    limit_descriptors(&proxy, 4096);
    let served = clients.into_iter().map(answered_or_reset);
    // Each worker had an accept under way, which still had the old limit.
    assert!(served.filter(|served| *served).count() >= 28);
    there_and_back(&proxy.connect(), MIB);
    proxy.end();
}

#[test]
fn when_descriptors_run_out_nobody_is_left_hanging() {
    let backend = Backend::echo();
    let proxy = Proxy::start(&plain(&[&backend.address]));
    limit_descriptors(&proxy, descriptors(proxy.pid()) as u64 + 6);
    let clients: Vec<_> = (0..30).map(|_| proxy.connect()).collect();
    limit_descriptors(&proxy, 4096);
    clients.into_iter().map(answered_or_reset).for_each(drop);
    there_and_back(&proxy.connect(), MIB);
    proxy.end();
}

#[test]
fn a_hundred_connections_share_four_buffers() {
    let backend = Backend::echo();
    let tables = "[runtime]\nbuffer_memory = \"64KiB\"\nworkers = 1\n";
    let mut proxy = Proxy::start(&config(&[&backend.address], "", "", tables));
    let clients: Vec<_> = (0..100)
        .map(|_| {
            let client = proxy.connect();
            thread::Builder::new()
                .stack_size(512 * 1024)
                .spawn(move || there_and_back(&client, 200_000))
                .expect("a thread")
        })
        .collect();
    for client in clients {
        client.join().expect("every byte is right");
    }
    for session in proxy.next_sessions(100) {
        assert_eq!(session.reason, "client-closed");
        assert_eq!(
            (session.bytes_received, session.bytes_sent),
            (200_000, 200_000)
        );
    }
    proxy.end();
}

#[test]
fn a_slow_reader_costs_little_memory_and_holds_nobody_up() {
    essentials::slow_reader(&Proxy::start, 256 * MIB);
}

#[test]
fn stalled_readers_leave_buffers_for_others_and_cost_no_cpu() {
    let flood = Backend::start(|mut connection| {
        let _ = Pattern::new().write(&mut connection, 64 * MIB);
    });
    let quick = Backend::echo();
    let tables = format!(
        "[listeners.quick]\nbind = \"127.0.0.1:0\"\nupstream = \"quick\"\n\
         [upstreams.quick]\nbackends = [{:?}]\n\
         [runtime]\nworkers = 1\nbuffer_memory = \"1MiB\"\n",
        quick.address
    );
    let proxy = Proxy::start(&config(&[&flood.address], "", "", &tables));
    let stalled: Vec<_> = (0..8)
        .map(|_| connect_with_small_window(&proxy.address("web"), 16 * 1024))
        .collect();
    // Their send buffers fill up first.
    let mut ticks = cpu_ticks(proxy.pid());
    eventually("the stalled sessions to come to rest", || {
        pass(millis(300));
        let now = cpu_ticks(proxy.pid());
        let rest = now - ticks <= 1;
        ticks = now;
        rest.then_some(())
    });
    let began = now();
    for _ in 0..5 {
        there_and_back(&connect(&proxy.address("quick")), MIB);
    }
    let took = began.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    let ticks = cpu_ticks(proxy.pid());
    pass(millis(1000));
    let used = cpu_ticks(proxy.pid()) - ticks;
    assert!(used <= 10, "{used} ticks in a second of standing still");
    drop(stalled);
}

#[test]
fn no_descriptor_stays_behind_and_no_kernel_thread_is_made() {
    let (echoing, refusing) = (Backend::echo(), Refusing::new());
    let resetting = Backend::start(|mut connection| {
        let _ = connection.read(&mut [0; 100]);
        reset(connection);
    });
    let tables = "[runtime]\nworkers = 2\n[upstreams.app.retry]\nattempts = 0\n";
    let backends = [&*echoing.address, &refusing.address, &resetting.address];
    let proxy = Proxy::start(&config(&backends, "", "", tables));
    let (address, pid) = (proxy.address("web"), proxy.pid());
    let round = |connections: usize| {
        for number in 0..connections {
            let mut client = connect(&address);
            match number % 4 {
                // Gone before anybody looked.
                0 => reset(client),
                1 => drop(client),
                2 => {
                    let _ = client.write_all(&[0; 50_000]);
                    drop(client);
                }
                _ => {
                    let _ = client.write_all(b"x");
                    let _ = client.shutdown(Shutdown::Write);
                    let _ = client.read(&mut [0; 100]);
                }
            }
        }
    };
    round(100);
    let settled = |number: usize| {
        eventually("sessions to end", || {
            (descriptors(pid) == number).then_some(())
        });
    };
    // Its ring and signals are open; a mailbox is not. What is left after a while is the rest.
    let idle = eventually("the first sessions to end", || {
        let first = descriptors(pid);
        pass(millis(300));
        (descriptors(pid) == first).then_some(first)
    });
    round(1000);
    settled(idle);
    let names = threads(pid);
    assert!(names.iter().any(|name| name == "worker-0"), "{names:?}");
    assert!(
        !names.iter().any(|name| name.starts_with("iou-wrk")),
        "{names:?}"
    );
    proxy.end();
}

#[test]
fn an_idle_connection_costs_less_than_a_kibibyte() {
    const CONNECTIONS: usize = 2000;
    let (sender, connections) = mpsc::channel::<socket2::Socket>();
    // One thread for all: it answers each once and keeps it open.
    thread::spawn(move || {
        let mut open = Vec::new();
        for mut connection in connections {
            connection.read_exact(&mut [0]).expect("it comes");
            connection.write_all(b"y").expect("it is taken");
            open.push(connection);
        }
    });
    let sender = std::sync::Mutex::new(sender);
    let backend = Backend::start(move |connection| {
        let sender = sender.lock().expect("nobody panicked");
        sender.send(connection).expect("the other thread waits");
    });
    let tables = "[runtime]\nworkers = 2\n";
    let proxy = Proxy::start(&config(&[&backend.address], "", "", tables));
    let exchange = || {
        let mut client = proxy.connect();
        client.write_all(b"x").expect("it is taken");
        client.read_exact(&mut [0]).expect("the answer comes");
        client
    };
    let mut clients: Vec<_> = (0..100).map(|_| exchange()).collect();
    let before = anonymous_kib(proxy.pid());
    clients.extend((0..CONNECTIONS).map(|_| exchange()));
    let grown = anonymous_kib(proxy.pid()).saturating_sub(before);
    let bytes = grown * 1024 / CONNECTIONS as u64;
    println!("{bytes} bytes for an idle connection");
    assert!(bytes <= 1024, "{bytes} bytes for an idle connection");
    drop(clients);
}

#[test]
fn a_session_that_idles_costs_no_cpu() {
    let backend = Backend::start(echo);
    let proxy = Proxy::start(&plain(&[&backend.address]));
    let mut client = proxy.connect();
    client.write_all(b"x").expect("it is taken");
    client.read_exact(&mut [0]).expect("the echo comes");
    pass(millis(100));
    let ticks = cpu_ticks(proxy.pid());
    pass(millis(1000));
    let used = cpu_ticks(proxy.pid()) - ticks;
    assert!(used <= 3, "{used} ticks in a second of silence");
    drop(client);
    proxy.end();
}
