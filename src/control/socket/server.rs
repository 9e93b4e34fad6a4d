//! The process's side of the control socket: takes requests in, one per connection, and hands them to
//! whoever serves them. It knows nothing of what they do, and nobody can hold it up: lines, times and
//! connections are bounded.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

pub use super::listen::{ListenError, Options};
use super::listen::{SocketFile, listen, listen_in, try_out};
use super::path::{Folders, Place};
use super::protocol::{self, Command, REQUEST_BYTES_MAX, Reply};

/// A control socket. Dropping it removes the socket's file and tells those who wait for an answer that
/// the process is ending, as far as its runtime goes on; [`Server::finish`] waits for that.
#[derive(Debug)]
pub struct Server {
    file: SocketFile,
    requests: mpsc::Receiver<Request>,
    /// The one task that accepts; ends with the set.
    accepting: JoinSet<()>,
    /// Free places for connections.
    places: Arc<Semaphore>,
}

/// What somebody asks for.
#[derive(Debug)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// Where the answer goes. Whoever drops it unused says that the process is ending.
    pub answer: oneshot::Sender<Reply>,
}

impl Server {
    /// Listens where `place` says; `None` where that is nowhere, or with [`Place::Auto`] nowhere possible,
    /// which is logged. Runs within a `LocalSet`.
    ///
    /// # Errors
    /// The path of [`Place::At`] can't be had.
    pub fn bind(
        place: &Place,
        folders: &Folders,
        options: Options<'_>,
    ) -> Result<Option<Self>, ListenError> {
        match place {
            Place::Off => Ok(None),
            Place::At(path) => Self::start(path, listen(path, options)?).map(Some),
            Place::Auto(file) => Ok(Self::bind_somewhere(file, folders, options)),
        }
    }

    /// Whether [`Server::bind`] would be an error.
    ///
    /// # Errors
    /// As [`Server::bind`].
    pub fn try_out(place: &Place, options: Options<'_>) -> Result<(), ListenError> {
        match place {
            Place::At(path) => try_out(path, options),
            Place::Off | Place::Auto(_) => Ok(()),
        }
    }

    /// Takes the first candidate that can be had. Where a process with the same file answers there is no
    /// point in going on: commands would find either of the two.
    fn bind_somewhere(file: &Path, folders: &Folders, options: Options<'_>) -> Option<Self> {
        let candidates = match folders.candidates(file) {
            Ok(candidates) => candidates,
            Err(error) => {
                tracing::warn!(%error, "no control socket");
                return None;
            }
        };
        let mut tried = Vec::new();
        for candidate in candidates {
            let listening = listen_in(&candidate, options);
            match listening.and_then(|listening| Self::start(&candidate.path, listening)) {
                Ok(server) => return Some(server),
                Err(error) => {
                    let ends = matches!(error, ListenError::InUse(_));
                    tried.push(error.to_string());
                    if ends {
                        break;
                    }
                }
            }
        }
        let error = tried.join("; ");
        tracing::warn!(
            error,
            "no control socket: commands can't reach this process"
        );
        None
    }

    fn start(
        path: &Path,
        (listener, file): (std::os::unix::net::UnixListener, SocketFile),
    ) -> Result<Self, ListenError> {
        let listener = listener
            .set_nonblocking(true)
            .and_then(|()| UnixListener::from_std(listener));
        let listener = listener.map_err(|error| ListenError::System {
            path: path.to_owned(),
            error,
        })?;
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX as usize));
        // One per connection, so that handing over never waits.
        let (sender, requests) = mpsc::channel(CONNECTIONS_MAX as usize);
        let mut accepting = JoinSet::new();
        accepting.spawn_local(accept(listener, places.clone(), sender));
        tracing::info!(path = %path.display(), "control socket");
        Ok(Self {
            file,
            requests,
            accepting,
            places,
        })
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Commands that go by the path reach this process.
    pub fn is_in_place(&self) -> bool {
        self.file.is_in_place()
    }

    /// Waits for the next request. If it is dropped before that, none is lost.
    pub async fn next(&mut self) -> Request {
        match self.requests.recv().await {
            Some(request) => request,
            // The task that accepts doesn't end before us.
            None => std::future::pending().await,
        }
    }

    /// Takes no more requests, removes the socket's file and waits, for a second at most, until everybody
    /// has an answer. Whoever still holds a [`Request`] answers or drops it before.
    pub async fn finish(self) {
        let Self {
            file,
            requests,
            accepting,
            places,
        } = self;
        // In this order: while the socket is open nobody else's has its inode's number.
        drop(file);
        drop((accepting, requests));
        // Who has not taken the answer by then doesn't read.
        let _ = timeout(FAREWELL_TIMEOUT, places.acquire_many(CONNECTIONS_MAX)).await;
    }
}

/// At once. Operators have a few; a script that leaks them must not use up our descriptors.
const CONNECTIONS_MAX: u32 = 32;
/// For a request to arrive, and for a portion of its reply to be taken: they come from the same machine.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(10);
/// For the last answers, when the process ends.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
/// Between tries when there is no descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
const ENDING: &str = "the process is ending";

async fn accept(listener: UnixListener, places: Arc<Semaphore>, requests: mpsc::Sender<Request>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => take_in(stream, &places, &requests),
            Err(error) => {
                tracing::warn!(%error, "the control socket's accepting pauses");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn take_in(stream: UnixStream, places: &Arc<Semaphore>, requests: &mpsc::Sender<Request>) {
    // The kernel wrote down who connected.
    let peer = match stream.peer_cred() {
        Ok(peer) if may_ask(peer.uid(), rustix::process::geteuid().as_raw()) => peer,
        Ok(peer) => {
            tracing::warn!(
                uid = peer.uid(),
                pid = peer.pid(),
                "control request refused"
            );
            return turn_away(stream, "only the user of the process and root may ask");
        }
        Err(error) => {
            tracing::warn!(%error, "control request refused: nobody knows whose it is");
            return;
        }
    };
    match places.clone().try_acquire_owned() {
        Ok(place) => {
            tokio::task::spawn_local(converse(stream, peer, place, requests.clone()));
        }
        Err(_) => turn_away(stream, "too many requests at once: try again"),
    }
}

/// Permissions of the file keep others out already; this holds where somebody has changed them.
fn may_ask(uid: u32, ours: u32) -> bool {
    uid == ours || uid == 0
}

/// Says why and closes. The few bytes always have room in a new connection.
fn turn_away(stream: UnixStream, why: &str) {
    let line = protocol::line(&Reply::failed(why)).unwrap_or_default();
    // Nobody is there to tell if it can't be told.
    let _ = stream
        .into_std()
        .and_then(|mut stream| stream.write_all(&line));
}

/// A connection from its request to its reply.
async fn converse(
    mut stream: UnixStream,
    peer: UCred,
    _place: OwnedSemaphorePermit,
    requests: mpsc::Sender<Request>,
) {
    let request = tokio::select! {
        request = timeout(TRANSFER_TIMEOUT, read(&mut stream)) => request,
        () = requests.closed() => Ok(Ok(Read::Refused(ENDING))),
    };
    let reply = match request {
        Ok(Ok(Read::Line(line))) => answer(&line, &peer, &requests).await,
        Ok(Ok(Read::Refused(why))) => Reply::failed(why),
        Err(_) => Reply::failed("no request came within 10 s"),
        // Somebody looked whether we are here, or went away.
        Ok(Ok(Read::Nothing) | Err(_)) => return,
    };
    for portion in protocol::portions(&reply) {
        let written = timeout(TRANSFER_TIMEOUT, stream.write_all(&portion)).await;
        if !matches!(written, Ok(Ok(()))) {
            // Who went away, or doesn't read, has no use for it.
            return;
        }
    }
}

/// What came over a connection.
enum Read {
    /// A request.
    Line(Vec<u8>),
    /// None will be read.
    Refused(&'static str),
    /// It ended without one.
    Nothing,
}

async fn read(stream: &mut UnixStream) -> io::Result<Read> {
    let mut line = Vec::new();
    BufReader::new(stream.take(REQUEST_BYTES_MAX as u64))
        .read_until(b'\n', &mut line)
        .await?;
    Ok(if line.ends_with(b"\n") {
        Read::Line(line)
    } else if line.len() >= REQUEST_BYTES_MAX {
        Read::Refused("the request is too long: at most 8 MiB")
    } else {
        Read::Nothing
    })
}

async fn answer(line: &[u8], peer: &UCred, requests: &mpsc::Sender<Request>) -> Reply {
    let (uid, pid) = (peer.uid(), peer.pid());
    let command = match Command::parse(line) {
        Ok(command) => command,
        Err(error) => {
            tracing::info!(%error, uid, pid, "control request not understood");
            return Reply::failed(error);
        }
    };
    match (&command, command.name()) {
        // Monitoring asks every few seconds, `ringress top` every second.
        (Command::Status | Command::Pulse { .. }, command) => {
            tracing::debug!(command, uid, pid, "control request");
        }
        (_, command) => tracing::info!(command, uid, pid, "control request"),
    }
    let (answer, answered) = oneshot::channel();
    // If nobody takes it, it is dropped, which is an answer too.
    let _ = requests.send(Request { command, answer }).await;
    answered.await.unwrap_or_else(|_| Reply::failed(ENDING))
}

#[cfg(test)]
mod tests;
