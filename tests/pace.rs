//! Bandwidth of connections, through the real binary.

mod common;

use std::io::{Read, Write};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::backend::{drain, finish_and_wait};
use common::essentials::{MIB, there_and_back};
use common::pattern::Pattern;
use common::socket::{connect_with_small_window, ending_of, finish};
use common::system::{anonymous_kib, cpu_ticks};
use common::{Backend, Ending, Proxy, config, connect, ending, now, pass, reset, told};
use socket2::Socket;

fn paced(backend: &Backend, rate: &str, burst: &str, tables: &str) -> Proxy {
    let limit = format!("rate_limit = {{ bandwidth = {{ rate = {rate:?}, burst = {burst:?} }} }}");
    let tables = format!("[runtime]\nworkers = 2\n{tables}");
    Proxy::start(&config(&[&backend.address], &limit, "", &tables))
}

/// Writes `count` bytes and FIN while it reads as many; how long reading took.
fn both_ways(socket: &Socket, count: u64) -> Duration {
    let began = now();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut writing = socket;
            Pattern::new().write(&mut writing, count).expect("taken");
            finish(socket);
        });
        let (mut pattern, mut reading) = (Pattern::new(), socket);
        pattern.check_to_end(&mut reading).expect("FIN at the end");
        assert_eq!(pattern.place, count);
    });
    began.elapsed()
}

#[test]
fn both_directions_have_the_bandwidth_at_once_and_cost_no_cpu() {
    let (tell, took) = mpsc::channel();
    let backend = Backend::start(move |connection| {
        let _ = tell.send(both_ways(&connection, 3 * MIB));
    });
    let quick = Backend::echo();
    let tables = format!(
        "[listeners.quick]\nbind = \"127.0.0.1:0\"\nupstream = \"quick\"\n\
         [upstreams.quick]\nbackends = [{:?}]\n",
        quick.address
    );
    let mut proxy = paced(&backend, "1MiB", "256KiB", &tables);
    let client = proxy.connect();
    let (memory, ticks) = (anonymous_kib(proxy.pid()), cpu_ticks(proxy.pid()));
    let download = thread::spawn(move || both_ways(&client, 3 * MIB));
    let other = connect(&proxy.address("quick"));
    let began = now();
    there_and_back(&other, 64 * 1024);
    let exchange = began.elapsed();
    assert!(exchange < Duration::from_secs(1), "{exchange:?}");
    let download = download.join().expect("every byte is right");
    let upload = told(&took);
    for time in [download, upload] {
        let seconds = time.as_secs_f64();
        assert!(
            (2.475..=3.025).contains(&seconds),
            "{seconds} instead of 2.75"
        );
    }
    let ticks = cpu_ticks(proxy.pid()) - ticks;
    println!("{ticks} ticks for 6 MiB");
    assert!(ticks <= 30, "{ticks} ticks");
    let grown = anonymous_kib(proxy.pid()).saturating_sub(memory);
    assert!(grown < 2048, "{grown} KiB");
    let sent = proxy
        .next_sessions(2)
        .iter()
        .map(|session| session.bytes_sent)
        .max();
    assert_eq!(sent, Some(3 * MIB));
    proxy.end();
}

#[test]
fn many_paced_connections_have_the_bandwidth_each() {
    let backend = Backend::echo();
    let proxy = paced(&backend, "256KiB", "64KiB", "");
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let client = proxy.connect();
            thread::spawn(move || both_ways(&client, 320 * 1024))
        })
        .collect();
    for client in clients {
        let time = client.join().expect("every byte is right").as_secs_f64();
        // The echo is behind by no more than a few quanta.
        assert!((0.9..=1.6).contains(&time), "{time} instead of 1");
    }
    proxy.end();
}

#[test]
fn a_slow_reader_of_a_paced_connection_costs_no_memory_and_no_cpu() {
    let backend = Backend::start(|mut connection| {
        Pattern::new()
            .write(&mut connection, 8 * MIB)
            .expect("all is taken in the end");
        finish_and_wait(connection);
    });
    let mut proxy = paced(&backend, "8MiB", "1MiB", "");
    let before = anonymous_kib(proxy.pid());
    let mut client = connect_with_small_window(&proxy.address("web"), 16 * 1024);
    let mut pattern = Pattern::new();
    for _ in 0..20 {
        pattern.check(&mut client, 8 * 1024).expect("it goes on");
        pass(Duration::from_millis(50));
    }
    let ticks = cpu_ticks(proxy.pid());
    pass(Duration::from_millis(1000));
    let ticks = cpu_ticks(proxy.pid()) - ticks;
    assert!(ticks <= 10, "{ticks} ticks in a second of standing still");
    let grown = anonymous_kib(proxy.pid()).saturating_sub(before);
    assert!(grown < 1024, "{grown} KiB");
    pattern.check_to_end(&mut client).expect("FIN at the end");
    assert_eq!(pattern.place, 8 * MIB);
    drop(client);
    assert_eq!(proxy.next_session().reason, "backend-closed");
    proxy.end();
}

#[test]
fn half_closing_a_paced_connection_is_passed_on_at_once() {
    let backend = Backend::start(|mut connection| {
        assert_eq!(drain(&mut connection).0, 100);
        Pattern::new()
            .write(&mut connection, 96 * 1024)
            .expect("taken");
    });
    let mut proxy = paced(&backend, "64KiB", "64KiB", "");
    let mut client = proxy.connect();
    let began = now();
    client.write_all(&[0; 100]).expect("taken");
    finish(&client);
    let mut pattern = Pattern::new();
    pattern
        .check(&mut client, 32 * 1024)
        .expect("the burst comes");
    let took = began.elapsed();
    assert!(took < Duration::from_millis(400), "{took:?}");
    pattern.check_to_end(&mut client).expect("FIN at the end");
    // Half a burst is left for the rate.
    let took = began.elapsed();
    assert!((450..1000).contains(&took.as_millis()), "{took:?}");
    assert_eq!(pattern.place, 96 * 1024);
    assert_eq!(proxy.next_session().reason, "client-closed");
    proxy.end();
}

/// Uses up the burst of 64 KiB in the direction to the client, so that it rests for a while.
fn used_up(client: &mut Socket) {
    client.write_all(&[7; 64 * 1024]).expect("taken");
    client.read_exact(&mut [0; 64 * 1024]).expect("the echo");
}

#[test]
fn a_reset_is_passed_on_while_a_paced_connection_rests() {
    let (tell, told_end) = mpsc::channel();
    let backend = Backend::start(move |mut connection| {
        let mut buffer = vec![0; 64 * 1024];
        connection.read_exact(&mut buffer).expect("it comes");
        connection.write_all(&buffer).expect("it is taken");
        let _ = tell.send((
            drain(&mut connection).1.map_err(|error| ending_of(&error)),
            now(),
        ));
    });
    // Both directions have nothing left for seconds.
    let mut proxy = paced(&backend, "1KiB", "64KiB", "");
    let mut client = proxy.connect();
    used_up(&mut client);
    pass(Duration::from_millis(100));
    let began = now();
    reset(client);
    let (end, at) = told(&told_end);
    assert_eq!(end, Err(Ending::Reset));
    let took = at - began;
    assert!(took < Duration::from_millis(2500), "{took:?}");
    assert_eq!(proxy.next_session().reason, "client-reset");
    proxy.end();
}

#[test]
fn a_backends_reset_reaches_the_client_while_a_paced_connection_rests() {
    let backend = Backend::start(|mut connection| {
        let mut buffer = vec![0; 64 * 1024];
        connection.read_exact(&mut buffer).expect("it comes");
        connection.write_all(&buffer).expect("it is taken");
        pass(Duration::from_millis(200));
        reset(connection);
    });
    let mut proxy = paced(&backend, "1KiB", "64KiB", "");
    let mut client = proxy.connect();
    used_up(&mut client);
    let began = now();
    assert_eq!(ending(&mut client), Ending::Reset);
    let took = began.elapsed();
    assert!(took < Duration::from_millis(2500), "{took:?}");
    assert_eq!(proxy.next_session().reason, "backend-reset");
    proxy.end();
}

#[test]
fn a_session_that_rests_is_not_idle() {
    let backend = Backend::start(|mut connection| {
        Pattern::new()
            .write(&mut connection, 20 * 1024)
            .expect("taken");
    });
    let tables = "[listeners.web.timeouts]\nidle = \"1s\"\nhalf_close = \"1s\"\n";
    let mut proxy = paced(&backend, "4KiB", "1KiB", tables);
    let mut client = proxy.connect();
    let mut pattern = Pattern::new();
    pattern.check_to_end(&mut client).expect("FIN at the end");
    assert_eq!(pattern.place, 20 * 1024, "every byte comes, however slowly");
    drop(client);
    assert_eq!(proxy.next_session().reason, "backend-closed");
    proxy.end();
}
