//! Who may. A unix socket has its permissions; over TCP anybody on the machine can ask, and so can a web
//! page that one of its users looks at, without knowing the answer or knowing it by a name that leads here
//! (DNS rebinding). Pure: headers in, verdict out.
//!
//! | | unix socket | TCP without a token | TCP with one |
//! |---|---|---|---|
//! | `/`, `/healthz`, `/readyz` | yes | yes | yes |
//! | what else is read | yes | yes | who shows it |
//! | what changes something | yes | nobody | who shows it |

use std::net::{Ipv4Addr, Ipv6Addr};

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use hyper::http::uri::Authority;
use hyper::{HeaderMap, StatusCode, Uri, Version, header};

use crate::config::Token;

/// What is asked for, and where it came in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Door<'a> {
    /// It came over TCP.
    pub(super) tcp: bool,
    /// It changes something.
    pub(super) orders: bool,
    /// Anybody may see it.
    pub(super) open: bool,
    pub(super) token: Option<&'a Token>,
}

/// Why not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Denial {
    /// There is none where there must be one, or there are several.
    Host,
    /// It was looked up by a name that somebody else may have given us.
    Name,
    /// A page from elsewhere asks.
    Origin,
    /// The token is missing.
    Token,
    /// It is another one.
    WrongToken,
    /// There is no token that could be shown.
    NoToken,
}

impl Denial {
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Host => StatusCode::BAD_REQUEST,
            Self::Name => StatusCode::MISDIRECTED_REQUEST,
            Self::Origin | Self::NoToken => StatusCode::FORBIDDEN,
            Self::Token | Self::WrongToken => StatusCode::UNAUTHORIZED,
        }
    }

    /// What was expected.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Host => "expected one Host header with a host in it",
            Self::Name => {
                "expected an IP address or localhost as Host: a name needs the token, as any web page could have made it up"
            }
            Self::Origin => "a web page from elsewhere may not ask",
            Self::Token => "expected \"Authorization: Bearer TOKEN\" with the token of [admin]",
            Self::WrongToken => "the token is another one than that of [admin]",
            Self::NoToken => {
                "over TCP this needs a token, and [admin] has none: set admin.token, or listen on a unix socket"
            }
        }
    }
}

/// Whether it may be answered.
pub(super) fn check(
    headers: &HeaderMap,
    uri: &Uri,
    version: Version,
    door: Door<'_>,
) -> Result<(), Denial> {
    let host = host(headers, uri, version)?;
    same_origin(headers, host.as_ref())?;
    if !door.tcp {
        return Ok(());
    }
    let shown = shown(headers);
    let right = door
        .token
        .zip(shown)
        .map(|(token, shown)| is_right(token, shown));
    if right == Some(true) {
        return Ok(());
    }
    if host.is_some_and(|host| !is_plain(host.host())) {
        return Err(Denial::Name);
    }
    match door.token {
        None if door.orders => Err(Denial::NoToken),
        None => Ok(()),
        Some(_) if door.open && !door.orders => Ok(()),
        Some(_) if shown.is_some() => Err(Denial::WrongToken),
        Some(_) => Err(Denial::Token),
    }
}

/// What the request is addressed to; `None` where nobody has to say (HTTP/1.0, which no browser speaks).
fn host(headers: &HeaderMap, uri: &Uri, version: Version) -> Result<Option<Authority>, Denial> {
    let mut all = headers.get_all(header::HOST).iter();
    let named = match (all.next(), all.next()) {
        (Some(one), None) => Some(one),
        (None, _) if version == Version::HTTP_10 => None,
        _ => return Err(Denial::Host),
    };
    let named = named.map(|it| it.to_str().ok().and_then(|it| it.parse().ok()));
    // RFC 9112, 3.2.2: what stands in the request line counts.
    match (uri.authority(), named) {
        (Some(authority), _) => Ok(Some(authority.clone())),
        (None, Some(Some(host))) => Ok(Some(host)),
        (None, Some(None)) => Err(Denial::Host),
        (None, None) => Ok(None),
    }
}

/// No page asks, or our own.
fn same_origin(headers: &HeaderMap, host: Option<&Authority>) -> Result<(), Denial> {
    let own = host.map(|host| format!("http://{host}"));
    let is_own = |origin: &[u8]| {
        let own = own.as_deref().map(str::as_bytes);
        own.is_some_and(|own| own.eq_ignore_ascii_case(origin))
    };
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let mut sites = headers.get_all("sec-fetch-site").iter();
    let foreign = origins.any(|origin| !is_own(origin.as_bytes()))
        || sites.any(|site| site.as_bytes().eq_ignore_ascii_case(b"cross-site"));
    if foreign { Err(Denial::Origin) } else { Ok(()) }
}

/// Nobody can have made it lead here.
fn is_plain(host: &str) -> bool {
    let inside = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<Ipv4Addr>().is_ok()
        || inside.is_some_and(|it| it.parse::<Ipv6Addr>().is_ok())
}

/// The token of a request.
fn shown(headers: &HeaderMap) -> Option<&[u8]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
    let fits = scheme.eq_ignore_ascii_case(b"Bearer ");
    fits.then(|| token.trim_ascii())
}

/// Takes as long whatever is different.
fn is_right(token: &Token, shown: &[u8]) -> bool {
    let digest = |bytes: &[u8]| digest(&SHA256, bytes);
    let (right, shown) = (digest(token.secret().as_bytes()), digest(shown));
    verify_slices_are_equal(right.as_ref(), shown.as_ref()).is_ok()
}

#[cfg(test)]
mod tests;
