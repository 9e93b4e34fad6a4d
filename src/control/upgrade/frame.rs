//! Frames: four bytes of length, most significant first, then so many bytes of JSON. No I/O of its
//! own: it says how much to read and takes what was read.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Error;

/// Longest body, in bytes: far more than the state of any configuration that can be served.
pub(super) const BODY_MAX: usize = 64 << 20;

const HEAD: usize = 4;

/// Most that is read at once: memory grows with what arrives and not with what a head claims.
const CHUNK: usize = 64 << 10;

/// The message as a frame.
pub(super) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Error> {
    let mut frame = vec![0; HEAD];
    serde_json::to_writer(&mut frame, message).map_err(malformed)?;
    let bytes = frame.len() - HEAD;
    let length = u32::try_from(bytes)
        .ok()
        .filter(|_| bytes <= BODY_MAX)
        .ok_or(Error::TooLong { bytes })?;
    frame[..HEAD].copy_from_slice(&length.to_be_bytes());
    Ok(frame)
}

/// A frame as far as it has been read.
#[derive(Debug, Default)]
pub(super) struct Partial(Vec<u8>);

impl Partial {
    /// Goes on with what another process has read.
    pub(super) fn resume(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// What has been read, head included; empty between two frames.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Reads once, and never beyond the frame: what follows may be descriptors, which a mere read
    /// would lose. The message, when this completes it.
    pub(super) fn step<T: DeserializeOwned>(
        &mut self,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Result<Option<T>, Step> {
        let before = self.0.len();
        let chunk = self.missing()?.min(CHUNK);
        self.0.resize(before + chunk, 0);
        let came = read(&mut self.0[before..]);
        self.0.truncate(before + *came.as_ref().unwrap_or(&0));
        match came {
            Err(error) => Err(Step::Read(error)),
            Ok(0) => Err(Error::Gone.into()),
            Ok(_) if self.missing()? > 0 => Ok(None),
            Ok(_) => {
                let frame = std::mem::take(&mut self.0);
                let message = serde_json::from_slice(&frame[HEAD..]).map_err(malformed)?;
                Ok(Some(message))
            }
        }
    }

    /// Bytes still to come: of the head, and once that is known, of the body.
    fn missing(&self) -> Result<usize, Error> {
        let Some(head) = self.0.first_chunk::<HEAD>() else {
            return Ok(HEAD - self.0.len());
        };
        let bytes = u32::from_be_bytes(*head) as usize;
        if bytes > BODY_MAX {
            return Err(Error::TooLong { bytes });
        }
        (HEAD + bytes)
            .checked_sub(self.0.len())
            .ok_or_else(|| Error::Malformed("more was read of a frame than it has".to_owned()))
    }
}

/// Why a step came to nothing.
#[derive(Debug)]
pub(super) enum Step {
    /// Reading failed; it may be tried again if the error is of that kind.
    Read(io::Error),
    /// Nothing more can be read from here.
    Broken(Error),
}

impl From<Error> for Step {
    fn from(error: Error) -> Self {
        Self::Broken(error)
    }
}

/// What serde says of a message.
pub(super) fn malformed(error: serde_json::Error) -> Error {
    Error::Malformed(error.to_string())
}
