//! The backends. Each costs less per request than any proxy: it looks at nothing that it does not
//! have to.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use ringress::ring::{Flow, Listener, Ring, Socket};
use ringress::time::Instant;

use crate::error::Error;
use crate::local;
use crate::pattern::Pattern;

/// What a backend does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Service {
    /// Sends back what comes.
    Echo,
    /// Takes a number of bytes (eight, big-endian) and sends that many of the counted pattern.
    Download,
    /// Echoes, but does nothing from the first instant to the second.
    Stall(Instant, Instant),
}

/// Starts serving on `address` and returns the address with the port it got. It serves as long as
/// the ring turns.
///
/// # Errors
/// As bind(2) and listen(2).
pub fn start(ring: &Ring, address: SocketAddr, service: Service) -> Result<SocketAddr, Error> {
    let (listener, bound) = local::listen(ring, address)?;
    ring.spawn(accept(ring.clone(), listener, service));
    Ok(bound)
}

async fn accept(ring: Ring, listener: Listener, service: Service) {
    /// As long as there are no descriptors, nothing gets better by trying again at once.
    const PAUSE: Duration = Duration::from_millis(20);
    let pattern = Pattern::new();
    loop {
        match poll_fn(|_| listener.poll_accept()).await {
            Ok(socket) => match service {
                Service::Echo => ring.spawn(echo(socket)),
                Service::Download => ring.spawn(serve_downloads(socket, pattern.clone())),
                Service::Stall(from, until) => {
                    ring.spawn(echo_with_stall(ring.clone(), socket, from, until));
                }
            },
            Err(_) => ring.sleep_until(ring.now() + PAUSE).await,
        }
    }
}

async fn echo(socket: Socket) {
    socket.belongs_to_this_task();
    poll_fn(|_| poll_echo(&socket)).await;
}

/// Moves what came back to where it came from; `Ready` when that has ended.
fn poll_echo(socket: &Socket) -> Poll<()> {
    /// Bytes under way at most.
    const WINDOW: u32 = 1 << 20;
    match socket.relay_to(socket, WINDOW).flow {
        Flow::Open => Poll::Pending,
        Flow::Finished | Flow::Failed { .. } | Flow::Broken(_) => Poll::Ready(()),
    }
}

async fn echo_with_stall(ring: Ring, socket: Socket, from: Instant, until: Instant) {
    socket.belongs_to_this_task();
    let timer = ring.timer();
    timer.set(until);
    poll_fn(|_| {
        if from <= ring.now() && ring.now() < until {
            Poll::Pending
        } else {
            poll_echo(&socket)
        }
    })
    .await;
}

/// What a download connection waits for.
enum Download {
    /// For the rest of a request.
    Asked { head: [u8; 8], received: usize },
    /// For the kernel to take what was sent; so much is left.
    Sending { left: u64 },
}

async fn serve_downloads(socket: Socket, pattern: Pattern) {
    socket.belongs_to_this_task();
    let mut state = Download::NOTHING;
    poll_fn(|_| {
        let flow = loop {
            match &mut state {
                Download::Asked { head, received } => {
                    let flow = read_head(&socket, head, received);
                    if *received < head.len() {
                        break flow;
                    }
                    let left = u64::from_be_bytes(*head);
                    state = Download::Sending { left };
                }
                Download::Sending { left: 0 } if !socket.is_sending() => state = Download::NOTHING,
                Download::Sending { left } => {
                    send_block(&socket, &pattern, left);
                    break Flow::Open;
                }
            }
        };
        if flow != Flow::Open || socket.send_error().is_some() {
            return Poll::Ready(());
        }
        socket.receive(HEAD_BYTES);
        Poll::Pending
    })
    .await;
}

impl Download {
    const NOTHING: Self = Self::Asked {
        head: [0; 8],
        received: 0,
    };
}

const HEAD_BYTES: u32 = 8;

fn read_head(socket: &Socket, head: &mut [u8; 8], received: &mut usize) -> Flow {
    let (_, flow) = socket.read(|slice| {
        // More than a request ahead of its answer is not what the generator sends.
        let count = slice.len().min(head.len() - *received);
        head[*received..*received + count].copy_from_slice(&slice[..count]);
        *received += count;
    });
    flow
}

fn send_block(socket: &Socket, pattern: &Pattern, left: &mut u64) {
    if *left > 0 && !socket.is_sending() {
        let block: Rc<[u8]> = pattern.block(*left);
        let bytes = block.len() as u64;
        if socket.send(block) {
            *left -= bytes;
        }
    }
    socket.wake_when_sent();
}
