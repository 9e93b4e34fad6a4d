//! `ringress demo`: the quickstart configuration with its backends brought along.

mod backend;

use std::net::{SocketAddr, TcpListener};

use super::{Error, load_text, print, serve};
use crate::address::Address;
use crate::config::Config;

#[derive(clap::Args, Debug)]
pub(super) struct Arguments {
    /// Where to listen; port 0 = the kernel chooses
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Error> {
    let mut config = load_text(QUICKSTART, "conf/quickstart.toml")?;
    let listen = listening_address(&mut config, arguments.listen)?;
    start_backends(&mut config)?;
    // The proxy is worth running even when nobody reads what to try.
    let _ = print(&what_to_try(listen, &config));
    serve(config, None)
}

/// Puts the address wanted into the configuration, or keeps the one there, after making sure that
/// it can be had: the demo has better advice for a taken port than the proxy.
fn listening_address(config: &mut Config, wanted: Option<SocketAddr>) -> Result<SocketAddr, Error> {
    let bind = &mut config.listeners[0].bind;
    let wanted = wanted
        .or_else(|| bind[0].as_ip())
        .expect("the quickstart listens on an IP address");
    let address = TcpListener::bind(wanted)
        .and_then(|listener| listener.local_addr())
        .map_err(|error| Error::Address(wanted.to_string(), error))?;
    *bind = vec![address.into()];
    Ok(address)
}

/// Starts a backend on each address of the upstream; where a port is taken the kernel chooses one.
fn start_backends(config: &mut Config) -> Result<(), Error> {
    for (index, backend) in config.upstreams[0].backends.iter_mut().enumerate() {
        let wanted = backend
            .address
            .as_ip()
            .expect("the quickstart's backends have IP addresses");
        let address = TcpListener::bind(wanted)
            .or_else(|_| TcpListener::bind((wanted.ip(), 0)))
            .and_then(|listener| {
                let address = listener.local_addr()?;
                backend::start(listener, format!("backend-{}", index + 1))?;
                Ok(address)
            })
            .map_err(|error| Error::Address(wanted.to_string(), error))?;
        backend.name = address.to_string().into();
        backend.address = Address::Ip(address);
    }
    Ok(())
}

fn what_to_try(listen: SocketAddr, config: &Config) -> String {
    let backends: Vec<_> = config.upstreams[0]
        .backends
        .iter()
        .map(|backend| backend.address.to_string())
        .collect();
    format!(
        "ringress demo: {listen} in front of three backends ({}).\n\
         Try this in another terminal, and see them take turns:\n\n    \
         for i in 1 2 3 4 5 6; do curl -s http://{listen}; done\n\n\
         Ctrl-C ends it. `ringress init` prints a configuration to start from.\n",
        backends.join(", ")
    )
}

const QUICKSTART: &str = include_str!("../../conf/quickstart.toml");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quickstart_has_one_listener_and_three_backends() {
        let table: toml::Table = QUICKSTART.parse().expect("it is TOML");
        assert_eq!(
            table["listeners"]["web"]["bind"].as_str(),
            Some("127.0.0.1:8080")
        );
        let backends = table["upstreams"]["app"]["backends"]
            .as_array()
            .expect("a list");
        for (backend, port) in backends.iter().zip(9001..=9003) {
            assert_eq!(backend.as_str(), Some(format!("127.0.0.1:{port}").as_str()));
        }
        assert_eq!(backends.len(), 3);
    }
}
