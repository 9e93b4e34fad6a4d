//! Version 2: addresses and TLVs behind a head of 16 bytes (section 2.2).

use std::net::{IpAddr, SocketAddr};

use crc32c::crc32c_append;

use super::{Announced, Answer, Excerpt, Fault};

/// The parts of a header one after the other.
///
/// ```text
///   Head ──▶ Addresses ──▶ Tlv ──▶ Skipped ──▶ Tlv … ──▶ end
///     └────▶ Skipped ──────▲ └───▶ Checksum ───▲
/// ```
#[derive(Debug)]
pub(super) struct Binary {
    part: Part,
    /// Bytes of the part.
    size: usize,
    /// Bytes of it that came.
    came: usize,
    /// They themselves, unless it is skipped.
    kept: [u8; ADDRESSES6],
    /// Bytes of the header behind the part.
    behind: usize,
    announced: Announced,
    /// The sender may have put anything behind the head (LOCAL, UNSPEC). What doesn't look like TLVs is
    /// skipped there.
    is_free: bool,
    /// CRC32C of what came, with zeros in place of the checksum.
    crc: u32,
    /// What it should be.
    checksum: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Part {
    /// Signature, version, command, family, protocol and length of the rest.
    Head,
    /// Two addresses and two ports.
    Addresses,
    /// Type and length of a TLV.
    Tlv,
    /// The value of a TLV that holds the checksum.
    Checksum,
    /// Not looked at.
    Skipped,
}

impl Binary {
    pub(super) fn new() -> Self {
        Self {
            part: Part::Head,
            size: HEAD,
            came: 0,
            kept: [0; ADDRESSES6],
            behind: 0,
            announced: Announced::Own,
            is_free: false,
            crc: 0,
            checksum: None,
        }
    }

    /// Returns how many bytes belong to the header, too.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> (usize, Answer) {
        let mut rest = bytes;
        let answer = self.read(&mut rest).transpose();
        (bytes.len() - rest.len(), answer)
    }

    fn read(&mut self, rest: &mut &[u8]) -> Result<Option<Announced>, Fault> {
        loop {
            self.take(rest)?;
            if self.came < self.size {
                return Ok(None);
            }
            if self.enter_next()? {
                return Ok(Some(self.announced));
            }
        }
    }

    /// Takes what is there of the part.
    fn take(&mut self, rest: &mut &[u8]) -> Result<(), Fault> {
        while self.came < self.size && !rest.is_empty() {
            // The head is checked byte by byte, so that what is wrong is found at the same one however
            // they come.
            let most = match self.part {
                Part::Head => 1,
                _ => self.size - self.came,
            };
            let (piece, later) = rest.split_at(most.min(rest.len()));
            *rest = later;
            let came = self.came..self.came + piece.len();
            self.came = came.end;
            if self.part != Part::Skipped {
                self.kept[came].copy_from_slice(piece);
            }
            match self.part {
                Part::Checksum => self.crc = crc32c_append(self.crc, &[0; CHECKSUM][..piece.len()]),
                _ => self.crc = crc32c_append(self.crc, piece),
            }
            if self.part == Part::Head {
                check_head(&self.kept[..self.came])?;
            }
        }
        Ok(())
    }

    /// Goes on behind a part that is complete. Returns whether it was the last one.
    fn enter_next(&mut self) -> Result<bool, Fault> {
        match self.part {
            Part::Head => return self.enter_addresses().map(|()| false),
            Part::Tlv => return self.enter_value().map(|()| false),
            Part::Addresses => self.announced = client(&self.kept[..self.size]),
            Part::Checksum => self.checksum = Some(number(&self.kept[..CHECKSUM])),
            Part::Skipped => {}
        }
        match self.behind {
            0 => self.verify().map(|()| true),
            TLV.. => {
                self.enter(Part::Tlv, TLV);
                Ok(false)
            }
            _ => self.enter_unfit(TLV).map(|()| false),
        }
    }

    fn enter_addresses(&mut self) -> Result<(), Fault> {
        let (command, family) = (self.kept[12] & LOW, self.kept[13]);
        let length = number(&self.kept[14..HEAD]) as usize;
        let addresses = match family >> 4 {
            FAMILY4 => ADDRESSES4,
            FAMILY6 => ADDRESSES6,
            FAMILY_UNIX => ADDRESSES_UNIX,
            _ => 0,
        };
        self.behind = length;
        self.is_free = command == LOCAL || family >> 4 == UNSPEC;
        if self.is_free {
            self.enter(Part::Skipped, addresses.min(length));
        } else if addresses > length {
            return Err(Fault::Addresses {
                expected: addresses,
                got: length,
            });
        } else if [FAMILY4, FAMILY6].contains(&(family >> 4)) && family & LOW == STREAM {
            self.enter(Part::Addresses, addresses);
        } else {
            // A receiver falls back to UNSPEC for what it doesn't support. Addresses of datagrams say nothing
            // about a stream.
            self.enter(Part::Skipped, addresses);
        }
        Ok(())
    }

    fn enter_value(&mut self) -> Result<(), Fault> {
        let (kind, length) = (self.kept[0], number(&self.kept[1..TLV]) as usize);
        if length > self.behind {
            return self.enter_unfit(length);
        }
        let is_checksum = kind == TYPE_CRC32C && !(self.is_free && length != CHECKSUM);
        if !is_checksum {
            self.enter(Part::Skipped, length);
        } else if length != CHECKSUM {
            return Err(Fault::ChecksumLength(length));
        } else if self.checksum.is_some() {
            return Err(Fault::TwoChecksums);
        } else {
            self.enter(Part::Checksum, CHECKSUM);
        }
        Ok(())
    }

    /// Here something would have to be that is longer than what is left.
    fn enter_unfit(&mut self, expected: usize) -> Result<(), Fault> {
        if !self.is_free {
            return Err(Fault::Tlv {
                expected,
                got: self.behind,
            });
        }
        self.enter(Part::Skipped, self.behind);
        Ok(())
    }

    fn enter(&mut self, part: Part, size: usize) {
        self.behind -= size;
        (self.part, self.size, self.came) = (part, size, 0);
    }

    fn verify(&self) -> Result<(), Fault> {
        match self.checksum {
            Some(got) if got != self.crc => Err(Fault::Checksum {
                expected: self.crc,
                got,
            }),
            _ => Ok(()),
        }
    }
}

/// Checks the last byte of a head that was fine before it.
fn check_head(head: &[u8]) -> Result<(), Fault> {
    let [before @ .., byte] = head else {
        return Ok(());
    };
    let is_proxy = before.get(12).is_some_and(|command| command & LOW == PROXY);
    match before.len() {
        0..12 if !SIGNATURE.starts_with(head) => Err(Fault::NoHeader(Excerpt::of(head))),
        12 if byte >> 4 != VERSION => Err(Fault::Version(*byte)),
        12 if ![LOCAL, PROXY].contains(&(byte & LOW)) => Err(Fault::Command(*byte)),
        // LOCAL goes with anything.
        13 if is_proxy && byte >> 4 > FAMILY_UNIX => Err(Fault::Family(*byte)),
        13 if is_proxy && byte & LOW > DGRAM => Err(Fault::Protocol(*byte)),
        _ => Ok(()),
    }
}

/// Two addresses of the family whose size it is, then two ports.
fn client(addresses: &[u8]) -> Announced {
    let (ips, ports) = addresses.split_at(addresses.len() - 4);
    let (source, destination) = ips.split_at(ips.len() / 2);
    let (source_port, destination_port) = ports.split_at(2);
    let socket = |ip: &[u8], port: &[u8]| SocketAddr::new(address(ip), number(port) as u16);
    Announced::client(
        socket(source, source_port),
        socket(destination, destination_port),
    )
}

fn address(bytes: &[u8]) -> IpAddr {
    let wide = || <[u8; 16]>::try_from(bytes).expect("an address has 4 or 16 bytes");
    <[u8; 4]>::try_from(bytes).map_or_else(|_| wide().into(), IpAddr::from)
}

/// Of at most four bytes, the highest first.
fn number(bytes: &[u8]) -> u32 {
    bytes
        .iter()
        .fold(0, |number, byte| number << 8 | u32::from(*byte))
}

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The lower half of a byte that holds two fields.
const LOW: u8 = 0x0f;
const VERSION: u8 = 2;
const LOCAL: u8 = 0;
const PROXY: u8 = 1;
const UNSPEC: u8 = 0;
const FAMILY4: u8 = 1;
const FAMILY6: u8 = 2;
const FAMILY_UNIX: u8 = 3;
const STREAM: u8 = 1;
const DGRAM: u8 = 2;
const TYPE_CRC32C: u8 = 3;
/// Bytes of the parts.
const HEAD: usize = 16;
const ADDRESSES4: usize = 12;
const ADDRESSES6: usize = 36;
const ADDRESSES_UNIX: usize = 216;
const TLV: usize = 3;
const CHECKSUM: usize = 4;
