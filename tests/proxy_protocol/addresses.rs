//! The address in a header is the client's wherever a client's address counts.

use std::collections::HashMap;
use std::io::{Read, Write};

use crate::common::socket::{ending_of, finish};
use crate::common::{Backend, Ending, Proxy, config, read_to_end};
use crate::{TRUSTING, line, own_address, taking};

/// What the backend says to this client, or that the client is reset.
fn hears(proxy: &Proxy, client: &str) -> Result<String, Ending> {
    let mut socket = proxy.connect();
    let to = if client.starts_with('[') {
        "[2001:db8::1]:443"
    } else {
        "198.51.100.1:443"
    };
    let mut said = String::new();
    // It may be refused by now.
    let written = socket.write_all(&line(client, to));
    let heard = written.and_then(|()| socket.read_to_string(&mut said));
    heard.map(|_| said).map_err(|error| ending_of(&error))
}

#[test]
fn lists_of_networks_go_by_it() {
    let backend = Backend::named("here");
    let lists = "allow = [\"192.0.2.0/24\", \"2001:db8::/32\"]\ndeny = [\"192.0.2.128/25\"]";
    let mut proxy = taking(&[&backend.address], lists, "");
    for (client, is_welcome) in [
        ("192.0.2.7:1", true),
        ("192.0.2.200:1", false),
        ("198.51.100.7:1", false),
        ("[2001:db8::7]:1", true),
        ("[2001:db9::7]:1", false),
        // As which the proxy in front of it is known.
        ("127.0.0.1:1", false),
    ] {
        let expected = match is_welcome {
            true => Ok("here".to_owned()),
            false => Err(Ending::Reset),
        };
        assert_eq!(hears(&proxy, client), expected, "{client}");
        let session = proxy.next_session();
        assert_eq!(session.client, client);
        assert_eq!(
            session.reason == "denied",
            !is_welcome,
            "{client}: {}",
            session.reason
        );
    }
    proxy.end();
}

#[test]
fn limits_per_address_count_it() {
    let backend = Backend::named("here");
    let limit = "rate_limit = { connections_per_ip = { rate = 1, burst = 2 } }";
    let mut proxy = taking(&[&backend.address], limit, "");
    let mut refused = HashMap::new();
    for client in ["192.0.2.1:1", "192.0.2.2:1", "192.0.2.1:2", "192.0.2.2:2"] {
        assert_eq!(hears(&proxy, client).as_deref(), Ok("here"), "{client}");
        assert_ne!(proxy.next_session().reason, "client-rate-limit");
    }
    for client in ["192.0.2.1:3", "192.0.2.1:4", "192.0.2.2:3", "192.0.2.2:4"] {
        let _ = hears(&proxy, client);
        let session = proxy.next_session();
        if session.reason == "client-rate-limit" {
            let ip = client.split(':').next().expect("an address");
            *refused.entry(ip).or_insert(0) += 1;
        }
    }
    // One more may have come back meanwhile.
    assert!(
        refused["192.0.2.1"] >= 1 && refused["192.0.2.2"] >= 1,
        "{refused:?}"
    );
    assert_eq!(hears(&proxy, "192.0.2.3:1").as_deref(), Ok("here"));
    proxy.end();
}

#[test]
fn balancing_by_address_goes_by_it() {
    let backends = [
        Backend::named("one"),
        Backend::named("two"),
        Backend::named("three"),
    ];
    let addresses = backends.each_ref().map(|it| it.address.as_str());
    let proxy = taking(&addresses, "", "balance = \"ip-hash\"");
    let mut seen = HashMap::<String, Vec<u32>>::new();
    for client in 0..60 {
        let of = |port: u32| hears(&proxy, &format!("192.0.2.{client}:{port}"));
        let first = of(1).expect("it is served");
        assert_eq!(of(2).as_ref(), Ok(&first), "the same client");
        seen.entry(first).or_default().push(client);
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
    proxy.end();
}

#[test]
fn addresses_of_ipv6_pass_both_ways() {
    let (backend, heard) = Backend::recording("heard");
    let to = "[2001:db8::1]:443";
    let listener = format!("bind = \"[::1]:0\"\n{TRUSTING}");
    for version in ["v1", "v2"] {
        let upstream = format!("send_proxy_protocol = {version:?}");
        let mut proxy = Proxy::start(&config(&[&backend.address], &listener, &upstream, ""));
        let header = line("[2001:db8::7]:4000", to);
        assert_eq!(
            crate::says(&proxy, &[&header[..], b"payload"].concat()),
            b"heard"
        );
        let sent = crate::common::told(&heard);
        assert_eq!(proxy.next_session().client, "[2001:db8::7]:4000");
        let expected = match version {
            "v1" => header,
            _ => {
                let ip = |last: u8| [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last];
                let ports = [0x0f, 0xa0, 0x01, 0xbb];
                crate::binary(1, 0x21, &[&ip(7)[..], &ip(1), &ports].concat(), b"")
            }
        };
        assert_eq!(sent, [&expected[..], b"payload"].concat());
        proxy.end();
    }
    // IPv4 at a listener for both families is told as IPv4.
    let listener = "bind = \"[::]:0\"\nipv6_only = false";
    let upstream = "send_proxy_protocol = \"v1\"";
    let proxy = Proxy::start(&config(&[&backend.address], listener, upstream, ""));
    let port = proxy
        .address("web")
        .rsplit_once(':')
        .expect("a port")
        .1
        .to_owned();
    let to = format!("127.0.0.1:{port}");
    let mut client = crate::common::connect(&to);
    let own = own_address(&client).to_string();
    finish(&client);
    assert_eq!(read_to_end(&mut client), b"heard");
    assert_eq!(crate::common::told(&heard), line(&own, &to));
    proxy.end();
}
