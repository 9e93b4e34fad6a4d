//! A client that goes through a TLS handshake in order and then says records that no library would let it
//! say.

use std::collections::VecDeque;

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ringress::ring::sim::{Layer, Wire};
use ringress::tls::Version;
use rustls::ConnectionTrafficSecrets;

use crate::layers::{Secure, keys};

/// What it says.
#[derive(Clone, Debug)]
pub(crate) enum Record {
    /// A record of this type and content, encrypted.
    Sealed(u8, Vec<u8>),
    /// These bytes as they are.
    Verbatim(Vec<u8>),
}

/// The client.
pub(crate) struct Raw {
    /// Until the handshake is over.
    secure: Option<Secure>,
    version: Version,
    records: Vec<Record>,
    out: VecDeque<u8>,
}

impl Raw {
    pub(crate) fn new(version: Version, records: Vec<Record>) -> Self {
        Self {
            secure: Some(Secure::client(keys().client(version))),
            version,
            records,
            out: VecDeque::new(),
        }
    }

    /// Goes on by itself once the handshake is over.
    fn take_over(&mut self) {
        let Some(mut secure) = self.secure.take_if(|secure| !secure.is_handshaking()) else {
            return;
        };
        while let Wire::Bytes(bytes) = secure.next(usize::MAX) {
            self.out.extend(bytes);
        }
        let client = secure.into_client().expect("it is a client");
        let secrets = client.dangerous_extract_secrets();
        let (sequence, secrets) = secrets.expect("it is allowed to").tx;
        let mut sealer = Sealer::new(self.version, sequence, &secrets);
        for record in std::mem::take(&mut self.records) {
            match record {
                Record::Sealed(kind, content) => self.out.extend(sealer.seal(kind, &content)),
                Record::Verbatim(bytes) => self.out.extend(bytes),
            }
        }
    }
}

impl Layer for Raw {
    fn hear(&mut self, wire: &[u8], plain: &mut Vec<u8>) {
        if let Some(secure) = &mut self.secure {
            secure.hear(wire, plain);
        }
        self.take_over();
    }

    fn has_ended(&self) -> bool {
        false
    }

    fn room(&self) -> usize {
        0
    }

    fn say(&mut self, _: &[u8]) {}

    fn finish(&mut self) {}

    fn next(&mut self, room: usize) -> Wire {
        if let Some(secure) = &mut self.secure {
            return secure.next(room);
        }
        match self.out.len().min(room) {
            0 => Wire::Rest,
            some => Wire::Bytes(self.out.drain(..some).collect()),
        }
    }

    fn fault(&self) -> Option<String> {
        self.secure.as_ref().and_then(Secure::fault)
    }
}

/// Encrypts records with AES-128-GCM (RFC 8446, 5.2; RFC 5288, 3).
struct Sealer {
    version: Version,
    sequence: u64,
    key: LessSafeKey,
    iv: [u8; 12],
}

impl Sealer {
    fn new(version: Version, sequence: u64, secrets: &ConnectionTrafficSecrets) -> Self {
        let ConnectionTrafficSecrets::Aes128Gcm { key, iv } = secrets else {
            panic!("it is the only suite");
        };
        let key = UnboundKey::new(&AES_128_GCM, key.as_ref()).expect("it is a key");
        Self {
            version,
            sequence,
            key: LessSafeKey::new(key),
            iv: iv.as_ref().try_into().expect("it has the length"),
        }
    }

    fn seal(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut nonce = self.iv;
        let sequence = self.sequence.to_be_bytes();
        for (byte, sequence) in nonce[4..].iter_mut().zip(sequence) {
            *byte ^= sequence;
        }
        self.sequence += 1;
        let mut sealed = content.to_vec();
        let (mut record, aad) = match self.version {
            Version::Tls13 => {
                sealed.push(kind);
                let length = (sealed.len() + 16) as u16;
                let header = [&[23, 3, 3][..], &length.to_be_bytes()].concat();
                (header.clone(), header)
            }
            Version::Tls12 => {
                let length = (content.len() + 8 + 16) as u16;
                let header = [&[kind, 3, 3][..], &length.to_be_bytes(), &nonce[4..]].concat();
                let plain = (content.len() as u16).to_be_bytes();
                (header, [&sequence[..], &[kind, 3, 3], &plain].concat())
            }
        };
        let nonce = Nonce::assume_unique_for_key(nonce);
        let done = self
            .key
            .seal_in_place_append_tag(nonce, Aad::from(aad), &mut sealed);
        done.expect("it is not too long");
        record.extend(sealed);
        record
    }
}
