//! Bugs that showed in the whole process, on real sockets.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use crate::common::backend::{drain, finish_and_wait};
use crate::common::essentials::MIB;
use crate::common::pattern::Pattern;
use crate::common::proxy::text;
use crate::common::socket::{connect_with_small_window, ending_of, finish};
use crate::common::system::{cpu_ticks, taken_by_the_other_end, threads};
use crate::common::{Backend, Ending, Proxy, config, ending, pass, plain, read_to_end, reset};
use rustix::process::Signal;

/// Fits into the kernel's send buffer, so that the proxy has handed on everything while the reader
/// has hardly begun.
const IN_THE_KERNEL: u64 = MIB;

/// Reads `count` bytes in steps, evenly over `time`.
fn read_slowly(client: &mut socket2::Socket, pattern: &mut Pattern, count: u64, time: Duration) {
    const STEPS: u32 = 32;
    for _ in 0..STEPS {
        pattern
            .check(client, count / u64::from(STEPS))
            .expect("it goes on");
        pass(time / STEPS);
    }
}

#[test]
fn a_reader_of_what_the_kernel_holds_is_not_idle() {
    let backend = Backend::start(|mut connection| {
        Pattern::new()
            .write(&mut connection, IN_THE_KERNEL)
            .expect("it is taken");
        let mut thanks = [0; 6];
        connection.read_exact(&mut thanks).expect("it comes");
        connection.write_all(b"bye").expect("it is taken");
        finish_and_wait(connection);
    });
    let tables = "[listeners.web.timeouts]\nidle = \"500ms\"\n";
    let mut proxy = Proxy::start(&config(&[&backend.address], "", "", tables));
    let mut client = connect_with_small_window(&proxy.address("web"), 32 * 1024);
    let mut pattern = Pattern::new();
    let time = Duration::from_secs(2);
    read_slowly(&mut client, &mut pattern, IN_THE_KERNEL, time);
    client.write_all(b"thanks").expect("the session lives");
    assert_eq!(read_to_end(&mut client), b"bye");
    drop(client);
    assert_eq!(proxy.next_session().reason, "backend-closed");
    proxy.end();
}

#[test]
fn a_reader_of_what_the_kernel_holds_after_the_backends_fin_is_not_reset() {
    let backend = Backend::start(|mut connection| {
        Pattern::new()
            .write(&mut connection, IN_THE_KERNEL)
            .expect("it is taken");
        finish_and_wait(connection);
    });
    let tables = "[listeners.web.timeouts]\nhalf_close = \"500ms\"\n";
    let mut proxy = Proxy::start(&config(&[&backend.address], "", "", tables));
    let mut client = connect_with_small_window(&proxy.address("web"), 32 * 1024);
    let mut pattern = Pattern::new();
    let time = Duration::from_secs(2);
    read_slowly(&mut client, &mut pattern, IN_THE_KERNEL, time);
    assert_eq!(ending(&mut client), Ending::Fin);
    drop(client);
    assert_eq!(proxy.next_session().reason, "backend-closed");
    proxy.end();
}

#[test]
fn a_slow_reader_gets_every_byte_before_a_reset_however_long_it_takes() {
    let backend = Backend::start(|mut connection| {
        Pattern::new()
            .write(&mut connection, IN_THE_KERNEL)
            .expect("it is taken");
        taken_by_the_other_end(&connection);
        reset(connection);
    });
    let tables = "[listeners.web.timeouts]\nhalf_close = \"500ms\"\n";
    let mut proxy = Proxy::start(&config(&[&backend.address], "", "", tables));
    let mut client = connect_with_small_window(&proxy.address("web"), 32 * 1024);
    let mut pattern = Pattern::new();
    let time = Duration::from_secs(2);
    read_slowly(&mut client, &mut pattern, IN_THE_KERNEL, time);
    assert_eq!(ending(&mut client), Ending::Reset);
    assert_eq!(proxy.next_session().reason, "backend-reset");
    proxy.end();
}

#[test]
fn a_reader_that_has_stopped_does_not_hold_a_broken_session_for_ever() {
    let backend = Backend::start(|mut connection| {
        Pattern::new()
            .write(&mut connection, IN_THE_KERNEL)
            .expect("it is taken");
        taken_by_the_other_end(&connection);
        reset(connection);
    });
    let tables = "[listeners.web.timeouts]\nhalf_close = \"300ms\"\n";
    let mut proxy = Proxy::start(&config(&[&backend.address], "", "", tables));
    let mut client = connect_with_small_window(&proxy.address("web"), 32 * 1024);
    assert_eq!(proxy.next_session().reason, "backend-reset");
    let end = Pattern::new().check_to_end(&mut client);
    let end = end.expect_err("a truncation must not look like an end");
    assert_eq!(ending_of(&end), Ending::Reset);
    proxy.end();
}

#[test]
fn the_last_sessions_are_in_the_log_before_the_process_ends() {
    let backend = Backend::echo();
    for _ in 0..5 {
        let tables = "[runtime]\nworkers = 2\ndrain_timeout = \"50ms\"\n";
        let mut proxy = Proxy::start(&config(&[&backend.address], "", "", tables));
        let clients: Vec<_> = (0..20)
            .map(|_| {
                let mut client = proxy.connect();
                client.write_all(b"x").expect("it is taken");
                client.read_exact(&mut [0]).expect("the echo comes");
                client
            })
            .collect();
        proxy.signal(Signal::TERM);
        assert_eq!(proxy.wait_exit().code(), Some(0));
        for session in proxy.next_sessions(20) {
            assert_eq!(session.reason, "drained");
        }
        drop(clients);
    }
}

#[test]
fn a_client_that_has_gone_keeps_its_address_in_the_log() {
    let backend = Backend::start(|mut connection| {
        let _ = drain(&mut connection);
    });
    let mut proxy = Proxy::start(&plain(&[&backend.address]));
    for _ in 0..50 {
        let client = proxy.connect();
        let address = client.local_addr().expect("it is connected");
        let address = address.as_socket().expect("an IP address").to_string();
        reset(client);
        assert_eq!(proxy.next_session().client, address);
    }
    proxy.end();
}

/// io_uring takes a peer's FIN for readiness to write: a send without room on such a socket is tried
/// 128 times in a row, handed to a kernel thread, and fails with EAGAIN.
#[test]
fn a_slow_reader_that_has_sent_fin_gets_every_byte() {
    let total = 32 * MIB;
    let backend = Backend::start(move |mut connection| {
        drain(&mut connection).1.expect("FIN");
        Pattern::new()
            .write(&mut connection, total)
            .expect("it is taken");
    });
    let mut proxy = Proxy::start(&plain(&[&backend.address]));
    let mut client = connect_with_small_window(&proxy.address("web"), 64 * 1024);
    finish(&client);
    pass(Duration::from_millis(300));
    let ticks = cpu_ticks(proxy.pid());
    pass(Duration::from_millis(1000));
    let used = cpu_ticks(proxy.pid()) - ticks;
    assert!(used <= 3, "{used} ticks in a second of standing still");
    let mut pattern = Pattern::new();
    pattern.check_to_end(&mut client).expect("FIN at the end");
    assert_eq!(pattern.place, total);
    let names = threads(proxy.pid());
    let punted = names.iter().any(|name| name.starts_with("iou-wrk"));
    assert!(!punted, "{names:?}");
    assert_eq!(proxy.next_session().reason, "client-closed");
    proxy.end();
}

/// The same, with the FIN coming while the send waits for room.
#[test]
fn fin_from_a_slow_reader_does_not_break_the_send_that_waits_for_it() {
    let total = 32 * MIB;
    let backend = Backend::start(move |mut connection| {
        Pattern::new()
            .write(&mut connection, total)
            .expect("it is taken");
        finish_and_wait(connection);
    });
    let mut proxy = Proxy::start(&plain(&[&backend.address]));
    let mut client = connect_with_small_window(&proxy.address("web"), 64 * 1024);
    pass(Duration::from_millis(300));
    finish(&client);
    pass(Duration::from_millis(300));
    let mut pattern = Pattern::new();
    pattern.check_to_end(&mut client).expect("FIN at the end");
    assert_eq!(pattern.place, total);
    let names = threads(proxy.pid());
    let punted = names.iter().any(|name| name.starts_with("iou-wrk"));
    assert!(!punted, "{names:?}");
    assert_eq!(proxy.next_session().reason, "client-closed");
    proxy.end();
}

/// A multishot receive forgets the end of a unix socket's stream when it comes together with the
/// last bytes, and nothing wakes it again.
#[test]
fn the_end_of_a_unix_stream_is_seen_when_it_comes_with_the_last_byte() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| format!("unix:{}/{name}", folder.path().display());
    let backend = Backend::at(&path("back"), crate::common::backend::echo);
    let listener = format!("bind = {:?}\n", path("front"));
    let tables = "[runtime]\nworkers = 1\n";
    let proxy = Proxy::start(&config(&[&backend.address], &listener, "", tables));
    for _ in 0..20 {
        let mut clients: Vec<_> = (0..50).map(|_| proxy.connect()).collect();
        for client in &mut clients {
            client.write_all(b"x").expect("it is taken");
            client.read_exact(&mut [0]).expect("the echo comes");
        }
        for client in &mut clients {
            client.write_all(b"y").expect("it is taken");
            finish(client);
        }
        for client in &mut clients {
            assert_eq!(read_to_end(client), b"y");
        }
    }
    proxy.end();
}

/// splice(2) stops at TCP's urgent mark for good: EAGAIN though data is there, and 0 after FIN. The
/// worker turned without end, and what followed the mark was lost behind a clean FIN.
#[test]
fn bulk_with_urgent_data_arrives_whole() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let backend = Backend::start(move |mut connection| {
        let mut pattern = Pattern::new();
        let end = pattern.check_to_end(&mut connection);
        let _ = sender.send((pattern.place, end.is_ok()));
    });
    let proxy = Proxy::start(&plain(&[&backend.address]));
    let mut client = proxy.connect();
    let mut pattern = Pattern::new();
    pattern.write(&mut client, 32 * MIB).expect("it is taken");
    client.send_out_of_band(b"!").expect("it is taken");
    pattern.write(&mut client, 200_000).expect("it is taken");
    pass(Duration::from_millis(300));
    let ticks = cpu_ticks(proxy.pid());
    pass(Duration::from_millis(1000));
    let used = cpu_ticks(proxy.pid()) - ticks;
    assert!(used <= 5, "{used} ticks in a second of silence");
    finish(&client);
    let (place, whole) = receiver.recv().expect("the backend has an end");
    assert_eq!((place, whole), (32 * MIB + 200_000, true));
    proxy.end();
}

#[test]
fn a_reload_promises_no_more_descriptors_than_there_are() {
    let backend = Backend::start(finish_and_wait);
    let with = |preconnect: usize, runtime: &str| {
        let pool = format!("pool.preconnect = {preconnect}");
        let config = config(&[&backend.address], "", &pool, "");
        format!("[runtime]\nworkers = 1\n{runtime}\n{config}")
    };
    let most = |line: &serde_json::Value| line["max_connections"].as_u64();
    let proxy = Proxy::start(&with(1, ""));
    let at_start = proxy.wait_line("the start", most);
    // Each of 400 more connections ahead takes the place of half a session.
    let reloaded = proxy.reload(&with(401, ""));
    assert_eq!(text(&reloaded, "message"), "reloaded");
    assert_eq!(most(&reloaded), Some(at_start - 200));
    proxy.end();
    let all = format!("max_connections = {at_start}");
    let proxy = Proxy::start(&with(1, &all));
    let refused = proxy.reload(&with(401, &all));
    let refusal = text(&refused, "message");
    assert!(refusal.contains("RLIMIT_NOFILE"), "{refused}");
    proxy.end();
}

/// A configuration to be compared was read by the control thread, which heard nothing meanwhile: names that
/// are to be resolved may take minutes.
#[test]
fn a_plan_that_takes_its_time_holds_nothing_up() {
    let backend = Backend::echo();
    let proxy = Proxy::start(&plain(&[&backend.address]));
    let backends = (0..60_000).map(|it| format!("'10.{}.{}.1:80',", it / 250, it % 250));
    let text = format!(
        "[listeners.web]\nbind = '127.0.0.1:0'\nupstream = 'app'\n\
         [upstreams.app]\nbackends = [{}]\n",
        backends.collect::<String>()
    );
    let request = serde_json::json!({"command": "plan", "file": "long.toml", "text": text});
    let mut plan = proxy.visitor();
    plan.write_all(format!("{request}\n").as_bytes())
        .expect("it is taken");
    proxy.wait_line("the request", |line| {
        (line["command"] == "plan").then_some(())
    });
    let mut status = proxy.visitor();
    status
        .write_all(b"{\"command\":\"status\"}\n")
        .expect("it is taken");
    let mut answer = String::new();
    status.read_to_string(&mut answer).expect("it is answered");
    plan.set_nonblocking(true).expect("a socket");
    let early = plan.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(early, Err(ErrorKind::WouldBlock), "it was answered first");
    plan.set_nonblocking(false).expect("a socket");
    plan.read_to_string(&mut answer).expect("it is answered");
    proxy.end();
}
