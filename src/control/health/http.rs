//! The probe of type `http`: a GET, and the status of its answer. The body is not read.

use std::fmt::Write;
use std::ops::RangeInclusive;

use httparse::{EMPTY_HEADER, Response, Status};
use tokio::io::AsyncWriteExt;

use super::failure::Failure;
use super::probe::{Stream, hear};
use crate::address::Address;

/// The request for `path`.
pub(super) fn request(path: &str, host: Option<&str>, address: &Address) -> String {
    let mut request = format!("GET {path} HTTP/1.1\r\nHost: ");
    // Writing to a string can't fail.
    let _ = match (host, address) {
        (Some(host), _) => request.write_str(host),
        (None, Address::Ip(address)) => write!(request, "{address}"),
        (None, Address::Unix(_)) => request.write_str("localhost"),
    };
    request.push_str("\r\nUser-Agent: ringress-health\r\nConnection: close\r\n\r\n");
    request
}

/// Sends the request and judges the status of the answer once its head is whole. What was received is
/// in `heard`.
pub(super) async fn exchange(
    stream: &mut impl Stream,
    request: &str,
    expect_status: &[RangeInclusive<u16>],
    heard: &mut Vec<u8>,
) -> Result<(), Failure> {
    stream.write_all(request.as_bytes()).await?;
    loop {
        if heard.len() >= MOST_BYTES {
            return Err(Failure::LongHead { most: MOST_BYTES });
        }
        hear(stream, heard, MOST_BYTES).await?;
        let status = final_status(heard).map_err(|error| Failure::NotHttp {
            error,
            heard: heard.clone(),
        })?;
        if let Some(status) = status {
            let expected = expect_status.iter().any(|range| range.contains(&status));
            return expected.then_some(()).ok_or(Failure::Status(status));
        }
    }
}

/// The status of the first head that is not an interim one (RFC 9110, 15.2); `None` when more has to
/// come. It reads from the start each time, which costs less than the read before it.
fn final_status(mut heard: &[u8]) -> Result<Option<u16>, httparse::Error> {
    /// Nothing interim comes after it.
    const SWITCHING_PROTOCOLS: u16 = 101;
    loop {
        let mut headers = [EMPTY_HEADER; MOST_HEADERS];
        let mut response = Response::new(&mut headers);
        let Status::Complete(length) = response.parse(heard)? else {
            return Ok(None);
        };
        match response.code {
            Some(100..200) if response.code != Some(SWITCHING_PROTOCOLS) => {
                heard = &heard[length..];
            }
            code => return Ok(code),
        }
    }
}

/// Of all heads of an answer, interim ones too.
const MOST_BYTES: usize = 16 << 10;
const MOST_HEADERS: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_the_one_given_or_else_the_address() {
        let request = |host, address: &Address| request("/up?a=b", host, address);
        let six = Address::Ip("[::1]:80".parse().unwrap());
        let unix = Address::Unix(std::path::Path::new("/run/app.sock").into());
        assert_eq!(
            request(None, &six),
            "GET /up?a=b HTTP/1.1\r\nHost: [::1]:80\r\nUser-Agent: ringress-health\r\n\
             Connection: close\r\n\r\n"
        );
        assert!(request(Some("app.internal"), &six).contains("\r\nHost: app.internal\r\n"));
        assert!(request(None, &unix).contains("\r\nHost: localhost\r\n"));
    }

    #[test]
    fn interim_answers_are_passed_over() {
        let status = |text: &str| final_status(text.as_bytes());
        let early = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
        assert_eq!(status("HTTP/1.1 100 Continue\r\n\r\n"), Ok(None));
        assert_eq!(
            status(&format!("{early}{early}HTTP/1.0 204 \r\n\r\n")),
            Ok(Some(204))
        );
        assert_eq!(
            status("HTTP/1.1 101 Go\r\nUpgrade: x\r\n\r\n\0\0"),
            Ok(Some(101))
        );
        assert_eq!(status("HTTP/1.1 200 OK\r\nA: b\r\n"), Ok(None));
        assert!(status("SSH-2.0-OpenSSH_9.6\r\n").is_err());
    }
}
