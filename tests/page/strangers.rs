//! Who may look on, and what others can do to the page: nothing.

use super::common::browser::{Browser, ENTER};
use super::{BACKENDS, HERE, Scene};

const TOKEN: &str = "right-token-of-the-tests";

#[test]
fn what_others_have_chosen_stays_text() {
    let scene = Scene::new(HERE);
    let browser = scene.page(1280, 800);
    // A configuration is refused with the line that is wrong, which is as good a way into the log as any.
    scene.proxy.reload("[listeners.\"<img src=x onerror=alert(1)>\"]\nbind = \"127.0.0.1:0\"\nupstream = \"app\"\n");
    browser.waits("return document.getElementById('news').textContent.includes('<img src=x onerror=alert(1)>')");
    assert_eq!(
        browser.run("return document.querySelector('img')"),
        serde_json::Value::Null
    );
    // Had the page itself slipped, the browser would have refused.
    let slip = "try { document.body.insertAdjacentHTML('beforeend', '<i>'); return 'done' } catch (error) { return error.name }";
    assert_eq!(browser.text(slip), "TypeError");
    scene.proxy.end();
}

#[test]
fn nothing_is_asked_of_anybody_else() {
    let scene = Scene::new(HERE);
    let browser = scene.page(1280, 800);
    browser.waits("return document.querySelector('#news li time')");
    let asked = browser.run("return performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation')).map(it => it.name)");
    let asked: Vec<String> = serde_json::from_value(asked).expect("addresses");
    assert!(asked.contains(&scene.url), "{asked:?}");
    for address in &asked {
        assert!(
            address.starts_with(&scene.url) || address.starts_with("data:"),
            "{asked:?}"
        );
    }
    assert_eq!(browser.errors(), [""; 0]);
    scene.proxy.end();
}

#[test]
fn a_token_is_asked_for_where_one_is_needed_and_kept_for_the_tab() {
    let scene = Scene::new(&format!("{HERE}\ntoken = {TOKEN:?}"));
    let browser = Browser::open(1280, 800);
    browser.go(&scene.url);
    let asks =
        "return !document.getElementById('door').hidden && document.activeElement.id === 'token'";
    browser.waits(asks);
    browser.press(&format!("another-token-of-the-tests{ENTER}"));
    browser
        .waits("return document.getElementById('door-says').textContent.includes('another one')");
    assert_eq!(browser.run(BACKENDS), 0);
    browser.waits(asks);
    browser.press(&format!("{TOKEN}{ENTER}"));
    browser.waits(BACKENDS);
    browser.go(&scene.url);
    browser.waits(BACKENDS);
    assert_eq!(
        browser.run("return document.getElementById('door').hidden"),
        true
    );
    scene.proxy.end();
}
