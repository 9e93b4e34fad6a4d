//! A proxy that is gone, or says nothing.

use std::time::Duration;

use rustix::process::Signal;

use super::common::backend::free_address;
use super::common::browser::Browser;
use super::common::{Proxy, now};
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
