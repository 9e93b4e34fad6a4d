//! The two ends of a link: one that waits in the control thread's runtime, and one that blocks,
//! for a new process that has no runtime yet. They move frames and descriptors and never ask what
//! those are for.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as BlockingStream;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketType, sockopt,
};
use rustix::{cmsg_space, stdio};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use super::frame::{Partial, Step, encode};
use super::{Error, FromOld};

/// Descriptors of one message; the kernel allows 253.
const BATCH: usize = 250;

/// An end of a link, within the control thread's runtime.
#[derive(Debug)]
pub(in crate::control) struct Link {
    stream: UnixStream,
    /// Kept here, so that a receive may be dropped and begun again.
    partial: Partial,
}

impl Link {
    /// Takes a socket over; `bytes` were read of a frame before.
    pub(super) fn new(socket: OwnedFd, bytes: Vec<u8>) -> Result<Self, Error> {
        let stream = BlockingStream::from(socket);
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: UnixStream::from_std(stream)?,
            partial: Partial::resume(bytes),
        })
    }

    /// What has been read of an unfinished frame.
    pub(super) fn unread(&self) -> Vec<u8> {
        self.partial.bytes().to_vec()
    }

    /// Waits for what the draining process at the other end has counted in all; `None` when it is
    /// gone. May be dropped and called again: nothing is lost.
    ///
    /// # Errors
    /// The other process says something else; nothing more can be understood then.
    pub(in crate::control) async fn next_counted(&mut self) -> Result<Option<Value>, Error> {
        match self.receive().await {
            Ok(FromOld::Counted { totals }) => Ok(Some(totals)),
            Ok(FromOld::Go { .. }) => Err(Error::Malformed("go in the place of counts".to_owned())),
            Err(Error::Gone) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits for a message. May be dropped and called again.
    pub(super) async fn receive<T: DeserializeOwned>(&mut self) -> Result<T, Error> {
        loop {
            self.stream.readable().await?;
            match self.partial.step(|chunk| self.stream.try_read(chunk)) {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {}
                Err(Step::Read(error)) if is_passing(&error) => {}
                Err(Step::Read(error)) => return Err(error.into()),
                Err(Step::Broken(error)) => return Err(error),
            }
        }
    }

    /// Sends a message; whoever drops this has to close the link.
    pub(super) async fn send<T: Serialize>(&mut self, message: &T) -> Result<(), Error> {
        Ok(self.stream.write_all(&encode(message)?).await?)
    }

    /// Sends descriptors, which stay open here; whoever drops this has to close the link.
    pub(super) async fn send_descriptors(
        &mut self,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), Error> {
        for batch in descriptors.chunks(BATCH) {
            let send = || send_batch(self.stream.as_fd(), batch);
            self.stream.async_io(Interest::WRITABLE, send).await?;
        }
        Ok(())
    }

    /// Writes what there is room for, and says how much that was.
    pub(super) fn write_some(&self, bytes: &[u8]) -> Result<usize, Error> {
        match self.stream.try_write(bytes) {
            Err(error) if is_passing(&error) => Ok(0),
            written => Ok(written?),
        }
    }

    /// Waits until there may be room to write.
    pub(super) async fn writable(&self) -> Result<(), Error> {
        Ok(self.stream.writable().await?)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// An end of a link that blocks, for as long as its patience lasts at each receive and send.
#[derive(Debug)]
pub(super) struct BlockingLink {
    stream: BlockingStream,
    partial: Partial,
}

impl BlockingLink {
    pub(super) fn new(stream: BlockingStream, patience: Duration) -> Result<Self, Error> {
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self {
            stream,
            partial: Partial::default(),
        })
    }

    /// Takes the link that a new process finds as its standard input, and leaves `/dev/null` there.
    pub(super) fn from_stdin(patience: Duration) -> Result<Self, Error> {
        let stdin = stdio::stdin();
        let is_link = sockopt::socket_domain(stdin) == Ok(AddressFamily::UNIX)
            && sockopt::socket_type(stdin) == Ok(SocketType::STREAM);
        if !is_link {
            return Err(Error::NotALink);
        }
        // Both are closed on exec, unlike standard input.
        let link = stdin.try_clone_to_owned()?;
        let null = std::fs::File::open("/dev/null")?;
        stdio::dup2_stdin(&null).map_err(io::Error::from)?;
        Self::new(link.into(), patience)
    }

    pub(super) fn into_link(self) -> Result<Link, Error> {
        Link::new(self.stream.into(), self.partial.bytes().to_vec())
    }

    pub(super) fn receive<T: DeserializeOwned>(&mut self) -> Result<T, Error> {
        loop {
            match self.partial.step(|chunk| self.stream.read(chunk)) {
                Ok(Some(message)) => return Ok(message),
                Ok(None) => {}
                Err(Step::Read(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(Step::Read(error)) => return Err(error.into()),
                Err(Step::Broken(error)) => return Err(error),
            }
        }
    }

    pub(super) fn send<T: Serialize>(&mut self, message: &T) -> Result<(), Error> {
        Ok(self.stream.write_all(&encode(message)?)?)
    }

    /// Sends descriptors, which stay open here.
    pub(super) fn send_descriptors(&mut self, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        for batch in descriptors.chunks(BATCH) {
            send_batch(self.stream.as_fd(), batch)?;
        }
        Ok(())
    }

    /// Receives so many descriptors, none of which is inherited over exec.
    pub(super) fn receive_descriptors(&mut self, expected: usize) -> Result<Vec<OwnedFd>, Error> {
        let mut received = Vec::new();
        while received.len() < expected {
            let Batch { descriptors, whole } = receive_batch(self.stream.as_fd())?;
            let came = descriptors.len();
            received.extend(descriptors);
            if !whole || came == 0 || received.len() > expected {
                let came = received.len();
                return Err(Error::Descriptors { expected, came });
            }
        }
        Ok(received)
    }
}

/// Worth trying again, once the socket is ready.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}

/// Descriptors of one message.
struct Batch {
    descriptors: Vec<OwnedFd>,
    /// Nothing was left out for lack of numbers.
    whole: bool,
}

/// A byte goes with them: descriptors alone can't be sent over a stream.
fn send_batch(socket: BorrowedFd<'_>, batch: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(BATCH))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(batch)));
    let byte = [IoSlice::new(b"d")];
    net::sendmsg(socket, &byte, &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn receive_batch(socket: BorrowedFd<'_>) -> Result<Batch, Error> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(BATCH))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let message = loop {
        let mut buffer = [IoSliceMut::new(&mut byte)];
        match net::recvmsg(socket, &mut buffer, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            received => break received.map_err(io::Error::from)?,
        }
    };
    if message.bytes == 0 {
        return Err(Error::Gone);
    }
    let mut descriptors = Vec::new();
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            descriptors.extend(rights);
        }
    }
    Ok(Batch {
        descriptors,
        whole: !message.flags.contains(ReturnFlags::CTRUNC),
    })
}
