//! What arrives as one, and how it is handed on: a datagram, or several of one size that the kernel has
//! joined.

use std::io;
use std::net::SocketAddr;

use crate::proto::datagram::Local;
use crate::ring::{Arrival, Datagram, DatagramSocket};
use crate::telemetry::Dropped;

/// Datagrams of one size, the last of which may be smaller; mostly one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parcel<'a> {
    pub(super) bytes: &'a [u8],
    /// `None` = it is one.
    pub(super) segment: Option<u16>,
}

/// Datagrams with headers.
pub(super) struct Announced {
    bytes: Vec<u8>,
    segment: Option<u16>,
}

impl Announced {
    pub(super) fn parcel(&self) -> Parcel<'_> {
        Parcel {
            bytes: &self.bytes,
            segment: self.segment,
        }
    }
}

/// Datagrams that one send is to be cut into, at most: Linux before 6.12 takes no more.
const MOST_SEGMENTS: usize = 64;
/// Payload of one send at most: what fits into an IPv4 packet.
const MOST_BYTES: usize = 65_507;

impl<'a> Parcel<'a> {
    /// What has arrived.
    pub(super) fn of(arrival: &'a Arrival) -> Self {
        Self {
            bytes: arrival.bytes(),
            segment: arrival.header.segment,
        }
    }

    /// What one send takes.
    pub(super) fn in_send(datagram: &Datagram<'a>) -> Self {
        Self {
            bytes: datagram.bytes,
            segment: datagram.segment,
        }
    }

    /// Datagrams in it.
    pub(super) fn count(&self) -> u64 {
        self.segment.map_or(1, |segment| {
            self.bytes.len().div_ceil(usize::from(segment)) as u64
        })
    }

    /// The first `count` datagrams of it.
    pub(super) fn first(&self, count: u64) -> Self {
        let bytes = match self.segment {
            Some(segment) => {
                let end = usize::from(segment).saturating_mul(count as usize);
                &self.bytes[..end.min(self.bytes.len())]
            }
            None => self.bytes,
        };
        Self {
            bytes,
            segment: self.segment,
        }
    }

    /// Its datagrams with `header` before the first or before each, and those without.
    pub(super) fn announce(self, header: &[u8], every: bool) -> (Announced, Option<Parcel<'a>>) {
        let size = self.segment.map_or(self.bytes.len(), usize::from);
        if every {
            let mut bytes =
                Vec::with_capacity(self.bytes.len() + header.len() * self.count() as usize);
            if self.bytes.is_empty() {
                bytes.extend_from_slice(header);
            }
            for datagram in self.bytes.chunks(size.max(1)) {
                bytes.extend_from_slice(header);
                bytes.extend_from_slice(datagram);
            }
            let segment = self
                .segment
                .map(|size| size.saturating_add(header.len() as u16));
            return (Announced { bytes, segment }, None);
        }
        let (first, rest) = self.bytes.split_at(size.min(self.bytes.len()));
        let announced = Announced {
            bytes: [header, first].concat(),
            segment: None,
        };
        let rest = (!rest.is_empty()).then_some(Parcel {
            bytes: rest,
            segment: self.segment.filter(|size| rest.len() > usize::from(*size)),
        });
        (announced, rest)
    }

    /// What one send each takes. Without `offload` that is one datagram each.
    pub(super) fn pieces(self, offload: bool) -> impl Iterator<Item = Parcel<'a>> {
        let size = self.segment.map(usize::from);
        let most = size.map_or(usize::MAX, |size| match offload {
            true => size * (MOST_BYTES / size).clamp(1, MOST_SEGMENTS),
            false => size,
        });
        // An empty datagram is a piece, too.
        let empty = self.bytes.is_empty().then_some(self.bytes);
        let pieces = empty.into_iter().chain(self.bytes.chunks(most));
        pieces.map(move |bytes| Parcel {
            bytes,
            segment: self.segment.filter(|size| bytes.len() > usize::from(*size)),
        })
    }

    pub(super) fn datagram(self, to: Option<SocketAddr>, from: Option<Local>) -> Datagram<'a> {
        Datagram {
            bytes: self.bytes,
            to,
            from,
            segment: self.segment,
        }
    }
}

/// Sends a parcel on a connected socket. `offload` is taken back where the way can't cut sends apart.
///
/// # Errors
/// The first one, with the datagrams that were not sent.
pub(super) fn send(
    socket: &DatagramSocket,
    parcel: Parcel<'_>,
    offload: &mut bool,
) -> Result<(), (io::Error, u64)> {
    let mut left = parcel.count();
    for piece in parcel.pieces(*offload) {
        let sent = match socket.send(&[piece.datagram(None, None)]) {
            Err(error) if piece.segment.is_some() && is_about_offload(&error) => {
                *offload = false;
                send(socket, piece, offload).map_err(|(error, _)| error)
            }
            sent => sent.map(drop),
        };
        sent.map_err(|error| (error, left))?;
        left -= piece.count();
    }
    Ok(())
}

/// The way can't cut a send into datagrams: its device or a tunnel on it, or they are larger than its
/// packets (udp(7)).
pub(super) fn is_about_offload(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::EINVAL | libc::EMSGSIZE)
    )
}

/// Why a datagram could not be sent, where that says nothing of whom it was for.
pub(super) fn dropped_for(error: &io::Error) -> Option<Dropped> {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => Some(Dropped::NoRoom),
        Some(libc::EMSGSIZE) => Some(Dropped::TooLong),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lens(len: usize, segment: Option<u16>, offload: bool) -> Vec<(usize, Option<u16>)> {
        let bytes = vec![0; len];
        let parcel = Parcel {
            bytes: &bytes,
            segment,
        };
        let pieces = parcel.pieces(offload);
        pieces
            .map(|piece| (piece.bytes.len(), piece.segment))
            .collect()
    }

    #[test]
    fn a_datagram_is_one_piece_even_if_it_is_empty() {
        assert_eq!(lens(0, None, true), [(0, None)]);
        assert_eq!(lens(65_507, None, false), [(65_507, None)]);
    }

    #[test]
    fn joined_datagrams_go_together_as_far_as_a_send_takes_them() {
        assert_eq!(lens(2_500, Some(1_200), true), [(2_500, Some(1_200))]);
        let singly = [(1_200, None), (1_200, None), (100, None)];
        assert_eq!(lens(2_500, Some(1_200), false), singly);
        assert_eq!(lens(101, Some(1), true), [(64, Some(1)), (37, Some(1))]);
        assert_eq!(lens(65, Some(1), true), [(64, Some(1)), (1, None)]);
        let most = MOST_BYTES / 9_000 * 9_000;
        let two = [(most, Some(9_000)), (65_535 - most, None)];
        assert_eq!(lens(65_535, Some(9_000), true), two);
        let longest = [(65_510, None), (25, None)];
        assert_eq!(lens(65_535, Some(65_510), true), longest);
    }

    #[test]
    fn headers_stand_before_each_datagram_or_before_the_first() {
        let parcel = Parcel {
            bytes: b"aabbc",
            segment: Some(2),
        };
        let (all, rest) = parcel.announce(b"H", true);
        assert_eq!((&all.bytes[..], all.segment), (&b"HaaHbbHc"[..], Some(3)));
        assert!(rest.is_none());
        let (first, rest) = parcel.announce(b"H", false);
        assert_eq!((&first.bytes[..], first.segment), (&b"Haa"[..], None));
        let rest = rest.expect("there is more");
        assert_eq!((rest.bytes, rest.segment), (&b"bbc"[..], Some(2)));
        let empty = Parcel {
            bytes: b"",
            segment: None,
        };
        for every in [true, false] {
            let (announced, rest) = empty.announce(b"H", every);
            assert_eq!((&announced.bytes[..], rest.is_none()), (&b"H"[..], true));
        }
    }

    #[test]
    fn a_parcel_knows_its_datagrams() {
        let bytes = [0; 2_500];
        let parcel = Parcel {
            bytes: &bytes,
            segment: Some(1_200),
        };
        assert_eq!(parcel.count(), 3);
        assert_eq!(parcel.first(2).bytes.len(), 2_400);
        assert_eq!(parcel.first(9).bytes.len(), 2_500);
        assert_eq!(parcel.first(2).count(), 2);
    }
}
