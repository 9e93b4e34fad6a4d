//! What is watched, what takes effect, and what is told when.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;
use tokio::time::timeout;

use super::faults::News;
use super::links::{Folders, folders};
use super::material::Look;
use super::*;
use crate::config;
use crate::tls::Pair;

/// A new pair in these files, which are not written.
fn pair(certificate: &Path, key: &Path, not_after: (i32, u8, u8)) -> Arc<Pair> {
    let [chain, secret] = made(not_after);
    let pair = Pair::from_pem(certificate, chain.as_bytes(), key, secret.as_bytes());
    Arc::new(pair.unwrap())
}

/// Certificate and key in PEM.
fn made((year, month, day): (i32, u8, u8)) -> [String; 2] {
    let mut parameters = rcgen::CertificateParams::new(["a.example".to_owned()]).unwrap();
    parameters.not_after = rcgen::date_time_ymd(year, month, day);
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = parameters.self_signed(&key).unwrap();
    [certificate.pem(), key.serialize_pem()]
}

fn some_pair() -> Arc<Pair> {
    pair(Path::new("/a.pem"), Path::new("/a.key"), (2030, 1, 1))
}

/// A folder by the path that it really has.
fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = fs::canonicalize(folder.path()).unwrap();
    (folder, path)
}

/// The names that matter, of folders where there are any.
fn named(folders: &Folders, root: &Path) -> Vec<(PathBuf, Vec<OsString>)> {
    let named = folders.iter().filter(|(_, names)| !names.is_empty());
    named
        .map(|(folder, names)| {
            let below = folder.strip_prefix(root).unwrap().to_owned();
            (below, names.iter().cloned().collect())
        })
        .collect()
}

fn expected(list: &[(&str, &[&str])]) -> Vec<(PathBuf, Vec<OsString>)> {
    let owned = list.iter().map(|(folder, names)| {
        let names = names.iter().map(OsString::from);
        (PathBuf::from(folder), names.collect())
    });
    owned.collect()
}

#[test]
fn every_link_on_the_way_decides_and_every_folder_may_be_moved() {
    let (_folder, root) = folder();
    for name in ["live/x", "archive/x"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::write(root.join("archive/x/cert1.pem"), "").unwrap();
    symlink("../../archive/./x/cert1.pem", root.join("live/x/cert.pem")).unwrap();
    symlink(root.join("live"), root.join("current")).unwrap();
    let file = root.join("current/x/cert.pem");
    let found = folders(&[&file]);
    assert_eq!(
        named(&found, &root),
        expected(&[
            ("", &["current"]),
            ("archive/x", &["cert1.pem"]),
            ("live/x", &["cert.pem"]),
        ])
    );
    for passed in ["archive", "live"] {
        assert_eq!(found.get(&root.join(passed)), Some(&BTreeSet::new()));
    }
}

#[test]
fn a_way_that_ends_is_watched_where_it_ends() {
    let (_folder, root) = folder();
    fs::write(root.join("file"), "").unwrap();
    symlink("loop", root.join("loop")).unwrap();
    symlink("gone/b.pem", root.join("dangling")).unwrap();
    let ends = |path: &str| named(&folders(&[&root.join(path)]), &root);
    assert_eq!(ends("no/such/a.pem"), expected(&[("", &["no"])]));
    assert_eq!(ends("file/a.pem"), expected(&[("", &["file"])]));
    assert_eq!(ends("loop"), expected(&[("", &["loop"])]));
    assert_eq!(ends("dangling"), expected(&[("", &["dangling", "gone"])]));
}

/// Watches the file, and waits for a sign after `change`; false if there is none.
async fn is_told(file: &Path, change: impl FnOnce(), patience: Duration) -> bool {
    let mut events = Events::new().unwrap();
    let mut watches = events.watches();
    watches.renew(|| folders(&[file]));
    change();
    let next = events.next(|event| watches.is_about(event));
    timeout(patience, next).await.is_ok()
}

const PLENTY: Duration = Duration::from_secs(10);

#[tokio::test]
async fn what_happens_to_a_file_is_told_and_to_its_neighbour_is_not() {
    let (_folder, root) = folder();
    let file = root.join("a.pem");
    fs::write(&file, "").unwrap();
    let changes: [&dyn Fn(); 4] = [
        &|| fs::write(&file, "1").unwrap(),
        &|| fs::rename(&file, root.join("b.pem")).unwrap(),
        &|| fs::rename(root.join("b.pem"), &file).unwrap(),
        &|| fs::remove_file(&file).unwrap(),
    ];
    for change in changes {
        assert!(is_told(&file, change, PLENTY).await);
    }
    let beside = || fs::write(root.join("c.pem"), "1").unwrap();
    assert!(!is_told(&file, beside, Duration::from_millis(50)).await);
    let away = || fs::rename(&root, root.with_extension("away")).unwrap();
    assert!(is_told(&file, away, PLENTY).await);
    fs::rename(root.with_extension("away"), &root).unwrap();
}

fn settings(text: &str, resolver: &mut dyn config::Resolver) -> Config {
    config::parse(text, "/etc/a.toml", resolver).unwrap()
}

/// Gives the same pair for any files of that name, and no authorities.
struct Only(Vec<Arc<Pair>>);

impl config::Resolver for Only {
    fn resolve(&mut self, _: &str, _: u16) -> std::io::Result<Vec<std::net::SocketAddr>> {
        unreachable!("there are no host names")
    }

    fn pair(&mut self, certificate: &Path, key: &Path) -> Result<Arc<Pair>, LoadError> {
        let mut pairs = self.0.iter();
        Ok(pairs
            .find(|it| it.files() == [certificate, key])
            .unwrap()
            .clone())
    }
}

#[test]
fn what_is_new_takes_the_place_of_the_old_wherever_it_is_used() {
    let files = |name: &str| ["pem", "key"].map(|end| PathBuf::from(format!("/etc/{name}.{end}")));
    let new_pair = |name: &str| {
        let [certificate, key] = files(name);
        pair(&certificate, &key, (2030, 1, 1))
    };
    let text = "[listeners.web]\nbind = \"127.0.0.1:1\"\nupstream = \"app\"\n\
                tls.certificates = [{cert = \"a.pem\", key = \"a.key\"}, {cert = \"b.pem\", key = \"b.key\"}]\n\
                [upstreams.app]\nbackends = [\"127.0.0.1:2\"]\n\
                tls = { verify = false, client_cert = \"a.pem\", client_key = \"a.key\" }\n";
    let (a, b) = (new_pair("a"), new_pair("b"));
    let mut config = settings(text, &mut Only(vec![a.clone(), b.clone()]));
    assert_eq!(materials(&config).len(), 3);
    assert_eq!(material::distinct(&config).len(), 2);
    let look = |pair: &Arc<Pair>| Look {
        material: Material::Pair(pair.clone()),
        fault: None,
    };
    assert!(Found(vec![look(&a), look(&b)]).put(&mut config).is_empty());
    let renewed = new_pair("a");
    let found = Found(vec![look(&b), look(&renewed)]);
    assert_eq!(found.put(&mut config).len(), 2);
    let tls = config.listeners[0].tls.as_ref().unwrap();
    assert_eq!(tls.certificates, [renewed.clone(), b]);
    let tls = config.upstreams[0].tls.as_ref().unwrap();
    assert_eq!(tls.identity, Some(renewed));
    assert!(found.put(&mut config).is_empty(), "once");
}

#[test]
fn a_pair_is_read_again_when_it_has_changed_and_kept_when_it_does_not_fit() {
    let (_folder, root) = folder();
    let [certificate, key] = ["a.pem", "a.key"].map(|name| root.join(name));
    let write = |[chain, secret]: &[String; 2]| {
        fs::write(&certificate, chain).unwrap();
        fs::write(&key, secret).unwrap();
    };
    let (old, new) = (made((2030, 1, 1)), made((2031, 1, 1)));
    write(&old);
    let first = Arc::new(Pair::load(&certificate, &key).unwrap());
    let mut reader = Reader::new(vec![Material::Pair(first.clone())], None);
    let mut look = || {
        reader.read();
        let Look { material, fault } = reader.found().0.remove(0);
        (material.pair().unwrap().clone(), fault)
    };
    assert_eq!(look(), (first.clone(), None));
    fs::write(&key, &new[1]).unwrap();
    let (kept, fault) = look();
    assert!(Arc::ptr_eq(&kept, &first) || kept == first);
    assert!(fault.unwrap().what.contains("not the key"));
    write(&new);
    let (taken, fault) = look();
    assert_eq!((taken.not_after, fault), (1_924_992_000, None));
    assert!(taken != first);
}

fn fault(what: &str) -> LoadError {
    LoadError {
        file: "/a.key".into(),
        what: what.to_owned(),
        expected: "a key",
        hint: None,
    }
}

#[tokio::test]
async fn what_is_wrong_is_told_once_it_stays_so_and_once_only() {
    let pair = some_pair();
    let found = |fault: Option<LoadError>| {
        let material = Material::Pair(pair.clone());
        Found(vec![Look { material, fault }])
    };
    let (start, ms) = (Instant::now(), Duration::from_millis);
    let mut faults = Faults::default();
    let wrong = found(Some(fault("x")));
    assert_eq!(faults.note(&wrong, start), []);
    assert_eq!(faults.due(), Some(start + ms(1500)));
    assert_eq!(faults.of(&pair.files()), Some(&fault("x")));
    assert_eq!(
        faults.note(&found(None), start + ms(100)),
        [],
        "it was half a pair"
    );
    assert_eq!((faults.due(), faults.of(&pair.files())), (None, None));
    let start = start + ms(200);
    faults.note(&wrong, start);
    // Another reason is no other beginning.
    let other = found(Some(fault("y")));
    assert_eq!(faults.note(&other, start + ms(1499)), []);
    assert_eq!(
        faults.note(&other, start + ms(1500)),
        [News::Wrong(fault("y"))]
    );
    assert_eq!(faults.note(&other, start + ms(9000)), []);
    assert_eq!(faults.due(), None);
    assert_eq!(
        faults.note(&wrong, start + ms(9001)),
        [News::Wrong(fault("x"))]
    );
    assert_eq!(
        faults.note(&found(None), start + ms(9002)),
        [News::Right("/a.key".into())]
    );
    // A reload has told it.
    faults.told(&[fault("z")]);
    let reloaded = found(Some(fault("z")));
    assert_eq!(faults.note(&reloaded, start), []);
    assert_eq!(faults.note(&reloaded, start + ms(9000)), []);
}

#[test]
fn an_end_that_is_near_is_told_once_a_day() {
    const DAY: i64 = 86_400;
    let pairs = [some_pair()];
    let end = pairs[0].not_after;
    assert_eq!(date(end), "2030-01-01T00:00:00Z");
    let mut expiry = Expiry::default();
    let mut told = |now: i64| expiry.note(pairs.iter(), now).len();
    assert_eq!(told(end - 14 * DAY), 0);
    assert_eq!(told(end - 14 * DAY + 1), 1);
    assert_eq!(told(end - 13 * DAY), 0);
    assert_eq!(told(end - 13 * DAY + 1), 1);
    assert_eq!(told(end + 1), 1);
    assert_eq!(told(end), 1, "the clock was set back");
    assert_eq!(date(i64::MIN), format!("{} s after 1970", i64::MIN));
}
