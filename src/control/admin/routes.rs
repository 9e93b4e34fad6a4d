//! What is asked for, by method, path and query. Reads nothing but that.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use hyper::Method;

use super::super::socket::Part;
use super::ask::Order;
use crate::config::{LogLevel, WEIGHT_MAX};

/// What is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Route {
    Page,
    Metrics,
    Healthz,
    Readyz,
    Status,
    Config,
    Histograms,
    Events,
    /// To drain the process, within this time if there is one.
    End(Option<Duration>),
    Order(Order),
}

/// Why nothing is to be had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Miss {
    /// There is no such path.
    Path,
    /// It takes these methods only.
    Method(&'static str),
    /// The query or a name in the path is wrong: what was expected.
    Malformed(String),
}

/// Methods that change nothing.
pub(super) fn reads(method: &Method) -> bool {
    method == Method::GET || method == Method::HEAD
}

/// Everybody may see it who reaches the address.
pub(super) fn is_open(path: &str) -> bool {
    ["/", "/healthz", "/readyz"].contains(&path)
}

/// What there is, for whoever looks for something else.
pub(super) const PATHS: &str = "/, /metrics, /healthz, /readyz, /status, /config, /hdr, /events, and with POST /reload, \
     /drain, /backends/UPSTREAM/BACKEND/enable, …/disable, …/weight, /log-level";

/// The route.
pub(super) fn find(method: &Method, path: &str, query: Option<&str>) -> Result<Route, Miss> {
    let read = match path {
        "/" => Some(Route::Page),
        "/metrics" => Some(Route::Metrics),
        "/healthz" => Some(Route::Healthz),
        "/readyz" => Some(Route::Readyz),
        "/status" => Some(Route::Status),
        "/config" => Some(Route::Config),
        "/hdr" => Some(Route::Histograms),
        "/events" => Some(Route::Events),
        _ => None,
    };
    if let Some(route) = read {
        // A query is for whoever wants to get around a cache.
        return reads(method)
            .then_some(route)
            .ok_or(Miss::Method("GET, HEAD"));
    }
    let segments: Vec<_> = path.split('/').skip(1).collect();
    let known = matches!(
        &*segments,
        ["reload" | "drain" | "log-level"] | ["backends", _, _, "enable" | "disable" | "weight"]
    );
    match (known, method == Method::POST) {
        (false, _) => Err(Miss::Path),
        (true, false) => Err(Miss::Method("POST")),
        (true, true) => order(&segments, query.unwrap_or_default()).map_err(Miss::Malformed),
    }
}

fn order(segments: &[&str], query: &str) -> Result<Route, String> {
    let mut query = Query::parse(query)?;
    let route = match segments {
        ["reload"] => Route::Order(Order::Reload),
        ["drain"] => drain(&mut query)?,
        ["log-level"] => Route::Order(Order::LogLevel(level(&mut query)?)),
        ["backends", upstream, backend, what] => {
            let part = Part::Backend {
                upstream: decoded(upstream, false)?.into_owned(),
                backend: decoded(backend, false)?.into_owned(),
            };
            Route::Order(match *what {
                "enable" => Order::Resume(part),
                "disable" => Order::Drain(part, query.deadline()?),
                _ => Order::Weight(part, weight(&mut query)?),
            })
        }
        _ => return Err("nothing is known of this path".to_owned()),
    };
    query.nothing_left()?;
    Ok(route)
}

fn drain(query: &mut Query<'_>) -> Result<Route, String> {
    let deadline = query.deadline()?;
    let part = match (query.take("listener"), query.take("backend")) {
        (None, None) => return Ok(Route::End(deadline)),
        (Some(listener), None) => Part::Listener {
            listener: listener.into_owned(),
        },
        (None, Some(backend)) => {
            let (upstream, backend) = backend.split_once('/').ok_or_else(|| {
                format!("backend={backend}: expected UPSTREAM/BACKEND, as in backend=app/b1")
            })?;
            Part::Backend {
                upstream: upstream.to_owned(),
                backend: backend.to_owned(),
            }
        }
        (Some(_), Some(_)) => return Err("expected a listener or a backend, not both".to_owned()),
    };
    Ok(Route::Order(Order::Drain(part, deadline)))
}

fn level(query: &mut Query<'_>) -> Result<LogLevel, String> {
    let word = query.take("level");
    let mut levels = LogLevel::ALL.into_iter();
    levels
        .find(|level| word.as_deref() == Some(level.as_str()))
        .ok_or_else(|| "expected ?level= with error, warn, info, debug or trace".to_owned())
}

fn weight(query: &mut Query<'_>) -> Result<Option<u16>, String> {
    let value = query.take("value");
    if value.as_deref() == Some("configured") {
        return Ok(None);
    }
    let number = value.and_then(|value| value.parse().ok());
    match number.filter(|weight| *weight <= WEIGHT_MAX) {
        Some(weight) => Ok(Some(weight)),
        None => Err(format!(
            "expected ?value= with a whole number from 0 to {WEIGHT_MAX}, or \"configured\""
        )),
    }
}

/// The keys of a query, each once.
struct Query<'a>(BTreeMap<Cow<'a, str>, Cow<'a, str>>);

impl<'a> Query<'a> {
    fn parse(query: &'a str) -> Result<Self, String> {
        let mut keys = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let key = decoded(key, true)?;
            if keys.insert(key.clone(), decoded(value, true)?).is_some() {
                return Err(format!("{key:?} stands twice in the query"));
            }
        }
        Ok(Self(keys))
    }

    fn take(&mut self, key: &str) -> Option<Cow<'a, str>> {
        self.0.remove(key)
    }

    fn deadline(&mut self) -> Result<Option<Duration>, String> {
        let Some(value) = self.take("deadline") else {
            return Ok(None);
        };
        let parsed = humantime::parse_duration(&value).ok();
        match parsed.filter(|it| *it <= LONGEST) {
            Some(deadline) => Ok(Some(deadline)),
            None => Err(format!(
                "deadline={value}: expected a duration like 30s or 5m, at most 10 years"
            )),
        }
    }

    fn nothing_left(&self) -> Result<(), String> {
        match self.0.keys().next() {
            Some(key) => Err(format!("{key:?} is no key of this query")),
            None => Ok(()),
        }
    }
}

/// Instants that are far away can't be counted with.
const LONGEST: Duration = Duration::from_hours(10 * 365 * 24);

/// Without percent-encoding, and in a query without plus signs for spaces.
fn decoded(text: &str, plus: bool) -> Result<Cow<'_, str>, String> {
    if !text.contains(['%', '+']) {
        return Ok(Cow::Borrowed(text));
    }
    let malformed = |what: &dyn Display| format!("{text:?} is not encoded as it should be: {what}");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next(), rest.next()];
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let [Some(high), Some(low)] = digits.map(digit) else {
                    return Err(malformed(&"two hexadecimal digits follow a \"%\""));
                };
                (high * 16 + low) as u8
            }
            b'+' if plus => b' ',
            byte => byte,
        });
    }
    let text = String::from_utf8(bytes).map_err(|_| malformed(&"expected UTF-8"))?;
    Ok(Cow::Owned(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(path: &str) -> Result<Route, Miss> {
        find(&Method::GET, path, None)
    }

    fn post(target: &str) -> Result<Route, Miss> {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        find(&Method::POST, path, Some(query))
    }

    fn backend(backend: &str) -> Part {
        Part::Backend {
            upstream: "app".to_owned(),
            backend: backend.to_owned(),
        }
    }

    fn ordered(order: Order) -> Result<Route, Miss> {
        Ok(Route::Order(order))
    }

    #[test]
    fn what_is_read_is_read_by_get_and_head_only() {
        assert_eq!(get("/metrics"), Ok(Route::Metrics));
        assert_eq!(find(&Method::HEAD, "/", Some("x=1")), Ok(Route::Page));
        for method in [Method::POST, Method::PUT, Method::OPTIONS, Method::TRACE] {
            let found = find(&method, "/status", None);
            assert_eq!(found, Err(Miss::Method("GET, HEAD")), "{method}");
        }
        for path in ["/reload", "/drain", "/log-level", "/backends/a/b/weight"] {
            assert_eq!(get(path), Err(Miss::Method("POST")), "{path}");
        }
        for path in [
            "/Metrics",
            "/metrics/",
            "//",
            "",
            "/backends/a/b",
            "/backends/a/b/c/enable",
            "*",
        ] {
            assert_eq!(get(path), Err(Miss::Path), "{path}");
            assert_eq!(post(path), Err(Miss::Path), "{path}");
        }
    }

    #[test]
    fn parts_are_named_by_path_or_query() {
        let half_a_minute = Some(Duration::from_secs(30));
        let listener = "web".to_owned();
        let web = Part::Listener { listener };
        for (target, order) in [
            ("/reload", Order::Reload),
            ("/drain?listener=web", Order::Drain(web, None)),
            (
                "/drain?backend=app/b1&deadline=30s",
                Order::Drain(backend("b1"), half_a_minute),
            ),
            ("/drain?backend=app%2Fb1", Order::Drain(backend("b1"), None)),
            (
                "/backends/app/b1/disable?deadline=30s",
                Order::Drain(backend("b1"), half_a_minute),
            ),
            (
                "/backends/app/10.0.0.1:80/enable",
                Order::Resume(backend("10.0.0.1:80")),
            ),
            (
                "/backends/app/unix:%2Frun%2Fa+b/enable",
                Order::Resume(backend("unix:/run/a+b")),
            ),
            (
                "/backends/app/b1/weight?value=0",
                Order::Weight(backend("b1"), Some(0)),
            ),
            (
                "/backends/app/b1/weight?value=256",
                Order::Weight(backend("b1"), Some(256)),
            ),
            (
                "/backends/app/b1/weight?value=configured",
                Order::Weight(backend("b1"), None),
            ),
            ("/log-level?level=trace", Order::LogLevel(LogLevel::Trace)),
        ] {
            assert_eq!(post(target), ordered(order), "{target}");
        }
        assert_eq!(post("/drain"), Ok(Route::End(None)));
        assert_eq!(post("/drain?deadline=30s"), Ok(Route::End(half_a_minute)));
    }

    #[test]
    fn what_is_wrong_says_what_was_expected() {
        for (target, said) in [
            ("/drain?backend=app", "UPSTREAM/BACKEND"),
            ("/drain?backend=app/b1&listener=web", "not both"),
            ("/drain?listenr=web", "\"listenr\" is no key"),
            ("/drain?deadline=30", "30s or 5m"),
            ("/drain?deadline=20000years", "at most 10 years"),
            ("/drain?listener=a&listener=b", "stands twice"),
            ("/backends/app/b1/weight", "from 0 to 256"),
            ("/backends/app/b1/weight?value=257", "from 0 to 256"),
            ("/backends/app/b1/weight?value=-1", "from 0 to 256"),
            ("/backends/app/b1/enable?value=1", "no key"),
            ("/backends/app/%zz/enable", "two hexadecimal digits"),
            ("/backends/app/%+1/enable", "two hexadecimal digits"),
            ("/backends/app/%ff/enable", "expected UTF-8"),
            ("/log-level?level=loud", "error, warn"),
            ("/reload?now", "\"now\" is no key"),
        ] {
            let Err(Miss::Malformed(what)) = post(target) else {
                panic!("{target}");
            };
            assert!(what.contains(said), "{target}: {what}");
        }
    }
}
