//! Certificates that change under a running proxy: each is served soon after its pair is complete, however
//! that came about, and nobody notices anything else.

mod common;

#[path = "certificates/swaps.rs"]
mod swaps;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use common::certificates::{Authority, Client, Leaf, Wanted, secure_echo, terminates};
use common::commands::named;
use common::proxy::text;
use common::{Backend, PATIENCE, Proxy, config, eventually, now, pass};
use serde_json::{Value, json};

/// How long a complete pair may take until it is served.
const AT_ONCE: Duration = Duration::from_secs(1);
const NAME: &str = "a.example";

/// A proxy that serves certificates of one authority.
struct Served {
    proxy: Proxy,
    folder: tempfile::TempDir,
    authority: Authority,
    client: Client,
    address: String,
}

impl Served {
    /// With a pair in a folder of its own, `a.pem` and `a.key`.
    fn new() -> (Self, Leaf) {
        Self::with(|folder, leaf| leaf.write(folder, "a"))
    }

    /// With a pair that `lay` puts into a folder; it says by which paths it is to be read.
    fn with(lay: impl FnOnce(&Path, &Leaf) -> [PathBuf; 2]) -> (Self, Leaf) {
        let folder = tempfile::tempdir().expect("a folder");
        let authority = Authority::new("ca.example");
        let leaf = authority.leaf(&[NAME]);
        let files = lay(folder.path(), &leaf);
        let backend = Backend::echo();
        let tables = "[runtime]\nworkers = 2\n";
        let config = config(&[&backend.address], &terminates(&files), "", tables);
        let proxy = Proxy::start(&config);
        let client = Client::new(&authority).afresh();
        let address = proxy.address("web");
        let this = Self {
            proxy,
            folder,
            authority,
            client,
            address,
        };
        assert_eq!(this.certificate(), leaf.der);
        (this, leaf)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn leaf(&self) -> Leaf {
        self.authority.leaf(&[NAME])
    }

    /// What is served now.
    fn certificate(&self) -> Vec<u8> {
        let seen = self.client.look(&self.address, NAME);
        seen.expect("the handshake succeeds").certificate
    }

    /// Waits until `leaf` is served, whose pair has just become complete.
    fn serves_soon(&self, leaf: &Leaf) {
        let complete = now();
        while self.certificate() != leaf.der {
            assert!(complete.elapsed() < PATIENCE, "it is never served");
            pass(Duration::from_millis(5));
        }
        let took = complete.elapsed();
        assert!(took < AT_ONCE, "{took:?}");
    }

    /// The listener's only certificate, as the status tells it.
    fn told(&self) -> Value {
        let status = self.proxy.status();
        let listener = named(&status["listeners"], "web");
        listener["certificates"][0].clone()
    }

    fn count(&self, message: &str) -> usize {
        let lines = self.proxy.lines();
        let like = |line: &&Value| text(line, "message").starts_with(message);
        lines.iter().filter(like).count()
    }

    /// Clients that come one after the other until they are stopped.
    fn visited(&self) -> Visits {
        let (stop, count) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let (client, address) = (self.client.clone(), self.address.clone());
        let thread = thread::spawn({
            let (stop, count) = (stop.clone(), count.clone());
            move || {
                while !stop.load(Ordering::SeqCst) {
                    client.look(&address, NAME).expect("no handshake fails");
                    count.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        Visits {
            stop,
            count,
            thread,
        }
    }
}

struct Visits {
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Visits {
    /// None has failed.
    fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("no handshake fails");
        assert!(self.count.load(Ordering::SeqCst) > 10);
    }
}

const KEPT: &str = "what was read before stays in use";

#[test]
fn half_a_pair_leaves_the_old_one_in_use_and_is_told_once() {
    let (served, old) = Served::new();
    let visits = served.visited();
    let new = served.leaf();
    let from = served.proxy.lines().len();
    fs::write(served.path("a.pem"), &new.cert_pem).expect("it can be written");
    let line = served.proxy.wait_message(from, KEPT);
    assert_eq!(text(&line, "level"), "ERROR");
    let key = served.path("a.key");
    assert_eq!(line["file"], key.to_str().expect("UTF-8"));
    assert!(
        text(&line, "message").contains("this is not the key of"),
        "{line}"
    );
    assert_eq!(served.certificate(), old.der);
    let told = served.told();
    assert!(
        text(&told, "error").contains("this is not the key of"),
        "{told}"
    );
    assert!(
        served
            .proxy
            .done("status")
            .contains("the old one is in use")
    );
    // Another reason is told as well, and nothing twice.
    fs::write(&key, "nothing").expect("it can be written");
    let at = served.proxy.lines().len();
    let line = served.proxy.wait_message(at, KEPT);
    assert!(
        text(&line, "message").contains("there is no key in it"),
        "{line}"
    );
    pass(Duration::from_secs(2));
    assert_eq!(served.count(KEPT), 2);
    fs::write(&key, &new.key_pem).expect("it can be written");
    served.serves_soon(&new);
    eventually("the status to say so", || {
        served.told()["error"].is_null().then_some(())
    });
    assert_eq!(served.count(KEPT), 2);
    visits.end();
    served.proxy.end();
}

#[test]
fn a_renewal_is_told_and_is_no_generation() {
    let (served, _) = Served::new();
    let new = served.authority.issue(Wanted {
        not_after: 200,
        ..Wanted::new(&[NAME, "*.b.example"])
    });
    let before = text(&served.told(), "not_after");
    let held = served.client.connect(&served.address, NAME);
    let mut held = held.expect("the handshake succeeds");
    new.write(served.folder.path(), "a");
    served.serves_soon(&new);
    let line = served.proxy.wait_message(0, "certificate renewed");
    assert_eq!(line["listener"], "web");
    assert_eq!(line["names"], "a.example, *.b.example");
    let told = served.told();
    assert_eq!(told["names"], json!([NAME, "*.b.example"]));
    assert_eq!(told["not_after"], line["not_after"]);
    assert!(text(&told, "not_after") > before, "{told}");
    let status = served.proxy.status();
    assert_eq!(
        (&status["generation"], &status["last_reload"]),
        (&json!(1), &Value::Null)
    );
    // Who was there before goes on.
    use std::io::{Read, Write};
    held.write_all(b"still there?").expect("it is open");
    let mut answer = [0; 12];
    held.read_exact(&mut answer).expect("it is open");
    assert_eq!(&answer, b"still there?");
    // The configuration in effect is known to have it: there is nothing to change.
    assert_eq!(
        served.proxy.done("reload"),
        "reloaded: nothing has changed, generation 2\n"
    );
    drop(held);
    served.proxy.end();
}

#[test]
fn a_reload_keeps_what_can_not_be_read_and_succeeds() {
    let (served, old) = Served::new();
    let new = served.leaf();
    fs::write(served.path("a.key"), &new.key_pem).expect("it can be written");
    let line = served.proxy.reload_file();
    assert_eq!(line["message"], "reloaded");
    served.proxy.wait_message(0, KEPT);
    assert_eq!(served.certificate(), old.der);
    let error = eventually("the status to say so", || {
        let told = served.told();
        told["error"].as_str().map(str::to_owned)
    });
    assert!(error.contains("this is not the key of"), "{error}");
    let file = served.proxy.file();
    let said = served.proxy.done(&format!("plan {}", file.display()));
    assert_eq!(said, "a reload would change nothing\n");
    pass(Duration::from_secs(2));
    assert_eq!(served.count(KEPT), 1, "it was told already");
    fs::write(served.path("a.pem"), &new.cert_pem).expect("it can be written");
    served.serves_soon(&new);
    served.proxy.end();
}

#[test]
fn a_new_path_has_to_be_right() {
    let (served, old) = Served::new();
    let config = fs::read_to_string(served.proxy.file()).expect("it can be read");
    let line = served.proxy.reload(&config.replace("a.key", "b.key"));
    let said = text(&line, "message");
    assert!(said.starts_with("reload refused: "), "{line}");
    assert!(said.contains("b.key: there is no such file"), "{line}");
    assert!(line["line"].as_u64() > Some(1) && line["column"].as_u64() > Some(1));
    assert_eq!(served.certificate(), old.der);
    served.proxy.end();
}

#[test]
fn what_ends_soon_and_who_is_not_verified_is_told_at_start() {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new("ca.example");
    let ends = |not_after| {
        let names = [NAME];
        authority.issue(Wanted {
            not_before: -30,
            not_after,
            ..Wanted::new(&names)
        })
    };
    let files = ends(10).write(folder.path(), "soon");
    let [over, _] = ends(-1).write(folder.path(), "over");
    ends(20).write(folder.path(), "later");
    let backend = Backend::echo();
    let pair = |name: &str| {
        let [certificate, key] =
            ["pem", "key"].map(|it| folder.path().join(name).with_extension(it));
        format!("{{ cert = {certificate:?}, key = {key:?} }}")
    };
    let listener = format!(
        "tls.certificates = [{}, {}, {}]\n",
        pair("soon"),
        pair("over"),
        pair("later")
    );
    let proxy = Proxy::start(&config(
        &[&backend.address],
        &listener,
        "tls.verify = false\n",
        "",
    ));
    let line = proxy.wait_message(0, "certificate expires soon");
    assert_eq!(line["file"], files[0].to_str().expect("UTF-8"));
    assert_eq!(text(&line, "level"), "WARN");
    let line = proxy.wait_message(0, "certificate has expired");
    assert_eq!(line["file"], over.to_str().expect("UTF-8"));
    let unverified = "backends of upstream \"app\" are not verified";
    let line = proxy.wait_message(0, unverified);
    assert_eq!(text(&line, "level"), "WARN");
    let from = proxy.lines().len();
    proxy.reload_file();
    proxy.wait_message(from, unverified);
    let expiring = proxy.lines();
    let expiring = expiring
        .iter()
        .filter(|it| text(it, "message").starts_with("certificate "));
    assert_eq!(expiring.count(), 2, "once a day");
    proxy.end();
}

#[test]
fn sessions_are_resumed_by_the_next_process() {
    let (served, _) = Served::new();
    let client = Client::new(&served.authority);
    let resumed = || {
        let seen = client.look(&served.address, NAME);
        seen.expect("the handshake succeeds").resumed
    };
    assert!(!resumed());
    assert!(resumed());
    served.proxy.reload_file();
    assert!(resumed(), "after a reload");
    served.proxy.done("upgrade");
    let successor = served.proxy.successor();
    assert!(resumed(), "after an upgrade");
    let status = served.proxy.status();
    let opened = &named(&status["listeners"], "web")["opened"];
    assert!(opened["tls1.3-resumed"].as_u64() >= Some(1), "{status}");
    successor.end();
}

#[test]
fn renewed_authorities_are_what_backends_are_probed_by() {
    let folder = tempfile::tempdir().expect("a folder");
    let (right, wrong) = (Authority::new("ca.example"), Authority::new("ca.example"));
    let backend = secure_echo(&right.leaf(&[NAME]));
    let ca = wrong.write(folder.path(), "ca");
    let upstream = format!(
        "tls = {{ ca = {ca:?}, server_name = {NAME:?} }}\n\
         health_check = {{ type = \"tls\", send = \"PING\", expect = \"PING\", \
         interval = \"100ms\", rise = 1, fall = 1 }}\n"
    );
    let proxy = Proxy::start(&config(&[&backend.address], "", &upstream, ""));
    let (_, line) = proxy.wait_about(0, "backend is down", &backend.address);
    // Same name, other key: it looks like the right one, but for the signature.
    assert!(
        text(&line, "why").starts_with("TLS: its certificate"),
        "{line}"
    );
    fs::write(&ca, &right.pem).expect("it can be written");
    let line = proxy.wait_message(0, "authorities renewed");
    assert_eq!(line["upstream"], "app");
    proxy.wait_about(0, "backend is up", &backend.address);
    let status = proxy.status();
    let told = &status["upstreams"][0]["certificates"];
    let file = ca.to_str().expect("UTF-8");
    assert_eq!(
        *told,
        json!([{"file": file, "names": [], "not_after": null, "error": null}])
    );
    proxy.end();
}
