//! What is answered: bodies and headers.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};

use super::events::Heard;
use super::guard::Denial;
use super::page;

/// What the kernel is given at once: it does not stop copying for a worker that has something to do.
const FRAME: usize = 64 * 1024;

/// A body: what is there, and then what comes until its sender goes.
pub(super) struct Payload {
    /// Of what is there, what was not taken yet.
    rest: Bytes,
    more: Option<Heard>,
}

impl Body for Payload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Self { rest, more } = self.get_mut();
        while rest.is_empty() {
            let Some(heard) = more else {
                return Poll::Ready(None);
            };
            match ready!(heard.events.poll_recv(context)) {
                Some(event) => *rest = event,
                None => *more = None,
            }
        }
        if let Some(heard) = more {
            heard.reads.set(true);
        }
        if rest.len() > FRAME {
            // Else this thread keeps a core for as long as the kernel lets it, which is milliseconds.
            std::thread::yield_now();
        }
        let frame = rest.split_to(rest.len().min(FRAME));
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.more.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match self.more {
            None => SizeHint::with_exact(self.rest.len() as u64),
            Some(_) => SizeHint::default(),
        }
    }
}

/// An answer.
pub(super) type Answer = Response<Payload>;

pub(super) const TEXT: &str = "text/plain; charset=utf-8";
pub(super) const JSON: &str = "application/json";
pub(super) const TOML: &str = "application/toml";

/// With these bytes.
pub(super) fn whole(status: StatusCode, kind: &'static str, bytes: impl Into<Bytes>) -> Answer {
    let payload = Payload {
        rest: bytes.into(),
        more: None,
    };
    new(status, kind, payload)
}

/// With what is to come.
pub(super) fn stream(heard: Heard) -> Answer {
    let payload = Payload {
        rest: Bytes::new(),
        more: Some(heard),
    };
    new(StatusCode::OK, "text/event-stream", payload)
}

fn new(status: StatusCode, kind: &'static str, payload: Payload) -> Answer {
    let mut answer = Response::new(payload);
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, kind),
        // What is true now is not in a minute, and may be nobody else's business.
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    answer
}

/// The live page.
pub(super) fn page() -> Answer {
    let mut answer = whole(StatusCode::OK, "text/html; charset=utf-8", page::PAGE);
    answer
        .headers_mut()
        .insert(header::CONTENT_SECURITY_POLICY, page::policy());
    answer
}

/// JSON.
pub(super) fn json(status: StatusCode, value: &impl serde::Serialize) -> Answer {
    whole(status, JSON, json_line(value))
}

/// JSON with the newline that terminals like.
pub(super) fn json_line(value: &impl serde::Serialize) -> Bytes {
    // No value here has keys that are no text.
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes.into()
}

/// One line that says what was expected; JSON for who wants that.
pub(super) fn failed(status: StatusCode, error: &str, asked: &HeaderMap) -> Answer {
    match prefers(asked, &["text/plain", JSON]) {
        Some(1) => json(status, &serde_json::json!({ "error": error })),
        _ => whole(status, TEXT, format!("{}\n", error.trim_end())),
    }
}

/// It was not for this visitor.
pub(super) fn denied(denial: Denial, asked: &HeaderMap) -> Answer {
    let mut answer = failed(denial.status(), denial.what(), asked);
    if denial.status() == StatusCode::UNAUTHORIZED {
        let scheme = HeaderValue::from_static("Bearer realm=\"ringress\"");
        answer
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, scheme);
    }
    answer
}

/// Which of these kinds of content is wanted most by the Accept headers, the first of equals; `None` = none
/// of them is named.
pub(super) fn prefers(asked: &HeaderMap, kinds: &[&str]) -> Option<usize> {
    let lines = asked.get_all(header::ACCEPT).iter();
    let ranges: Vec<_> = lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .map(range)
        .collect();
    let weight = |kind: &str| {
        let own = ranges
            .iter()
            .filter(|(named, _)| named.eq_ignore_ascii_case(kind));
        own.map(|(_, weight)| *weight).max().unwrap_or(0)
    };
    let weights = kinds.iter().map(|kind| weight(kind)).enumerate();
    let wanted = weights.filter(|(_, weight)| *weight > 0);
    // The last of equals is what max_by_key finds.
    wanted
        .rev()
        .max_by_key(|(_, weight)| *weight)
        .map(|(place, _)| place)
}

/// `text/plain;q=0.5` → the kind, and its weight in thousandths.
fn range(range: &str) -> (&str, u32) {
    let mut parts = range.split(';').map(str::trim);
    let kind = parts.next().unwrap_or_default();
    let quality = parts.find_map(|it| it.strip_prefix("q=").or_else(|| it.strip_prefix("Q=")));
    let quality = quality.map_or(Ok(1.0), str::parse::<f32>);
    // Nonsense is not wanted.
    let thousandths = quality.map_or(0.0, |it| it.clamp(0.0, 1.0) * 1000.0);
    (kind, thousandths as u32)
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use http_body_util::BodyExt;
    use tokio::sync::mpsc;

    use super::*;

    /// How long its frames are.
    async fn frames(answer: Answer) -> Vec<usize> {
        let mut body = answer.into_body();
        let mut lengths = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            lengths.push(frame.data_ref().map_or(0, Bytes::len));
        }
        assert!(body.is_end_stream());
        lengths
    }

    #[tokio::test]
    async fn what_is_long_goes_out_in_frames_also_where_more_is_to_come() {
        let long = || Bytes::from(vec![b'x'; 2 * FRAME + 1]);
        let answer = whole(StatusCode::OK, TEXT, long());
        assert_eq!(answer.body().size_hint().exact(), Some(2 * 65_536 + 1));
        assert_eq!(frames(answer).await, [FRAME, FRAME, 1]);
        assert!(frames(whole(StatusCode::OK, TEXT, "")).await.is_empty());
        let (sender, events) = mpsc::channel(3);
        for event in [long(), Bytes::new(), "short".into()] {
            sender.try_send(event).unwrap();
        }
        drop(sender);
        let reads = Rc::default();
        assert_eq!(
            frames(stream(Heard { events, reads })).await,
            [FRAME, FRAME, 1, 5]
        );
    }

    fn preferred(accept: &str, kinds: &[&str]) -> Option<usize> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_str(accept).unwrap());
        prefers(&headers, kinds)
    }

    #[test]
    fn the_kind_that_is_wanted_most_is_found() {
        let kinds = ["text/plain", "application/openmetrics-text"];
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,\
                          application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, expected) in [
            (prometheus, Some(1)),
            ("text/plain;version=0.0.4", Some(0)),
            ("application/openmetrics-text", Some(1)),
            ("text/plain, application/openmetrics-text", Some(0)),
            (
                "text/plain;q=0.1, Application/OpenMetrics-Text; q=0.2",
                Some(1),
            ),
            ("application/openmetrics-text;q=0", None),
            ("application/openmetrics-text;q=x", None),
            ("*/*", None),
            ("", None),
        ] {
            assert_eq!(preferred(accept, &kinds), expected, "{accept}");
        }
        assert_eq!(prefers(&HeaderMap::new(), &kinds), None);
    }
}
