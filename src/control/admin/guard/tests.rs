//! The table of who may, and the ways around it.

use hyper::header::{HeaderName, HeaderValue};

use super::*;
use crate::config::{self, SystemResolver};

fn token() -> Token {
    let text = "listeners.web = { bind = '127.0.0.1:80', upstream = 'app' }\n\
                upstreams.app.backends = ['127.0.0.1:81']\nadmin.token = 'right'\n";
    let config = config::parse(text, "a.toml", &mut SystemResolver).unwrap();
    config.admin.token.unwrap()
}

/// The verdict on a request with these lines as headers.
fn verdict(lines: &str, door: Door<'_>) -> Result<(), Denial> {
    let mut headers = HeaderMap::new();
    for line in lines.lines() {
        let (name, value) = line.split_once(": ").unwrap();
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        headers.append(name, HeaderValue::from_str(value).unwrap());
    }
    check(&headers, &Uri::from_static("/x"), Version::HTTP_11, door)
}

const HOST: &str = "Host: 127.0.0.1:9900\n";

#[test]
fn who_may_is_the_table() {
    let token = token();
    let right = format!("{HOST}Authorization: bearer right");
    let wrong = format!("{HOST}Authorization: Bearer wrong");
    for (tcp, configured, orders, open, headers, expected) in [
        (false, false, true, false, HOST, Ok(())),
        (false, true, true, false, HOST, Ok(())),
        (false, true, false, false, &wrong, Ok(())),
        (true, false, false, true, HOST, Ok(())),
        (true, false, false, false, HOST, Ok(())),
        (true, false, true, false, HOST, Err(Denial::NoToken)),
        (true, false, true, false, &right, Err(Denial::NoToken)),
        (true, true, false, true, HOST, Ok(())),
        (true, true, false, false, HOST, Err(Denial::Token)),
        (true, true, false, false, &wrong, Err(Denial::WrongToken)),
        (true, true, false, false, &right, Ok(())),
        (true, true, true, true, HOST, Err(Denial::Token)),
        (true, true, true, false, HOST, Err(Denial::Token)),
        (true, true, true, false, &wrong, Err(Denial::WrongToken)),
        (true, true, true, false, &right, Ok(())),
    ] {
        let door = Door {
            tcp,
            orders,
            open,
            token: configured.then_some(&token),
        };
        assert_eq!(verdict(headers, door), expected, "{door:?} {headers}");
    }
}

#[test]
fn a_name_needs_the_token_over_tcp_and_an_address_does_not() {
    let token = token();
    let over = |tcp, token| Door {
        tcp,
        orders: false,
        open: true,
        token,
    };
    for host in [
        "127.0.0.1",
        "[::1]:9900",
        "localhost:9900",
        "LOCALHOST",
        "10.0.0.1:1",
    ] {
        let headers = format!("Host: {host}");
        assert_eq!(verdict(&headers, over(true, None)), Ok(()), "{host}");
    }
    for host in [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example:9900",
        "1.2.3",
        "a_b",
    ] {
        let headers = format!("Host: {host}");
        assert_eq!(
            verdict(&headers, over(true, None)),
            Err(Denial::Name),
            "{host}"
        );
        assert_eq!(verdict(&headers, over(false, None)), Ok(()), "{host}");
        let shown = format!("{headers}\nAuthorization: Bearer right");
        assert_eq!(verdict(&shown, over(true, Some(&token))), Ok(()), "{host}");
    }
}

#[test]
fn what_is_addressed_to_nobody_or_to_two_is_refused() {
    let door = Door {
        tcp: true,
        orders: false,
        open: true,
        token: None,
    };
    for headers in [
        "Accept: */*",
        "Host: a b",
        "Host: localhost\nHost: localhost",
        "Host: ",
    ] {
        assert_eq!(verdict(headers, door), Err(Denial::Host), "{headers}");
    }
    let none = HeaderMap::new();
    let uri = Uri::from_static("/x");
    assert_eq!(check(&none, &uri, Version::HTTP_10, door), Ok(()));
    // What stands in the request line counts.
    let mut headers = HeaderMap::new();
    headers.insert(header::HOST, HeaderValue::from_static("localhost"));
    let elsewhere = Uri::from_static("http://evil.example/x");
    let verdict = check(&headers, &elsewhere, Version::HTTP_11, door);
    assert_eq!(verdict, Err(Denial::Name));
}

#[test]
fn a_page_from_elsewhere_is_refused_whatever_it_shows() {
    let token = token();
    let right = "Host: localhost:9900\nAuthorization: Bearer right\n";
    for tcp in [true, false] {
        let door = Door {
            tcp,
            orders: true,
            open: false,
            token: Some(&token),
        };
        for foreign in [
            "Origin: http://evil.example",
            "Origin: null",
            "Origin: https://localhost:9900",
            "Origin: http://localhost",
            "Origin: http://localhost:9901",
            "Origin: http://localhost:9900\nOrigin: http://evil.example",
            "Sec-Fetch-Site: cross-site",
        ] {
            let denied = verdict(&format!("{right}{foreign}"), door);
            assert_eq!(denied, Err(Denial::Origin), "{foreign}");
        }
        for own in [
            "Origin: http://localhost:9900\nSec-Fetch-Site: same-origin",
            "Origin: http://LOCALHOST:9900",
            "Sec-Fetch-Site: none",
        ] {
            assert_eq!(verdict(&format!("{right}{own}"), door), Ok(()), "{own}");
        }
    }
}
