//! Lists of networks that clients come from.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, ip_mask_to_prefix};
use toml::de::DeValue;

use super::diagnostics::Fault;
use super::section::{Findings, Section};
use super::value::{self, Read};

/// The networks in `key`: a list, which may be empty, or a single one. They may overlap and repeat, as
/// lists that are put together from several sources do.
pub(super) fn read(section: &Section<'_>, key: &str, findings: &mut Findings) -> Vec<IpNet> {
    let Some(value) = section.value(key) else {
        return Vec::new();
    };
    let entries = match value.get_ref() {
        DeValue::Array(list) => list.iter().collect(),
        _ => vec![value],
    };
    let mut networks = Vec::with_capacity(entries.len());
    for entry in entries {
        let network = value::string(entry.get_ref())
            .map_err(|_| value::wrong_type(entry.get_ref(), NETWORKS_FORM))
            .and_then(network);
        networks.extend(findings.keep(entry.span(), network));
    }
    networks
}

const NETWORKS_FORM: &str =
    "a network like \"10.0.0.0/8\" or \"2001:db8::/32\", an IP address, or a list of them";

/// An address alone is the network that holds nothing else.
fn network(text: &str) -> Read<IpNet> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address: IpAddr = address
        .parse()
        .map_err(|_| Fault::new(format!("{text:?} is not a network")).expected(NETWORKS_FORM))?;
    let prefix = match prefix {
        Some(prefix) => length(text, address, prefix)?,
        None => longest(address),
    };
    let written = IpNet::new_assert(address, prefix);
    let network = written.trunc();
    if let Some(ipv4) = mapped(network) {
        return Err(Fault::new(format!("{text:?} holds IPv4 addresses only"))
            .expected("an IPv4 network: clients over IPv4 have IPv4 addresses on every listener")
            .hint(format!("did you mean {:?}?", ipv4.to_string())));
    }
    if network != written {
        return Err(
            Fault::new(format!("{text:?} has bits set behind its prefix"))
                .expected("the first address of the network")
                .hint(format!("did you mean {:?}?", network.to_string())),
        );
    }
    Ok(network)
}

/// Bits of the prefix. Digits only: "+8" and "" would be numbers to a lenient reader.
fn length(text: &str, address: IpAddr, prefix: &str) -> Read<u8> {
    let most = longest(address);
    let digits = prefix.bytes().all(|c| c.is_ascii_digit());
    match prefix.parse::<u8>() {
        Ok(length) if digits && length <= most => Ok(length),
        _ => {
            let fault = Fault::new(format!("{text:?} is not a network"))
                .expected(format!("a prefix from /0 to /{most}"));
            let mask = prefix.parse().ok().map(ip_mask_to_prefix);
            Err(match mask {
                Some(Ok(length)) if length <= most => {
                    let network = IpNet::new_assert(address, length).trunc();
                    fault.hint(format!("did you mean {:?}?", network.to_string()))
                }
                _ => fault,
            })
        }
    }
}

fn longest(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// The IPv4 network that `::ffff:0:0/96` holds under this name.
fn mapped(network: IpNet) -> Option<Ipv4Net> {
    let IpNet::V6(network) = network else {
        return None;
    };
    let length = network.prefix_len().checked_sub(96)?;
    Ipv4Net::new(network.network().to_ipv4_mapped()?, length).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_displayed_as_it_was_written() {
        for text in [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.1.2.3/32",
            "::/0",
            "2001:db8::/32",
            "::1/128",
            "::/95",
        ] {
            assert_eq!(network(text).map(|it| it.to_string()), Ok(text.to_owned()));
        }
        assert_eq!(network("10.1.2.3"), network("10.1.2.3/32"));
        assert_eq!(network("2001:DB8::1"), network("2001:db8::1/128"));
    }

    #[test]
    fn what_is_no_network_says_which_was_meant() {
        for (text, meant) in [
            ("10.0.0.1/8", "10.0.0.0/8"),
            ("2001:db8::1/32", "2001:db8::/32"),
            ("0.0.0.1/0", "0.0.0.0/0"),
            ("10.0.0.0/255.0.0.0", "10.0.0.0/8"),
            ("10.0.0.1/255.255.255.0", "10.0.0.0/24"),
            ("2001:db8::/ffff:ffff::", "2001:db8::/32"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:10.0.0.1/104", "10.0.0.0/8"),
            ("::ffff:10.0.0.1", "10.0.0.1/32"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
        ] {
            let shown = format!("{:?}", network(text).expect_err(text));
            assert!(
                shown.contains(&format!("did you mean \\\"{meant}\\\"?")),
                "{shown}"
            );
        }
    }

    #[test]
    fn nothing_else_is_a_network() {
        for text in [
            "",
            "/8",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/-1",
            "10.0.0.0/8/8",
            "10.0.0.0/256.0.0.0",
            "10.0.0.0/255.0.255.0",
            "10.0.0.0/ffff::",
            "10.0/16",
            "010.0.0.1",
            "10.0.0.*",
            "10.0.0.1:80",
            "::/129",
            "fe80::1%eth0",
            "[::1]",
            " 10.0.0.1",
            "all",
            "localhost",
        ] {
            let fault = network(text).expect_err(text);
            assert!(format!("{fault:?}").contains("is not a network"), "{text}");
        }
    }
}
