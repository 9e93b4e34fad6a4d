//! The live page in a real browser, in front of a real process: that it shows what is so, for everybody, and
//! that what others have chosen stays text in it.

mod common;

#[path = "page/reading.rs"]
mod reading;
#[path = "page/silence.rs"]
mod silence;
#[path = "page/strangers.rs"]
mod strangers;

use common::browser::Browser;
use common::switched::{Manner, Switched};
use common::{Proxy, config};

/// Two backends that are probed often, and an endpoint with these lines.
struct Scene {
    backends: [Switched; 2],
    proxy: Proxy,
    url: String,
}

impl Scene {
    fn new(lines: &str) -> Self {
        let backends = [(); 2].map(|()| Switched::new(Manner::Echo));
        let proxy = Proxy::start(&text(&backends, lines));
        let url = format!("http://{}/", proxy.admin());
        Self {
            backends,
            proxy,
            url,
        }
    }

    /// Its page in a browser, once it shows the backends.
    fn page(&self, width: u32, height: u32) -> Browser {
        let browser = Browser::open(width, height);
        browser.go(&self.url);
        browser.waits(BACKENDS);
        browser
    }
}

fn text(backends: &[Switched; 2], lines: &str) -> String {
    let list = [0, 1].map(|it| &*backends[it].address);
    let tables = format!(
        "[listeners.spare]\nbind = \"127.0.0.1:0\"\nupstream = \"app\"\n\
         [upstreams.app.health_check]\ninterval = \"100ms\"\ntimeout = \"1s\"\nfall = 1\nrise = 1\n\
         [runtime]\nworkers = 2\n[admin]\n{lines}\n"
    );
    config(&list, "", "", &tables)
}

/// Where the kernel wants it.
const HERE: &str = "listen = \"127.0.0.1:0\"";

/// How many backends are shown.
const BACKENDS: &str = "return document.querySelectorAll('#backends tbody tr').length";

/// The rows of a table, each as its cells.
fn rows(browser: &Browser, table: &str) -> Vec<Vec<String>> {
    let script = format!(
        "return [...document.querySelectorAll('#{table} tbody tr')].map(row => [...row.cells].map(it => it.textContent))"
    );
    serde_json::from_value(browser.run(&script)).expect("lists of texts")
}
