//! Sessions of datagrams, from the old process's workers to the new one's: a link of their own, with a
//! thread at either end, so that nobody else waits for them. Both block.
//!
//! ```text
//! old: workers ──Left──▶ thread ──frame, descriptors──▶ thread ──Adopt──▶ workers :new
//!      when the last worker has told, the link ends ──▶ Begin
//! ```
//!
//! The new process receives from its sockets only when all have come, or after a time; what clients and
//! backends send meanwhile waits in the kernel.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Error;
use super::link::BlockingLink;
use crate::proxy::{Left, SessionImage};

/// How long the other process may be silent.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sessions of one message: as many as descriptors go at once.
const BATCH: usize = 250;

/// Sessions of a listening socket; their sockets follow.
#[derive(Debug, Serialize, Deserialize)]
struct Sessions {
    /// Number of the binding in the offer.
    binding: usize,
    /// Number of the socket there.
    socket: usize,
    /// Datagrams that it has lost.
    lost: u32,
    sessions: Vec<SessionImage>,
}

/// What has come of a listening socket's sessions.
pub(in crate::control) struct Came {
    /// Number of the binding in the offer.
    pub(in crate::control) binding: usize,
    /// Number of the socket there.
    pub(in crate::control) socket: usize,
    /// Datagrams that it has lost.
    pub(in crate::control) lost: u32,
    /// Each with its socket towards the backend.
    pub(in crate::control) sessions: Vec<(SessionImage, OwnedFd)>,
}

/// A link: the end that stays, and the one that goes along with the offer.
pub(in crate::control) fn link() -> io::Result<(Giver, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    Ok((Giver(ours), theirs.into()))
}

/// The old process's end. Dropped, no session will come.
#[derive(Debug)]
pub(in crate::control) struct Giver(UnixStream);

impl Giver {
    /// Where workers leave their sessions, and the thread that gives them: it ends when nobody can leave
    /// any more, and is to be waited for. `number` tells a binding's number in the offer.
    pub(in crate::control) fn start(
        self,
        number: impl Fn(&Left) -> Option<usize> + Send + 'static,
    ) -> io::Result<(Sender<Left>, JoinHandle<()>)> {
        let (sender, receiver) = channel();
        let give = move || {
            if let Err(error) = self.give(&receiver, number) {
                tracing::warn!(%error, "sessions of datagrams can't be handed over, and end");
            }
        };
        let thread = thread::Builder::new().name("sessions".to_owned());
        Ok((sender, thread.spawn(give)?))
    }

    fn give(
        self,
        receiver: &Receiver<Left>,
        number: impl Fn(&Left) -> Option<usize>,
    ) -> Result<(), Error> {
        let mut link = BlockingLink::new(self.0, PATIENCE)?;
        let mut count = 0;
        for left in receiver {
            let Some(binding) = number(&left) else {
                continue;
            };
            count += left.sessions.len();
            let (images, sockets): (Vec<_>, Vec<_>) = left.sessions.into_iter().unzip();
            // One at least: it says what the listening socket has lost.
            let mut images = images.chunks(BATCH);
            let mut sockets = sockets.chunks(BATCH);
            loop {
                let sessions = images.next().unwrap_or_default().to_vec();
                link.send(&Sessions {
                    binding,
                    socket: left.socket,
                    lost: left.lost,
                    sessions,
                })?;
                let batch = sockets.next().unwrap_or_default();
                let batch: Vec<_> = batch.iter().map(AsFd::as_fd).collect();
                link.send_descriptors(&batch)?;
                if images.len() == 0 {
                    break;
                }
            }
        }
        tracing::info!(sessions = count, "sessions of datagrams are handed over");
        Ok(())
    }
}

/// Takes what comes, on a thread of its own; `end` is called when nothing more will.
pub(in crate::control) fn take(
    link: OwnedFd,
    mut came: impl FnMut(Came) + Send + 'static,
    end: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let take = move || {
        match receive_all(link, &mut came) {
            // The old process has given all.
            Ok(count) => tracing::info!(sessions = count, "sessions of datagrams are taken over"),
            Err(error) => tracing::warn!(%error, "not all sessions of datagrams are taken over"),
        }
        end();
    };
    let thread = thread::Builder::new().name("sessions".to_owned());
    thread.spawn(take)?;
    Ok(())
}

fn receive_all(link: OwnedFd, came: &mut impl FnMut(Came)) -> Result<usize, Error> {
    let mut link = BlockingLink::new(link.into(), PATIENCE)?;
    let mut count = 0;
    loop {
        let sessions: Sessions = match link.receive() {
            Ok(sessions) => sessions,
            Err(Error::Gone) => return Ok(count),
            Err(error) => return Err(error),
        };
        let descriptors = link.receive_descriptors(sessions.sessions.len())?;
        count += descriptors.len();
        came(Came {
            binding: sessions.binding,
            socket: sessions.socket,
            lost: sessions.lost,
            sessions: sessions.sessions.into_iter().zip(descriptors).collect(),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;
    use crate::proxy::BindingId;

    fn left(socket: usize, count: u16) -> Left {
        let image = |port: u16| {
            serde_json::from_value(serde_json::json!({
                "client": format!("127.0.0.1:{port}"), "local": null, "backend": "10.0.0.1:53",
                "last_nanos": 5, "began_nanos": 4,
            }))
        };
        let session = |port| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            (image(port).unwrap(), socket.into())
        };
        Left {
            binding: BindingId(7),
            socket,
            lost: 9,
            sessions: (1..=count).map(session).collect(),
        }
    }

    #[test]
    fn all_sessions_come_with_their_sockets_and_then_the_end() {
        let (giver, theirs) = link().unwrap();
        let (told, came) = channel();
        let end = told.clone();
        take(
            theirs,
            move |came| told.send(Some(came)).unwrap(),
            move || end.send(None).unwrap(),
        )
        .unwrap();
        let (to, giver) = giver
            .start(|left| (left.binding == BindingId(7)).then_some(3))
            .unwrap();
        let other = Left {
            binding: BindingId(8),
            ..left(0, 1)
        };
        let given = [left(0, 600), left(1, 0), other, left(2, 1)];
        let expected: Vec<_> = [&given[0], &given[1], &given[3]]
            .iter()
            .flat_map(|left| {
                left.sessions
                    .iter()
                    .map(|(image, _)| (left.socket, image.clone()))
            })
            .collect();
        given.into_iter().for_each(|left| to.send(left).unwrap());
        drop(to);
        giver.join().unwrap();
        let came: Vec<Came> = came.iter().map_while(|came| came).collect();
        assert!(came.iter().all(|came| (came.binding, came.lost) == (3, 9)));
        assert!(came.iter().any(|came| came.socket == 1), "its losses");
        let sessions: Vec<_> = came
            .iter()
            .flat_map(|came| {
                came.sessions
                    .iter()
                    .map(|(image, _)| (came.socket, image.clone()))
            })
            .collect();
        assert_eq!(sessions, expected);
        let sockets = came.into_iter().flat_map(|came| came.sessions);
        for (_, socket) in sockets {
            UdpSocket::from(socket).local_addr().unwrap();
        }
    }

    #[test]
    fn a_giver_that_is_dropped_is_the_end() {
        let (giver, theirs) = link().unwrap();
        let (told, ended) = channel();
        take(theirs, |_| unreachable!(), move || told.send(()).unwrap()).unwrap();
        drop(giver);
        ended.recv().unwrap();
    }
}
