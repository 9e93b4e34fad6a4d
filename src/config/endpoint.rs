//! Where listeners bind and backends are, as text: `ip:port`, `[ip6]:port`, `host:port`, `unix:/path`.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use super::diagnostics::Fault;
use super::value::Read;
use crate::address::Address;

/// What a backend's address says, before names are resolved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Target<'a> {
    /// Nothing is left to do.
    Address(Address),
    /// A name to resolve.
    Host {
        /// Looks like a host name.
        name: &'a str,
        /// Not zero.
        port: u16,
    },
}

/// A listener's address. Port 0 lets the kernel choose one.
pub(super) fn bind(text: &str) -> Read<Address> {
    if let Some(path) = text.strip_prefix("unix:") {
        return unix(path).map(Address::Unix);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address.into());
    }
    let fault = Fault::new(format!("{text:?} is not an address to bind")).expected(BIND_FORM);
    Err(match guess(text) {
        Some(meant) => fault.hint(format!("did you mean {meant:?}?")),
        None => fault,
    })
}

pub(super) const BIND_FORM: &str =
    "\"ip:port\", \"[ip6]:port\" or \"unix:/path\", or a list of them";

/// A backend's address.
pub(super) fn target(text: &str) -> Read<Target<'_>> {
    if let Some(path) = text.strip_prefix("unix:") {
        return unix(path).map(|path| Target::Address(Address::Unix(path)));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        check_backend_ip(text, address)?;
        return Ok(Target::Address(address.into()));
    }
    let fault = || Fault::new(format!("{text:?} is not a backend's address")).expected(TARGET_FORM);
    let Some((name, port)) = text.rsplit_once(':') else {
        return Err(match guess(text) {
            Some(meant) => fault().hint(format!("did you mean {meant:?}?")),
            None => fault().hint("the port is missing"),
        });
    };
    if text.parse::<IpAddr>().is_ok() {
        return Err(fault().hint(format!("with a port: \"[{text}]:80\"")));
    }
    if !is_host_name(name) {
        return Err(fault());
    }
    match port.parse::<u16>() {
        Ok(0) => Err(port_zero(text)),
        Ok(port) => Ok(Target::Host { name, port }),
        Err(_) => Err(fault().hint("a port is a number from 1 to 65535")),
    }
}

pub(super) const TARGET_FORM: &str = "\"host:port\", \"ip:port\", \"[ip6]:port\" or \"unix:/path\"";

pub(super) const BACKENDS_FORM: &str =
    "a list; each entry \"host:port\", \"ip:port\", \"[ip6]:port\", \"unix:/path\" or a table";

fn check_backend_ip(text: &str, address: SocketAddr) -> Read<()> {
    if address.port() == 0 {
        return Err(port_zero(text));
    }
    if address.ip().is_unspecified() || address.ip().is_multicast() {
        return Err(Fault::new(format!("{text:?} can't be connected to"))
            .expected("the address of one machine"));
    }
    Ok(())
}

fn port_zero(text: &str) -> Fault {
    Fault::new(format!("{text:?} can't be connected to")).expected("a port from 1 to 65535")
}

/// `sockaddr_un` has 108 bytes for the path and the zero that ends it.
const LONGEST_UNIX_PATH: usize = 107;

fn unix(path: &str) -> Read<Arc<Path>> {
    unix_path(path).map_err(|fault| fault.expected(UNIX_FORM))
}

const UNIX_FORM: &str = "\"unix:\" and the absolute path of a file, at most 107 bytes";

/// The path of a unix socket. What is expected instead of a wrong one is for the caller to say.
pub(super) fn unix_path(path: &str) -> Read<Arc<Path>> {
    let fault = |message: String| Err(Fault::new(message));
    if path.is_empty() {
        return fault("the path of the unix socket is empty".to_owned());
    }
    if path.len() > LONGEST_UNIX_PATH {
        return fault(format!("the path has {} bytes", path.len()));
    }
    if path.contains('\0') || !path.starts_with('/') || path.ends_with('/') {
        return fault(format!("{path:?} can't be the path of a unix socket"));
    }
    Ok(Path::new(path).into())
}

/// Something goes by the client's address, and the listener binds a unix socket.
pub(super) fn no_client_address(what: &str) -> Fault {
    Fault::new(format!(
        "{what} goes by the client's address, and a unix socket has none"
    ))
    .expected("a listener that binds IP addresses only")
    .hint(
        "give the unix socket a listener of its own, or require headers that say who the client is: \
         accept_proxy_protocol",
    )
}

/// What was probably meant by an address without host, without brackets or with a star.
fn guess(text: &str) -> Option<String> {
    let candidates = [
        text.strip_prefix("*:")
            .map(|port| format!("0.0.0.0:{port}")),
        text.strip_prefix(':').map(|port| format!("0.0.0.0:{port}")),
        text.strip_prefix("localhost:")
            .map(|port| format!("127.0.0.1:{port}")),
        text.rsplit_once(':')
            .map(|(ip, port)| format!("[{ip}]:{port}")),
        Some(format!("0.0.0.0:{text}")),
        text.starts_with('/').then(|| format!("unix:{text}")),
    ];
    candidates
        .into_iter()
        .flatten()
        .find(|meant| meant.starts_with("unix:") || meant.parse::<SocketAddr>().is_ok())
}

/// RFC 1123 with underscores, which are in use. What ends in a number is an address or a slip
/// ("10.0.0.300"), though getaddrinfo(3) would read "10.1" as 10.0.0.1.
pub(super) fn is_host_name(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && label
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
    };
    let last = name.rsplit('.').next().unwrap_or(name);
    name.len() <= 253
        && name.split('.').all(label)
        && !last.starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_displayed() {
        for text in ["127.0.0.1:80", "[::1]:0", "[::]:8080", "unix:/run/a.sock"] {
            assert_eq!(bind(text).map(|it| it.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn what_is_no_address_is_guessed_at() {
        for (text, meant) in [
            (":80", "0.0.0.0:80"),
            ("*:80", "0.0.0.0:80"),
            ("::1:80", "[::1]:80"),
            ("localhost:80", "127.0.0.1:80"),
            ("/run/a.sock", "unix:/run/a.sock"),
        ] {
            assert_eq!(guess(text).as_deref(), Some(meant), "{text}");
            assert!(bind(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_that_ends_in_a_number_is_no_host() {
        for text in [
            "10.0.0.300:80",
            "10.1:80",
            "1:80",
            "0x7f000001:80",
            "a b:80",
            "-a:80",
            ":80",
        ] {
            assert!(target(text).is_err(), "{text}");
        }
        let name = "b-1.app_x.internal.";
        let text = format!("{name}:80");
        assert_eq!(target(&text), Ok(Target::Host { name, port: 80 }));
    }

    #[test]
    fn a_unix_path_fits_into_a_socket_address() {
        let longest = format!("unix:/{}", "a".repeat(106));
        assert!(bind(&longest).is_ok());
        assert!(bind(&format!("{longest}a")).is_err());
        for text in ["unix:", "unix:a.sock", "unix:/a\0b", "unix:/run/"] {
            assert!(bind(text).is_err(), "{text}");
        }
    }
}
