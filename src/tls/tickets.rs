//! The keys of session tickets: shared by all workers, renewed every 12 hours, and handed on to the next
//! process. A ticket is good for the listener, and for the policy about client certificates, under which it
//! was issued, and for no other.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM, Aad, MAX_TAG_LEN, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::rand;
use rustls::server::ProducesTickets;

use crate::time::Instant;

#[cfg(test)]
mod tests;

/// How long a key issues tickets; it is known for as long again.
const LIFETIME_SECS: u64 = 12 * 3600;
/// A ticket begins with the name of its key.
const NAME_BYTES: usize = 16;
const SECRET_BYTES: usize = 32;

/// The keys of one listener, over reloads and upgrades.
#[derive(Debug)]
pub struct Tickets {
    keys: ArcSwap<Keys>,
}

/// What goes to another process: nanoseconds at which the first key was made, and the keys, the newest first.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Image {
    /// On the clock of [`Instant`].
    pub since: u64,
    /// Name and secret of each: 48 bytes.
    pub keys: Vec<Vec<u8>>,
}

struct Keys {
    current: Arc<Key>,
    previous: Option<Arc<Key>>,
    since: Instant,
}

struct Key {
    bytes: [u8; NAME_BYTES + SECRET_BYTES],
    aead: RandomizedNonceKey,
}

impl Default for Tickets {
    /// With a key that [`Tickets::tend`] may find to be too old.
    fn default() -> Self {
        Self::new(Instant::default())
    }
}

impl Tickets {
    /// With a new key.
    pub fn new(now: Instant) -> Self {
        Self {
            keys: ArcSwap::from_pointee(Keys {
                current: Arc::new(Key::random()),
                previous: None,
                since: now,
            }),
        }
    }

    /// Takes a new key when it is time to. To be called now and then, by whoever likes.
    pub fn tend(&self, now: Instant) {
        let keys = self.keys.load();
        if now.since(keys.since).as_secs() < LIFETIME_SECS {
            return;
        }
        let next = Arc::new(Keys {
            current: Arc::new(Key::random()),
            previous: Some(keys.current.clone()),
            since: now,
        });
        // Another worker may have been faster: its keys are as good.
        self.keys.compare_and_swap(&*keys, next);
    }

    /// For another process of the same machine.
    pub fn image(&self) -> Image {
        let keys = self.keys.load();
        let previous = keys.previous.as_ref();
        let all = std::iter::once(&keys.current).chain(previous);
        Image {
            since: keys.since.as_nanos(),
            keys: all.map(|key| key.bytes.to_vec()).collect(),
        }
    }

    /// Goes on with the keys of another process; what is no image of keys is left alone.
    pub fn restore(&self, image: &Image, now: Instant) {
        let mut keys = image.keys.iter().map(|bytes| Key::new(bytes));
        let Some(Some(current)) = keys.next() else {
            return;
        };
        self.keys.store(Arc::new(Keys {
            current: Arc::new(current),
            previous: keys.next().flatten().map(Arc::new),
            since: Instant::from_nanos(image.since).min(now),
        }));
    }
}

impl Key {
    fn random() -> Self {
        let mut bytes = [0; NAME_BYTES + SECRET_BYTES];
        rand::fill(&mut bytes).expect("the system has random bytes");
        Self::new(&bytes).expect("it has the length of a key")
    }

    fn new(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; NAME_BYTES + SECRET_BYTES] = bytes.try_into().ok()?;
        let aead = RandomizedNonceKey::new(&AES_256_GCM, &bytes[NAME_BYTES..]).ok()?;
        Some(Self { bytes, aead })
    }

    fn name(&self) -> &[u8] {
        &self.bytes[..NAME_BYTES]
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Never the secrets.
        write!(f, "Keys {{ since: {:?} }}", self.since)
    }
}

/// The tickets of one policy.
#[derive(Debug)]
pub(super) struct Ticketer {
    pub(super) tickets: Arc<Tickets>,
    /// What a ticket is good for.
    pub(super) policy: Vec<u8>,
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME_SECS as u32
    }

    /// Name of the key, nonce, ciphertext, tag.
    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let keys = self.tickets.keys.load();
        let key = &keys.current;
        let mut sealed = Vec::with_capacity(plain.len() + MAX_TAG_LEN);
        sealed.extend_from_slice(plain);
        let aad = Aad::from(&self.policy);
        let nonce = key.aead.seal_in_place_append_tag(aad, &mut sealed).ok()?;
        Some([key.name(), nonce.as_ref(), &sealed].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_at_checked(NAME_BYTES)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        let keys = self.tickets.keys.load();
        let mut known = std::iter::once(&keys.current).chain(&keys.previous);
        // Names are no secret.
        let key = known.find(|key| key.name() == name)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut sealed = sealed.to_vec();
        let aad = Aad::from(&self.policy);
        let plain = key.aead.open_in_place(nonce, aad, &mut sealed).ok()?;
        Some(plain.to_vec())
    }
}
