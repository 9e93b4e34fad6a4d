//! ringress: a TCP/UDP reverse proxy and load balancer on io_uring, thread per core.

pub mod address;
pub mod config;
#[allow(
    unsafe_code,
    reason = "the only module that speaks to the kernel by pointers; every block says why it holds"
)]
pub mod ring;
pub mod time;
