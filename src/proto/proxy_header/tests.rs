use ppp::v2::{AddressFamily, Type, WriteToHeader};
use proptest::prelude::*;

use super::*;

fn socket(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn header(client: &str, destination: &str) -> Vec<u8> {
    of_datagram(socket(client), socket(destination))
}

fn client(source: &str, destination: &str) -> Progress {
    let (source, destination) = (socket(source), socket(destination));
    Progress::Done(Announced::Client {
        source,
        destination,
    })
}

const OWN: Progress = Progress::Done(Announced::Own);

fn read(bytes: &[u8]) -> Progress {
    HeaderReader::new().feed(bytes).progress
}

/// What it says about bytes that are no header.
fn fault(bytes: &[u8]) -> Fault {
    match read(bytes) {
        Progress::Bad(fault) => fault,
        other => panic!("{}: {other:?}", bytes.escape_ascii()),
    }
}

/// It is a header whose every byte belongs to it, and no other does.
fn is_whole(header: &[u8]) -> Progress {
    for len in 0..header.len() {
        let fed = HeaderReader::new().feed(&header[..len]);
        assert_eq!((fed.used, fed.progress), (len, Progress::More));
    }
    for behind in [&b""[..], b"\n", b"\r\n", b"PROXY UNKNOWN\r\n", &[0; 9]] {
        let fed = HeaderReader::new().feed(&[header, behind].concat());
        assert_eq!(fed.used, header.len());
        assert!(matches!(fed.progress, Progress::Done(_)), "{fed:?}");
    }
    check_laws(header);
    read(header)
}

/// Version 2, with what stands behind the head.
fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let length = (rest.len() as u16).to_be_bytes();
    [
        &b"\r\n\r\n\0\r\nQUIT\n"[..],
        &[command, family],
        &length,
        rest,
    ]
    .concat()
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = (value.len() as u16).to_be_bytes();
    [&[kind][..], &length, value].concat()
}

const ADDRESSES: [u8; 12] = [192, 0, 2, 7, 10, 0, 0, 1, 0x14, 0xe9, 0, 53];

/// Over TCP and IPv4, with TLVs.
fn with(tlvs: &[Vec<u8>]) -> Vec<u8> {
    binary(0x21, 0x11, &[&ADDRESSES[..], &tlvs.concat()].concat())
}

/// Puts in the checksum, which lies at this place.
fn summed(mut header: Vec<u8>, at: usize) -> Vec<u8> {
    let sum = crc32c::crc32c(&header);
    header[at..at + 4].copy_from_slice(&sum.to_be_bytes());
    header
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
    expected[13] = 0x11;
    let addresses = (socket("192.0.2.7:5353"), socket("10.0.0.1:53"));
    assert_eq!(v2(Some(addresses)), expected);
    assert_eq!(
        v1(Some(addresses)),
        b"PROXY TCP4 192.0.2.7 10.0.0.1 5353 53\r\n"
    );
    assert_eq!(v1(None), b"PROXY UNKNOWN\r\n");
    assert_eq!(v2(None), b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
    assert_eq!(v2_local_datagram(), v2(None));
}

#[test]
fn ipv6_and_mixed_addresses_are_written_as_ipv6() {
    let six = header("[2001:db8::7]:5353", "[2001:db8::1]:53");
    assert_eq!((six[13], six[15], six.len()), (0x22, 36, 52));
    let mixed = header("192.0.2.7:5353", "[2001:db8::1]:53");
    assert_eq!(mixed[13], 0x22);
    assert_eq!(mixed[26..32], [0xff, 0xff, 192, 0, 2, 7]);
    let mixed = (socket("192.0.2.7:5353"), socket("[2001:db8::1]:53"));
    assert_eq!(v2(Some(mixed))[13], 0x21);
    let line = b"PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 5353 53\r\n";
    assert_eq!(v1(Some(mixed)), line);
}

#[test]
fn the_specifications_lines_are_read() {
    let full = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    let longest = format!("PROXY TCP6 {full} {full} 65535 65535\r\n");
    let worst = format!("PROXY UNKNOWN {full} {full} 65535 65535\r\n");
    assert_eq!((longest.len(), worst.len()), (104, 107));
    let full = format!("[{full}]:65535");
    for (line, expected) in [
        (
            "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n",
            client("192.168.0.1:56324", "192.168.0.11:443"),
        ),
        (
            "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
            client("255.255.255.255:65535", "255.255.255.255:65535"),
        ),
        (&longest, client(&full, &full)),
        ("PROXY UNKNOWN\r\n", OWN),
        (&worst, OWN),
        ("PROXY UNKNOWN \0\x01 ü whatever\r\n", OWN),
        (
            "PROXY TCP6 2001:DB8::7 ::1 0 1\r\n",
            client("[2001:db8::7]:0", "[::1]:1"),
        ),
        (
            "PROXY TCP6 ::ffff:192.0.2.7 ::ffff:c000:201 1 2\r\n",
            client("192.0.2.7:1", "192.0.2.1:2"),
        ),
    ] {
        assert_eq!(is_whole(line.as_bytes()), expected, "{line}");
    }
}

#[test]
fn lines_that_are_not_exactly_as_specified_are_bad() {
    for (line, said) in [
        (
            "PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
            "TCP4, TCP6 or UNKNOWN in the PROXY line, got \"TCP5\"",
        ),
        ("PROXY \r\n", "TCP4, TCP6 or UNKNOWN"),
        (
            "PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
            "TCP4, TCP6 or UNKNOWN",
        ),
        (
            "PROXY tcp4 1.2.3.4 1.2.3.4 1 2\r\n",
            "TCP4, TCP6 or UNKNOWN",
        ),
        ("PROXY UNKNOWNS\r\n", "TCP4, TCP6 or UNKNOWN"),
        (
            "PROXY TCP4\r\n",
            "an IPv4 address in the PROXY line, got \"\"",
        ),
        ("PROXY TCP4  1.2.3.4 1.2.3.4 1 2\r\n", "an IPv4 address"),
        (
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "an IPv4 address in the PROXY line, got \"::1\"",
        ),
        ("PROXY TCP4 1.2.3.4 1.2.3.04 1 2\r\n", "got \"1.2.3.04\""),
        ("PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n", "an IPv4 address"),
        ("PROXY TCP4 1.2.3 1.2.3.4 1 2\r\n", "an IPv4 address"),
        ("PROXY TCP6 1.2.3.4 1.2.3.4 1 2\r\n", "an IPv6 address"),
        ("PROXY TCP6 [::1] ::1 1 2\r\n", "an IPv6 address"),
        ("PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", "an IPv6 address"),
        ("PROXY TCP6 1::2::3 ::1 1 2\r\n", "an IPv6 address"),
        ("PROXY TCP6 00000::1 ::1 1 2\r\n", "an IPv6 address"),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 01 2\r\n", "a port"),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 00 2\r\n", "a port"),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 +1 2\r\n", "got \"+1\""),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 65536 2\r\n", "got \"65536\""),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 -1 2\r\n", "a port"),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n", "a port"),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 1 \r\n", "a port"),
        (
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 \r\n",
            "CRLF behind the ports",
        ),
        (
            "PROXY TCP4 1.2.3.4 1.2.3.4 1 2 3\r\n",
            "CRLF behind the ports",
        ),
        ("PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n", "CR before LF"),
        ("PROXY TCP4 1.2.3.4\r ", "LF behind CR"),
        (
            "PROXY UNKNOWN\r\r",
            "LF behind CR in the PROXY line, got \"\\r\"",
        ),
        ("PROXY UNKNOWN \n", "CR before LF"),
        (
            "PROXY TCP4 1.2.3.4\0",
            "text in the PROXY line, got \"\\x00\"",
        ),
        ("PROXY TCP4\t", "text in the PROXY line, got \"\\t\""),
        ("PROXY UNKNOWN\0", "text in the PROXY line"),
        ("PROXY TCP4 \u{7f}", "text in the PROXY line"),
    ] {
        let text = fault(line.as_bytes()).to_string();
        assert!(text.contains(said), "{line:?}: {text}");
        // As soon as it is certain.
        assert_eq!(read(&line.as_bytes()[..line.len() - 1]), Progress::More);
        check_laws(line.as_bytes());
    }
}

#[test]
fn a_line_has_107_bytes_at_most() {
    for start in ["PROXY UNKNOWN ", "PROXY TCP6 "] {
        let endless = format!("{start}{}", "f".repeat(200));
        let fed = HeaderReader::new().feed(endless.as_bytes());
        assert_eq!(fed.progress, Progress::Bad(Fault::LineTooLong));
        assert_eq!(fed.used, 107);
        assert_eq!(read(&endless.as_bytes()[..106]), Progress::More);
    }
    let of_108 = format!("PROXY UNKNOWN {}\r\n", "f".repeat(92));
    assert_eq!(fault(of_108.as_bytes()), Fault::LineTooLong);
}

#[test]
fn what_is_no_header_is_known_by_its_first_wrong_byte() {
    for (bytes, said) in [
        (&b"GET / HTTP/1.1"[..], "got \"G\""),
        (b"\x16\x03\x01", "got \"\\x16\""),
        (b"PRI * HTTP/2.0", "got \"PRI\""),
        (b"PROXY\r\n", "got \"PROXY\\r\""),
        (b"\r\n\r\nx", "got \"\\r\\n\\r\\nx\""),
        (b"\r\n\r\n\0\r\nQUIX", "got \"\\r\\n\\r\\n\\x00\\r\\nQUIX\""),
    ] {
        let text = fault(bytes).to_string();
        assert!(text.contains(said), "{text}");
        let used = HeaderReader::new().feed(bytes).used;
        assert_eq!(read(&bytes[..used - 1]), Progress::More);
    }
}

#[test]
fn the_specifications_layouts_are_read() {
    let addresses6 = [[0x20; 16], [0x30; 16]].concat();
    let addresses6 = [&addresses6[..], &[0, 80, 1, 0xbb]].concat();
    let mapped = [&[0; 10][..], &[255, 255, 192, 0, 2, 7]].concat().repeat(2);
    let mapped = [&mapped[..], &[0, 1, 0, 2]].concat();
    let six = client(
        "[2020:2020:2020:2020:2020:2020:2020:2020]:80",
        "[3030:3030:3030:3030:3030:3030:3030:3030]:443",
    );
    let four = client("192.0.2.7:5353", "10.0.0.1:53");
    for (command, family, rest, expected) in [
        (0x21, 0x11, &ADDRESSES[..], four),
        (0x21, 0x21, &addresses6, six),
        (0x21, 0x21, &mapped, client("192.0.2.7:1", "192.0.2.7:2")),
        (0x21, 0x31, &[b'/'; 216], OWN),
        (0x21, 0x32, &[b'/'; 216], OWN),
        // What a stream doesn't carry is UNSPEC to it.
        (0x21, 0x12, &ADDRESSES, OWN),
        (0x21, 0x22, &addresses6, OWN),
        (0x21, 0x10, &ADDRESSES, OWN),
        (0x21, 0x00, &[], OWN),
        (0x21, 0x00, b"what", OWN),
        (0x20, 0x00, &[], OWN),
        (0x20, 0x11, &ADDRESSES, OWN),
        // The family of LOCAL is ignored, and so is what goes with it.
        (0x20, 0x11, &[], OWN),
        (0x20, 0xff, b"whatever", OWN),
    ] {
        assert_eq!(is_whole(&binary(command, family, rest)), expected);
    }
}

#[test]
fn heads_with_what_is_not_assigned_are_bad() {
    for (command, family, length, expected) in [
        (0x11, 0x11, 12, Fault::Version(0x11)),
        (0x31, 0x11, 12, Fault::Version(0x31)),
        (0x22, 0x11, 12, Fault::Command(0x22)),
        (0x2f, 0x11, 12, Fault::Command(0x2f)),
        (0x21, 0x41, 12, Fault::Family(0x41)),
        (0x21, 0x13, 12, Fault::Protocol(0x13)),
        (
            0x21,
            0x11,
            11,
            Fault::Addresses {
                expected: 12,
                got: 11,
            },
        ),
        (
            0x21,
            0x21,
            12,
            Fault::Addresses {
                expected: 36,
                got: 12,
            },
        ),
        (
            0x21,
            0x31,
            215,
            Fault::Addresses {
                expected: 216,
                got: 215,
            },
        ),
        (
            0x21,
            0x12,
            0,
            Fault::Addresses {
                expected: 12,
                got: 0,
            },
        ),
    ] {
        let header = binary(command, family, &vec![0; length]);
        assert_eq!(fault(&header), expected);
        check_laws(&header);
    }
    assert_eq!(read(&binary(0x22, 0x11, &[])[..12]), Progress::More);
    assert_eq!(fault(&binary(0x22, 0x11, &[])[..13]), Fault::Command(0x22));
}

#[test]
fn tlvs_are_skipped_within_their_bounds() {
    let four = client("192.0.2.7:5353", "10.0.0.1:53");
    for tlvs in [
        vec![tlv(4, &[])],
        vec![tlv(4, &[0; 9]), tlv(1, b"h2"), tlv(2, b"a.example.com")],
        vec![tlv(0x20, &[1, 0, 0, 0, 0, 0x21, 0, 7])],
        vec![tlv(0xee, b"PROXY UNKNOWN\r\n")],
    ] {
        assert_eq!(is_whole(&with(&tlvs)), four);
    }
    for (rest, expected, got) in [
        (&[4][..], 3, 1),
        (&[4, 0], 3, 2),
        (&[4, 0, 1], 1, 0),
        (&[4, 0, 0, 4, 0, 9, 1, 2], 9, 2),
        (&[4, 255, 255, 1], 65535, 1),
        (&[3, 0, 4, 1, 2, 3], 4, 3),
    ] {
        assert_eq!(fault(&with(&[rest.to_vec()])), Fault::Tlv { expected, got });
    }
}

#[test]
fn a_header_may_be_as_long_as_its_length_says_and_little_of_it_is_kept() {
    let longest = with(&[tlv(0xee, &vec![7; 65_535 - 15])]);
    assert_eq!(longest.len(), 16 + 65_535);
    let mut reader = HeaderReader::new();
    let (last, rest) = longest.split_last().expect("it is not empty");
    for piece in rest.chunks(1460) {
        let fed = reader.feed(piece);
        assert_eq!((fed.used, fed.progress), (piece.len(), Progress::More));
    }
    let fed = reader.feed(&[*last, b'G']);
    assert_eq!(
        (fed.used, fed.progress),
        (1, client("192.0.2.7:5353", "10.0.0.1:53"))
    );
    assert_eq!(reader.feed(b"ET").used, 0);
    assert!(size_of::<HeaderReader>() <= 160);
}

#[test]
fn the_checksum_is_verified() {
    let four = client("192.0.2.7:5353", "10.0.0.1:53");
    let sum = || tlv(3, &[0; 4]);
    // Before and behind other TLVs.
    for (tlvs, at) in [
        (vec![sum()], 31),
        (vec![sum(), tlv(4, &[0; 9])], 31),
        (vec![tlv(4, b"x"), sum(), tlv(2, b"a")], 35),
    ] {
        let header = summed(with(&tlvs), at);
        assert_eq!(is_whole(&header), four);
        // Without its type it would be none.
        for wrong in (12..header.len()).filter(|wrong| *wrong != at - 3) {
            let mut header = header.clone();
            header[wrong] ^= 0x80;
            assert_ne!(read(&header), four, "{wrong}");
        }
        assert!(matches!(
            fault(&with(&tlvs)),
            Fault::Checksum { got: 0, .. }
        ));
    }
    assert_eq!(fault(&with(&[tlv(3, &[0; 3])])), Fault::ChecksumLength(3));
    assert_eq!(fault(&with(&[sum(), sum()])), Fault::TwoChecksums);
    let local = binary(0x20, 0, &sum());
    assert!(matches!(fault(&local), Fault::Checksum { .. }));
    assert_eq!(is_whole(&summed(local, 19)), OWN);
}

/// As a load balancer of AWS writes it.
const AWS: &[u8] = include_bytes!("../../../fuzz/seeds/proxy_v2/aws");

#[test]
fn a_header_with_a_checksum_of_somebody_elses_is_read() {
    assert_eq!(
        is_whole(AWS),
        client("172.31.7.113:51442", "172.31.10.31:80")
    );
}

#[test]
fn headers_of_another_writer_are_read() {
    let built = |command: Command, protocol, addresses: (SocketAddr, SocketAddr)| {
        Builder::with_addresses(Version::Two | command, protocol, addresses)
            .write_tlv(Type::Authority, b"a.example.com")
            .and_then(|it| it.write_tlv(Type::NoOp, &[0; 5]))
            .and_then(Builder::build)
            .expect("it fits")
    };
    for (from, to) in [
        ("192.0.2.7:1", "10.0.0.1:65535"),
        ("[2001:db8::7]:1", "[::1]:0"),
    ] {
        let pair = (socket(from), socket(to));
        let header = built(Command::Proxy, Protocol::Stream, pair);
        assert_eq!(is_whole(&header), client(from, to));
        let header = built(Command::Local, Protocol::Stream, pair);
        assert_eq!(is_whole(&header), OWN);
        let line = ppp::v1::Addresses::from(pair).to_string();
        assert_eq!(is_whole(line.as_bytes()), client(from, to));
    }
    let unspecified = AddressFamily::Unspecified | Protocol::Unspecified;
    let header = Builder::new(Version::Two | Command::Proxy, unspecified);
    let tlvs = ppp::v2::TypeLengthValue::new(Type::NoOp, b"x").to_bytes();
    let header = header.write_payload(tlvs.expect("it fits").as_slice());
    let header = header.and_then(Builder::build).expect("it fits");
    assert_eq!(is_whole(&header), OWN);
}

fn any_socket() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(IpAddr::from),
        any::<[u8; 4]>().prop_map(|ip| std::net::Ipv4Addr::from(ip).to_ipv6_mapped().into()),
    ];
    (ip, any::<u16>()).prop_map(SocketAddr::from)
}

proptest! {
    #[test]
    fn what_is_written_reads_back(source in any_socket(), destination in any_socket()) {
        let expected = Progress::Done(Announced::client(source, destination));
        for header in [v1(Some((source, destination))), v2(Some((source, destination)))] {
            prop_assert_eq!(is_whole(&header), expected);
        }
        let of_ppp = v1(Some((source, destination)));
        prop_assert!(ppp::v1::Header::try_from(&of_ppp[..]).is_ok());
    }

    #[test]
    fn whatever_comes_is_read_without_harm(
        start in prop::sample::select(vec!["", "PROXY ", "PROXY TCP4 1.2.3.4 ", "\r\n\r\n\0\r\nQUIT\n"]),
        bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        check_laws(&[start.as_bytes(), &bytes].concat());
    }

    #[test]
    fn headers_with_wrong_bytes_are_read_without_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        source in any_socket(),
        destination in any_socket(),
        is_line in any::<bool>(),
    ) {
        let addresses = Some((source, destination));
        let mut header = if is_line {
            v1(addresses)
        } else {
            let addresses = v2(addresses)[16..].to_vec();
            let family = if addresses.len() == 12 { 0x11 } else { 0x21 };
            let tlvs = [tlv(4, b"x"), tlv(3, &[0; 4]), tlv(0xe0, &[5; 7])].concat();
            let at = 16 + addresses.len() + 7;
            summed(binary(0x21, family, &[addresses, tlvs].concat()), at)
        };
        for (at, byte) in changes {
            let at = at.index(header.len());
            header[at] = byte;
        }
        check_laws(&header);
    }
}
