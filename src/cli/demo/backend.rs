//! A demo backend: an HTTP/1.1 server that answers every request with its own name. Plain blocking
//! threads; it is there to be balanced over, not to be fast.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Serves on `listener` until the process ends.
pub(super) fn start(listener: TcpListener, name: String) -> io::Result<()> {
    let name: Arc<str> = name.into();
    thread::Builder::new()
        .name(name.to_string())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = Arc::clone(&name);
                // Without a thread the connection is closed, which the client sees.
                let _ = thread::Builder::new()
                    .name(name.to_string())
                    .spawn(move || serve(stream, &server));
            }
        })?;
    Ok(())
}

/// Answers requests until the client ends, asks to close, is silent or talks nonsense.
fn serve(mut stream: TcpStream, name: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut received = Vec::new();
    loop {
        let Some(end) = read_head(&mut stream, &mut received)? else {
            return Ok(());
        };
        let Some(request) = Request::parse(&received[..end]) else {
            return stream.write_all(BAD_REQUEST);
        };
        received.drain(..end);
        if !skip(&mut stream, &mut received, request.body_bytes)? {
            return Ok(());
        }
        stream.write_all(&request.reply(name))?;
        if request.close {
            return Ok(());
        }
    }
}

/// Reads until the empty line is there and returns the head's length; `None` when the client has
/// ended, or its head is too long.
fn read_head(stream: &mut impl Read, received: &mut Vec<u8>) -> io::Result<Option<usize>> {
    loop {
        if let Some(at) = received.windows(4).position(|four| four == b"\r\n\r\n") {
            return Ok(Some(at + 4));
        }
        if received.len() > HEAD_MAX || !read_more(stream, received)? {
            return Ok(None);
        }
    }
}

/// Drops a request's body; false when the client ends before it.
fn skip(stream: &mut impl Read, received: &mut Vec<u8>, mut bytes: u64) -> io::Result<bool> {
    loop {
        let here = usize::try_from(bytes).map_or(received.len(), |bytes| bytes.min(received.len()));
        received.drain(..here);
        bytes -= here as u64;
        if bytes == 0 {
            return Ok(true);
        }
        if !read_more(stream, received)? {
            return Ok(false);
        }
    }
}

/// Appends what one read gives; false at the end of the stream.
fn read_more(stream: &mut impl Read, received: &mut Vec<u8>) -> io::Result<bool> {
    let mut chunk = [0; 4096];
    let count = stream.read(&mut chunk)?;
    received.extend_from_slice(&chunk[..count]);
    Ok(count > 0)
}

/// What matters of a request's head.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Request {
    /// The reply has no body.
    head_only: bool,
    /// The connection ends after the reply.
    close: bool,
    /// Bytes of body that follow.
    body_bytes: u64,
}

impl Request {
    /// `None` when it is no HTTP/1 request, or one with a body of unknown length.
    fn parse(head: &[u8]) -> Option<Self> {
        let mut lines = std::str::from_utf8(head).ok()?.lines();
        let mut words = lines.next()?.split(' ');
        let (method, _target, version) = (words.next()?, words.next()?, words.next()?);
        let mut request = Self {
            head_only: method == "HEAD",
            close: match version {
                "HTTP/1.1" => false,
                "HTTP/1.0" => true,
                _ => return None,
            },
            body_bytes: 0,
        };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "connection" if value.eq_ignore_ascii_case("close") => request.close = true,
                "connection" if value.eq_ignore_ascii_case("keep-alive") => request.close = false,
                "content-length" => request.body_bytes = value.parse().ok()?,
                "transfer-encoding" => return None,
                _ => {}
            }
        }
        Some(request)
    }

    fn reply(self, name: &str) -> Vec<u8> {
        let connection = if self.close { "close" } else { "keep-alive" };
        let body = if self.head_only {
            String::new()
        } else {
            format!("{name}\n")
        };
        format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
             Connection: {connection}\r\n\r\n{body}",
            name.len() + 1
        )
        .into_bytes()
    }
}

const BAD_REQUEST: &[u8] =
    b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// Longest head; more is not what a demo is asked.
const HEAD_MAX: usize = 16 * 1024;

/// How long a client may be silent: longer than the proxy's own idle connections in a demo live.
const PATIENCE: Duration = Duration::from_secs(300);

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends all bytes, then FIN, and returns everything that came back.
    fn talk(bytes: &[u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        start(listener, "backend-7".to_owned()).expect("a thread can be started");
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.write_all(bytes).expect("it reads");
        stream
            .shutdown(std::net::Shutdown::Write)
            .expect("it is connected");
        let mut reply = String::new();
        stream
            .read_to_string(&mut reply)
            .expect("the reply is text");
        reply
    }

    #[test]
    fn it_answers_with_its_own_name() {
        let reply = talk(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
        assert!(reply.contains("\r\nContent-Length: 10\r\n"), "{reply}");
        assert!(reply.ends_with("\r\n\r\nbackend-7\n"), "{reply}");
    }

    #[test]
    fn a_connection_serves_several_requests_and_skips_their_bodies() {
        let reply = talk(
            b"POST / HTTP/1.1\r\nContent-Length: 18\r\n\r\nGET / HTTP/1.1\r\n\r\n\
              GET / HTTP/1.1\r\n\r\nHEAD / HTTP/1.1\r\n\r\n",
        );
        assert_eq!(reply.matches("HTTP/1.1 200 OK").count(), 3, "{reply}");
        assert_eq!(reply.matches("backend-7\n").count(), 2, "{reply}");
    }

    #[test]
    fn close_is_honoured() {
        for request in [
            &b"GET / HTTP/1.1\r\nConnection: Close\r\n\r\nGET / HTTP/1.1\r\n\r\n"[..],
            b"GET / HTTP/1.0\r\n\r\nGET / HTTP/1.0\r\n\r\n",
        ] {
            assert_eq!(talk(request).matches("HTTP/1.1 200").count(), 1);
        }
    }

    #[test]
    fn nonsense_is_refused_and_silence_is_not_answered() {
        assert!(talk(b"nonsense\r\n\r\n").starts_with("HTTP/1.1 400 "));
        assert!(talk(b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").contains(" 400 "));
        assert!(talk(b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n").contains(" 400 "));
        assert_eq!(talk(b"GET / HT"), "");
    }

    #[test]
    fn a_head_in_pieces_is_put_together() {
        let mut pieces = b"GET / HT"[..]
            .chain(&b"TP/1.1\r\n\r"[..])
            .chain(&b"\nrest"[..]);
        let mut received = Vec::new();
        let end = read_head(&mut pieces, &mut received).expect("memory can be read");
        assert_eq!(end, Some(18));
        assert_eq!(&received[18..], b"rest");
    }

    #[test]
    fn a_head_without_end_is_given_up() {
        let mut received = Vec::new();
        let end = read_head(&mut io::repeat(b'a'), &mut received).expect("memory can be read");
        assert_eq!(end, None);
        assert!(received.len() <= HEAD_MAX + 4096);
    }
}
