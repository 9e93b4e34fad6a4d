//! What is wrong with a header.

use std::fmt;

/// Why a header is none. Whose fault it is: the sender's, always.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The connection begins with something else.
    NoHeader(Excerpt),
    /// Version 1: this part of the line.
    Line {
        /// What it should be.
        expected: &'static str,
        /// What it is.
        got: Excerpt,
    },
    /// Version 1: the line has not ended when it is as long as it may be.
    LineTooLong,
    /// Version 2: the byte that holds the version is of another one.
    Version(u8),
    /// Version 2: the byte that holds the command has one that isn't assigned.
    Command(u8),
    /// Version 2: the byte that holds family and protocol has a family that isn't assigned.
    Family(u8),
    /// Version 2: the byte that holds family and protocol has a protocol that isn't assigned.
    Protocol(u8),
    /// Version 2: the header is shorter than the addresses of its family.
    Addresses {
        /// Bytes that they take.
        expected: usize,
        /// Bytes that there are.
        got: usize,
    },
    /// Version 2: a TLV goes beyond the header.
    Tlv {
        /// Bytes that it takes from here.
        expected: usize,
        /// Bytes that there are.
        got: usize,
    },
    /// Version 2: the checksum is not of four bytes, but of so many.
    ChecksumLength(usize),
    /// Version 2: there are two checksums.
    TwoChecksums,
    /// Version 2: the checksum is of something else.
    Checksum {
        /// What the header's bytes give.
        expected: u32,
        /// What it says.
        got: u32,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHeader(got) => write!(
                f,
                "expected a PROXY header (version 1 or 2), got {got}; is the sender set to send one?"
            ),
            Self::Line { expected, got } => {
                write!(f, "expected {expected} in the PROXY line, got {got}")
            }
            Self::LineTooLong => f.write_str("expected the PROXY line to end within 107 bytes"),
            Self::Version(byte) => {
                write!(
                    f,
                    "expected a PROXY header of version 2 (0x2_), got {byte:#04x}"
                )
            }
            Self::Command(byte) => write!(
                f,
                "expected the PROXY header's command to be LOCAL (0x20) or PROXY (0x21), got {byte:#04x}"
            ),
            Self::Family(byte) => write!(
                f,
                "expected the PROXY header's address family to be 0 to 3 (0x0_ to 0x3_), got {byte:#04x}"
            ),
            Self::Protocol(byte) => write!(
                f,
                "expected the PROXY header's protocol to be 0 to 2 (0x_0 to 0x_2), got {byte:#04x}"
            ),
            Self::Addresses { expected, got } => write!(
                f,
                "expected a PROXY header with {expected} bytes of addresses, got {got} bytes"
            ),
            Self::Tlv { expected, got } => write!(
                f,
                "expected a TLV that ends within the PROXY header, got one of {expected} bytes where \
                 {got} are left"
            ),
            Self::ChecksumLength(got) => {
                write!(
                    f,
                    "expected a checksum of 4 bytes in the PROXY header, got {got} bytes"
                )
            }
            Self::TwoChecksums => f.write_str("expected one checksum in the PROXY header, got two"),
            Self::Checksum { expected, got } => write!(
                f,
                "expected the PROXY header's checksum to be {expected:#010x}, got {got:#010x}"
            ),
        }
    }
}

impl std::error::Error for Fault {}

/// The beginning of what came; it is written with all that isn't plain text escaped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Excerpt {
    bytes: [u8; EXCERPT_BYTES_MAX],
    len: usize,
    is_cut: bool,
}

impl Excerpt {
    pub(super) fn of(bytes: &[u8]) -> Self {
        let len = bytes.len().min(EXCERPT_BYTES_MAX);
        let mut excerpt = Self {
            bytes: [0; EXCERPT_BYTES_MAX],
            len,
            is_cut: len < bytes.len(),
        };
        excerpt.bytes[..len].copy_from_slice(&bytes[..len]);
        excerpt
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rest = if self.is_cut { "…" } else { "" };
        write!(f, "\"{}{rest}\"", self.bytes[..self.len].escape_ascii())
    }
}

/// As long as an IPv6 address can be.
const EXCERPT_BYTES_MAX: usize = 39;
