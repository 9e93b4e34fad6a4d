//! A connection that TLS is spoken on, as a stream of plaintext. It moves bytes between a socket and a
//! session, and knows nothing of what is in them.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::timeout;

use super::failure::Failure;
use super::probe::Stream;
use crate::address::Address;
use crate::config::{self, Probe};
use crate::tls::{Client, ClientSettings, Session};

/// How TLS is spoken to a backend.
#[derive(Clone)]
pub(in crate::control) struct Tls {
    pub(super) client: Arc<Secure>,
    /// The host name that was written for it.
    pub(super) host: Option<Arc<str>>,
}

/// How TLS is spoken to the backends of an upstream.
pub(in crate::control) struct Secure {
    settings: ClientSettings,
    client: Client,
}

/// How probes of `upstream` speak TLS, if they do. An upstream without settings of its own passes TLS
/// through, whose names and authorities are then between client and backend: nothing is verified.
pub(super) fn client(upstream: &config::Upstream, probe: &Probe) -> Option<Arc<Secure>> {
    let settings = match (probe, &upstream.tls) {
        (Probe::Tls(_) | Probe::Http { .. }, Some(settings)) => settings.clone(),
        (Probe::Tls(_), None) => ClientSettings {
            server_name: None,
            authorities: None,
            identity: None,
        },
        _ => return None,
    };
    // Each probe is to look at the certificate.
    let client = Client::forgetful(&settings);
    Some(Arc::new(Secure { settings, client }))
}

impl Tls {
    /// A connection to the backend at this address.
    pub(super) fn session(&self, address: &Address) -> Session {
        let ip = address.as_ip().map(|address| address.ip());
        self.client.client.connect(0, self.host.as_deref(), ip)
    }
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        self.host == other.host && self.client.settings == other.client.settings
    }
}

/// Goes through the handshake.
///
/// # Errors
/// Why it failed; the backend was told.
pub(super) async fn secure<S: Stream>(stream: S, session: Session) -> Result<Secured<S>, Failure> {
    let mut secured = Secured {
        stream,
        session,
        plain: Vec::new(),
        taken: 0,
        out: Vec::new(),
        finished: false,
    };
    // A client speaks first.
    secured.receive(&mut [])?;
    loop {
        secured.flush().await?;
        if !secured.session.is_handshaking() {
            return Ok(secured);
        }
        let more = poll_fn(|context| secured.poll_more(context)).await;
        match more {
            Ok(true) => {}
            Ok(false) => return Err(Failure::ClosedInHandshake),
            Err(error) => {
                // Why, which the backend may not want to hear.
                let _ = timeout(GOODBYE, secured.flush()).await;
                return Err(error.into());
            }
        }
    }
}

/// Ends a connection in order: close_notify, FIN, and what the backend still has to say. With something
/// unread, such as tickets of TLS 1.3, it would be reset.
pub(super) async fn take_leave(mut stream: impl Stream) {
    let goodbye = async {
        if stream.shutdown().await.is_ok() {
            let mut buffer = [0; 2048];
            while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
        }
    };
    // The verdict is known.
    let _ = timeout(GOODBYE, goodbye).await;
}

/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_millis(200);

/// A stream of plaintext over a stream of records.
pub(super) struct Secured<S> {
    stream: S,
    session: Session,
    /// What was received; the first `taken` bytes of it are read.
    plain: Vec<u8>,
    taken: usize,
    /// Records to be sent.
    out: Vec<u8>,
    /// close_notify is sent, or about to be.
    finished: bool,
}

impl<S: Stream> Secured<S> {
    /// Takes records in.
    fn receive(&mut self, records: &mut [u8]) -> io::Result<()> {
        let plain = &mut self.plain;
        let keep = &mut |more: &[u8]| plain.extend_from_slice(more);
        let received = self.session.receive(records, &mut self.out, keep);
        received.map_err(io::Error::other)
    }

    /// Waits for records and takes them in; false if no more will come.
    fn poll_more(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        /// A record with everything around it.
        const AT_ONCE: usize = 17 << 10;
        // Answers to what was received, which the backend may wait for.
        let _ = self.poll_out(context)?;
        let mut bytes = vec![0; AT_ONCE];
        let mut buffer = ReadBuf::new(&mut bytes);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer))?;
        let length = buffer.filled().len();
        self.receive(&mut bytes[..length])?;
        Poll::Ready(Ok(length > 0))
    }

    /// Sends what is to be sent.
    fn poll_out(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let sent = ready!(Pin::new(&mut self.stream).poll_write(context, &self.out))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.drain(..sent);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Stream> AsyncRead for Secured<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.taken == self.plain.len() {
            self.plain.clear();
            self.taken = 0;
            let finished = self.session.peer_has_finished();
            if finished || !ready!(self.poll_more(context))? {
                return Poll::Ready(Ok(()));
            }
        }
        let left = &self.plain[self.taken..];
        let length = left.len().min(buffer.remaining());
        buffer.put_slice(&left[..length]);
        self.taken += length;
        Poll::Ready(Ok(()))
    }
}

impl<S: Stream> AsyncWrite for Secured<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        plain: &[u8],
    ) -> Poll<io::Result<usize>> {
        // So that what waits to be sent is bounded.
        ready!(self.poll_out(context))?;
        let this = &mut *self;
        let encrypted = this.session.encrypt(plain, &mut this.out);
        encrypted.map_err(io::Error::other)?;
        let _ = self.poll_out(context)?;
        Poll::Ready(Ok(plain.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_out(context))?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.finished {
            this.finished = true;
            let said = this.session.finish(&mut this.out);
            said.map_err(io::Error::other)?;
        }
        ready!(self.poll_out(context))?;
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
