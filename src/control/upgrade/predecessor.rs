//! The new process's side: it takes what the old one offers, decides whether it can serve with it,
//! and says so. Blocking, since this happens before anything else runs.

use std::env;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::process;
use std::time::Duration;

use serde_json::Value;

use super::link::{BlockingLink, Link};
use super::{Error, FromNew, FromOld, Offer, Opening, Ready, VARIABLE, VERSION};

/// How long the old process may be silent; it is there and has nothing else to do first.
const PATIENCE: Duration = Duration::from_secs(10);

/// Most descriptors that are taken, so that an offer that makes no sense is not waited for.
const DESCRIPTORS_MAX: usize = 1 << 20;

/// What the old process hands over, if this one was started by an upgrade. Standard input leads to
/// `/dev/null` afterwards.
///
/// # Errors
/// It was, and what is handed over can't be taken. The old process has been told.
pub(in crate::control) fn predecessor() -> Result<Option<Inheritance>, Error> {
    let Some(version) = env::var_os(VARIABLE) else {
        return Ok(None);
    };
    let link = BlockingLink::from_stdin(PATIENCE)?;
    Inheritance::receive(link, &version).map(Some)
}

/// What a new process was handed.
#[derive(Debug)]
pub(in crate::control) struct Inheritance {
    /// What the old process is and listens on.
    pub(in crate::control) offer: Offer,
    /// The listening sockets of each offered binding.
    pub(in crate::control) sockets: Vec<Vec<OwnedFd>>,
    /// By which sessions of datagrams will come.
    pub(in crate::control) sessions: Option<OwnedFd>,
    /// The old process, which waits for an answer.
    pub(in crate::control) predecessor: Predecessor,
}

impl Inheritance {
    /// `version` is what the old process wrote into the environment.
    pub(super) fn receive(mut link: BlockingLink, version: &OsStr) -> Result<Self, Error> {
        let received = receive(&mut link, version);
        if let Err(error) = &received {
            let error = error.to_string();
            // If it can't be told, it sees this process end.
            let _ = link.send(&FromNew::Refused { error });
        }
        let (opening, descriptors) = received?;
        let mut descriptors = descriptors.into_iter();
        let bindings = opening.offer.bindings.iter();
        let sockets = bindings
            .map(|binding| descriptors.by_ref().take(binding.sockets).collect())
            .collect();
        let sessions = match opening.offer.sessions {
            true => descriptors.next(),
            false => None,
        };
        let older = descriptors.zip(opening.links).collect();
        Ok(Self {
            sessions,
            offer: opening.offer,
            sockets,
            predecessor: Predecessor { link, older },
        })
    }
}

fn receive(link: &mut BlockingLink, version: &OsStr) -> Result<(Opening, Vec<OwnedFd>), Error> {
    // Nothing of another version is read: it may mean anything.
    if version != VERSION.to_string().as_str() {
        let theirs = version.to_string_lossy().into_owned();
        return Err(Error::Version { theirs });
    }
    let opening: Opening = link.receive()?;
    if opening.version != VERSION {
        let theirs = opening.version.to_string();
        return Err(Error::Version { theirs });
    }
    let sockets = opening.offer.bindings.iter().map(|binding| binding.sockets);
    let descriptors = sockets
        .chain([usize::from(opening.offer.sessions), opening.links.len()])
        .try_fold(0_usize, usize::checked_add)
        .filter(|descriptors| *descriptors <= DESCRIPTORS_MAX)
        .ok_or_else(|| Error::Malformed("more sockets than a process can have".to_owned()))?;
    let descriptors = link.receive_descriptors(descriptors)?;
    Ok((opening, descriptors))
}

/// The old process, which waits until this one has decided.
#[derive(Debug)]
pub(in crate::control) struct Predecessor {
    link: BlockingLink,
    /// Links to still older processes, with what has been read of a frame.
    older: Vec<(OwnedFd, Vec<u8>)>,
}

impl Predecessor {
    /// Says that this process can't serve, and why. It is to end then.
    pub(in crate::control) fn refuse(mut self, error: &str) {
        let error = error.to_owned();
        // If it can't be told, it sees this process end.
        let _ = self.link.send(&FromNew::Refused { error });
    }

    /// Says that this process can serve with the bindings `kept`, by index, and waits for the old
    /// one's state. There is none when the old process died meanwhile: then nobody else serves.
    ///
    /// # Errors
    /// The old process doesn't answer, or can't be understood. It has been told.
    pub(in crate::control) fn ready(
        mut self,
        kept: Vec<usize>,
    ) -> Result<(Option<Value>, Committed), Error> {
        let pid = process::id();
        let ready = FromNew::Ready(Ready { pid, kept });
        let sent = self.link.send(&ready);
        let state = match sent.and_then(|()| self.link.receive()) {
            Ok(FromOld::Go { state }) => Ok(Some(state)),
            Ok(FromOld::Counted { .. }) => {
                Err(Error::Malformed("counts in the place of go".to_owned()))
            }
            Err(Error::Gone) => Ok(None),
            Err(error) => Err(error),
        };
        match state {
            Ok(state) => Ok((state, Committed(self))),
            Err(error) => {
                self.refuse(&error.to_string());
                Err(error)
            }
        }
    }
}

/// The old process, which waits for this one to serve.
#[derive(Debug)]
pub(in crate::control) struct Committed(Predecessor);

impl Committed {
    /// Says that this process serves; the old one drains from now on. Returns the links to it and
    /// to older ones, which are to be read until they end. Within the control thread's runtime.
    ///
    /// # Errors
    /// The link can't be used, which does not keep this process from serving. That the old process
    /// has died is no error: its link ends.
    pub(in crate::control) fn serving(self) -> Result<Vec<Link>, Error> {
        let Predecessor { mut link, older } = self.0;
        match link.send(&FromNew::Serving) {
            Ok(()) | Err(Error::Gone) => {}
            Err(error) => return Err(error),
        }
        let older = older
            .into_iter()
            .map(|(socket, bytes)| Link::new(socket, bytes));
        std::iter::once(link.into_link()).chain(older).collect()
    }
}
