//! `ringress-bench backend ADDRESS`: something to put load on.

use std::net::SocketAddr;

use super::{print, tcp};
use crate::backend::{self, Service};
use crate::{Error, local};

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// ip:port to listen on; port 0 = the kernel's choice, which is printed
    address: SocketAddr,
    /// Send back what comes (the default)
    #[arg(long, group = "service")]
    echo: bool,
    /// Take eight bytes, a big-endian number, and send that many bytes of a counted pattern
    #[arg(long, group = "service")]
    download: bool,
    /// Run on this CPU only
    #[arg(long)]
    cpu: Option<usize>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Error> {
    tcp::pin(arguments.cpu)?;
    local::room_for(1)?;
    let ring = local::ring()?;
    let service = match arguments.download {
        true => Service::Download,
        false => Service::Echo,
    };
    let address = backend::start(&ring, arguments.address, service)?;
    print(&format!("listening on {address}\n"))?;
    loop {
        local::turn(&ring)?;
    }
}
