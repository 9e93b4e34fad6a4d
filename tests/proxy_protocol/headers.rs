//! Headers by hand: in pieces, with everything that may be in one, from those who may not send one, and bad
//! ones.

use std::io::{Read, Write};

use crate::common::socket::{ending_after, ending_of, finish};
use crate::common::system::taken_by_the_other_end;
use crate::common::{Backend, Ending, Proxy, config, ending, now, read_to_end, told};
use crate::{TRUSTING, binary, binary_client, line, own_address, says, taking};

const CLIENT: &str = "192.0.2.7:4000";

fn client_line() -> Vec<u8> {
    line(CLIENT, "198.51.100.1:443")
}

/// Types and values of TLVs, as a header has them.
fn tlvs(list: &[(u8, &[u8])]) -> Vec<u8> {
    let one = |(kind, value): &(u8, &[u8])| {
        let length = (value.len() as u16).to_be_bytes();
        [&[*kind], &length[..], value].concat()
    };
    list.iter().map(one).collect::<Vec<_>>().concat()
}

#[test]
fn a_header_is_taken_off_and_what_follows_reaches_the_backend() {
    let (backend, heard) = Backend::recording("heard");
    let mut proxy = taking(&[&backend.address], "", "");
    let many: Vec<(u8, &[u8])> = vec![
        (0x01, b"h2"),
        (0x02, b"a.test\r\nGET / HTTP/1.1"),
        (0x04, &[0; 300]),
        (0x05, b"a unique name"),
        (0x20, b"\x07\0\0\0\0\x21\0\x07TLSv1.3"),
        (0x30, b"blue"),
        (0xee, b"whatever"),
        (0x04, b""),
    ];
    for header in [
        client_line(),
        binary_client(b""),
        binary_client(&tlvs(&many)),
        binary_client(&tlvs(&[(0xe0, &[b'x'; 5000])])),
    ] {
        // In one segment, with nothing behind it, and byte by byte.
        assert_eq!(says(&proxy, &[&header[..], b"payload"].concat()), b"heard");
        assert_eq!(told(&heard), b"payload");
        assert_eq!(says(&proxy, &header), b"heard");
        assert_eq!(told(&heard), b"");
        for session in proxy.next_sessions(2) {
            assert_eq!(
                (session.reason.as_str(), session.client.as_str()),
                ("client-closed", CLIENT)
            );
        }
    }
    for header in [client_line(), binary_client(&tlvs(&many[..2]))] {
        let mut client = proxy.connect();
        client.set_tcp_nodelay(true).expect("it can be set");
        for (at, byte) in header.iter().chain(b"pay").enumerate() {
            client.write_all(&[*byte]).expect("it is taken");
            // It takes a while to look.
            if at % 16 == 0 {
                taken_by_the_other_end(&client);
            }
        }
        client.write_all(b"load").expect("it is taken");
        finish(&client);
        assert_eq!(read_to_end(&mut client), b"heard");
        assert_eq!(told(&heard), b"payload");
        assert_eq!(proxy.next_session().client, CLIENT);
    }
    proxy.end();
}

#[test]
fn a_checksum_is_checked() {
    let (backend, heard) = Backend::recording("heard");
    let mut proxy = taking(&[&backend.address], "", "");
    let mut header = binary_client(&tlvs(&[(0x03, &[0; 4])]));
    let at = header.len() - 4;
    let sum = crc32c::crc32c(&header);
    header[at..].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(says(&proxy, &[&header[..], b"payload"].concat()), b"heard");
    assert_eq!(told(&heard), b"payload");
    assert_eq!(proxy.next_session().reason, "client-closed");
    header[at] ^= 1;
    let mut client = proxy.connect();
    client.write_all(&header).expect("it is taken");
    assert_eq!(ending(&mut client), Ending::Reset);
    let session = proxy.next_session();
    assert_eq!(session.reason, "bad-proxy-header");
    assert!(session.detail.contains("checksum"), "{}", session.detail);
    proxy.end();
}

#[test]
fn where_no_client_is_named_it_is_the_connections_own() {
    let (backend, heard) = Backend::recording("heard");
    let mut proxy = taking(&[&backend.address], "", "");
    for header in [
        b"PROXY UNKNOWN\r\n".to_vec(),
        b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n".to_vec(),
        binary(0, 0x00, b"", b""),
        binary(0, 0x11, &[1; 12], &tlvs(&[(0xee, b"x")])),
        binary(1, 0x00, b"", b""),
        binary(1, 0x31, &[0; 216], b""),
    ] {
        let mut client = proxy.connect();
        let own = own_address(&client);
        client
            .write_all(&[&header[..], b"payload"].concat())
            .expect("it is taken");
        finish(&client);
        assert_eq!(read_to_end(&mut client), b"heard", "{header:?}");
        assert_eq!(told(&heard), b"payload");
        let session = proxy.next_session();
        assert_eq!(
            (session.reason.as_str(), session.client),
            ("client-closed", own.to_string())
        );
    }
    proxy.end();
}

#[test]
fn a_header_from_somebody_else_is_refused_and_counted() {
    let backend = Backend::echo();
    let listener = "accept_proxy_protocol = \"require\"\ntrusted_proxies = [\"127.0.0.2/32\"]\n";
    let mut proxy = Proxy::start(&config(&[&backend.address], listener, "", ""));
    for bytes in [client_line(), binary_client(b""), b"no header".to_vec()] {
        let mut client = proxy.connect();
        assert_eq!(ending_after(&mut client, &bytes), Ending::Reset);
        let session = proxy.next_session();
        assert_eq!(session.reason, "untrusted-proxy");
        assert!(
            session.client.starts_with("127.0.0.1:"),
            "{}",
            session.client
        );
    }
    // Whoever says nothing is not waited for.
    let began = now();
    assert_eq!(ending(&mut proxy.connect()), Ending::Reset);
    assert!(began.elapsed().as_secs() < 5);
    assert_eq!(backend.accepted(), 0);
    let status = proxy.status();
    let listener = crate::common::commands::named(&status["listeners"], "web");
    assert_eq!(listener["closed"]["untrusted-proxy"], 4, "{listener}");
    proxy.end();
}

#[test]
fn bad_headers_are_refused_in_words() {
    let backend = Backend::echo();
    let mut proxy = taking(&[&backend.address], "", "");
    let long = format!("PROXY TCP4 {}\r\n", "1".repeat(200));
    let overrun = binary_client(b"\x01\0\x09short");
    let two_sums = tlvs(&[(0x03, &[0; 4]), (0x03, &[0; 4])]);
    for (bytes, words) in [
        (
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            "is the sender set to send one?",
        ),
        (
            b"\x16\x03\x01\x02\x00\x01",
            "is the sender set to send one?",
        ),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n", "port"),
        (b"PROXY TCP4 1.2.3 5.6.7.8 1 2\r\n", "address"),
        (b"PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n", "address"),
        (b"PROXY TCP5 1.2.3.4 5.6.7.8 1 2\r\n", "TCP4"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n1234567890", "PROXY line"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\0\r\n", "text"),
        (long.as_bytes(), "107 bytes"),
        (b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c", "version 2"),
        (b"\r\n\r\n\0\r\nQUIT\n\x22\x11\0\x0c", "command"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x41\0\x0c", "family"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0b", "bytes of addresses"),
        (&overrun, "TLV"),
        (&binary_client(&two_sums), "checksum"),
    ] {
        let mut client = proxy.connect();
        client.write_all(bytes).expect("it is taken");
        let what = String::from_utf8_lossy(bytes);
        assert_eq!(ending(&mut client), Ending::Reset, "{what}");
        let session = proxy.next_session();
        assert_eq!(session.reason, "bad-proxy-header", "{what}");
        assert!(session.detail.contains(words), "{what}: {}", session.detail);
        assert!(
            session.client.starts_with("127.0.0.1:"),
            "{}",
            session.client
        );
    }
    // What was sent stands in the log, escaped.
    let mut client = proxy.connect();
    client
        .write_all(b"PROXY TCP4 \x1b[31mforged\r\n")
        .expect("it is taken");
    assert_eq!(ending(&mut client), Ending::Reset);
    let detail = proxy.next_session().detail;
    assert!(
        !detail.contains('\x1b') && !detail.contains('\n'),
        "{detail}"
    );
    assert_eq!(backend.accepted(), 0);
    proxy.end();
}

#[test]
fn a_header_that_does_not_come_to_its_end_is_told_apart() {
    let backend = Backend::echo();
    let timeouts = "timeouts = { handshake = \"300ms\" }";
    let mut proxy = taking(&[&backend.address], timeouts, "");
    for header in [client_line(), binary_client(&tlvs(&[(0xee, b"whatever")]))] {
        for sent in [0, 1, 13, header.len() - 1] {
            let began = now();
            let mut client = proxy.connect();
            client.write_all(&header[..sent]).expect("it is taken");
            assert_eq!(ending(&mut client), Ending::Reset);
            assert!((250..3000).contains(&began.elapsed().as_millis()));
            assert_eq!(proxy.next_session().reason, "handshake-timeout", "{sent}");

            let mut client = proxy.connect();
            client.write_all(&header[..sent]).expect("it is taken");
            finish(&client);
            let outcome = client.read(&mut [0]);
            outcome
                .map_err(|error| ending_of(&error))
                .expect_err("a reset");
            assert_eq!(proxy.next_session().reason, "client-left", "{sent}");
        }
    }
    assert_eq!(backend.accepted(), 0);
    proxy.end();
}

#[test]
fn unix_sockets_are_trusted_by_who_may_connect_to_them() {
    let (backend, heard) = Backend::recording("heard");
    let folder = tempfile::tempdir().expect("a folder");
    let bind = format!("unix:{}", folder.path().join("in").display());
    let listener = format!("bind = {bind:?}\n{TRUSTING}");
    let upstream = "send_proxy_protocol = \"v1\"";
    let mut proxy = Proxy::start(&config(&[&backend.address], &listener, upstream, ""));
    let mut client = crate::common::connect(&bind);
    client
        .write_all(&[client_line(), b"payload".to_vec()].concat())
        .expect("it is taken");
    finish(&client);
    assert_eq!(read_to_end(&mut client), b"heard");
    let expected = [client_line(), b"payload".to_vec()].concat();
    assert_eq!(told(&heard), expected);
    assert_eq!(proxy.next_session().client, CLIENT);
    // Without a header nothing is known of the client.
    let mut client = crate::common::connect(&bind);
    client
        .write_all(b"PROXY UNKNOWN\r\npayload")
        .expect("it is taken");
    finish(&client);
    assert_eq!(read_to_end(&mut client), b"heard");
    assert_eq!(told(&heard), b"PROXY UNKNOWN\r\npayload");
    proxy.end();
}

#[test]
fn a_header_is_sent_before_anything_else_of_what_was_announced_or_is_so() {
    let (backend, heard) = Backend::recording("heard");
    for (version, expected) in [
        ("v1", line(CLIENT, "198.51.100.1:443")),
        ("v2", binary_client(b"")),
    ] {
        let upstream = format!("send_proxy_protocol = {version:?}");
        let proxy = taking(&[&backend.address], "", &upstream);
        // Nothing of a TLV goes on.
        for header in [
            client_line(),
            binary_client(&tlvs(&[(0x02, b"a.test"), (0xee, b"x")])),
        ] {
            assert_eq!(says(&proxy, &[&header[..], b"payload"].concat()), b"heard");
            assert_eq!(told(&heard), [&expected[..], b"payload"].concat());
        }
        proxy.end();

        // Whoever is not asked for a header and sends one is a client that says so.
        let tables = "[runtime]\nworkers = 2\n";
        let proxy = Proxy::start(&config(&[&backend.address], "", &upstream, tables));
        let mut client = proxy.connect();
        let (own, to) = (own_address(&client), proxy.address("web"));
        client.write_all(&client_line()).expect("it is taken");
        finish(&client);
        assert_eq!(read_to_end(&mut client), b"heard");
        let to: std::net::SocketAddrV4 = to.parse().expect("an IPv4 address");
        let sent = match version {
            "v1" => line(&own.to_string(), &to.to_string()),
            _ => {
                let mut addresses = [127, 0, 0, 1, 127, 0, 0, 1, 0, 0, 0, 0];
                addresses[8..10].copy_from_slice(&own.port().to_be_bytes());
                addresses[10..].copy_from_slice(&to.port().to_be_bytes());
                binary(1, 0x11, &addresses, b"")
            }
        };
        assert_eq!(told(&heard), [sent, client_line()].concat());
        proxy.end();
    }
}
