//! The commands that talk to a running process, as a user meets them: how the process is found, what is
//! printed where, and exit codes. The process is a script here.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread::{self, JoinHandle};

use ringress::control::socket::path::Folders;

/// A folder with a configuration, and room for the sockets of its process.
struct Setting {
    folder: tempfile::TempDir,
    file: PathBuf,
}

impl Setting {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("a.toml");
        std::fs::write(&file, text).expect("a file");
        Self { folder, file }
    }

    /// Where the process's socket is with `control_socket = "auto"`.
    fn socket(&self) -> PathBuf {
        let folders = Folders {
            service: Some(self.folder.path().to_owned()),
            system: "/run/ringress".into(),
            user: None,
        };
        let candidates = folders.candidates(&self.file).expect("a current folder");
        candidates[0].path.clone()
    }

    /// Runs `ringress` with these arguments; `FILE` is the configuration.
    fn run(&self, arguments: &str) -> Output {
        let file = self.file.to_str().expect("it is UTF-8");
        let arguments = arguments.split_whitespace();
        Command::new(env!("CARGO_BIN_EXE_ringress"))
            .args(arguments.map(|it| if it == "FILE" { file } else { it }))
            .current_dir(self.folder.path())
            .env("RUNTIME_DIRECTORY", self.folder.path())
            .env_remove("XDG_RUNTIME_DIR")
            .stdin(Stdio::null())
            .output()
            .expect("the binary was built")
    }
}

/// A process that says one of `replies` to each request in turn, and hands back what it was asked.
fn process(socket: &Path, replies: &[&str]) -> JoinHandle<Vec<String>> {
    let listener = UnixListener::bind(socket).expect("a socket");
    let replies: Vec<_> = replies.iter().map(|reply| format!("{reply}\n")).collect();
    thread::spawn(move || {
        let serve = |reply: &String| {
            let (stream, _) = listener.accept().expect("a client");
            let mut request = String::new();
            BufReader::new(&stream)
                .read_line(&mut request)
                .expect("a request");
            (&stream).write_all(reply.as_bytes()).expect("it is taken");
            request
        };
        replies.iter().map(serve).collect()
    })
}

/// Exit code, stdout and stderr.
fn told(output: &Output) -> (Option<i32>, &str, &str) {
    let text = |bytes| std::str::from_utf8(bytes).expect("what is printed is UTF-8");
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

const RELOADED: &str = r#"{"done":{"reloaded":{"generation":4,"changes":[{"key":"a","from":"1","to":"2","how":"live"}]}}}"#;
const REFUSED: &str = r#"{"failed":{"error":"a.toml:1:1: error: x\n  | y\n"}}"#;

#[test]
fn a_process_is_found_by_the_path_of_its_configuration_however_it_is_spelled() {
    let setting = Setting::new("");
    for arguments in [
        "reload -c FILE",
        "reload -c a.toml",
        "reload -c x/../a.toml",
    ] {
        let process = process(&setting.socket(), &[RELOADED]);
        let output = setting.run(arguments);
        let expected = "reloaded: generation 4\n  a: 1 → 2 (live)\n";
        assert_eq!(told(&output), (Some(0), expected, ""), "{arguments}");
        assert_eq!(process.join().unwrap(), ["{\"command\":\"reload\"}\n"]);
        std::fs::remove_file(setting.socket()).unwrap();
    }
}

#[test]
fn a_process_is_found_where_a_broken_file_says() {
    let setting = Setting::new("nonsense = = 1\n");
    let socket = setting.folder.path().join("x.sock");
    let text = format!("nonsense = = 1\n[runtime]\ncontrol_socket = {socket:?}\n");
    std::fs::write(&setting.file, text).unwrap();
    let by_file = process(&socket, &[RELOADED]);
    assert!(setting.run("reload -c FILE").status.success());
    by_file.join().unwrap();
    std::fs::remove_file(&socket).unwrap();
    let by_name = process(&socket, &[RELOADED]);
    assert!(setting.run("reload --socket x.sock").status.success());
    by_name.join().unwrap();
}

#[test]
fn a_reload_that_is_refused_exits_with_1_and_says_why_in_the_words_of_the_process() {
    let setting = Setting::new("");
    let process = process(&setting.socket(), &[REFUSED, REFUSED]);
    let output = setting.run("reload -c FILE");
    let expected = "a.toml:1:1: error: x\n  | y\n";
    assert_eq!(told(&output), (Some(1), "", expected));
    let output = setting.run("reload -c FILE --format json");
    let (code, printed, said) = told(&output);
    let object: serde_json::Value = serde_json::from_str(printed).expect("it is JSON");
    assert_eq!((code, said), (Some(1), ""));
    assert_eq!(object["error"], expected);
    process.join().unwrap();
}

#[test]
fn without_a_process_every_command_says_where_it_looked_and_exits_with_1() {
    let setting = Setting::new("");
    for command in [
        "status -c FILE",
        "reload -c FILE",
        "upgrade -c FILE",
        "plan FILE",
        "drain -c FILE --listener web --wait",
        "resume -c FILE --backend app/b1",
    ] {
        let output = setting.run(command);
        let (code, printed, said) = told(&output);
        assert_eq!((code, printed), (Some(1), ""), "{command}");
        assert!(
            said.starts_with("ringress: no process answers\n  "),
            "{said}"
        );
        let socket = setting.socket();
        for path in [socket.to_str().unwrap(), "/run/ringress/"] {
            assert!(said.contains(path), "{said}");
        }
        assert!(
            said.contains("Is ringress running with this file?"),
            "{said}"
        );
    }
}

#[test]
fn a_file_that_wants_no_socket_says_so_but_a_process_from_before_is_found() {
    let setting = Setting::new("runtime.control_socket = 'off'");
    let output = setting.run("reload -c FILE");
    let (code, _, said) = told(&output);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("a.toml says runtime.control_socket = \"off\""),
        "{said}"
    );
    let process = process(&setting.socket(), &[RELOADED]);
    assert!(setting.run("reload -c FILE").status.success());
    process.join().unwrap();
}

#[test]
fn plan_sends_the_text_of_the_new_file_to_the_process_of_the_old_one() {
    let setting = Setting::new("");
    std::fs::write(setting.folder.path().join("new.toml"), "log = 1\n").unwrap();
    let reply =
        r#"{"done":{"planned":{"changes":[{"key":"a","from":"1","to":"2","how":"live"}]}}}"#;
    let process = process(&setting.socket(), &[reply, r#"{"done":{"planned":{}}}"#]);
    let output = setting.run("plan new.toml -c FILE");
    let expected = "a reload would change\n  a: 1 → 2 (live)\n";
    assert_eq!(told(&output), (Some(0), expected, ""));
    let output = setting.run("plan a.toml");
    let expected = "a reload would change nothing\n";
    assert_eq!(told(&output), (Some(0), expected, ""));
    let requests = process.join().unwrap();
    // The process may be in another folder.
    let file = setting.folder.path().join("new.toml");
    let file = file.display();
    let expected =
        format!("{{\"command\":\"plan\",\"file\":\"{file}\",\"text\":\"log = 1\\n\"}}\n");
    assert_eq!(requests[0], expected);
    let output = setting.run("plan missing.toml");
    let (code, _, said) = told(&output);
    assert_eq!(code, Some(1));
    assert!(
        said.contains("can't read missing.toml: No such file"),
        "{said}"
    );
}

#[test]
fn drain_waits_until_no_session_is_left_and_resume_takes_the_same_part() {
    let setting = Setting::new("");
    let part = r#"{"upstream":"app","backend":"b1"}"#;
    let drained = format!(r#"{{"done":{{"drained":{{"part":{part},"sessions_left":2}}}}}}"#);
    let empty =
        format!(r#"{{"done":{{"status":{{"draining":[{{"part":{part},"sessions_left":0}}]}}}}}}"#);
    let resumed = format!(r#"{{"done":{{"resumed":{{"part":{part}}}}}}}"#);
    let process = process(&setting.socket(), &[&drained, &empty, &resumed]);
    let output = setting.run("drain -c FILE --backend app/b1 --deadline 30s --wait");
    let expected =
        "backend \"app/b1\" is draining: 2 sessions left\nbackend \"app/b1\" is drained\n";
    assert_eq!(told(&output), (Some(0), expected, ""));
    let output = setting.run("resume -c FILE --backend app/b1 --format json");
    let expected = format!("{{\"part\":{part}}}\n");
    let (code, printed, _) = told(&output);
    let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("it is JSON");
    assert_eq!((code, read(printed)), (Some(0), read(&expected)));
    let expected = [
        format!("{{\"command\":\"drain\",\"part\":{part},\"deadline_ms\":30000}}\n"),
        "{\"command\":\"status\"}\n".to_owned(),
        format!("{{\"command\":\"resume\",\"part\":{part}}}\n"),
    ];
    assert_eq!(process.join().unwrap(), expected);
}

#[test]
fn status_is_for_people_or_for_programs_and_upgrade_tells_the_new_process() {
    let setting = Setting::new("");
    let status = r#"{"done":{"status":{"pid":7,"version":"0.1.0","state":"serving","listeners":
        [{"name":"web","state":"drained","sessions":3}]}}}"#;
    let status = status.replace('\n', "");
    let upgraded = r#"{"done":{"upgraded":{"pid":8}}}"#;
    let process = process(&setting.socket(), &[&status, &status, upgraded]);
    let output = setting.run("status -c FILE");
    let (code, printed, _) = told(&output);
    assert_eq!(code, Some(0));
    assert!(
        printed.contains("7, ringress 0.1.0, serving\n"),
        "{printed}"
    );
    assert!(printed.contains("\nweb       drained  3 "), "{printed}");
    let output = setting.run("status -c FILE --format json");
    let object: serde_json::Value = serde_json::from_str(told(&output).1).expect("it is JSON");
    assert_eq!(object["listeners"][0]["state"], "drained");
    let output = setting.run("upgrade -c FILE");
    let expected = "upgraded: the new process is 8\n";
    assert_eq!(told(&output), (Some(0), expected, ""));
    process.join().unwrap();
}
