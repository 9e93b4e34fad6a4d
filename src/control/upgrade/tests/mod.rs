//! Both sides of an upgrade: over a pair of sockets with a thread at the other end, and with real
//! children, for which this test binary is executed again.

mod alone;
mod children;
mod counts;
mod descriptors;
mod talk;

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};

use super::handover::{Gift, negotiate};
use super::link::BlockingLink;
use super::{Error, Failure, Inheritance, Link, Offer, OfferedBinding, Ready};

/// Nothing here takes so long, unless it waits for what never comes.
const PLENTY: Duration = Duration::from_secs(20);
/// For what never comes.
const SHORT: Duration = Duration::from_millis(80);

/// An offer of bindings with so many sockets each.
fn offer(sockets: &[usize]) -> Offer {
    let bindings = sockets.iter().enumerate();
    Offer {
        seed: u64::MAX,
        bindings: bindings
            .map(|(index, sockets)| OfferedBinding {
                listener: format!("listener {index}"),
                configured: "127.0.0.1:0".to_owned(),
                address: "127.0.0.1:4711".to_owned(),
                sockets: *sockets,
                unix: Some((u64::MAX, 1)),
                held: false,
                datagrams: false,
                admin: false,
            })
            .collect(),
        drained: Vec::new(),
        sessions: false,
        control_socket: None,
    }
}

/// The old process's end within a runtime, and the other one.
fn ends() -> (Link, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Link::new(ours.into(), Vec::new()).unwrap(), theirs)
}

/// The new process, in a thread.
fn newcomer<T: Send + 'static>(
    stream: UnixStream,
    acts: impl FnOnce(Result<Inheritance, Error>) -> T + Send + 'static,
) -> JoinHandle<T> {
    thread::spawn(move || acts(inheritance(stream)))
}

fn inheritance(stream: UnixStream) -> Result<Inheritance, Error> {
    let link = BlockingLink::new(stream, PLENTY).unwrap();
    Inheritance::receive(link, OsStr::new("1"))
}

fn no_state(_: &Ready) -> Value {
    json!(null)
}

/// The old process offers bindings without sockets, and waits until the new one serves.
async fn offer_nothing(link: &mut Link, bindings: usize) -> Result<Ready, Failure> {
    let gift = Gift::new::<OwnedFd>(offer(&vec![0; bindings]), &[], &[]);
    negotiate(link, &gift, no_state).await
}
