//! One connection's TLS. Ciphertext goes in and is decrypted where it lies, plaintext comes out, and the
//! other way round. Nothing is kept between calls but what is incomplete and what came too early, so that a
//! connection that is silent holds no buffer.

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, InsufficientSizeError, UnbufferedStatus,
};
use rustls::{CommonState, HandshakeKind, ProtocolVersion};

use super::fault::Fault;
use super::server;
use super::settings::Version;

#[cfg(test)]
mod tests;

/// One side of a TLS connection.
pub struct Session {
    end: End,
    /// What can't be let go of yet: an incomplete handshake message, or record.
    kept: Vec<u8>,
    /// Plaintext that nobody could take yet.
    early: Vec<u8>,
    /// The name that a client asked for.
    name: Option<Box<str>>,
    peer_closed: bool,
    /// Why it can't go on.
    failed: Option<Fault>,
}

/// Which side it is.
enum End {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// What a handshake has come to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Handshake {
    /// The version that is spoken.
    pub version: Version,
    /// It goes on where an earlier session was.
    pub resumed: bool,
}

impl Session {
    pub(super) fn server(connection: UnbufferedServerConnection) -> Self {
        Self::new(End::Server(connection))
    }

    pub(super) fn client(connection: UnbufferedClientConnection) -> Self {
        Self::new(End::Client(connection))
    }

    fn new(end: End) -> Self {
        Self {
            end,
            kept: Vec::new(),
            early: Vec::new(),
            name: None,
            peer_closed: false,
            failed: None,
        }
    }

    /// Takes `records`, decrypting them in place; what is incomplete at their end is kept. Plaintext goes
    /// to `plain`, record by record; what has to be sent is put behind `reply`, also when it fails.
    ///
    /// # Errors
    /// The other side is at fault, or unhappy. Nothing can be received any more.
    pub fn receive(
        &mut self,
        records: &mut [u8],
        reply: &mut Vec<u8>,
        plain: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Fault> {
        self.is_good()?;
        if self.peer_closed {
            // Whatever comes after the end is nobody's.
            return Ok(());
        }
        let received = match self.kept.is_empty() {
            true => {
                let used = self.process(records, reply, plain);
                used.map(|used| self.kept.extend_from_slice(&records[used..]))
            }
            false => {
                let mut kept = std::mem::take(&mut self.kept);
                kept.extend_from_slice(records);
                let used = self.process(&mut kept, reply, plain);
                used.map(|used| {
                    if used < kept.len() {
                        kept.drain(..used);
                        self.kept = kept;
                    }
                })
            }
        };
        let received = received.and_then(|()| self.bound_kept());
        received.inspect_err(|fault| self.failed = Some(fault.clone()))
    }

    /// What is kept ends with a connection's end, and never grows beyond what a message may have.
    fn bound_kept(&mut self) -> Result<(), Fault> {
        if self.peer_closed {
            self.kept = Vec::new();
        }
        match self.kept.len() > MOST_KEPT {
            true => Err(Fault::too_long()),
            false => Ok(()),
        }
    }

    /// The first part of something is kept: what comes next belongs to it.
    pub fn keeps(&self) -> bool {
        !self.kept.is_empty()
    }

    fn is_good(&self) -> Result<(), Fault> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    /// Keeps plaintext for whoever comes for it later.
    pub fn keep(&mut self, plain: &[u8]) {
        self.early.extend_from_slice(plain);
    }

    /// What was kept.
    pub fn early(&self) -> &[u8] {
        &self.early
    }

    /// What was kept, which is forgotten here.
    pub fn take_early(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.early)
    }

    fn process(
        &mut self,
        bytes: &mut [u8],
        reply: &mut Vec<u8>,
        plain: &mut dyn FnMut(&[u8]),
    ) -> Result<usize, Fault> {
        let closed = &mut self.peer_closed;
        let processed = match &mut self.end {
            End::Server(connection) => {
                // Another connection may have left one; of two hellos of this one (after a retry) the first counts.
                server::take_name();
                let processed = process(connection, bytes, reply, plain, closed);
                if let Some(name) = server::take_name() {
                    self.name.get_or_insert(name);
                }
                processed
            }
            End::Client(connection) => process(connection, bytes, reply, plain, closed),
        };
        processed.map_err(|error| Fault::new(&error, self.is_client(), self.is_handshaking()))
    }

    /// Encrypts `plain` behind `out`, after what has to be sent before it.
    ///
    /// # Errors
    /// No more may be encrypted with these keys.
    pub fn encrypt(&mut self, plain: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
        /// Bytes that a record is longer than what is in it, at most (RFC 8446, 5.2).
        const OVERHEAD: usize = 5 + 256;
        let records = plain.len().div_ceil(RECORD);
        let room = plain.len() + records * OVERHEAD;
        self.write(room, out, &mut |traffic, out| traffic.encrypt(plain, out))
    }

    /// Says that nothing more comes (close_notify), behind `out`.
    ///
    /// # Errors
    /// As [`Session::encrypt`].
    pub fn finish(&mut self, out: &mut Vec<u8>) -> Result<(), Fault> {
        self.write(64, out, &mut |traffic, out| traffic.queue_close_notify(out))
    }

    fn write(&mut self, room: usize, out: &mut Vec<u8>, work: &mut Work<'_>) -> Result<(), Fault> {
        self.is_good()?;
        let kept = &mut self.kept[..];
        let written = match &mut self.end {
            End::Server(connection) => write(connection, kept, room, out, work),
            End::Client(connection) => write(connection, kept, room, out, work),
        };
        let written = written.map_err(|error| Fault::new(&error, self.is_client(), false));
        written.inspect_err(|fault| self.failed = Some(fault.clone()))
    }

    /// The handshake has not come to its end.
    pub fn is_handshaking(&self) -> bool {
        self.state().is_handshaking()
    }

    /// The other side has said that nothing more comes (close_notify).
    pub fn peer_has_finished(&self) -> bool {
        self.peer_closed
    }

    /// What the handshake has come to, once it is over.
    pub fn handshake(&self) -> Option<Handshake> {
        let state = self.state();
        let version = match state.protocol_version()? {
            ProtocolVersion::TLSv1_3 => Version::Tls13,
            _ => Version::Tls12,
        };
        let resumed = state.handshake_kind()? == HandshakeKind::Resumed;
        (!state.is_handshaking()).then_some(Handshake { version, resumed })
    }

    /// The name that the client has asked for, in lower case.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// It is us who have connected.
    pub fn is_client(&self) -> bool {
        matches!(self.end, End::Client(_))
    }

    fn state(&self) -> &CommonState {
        match &self.end {
            End::Server(connection) => connection,
            End::Client(connection) => connection,
        }
    }
}

/// Most bytes that are kept: what rustls allows a handshake message to have. In records of a byte each, less of it
/// fits.
const MOST_KEPT: usize = 0xffff;

/// Most bytes of plaintext in a record.
const RECORD: usize = 1 << 14;

/// What both sides have in common.
trait Records {
    type Data;

    fn records<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;

    /// The next call hands something out that is to be sent.
    fn has_to_say(&self) -> bool;
}

impl Records for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn records<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(bytes)
    }

    fn has_to_say(&self) -> bool {
        self.wants_write()
    }
}

impl Records for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn records<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(bytes)
    }

    fn has_to_say(&self) -> bool {
        self.wants_write()
    }
}

/// What can be written once the handshake is over.
trait Traffic {
    fn encrypt(&mut self, plain: &[u8], out: &mut [u8]) -> Result<usize, EncryptError>;
    fn queue_close_notify(&mut self, out: &mut [u8]) -> Result<usize, EncryptError>;
}

impl<Data> Traffic for rustls::unbuffered::WriteTraffic<'_, Data> {
    fn encrypt(&mut self, plain: &[u8], out: &mut [u8]) -> Result<usize, EncryptError> {
        self.encrypt(plain, out)
    }

    fn queue_close_notify(&mut self, out: &mut [u8]) -> Result<usize, EncryptError> {
        self.queue_close_notify(out)
    }
}

/// Writes into the room it is given; the bytes.
type Work<'a> = dyn FnMut(&mut dyn Traffic, &mut [u8]) -> Result<usize, EncryptError> + 'a;

/// The same, or how much room it needs, if that would help.
type Write<'a> = dyn FnMut(&mut [u8]) -> Result<usize, Option<usize>> + 'a;

/// Goes through `bytes`; returns how many of them are done with.
fn process<R: Records>(
    connection: &mut R,
    bytes: &mut [u8],
    reply: &mut Vec<u8>,
    plain: &mut dyn FnMut(&[u8]),
    closed: &mut bool,
) -> Result<usize, rustls::Error> {
    let mut used = 0;
    loop {
        let UnbufferedStatus { discard, state, .. } = connection.records(&mut bytes[used..]);
        let mut done = discard;
        let goes_on = match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    done += record.discard;
                    plain(record.payload);
                }
                true
            }
            Ok(state) => answer(state, reply, closed)?,
            Err(error) => {
                take_alert(connection, &mut bytes[used + discard..], reply, closed);
                return Err(error);
            }
        };
        used += done;
        if !goes_on {
            return Ok(used);
        }
    }
}

/// Sees to anything that is not plaintext. True if there may be more.
fn answer<Data>(
    state: ConnectionState<'_, '_, Data>,
    reply: &mut Vec<u8>,
    closed: &mut bool,
) -> Result<bool, rustls::Error> {
    match state {
        ConnectionState::EncodeTlsData(mut data) => {
            append(64, reply, &mut |room| match data.encode(room) {
                Ok(bytes) => Ok(bytes),
                Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
                    Err(Some(required_size))
                }
                Err(EncodeError::AlreadyEncoded) => Err(None),
            })?;
        }
        // What was put into `reply` is as good as sent.
        ConnectionState::TransmitTlsData(data) => data.done(),
        ConnectionState::PeerClosed => *closed = true,
        ConnectionState::Closed
        | ConnectionState::BlockedHandshake
        | ConnectionState::WriteTraffic(_) => return Ok(false),
        // Early data, which is never offered.
        _ => return Err(rustls::Error::HandshakeNotComplete),
    }
    Ok(true)
}

/// The alert that goes with an error, if there is one. `rest`: what has not been gone through, and is not to be,
/// since rustls takes a second error after its alert for a mistake of ours.
fn take_alert<R: Records>(
    connection: &mut R,
    rest: &mut [u8],
    reply: &mut Vec<u8>,
    closed: &mut bool,
) {
    while connection.has_to_say() {
        let state = connection.records(rest).state;
        if state
            .and_then(|state| answer(state, reply, closed))
            .is_err()
        {
            return;
        }
    }
}

/// Waits for the state in which something can be written, and writes it.
fn write<R: Records>(
    connection: &mut R,
    kept: &mut [u8],
    room: usize,
    out: &mut Vec<u8>,
    work: &mut Work<'_>,
) -> Result<(), rustls::Error> {
    loop {
        // What is kept is incomplete: looking at it again changes nothing.
        match connection.records(kept).state? {
            ConnectionState::WriteTraffic(mut traffic) => {
                return append(room, out, &mut |out| match work(&mut traffic, out) {
                    Ok(bytes) => Ok(bytes),
                    Err(EncryptError::InsufficientSize(InsufficientSizeError {
                        required_size,
                    })) => Err(Some(required_size)),
                    Err(EncryptError::EncryptExhausted) => Err(None),
                });
            }
            // We have finished before, and the other side, too.
            ConnectionState::Closed => return Ok(()),
            state => {
                if !answer(state, out, &mut false)? {
                    return Err(rustls::Error::HandshakeNotComplete);
                }
            }
        }
    }
}

/// Puts what `write` writes behind `out`: it says how much that was, or how much room it needs.
fn append(room: usize, out: &mut Vec<u8>, write: &mut Write<'_>) -> Result<(), rustls::Error> {
    let start = out.len();
    let mut room = room;
    loop {
        out.resize(start + room, 0);
        match write(&mut out[start..]) {
            Ok(bytes) => {
                out.truncate(start + bytes);
                return Ok(());
            }
            Err(Some(needed)) if needed > room => room = needed,
            Err(_) => {
                out.truncate(start);
                return Err(rustls::Error::EncryptError);
            }
        }
    }
}
