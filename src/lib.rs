//! ringress: a TCP/UDP reverse proxy and load balancer on io_uring, thread per core.

pub mod address;
pub mod cli;
pub mod config;
pub mod control;
pub mod policy;
pub mod proto;
pub mod proxy;
#[allow(
    unsafe_code,
    reason = "the only module that speaks to the kernel by pointers; every block says why it holds"
)]
pub mod ring;
mod settled;
pub mod telemetry;
pub mod time;
pub mod tls;
pub mod upstream;
