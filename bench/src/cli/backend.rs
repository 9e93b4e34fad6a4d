//! `ringress-bench backend ADDRESS`: something to put load on.

use std::net::SocketAddr;

use super::{print, tcp};
use crate::backend::{self, Service};
use crate::{Error, local, udp};

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
    /// Send back the datagrams that come
    #[arg(long, group = "service")]
    udp: bool,
    /// Count the datagrams of bursts and acknowledge each burst; send bursts to who asks
    #[arg(long, group = "service")]
    udp_bursts: bool,
    /// Run on this CPU only
    #[arg(long)]
    cpu: Option<usize>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Error> {
    tcp::pin(arguments.cpu)?;
    local::room_for(1)?;
    let of_datagrams = match (arguments.udp, arguments.udp_bursts) {
        (true, _) => Some(udp::Service::Echo),
        (_, true) => Some(udp::Service::Bursts),
        _ => None,
    };
    if let Some(service) = of_datagrams {
        let backend = udp::Backend::new(arguments.address, service)?;
        print(&format!("listening on {}\n", backend.address()))?;
        return udp::serve(backend);
    }
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
