//! The server with a handler of the test's own, and with clients that behave and that don't.

use std::path::PathBuf;

use tempfile::TempDir;
use tokio::task::{spawn_blocking, spawn_local, yield_now};

use super::super::client::{self, ClientError};
use super::super::protocol::{Outcome, Reloaded, Upgraded};
use super::*;
use crate::config::diff::{Change, How};

/// On the runtime of the control plane.
fn run(test: impl AsyncFnOnce()) {
    tokio_uring::start(test());
}

struct Setting {
    _folder: TempDir,
    path: PathBuf,
    folders: Folders,
}

impl Setting {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        let folders = Folders {
            service: None,
            system: folder.path().join("system"),
            user: Some(folder.path().join("user")),
        };
        Self {
            _folder: folder,
            path,
            folders,
        }
    }

    fn bind(&self, place: &Place, options: Options<'_>) -> Result<Option<Server>, ListenError> {
        Server::bind(place, &self.folders, options)
    }

    fn server(&self) -> Server {
        let place = Place::At(self.path.clone());
        self.bind(&place, Options::default()).unwrap().unwrap()
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).await.unwrap()
    }
}

/// A command on another thread.
async fn ask(path: &Path, command: Command) -> Result<Outcome, ClientError> {
    const PATIENCE: Duration = Duration::from_secs(20);
    let paths = [path.to_owned()];
    let asking = spawn_blocking(move || client::ask(&paths, &command, PATIENCE));
    asking.await.unwrap()
}

fn reloaded(generation: u64) -> Outcome {
    let changes = vec![Change {
        key: "log.level".to_owned(),
        from: Some("info".to_owned()),
        to: Some("debug".to_owned()),
        how: How::Live,
    }];
    Outcome::Reloaded(Reloaded {
        generation,
        changes,
    })
}

/// What the server says to `request`, or how it ends.
async fn said(stream: &mut UnixStream, request: &[u8]) -> String {
    stream.write_all(request).await.unwrap();
    end_of(stream).await
}

async fn end_of(stream: &mut UnixStream) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

#[test]
fn a_request_comes_out_and_its_answer_goes_back() {
    run(async || {
        let setting = Setting::new();
        let mut server = setting.server();
        let path = server.path().to_owned();
        let asking = spawn_local(async move { ask(&path, Command::Reload).await });
        let request = server.next().await;
        assert_eq!(request.command, Command::Reload);
        request.answer.send(Reply::Done(reloaded(7))).unwrap();
        assert_eq!(asking.await.unwrap().unwrap(), reloaded(7));
    });
}

#[test]
fn requests_are_taken_at_once_and_answered_in_any_order() {
    run(async || {
        let setting = Setting::new();
        let mut server = setting.server();
        let [mut slow, mut quick] = [setting.connect().await, setting.connect().await];
        slow.write_all(b"{\"command\":\"upgrade\"}\n")
            .await
            .unwrap();
        let first = server.next().await;
        quick
            .write_all(b"{\"command\":\"reload\"}\n")
            .await
            .unwrap();
        let second = server.next().await;
        second.answer.send(Reply::failed("second")).unwrap();
        assert!(end_of(&mut quick).await.contains("second"));
        let upgraded = Outcome::Upgraded(Upgraded { pid: 5 });
        first.answer.send(Reply::Done(upgraded)).unwrap();
        let expected = "{\"done\":{\"upgraded\":{\"pid\":5}}}\n";
        assert_eq!(end_of(&mut slow).await, expected);
    });
}

#[test]
fn a_next_that_is_dropped_loses_no_request() {
    run(async || {
        let setting = Setting::new();
        let mut server = setting.server();
        let mut stream = setting.connect().await;
        stream
            .write_all(b"{\"command\":\"status\"}\n")
            .await
            .unwrap();
        let request = loop {
            tokio::select! {
                biased;
                request = server.next() => break request,
                () = yield_now() => {}
            }
        };
        assert_eq!(request.command, Command::Status);
    });
}

#[test]
fn what_is_not_understood_is_answered_and_the_next_request_is_served() {
    run(async || {
        let setting = Setting::new();
        let mut server = setting.server();
        for (request, expected) in [
            (
                "{\"command\":\"explode\"}\n",
                "unknown command \\\"explode\\\"",
            ),
            ("hello\n", "not understood"),
            ("\n", "not understood"),
        ] {
            let answer = said(&mut setting.connect().await, request.as_bytes()).await;
            assert!(answer.starts_with("{\"failed\":{\"error\":"), "{answer}");
            assert!(answer.contains(expected), "{answer}");
        }
        let mut stream = setting.connect().await;
        stream
            .write_all(b"{\"command\":\"status\"}\n")
            .await
            .unwrap();
        assert_eq!(server.next().await.command, Command::Status);
    });
}

#[test]
fn whoever_leaves_before_asking_or_before_the_answer_harms_nobody() {
    run(async || {
        let setting = Setting::new();
        let mut server = setting.server();
        for _ in 0..2 * CONNECTIONS_MAX {
            drop(setting.connect().await);
            let mut stream = setting.connect().await;
            stream
                .write_all(b"{\"command\":\"reload\"}\n")
                .await
                .unwrap();
            drop(stream);
            let request = server.next().await;
            request.answer.send(Reply::Done(reloaded(1))).unwrap();
        }
    });
}

#[test]
fn a_request_without_end_is_cut_off_by_length() {
    run(async || {
        let setting = Setting::new();
        let _server = setting.server();
        let (mut reading, mut writing) = setting.connect().await.into_split();
        let writing = spawn_local(async move {
            // Fails when the server closes.
            let _ = writing.write_all(&vec![b' '; REQUEST_BYTES_MAX + 1]).await;
        });
        let mut answer = [0; 64];
        let count = reading.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..count]);
        assert!(answer.contains("too long: at most 8 MiB"), "{answer}");
        writing.await.unwrap();
    });
}

#[test]
fn a_request_that_does_not_come_is_cut_off_by_time() {
    run(async || {
        let setting = Setting::new();
        let _server = setting.server();
        let mut stream = setting.connect().await;
        tokio::time::pause();
        let answer = said(&mut stream, b"{\"command\":").await;
        assert!(answer.contains("no request came within 10 s"), "{answer}");
    });
}

#[test]
fn one_connection_too_many_is_turned_away_until_another_ends() {
    run(async || {
        let setting = Setting::new();
        let mut server = setting.server();
        let mut open = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            open.push(setting.connect().await);
        }
        let answer = end_of(&mut setting.connect().await).await;
        assert!(answer.contains("too many requests at once"), "{answer}");
        open.pop();
        while server.places.available_permits() == 0 {
            yield_now().await;
        }
        let mut stream = setting.connect().await;
        stream
            .write_all(b"{\"command\":\"reload\"}\n")
            .await
            .unwrap();
        assert_eq!(server.next().await.command, Command::Reload);
    });
}

#[test]
fn everybody_who_waits_hears_that_the_process_is_ending() {
    run(async || {
        let setting = Setting::new();
        let mut server = setting.server();
        let mut streams = Vec::new();
        for _ in 0..3 {
            streams.push(setting.connect().await);
        }
        let [silent, queued, held] = &mut streams[..] else {
            panic!();
        };
        held.write_all(b"{\"command\":\"upgrade\"}\n")
            .await
            .unwrap();
        drop(server.next().await);
        queued
            .write_all(b"{\"command\":\"reload\"}\n")
            .await
            .unwrap();
        while server.requests.is_empty() {
            yield_now().await;
        }
        server.finish().await;
        for stream in [silent, queued, held] {
            let answer = end_of(stream).await;
            assert!(answer.contains("the process is ending"), "{answer}");
        }
        assert!(!setting.path.exists());
        assert!(UnixStream::connect(&setting.path).await.is_err());
    });
}

#[test]
fn a_named_path_that_is_taken_is_an_error_unless_it_is_taken_over() {
    run(async || {
        let setting = Setting::new();
        let old = setting.server();
        let place = Place::At(setting.path.clone());
        let error = setting.bind(&place, Options::default()).unwrap_err();
        assert!(matches!(error, ListenError::InUse(_)), "{error}");
        let options = Options {
            take_over: Some(&setting.path),
        };
        let mut new = setting.bind(&place, options).unwrap().unwrap();
        drop(old);
        let mut stream = setting.connect().await;
        stream
            .write_all(b"{\"command\":\"reload\"}\n")
            .await
            .unwrap();
        assert_eq!(new.next().await.command, Command::Reload);
    });
}

#[test]
fn auto_takes_the_first_folder_that_can_be_had_and_does_without_if_there_is_none() {
    run(async || {
        let mut setting = Setting::new();
        let place = Place::Auto("/etc/a.toml".into());
        setting.folders.service = Some("/proc/no/such".into());
        let bind = |setting: &Setting| setting.bind(&place, Options::default()).unwrap();
        let server = bind(&setting).unwrap();
        assert!(server.path().starts_with(&setting.folders.system));
        let paths = setting
            .folders
            .candidates(Path::new("/etc/a.toml"))
            .unwrap();
        assert_eq!(server.path(), paths[1].path, "where a command looks");
        assert!(
            bind(&setting).is_none(),
            "a process with this file is there"
        );
        let other = Place::Auto("/etc/b.toml".into());
        let options = Options::default();
        assert!(setting.bind(&other, options).unwrap().is_some());
        drop(server);
        setting.folders.system = "/proc/no/such".into();
        let server = bind(&setting).unwrap();
        assert!(
            server
                .path()
                .starts_with(setting.folders.user.as_ref().unwrap())
        );
        drop(server);
        setting.folders.user = None;
        assert!(bind(&setting).is_none());
        assert!(setting.bind(&Place::Off, options).unwrap().is_none());
    });
}

#[test]
fn only_the_same_user_and_root_may_ask() {
    assert!(may_ask(0, 1000) && may_ask(1000, 1000) && may_ask(0, 0));
    assert!(!may_ask(1000, 0) && !may_ask(1001, 1000));
}
