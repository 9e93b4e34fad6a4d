//! Host names of backends become addresses when a configuration is loaded. A trait, because tests and
//! the fuzzer must not ask a name server.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

/// Knows the addresses of a host name.
pub trait Resolver {
    /// All addresses of `host`, each with `port`. None is treated like an error.
    fn resolve(&mut self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

impl<F> Resolver for F
where
    F: FnMut(&str, u16) -> io::Result<Vec<SocketAddr>>,
{
    fn resolve(&mut self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        self(host, port)
    }
}

/// Asks the system: /etc/hosts, then name servers. Blocks.
#[derive(Clone, Copy, Debug)]
pub struct SystemResolver;

impl Resolver for SystemResolver {
    fn resolve(&mut self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok((host, port).to_socket_addrs()?.collect())
    }
}
