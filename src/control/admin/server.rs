//! Connections of visitors: one exchange each, with an end to every wait, and only so many at once. Nothing
//! here is a worker's: whoever floods it floods this.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::http::request;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};

use super::super::capacity::ADMIN_CONNECTIONS;
use super::answer::{self, Answer};
use super::ask::{Ask, Asking, Ordered, Refusal};
use super::events::Subscribers;
use super::guard::{self, Denial, Door};
use super::listen::{Acceptor, Stream};
use super::metrics::Format;
use super::render::{Failure, Renderings};
use super::routes::{self, Miss, Route};
use crate::config::{self, Token};

/// For a request's head to arrive.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// From accepting to the last byte of the answer.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(30);
/// For an order to be carried out, beside that: as long as `ringress reload` waits, since a file has names to
/// resolve.
const ORDER_TIMEOUT: Duration = Duration::from_secs(120);
/// For the rest of a request that was not wanted, so that its sender reads the answer instead of a reset.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
const BODY_BYTES_MAX: usize = 64 << 10;
/// Of a request's head, and of what is read ahead.
const HEAD_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;
/// Between tries when there is no descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// Of a request, in the log.
const TARGET_SHOWN: usize = 200;

/// What all visitors meet.
pub(super) struct Endpoint {
    asking: Rc<Asking>,
    token: RefCell<Option<Token>>,
    /// Free places for connections.
    places: Arc<Semaphore>,
    renderings: Renderings,
    pub(super) subscribers: Subscribers,
    denials: Denials,
}

/// Denied orders are told once a second, with how many there were.
#[derive(Default)]
struct Denials {
    told: Cell<Option<Instant>>,
    untold: Cell<u64>,
}

/// One connection.
struct Visit {
    tcp: bool,
    /// Who it is, as people are told.
    peer: String,
    stay: Cell<Stay>,
    /// It doesn't read.
    cut: Rc<Notify>,
    /// The request goes on, and is not wanted.
    unread: Cell<bool>,
    /// Held until what was ordered is done, too, whoever has gone.
    _place: OwnedSemaphorePermit,
}

/// How long a visit may last.
#[derive(Clone, Copy)]
enum Stay {
    /// As long as an exchange.
    Exchange,
    /// As long as an order takes, too.
    Order,
    /// It looks on, for as long as it likes.
    LookingOn,
}

impl Endpoint {
    pub(super) fn new(settings: &config::Admin) -> (Rc<Self>, mpsc::Receiver<Ask>) {
        let (asking, asks) = Asking::new(ADMIN_CONNECTIONS as usize);
        let endpoint = Self {
            asking: Rc::new(asking),
            token: RefCell::new(settings.token.clone()),
            places: Arc::new(Semaphore::new(ADMIN_CONNECTIONS as usize)),
            renderings: Renderings::new(),
            subscribers: Subscribers::default(),
            denials: Denials::default(),
        };
        (Rc::new(endpoint), asks)
    }

    /// From now on.
    pub(super) fn set(&self, settings: &config::Admin) {
        self.token.replace(settings.token.clone());
    }

    /// Takes connections in as long as there are places; others wait in the queue.
    pub(super) async fn accept(self: Rc<Self>, acceptor: Acceptor) {
        loop {
            // It is never closed.
            let Ok(place) = self.places.clone().acquire_owned().await else {
                return;
            };
            match acceptor.accept().await {
                Ok(stream) => {
                    spawn_local(self.clone().converse(stream, place));
                }
                Err(error) => {
                    tracing::warn!(%error, "the admin endpoint's accepting pauses");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Waits until everybody has gone.
    pub(super) async fn emptied(&self) {
        // As above.
        let _ = self.places.acquire_many(ADMIN_CONNECTIONS).await;
    }

    async fn converse(self: Rc<Self>, stream: Stream, place: OwnedSemaphorePermit) {
        let tcp = matches!(stream, Stream::Tcp(_));
        let visit = Rc::new(Visit::new(tcp, stream.peer(), place));
        match stream {
            Stream::Tcp(stream) => self.exchange(stream, visit).await,
            Stream::Unix(stream) => self.exchange(stream, visit).await,
        }
    }

    /// A request and its answer.
    async fn exchange(
        self: Rc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
        visit: Rc<Visit>,
    ) {
        let service = service_fn(|request| {
            let (endpoint, visit) = (self.clone(), visit.clone());
            async move { Ok::<_, Infallible>(endpoint.answer(&visit, request).await) }
        });
        let exchange = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            // A connection that waits for its next request would keep others waiting.
            .keep_alive(false)
            // Whoever has said all may still want to hear.
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service)
            .without_shutdown();
        let mut exchange = pin!(exchange);
        let ended = tokio::select! {
            ended = &mut exchange => ended,
            () = visit.overstays() => return,
        };
        // What could not be read was answered, or there was nobody any more.
        if let Ok(parts) = ended {
            let stream = parts.io.into_inner();
            let _ = timeout(LINGER_TIMEOUT, part(stream, visit.unread.get())).await;
        }
    }

    async fn answer(&self, visit: &Rc<Visit>, request: Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        visit.unread.set(!body.is_end_stream());
        let path = head.uri.path();
        let orders = head.method == Method::POST;
        let token = self.token.borrow().clone();
        let door = Door {
            tcp: visit.tcp,
            orders,
            open: routes::is_open(path),
            token: token.as_ref(),
        };
        let verdict = guard::check(&head.headers, &head.uri, head.version, door);
        if let Err(denial) = verdict {
            if orders {
                self.denials.tell(&head, visit, denial);
            }
            return answer::denied(denial, &head.headers);
        }
        match routes::find(&head.method, path, head.uri.query()) {
            Ok(route @ (Route::End(_) | Route::Order(_))) => {
                self.order(route, &head, body, visit).await
            }
            Ok(route) => {
                let told = self.tell(route, &head, visit).await;
                told.unwrap_or_else(|failure| failed(&failure, &head))
            }
            Err(miss) => {
                let (status, error) = missed(&miss);
                if orders {
                    visit.note(&shown(&head), status, &error);
                }
                let mut answer = answer::failed(status, &error, &head.headers);
                if let Miss::Method(allow) = miss {
                    let allow = HeaderValue::from_static(allow);
                    answer.headers_mut().insert(header::ALLOW, allow);
                }
                answer
            }
        }
    }

    async fn tell(
        &self,
        route: Route,
        head: &request::Parts,
        visit: &Visit,
    ) -> Result<Answer, Failure> {
        let (kind, told) = match route {
            Route::Page => return Ok(answer::page()),
            Route::Healthz => (answer::TEXT, "ok\n".into()),
            Route::Readyz => {
                let reasons = self.asking.ask(Ask::Readiness).await;
                return reasons.map(readiness).ok_or(Failure::Ending);
            }
            Route::Status => (answer::JSON, self.renderings.status(&self.asking).await?),
            Route::Config => {
                let kinds = [answer::TOML, answer::JSON];
                let wanted = answer::prefers(&head.headers, &kinds).unwrap_or(0);
                let told = self.renderings.config(wanted == 1, &self.asking).await?;
                (kinds[wanted], told)
            }
            Route::Metrics => {
                let kinds = ["text/plain", "application/openmetrics-text"];
                let format = match answer::prefers(&head.headers, &kinds) {
                    Some(1) => Format::OpenMetrics,
                    _ => Format::Text,
                };
                self.scraped(format).await?
            }
            Route::Histograms => self.scraped(Format::Histograms).await?,
            Route::Events => return self.events(head, visit).await,
            // They have a way of their own.
            Route::End(_) | Route::Order(_) => return Err(Failure::Ending),
        };
        Ok(answer::whole(StatusCode::OK, kind, told))
    }

    async fn scraped(&self, format: Format) -> Result<(&'static str, Bytes), Failure> {
        let bytes = self.renderings.metrics(format, &self.asking).await?;
        Ok((format.content_type(), bytes))
    }

    async fn events(&self, head: &request::Parts, visit: &Visit) -> Result<Answer, Failure> {
        if head.method == Method::HEAD {
            return Ok(answer::whole(StatusCode::OK, "text/event-stream", ""));
        }
        let cut = visit.cut.clone();
        let heard = self.asking.ask(|answer| Ask::LookOn { cut, answer });
        Ok(match heard.await.ok_or(Failure::Ending)? {
            Some(events) => {
                visit.stay.set(Stay::LookingOn);
                answer::stream(events)
            }
            None => {
                let status = StatusCode::SERVICE_UNAVAILABLE;
                answer::failed(
                    status,
                    "too many look on already: 32 at once",
                    &head.headers,
                )
            }
        })
    }

    /// An order, from its body to what came of it, which is logged.
    async fn order(
        &self,
        route: Route,
        head: &request::Parts,
        body: Incoming,
        visit: &Rc<Visit>,
    ) -> Answer {
        // It says nothing that the path doesn't; but who sends one waits for it to be taken.
        if let Err((status, error)) = taken(body).await {
            visit.note(&shown(head), status, error);
            return answer::failed(status, error, &head.headers);
        }
        visit.unread.set(false);
        visit.stay.set(Stay::Order);
        let (asking, ordering, request) = (self.asking.clone(), visit.clone(), shown(head));
        // What is ordered is done even if whoever has ordered it goes, and then logged.
        let done = spawn_local(async move {
            let ordered = ordered(&asking, route).await;
            let (status, outcome) = outcome(&ordered);
            ordering.note(&request, status, &outcome);
            (ordered, status, outcome)
        });
        let done = done.await;
        visit.stay.set(Stay::Exchange);
        match done {
            Ok((Ok(done), status, _)) => answer::json(status, &done),
            Ok((Err(_), status, outcome)) => answer::failed(status, &outcome, &head.headers),
            Err(_) => failed(&Failure::Panicked, head),
        }
    }
}

impl Visit {
    fn new(tcp: bool, peer: String, place: OwnedSemaphorePermit) -> Self {
        Self {
            tcp,
            peer,
            stay: Cell::new(Stay::Exchange),
            cut: Rc::default(),
            unread: Cell::new(false),
            _place: place,
        }
    }

    /// Waits until its time is over.
    async fn overstays(&self) {
        tokio::select! {
            () = self.cut.notified() => return,
            () = sleep(EXCHANGE_TIMEOUT) => {}
        }
        match self.stay.get() {
            Stay::Exchange => {}
            // It may have begun only now, and its answer has to be read.
            Stay::Order => sleep(ORDER_TIMEOUT + EXCHANGE_TIMEOUT).await,
            Stay::LookingOn => self.cut.notified().await,
        }
    }

    /// Logs what came of a request that was to change something.
    fn note(&self, request: &str, status: StatusCode, outcome: &str) {
        tracing::info!(
            request,
            from = self.peer,
            status = status.as_u16(),
            outcome = outcome.lines().next().map(start_of),
            "admin request"
        );
    }
}

/// Waits for all of it; or what is wrong with it.
async fn taken(body: Incoming) -> Result<(), (StatusCode, &'static str)> {
    match timeout(HEAD_TIMEOUT, Limited::new(body, BODY_BYTES_MAX).collect()).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err((
            StatusCode::PAYLOAD_TOO_LARGE,
            "the body is too long: at most 64 KiB",
        )),
        Ok(Err(_)) => Err((StatusCode::BAD_REQUEST, "the body can't be read")),
        Err(_) => Err((
            StatusCode::REQUEST_TIMEOUT,
            "the body did not come within 10 s",
        )),
    }
}

/// Has it done.
async fn ordered(asking: &Asking, route: Route) -> Ordered {
    let ordered = match route {
        Route::End(deadline) => asking.ask(|answer| Ask::End { deadline, answer }).await,
        Route::Order(order) => asking.ask(|answer| Ask::Order(order, answer)).await,
        // Nothing else comes here.
        _ => None,
    };
    ordered.unwrap_or(Err(Refusal::Ending))
}

impl Denials {
    fn tell(&self, head: &request::Parts, visit: &Visit, denial: Denial) {
        const PERIOD: Duration = Duration::from_secs(1);
        if self.told.get().is_some_and(|told| told.elapsed() < PERIOD) {
            self.untold.set(self.untold.get() + 1);
            return;
        }
        self.told.set(Some(Instant::now()));
        tracing::warn!(
            request = shown(head),
            from = visit.peer,
            status = denial.status().as_u16(),
            outcome = denial.what(),
            before_it = self.untold.take(),
            "admin request denied"
        );
    }
}

/// Ends a connection in order. What is still to come of a request that goes on is read, since closing would
/// take the answer back.
async fn part(mut stream: impl AsyncRead + AsyncWrite + Unpin, unread: bool) {
    // It may be gone.
    let _ = stream.shutdown().await;
    if unread {
        let mut waste = [0; 4096];
        while let Ok(1..) = stream.read(&mut waste).await {}
    }
}

/// What was asked for, as it is logged: short, and without anything that a terminal would obey.
fn shown(head: &request::Parts) -> String {
    let target = head.uri.path_and_query().map_or("", |it| it.as_str());
    format!("{} {}", head.method, start_of(target).escape_debug())
}

fn start_of(text: &str) -> String {
    text.chars().take(TARGET_SHOWN).collect()
}

fn outcome(ordered: &Ordered) -> (StatusCode, String) {
    match ordered {
        Ok(_) => (StatusCode::OK, "done".to_owned()),
        Err(Refusal::Unknown(part)) => {
            let error = format!("there is no {part}: /status shows what there is");
            (StatusCode::NOT_FOUND, error)
        }
        Err(Refusal::Ending) => (StatusCode::SERVICE_UNAVAILABLE, ENDING.to_owned()),
        Err(Refusal::Because(error)) => (StatusCode::CONFLICT, error.clone()),
    }
}

const ENDING: &str = "the process is draining or ending";

fn failed(failure: &Failure, head: &request::Parts) -> Answer {
    let (status, error) = match failure {
        Failure::Ending => (StatusCode::SERVICE_UNAVAILABLE, ENDING.to_owned()),
        Failure::Thread(error) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("there is no thread to write this: {error}; try again"),
        ),
        Failure::Held => (
            StatusCode::SERVICE_UNAVAILABLE,
            "sixteen of these are being read, too slowly to keep more: try again".to_owned(),
        ),
        Failure::Panicked => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "writing this has failed, which is a bug: stderr of the process says where".to_owned(),
        ),
    };
    answer::failed(status, &error, &head.headers)
}

fn missed(miss: &Miss) -> (StatusCode, String) {
    match miss {
        Miss::Path => (StatusCode::NOT_FOUND, format!("there is {}", routes::PATHS)),
        Miss::Malformed(error) => (StatusCode::BAD_REQUEST, error.clone()),
        Miss::Method(allow) => (
            StatusCode::METHOD_NOT_ALLOWED,
            format!("this takes {allow}"),
        ),
    }
}

fn readiness(reasons: Vec<String>) -> Answer {
    match reasons.is_empty() {
        true => answer::whole(StatusCode::OK, answer::TEXT, "ready\n"),
        false => {
            let lines = reasons.join("\n") + "\n";
            answer::whole(StatusCode::SERVICE_UNAVAILABLE, answer::TEXT, lines)
        }
    }
}

#[cfg(test)]
mod tests;
