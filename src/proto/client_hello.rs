//! What a TLS client says first: which name it wants to speak to (RFC 8446 section 4.1.2, RFC 6066
//! section 3). Read without answering, so that the bytes can go on to whom the name leads to.
//!
//! ```text
//!   record 22 │ 3.x │ length │ hello, first part     record 22 │ 3.x │ length │ hello, rest
//!   ───────────────────────────────────────────      ──────────────────────────────────────
//!   hello   1 │ length │ version │ random │ session ID │ suites │ compressions │ extensions
//! ```
//!
//! A hello may lie in as many records as a client likes, and a record come in as many pieces. What
//! comes after the hello is not looked at.

use std::net::IpAddr;
use std::ops::RangeInclusive;

mod laws;

#[doc(hidden)]
pub use laws::check_laws;

/// Reads the beginning of a connection that may be one of TLS. It keeps the hello until it is complete;
/// each byte is looked at once.
#[derive(Debug)]
pub struct HelloReader {
    state: State,
    /// Bytes that came, with the headers of the records.
    wire_bytes: usize,
    /// What came of the hello, with its header.
    hello: Vec<u8>,
}

/// ```text
///   Header ──▶ Record ──▶ Ended
///     ▲──────────┘
/// ```
#[derive(Debug)]
enum State {
    /// The header of a record is coming.
    Header { header: [u8; HEADER], came: usize },
    /// So many bytes of a record are still to come.
    Record { left: usize },
    /// There is an answer, whatever comes.
    Ended(Hello),
}

/// How a connection begins.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Hello {
    /// Not with TLS.
    NotTls,
    /// With TLS, and without a name; an IP address is none (RFC 6066 section 3).
    NoName,
    /// With TLS for this DNS name: in lower case, without a dot at its end.
    Name(Box<str>),
    /// With TLS that has this in it, which must not be.
    Malformed(&'static str),
    /// With more than [`HELLO_BYTES_MAX`].
    TooLong,
}

/// Bytes that a hello may have, and bytes that may be on the wire until it is complete.
pub const HELLO_BYTES_MAX: usize = 16 << 10;

impl Default for HelloReader {
    fn default() -> Self {
        Self::new()
    }
}

impl HelloReader {
    /// Nothing has come yet.
    pub fn new() -> Self {
        Self {
            state: State::next_record(),
            wire_bytes: 0,
            hello: Vec::new(),
        }
    }

    /// Reads what has come since the last call, in pieces of any size. `None` = more has to come; an
    /// answer stays the same, and it is there as soon as it is certain. After [`HELLO_BYTES_MAX`] bytes
    /// there is one.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Option<Hello> {
        loop {
            let answer = match &self.state {
                State::Ended(hello) => return Some(hello.clone()),
                _ if bytes.is_empty() => return None,
                State::Header { header, came } => self.read_header(*header, *came, &mut bytes),
                State::Record { left } => self.read_record(*left, &mut bytes),
            };
            let is_full = self.wire_bytes == HELLO_BYTES_MAX;
            if let Some(hello) = answer.or_else(|| is_full.then_some(Hello::TooLong)) {
                self.hello = Vec::new();
                self.state = State::Ended(hello);
            }
        }
    }

    /// Takes a single byte, so that what is wrong is found at the same one however they come.
    fn read_header(
        &mut self,
        mut header: [u8; HEADER],
        came: usize,
        bytes: &mut &[u8],
    ) -> Option<Hello> {
        header[came] = *bytes.split_off_first()?;
        self.wire_bytes += 1;
        let wrong = match (came, header[came]) {
            (0, kind) if kind != HANDSHAKE => Some("a record of another kind within the hello"),
            (1, major) if major != VERSION_MAJOR => Some("a record of another protocol's version"),
            _ => None,
        };
        if let Some(what) = wrong {
            let is_first = self.wire_bytes <= HEADER;
            let malformed = Hello::Malformed(what);
            return Some(if is_first { Hello::NotTls } else { malformed });
        }
        let came = came + 1;
        self.state = State::Header { header, came };
        if came < HEADER {
            return None;
        }
        let left = number(&header[3..]);
        self.state = State::Record { left };
        match left {
            0 => Some(Hello::Malformed("a record without content")),
            1..=RECORD_BYTES_MAX => None,
            _ => Some(Hello::Malformed("a record of more than 2^14 bytes")),
        }
    }

    /// Takes what lies in this piece of the record, and no more than the hello still lacks.
    fn read_record(&mut self, left: usize, bytes: &mut &[u8]) -> Option<Hello> {
        let most = left.min(HELLO_BYTES_MAX - self.wire_bytes);
        let wanted = self.lacks().min(most).min(bytes.len());
        let piece = bytes.split_off(..wanted)?;
        self.wire_bytes += piece.len();
        self.hello.extend_from_slice(piece);
        self.state = match left - piece.len() {
            0 => State::next_record(),
            left => State::Record { left },
        };
        match self.hello[..] {
            [kind, ..] if kind != CLIENT_HELLO => Some(Hello::Malformed(
                "a handshake that begins with another message",
            )),
            [_, high, ..] if high != 0 => Some(Hello::TooLong),
            [_, 0, middle, low] if HELLO_HEADER + number(&[middle, low]) > HELLO_BYTES_MAX => {
                Some(Hello::TooLong)
            }
            _ if self.lacks() == 0 => Some(name_in(&self.hello[HELLO_HEADER..])),
            _ => None,
        }
    }

    /// Bytes of the hello that have to come; until its length is known, those up to what is checked next.
    fn lacks(&self) -> usize {
        match self.hello[..] {
            [] | [_] => 1,
            [_, _] | [_, _, _] => HELLO_HEADER - self.hello.len(),
            [_, high, middle, low, ref body @ ..] => number(&[high, middle, low]) - body.len(),
        }
    }
}

impl State {
    fn next_record() -> Self {
        Self::Header {
            header: [0; HEADER],
            came: 0,
        }
    }
}

/// The name in the whole of a hello, without its header.
fn name_in(body: &[u8]) -> Hello {
    match extensions(body).and_then(server_name) {
        Ok(None) => Hello::NoName,
        Ok(Some(name)) => {
            dns_name(name).map_or_else(Hello::Malformed, |it| it.map_or(Hello::NoName, Hello::Name))
        }
        Err(what) => Hello::Malformed(what),
    }
}

/// The bytes of the extensions; of a hello that ends before them, none.
fn extensions(body: &[u8]) -> Result<&[u8], Malformed> {
    let mut fields = Fields(body);
    let version = fields
        .take(2)
        .ok_or("a hello that ends within its version")?;
    if version[0] != VERSION_MAJOR {
        return Err("a hello of another protocol's version");
    }
    fields
        .take(32)
        .ok_or("a hello that ends within its random")?;
    fields
        .vector(1, 0..=32)
        .ok_or("a wrong length of the session ID")?;
    let suites = fields.vector(2, 2..=0xfffe);
    if suites.is_none_or(|suites| suites.len() % 2 != 0) {
        return Err("a wrong length of the cipher suites");
    }
    fields
        .vector(1, 1..=255)
        .ok_or("a wrong length of the compression methods")?;
    if fields.0.is_empty() {
        return Ok(&[]);
    }
    let extensions = fields
        .vector(2, 0..=0xffff)
        .ok_or("a wrong length of the extensions")?;
    if !fields.0.is_empty() {
        return Err("bytes behind the extensions");
    }
    Ok(extensions)
}

/// What the server_name extension has for a host name. Of all others only the lengths are checked: they
/// may be unknown to anybody (GREASE, RFC 8701) or encrypted.
fn server_name(extensions: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    let mut fields = Fields(extensions);
    let mut found = None;
    while !fields.0.is_empty() {
        let kind = fields
            .take(2)
            .ok_or("an extension that ends within its type")?;
        let data = fields
            .vector(2, 0..=0xffff)
            .ok_or("a wrong length of an extension")?;
        if kind == SERVER_NAME && found.replace(host_name(data)?).is_some() {
            return Err("two server_name extensions");
        }
    }
    Ok(found.flatten())
}

/// The one host name of a list of names. Names of another kind have a length, too (RFC 6066 section 3).
fn host_name(data: &[u8]) -> Result<Option<&[u8]>, Malformed> {
    let mut fields = Fields(data);
    let list = fields
        .vector(2, 1..=0xffff)
        .ok_or("a wrong length of the list of names")?;
    if !fields.0.is_empty() {
        return Err("bytes behind the list of names");
    }
    let mut names = Fields(list);
    let mut found = None;
    while let Some(kind) = names.take(1) {
        let name = names
            .vector(2, 1..=0xffff)
            .ok_or("a wrong length of a name")?;
        if kind == HOST_NAME && found.replace(name).is_some() {
            return Err("two host names");
        }
    }
    Ok(found)
}

/// `None` = it is an IP address.
fn dns_name(bytes: &[u8]) -> Result<Option<Box<str>>, Malformed> {
    let bytes = bytes.strip_suffix(b".").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|_| NO_DNS_NAME)?;
    if text.parse::<IpAddr>().is_ok() {
        return Ok(None);
    }
    // Underscores are in names that are in use, though not in those of hosts.
    let is_known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if !text.bytes().all(is_known) {
        return Err(NO_DNS_NAME);
    }
    if text.len() > NAME_BYTES_MAX {
        return Err("a host name of more than 253 bytes");
    }
    if text
        .split('.')
        .any(|label| !LABEL_BYTES.contains(&label.len()))
    {
        return Err("a host name with a label that is empty or has more than 63 bytes");
    }
    Ok(Some(text.to_ascii_lowercase().into()))
}

/// What must not be.
type Malformed = &'static str;

/// What is left to be read of a structure.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        self.0.split_off(..count)
    }

    /// A length of so many bytes, and what it is the length of.
    fn vector(&mut self, length_bytes: usize, allowed: RangeInclusive<usize>) -> Option<&'a [u8]> {
        let length = number(self.take(length_bytes)?);
        allowed.contains(&length).then(|| self.take(length))?
    }
}

/// Of at most four bytes, the highest first.
fn number(bytes: &[u8]) -> usize {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | usize::from(*byte))
}

const NO_DNS_NAME: Malformed = "a host name with a byte that DNS names don't have";
/// RFC 1035 section 2.3.4: 255 bytes as DNS writes them, which is with two more.
const NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES: RangeInclusive<usize> = 1..=63;

/// RFC 8446 section 5.1: the header of a record, and the bytes of its content.
const HEADER: usize = 5;
const RECORD_BYTES_MAX: usize = 1 << 14;
const HANDSHAKE: u8 = 22;
const VERSION_MAJOR: u8 = 3;
/// RFC 8446 section 4: the header of a message.
const HELLO_HEADER: usize = 4;
const CLIENT_HELLO: u8 = 1;
/// RFC 6066 section 3.
const SERVER_NAME: [u8; 2] = [0, 0];
const HOST_NAME: [u8; 1] = [0];

#[cfg(test)]
mod tests;
