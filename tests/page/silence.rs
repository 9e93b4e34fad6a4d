//! A proxy that is gone, or says nothing.

use std::io::{Read, Write, copy};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::Signal;

use super::common::backend::free_address;
use super::common::browser::Browser;
use super::common::http::request;
use super::common::{Proxy, connect, eventually, now, pass};
use super::{BACKENDS, HERE, Scene, text};

/// The banner is due, and what a busy machine may add.
const DUE: Duration = Duration::from_secs(3);
const SLACK: Duration = Duration::from_millis(1500);

/// Waits for the banner; what is shown is greyed out then.
fn falls_silent(browser: &Browser) {
    let began = now();
    let says = browser
        .waits("const it = document.getElementById('banner'); return !it.hidden && it.textContent");
    assert!(began.elapsed() < DUE + SLACK, "{:?}", began.elapsed());
    let says = says.as_str().expect("a text");
    assert!(
        says.starts_with("the proxy has not answered since ") && says.ends_with("; trying again"),
        "{says}"
    );
    let grey = "return Number(getComputedStyle(document.getElementById('main')).opacity) < 0.9";
    browser.waits(grey);
}

fn recovers(browser: &Browser) {
    browser.waits("return document.getElementById('banner').hidden");
    browser.waits("return !document.getElementById('main').classList.contains('stale')");
}

#[test]
fn a_proxy_that_is_gone_is_missed_and_a_new_one_is_found() {
    let address = free_address();
    let lines = format!("listen = {address:?}");
    let Scene {
        backends,
        proxy,
        url,
    } = Scene::new(&lines);
    let browser = Browser::open(1280, 800);
    browser.go(&url);
    browser.waits(BACKENDS);
    let uptime = "return document.querySelector('#facts div:nth-child(2) dd').textContent";
    browser.waits(uptime);
    drop(proxy);
    falls_silent(&browser);
    let again = Proxy::start(&text(&backends, &lines));
    recovers(&browser);
    assert_eq!(browser.run(BACKENDS), 2);
    again.end();
}

#[test]
fn a_proxy_that_says_nothing_is_missed_as_well() {
    let scene = Scene::new(HERE);
    let browser = scene.page(1280, 800);
    scene.proxy.signal(Signal::STOP);
    falls_silent(&browser);
    scene.proxy.signal(Signal::CONT);
    recovers(&browser);
    scene.proxy.end();
}

/// A line to an endpoint over which events begin to come drop by drop, for 6 s. Returns where it begins, and how
/// often somebody has asked for events over it.
fn slow_line(admin: String) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound").to_string();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    thread::spawn(move || {
        for browser in listener.incoming().flatten() {
            let (admin, asked) = (admin.clone(), counted.clone());
            // It ends with either side.
            thread::spawn(move || drop(carry(browser, &admin, &asked)));
        }
    });
    (address, asked)
}

fn carry(mut browser: TcpStream, admin: &str, asked: &AtomicUsize) -> std::io::Result<()> {
    let mut proxy = TcpStream::connect(admin)?;
    let mut buffer = vec![0; 64 * 1024];
    let length = browser.read(&mut buffer)?;
    proxy.write_all(&buffer[..length])?;
    if buffer.starts_with(b"GET /events ") {
        asked.fetch_add(1, Ordering::SeqCst);
        for _ in 0..24 {
            let length = proxy.read(&mut buffer[..64])?;
            browser.write_all(&buffer[..length])?;
            pass(Duration::from_millis(250));
        }
    }
    copy(&mut proxy, &mut browser).map(drop)
}

#[test]
fn over_a_slow_line_the_first_event_is_waited_for() {
    let more: String = (0..20)
        .map(|it| format!("[listeners.l{it}]\nbind = \"127.0.0.1:0\"\nupstream = \"app\"\n"))
        .collect();
    let scene = Scene::new(&format!("{HERE}\n{more}"));
    let admin = scene.proxy.admin();
    eventually("a history that is long enough", || {
        let mut line = connect(&admin);
        let asked = request("GET", "/events", &[]);
        line.write_all(asked.as_bytes()).expect("it is taken");
        let mut start = vec![0; 4096];
        line.read_exact(&mut start).expect("there is so much");
        let start = String::from_utf8_lossy(&start);
        let (_, history) = start.split_once("event: history\n").expect("it is first");
        (!history.contains("\n\n")).then_some(())
    });
    let (line, asked) = slow_line(admin);
    let browser = Browser::open(1280, 800);
    browser.go(&format!("http://{line}/"));
    browser.waits(BACKENDS);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    recovers(&browser);
    scene.proxy.end();
}
