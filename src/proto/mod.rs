//! Formats that peers and the kernel speak: parsers and writers that are fed bytes. No I/O.

pub mod client_hello;
pub mod datagram;
pub mod proxy_header;
pub mod records;
