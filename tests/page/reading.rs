//! What it shows, and how one gets about in it.

use std::time::Duration;

use super::common::browser::{Browser, ENTER, TAB};
use super::common::load::Load;
use super::common::{Proxy, config, eventually, now};
use super::{BACKENDS, HERE, Scene, rows};

/// What a busy machine may add.
const SLACK: Duration = Duration::from_millis(1500);

#[test]
fn listeners_upstreams_and_backends_are_shown_and_numbers_move() {
    let scene = Scene::new(HERE);
    let load = Load::fresh(2, &scene.proxy.address("web"));
    let browser = scene.page(1280, 800);
    let names = |table: &str| -> Vec<String> {
        let rows = rows(&browser, table).into_iter();
        rows.map(|mut row| row.remove(0)).collect()
    };
    assert_eq!(names("listeners"), ["web", "spare"]);
    assert_eq!(names("upstreams"), ["app"]);
    let backends = scene.backends.each_ref().map(|it| it.address.clone());
    assert_eq!(names("backends"), backends);
    // Sessions and bytes per second, the times, and how busy the workers are.
    for chart in [1, 2, 4, 5, 6] {
        let reading = format!("#charts figure:nth-child({chart}) output");
        browser.waits(&format!(
            "return /[1-9]/.test(document.querySelector('{reading}').textContent)"
        ));
    }
    let line = "return document.querySelector('#charts figure path.s0').getAttribute('d')";
    let before = browser.text(line);
    eventually("the line to move on", || {
        (browser.text(line) != before).then_some(())
    });
    let sessions =
        "return document.querySelector('#listeners tbody tr td:nth-child(5)').textContent";
    browser.waits(&format!("{sessions} !== '0'"));
    load.stop();
    browser.waits(&format!("{sessions} === '0'"));
    assert_eq!(
        browser.text("return document.getElementById('state').textContent"),
        "serving"
    );
    assert_eq!(browser.errors(), [""; 0]);
    scene.proxy.end();
}

#[test]
fn a_backend_that_goes_down_is_shown_at_once_and_first_with_the_reason() {
    let scene = Scene::new(HERE);
    let browser = scene.page(1280, 800);
    let victim = &scene.backends[1];
    let from = scene.proxy.lines().len();
    victim.stop_listening();
    scene
        .proxy
        .wait_about(from, "backend is down", &victim.address);
    let known = now();
    let row = eventually("the backend to be shown as down", || {
        let first = rows(&browser, "backends").remove(0);
        (first[2].starts_with("down")).then_some(first)
    });
    let took = known.elapsed();
    assert!(took < Duration::from_secs(2) + SLACK, "{took:?}");
    assert_eq!(row[0], victim.address);
    assert!(row[2].contains("connection refused"), "{row:?}");
    let told = browser.text("return document.getElementById('told').textContent");
    assert!(
        told.contains(&victim.address) && told.contains("is down"),
        "{told}"
    );
    browser.waits("return document.getElementById('news').textContent.includes('backend is down')");
    victim.listen_again();
    browser.waits("return document.getElementById('backends-note').textContent === '2 of 2 up'");
    scene.proxy.end();
}

#[test]
fn a_reload_is_in_the_news_and_its_generation_in_the_header() {
    let scene = Scene::new(HERE);
    let browser = scene.page(1280, 800);
    scene.proxy.reload_file();
    browser.waits("return document.getElementById('facts').textContent.includes('generation2')");
    browser.run("document.querySelector('input[value=reloads]').click()");
    let news = browser.waits("return document.querySelector('#news li time') && document.getElementById('news').innerText");
    let news = news.as_str().expect("a text");
    assert!(
        news.contains("reload") && !news.contains("started"),
        "{news}"
    );
    scene.proxy.end();
}

#[test]
fn what_is_paused_stays_as_it_is_and_goes_on_with_what_is_so() {
    let scene = Scene::new(HERE);
    let browser = scene.page(1280, 800);
    browser.run("document.getElementById('pause').click()");
    scene.backends[0].stop_listening();
    browser.waits("return document.getElementById('told').textContent.includes('is down')");
    let states = || -> Vec<String> {
        let rows = rows(&browser, "backends").into_iter();
        rows.map(|mut row| row.remove(2)).collect()
    };
    assert_eq!(states(), ["up", "up"]);
    browser.run("document.getElementById('pause').click()");
    let states = states();
    assert!(states[0].starts_with("down"), "{states:?}");
    scene.proxy.end();
}

#[test]
fn of_many_backends_some_are_shown_and_the_others_are_counted_and_found() {
    let list: Vec<String> = (1..=250).map(|it| format!("127.0.1.{it}:80")).collect();
    let list: Vec<&str> = list.iter().map(|it| &**it).collect();
    let proxy = Proxy::start(&config(&list, "", "", &format!("[admin]\n{HERE}\n")));
    let browser = Browser::open(1280, 800);
    browser.go(&format!("http://{}/", proxy.admin()));
    browser.waits(&format!("{BACKENDS} === 200"));
    assert_eq!(
        browser.text("return document.getElementById('backends-note').textContent"),
        "250 of 250 up; the worst 200 are shown, 50 are not: filter to see them"
    );
    browser.run("document.getElementById('filter').focus()");
    browser.press("127.0.1.250");
    browser.waits(&format!("{BACKENDS} === 1"));
    proxy.end();
}

#[test]
fn one_gets_about_with_the_keyboard_alone() {
    let scene = Scene::new(HERE);
    let browser = scene.page(1280, 800);
    // To the element that fits, and to no more than there are; every one shows that it has the focus.
    let tab_to = |what: &str| {
        let is = format!("return document.activeElement.matches({what:?})");
        let seen = "const style = getComputedStyle(document.activeElement); \
                    return style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 2";
        let found = (0..80).any(|_| {
            browser.press(&TAB.to_string());
            assert_eq!(
                browser.run(seen),
                true,
                "the focus is seen on the way to {what}"
            );
            browser.run(&is) == true
        });
        assert!(found, "{what} is reached by the keyboard");
    };
    let sorted = |column: u32| {
        browser.text(&format!(
            "return document.querySelector('#backends th:nth-child({column})').getAttribute('aria-sort')"
        ))
    };
    assert_eq!(sorted(3), "descending");
    tab_to("#pause");
    tab_to("#filter");
    browser.press(&scene.backends[1].address);
    browser.waits(&format!("{BACKENDS} === 1"));
    assert_eq!(rows(&browser, "backends")[0][0], scene.backends[1].address);
    tab_to("#backends th:first-child button");
    browser.press(&ENTER.to_string());
    assert_eq!((sorted(1), sorted(3)), ("ascending".into(), String::new()));
    browser.press(&ENTER.to_string());
    assert_eq!(sorted(1), "descending");
    browser.run("const filter = document.getElementById('filter'); filter.value = ''; filter.dispatchEvent(new Event('input'))");
    let shown: Vec<String> = rows(&browser, "backends")
        .into_iter()
        .map(|mut row| row.remove(0))
        .collect();
    let mut falling = scene.backends.each_ref().map(|it| port(&it.address));
    falling.sort_unstable_by(|a, b| b.cmp(a));
    assert_eq!(shown.iter().map(|it| port(it)).collect::<Vec<_>>(), falling);
    tab_to("input[name=news]");
    scene.proxy.end();
}

fn port(address: &str) -> u16 {
    let (_, port) = address.rsplit_once(':').expect("an address");
    port.parse().expect("a port")
}

#[test]
fn a_narrow_screen_scrolls_one_way_only() {
    let scene = Scene::new(HERE);
    let browser = scene.page(360, 740);
    browser.waits("return document.querySelector('#news li time')");
    let wide = browser.run("return [document.documentElement.scrollWidth, innerWidth]");
    assert_eq!(wide, serde_json::json!([360, 360]));
    let beyond = browser.run(
        "return [...document.querySelectorAll('tbody *, #news *, .bar *, header *, figure *')] \
         .filter(it => it.getBoundingClientRect().right > 360).map(it => it.outerHTML)",
    );
    assert_eq!(beyond, serde_json::json!([]));
    scene.proxy.end();
}

/// The least contrast of any text that is shown with what it stands on, as WCAG 2.2 reckons it.
const CONTRAST: &str = r"
    const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    const paint = (...colours) => {
        canvas.clearRect(0, 0, 1, 1);
        for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(it => {
            const share = it / 255;
            return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
    };
    const light = ([r, g, b]) => 0.2126 * r + 0.7152 * g + 0.0722 * b;
    const grounds = it => it ? [...grounds(it.parentElement), getComputedStyle(it).backgroundColor] : [];
    let least = [21, ''];
    for (const it of document.querySelectorAll('body *')) {
        const says = [...it.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        if (!says || !it.checkVisibility() || it.disabled) continue;
        const below = grounds(it);
        const [text, ground] = [light(paint(...below, getComputedStyle(it).color)), light(paint(...below))];
        const contrast = (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
        if (contrast < least[0]) least = [contrast, it.outerHTML];
    }
    return least";

#[test]
fn every_text_is_legible_in_light_and_dark_and_who_looks_can_switch() {
    let scene = Scene::new(HERE);
    scene.backends[0].stop_listening();
    let browser = scene.page(1280, 800);
    browser.waits("return document.querySelector('#backends .bad')");
    let ground = "return getComputedStyle(document.body).backgroundColor";
    let mut grounds = Vec::new();
    for scheme in ["light", "dark"] {
        browser.prefer(scheme);
        grounds.push(browser.text(ground));
        let least = browser.run(CONTRAST);
        assert!(least[0].as_f64() >= Some(4.5), "{scheme}: {least}");
    }
    assert_ne!(grounds[0], grounds[1]);
    browser.run("document.getElementById('theme').click()");
    assert_eq!(browser.text(ground), grounds[0]);
    browser.go(&scene.url);
    browser.waits(BACKENDS);
    assert_eq!(browser.text(ground), grounds[0]);
    scene.proxy.end();
}
