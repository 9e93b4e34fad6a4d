//! A client of the admin endpoint, byte by byte: what it says is what the test wrote.

use std::io::{self, Read, Write};

use serde_json::Value;
use socket2::Socket;

use super::proxy::text;
use super::socket::{connect, unconnected};
use super::{PATIENCE, Proxy};

/// What was answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The lines before the body.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    /// The value of a header; empty if there is none.
    pub(crate) fn header(&self, name: &str) -> &str {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map_or("", |(_, value)| value)
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let all = String::from_utf8_lossy(bytes).into_owned();
        let (head, body) = all.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some(Self {
            status,
            head: head.to_owned(),
            body: body.to_owned(),
        })
    }
}

/// A request of HTTP/1.1 with these further lines as headers.
pub(crate) fn request(method: &str, target: &str, headers: &[&str]) -> String {
    let host = match headers.iter().any(|line| line.starts_with("Host:")) {
        true => "",
        false => "Host: localhost\r\n",
    };
    let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
    format!("{method} {target} HTTP/1.1\r\n{host}{lines}\r\n")
}

/// What is answered to these bytes until the connection ends; `None` = nothing that is HTTP.
pub(crate) fn says(address: &str, bytes: &[u8]) -> Option<Answer> {
    let mut socket = connect(address);
    // It may be refused before it is said.
    let _ = socket.write_all(bytes);
    rest(&mut socket)
}

/// What is still to come.
pub(crate) fn rest(socket: &mut Socket) -> Option<Answer> {
    let mut answer = Vec::new();
    match socket.read_to_end(&mut answer) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            panic!(
                "no end within {PATIENCE:?}: {}",
                String::from_utf8_lossy(&answer)
            )
        }
        _ => Answer::parse(&answer),
    }
}

/// What is answered on a connection that stays open: as much as it says.
pub(crate) fn answered(address: &str, bytes: &[u8]) -> Option<Answer> {
    let mut socket = connect(address);
    socket.write_all(bytes).ok()?;
    let (mut answer, mut buffer) = (Vec::new(), vec![0; 64 * 1024]);
    while !is_whole(&answer) {
        match socket.read(&mut buffer) {
            Ok(count @ 1..) => answer.extend_from_slice(&buffer[..count]),
            _ => return None,
        }
    }
    Answer::parse(&answer)
}

fn is_whole(answer: &[u8]) -> bool {
    let Some(end) = answer.windows(4).position(|it| it == b"\r\n\r\n") else {
        return false;
    };
    let head = String::from_utf8_lossy(&answer[..end]).to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length.map_or(0, |it| it.trim().parse().expect("a number"));
    answer.len() >= end + 4 + length
}

/// The answer to a request.
pub(crate) fn ask(address: &str, method: &str, target: &str, headers: &[&str]) -> Answer {
    let answer = says(address, request(method, target, headers).as_bytes());
    answer.unwrap_or_else(|| panic!("{method} {target} was not answered"))
}

pub(crate) fn get(address: &str, target: &str) -> Answer {
    ask(address, "GET", target, &[])
}

pub(crate) fn post(address: &str, target: &str) -> Answer {
    ask(address, "POST", target, &[])
}

/// Nobody listens there.
pub(crate) fn is_closed(address: &str) -> bool {
    let socket = unconnected(address);
    socket.connect(&super::socket::parse(address).1).is_err()
}

impl Proxy {
    /// Where its admin endpoint is since the `from`th line of the log.
    pub(crate) fn admin_since(&self, from: usize) -> String {
        text(&self.wait_message(from, "admin endpoint"), "address")
    }

    /// Where its admin endpoint is.
    pub(crate) fn admin(&self) -> String {
        self.admin_since(0)
    }
}
