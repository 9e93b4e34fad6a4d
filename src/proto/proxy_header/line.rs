//! Version 1: a line of text (section 2.1).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::{self, FromStr};

use super::{Announced, Answer, Excerpt, Fault};

/// What came of the line.
#[derive(Debug)]
pub(super) struct Line {
    text: [u8; LINE_BYTES_MAX],
    len: usize,
}

/// No header of version 2 begins so.
pub(super) const FIRST: u8 = SIGNATURE[0];

impl Line {
    pub(super) fn new() -> Self {
        Self {
            text: [0; LINE_BYTES_MAX],
            len: 0,
        }
    }

    /// Returns how many bytes belong to the line, too.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> (usize, Answer) {
        for (at, byte) in bytes.iter().enumerate() {
            self.text[self.len] = *byte;
            self.len += 1;
            let answer = after_a_byte(&self.text[..self.len]);
            if answer.is_some() {
                return (at + 1, answer);
            }
        }
        (bytes.len(), None)
    }
}

/// What the last byte makes of a line that was fine before it.
fn after_a_byte(text: &[u8]) -> Answer {
    if text.len() <= SIGNATURE.len() {
        let is_ours = SIGNATURE.starts_with(text);
        return (!is_ours).then(|| Err(Fault::NoHeader(Excerpt::of(text))));
    }
    let rest = &text[SIGNATURE.len()..];
    match rest {
        [line @ .., b'\r', b'\n'] => return Some(announced(line)),
        [.., b'\r', last] => return Some(Err(wrong("LF behind CR", &[*last]))),
        [.., b'\n'] => return Some(Err(wrong("CR before LF", b"\n"))),
        _ if text.len() == LINE_BYTES_MAX => return Some(Err(Fault::LineTooLong)),
        _ => {}
    }
    // What UNKNOWN is followed by has to be ignored.
    let is_fine = |last: u8| matches!(last, b'\r' | b' '..=b'~') || rest.starts_with(b"UNKNOWN ");
    let unfit = rest.last().copied().filter(|last| !is_fine(*last))?;
    Some(Err(wrong("text", &[unfit])))
}

/// What stands in a line between `PROXY ` and its end.
fn announced(line: &[u8]) -> Result<Announced, Fault> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut next = || fields.next().unwrap_or_default();
    let protocol = next();
    let address: fn(&[u8]) -> Result<IpAddr, Fault> = match protocol {
        b"UNKNOWN" => return Ok(Announced::Own),
        b"TCP4" => |got| parsed::<Ipv4Addr>(got, "an IPv4 address").map(IpAddr::V4),
        b"TCP6" => |got| parsed::<Ipv6Addr>(got, "an IPv6 address").map(IpAddr::V6),
        _ => return Err(wrong("TCP4, TCP6 or UNKNOWN", protocol)),
    };
    let (source, destination) = (address(next())?, address(next())?);
    let (source_port, destination_port) = (port(next())?, port(next())?);
    match fields.next() {
        None => Ok(Announced::client(
            (source, source_port).into(),
            (destination, destination_port).into(),
        )),
        Some(got) => Err(wrong("CRLF behind the ports", got)),
    }
}

fn port(got: &[u8]) -> Result<u16, Fault> {
    // What is read as a number may also have a sign.
    let is_plain = got == b"0"
        || matches!(got, [b'1'..=b'9', rest @ ..] if rest.iter().all(u8::is_ascii_digit));
    if !is_plain {
        return Err(wrong(PORT, got));
    }
    parsed(got, PORT)
}

fn parsed<T: FromStr>(got: &[u8], expected: &'static str) -> Result<T, Fault> {
    let text = str::from_utf8(got).ok();
    let value = text.and_then(|text| text.parse().ok());
    value.ok_or_else(|| wrong(expected, got))
}

fn wrong(expected: &'static str, got: &[u8]) -> Fault {
    Fault::Line {
        expected,
        got: Excerpt::of(got),
    }
}

const SIGNATURE: [u8; 6] = *b"PROXY ";
/// With CRLF; UNKNOWN with two IPv6 addresses of full length is the longest.
const LINE_BYTES_MAX: usize = 107;
const PORT: &str = "a port (0 to 65535, without leading zeros)";
