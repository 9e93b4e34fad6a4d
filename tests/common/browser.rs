//! A real browser, by WebDriver (<https://www.w3.org/TR/webdriver2/>): JSON over HTTP to a driver of its own at
//! a port of the kernel's choice. It has no window.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::{Value, json};

use super::eventually;
use super::http::answered;
use super::tools::{Talk, found};

/// A browser with one page. It is closed when this goes.
pub(crate) struct Browser {
    /// Ends after the browser, which would go on without it.
    _driver: Talk,
    address: String,
    session: String,
}

/// Keys as WebDriver names them.
pub(crate) const TAB: char = '\u{e004}';
pub(crate) const ENTER: char = '\u{e007}';

/// The sandbox is none for root, and it looks at no page but ours; what it would fetch for itself, it doesn't.
const ARGUMENTS: [&str; 8] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--no-proxy-server",
];

impl Browser {
    /// With a window of this size, in CSS pixels.
    pub(crate) fn open(width: u32, height: u32) -> Self {
        found("chromium");
        let driver = Talk::start("chromedriver", &["--port=0"]);
        let port = driver.told("its port", |said| {
            let (_, rest) = said.split_once("started successfully on port ")?;
            rest.split_once('.').map(|(port, _)| port.to_owned())
        });
        let address = format!("127.0.0.1:{port}");
        let size = format!("--window-size={width},{height}");
        let arguments: Vec<&str> = ARGUMENTS.into_iter().chain([&*size]).collect();
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let session = ask(&address, "POST", "/session", &wanted);
        let session = session["sessionId"].as_str().expect("it is named");
        let browser = Self {
            session: format!("/session/{session}"),
            _driver: driver,
            address,
        };
        // A window is not as narrow as a phone.
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        browser.direct("Emulation.setDeviceMetricsOverride", &metrics);
        browser
    }

    /// Loads a page.
    pub(crate) fn go(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    /// What the body of a function in the page returns.
    pub(crate) fn run(&self, script: &str) -> Value {
        self.post("/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// What it returns as a string; empty if it is none.
    pub(crate) fn text(&self, script: &str) -> String {
        self.run(script).as_str().unwrap_or_default().to_owned()
    }

    /// Waits until it returns something else than `false`, `null`, 0 and nothing.
    pub(crate) fn waits(&self, script: &str) -> Value {
        eventually(script, || {
            let value = self.run(script);
            let is_something = match &value {
                Value::Null => false,
                Value::Bool(is) => *is,
                Value::Number(number) => number.as_f64() != Some(0.0),
                Value::String(text) => !text.is_empty(),
                Value::Array(_) | Value::Object(_) => true,
            };
            is_something.then_some(value)
        })
    }

    /// Presses these keys, one after the other.
    pub(crate) fn press(&self, keys: &str) {
        let strokes = keys.chars().flat_map(|key| {
            ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key.to_string() }))
        });
        let strokes: Vec<Value> = strokes.collect();
        let actions = json!([{ "type": "key", "id": "keyboard", "actions": strokes }]);
        self.post("/actions", &json!({ "actions": actions }));
    }

    /// Prefers this scheme of colours.
    pub(crate) fn prefer(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.direct(
            "Emulation.setEmulatedMedia",
            &json!({ "features": features }),
        );
    }

    /// Errors of the page since this was asked last.
    pub(crate) fn errors(&self) -> Vec<String> {
        let lines = self.post("/se/log", &json!({ "type": "browser" }));
        let lines = lines.as_array().expect("a list").iter();
        let grave = lines.filter(|line| line["level"] == "SEVERE");
        grave
            .map(|line| line["message"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// A command of the DevTools protocol.
    fn direct(&self, command: &str, parameters: &Value) {
        let what = json!({ "cmd": command, "params": parameters });
        self.post("/goog/cdp/execute", &what);
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let path = format!("{}{path}", self.session);
        ask(&self.address, "POST", &path, body)
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // A test that fails fails for its own reason.
        let close = || ask(&self.address, "DELETE", &self.session, &Value::Null);
        let _ = catch_unwind(AssertUnwindSafe(close));
    }
}

/// The value of the driver's answer.
fn ask(address: &str, method: &str, path: &str, body: &Value) -> Value {
    let body = match body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = answered(address, request.as_bytes());
    let answer = answer.unwrap_or_else(|| panic!("{method} {path}: the driver has gone"));
    assert_eq!(
        answer.status, 200,
        "{method} {path} {body}: {}",
        answer.body
    );
    answer.json()["value"].take()
}
