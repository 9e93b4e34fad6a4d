//! PROXY protocol: how a backend is told who the client is
//! (<https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>).

use std::net::{IpAddr, SocketAddr};

use ppp::v2::{Builder, Command, Protocol, Version};

/// A version 2 header for a datagram of `client` to `destination`. Of two families both are written as
/// IPv6.
pub fn of_datagram(client: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (client, destination) = same_family(client, destination);
    let addresses = (client, destination);
    let command = Version::Two | Command::Proxy;
    let built = Builder::with_addresses(command, Protocol::Datagram, addresses).build();
    built.expect("two addresses fit into a header")
}

fn same_family(client: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
    let plain = |it: SocketAddr| SocketAddr::new(it.ip().to_canonical(), it.port());
    let (client, destination) = (plain(client), plain(destination));
    if client.is_ipv4() == destination.is_ipv4() {
        return (client, destination);
    }
    let mapped = |it: SocketAddr| match it.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), it.port()),
        IpAddr::V6(_) => it,
    };
    (mapped(client), mapped(destination))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(client: &str, destination: &str) -> Vec<u8> {
        let address = |text: &str| text.parse().expect("an address");
        of_datagram(address(client), address(destination))
    }

    #[test]
    fn a_header_is_as_the_specification_has_it() {
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        expected.extend([
            0x21, 0x12, 0, 12, 192, 0, 2, 7, 10, 0, 0, 1, 0x14, 0xe9, 0, 53,
        ]);
        assert_eq!(header("192.0.2.7:5353", "10.0.0.1:53"), expected);
        let mapped = header("[::ffff:192.0.2.7]:5353", "[::ffff:10.0.0.1]:53");
        assert_eq!(mapped, expected);
    }

    #[test]
    fn ipv6_and_mixed_addresses_are_written_as_ipv6() {
        let six = header("[2001:db8::7]:5353", "[2001:db8::1]:53");
        assert_eq!((six[13], six[15], six.len()), (0x22, 36, 52));
        let mixed = header("192.0.2.7:5353", "[2001:db8::1]:53");
        assert_eq!(mixed[13], 0x22);
        assert_eq!(mixed[26..32], [0xff, 0xff, 192, 0, 2, 7]);
    }
}
